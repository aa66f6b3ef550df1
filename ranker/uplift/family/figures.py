"""The figures of several plugins' page, each as an SVG: see `ranker.uplift.canvas`."""

from collections.abc import Mapping
from typing import Any

from ranker.uplift.canvas import Canvas
from ranker.uplift.said import Figure, Sentence, found_at, interval, pointer

Report = Mapping[str, Any]
Path = tuple[str | int, ...]

#: label of a row, and what is left of it where p stands beside
ADDS, SHORT = "   adds to the rest", "   adds"

#: what a plugin costs: its place in `cost`, how it is written, and its name
COSTS: dict[str, tuple[Path, str]] = {
    "time in a request": (("request_ms", "p50"), "ms"),
    "memory in a process that serves": (("memory_bytes",), "bytes"),
    "training": (("fit_seconds",), "seconds"),
    "size in a bundle": (("saved_bytes",), "bytes"),
}


def family_figure(report: Report) -> str:
    """Return the intervals of all together, and of each plugin alone and over the rest.

    A point is filled where the corrected verdict is yes, and hollow where nothing is shown.
    """
    rows: list[tuple[str, Path, bool]] = []
    if report["together"] is not None:
        rows.append(("together", ("together",), (report["together"]["ci95"][0] or 0.0) > 0))
    for name, of in report["each"].items():
        rows.append((f"{name} (leaks)" if of["leaks"] else name, ("each", name, "alone"), of["useful"]))
        if of["adds"] is not None:
            rows.append((ADDS, ("each", name, "adds"), of["more"]))
    ends = _ends(report, [path for _, path, _ in rows])
    canvas = Canvas(report, len(rows), min(ends), max(ends))
    canvas.rule(0, "muted")
    for k, (label, path, yes) in enumerate(rows):
        _row(canvas, k, label, path, yes)
    canvas.axis(_signed)
    return canvas.svg("The uplift of all plugins together, of each alone, and what each adds to the rest")


def _row(canvas: Canvas, k: int, label: str, path: Path, yes: bool) -> None:
    """Draw an interval. yes: something is shown; else with the smallest uplift that is, and p where it decides."""
    report, adds = canvas.report, path[-1] == "adds"
    leaks = path[0] == "each" and bool(found_at(report, (*path[:2], "leaks")))
    low, high = found_at(report, (*path, "ci95"))
    unsure = path[0] == "each" and not (yes or leaks)
    p: Sentence = ["  p ", Figure((*path, "p_holm"), "number")] if unsure and (low or 0.0) > 0 else []
    canvas.label(k, SHORT if p and adds else label, [*interval(*path), *p], strong=not (adds or leaks))
    if unsure and found_at(report, (*path, "minimum_detectable_uplift")) is not None:
        canvas.tick(k, (*path, "minimum_detectable_uplift"), "muted")
    if low is not None and high is not None:
        colour, width = ("muted", 1.0) if leaks else ("faint" if adds else "accent", 5.0)
        canvas.bar(k, low, high, colour, width, pointer((*path, "ci95")))
    uplift = found_at(report, (*path, "relative_uplift"))
    if uplift is not None and not leaks:
        canvas.dot(k, uplift, "ink", hollow=not yes)


def _ends(report: Report, paths: list[Path]) -> list[float]:
    own: list[Path] = [("ci95", 0), ("ci95", 1), ("relative_uplift",), ("minimum_detectable_uplift",)]
    places = [(*path, *end) for path in paths for end in own]
    return [0.0, *(float(end) for place in places if (end := found_at(report, place)) is not None)]


def _signed(uplift: float) -> str:
    return f"{100 * uplift:+.4g} %"


def frontier(report: Report, cost: str) -> list[str]:
    """Return the useful plugins, cheapest first, of which no other useful one gains as much for less. cost: of COSTS.

    One that is not shown to be useful is not among them: to serve none costs nothing.
    """
    found: list[str] = []
    most = 0.0
    for name in by_cost(report, cost):
        if not report["each"][name]["useful"]:
            continue
        gain = found_at(report, ("each", name, "alone", "relative_uplift"))
        if gain is not None and gain > most:
            found, most = [*found, name], gain
    return found


def by_cost(report: Report, cost: str) -> list[str]:
    """Return the plugins whose cost is known, cheapest first; of the same cost, the one that gains more."""
    path, kind = COSTS[cost]
    found = {name: Figure(("each", name, "cost", *path), kind).value(report) for name in report["each"]}
    gain = {name: found_at(report, ("each", name, "alone", "relative_uplift")) or 0.0 for name in report["each"]}
    known = {name: value for name, value in found.items() if value is not None}
    return sorted(known, key=lambda name: (known[name], -gain[name]))


def frontier_figure(report: Report, cost: str) -> str:
    """Return the uplift of each plugin alone, cheapest first; those on the frontier are filled."""
    path, kind = COSTS[cost]
    names, best = by_cost(report, cost), frontier(report, cost)
    ends = _ends(report, [("each", name, "alone") for name in names])
    canvas = Canvas(report, len(names), min(ends), max(ends))
    canvas.rule(0, "muted")
    for k, name in enumerate(names):
        place = ("each", name, "alone")
        gain = Figure((*place, "relative_uplift"), "percent")
        canvas.label(k, name, [gain, " for ", Figure(("each", name, "cost", *path), kind)], strong=name in best)
        low, high = found_at(report, (*place, "ci95"))
        if low is not None and high is not None:
            canvas.bar(k, low, high, "accent" if name in best else "faint", 5, pointer((*place, "ci95")))
        uplift = gain.value(report)
        if uplift is not None:
            canvas.dot(k, uplift, "ink", hollow=name not in best)
    canvas.axis(_signed)
    return canvas.svg(f"Uplift of each plugin by {cost}")
