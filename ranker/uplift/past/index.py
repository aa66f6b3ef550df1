"""An index of past reports: when, what was asked, the verdict, and the interval as a picture. One page of a folder."""

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from features.errors import PairliftError
from ranker.uplift.canvas import Canvas
from ranker.uplift.family.said import verdict as verdict_of_several
from ranker.uplift.markup import IN_THE_PAGE, PAGE, document, items, keep_page
from ranker.uplift.result import JSON, UpliftReport, found_json
from ranker.uplift.said import found_at, interval, pointer
from ranker.uplift.verdict import verdict

Report = Mapping[str, Any]

#: file of the index, in the folder that it is of
INDEX = "index.html"


def index_of(folder: Path) -> dict[str, Any]:
    """Return `reports`, the latest first, and `unread`: files of that name that are none, each with the reason.

    A report of several plugins stands for those of its plugins that lie in it. Raises PairliftError without a report.
    """
    if not folder.is_dir():
        raise PairliftError(f"a folder of reports was expected, found no folder {folder}")
    reports, unread, several = [], [], set[Path]()
    for path in sorted(folder.rglob(JSON), key=lambda path: (len(path.parts), path)):  # a folder before what is in it
        if path.parent.parent in several:
            continue
        try:
            found = _entry(path)
        except PairliftError as error:
            unread.append({"path": os.path.relpath(path, folder), "why": str(error)})
            continue
        if len(found["plugins"]) > 1:
            several.add(path.parent)
        reports.append({"path": os.path.relpath(path.parent, folder), **found})
    if not reports:
        why = f": {unread[0]['why']}" if unread else ""
        raise PairliftError(
            f"{folder} has no report of `pairlift uplift` in it (folders with {JSON}); --out writes one{why}"
        )
    return {"reports": sorted(reports, key=lambda of: (of["date"], of["time"]), reverse=True), "unread": unread}


def _entry(path: Path) -> dict[str, Any]:
    """Return what the index says of a report."""
    found = found_json(path)
    if isinstance(found, dict) and "plugins" in found and "each" in found:
        none = {"relative_uplift": None, "ci95": [None, None]}
        part, plugins, said = found["together"] or none, found["plugins"], verdict_of_several(found)
        useful = any(of["useful"] for of in found["each"].values())
    else:
        found = UpliftReport.of(found).figures
        part, plugins, said, useful = found, [found["plugin"]], f"{found['plugin']} {verdict(found)}", found["useful"]
    kept = {"data": found["data"], "plugins": plugins, "verdict": said, "useful": useful}
    kept |= {key: str(found_at(found, ("made", key)) or "") for key in ("date", "time")}
    kept |= {"page": path.with_name(PAGE).is_file()}
    return kept | {key: part[key] for key in ("relative_uplift", "ci95")}


def as_page(index: Report) -> str:
    """Return the index as a page; links go to the reports' own pages beside it."""
    ends = [0.0]
    for of in index["reports"]:
        ends += [end for end in (of["relative_uplift"], *of["ci95"]) if end is not None]
    cards = "\n".join(_card(index, k, min(ends), max(ends)) for k in range(len(index["reports"])))
    unread = items(f"<code>{escape(of['path'])}</code>: {escape(of['why'])}" for of in index["unread"])
    left_out = f"<section><h2>Not read</h2>{unread}</section>" if unread else ""
    n = len(index["reports"])
    head = f"""<header><p class="aside">Pairlift, uplift reports</p><h1>{n} {"report" if n == 1 else "reports"}</h1>
<p>The latest first. Each bar is the uplift in PairAccuracy with its interval of 95 %, of several plugins that of all \
together; all have one axis. Reports of other data or another split do not compare: \
<code>pairlift uplift --compare OLD NEW</code> says what changed between two.</p></header>"""
    foot = f'<p class="aside">{IN_THE_PAGE}</p>'
    return document("Uplift reports", [head, f'<div class="cards wide">{cards}</div>', left_out, foot], index)


def _card(index: Report, k: int, low: float, high: float) -> str:
    of = index["reports"][k]
    asked = escape(f"Is {of['plugins'][0]} useful to the ranker?" if len(of["plugins"]) == 1 else _which(of["plugins"]))
    if of["page"]:
        asked = f'<a href="{escape(quote(of["path"] + "/" + PAGE))}">{asked}</a>'
    tone = "good" if of["useful"] else "open"
    what = escape(f"{of['date'] or 'of an unknown day'}, {of['data']}: {of['path']}")
    return f"""<figure class="card"><p class="aside">{what}</p><h3>{asked}</h3>
<p class="verdict {tone}">{escape(of["verdict"])}</p>
{_drawn(index, k, low, high)}</figure>"""


def _which(plugins: list[str]) -> str:
    return f"Which of {', '.join(plugins)} are useful to the ranker?"


def _drawn(index: Report, k: int, low: float, high: float) -> str:
    path, of = ("reports", k), index["reports"][k]
    canvas = Canvas(index, 1, low, high)
    canvas.rule(0, "muted")
    canvas.label(0, "uplift, 95 %" if len(of["plugins"]) == 1 else "all together", interval(*path))
    if None not in of["ci95"]:
        start, stop = of["ci95"]
        canvas.bar(0, start, stop, "accent" if of["useful"] else "faint", 6, pointer((*path, "ci95")))
    if of["relative_uplift"] is not None:
        canvas.dot(0, of["relative_uplift"], "ink", hollow=not of["useful"])
    canvas.axis(lambda uplift: f"{100 * uplift:+.4g} %")
    return canvas.svg(f"Interval of report {k + 1}")


def as_lines(index: Report) -> str:
    """Return a line for each report."""
    lines = [f"{of['date'] or '-':11}{of['path']:32}{of['data']}: {of['verdict']}" for of in index["reports"]]
    return "\n".join([*lines, *(f"NOT READ: {of['path']}: {of['why']}" for of in index["unread"])])


def write_index(index: Report, folder: Path) -> Path:
    """Write index.html into the folder; return its path."""
    return keep_page(as_page(index), folder, INDEX)
