"""Text of any script as tokens: one definition for the texts of items and for a query.

Case, widths and ligatures are folded (NFKC, Unicode's case folding), accents and vowel points fall off. Scripts that
put spaces between words give words; those that do not (Han, Kana, Hangul, Thai …) give pairs of neighbouring
characters, as Lucene's CJKAnalyzer does, and single characters for queries of one; each emoji or symbol is a token.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache

from features.schema import Catalog

#: characters beyond it have no marks and no symbols that text has
LAST = 0x20000
#: ranges of the scripts that are read in pairs of characters
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Myanmar, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uac00-\ud7a3"  # Kana, Hangul
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
)


def text_columns(catalog: Catalog) -> tuple[tuple[str, ...], ...]:
    """Return the columns of [items.text], a text for each item."""
    return tuple(attribute.values for attribute in catalog.item_attributes if attribute.kind == "text")


def texts_of(columns: tuple[tuple[str, ...], ...]) -> Iterator[str]:
    """Yield the text of each item: that of all columns, a line each."""
    return map("\n".join, zip(*columns, strict=True))


def tokens(text: str, query: bool = False) -> list[str]:
    """Return the tokens of a text in their order, with repeats; none where it has neither letters, digits nor symbols.

    query: of a run of an unspaced script the pairs alone, which tell more than its characters, where it has two.
    """
    found: list[str] = []
    folded = _folded(text)
    if folded.isascii():  # most of what there is, in a third of the time
        return _ascii().findall(folded)
    for match in _words().finditer(folded):
        found.extend(_of_run(match[0], query) if match.lastgroup == "run" else (match[0],))
    return found


def _of_run(run: str, query: bool) -> Iterator[str]:
    if not query or len(run) == 1:
        yield from run
    for k in range(len(run) - 1):
        yield run[k : k + 2]


def _folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    apart = unicodedata.normalize("NFKD", text.casefold())
    bare = "".join(c for c in apart if not _falls_off(unicodedata.combining(c)))
    return unicodedata.normalize("NFKC", bare).casefold()


def _falls_off(combining: int) -> bool:
    """Tell whether a mark of a canonical combining class is an accent, or a vowel point of Hebrew or Arabic.

    Others are parts of letters: signs of Kana's voice (8), of India's vowels (0, 9) and Thai tones (103, 107).
    """
    return 10 <= combining <= 36 or combining >= 202


@cache
def _ascii() -> re.Pattern[str]:
    return re.compile("[a-z0-9]+")


@cache
def _words() -> re.Pattern[str]:
    """Return a pattern of runs of unspaced scripts, of symbols one by one, and of words: letters, digits and marks."""
    by = {"M": [""], "So": [""]}
    for c in map(chr, range(0x80, LAST)):
        kind = unicodedata.category(c)
        by.get(kind if kind == "So" else kind[0], []).append(c)
    marks, symbols = ("".join(by[kind]) for kind in ("M", "So"))
    return re.compile(rf"(?P<run>[{UNSPACED}]+)|[{symbols}]|(?:(?![{UNSPACED}])(?:[^\W_]|[{marks}]))+")
