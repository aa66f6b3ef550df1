"""The import stage: the log through the TOML's SQL into DuckDB.

It runs where the sources' files have other times or sizes, or are not known. The stages after it look at what was
imported: files that were copied, touched or fetched anew with the same content train nothing again.
"""

import time
from pathlib import Path
from typing import Any

import duckdb

from features.log.dataset import import_log
from features.log.sources import source_files
from ranker.code_hash import code_hash
from ranker.config import Config
from ranker.hashes import hash_value
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


#: the file of the stage that has the hash of what its tables hold
CONTENT = "content"


def import_stage(config: Config) -> Path:
    """Fetch what is missing, import the log, and return the folder of `log.duckdb`."""
    if config.fetch is not None:
        fetch(config.fetch, config.data_root)
    tables = [t for t in (config.events, config.items, config.users) if t is not None]
    files = [source_files(table.source, config.data_root) for table in tables]
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for found in files for p in found]
    if not all(files):
        stats.append(("a source whose files are not known is read anew", 0, time.time_ns()))

    def make(folder: Path) -> None:
        import_log(config.mapping(), folder / "log.duckdb")
        (folder / CONTENT).write_text(_content(folder / "log.duckdb"))

    return run_stage(config.work, "import", [stats, *_how(config)], make)


def imported_key(config: Config) -> str:
    """Return a hash of what the (complete) import holds and of how it was read, not of the files' times."""
    return hash_value([(config.work / "import" / CONTENT).read_text(), *_how(config)])


def _how(config: Config) -> list[Any]:
    mapping = config.mapping()
    settings = [t.model_dump() if t else None for t in (mapping.events, mapping.items, mapping.users)]
    return [settings, [g.model_dump() for g in mapping.grades], mapping.pairing_where, mapping.zone, code_hash(*CODE)]


def _content(database: Path) -> str:
    """Return a hash of all tables of a DuckDB file: their columns, their rows and the order of these."""
    with duckdb.connect(str(database), read_only=True) as con:
        tables = con.execute("SELECT table_name, sql FROM duckdb_tables() ORDER BY table_name").fetchall()
        counted = "SELECT count(*), sum(hash(t, rowid))::VARCHAR, bit_xor(hash(t, rowid))::VARCHAR"
        return hash_value([(name, sql, con.execute(f'{counted} FROM "{name}" t').fetchone()) for name, sql in tables])
