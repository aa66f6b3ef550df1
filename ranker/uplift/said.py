"""Sentences that have figures of a report in them: as text, and as HTML in which each figure names its place.

One definition of how a figure is written, so that the terminal and the page say the same. A place is a JSON Pointer
(RFC 6901): `data-path="/ci95/0"`, with the value as the JSON has it in `data-value` and how it is written in
`data-kind`, so that a test can compare them.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

#: a space at which no line ends
UNBROKEN = "\u00a0"
_DATE = re.compile(r"\b\d{4}-\d\d-\d\d(?:T[\d:]+Z)?\b")
#: what stands for a figure that is not known
UNKNOWN = "-"


def _short(value: float) -> str:
    """Return three digits of a number, and all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _signed(value: float, digits: int) -> str:
    """Return a number with its sign and so many digits behind the point; what rounds to 0 is not below it."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _in(value: float, units: Mapping[str, float], least: float) -> str:
    """Return a number in the first unit, from the largest, of which there are `least`; else in the last."""
    unit = next((name for name, of in units.items() if value >= least * of), list(units)[-1])
    return f"{_short(value / units[unit])} {unit}"


#: how each kind of figure is written; what stands behind the number is its unit. `error`: of a variance, its root
KINDS: dict[str, Callable[[float], str]] = {
    "percent": lambda value: f"{_signed(100 * value, 2)} %",
    "ends": lambda value: _signed(100 * value, 2),
    "share": lambda value: f"{_short(100 * value)} %",
    "accuracy": lambda value: f"{value:.4f}",
    "gain": lambda value: _signed(value, 4),
    "count": lambda value: f"{value:,.0f}",
    "number": _short,
    "ms": lambda value: f"{_short(value)} ms",
    "seconds": lambda value: _in(value, {"min": 60, "s": 1, "ms": 1e-3}, 2),
    "error": lambda value: f"{_short(100 * value**0.5)} %",
    "bytes": lambda value: "1 byte" if value == 1 else _in(value, {"MiB": 1 << 20, "KiB": 1 << 10, "bytes": 1}, 1),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of a report. A place that holds a list (of lists) of numbers stands for their mean."""

    path: tuple[str | int, ...]  # keys and places from the report's root
    kind: str  # of KINDS

    def value(self, report: Mapping[str, Any]) -> float | None:
        """Return the number; None where it is not known."""
        found = found_at(report, self.path)
        if not isinstance(found, list):
            return None if found is None else float(found)
        flat = np.array([np.nan if of is None else of for of in _flat(found)], dtype=np.float64)
        return float(flat.mean()) if len(flat) and not np.isnan(flat).any() else None

    def text(self, report: Mapping[str, Any]) -> str:
        """Return it as it is written."""
        value = self.value(report)
        return UNKNOWN if value is None else KINDS[self.kind](value)

    def attributes(self, report: Mapping[str, Any]) -> str:
        """Return the attributes of an element that shows it."""
        value = json.dumps(self.value(report))
        return f'data-path="{escape(pointer(self.path))}" data-value="{escape(value)}" data-kind="{self.kind}"'


#: text, and figures in it
Sentence = Sequence[str | Figure]


def found_at(report: Mapping[str, Any], path: Sequence[str | int]) -> Any:
    """Return what stands at a place of a report; None where a part of the way is missing."""
    here: Any = report
    for key in path:
        if isinstance(here, list) and isinstance(key, int) and key < len(here):
            here = here[key]
        elif isinstance(here, Mapping):
            here = here.get(key)
        else:
            return None
    return here


def pointer(path: Sequence[str | int]) -> str:
    """Return a place as a JSON Pointer."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in path)


def interval(*path: str | int) -> list[str | Figure]:
    """Return the uplift and the interval of a part of the report: `+2.23 % [+1.47, +3.00]`; no line ends within it."""
    low, high = (Figure((*path, "ci95", k), "ends") for k in (0, 1))
    return [Figure((*path, "relative_uplift"), "percent"), " [", low, f",{UNBROKEN}", high, "]"]


def costs(report: Mapping[str, Any]) -> list[Sentence]:
    """Return what the plugin of an uplift report costs, a phrase each; none of one that did not keep it."""
    if "cost" not in report:
        return []
    p50, p99 = (Figure(("cost", "request_ms", p), "ms") for p in ("p50", "p99"))
    of: Sentence = [" for its values in a request of ", Figure(("cost", "candidates"), "number"), " candidates"]
    memory: Sentence = [
        Figure(("cost", "memory_bytes"), "bytes"),
        " more memory in a process that serves (resident after some requests, with libraries that it alone brings)",
    ]
    return [
        ["p50 ", p50, ", p99 ", p99, *of, " on average, one request at a time, where the report was made"],
        *([memory] if report["cost"].get("memory_bytes") is not None else []),
        [Figure(("cost", "fit_seconds"), "seconds"), " for a fit"],
        [Figure(("cost", "saved_bytes"), "bytes"), " more in a bundle"],
    ]


def lag_said(report: Mapping[str, Any]) -> str:
    """Return how late the values of a report's plugin are; empty where it sees events at once, or does not say."""
    lag = report.get("lag")
    if not lag:
        return ""
    late = "are those of the last midnight" if lag == "daily" else f"lag {lag} behind the events"
    return f"its values {late}, in training as in serving"


def as_text(report: Mapping[str, Any], sentence: Sentence) -> str:
    """Return the sentence as plain text."""
    words = "".join(part if isinstance(part, str) else part.text(report) for part in sentence)
    return words.replace(UNBROKEN, " ")


def as_html(report: Mapping[str, Any], sentence: Sentence) -> str:
    """Return the sentence as HTML: text is escaped, a figure names its place, and no line ends within a date."""
    return "".join(_plain(part) if isinstance(part, str) else _element(report, part) for part in sentence)


def _plain(text: str) -> str:
    return _DATE.sub(r'<span class="n">\g<0></span>', escape(text, quote=False))


def _element(report: Mapping[str, Any], figure: Figure) -> str:
    return f'<span class="n" {figure.attributes(report)}>{escape(figure.text(report))}</span>'


def _flat(values: Sequence[Any]) -> list[Any]:
    return [one for of in values for one in (_flat(of) if isinstance(of, list) else [of])]
