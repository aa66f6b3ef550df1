"""The import stage: the log through the TOML's SQL into DuckDB."""

import time
from pathlib import Path

from features.log.dataset import import_log
from features.log.sources import source_files
from ranker.code_hash import code_hash
from ranker.config import Config
from ranker.training.fetch import fetch
from ranker.training.stages import run_stage

#: what the stage reads of our code
CODE = (
    "features.errors",
    "features.log",
    "features.newcomers",
    "features.schema",
    "features.settings",
    "ranker.training.importing",
)


def import_stage(config: Config) -> Path:
    """Fetch what is missing, import the log, and return the folder of `log.duckdb`."""
    if config.fetch is not None:
        fetch(config.fetch, config.data_root)
    tables = [t for t in (config.events, config.items, config.users) if t is not None]
    files = [source_files(table.source, config.data_root) for table in tables]
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for found in files for p in found]
    if not all(files):
        stats.append(("a source whose files are not known is read anew", 0, time.time_ns()))
    mapping = config.mapping()
    settings = [t.model_dump() if t else None for t in (mapping.events, mapping.items, mapping.users)]
    inputs = [stats, settings, [g.model_dump() for g in mapping.grades], mapping.pairing_where, mapping.zone]
    inputs.append(code_hash(*CODE))
    return run_stage(config.work, "import", inputs, lambda folder: import_log(mapping, folder / "log.duckdb"))
