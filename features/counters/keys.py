"""Keys as integers: the parts of a counter's key, of events and of candidates, become one code each.

A part is `user`, `item`, `surface`, the name of an item attribute, or `user_` and the name of a user attribute. The key
of a counter that is declared `by_arm` has the part `BY_ARM` before these: an event has the key of the arm that its user
was in, or of none; a request asks for two, that of its own arm and that of none, and what both say is added up.
"""

from typing import NamedTuple

import numpy as np

from features.kernels import AHEAD, njit, prefetch
from features.schema import BY_ARM, I16, I32, I64, Attribute, Bool, Catalog


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


def name_of(key: tuple[str, ...]) -> str:
    """Return what a key is called in the names of columns: `user_x_item`, and `user_x_item_by_arm` with the arm."""
    return f"{'_x_'.join(key[1:])}_{BY_ARM}" if key[0] == BY_ARM else "_x_".join(key)


def parse_key(name: str) -> tuple[str, ...]:
    """Read what `name_of` gave; no part but the arm ends in its name."""
    parts = tuple(name.removesuffix(f"_{BY_ARM}").split("_x_"))
    return (BY_ARM, *parts) if name.endswith(f"_{BY_ARM}") else parts


def of_request(key: tuple[str, ...], catalog: Catalog) -> bool:
    """Return whether a key is the same for all candidates of a request: nothing in it is of the item."""
    own = {BY_ARM, "user", "surface", *(f"user_{a.name}" for a in catalog.user_attributes)}
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


def key_codes(
    key: tuple[str, ...], catalog: Catalog, user: I32, item: I32, surface: I16, arm: I16, *, asked: bool = False
) -> tuple[I64, I64, int]:
    """Return (rows, codes, size): the key of each row as one integer in [0, size), -1 where a part is missing.

    A multi-valued attribute gives a row several codes (`rows` repeats it), or none where its list is empty. Keys
    without new users and items have the codes that they have in a catalogue without room for such. asked: the rows are
    of requests, not events; by arm, one in an arm has the codes of that arm and of none.
    """
    rows: I64 | None = None  # all of them, in their order, until a part with several values repeats some
    code, size = np.zeros(len(item), np.int64), NO_KEY
    of: dict[str, I32 | I16] = {"user": user, "item": item, "surface": surface, BY_ARM: arm}
    for part in key:
        repeat, values = _values_of(part, catalog, of, rows, asked)
        if repeat is not None:
            rows, code = repeat if rows is None else rows[repeat], code[repeat]
        size_of_part = radix(part, catalog)
        _fold(code, values, size.known, *size_of_part)
        size = size.with_part(size_of_part)
    return np.arange(len(item)) if rows is None else rows, code, size.all


def _values_of(
    part: str, catalog: Catalog, of: dict[str, I32 | I16], rows: I64 | None, asked: bool
) -> tuple[I64 | None, I64 | I32 | I16]:
    """Return (place in the rows of each value, None for one in each row; the values, -1 missing) of a part of a key.

    of: user, item, surface and arm of all rows. rows: which of them, None: each once.
    """
    found = None if part in of else key_attribute(part, catalog)
    index = of[part if found is None else found[0]]
    index = index if rows is None else index[rows]
    if part == BY_ARM:
        return _own_and_none(index) if asked else (None, index + 1)
    if found is None:
        return None, index
    return _lists(found[1], index) if found[1].kind == "multi" else (None, _coded(index, found[1].codes))


class Part(NamedTuple):
    """A part of a key that has one value for each candidate, not by arm."""

    of: str  # whose value it is: `user`, `item` or `surface`
    codes: I32 | None  # of each of these, where it is an attribute
    before: int  # how many codes the parts before it make, without new users and items
    radix: Radix


def single_parts(key: tuple[str, ...], catalog: Catalog) -> list[Part] | None:
    """Return what `codes_of_one` needs of a key, None where a candidate can have several codes of it."""
    if key[0] == BY_ARM or has_list(key, catalog):
        return None
    parts, size = [], NO_KEY
    for part in key:
        found = None if part in ("user", "item", "surface") else key_attribute(part, catalog)
        of, codes = (part, None) if found is None else (found[0], found[1].codes)
        parts.append(Part(of, codes, size.known, radix(part, catalog)))
        size = size.with_part(parts[-1].radix)
    return parts


