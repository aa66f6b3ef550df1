"""A report of several plugins as text, and as files: its page, and a table as Parquet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.files import written
from ranker.uplift.family.page import as_page
from ranker.uplift.family.said import P_SAID, doubts_of, said_of, verdict, why
from ranker.uplift.markup import keep_page
from ranker.uplift.said import Figure, as_text, interval

Report = Mapping[str, Any]

#: files of the page, and of the table
TABLE = "plugins.parquet"
NUMBERS = ("without", "with", "relative_uplift", "low", "high", "p", "p_holm")
SCHEMA = pa.schema(
    [
        *(("plugin", pa.string()), ("question", pa.string())),
        *((name, pa.float64()) for name in NUMBERS),
        ("yes", pa.bool_()),
    ]
)


def as_table(report: Report) -> str:
    """Return the verdict, a line for each question of each plugin, and what is said of each."""
    lines = [f"{report['data']}: {verdict(report)}", as_text(report, why(report)), ""]
    lines.append(f"{'':34}{'without':>9}{'with':>9}  {'uplift [95 %]':30}{'p':>9}{'corrected':>11}")
    if report["together"] is not None:
        lines.append(_line(report, "all together", ("together",)))
    for name, of in report["each"].items():
        lines.append(_line(report, f"{name} alone", ("each", name, "alone")))
        if of["adds"] is not None:
            lines.append(_line(report, f"  {name} over the rest", ("each", name, "adds")))
    lines += ["", P_SAID, "", *(f"{name}: {as_text(report, said_of(report, name))}" for name in report["each"])]
    lines += [f"WARNING: {name}: {doubt}" for name, of in doubts_of(report).items() for doubt in of]
    return "\n".join(lines)


def _line(report: Report, label: str, path: tuple[str, ...]) -> str:
    accuracy = "".join(f"{Figure((*path, arm), 'accuracy').text(report):>9}" for arm in ("without", "with"))
    line = f"{label:34}{accuracy}  {as_text(report, interval(*path)):30}"
    if path == ("together",):
        return line.rstrip()
    p, corrected = (Figure((*path, name), "number").text(report) for name in ("p", "p_holm"))
    return f"{line}{p:>9}{corrected:>11}"


def rows_of(report: Report) -> pa.Table:
    """Return a row for each question of each plugin: `alone` and, where it is asked, `adds`."""
    rows = []
    for name, of in report["each"].items():
        for question, yes in (("alone", "useful"), ("adds", "more")):
            if (part := of[question]) is not None:
                low, high = part["ci95"]
                numbers = {key: part.get(key) for key in NUMBERS} | {"low": low, "high": high}
                rows.append({"plugin": name, "question": question, **numbers, "yes": of[yes]})
    return pa.Table.from_pylist(rows, SCHEMA)


def write_page(report: Report, folder: Path) -> list[Path]:
    """Write the page and the table into a folder, which is made where there is none; return their paths."""
    page = keep_page(as_page(report), folder)
    with written(folder / TABLE) as partial:
        pq.write_table(rows_of(report), partial)
    return [page, folder / TABLE]
