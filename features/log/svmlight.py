"""Lines of LETOR files (svmlight: `label qid:7 1:0.5 3:2 # comment`) as arrays, by a compiled parser.

A feature that a line leaves out is 0, as in svmlight; one that is written `nan` is unknown. Lines that are blank, or a
comment alone, are passed over.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.errors import PairliftError
from features.kernels import njit
from features.schema import F32, I64

U8 = npt.NDArray[np.uint8]

#: bytes that are parsed at a time
BLOCK = 64 << 20
#: the highest index of a feature, and label
HIGHEST = 2**31 - 1
#: what a place in a line lacks, by the number that the parser gives
LACKS = ("", "a label: an integer from 0 on", "a feature such as 12:0.5, of an index from 0 on and a finite number")
SPACE, TAB, RETURN, NEWLINE, HASH, COLON = (np.uint8(ord(c)) for c in " \t\r\n#:")


@dataclass(frozen=True, slots=True)
class Lines:
    """n lines of a file, their m features one after another."""

    label: I64  # [n]
    qid: list[str]  # [n], "" where the line has none
    offsets: I64  # [n + 1]: line k has the features [offsets[k], offsets[k + 1])
    index: I64  # [m]
    value: F32  # [m], NaN unknown
    comment: list[str | None]  # [n], what follows #

    def dense(self, index: I64) -> F32:
        """Return float32[n, len(index)]: the features of these ascending indexes, 0 where a line has none."""
        out = np.zeros((len(self.label), len(index)), np.float32)
        row = np.repeat(np.arange(len(self.label)), np.diff(self.offsets))
        out[row, np.searchsorted(index, self.index)] = self.value
        return out


def read_lines(path: Path, size: int = BLOCK) -> Iterator[Lines]:
    """Yield the lines of a file in blocks of about `size` bytes; PairliftError names the first line that is not one."""
    rest, first = b"", 1
    with path.open("rb") as file:
        while read := file.read(size):
            whole, _, rest = (rest + read).rpartition(b"\n")
            if whole:
                yield _parsed(path, whole + b"\n", first)
                first += whole.count(b"\n") + 1
        if rest:
            yield _parsed(path, rest + b"\n", first)


def _parsed(path: Path, text: bytes, first: int) -> Lines:
    """Parse whole lines. first: number of the first one in its file."""
    chars = np.frombuffer(text, np.uint8)
    lines, pairs = text.count(b"\n"), text.count(b":")
    label, spans = np.empty(lines, np.int64), np.zeros((lines, 4), np.int64)
    offsets, index, value = np.zeros(lines + 1, np.int64), np.empty(pairs, np.int64), np.empty(pairs, np.float32)
    n, at, lacks = _parse(chars, label, spans, offsets, index, value)
    if lacks:
        number, start = first + text.count(b"\n", 0, at), text.rfind(b"\n", 0, at) + 1
        found = text[start : text.find(b"\n", start)].decode(errors="replace")
        raise PairliftError(
            f"{path}, line {number}: at character {at - start + 1}, {LACKS[lacks]} was expected; found "
            f"'{found[:60]}{'…' if len(found) > 60 else ''}'. A line is 'label qid:7 1:0.5 3:2 # comment'"
        )
    m, said = int(offsets[n]), [[text[a:b].decode(errors="replace") for a, b in s] for s in spans[:n].reshape(n, 2, 2)]
    return Lines(
        label=label[:n], qid=[q for q, _ in said], offsets=offsets[: n + 1], index=index[:m], value=value[:m],
        comment=[c.strip() or None for _, c in said],
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _parse(text: U8, label: I64, spans: I64, offsets: I64, index: I64, value: F32) -> tuple[int, int, int]:
    """Fill the arrays from whole lines; return (lines with a label, where it ended, what was lacking there or 0).

        for each line that is not blank or a comment
            label, then qid:TOKEN where there is one, then index:number, each behind spaces
            the rest from # on is its comment

    spans: int64[lines, 4], begin and end of qid and of comment.
    """
    n = m = at = 0
    while at < len(text):
        at = _skip(text, at)
        if text[at] == NEWLINE:
            at += 1
            continue
        if text[at] == HASH:
            at = _line_end(text, at) + 1
            continue
        number, end = _number(text, at)
        if end == at or not 0 <= number <= HIGHEST or number != np.floor(number) or not _ends(text[end]):
            return n, at, 1
        label[n] = int(number)
        at = _skip(text, end)
        if text[at] == ord("q") and text[at + 1] == ord("i") and text[at + 2] == ord("d") and text[at + 3] == COLON:
            spans[n, 0] = at + 4
            at = _token_end(text, at)
            spans[n, 1] = at
            at = _skip(text, at)
        while text[at] != NEWLINE and text[at] != HASH:
            which, colon = _number(text, at)
            if colon == at or text[colon] != COLON or not 0 <= which <= HIGHEST or which != np.floor(which):
                return n, at, 2
            number, end = _number(text, colon + 1)
            if end == colon + 1 or np.isinf(np.float32(number)) or not _ends(text[end]):
                return n, at, 2
            index[m], value[m] = int(which), number
            m += 1
            at = _skip(text, end)
        if text[at] == HASH:
            spans[n, 2] = at + 1
            at = _line_end(text, at)
            spans[n, 3] = at
        n += 1
        offsets[n] = m
        at += 1
    return n, at, 0


@njit(cache=True, nogil=True)
def _number(text: U8, at: int) -> tuple[float, int]:
    """Return (number, where it ends) of `-1.5e-3` or `nan` that begins at a place; it ends there where none does."""
    start, sign = at, 1.0
    if text[at] == ord("-") or text[at] == ord("+"):
        sign = -1.0 if text[at] == ord("-") else 1.0
        at += 1
    if (text[at] | 32) == ord("n"):
        whole = (text[at + 1] | 32) == ord("a") and (text[at + 2] | 32) == ord("n")
        return (np.nan, at + 3) if whole else (0.0, start)
    mantissa, scale, digits = 0.0, 0, 0
    while ord("0") <= text[at] <= ord("9"):
        mantissa = mantissa * 10 + (text[at] - ord("0"))
        digits, at = digits + 1, at + 1
    if text[at] == ord("."):
        at += 1
        while ord("0") <= text[at] <= ord("9"):
            mantissa = mantissa * 10 + (text[at] - ord("0"))
            digits, scale, at = digits + 1, scale - 1, at + 1
    if digits == 0:
        return 0.0, start
    if (text[at] | 32) == ord("e"):
        power, end = _power(text, at + 1)
        if end == at + 1:
            return 0.0, start
        scale, at = scale + power, end
    return sign * (mantissa * 10.0**scale if scale >= 0 else mantissa / 10.0**-scale), at


@njit(cache=True, nogil=True)
def _power(text: U8, at: int) -> tuple[int, int]:
    """Return (exponent, where it ends), at most 999 either way."""
    start, sign, power, digits = at, 1, 0, 0
    if text[at] == ord("-") or text[at] == ord("+"):
        sign = -1 if text[at] == ord("-") else 1
        at += 1
    while ord("0") <= text[at] <= ord("9"):
        power = min(power * 10 + int(text[at] - ord("0")), 999)
        digits, at = digits + 1, at + 1
    return (sign * power, at) if digits else (0, start)


@njit(cache=True, nogil=True)
def _ends(char: int) -> bool:
    """Return whether a token ends before this character."""
    return bool(char in (SPACE, TAB, RETURN, NEWLINE, HASH))


@njit(cache=True, nogil=True)
def _skip(text: U8, at: int) -> int:
    """Return the first place from here on that is no space."""
    while text[at] in (SPACE, TAB, RETURN):
        at += 1
    return at


@njit(cache=True, nogil=True)
def _token_end(text: U8, at: int) -> int:
    while not _ends(text[at]):
        at += 1
    return at


@njit(cache=True, nogil=True)
def _line_end(text: U8, at: int) -> int:
    while text[at] != NEWLINE:
        at += 1
    return at
