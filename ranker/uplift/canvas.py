"""A drawing of rows, by matplotlib, as SVG for a page: text stays text, and colours are the page's own.

matplotlib sees neither labels nor numbers: it places marks, which are replaced by them. So a label in any script needs
no font here, and each figure names its place in the report (`ranker.uplift.said`).
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator

from ranker.uplift.said import Figure, Sentence, as_text, found_at, pointer

#: px at its own size: a phone shows it so, a desk larger
WIDTH, MARGIN = 340, 8
#: a row: its text, and its marks below; and the axis at the foot
ROW, TEXT, MARKS, AXIS = 36, 13, 24, 26
SIZE, SMALL = 12, 11
#: px that a character of a row's text takes, about
CHARACTER = 6.7
#: variables of the page's style; their places are what matplotlib takes for colours
COLOURS = {
    "ink": "#010101",
    "muted": "#010102",
    "line": "#010103",
    "accent": "#010104",
    "faint": "#010105",
    "card": "#010106",
}
_REFERENCE = re.compile(r'url\(#([^)]+)\)|href="#([^"]+)"')


class Canvas:
    """Rows from the top, on an axis that goes from `low` to `high`."""

    def __init__(self, report: Mapping[str, Any], rows: int, low: float, high: float) -> None:
        """rows: how many. An axis without a width gets one."""
        pad = 0.04 * (high - low) or 0.01
        self.report, self.rows, self.low, self.high = report, rows, low - pad, high + pad
        self.height = rows * ROW + AXIS
        self._texts: list[str] = []
        self._marks: list[str] = []
        self._drawing = Drawing(figsize=(WIDTH / 72, self.height / 72), dpi=72)
        self._drawing.patch.set_visible(False)
        self._axes = self._drawing.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._axes.set_xlim(0, WIDTH)
        self._axes.set_ylim(self.height, 0)

    def x(self, value: float) -> float:
        """Return the place of a value in px; one off the axis is put on its end."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return MARGIN + share * (WIDTH - 2 * MARGIN)

    def label(self, row: int, text: str, figures: Sentence, strong: bool = False, struck: bool = False) -> None:
        """Write a row's name on the left, and its figures on the right, struck through where they say nothing."""
        y, beside = row * ROW + TEXT, len(as_text(self.report, figures))
        room = int((WIDTH - 2 * MARGIN) / (CHARACTER * (1.1 if strong else 1))) - beside - 1
        self._text(MARGIN, y, escape(text if len(text) <= room else text[: room - 1] + "…"), "ink", bold=strong)
        said = self._said(figures)
        said = f'<tspan class="struck">{said}</tspan>' if struck else said
        self._text(WIDTH - MARGIN, y, said, "ink" if strong else "muted", anchor="right")

    def bar(self, row: int, start: float, stop: float, colour: str, width: float, mark: str = "") -> None:
        """Draw a horizontal line in a row, with a point where it leaves the axis.

        mark: the place in the report of what it shows.
        """
        y = row * ROW + MARKS
        self._line([self.x(start), self.x(stop)], [y, y], colour, width, mark=mark)
        for outside, at, shape in ((start < self.low, self.low, "<"), (stop > self.high, self.high, ">")):
            if outside:
                self._axes.plot([self.x(at)], [y], shape, color=COLOURS[colour], markersize=width + 4, clip_on=False)

    def dot(self, row: int, at: float, colour: str, hollow: bool = False, size: float = 7) -> None:
        """Draw a point in a row."""
        face = COLOURS["card" if hollow else colour]
        place = ([self.x(at)], [row * ROW + MARKS])
        style: dict[str, Any] = {"markeredgecolor": COLOURS[colour], "markerfacecolor": face, "markersize": size}
        style |= {"zorder": 3}
        self._axes.plot(*place, "o", clip_on=False, **style)

    def tick(self, row: int, path: Sequence[str | int], colour: str) -> None:
        """Draw a short vertical line in a row, at the value that stands at a place of the report."""
        x, y = self.x(found_at(self.report, path)), row * ROW + MARKS
        self._line([x, x], [y - 6, y + 6], colour, 2, mark=pointer(path), above=True)

    def rule(self, at: float, colour: str, dashed: bool = False) -> None:
        """Draw a vertical line through the marks of all rows, with a gap where their text stands."""
        x = self.x(at)
        for row in range(self.rows):
            self._line([x, x], [row * ROW + TEXT + 4, (row + 1) * ROW], colour, 1, dashed=dashed, above=True)

    def axis(self, write: Callable[[float], str]) -> None:
        """Write the numbers of the axis. write: how a number is written that is not 0."""
        places = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        for at in (float(at) for at in places if self.low <= at <= self.high):
            text = "0" if abs(at) < 1e-12 else write(at)
            half = CHARACTER * (len(text) + 0.5) / 2  # a % is wider
            if half <= self.x(at) <= WIDTH - half:
                self._text(self.x(at), self.height - 7, text, "muted", "center", SMALL)
        y = self.height - AXIS + 4
        self._line([MARGIN, WIDTH - MARGIN], [y, y], "line", 1)

    def svg(self, title: str) -> str:
        """Return the drawing as an `svg` element that says in `title` what it shows."""
        buffer = io.StringIO()
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
            no = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self._drawing.savefig(buffer, format="svg", metadata=no)
        return self._styled(buffer.getvalue(), title)

    def _styled(self, text: str, title: str) -> str:
        """Return matplotlib's file as an element of the page."""
        text = text[text.index("<svg") :]
        text = re.sub(r"<svg[^>]*>", self._head(title), text, count=1)
        text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
        text = re.sub(r"\s*font-family: [^;\"]*;", "", text)
        text = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", text)
        for name, colour in COLOURS.items():
            text = text.replace(colour, f"var(--{name})")
        text = re.sub(r'id="mark-(\d+)"', lambda m: f'data-mark="{escape(self._marks[int(m[1])])}"', text)
        asked = {name for found in _REFERENCE.findall(text) for name in found}
        text = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in asked else "", text)
        return re.sub(r"@(\d+)@", lambda m: self._texts[int(m[1])], text).strip()

    def _head(self, title: str) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escape(title)}">'
        )

    def _said(self, sentence: Sentence) -> str:
        """Return a sentence as the inside of a `text` element."""
        return "".join(escape(part) if isinstance(part, str) else self._figure(part) for part in sentence)

    def _figure(self, figure: Figure) -> str:
        return f"<tspan {figure.attributes(self.report)}>{escape(figure.text(self.report))}</tspan>"

    def _text(
        self, x: float, y: float, inside: str, colour: str, anchor: str = "left", size: float = SIZE, bold: bool = False
    ) -> None:
        self._texts.append(inside)
        style: dict[str, Any] = {"size": size, "color": COLOURS[colour], "weight": "bold" if bold else "normal"}
        self._axes.text(x, y, f"@{len(self._texts) - 1}@", ha=anchor, va="baseline", **style)

    def _line(
        self,
        x: Sequence[float],
        y: Sequence[float],
        colour: str,
        width: float,
        dashed: bool = False,
        mark: str = "",
        above: bool = False,
    ) -> None:
        """Draw a line. above: it is seen through the bars."""
        style: dict[str, Any] = {"color": COLOURS[colour], "linewidth": width, "solid_capstyle": "butt"}
        style |= {"zorder": 2.5} if above else {}
        (line,) = self._axes.plot(x, y, linestyle=(0, (3, 3)) if dashed else "-", clip_on=False, **style)
        if mark:
            line.set_gid(f"mark-{len(self._marks)}")
            self._marks.append(mark)
