"""Keys as integers: the parts of a counter's key, of events and of candidates, become one code each.

A part is `user`, `item`, `surface`, the name of an item attribute, or `user_` and the name of a user attribute.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from features.schema import I16, I32, I64, Attribute, Catalog


def key_attribute(part: str, catalog: Catalog) -> tuple[str, Attribute] | None:
    """Return (`item` or `user`, the attribute) behind a part of a key; None where it names none."""
    for attribute in catalog.item_attributes:
        if attribute.name == part and attribute.kind in ("categorical", "multi"):
            return "item", attribute
    for attribute in catalog.user_attributes:
        if f"user_{attribute.name}" == part and attribute.kind in ("categorical", "multi"):
            return "user", attribute
    return None


def key_parts(catalog: Catalog) -> list[str]:
    """Return every part that a key can have."""
    sides = (("", catalog.item_attributes), ("user_", catalog.user_attributes))
    named = [prefix + a.name for prefix, side in sides for a in side if a.kind in ("categorical", "multi")]
    return ["user", "item", "surface", *named]


def of_request(key: tuple[str, ...], catalog: Catalog) -> bool:
    """Return whether a key is the same for all candidates of a request: nothing in it is of the item."""
    own = {"user", "surface", *(f"user_{a.name}" for a in catalog.user_attributes)}
    return set(key) <= own - {a.name for a in catalog.item_attributes}


def has_list(key: tuple[str, ...], catalog: Catalog) -> bool:
    """Return whether a part of the key is multi-valued, so that a row can have several keys."""
    return any(found[1].kind == "multi" for part in key if (found := key_attribute(part, catalog)))


class Radix(NamedTuple):
    """How many values a part of a key can have, at least 1."""

    known: int  # without new users and items
    wide: int  # with all for which there is room


class Size(NamedTuple):
    """How many codes a key can have."""

    known: int  # those of a catalogue without new users and items, which stand first
    all: int  # with those of new users and items, which stand behind

    def with_part(self, part: Radix) -> "Size":
        """Return the size of the codes that `_fold` makes of these with a further part."""
        return Size(self.known * part.known, self.known * part.known + self.all * part.wide - part.known)


NO_KEY = Size(1, 1)


def key_codes(key: tuple[str, ...], catalog: Catalog, user: I32, item: I32, surface: I16) -> tuple[I64, I64, int]:
    """Return (rows, codes, size): the key of each row as one integer in [0, size), -1 where a part is missing.

    A multi-valued attribute gives a row several codes (`rows` repeats it), or none where its list is empty. Keys
    without new users and items have the codes that they have in a catalogue without room for such.
    """
    rows: I64 | None = None  # all of them, in their order, until a multi-valued part repeats some
    code, size = np.zeros(len(item), np.int64), NO_KEY
    plain: dict[str, I32 | I16] = {"user": user, "item": item, "surface": surface}
    for part in key:
        found = None if part in plain else key_attribute(part, catalog)
        index = plain[part] if found is None else (user if found[0] == "user" else item)
        index = index if rows is None else index[rows]
        size_of_part = radix(part, catalog)
        if found is None:
            _fold(code, index, size.known, *size_of_part)
        elif found[1].kind == "multi":
            repeat, values = _lists(found[1], index)
            rows, code = repeat if rows is None else rows[repeat], code[repeat]
            _fold(code, values, size.known, *size_of_part)
        else:
            _fold(code, _coded(index, found[1].codes), size.known, *size_of_part)
        size = size.with_part(size_of_part)
    return np.arange(len(item)) if rows is None else rows, code, size.all


def without_last(code: I64, key: tuple[str, ...], catalog: Catalog) -> tuple[I64, int]:
    """Return (codes, size) of the key without its last part. code: of the whole key, none of them -1."""
    size = NO_KEY
    for part in key[:-1]:
        size = size.with_part(radix(part, catalog))
    return _unfold(code, size.known, *radix(key[-1], catalog)), size.all


def radix(part: str, catalog: Catalog) -> Radix:
    """Return how many values a part of a key can have."""
    if part in ("user", "item"):
        known, new = (catalog.n_users, catalog.new_users) if part == "user" else (catalog.n_items, catalog.new_items)
        return Radix(max(known, 1), max(known, 1) + new.room)
    found = None if part == "surface" else key_attribute(part, catalog)
    size = max(len(found[1].values if found else catalog.surfaces), 1)
    return Radix(size, size)


def _lists(attribute: Attribute, index: I32 | I16) -> tuple[I64, I64]:
    """Return (place in `index`, code) of every value of a multi-valued attribute."""
    if len(attribute.offsets) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    there = (index >= 0) & (index < len(attribute.offsets) - 1)
    safe = np.where(there, index, 0)
    counts = np.where(there, np.diff(attribute.offsets)[safe], 0)
    place = np.repeat(np.arange(len(index)), counts)
    within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place, attribute.codes[np.repeat(attribute.offsets[:-1][safe], counts) + within].astype(np.int64)


@njit(cache=True, nogil=True)
def _coded(index: I32, codes: I32) -> I32:
    """Return the code of each index, -1 where it is unknown or new."""
    out = np.empty(len(index), np.int32)
    for k in range(len(index)):
        out[k] = codes[index[k]] if 0 <= index[k] < len(codes) else -1
    return out


@njit(cache=True, nogil=True)
def _fold(code: I64, values: I32, known: int, radix: int, wide: int) -> None:
    """Put a further part into the codes, of which those below `known` have nothing new in them.

    Without anything new, code · radix + value; else behind all such codes, code · wide + value, less the least that
    this can be (code 0 with the first new value), so that a key of one part is its own code.
    """
    behind = known * radix - radix
    for k in range(len(code)):
        if code[k] < 0 or values[k] < 0:
            code[k] = -1
        elif code[k] < known and values[k] < radix:
            code[k] = code[k] * radix + values[k]
        else:
            code[k] = behind + code[k] * wide + values[k]


@njit(cache=True, nogil=True)
def _unfold(code: I64, known: int, radix: int, wide: int) -> I64:
    """Return the codes that `_fold` made these of: the same arithmetic backwards."""
    out = np.empty_like(code)
    border, behind = known * radix, known * radix - radix
    for k in range(len(code)):
        out[k] = code[k] // radix if code[k] < border else (code[k] - behind) // wide
    return out
