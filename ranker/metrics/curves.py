"""The curve of each plugin that was trained in steps, as CSV and as a picture: see `features.plugin.CurvePlugin`."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from features.plugin import CurvePlugin, FeaturePlugin

#: columns of the CSV
FIELDS = ("phase", "step", "loss", "validation")
#: colours of the two lines
COLOURS = {"loss": "#1f77b4", "validation": "#d62728"}
#: a panel: its width and height, and what is left of it for numbers, in pixels
WIDTH, HEIGHT, MARGIN = 360, 220, 60

Point = Mapping[str, Any]


def write_curves(folder: Path, plugins: Mapping[str, FeaturePlugin]) -> None:
    """Write `<plugin>.csv` and `<plugin>.svg` into a folder, which is made where a plugin has a curve."""
    for name, plugin in plugins.items():
        points = list(plugin.curve) if isinstance(plugin, CurvePlugin) else []
        if not points:
            continue
        folder.mkdir(exist_ok=True)
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(points)
        (folder / f"{name}.svg").write_text(as_svg(name, points))


def as_svg(title: str, points: Iterable[Point]) -> str:
    """Return the curve as SVG: a panel for each phase, its loss and its validation figure on an axis of their own."""
    phases: dict[str, list[Point]] = {}
    for point in points:
        phases.setdefault(point["phase"], []).append(point)
    width, height, panels = WIDTH * len(phases), HEIGHT + 20, enumerate(phases.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11">\n<rect width="{width}" height="{height}" fill="white"/>\n'
        f'<text x="8" y="16" font-weight="bold">{escape(title)}</text>\n'
        + "".join(f'<g transform="translate({k * WIDTH},20)">{_panel(*phase)}</g>\n' for k, phase in panels)
        + "</svg>\n"
    )


def _panel(phase: str, points: Sequence[Point]) -> str:
    """Return a phase's two lines; the loss has the left axis, the validation figure the right one."""
    last = max(point["step"] for point in points)
    parts = [
        f'<rect x="{MARGIN}" y="{MARGIN // 2}" width="{WIDTH - 2 * MARGIN}" height="{HEIGHT - MARGIN}" fill="none" '
        'stroke="#bbb"/>',
        f'<text x="{WIDTH / 2}" y="{MARGIN // 2 - 6}" text-anchor="middle">{escape(phase)}, {last} steps</text>',
    ]
    for what, x, anchor in (("loss", MARGIN - 4, "end"), ("validation", WIDTH - MARGIN + 4, "start")):
        line = [(point["step"], point[what]) for point in points if point[what] is not None]
        if line:
            parts += [_line(line, last, COLOURS[what]), *_scale(what, line, x, anchor)]
    return "".join(parts)


def _line(line: Sequence[tuple[int, float]], last: int, colour: str) -> str:
    """Return a line through (step, value), and a dot at each where they are few."""
    low, high = _bounds(line)
    places = [
        (MARGIN + (WIDTH - 2 * MARGIN) * step / last, MARGIN // 2 + (HEIGHT - MARGIN) * (high - value) / (high - low))
        for step, value in line
    ]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in places if len(line) < 30)
    return f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="1.5"/>{dots}'


def _scale(what: str, line: Sequence[tuple[int, float]], x: float, anchor: str) -> list[str]:
    """Return the numbers of an axis: its ends, and what it is of."""
    low, high = _bounds(line)
    top, foot = MARGIN // 2, HEIGHT - MARGIN + MARGIN // 2
    return [
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{COLOURS[what]}">{text}</text>'
        for y, text in ((top + 8, f"{high:.4g}"), (foot, f"{low:.4g}"), (foot + 16, what))
    ]


def _bounds(line: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return the least and the greatest value, apart where they are one."""
    values = [value for _, value in line]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
