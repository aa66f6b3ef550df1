"""Values of a condition on their way, and SQL's operators over them: NULL is neither true nor false.

Numbers are compared and counted as DuckDB does it for columns of 32-bit floats: in 32 bits beside a constant, in 64
beside a DOUBLE; NaN is equal to itself and above all others. Text is ordered by its code points, as its bytes are.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from features.schema import Attribute as ItemColumn

Kind = Literal["number", "text", "truth", "list", "null"]


@dataclass(frozen=True, slots=True)
class Values:
    """n values, or one that stands for all of n."""

    kind: Kind
    #: number: float32 or float64; text: int32 codes, or the text itself; truth: whether it is true, never of a NULL.
    #: [n] or one
    data: Any
    null: Any  # bool, [n] or one
    vocabulary: tuple[str, ...] = ()  # of codes, ascending

    def take(self, rows: Any) -> "Values":
        """Return the values of int64[m] rows."""
        return Values(self.kind, self.data[rows], self.null[rows], self.vocabulary)

    @property
    def false(self) -> Any:
        """Whether each truth is false."""
        return np.logical_not(np.logical_or(self.data, self.null))


NULL = Values("null", np.float32(np.nan), np.True_)


def constant(value: str | bool | float | np.float32 | None) -> Values:
    """Return one value."""
    if value is None:
        return NULL
    if isinstance(value, bool):
        return Values("truth", np.bool_(value), np.False_)
    return Values("text" if isinstance(value, str) else "number", value, np.False_)


def column(attribute: ItemColumn) -> Values:
    """Return a column of n items, numbers or categories, and a last value for unknown items: NULL."""
    if attribute.kind == "numeric":
        numbers = np.append(attribute.numbers, np.float32(np.nan))
        return Values("number", numbers, np.isnan(numbers))
    order = sorted(range(len(attribute.values)), key=attribute.values.__getitem__)
    place = np.full(len(order) + 1, -1, np.int32)  # the last one is that of the code -1
    place[order] = np.arange(len(order))
    codes = place[np.append(attribute.codes, np.int32(-1))]
    return Values("text", codes, codes < 0, tuple(attribute.values[k] for k in order))


def truth(values: Values) -> Values:
    """Return numbers as SQL takes them for conditions: all but 0 are true."""
    if values.kind == "truth":
        return values
    if values.kind == "null":
        return Values("truth", np.False_, np.True_)
    return Values("truth", np.logical_and(values.data != 0, np.logical_not(values.null)), values.null)


def joined(operator: str, parts: Sequence[Values]) -> Values:
    """Return `and`, `or` of conditions: Kleene's logic, which is SQL's."""
    true, false = parts[0].data, parts[0].false
    both, either = (np.logical_and, np.logical_or) if operator == "and" else (np.logical_or, np.logical_and)
    for part in parts[1:]:
        true, false = both(true, part.data), either(false, part.false)
    return Values("truth", true, np.logical_not(np.logical_or(true, false)))


def negated(part: Values) -> Values:
    """Return `not` of a condition."""
    return Values("truth", part.false, part.null)


def is_null(values: Values) -> Values:
    """Return whether each is NULL, which is never NULL itself."""
    return Values("truth", values.null, np.False_)


def compared(operator: str, a: Values, b: Values) -> Values:
    """Return a comparison of two numbers, truths (as 0 and 1) or texts."""
    null = np.logical_or(a.null, b.null)
    if "null" in (a.kind, b.kind):
        return Values("truth", np.False_, np.True_)
    x, y = _ranks(a, b) if a.kind == "text" else (_number(a), _number(b))
    if operator in ("=", "<>"):
        found = np.logical_or(x == y, np.logical_and(np.isnan(x), np.isnan(y)))
    elif operator in ("<", ">="):
        found = _less(x, y)
    else:
        found = _less(y, x)
    if operator in ("<>", "<=", ">="):
        found = np.logical_not(found)
    return Values("truth", np.logical_and(found, np.logical_not(null)), null)


def among(value: Values, others: Sequence[Values]) -> Values:
    """Return whether a value is one of others: `in`."""
    value, *others = _of_one_type([value, *others])
    return joined("or", [compared("=", value, other) for other in others])


def between(value: Values, lower: Values, upper: Values) -> Values:
    """Return whether a value lies between two others, or is one of them."""
    value, lower, upper = _of_one_type([value, lower, upper])
    return joined("and", [compared(">=", value, lower), compared("<=", value, upper)])


def _of_one_type(parts: Sequence[Values]) -> list[Values]:
    """Return numbers in 64 bits where one of them is: what SQL compares together has one type."""
    wide = any(getattr(part.data, "dtype", None) == np.float64 for part in parts if part.kind == "number")
    return [replace(part, data=np.float64(part.data)) if wide and part.kind == "number" else part for part in parts]


def _number(values: Values) -> Any:
    return values.data.astype(np.float32) if values.kind == "truth" else values.data


def _less(x: Any, y: Any) -> Any:
    return np.logical_or(x < y, np.logical_and(np.isnan(y), np.logical_not(np.isnan(x))))


def _ranks(a: Values, b: Values) -> tuple[Any, Any]:
    """Return numbers that compare as the texts do."""
    one_a, one_b = isinstance(a.data, str), isinstance(b.data, str)
    if one_a and one_b:
        return np.int64(a.data > b.data), np.int64(b.data > a.data)
    if one_b:
        return a.data * 2 + 1, _rank(b.data, a.vocabulary)
    if one_a:
        return _rank(a.data, b.vocabulary), b.data * 2 + 1
    words = sorted({*a.vocabulary, *b.vocabulary})
    place = {word: k for k, word in enumerate(words)}
    # One more place for the code -1: a NULL, whose comparison is not read.
    x, y = (np.array([*map(place.__getitem__, of.vocabulary), -1], np.int64)[of.data] for of in (a, b))
    return x, y


def _rank(text: str, vocabulary: tuple[str, ...]) -> np.int64:
    """Return where a text stands among words whose ranks are 1, 3, 5 …: between two of them where it is none."""
    place = bisect_left(vocabulary, text)
    return np.int64(2 * place + (place < len(vocabulary) and vocabulary[place] == text))


def calculated(operator: str, a: Values, b: Values) -> Values:
    """Return + - * / % of two numbers; NULL where one is. Division of two constants is in 64 bits, as in SQL."""
    x, y = a.data, b.data
    if operator == "+":
        found = x + y
    elif operator == "-":
        found = x - y
    elif operator == "*":
        found = x * y
    elif operator == "/":
        found = np.divide(x, y)
    else:
        found = np.fmod(x, y)
    if operator != "/" and type(x) is type(y) is float:  # constants that are no DOUBLE in SQL, which have no -0
        found = float(found) + 0.0
    return Values("number", found, np.logical_or(a.null, b.null))
