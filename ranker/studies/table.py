"""A study's report as text: a table in Markdown, the same as CSV, and an SVG of the uplifts with their intervals."""

import csv
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

#: px of the chart: a row, the names on the left, the figures on the right, the whole width
ROW, LEFT, RIGHT, WIDTH = 28, 150, 190, 760
COLUMNS = (
    "arm", "plugin", "at", "pair_accuracy", "relative_uplift", "low", "high", "over_first", "over_first_low",
    "over_first_high", "validation", "fits", "seconds_of_a_fit",
)  # fmt: skip
#: of the table, behind the arm and its place on the axis
HEADS = ("PairAccuracy", "uplift [95 %]", "over the first arm [95 %]", "validation", "s")


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    over = report["slope"]["over"] if report["slope"] else ""
    heads = _heads(report)
    lines = [
        f"# {report['study']}: {report['asks']}",
        "",
        f"{report['data']}, PairAccuracy of {report['pairs_kind']} pairs on the test, ties as one half; "
        f"{report['users']:,} users. Without the plugin {report['without']:.4f}.",
        "",
        _line("arm", *([over] if over else []), *HEADS, *heads),
        _line(*["---"] * (len(HEADS) + 1 + bool(over) + len(heads))),
        *(_row(arm, bool(over), heads) for arm in report["arms"]),
        "",
        *_notes(report),
        f"Fits {report['fit_seeds']}, booster seeds {report['seeds']}; {report['fit_minutes']:.1f} minutes of fits.",
        "Validation: the highest figure on the latest part of its own period among the epochs that a fit reports "
        "(of the towers, PairAccuracy). s: seconds of one fit of the plugin.",
        *_about(heads),
        f"`{report['command']}`, {report['date']}, {report['minutes']:.1f} minutes in this run.",
    ]
    return "\n".join(lines) + "\n"


def _heads(report: dict[str, Any]) -> list[str]:
    """Return the heads that some arm has a loss of."""
    return list(dict.fromkeys(head for arm in report["arms"] for head in arm["heads"]))


def _about(heads: list[str]) -> list[str]:
    """Return the line that says what the figures of the heads are."""
    what = "mean losses on the events of the test, each as of what came before it, of heads that only training has"
    return [f"{', '.join(heads)}: {what}."] if heads else []


def _row(arm: dict[str, Any], on_axis: bool, heads: list[str]) -> str:
    first = arm["over_first"]
    cells = [arm["arm"], *([_place(arm["at"])] if on_axis else []), f"{arm['pair_accuracy']:.4f}", interval(arm)]
    cells += [interval(first) if first else "", _known(arm["validation"]), f"{_seconds(arm):.1f}"]
    cells += [_known(arm["heads"].get(head)) for head in heads]
    return _line(*cells)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _notes(report: dict[str, Any]) -> list[str]:
    notes = []
    if best := report["best"]:
        notes += [f"No order has a higher expected PairAccuracy than that by the true expected grade: "
                  f"{best['pair_accuracy']:.4f}, {interval(best)}.", ""]  # fmt: skip
    if of := report["slope"]:
        notes += [
            f"No slope: {of['remark']}."
            if of["remark"]
            else f"Slope for each factor of 10 of {of['over']}: {interval(of)}.",
            "",
        ]
    return notes


def interval(of: Mapping[str, Any]) -> str:
    """Return `+2.23 % [+1.47, +3.00]`; a dash for what is not known."""
    low, high = (_percent(end) for end in of["ci95"])
    return f"{_percent(of['relative_uplift'])} % [{low}, {high}]"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.2f}"


def _known(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _place(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _seconds(arm: dict[str, Any]) -> float:
    seconds: list[float] = [fit["seconds"] for fit in arm["fits"]]
    return sum(seconds) / len(seconds)


def as_csv(report: dict[str, Any]) -> str:
    """Return a line for each arm; shares, not per cent."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = _heads(report)
    writer.writerow([*COLUMNS, *(f"{head}_loss" for head in heads)])
    for arm in report["arms"]:
        first = arm["over_first"] or {"relative_uplift": None, "ci95": [None, None]}
        line = [arm[name] for name in COLUMNS[:5]] + arm["ci95"] + [first["relative_uplift"], *first["ci95"]]
        line += [arm["validation"], len(arm["fits"]), round(_seconds(arm), 2)]
        writer.writerow([*line, *(arm["heads"].get(head) for head in heads)])
    return text.getvalue()


def as_svg(report: dict[str, Any]) -> str:
    """Return a chart of the arms' uplifts."""
    return drawn(f"{report['data']}, {report['study']}: uplift in PairAccuracy, 95 %", report["arms"])


def drawn(title: str, arms: Sequence[Mapping[str, Any]]) -> str:
    """Return a chart as SVG: a row for each arm, a dot at its uplift, a line over its interval, zero marked."""
    known = [v for a in arms for v in (a["relative_uplift"], *a["ci95"]) if v is not None]
    low, high = min([0.0, *known]), max([0.0, *known])
    span, height = (high - low) or 1.0, ROW * (len(arms) + 2)

    def x(value: float) -> float:
        return float(LEFT + (value - low) / span * (WIDTH - LEFT - RIGHT))

    rows = [_row_of_chart(arm, ROW * (k + 1.5), x) for k, arm in enumerate(arms)]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="18" font-weight="bold">{escape(title)}</text>',
        f'<line x1="{x(0):.1f}" y1="{ROW}" x2="{x(0):.1f}" y2="{height - ROW}" stroke="#999" stroke-dasharray="3"/>',
        f'<text x="{x(0):.1f}" y="{height - 10}" text-anchor="middle" fill="#666">0</text>',
        *rows,
        "</svg>",
        "",
    ])  # fmt: skip


def _row_of_chart(arm: Mapping[str, Any], y: float, x: Any) -> str:
    """Return one row of the chart. x: of a share, in px."""
    parts = [f'<text x="8" y="{y + 4:.1f}">{escape(arm["arm"])}</text>']
    low, high = arm["ci95"]
    if low is not None:
        parts.append(f'<line x1="{x(low):.1f}" y1="{y}" x2="{x(high):.1f}" y2="{y}" stroke="#246" stroke-width="2"/>')
    if arm["relative_uplift"] is not None:
        parts.append(f'<circle cx="{x(arm["relative_uplift"]):.1f}" cy="{y}" r="4" fill="#246"/>')
    parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{y + 4:.1f}">{escape(interval(arm))}</text>')
    return "".join(parts)
