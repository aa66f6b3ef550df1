"""Keys as integers: the parts of a counter's key, of events and of candidates, become one code each.

A part is `user`, `item`, `surface`, the name of an item attribute, or `user_` and the name of a user attribute.
"""

from typing import Any

import numpy as np
from numba import njit

from features.ids import GOLDEN
from features.schema import I16, I32, I64, Attribute, Catalog

DIGIT = 11  # bits that one pass of the sort looks at: its counters stay in the first-level cache
MASK = (1 << DIGIT) - 1


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


def radix(part: str, catalog: Catalog) -> int:
    """Return how many values a part of a key can have, at least 1."""
    sizes = {"user": catalog.n_users, "item": catalog.n_items, "surface": len(catalog.surfaces)}
    found = key_attribute(part, catalog)
    return max(len(found[1].values) if found and part not in sizes else sizes[part], 1)


def key_codes(key: tuple[str, ...], catalog: Catalog, user: I32, item: I32, surface: I16) -> tuple[I64, I64, int]:
    """Return (rows, codes, size): the key of each row as one integer in [0, size), -1 where a part is missing.

    A multi-valued attribute gives a row several codes (`rows` repeats it), or none where its list is empty.
    """
    rows: I64 | None = None  # all of them, in their order, until a multi-valued part repeats some
    code, size = np.zeros(len(item), np.int64), 1
    plain: dict[str, I32 | I16] = {"user": user, "item": item, "surface": surface}
    for part in key:
        found = None if part in plain else key_attribute(part, catalog)
        index = plain[part] if found is None else (user if found[0] == "user" else item)
        index = index if rows is None else index[rows]
        size_of_part = radix(part, catalog)
        if found is None:
            _fold(code, index, size_of_part)
        elif found[1].kind == "multi":
            repeat, values = _lists(found[1], index)
            rows, code = repeat if rows is None else rows[repeat], code[repeat]
            _fold(code, values, size_of_part)
        else:
            _fold_codes(code, index, found[1].codes, size_of_part)
        size *= size_of_part
    return np.arange(len(item)) if rows is None else rows, code, size


@njit(cache=True, nogil=True)
def _fold(code: I64, values: I32, size: int) -> None:
    for k in range(len(code)):
        code[k] = code[k] * size + values[k] if code[k] >= 0 and values[k] >= 0 else -1


@njit(cache=True, nogil=True)
def _fold_codes(code: I64, index: I32, codes: I32, size: int) -> None:
    for k in range(len(code)):
        value = codes[index[k]] if index[k] >= 0 else -1
        code[k] = code[k] * size + value if code[k] >= 0 and value >= 0 else -1


def _lists(attribute: Attribute, index: I32 | I16) -> tuple[I64, I64]:
    """Return (place in `index`, code) of every value of a multi-valued attribute."""
    if len(attribute.offsets) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    safe = np.maximum(index, 0)
    counts = np.where(index >= 0, np.diff(attribute.offsets)[safe], 0)
    place = np.repeat(np.arange(len(index)), counts)
    within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place, attribute.codes[np.repeat(attribute.offsets[:-1][safe], counts) + within].astype(np.int64)


@njit(cache=True, nogil=True, inline="always")
def _bit(code: int, shift: int) -> Any:
    return np.int64(np.uint64(code * GOLDEN) >> np.uint64(shift))


@njit(cache=True, nogil=True)
def _keep(code: I64, wanted: I64, shift: int) -> None:
    bits = np.zeros((1 << (64 - shift)) // 8, np.uint8)
    for k in range(len(wanted)):
        at = _bit(wanted[k], shift)
        bits[at >> 3] |= np.uint8(1 << (at & 7))
    for k in range(len(code)):
        at = _bit(code[k], shift)
        if not bits[at >> 3] & np.uint8(1 << (at & 7)):
            code[k] = -1


def keep_wanted(code: I64, wanted: I64) -> None:
    """Set the codes that are not among the wanted ones to -1, but for about one in 32 of them: a Bloom filter.

    Those that stay cost time, and change nothing: no one asks for them.
    """
    _keep(code, wanted, 64 - max((32 * len(wanted) - 1).bit_length(), 3))


@njit(cache=True, nogil=True)
def _radix_order(code: I64, passes: int) -> I32:
    # Codes move with the order: to look each up by its place would wait for memory at every step.
    keys, other_keys = code.copy(), np.empty_like(code)
    order, other = np.arange(len(code)).astype(np.int32), np.empty(len(code), np.int32)
    for p in range(passes):
        shift = p * DIGIT
        starts = np.zeros((1 << DIGIT) + 1, np.int64)
        for k in range(len(keys)):
            starts[((keys[k] >> shift) & MASK) + 1] += 1
        for d in range(1 << DIGIT):
            starts[d + 1] += starts[d]
        for k in range(len(keys)):
            digit = (keys[k] >> shift) & MASK
            at = starts[digit]
            starts[digit] = at + 1
            other_keys[at], other[at] = keys[k], order[k]
        keys, other_keys = other_keys, keys
        order, other = other, order
    return order


def stable_order(code: I64, size: int) -> I32:
    """Return int32[n]: the order that sorts codes in [0, size); equal ones keep their order. Linear in n."""
    passes = -(-max(size - 1, 1).bit_length() // DIGIT)
    order: I32 = _radix_order(code, passes)
    return order
