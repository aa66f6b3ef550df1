"""Figures beside their bars, as `serving.py` and `neural.py` print them."""

from typing import Any

#: by name: at most (<=) or at least (>=), and the bar; None where a figure has none
Bars = dict[str, tuple[str, float | None]]


def table(bars: Bars, figures: dict[str, Any], why: dict[str, str]) -> str:
    """Return the figures beside what they should be. why: of those that are None."""
    lines = []
    for name, (sign, bound) in bars.items():
        value, wanted = figures[name], "" if bound is None else f"{sign} {bound:g}"
        if value is None:
            lines.append(f"  {name:36} {'-':>12}  {wanted:12} {why.get(name, 'it was not measured')}")
            continue
        met = bound is None or (value <= bound if sign == "<=" else value >= bound)
        lines.append(f"  {name:36} {value:12.4g}  {wanted:12} {'' if met else 'missed'}")
    return "\n".join(lines)
