"""The parts that pages are made of, as HTML: the document with its style and its JSON, drawings, tables, lists.

Numbers name their place in the report that a page is of: see `ranker.uplift.said`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from features.files import made_folder, written
from ranker.uplift.said import Figure, Sentence, as_html

Report = Mapping[str, Any]

#: of a page in its folder
PAGE = "report.html"
STYLE = Path(__file__).with_name("page.css")
IN_THE_PAGE = (
    "The whole report, but for the ids of users, is in this page too, as JSON: the element with the id "
    "<code>report</code>."
)


def document(title: str, sections: Sequence[str], report: Report) -> str:
    """Return the whole page, with the report in it. sections: HTML, the first screen first."""
    within = json.dumps(_passed_on(report), allow_nan=False).replace("<", "\\u003c")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text()}body {{ margin: 0; }}\n</style>\n</head>\n"
        '<body class="pairlift">\n<main>\n'
        + "\n".join(sections)
        + f'\n</main>\n<script type="application/json" id="report">{within}</script>\n</body>\n</html>\n'
    )


def _passed_on(of: Any) -> Any:
    """Return a report, or a part of it, without the ids of users: a page is passed on."""
    if isinstance(of, Mapping):
        leak = "user" in of and "as_of" in of  # the groups of a leak that are named
        return {key: _passed_on(value) for key, value in of.items() if not (leak and key == "user")}
    return [_passed_on(value) for value in of] if isinstance(of, list | tuple) else of


def keep_page(page: str, folder: Path, name: str = PAGE) -> Path:
    """Write a page into a folder, which is made where there is none; return its path."""
    made_folder(folder)
    with written(folder / name) as partial:
        partial.write_text(page, encoding="utf-8")
    return folder / name


def fragment(first_screen: str) -> str:
    """Return a first screen for a notebook's cell."""
    return f'<style>{STYLE.read_text()}</style><div class="pairlift"><main>{first_screen}</main></div>'


def figure(report: Report, svg: str, caption: Sentence) -> str:
    """Return a drawing with the sentence that explains it."""
    return f'<figure class="card">{svg}<figcaption>{as_html(report, caption)}</figcaption></figure>'


def items(lines: Iterable[str]) -> str:
    """Return a list of lines of HTML; nothing where there is none."""
    found = "".join(f"<li>{line}</li>" for line in lines)
    return f"<ul>{found}</ul>" if found else ""


def table(report: Report, heads: Sequence[str], rows: Mapping[str, Sentence]) -> str:
    """Return a table of figures, one row for each label; a row of which nothing is known is left out."""
    known = {name: row for name, row in rows.items() if any(_is_known(report, cell) for cell in row)}
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{as_html(report, [cell])}</td>" for cell in row)}</tr>'
        for name, row in known.items()
    )
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text; the first cell of a row names it."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _is_known(report: Report, cell: str | Figure) -> bool:
    return isinstance(cell, Figure) and cell.value(report) is not None


def ends(*path: str | int) -> list[Figure]:
    """Return a part's uplift and the ends of its interval, for three cells; the unit stands in the first, for width."""
    uplift = Figure((*path, "relative_uplift"), "percent")
    return [uplift, *(Figure((*path, "ci95", k), "ends") for k in (0, 1))]


def terms(said: Mapping[str, str]) -> str:
    """Return names and what they stand for."""
    found = "".join(f"<div><dt>{escape(name)}</dt><dd>{_words(text)}</dd></div>" for name, text in said.items())
    return f"<dl>{found}</dl>"


def _words(text: str) -> str:
    """Return text as HTML in which no line ends within a date or an option: a browser would end one at each hyphen."""
    words = (escape(word) for word in text.split(" "))
    return " ".join(f'<span class="word">{word}</span>' if "-" in word else word for word in words)


def settings(report: Report) -> str:
    """Return the report's `settings`, folded; nothing where it has none."""
    if "settings" not in report:
        return ""
    shown = escape(json.dumps(report["settings"], indent=1))
    return f"<details><summary>Settings</summary><pre>{shown}</pre></details>"
