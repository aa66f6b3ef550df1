"""The figures of an experiment's page, each as an SVG: see `ranker.uplift.canvas`."""

from collections.abc import Mapping, Sequence
from typing import Any

from ranker.ab.verdict import Path, found, others, primary
from ranker.uplift.canvas import Canvas
from ranker.uplift.said import Figure, found_at, interval, pointer

Report = Mapping[str, Any]


def interval_figure(report: Report) -> str:
    """Return each arm's uplift of the first metric, beside the smallest one that this look could have shown."""
    known = [arm for arm in others(report) if found(report, arm)["relative_uplift"] is not None]
    ends = _ends(report, [primary(report, arm) for arm in known])
    ends += [found(report, arm)["detectable"] or 0.0 for arm in known]
    canvas = Canvas(report, max(2 * len(known), 1), min(ends), max(ends))
    canvas.rule(0, "muted")
    for k, arm in enumerate(known):
        _row(canvas, 2 * k, arm, primary(report, arm), strong=True)
        path = (*primary(report, arm), "detectable")
        canvas.label(2 * k + 1, "found 4 times in 5 from", [Figure(path, "percent")])
        if (least := found_at(report, path)) is not None:
            canvas.bar(2 * k + 1, 0, least, "muted", 7, pointer(path))
    canvas.axis(_signed)
    return canvas.svg(f"The uplift in {report['primary']} of each arm, beside the smallest that could be shown")


def metrics_figure(report: Report, arm: str) -> str:
    """Return every metric's uplift of an arm."""
    rows = {name: ("metrics", name, "against", arm) for name in report["metrics"]}
    return _forest(report, rows, f"The uplift of {arm} in every metric")


def looks_figure(report: Report, arm: str) -> str:
    """Return the uplift of the first metric at every look. Intervals of the first half may leave the axis."""
    rows = {
        f"until {look['until'][:16].replace('T', ' ')}": ("looks", k, "metrics", report["primary"], arm)
        for k, look in enumerate(report["looks"])
    }
    late = list(rows.values())[len(rows) // 2 :]
    return _forest(report, rows, f"The uplift of {arm} in {report['primary']} over time", late)


def _forest(report: Report, rows: Mapping[str, Path], title: str, shown: Sequence[Path] = ()) -> str:
    """Return a row for each interval. shown: those whose whole intervals the axis has; all, where it is empty."""
    known = {label: path for label, path in rows.items() if found_at(report, (*path, "relative_uplift")) is not None}
    ends = _ends(report, [path for path in known.values() if path in shown or not shown])
    canvas = Canvas(report, max(len(known), 1), min(ends), max(ends))
    canvas.rule(0, "muted")
    for k, (label, path) in enumerate(known.items()):
        _row(canvas, k, label, path)
    canvas.axis(_signed)
    return canvas.svg(title)


def _row(canvas: Canvas, row: int, label: str, path: Path, strong: bool = False) -> None:
    """Draw both intervals of a place, for every look and for one: the one that decides is in colour."""
    canvas.label(row, label, interval(*path), strong=strong)
    wide, narrow = ("faint", "accent") if canvas.report["final"] else ("accent", "faint")
    for key, colour, width in (("always95", wide, 9), ("fixed95", narrow, 4)):
        low, high = found_at(canvas.report, (*path, key))
        if low is not None:
            canvas.bar(row, low, high, colour, width, pointer((*path, key)))
    canvas.dot(row, found_at(canvas.report, (*path, "relative_uplift")), "ink")


def _ends(report: Report, paths: Sequence[Path]) -> list[float]:
    """Return all that an axis of these places must show, and 0."""
    keys: list[Path] = [(key, end) for key in ("fixed95", "always95") for end in (0, 1)]
    values = [found_at(report, (*path, *key)) for path in paths for key in [*keys, ("relative_uplift",)]]
    return [0.0, *(value for value in values if value is not None)]


def _signed(uplift: float) -> str:
    return f"{100 * uplift:+.4g} %"