def codes_of_one(parts: list[Part], user: I32, item: I32, surface: I16) -> I64:
    """Return int64[n], the codes of `key_codes` for int32[n] items of one request, its user [1] and its surface [1]."""
    of: dict[str, I32 | I16] = {"user": user, "item": item, "surface": surface}
    code = np.zeros(1, np.int64)  # of all items, until a part is of each
    for part in parts:
        code = _folded(code, of[part.of], part.codes, part.before, *part.radix)
    return code if len(code) == len(item) else np.full(len(item), code[0])


def _own_and_none(arm: I32 | I16) -> tuple[I64, I16]:
    """Return (place in `arm`, value) of what requests ask for: events of no arm and, where they have one, of theirs."""
    place = np.repeat(np.arange(len(arm)), 1 + (arm >= 0))
    own: Bool = np.diff(place, prepend=-1) == 0
    return place, np.asarray(np.where(own, arm[place] + 1, 0), np.int16)


def without_last(code: I64, key: tuple[str, ...], catalog: Catalog) -> tuple[I64, int]:
    """Return (codes, size) of the key without its last part. code: of the whole key, none of them -1."""
    size = NO_KEY
    for part in key[:-1]:
        size = size.with_part(radix(part, catalog))
    return _unfold(code, size.known, *radix(key[-1], catalog)), size.all


def without_arm(code: I64, key: tuple[str, ...], catalog: Catalog) -> tuple[I64, I64]:
    """Return (arm, codes of the key without it) of codes of a key by arm, none of them -1. arm: as in the key, 0 none.

    Parts are taken off from the last to the first, and all but the arm put together again.
    """
    sizes, values = [NO_KEY], []
    for part in key[:-1]:
        sizes.append(sizes[-1].with_part(radix(part, catalog)))
    for part, size in zip(reversed(key), reversed(sizes), strict=True):
        whole, (known, wide) = code, radix(part, catalog)
        code = _unfold(whole, size.known, known, wide)
        border = size.known * known
        values.append(whole - np.where(whole < border, code * known, border - known + code * wide))
    rest, size = np.zeros(len(code), np.int64), NO_KEY
    for part, value in zip(key[1:], values[-2::-1], strict=True):
        _fold(rest, value, size.known, *radix(part, catalog))
        size = size.with_part(radix(part, catalog))
    return values[-1], rest


def radix(part: str, catalog: Catalog) -> Radix:
    """Return how many values a part of a key can have."""
    if part in ("user", "item"):
        known, new = (catalog.n_users, catalog.new_users) if part == "user" else (catalog.n_items, catalog.new_items)
        return Radix(max(known, 1), max(known, 1) + new.room)
    if part == BY_ARM:
        return Radix(1 + len(catalog.arms), 1 + len(catalog.arms) + catalog.new_arms.room)
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
        ahead = index[min(k + AHEAD, len(index) - 1)]
        prefetch(codes, np.int64(max(min(ahead, len(codes) - 1), 0)) * 4)
        out[k] = codes[index[k]] if 0 <= index[k] < len(codes) else -1
    return out


@njit(cache=True, nogil=True)
def _folded(code: I64, index: I32, codes: I32 | None, known: int, radix: int, wide: int) -> I64:
    """Return int64[n], the codes that `_fold` makes of codes [n] or [1] with a further part of index [n] or [1].

    codes: the part's value of each index; None where an index is its own.
    """
    out = np.empty(max(len(code), len(index)) if len(code) * len(index) else 0, np.int64)
    out[:] = code
    _fold(out, index if codes is None else _coded(index, codes), known, radix, wide)
    return out


@njit(cache=True, nogil=True)
def _fold(code: I64, values: I32, known: int, radix: int, wide: int) -> None:
    """Put a further part, a value of each code or one of all, into the codes; those below `known` have nothing new.

    Without anything new, code · radix + value; else behind all such codes, code · wide + value, less the least that
    this can be (code 0 with the first new value), so that a key of one part is its own code.
    """
    behind, step = known * radix - radix, 1 if len(values) == len(code) else 0
    for k in range(len(code)):
        value = values[k * step]
        if code[k] < 0 or value < 0:
            code[k] = -1
        elif code[k] < known and value < radix:
            code[k] = code[k] * radix + value
        else:
            code[k] = behind + code[k] * wide + value


@njit(cache=True, nogil=True)
def _unfold(code: I64, known: int, radix: int, wide: int) -> I64:
    """Return the codes that `_fold` made these of: the same arithmetic backwards."""
    out = np.empty_like(code)
    border, behind = known * radix, known * radix - radix
    for k in range(len(code)):
        out[k] = code[k] // radix if code[k] < border else (code[k] - behind) // wide
    return out
