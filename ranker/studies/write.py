"""The results of a study as files: the table, its data as CSV and JSON, and the chart."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path

from features.files import check_folder, made_folder, written
from ranker.config import Config
from ranker.studies import unified_table
from ranker.studies.run import run_study
from ranker.studies.table import as_csv, as_markdown, as_svg
from ranker.studies.unified import run_unified
from ranker.studies.variants import UNIFIED


def write_study(config: Config, name: str, plugin: str, truth: Path | None, out: Path, command: str) -> list[Path]:
    """Run a study (`run_study`, or `run_unified`) and write `out`/name.md, .csv, .svg and .json; return their paths.

    command: what a reader would type to do it again.
    """
    check_folder(out)
    started = time.monotonic()
    of_surfaces = name == UNIFIED
    report = run_unified(config, truth) if of_surfaces else run_study(config, name, plugin, truth)
    report |= {"command": command, "date": datetime.now(UTC).strftime("%Y-%m-%d")}
    report["minutes"] = (time.monotonic() - started) / 60
    texts = {
        "md": (unified_table.as_markdown if of_surfaces else as_markdown)(report),
        "csv": (unified_table.as_csv if of_surfaces else as_csv)(report),
        "svg": as_svg(report),
        "json": json.dumps(report, indent=1, allow_nan=False) + "\n",
    }
    made_folder(out)
    for kind, text in texts.items():
        with written(out / f"{name}.{kind}") as partial:
            partial.write_text(text)
    return [out / f"{name}.{kind}" for kind in texts]
