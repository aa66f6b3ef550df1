"""The results of a study as files: the table, its data as CSV and JSON, and the chart."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from features.files import check_folder, made_folder, written
from ranker.config import Config
from ranker.studies import unified_table
from ranker.studies.loop import report as loop
from ranker.studies.loop.bounds import bounds_of
from ranker.studies.loop.run import run_loop
from ranker.studies.run import run_study
from ranker.studies.table import as_csv, as_markdown, as_svg
from ranker.studies.unified import run_unified
from ranker.studies.variants import UNIFIED

Report = dict[str, Any]


def write_study(config: Config, name: str, plugin: str, truth: Path | None, out: Path, command: str) -> list[Path]:
    """Run a study (`run_study`, or `run_unified`) and write `out`/name.md, .csv, .svg and .json; return their paths.

    command: what a reader would type to do it again.
    """
    if name == UNIFIED:
        forms = unified_table.as_markdown, unified_table.as_csv, as_svg
        return _written(out, name, command, lambda: run_unified(config, truth), *forms)
    return _written(out, name, command, partial(run_study, config, name, plugin, truth), as_markdown, as_csv, as_svg)


def write_loop(config: Config, plugin: str, days: int, out: Path, command: str) -> list[Path]:
    """Run the study `loop` (`ranker.studies.loop.run.run_loop`) for so many days, and write the same."""

    def report() -> Report:
        return loop.loop_report(config.name, plugin, run_loop(config, plugin, days), bounds_of(config, days))

    return _written(out, "loop", command, report, loop.as_markdown, loop.as_csv, loop.as_svg)


def _written(
    out: Path, name: str, command: str, run: Callable[[], Report], *forms: Callable[[Report], str]
) -> list[Path]:
    """Run, and write what was found in each form. forms: Markdown, CSV and SVG."""
    check_folder(out)
    started = time.monotonic()
    report = run() | {"command": command, "date": datetime.now(UTC).strftime("%Y-%m-%d")}
    report["minutes"] = (time.monotonic() - started) / 60
    texts = {kind: form(report) for kind, form in zip(("md", "csv", "svg"), forms, strict=True)}
    texts["json"] = json.dumps(report, indent=1, allow_nan=False) + "\n"
    made_folder(out)
    for kind, text in texts.items():
        with written(out / f"{name}.{kind}") as own:
            own.write_text(text)
    return [out / f"{name}.{kind}" for kind in texts]
