"""The numbers that a report's page shows, against its JSON: each says where it stands there and how it is written."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

#: what a unit is worth, by what stands behind the number; of a kind that is kept in another one, by the kind too
UNITS = {
    "": 1.0,
    "%": 0.01,
    "ms": 1.0,
    "s": 1.0,
    "min": 60.0,
    "byte": 1.0,
    "bytes": 1.0,
    "KiB": 1024.0,
    "MiB": 1024.0**2,
}
SECONDS = UNITS | {"ms": 0.001}
NUMBER = re.compile(r"([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*(\S*)")
#: kinds that leave their unit to what stands beside them
BARE = {"ends": "%"}


class Shown(NamedTuple):
    """A number of a page."""

    path: str  # JSON Pointer
    value: str  # as JSON
    kind: str
    text: str


class Page(HTMLParser):
    """What a page shows and asks for, without a browser."""

    #: elements that have no end
    VOID = ("meta", "link", "br", "hr", "img", "input", "source")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.numbers: list[Shown] = []
        self.links: list[str] = []  # what any attribute or style asks for
        self.open: list[str] = []
        self.wrong: list[str] = []  # ends that do not meet their start
        self.json = ""
        self._shown: list[str] | None = None
        text = path.read_text(encoding="utf-8")
        self.links += re.findall(r"url\(([^)]*)\)|@import", text)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [found[name] or "" for name in ("src", "href", "xlink:href", "srcset", "data") if name in found]
        if tag not in self.VOID:
            self.open.append(tag)
        if "data-path" in found:
            self._shown = [str(found[name]) for name in ("data-path", "data-value", "data-kind")]

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.json += data
        if self._shown:
            self.numbers.append(Shown(*self._shown, data))
            self._shown = None


def unequal(numbers: Iterable[Shown], report: dict[str, Any]) -> list[str]:
    """Return what is wrong with each number that is not the report's, as it is said or as it is written."""
    return [f"{of}: {why}" for of in numbers if (why := _wrong(of, report))]


def _wrong(shown: Shown, report: dict[str, Any]) -> str:
    want, said = _at(report, shown.path), json.loads(shown.value)
    if want is None or said is None:
        return "" if want is said is None and shown.text == "-" else f"unknown, or {want}"
    if not math.isclose(want, said, rel_tol=1e-12, abs_tol=1e-300):
        return f"the report has {want}"
    found = NUMBER.fullmatch(shown.text)
    if not found:
        return "no number"
    digits, unit = found[1].replace(",", ""), found[2] or BARE.get(shown.kind, "")
    worth = (SECONDS if shown.kind == "seconds" else UNITS)[unit]
    written, last = float(digits) * worth, _last(digits) * worth
    meant = math.sqrt(want) if shown.kind == "error" else want
    return "" if abs(written - meant) <= 0.501 * last + 1e-12 else f"written as {written}, not {meant}"


def _last(digits: str) -> float:
    """Return what one of the last digit of a number is worth."""
    mantissa, _, exponent = digits.partition("e")
    return float(10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2])))


def _at(report: Any, path: str) -> float | None:
    """Return the number at a JSON Pointer; of a list, the mean."""
    here = report
    for key in (part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]):
        if here is None:
            return None
        here = here[int(key)] if isinstance(here, list) else here.get(key)
    if isinstance(here, list):
        flat = list(_flat(here))
        return None if None in flat or not flat else sum(flat) / len(flat)
    return here


def _flat(values: list[Any]) -> Iterable[Any]:
    for of in values:
        yield from _flat(of) if isinstance(of, list) else [of]
