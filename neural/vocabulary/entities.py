"""Items and users as hashed ids, attribute codes and numbers: what the towers embed. NumPy alone."""

from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np

from features.hashing import mix
from features.schema import F32, I32, I64, Attribute, Bool

#: rows of the shared table that one value has
HASHES = 2
#: an entity's values of one multi-valued attribute beyond so many (the rarest ones first) are left out
MOST_VALUES = 32
#: rows of the largest table, as a power of two
LARGEST_TABLE = 20
#: entities whose numbers are scaled at a time: of many with long vectors, copies would be most of the memory
ROWS = 1 << 16
#: mean of each number, and their standard deviation
Scale = tuple[list[float], float]


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns of `Entities` are of which feature."""

    slots: tuple[int, ...]  # how many of the s slots each embedded feature has, in order: the id, then attributes
    n_numbers: int  # width of `Entities.numbers`


@dataclass(frozen=True, slots=True)
class Entities:
    """n entities and, as the last row, one of which nothing is known. A slot holds one embedded value."""

    slots: I64  # [n + 1, s, HASHES], rows of the shared table
    weight: F32  # [n + 1, s]; 0: missing, or not in any event of the fit period (what was never trained is never read)
    numbers: F32  # [n + 1, m]: numbers and vectors, scaled (0 where missing), then of each whether it is known
    n_known: int  # how many of the last columns of `numbers` say that, by 1 or 0
    layout: Layout  # of the columns above

    @property
    def known(self) -> Bool:
        """bool[n + 1]: at least one thing is known of it."""
        told = self.numbers[:, self.numbers.shape[1] - self.n_known :]
        return np.asarray(self.weight.any(axis=1) | told.any(axis=1))

    def distinct(self) -> tuple[I64, I32]:
        """Return one row of each distinct entity (int64[k], the unknown one's last), and int32[n] places in it."""
        n = len(self.weight)
        flat = np.concatenate([self.slots.reshape(n, -1), self.weight, self.numbers], axis=1)
        _, rows, place = np.unique(flat, axis=0, return_index=True, return_inverse=True)
        place = place.ravel()
        swap = np.arange(len(rows), dtype=np.int32)
        swap[[place[-1], -1]] = swap[[-1, place[-1]]]  # the unknown one and the last one change places
        return rows[swap], swap[place[:-1]]


@dataclass(frozen=True, slots=True)
class Coding:
    """The number by which each embedded value is hashed, and how numeric attributes are scaled.

    A fit counts values by their codes. One that goes on from an earlier fit keeps what its weights have learned: the
    numbers and scales of then (`neural.vocabulary.earlier`).
    """

    numbers: tuple[I64, ...]  # of each embedded feature, [its values]
    scales: tuple[Scale | None, ...]  # of each numeric attribute; None: no value of it was known

    @classmethod
    def build(cls, count: I64, attributes: tuple[Attribute, ...], with_id: bool) -> Self:
        """Take the codes, and the scales of the entities with fit events, int64[n] count. with_id: as `encode` has."""
        sizes = [*[len(count)] * with_id, *(len(a.values) for a in embedded(attributes))]
        return cls(tuple(np.arange(size) for size in sizes), tuple(_scale(a, count) for a in numeric(attributes)))


def embedded(attributes: tuple[Attribute, ...]) -> list[Attribute]:
    """Return those whose values are embedded."""
    return [a for a in attributes if a.kind in ("categorical", "multi")]


def numeric(attributes: tuple[Attribute, ...]) -> list[Attribute]:
    """Return those that are numbers, or vectors of them."""
    return [a for a in attributes if a.kind in ("numeric", "vector")]


def table_rows(n_values: int) -> int:
    """Return the rows of the shared table for so many values: the power of two above their double, to 2^20."""
    return 1 << min(max(2 * n_values - 1, 1).bit_length(), LARGEST_TABLE)


def count_values(n_ids: int, attributes: tuple[Attribute, ...]) -> int:
    """Return how many distinct (feature, value) there are to embed."""
    return n_ids + sum(len(a.values) for a in embedded(attributes))


def encode(
    count: I64,
    attributes: tuple[Attribute, ...],
    rows: int,
    id_shrink: float | None,
    salt: int,
    coding: Coding | None = None,
) -> Entities:
    """Return the features of n entities; text is not among them.

    count: int64[n], the fit events of each (what makes a value known). rows: of the shared table. id_shrink: the
    first feature is the id, with weight count / (count + id_shrink), so that a rare one says little; None: no id.
    salt: keeps the features of items apart from those of users in the hashes. coding: left out, `Coding.build`.
    """
    n, coding = len(count), coding or Coding.build(count, attributes, id_shrink is not None)
    columns = [] if id_shrink is None else [np.where(count > 0, np.arange(n), -1)[:, None]]
    columns += [_fitted(_codes(a, n), count, len(a.values)) for a in embedded(attributes)]  # [n, slots of it] each
    slots, weights = [np.zeros((n + 1, 0, HASHES), np.int64)], [np.zeros((n + 1, 0), np.float32)]
    for feature, codes in enumerate(columns):
        padded = np.concatenate([codes, np.full((1, codes.shape[1]), -1)]).astype(np.int64)  # [n + 1, …]
        present = padded >= 0
        number = np.append(coding.numbers[feature], -1)[padded]  # -1 where nothing is
        slots.append(np.where(present[..., None], hashed(number, rows, salt, feature), 0))
        weights.append((present / np.maximum(present.sum(1, keepdims=True), 1)).astype(np.float32))
    if id_shrink is not None:
        weights[1][:-1, 0] *= count / np.maximum(count + id_shrink, 1e-9)
    numbers, n_known = _scaled(numeric(attributes), coding.scales, n)
    layout = Layout(tuple(c.shape[1] for c in columns), numbers.shape[1])
    return Entities(np.concatenate(slots, axis=1), np.concatenate(weights, axis=1), numbers, n_known, layout)


def _codes(attribute: Attribute, n: int) -> I64:
    """Return int64[n, width] codes of a categorical or multi-valued attribute, -1 where there is none."""
    if attribute.kind == "categorical":
        return attribute.codes.astype(np.int64)[:, None]
    sizes = np.diff(attribute.offsets)
    row = np.repeat(np.arange(n), sizes)
    frequency = np.bincount(attribute.codes, minlength=len(attribute.values))
    order = np.lexsort((-frequency[attribute.codes], row))
    place = np.arange(len(row)) - np.repeat(attribute.offsets[:-1], sizes)
    keep = place < MOST_VALUES
    codes = np.full((n, max(int(min(sizes.max(initial=1), MOST_VALUES)), 1)), -1, np.int64)
    codes[row[keep], place[keep]] = attribute.codes[order][keep]
    return codes


def _fitted(codes: I64, count: I64, n_values: int) -> I64:
    """Return the codes with -1 for every value that no entity with events of the fit period has."""
    seen = np.append(_met(codes, count, n_values), False)  # the last: where code -1 points to
    return np.where(seen[codes], codes, -1)


def _met(codes: I64, count: I64, n_values: int) -> Bool:
    """Return bool[n_values]: an entity with events of the fit period has it."""
    seen = np.zeros(n_values + 1, bool)
    seen[codes[count > 0]] = True
    return seen[:-1]


def met_values(count: I64, attributes: tuple[Attribute, ...], with_id: bool) -> list[Bool]:
    """Return for each embedded feature bool[its values]: what `encode` embeds of it, the others being unknown."""
    met = [_met(_codes(a, len(count)), count, len(a.values)) for a in embedded(attributes)]
    return [*[count > 0] * with_id, *met]


def _scale(attribute: Attribute, count: I64) -> Scale | None:
    """Return the scale of the entities of the fit period; a vector's numbers have one, so that directions stay."""
    values = attribute.numbers.reshape(len(count), -1)
    fitted = values[np.isfinite(values).all(axis=1) & (count > 0)].astype(np.float64)
    return (fitted.mean(0).tolist(), float(np.sqrt(fitted.var(0).mean()))) if fitted.size else None


def _scaled(attributes: list[Attribute], scales: tuple[Scale | None, ...], n: int) -> tuple[F32, int]:
    """Return float32[n + 1, m], scaled, and how many last columns tell what is known: nothing without a scale.

    With no numbers at all the width is 2, of zeros: a tensor without columns is a trap for exporters.
    """
    if not attributes:
        return np.zeros((n + 1, 2), np.float32), 1
    widths = [prod(attribute.numbers.shape[1:]) for attribute in attributes]
    out = np.zeros((n + 1, sum(widths) + len(attributes)), np.float32)
    for k, (attribute, scale, width) in enumerate(zip(attributes, scales, widths, strict=True)):
        if scale is None:
            continue  # nothing could be learnt of it
        mean, std = np.array(scale[0]), scale[1] if scale[1] > 0 else 1.0
        first = sum(widths[:k])
        for some in (slice(start, start + ROWS) for start in range(0, n, ROWS)):
            values = attribute.numbers[some].reshape(-1, width)
            present: Bool = np.asarray(np.isfinite(values).all(axis=1))
            # One far value must not push an entity out of what training saw.
            z = np.clip((np.where(present[:, None], values, 0) - mean) / std, -4, 4)
            out[:n][some, first : first + width] = np.where(present[:, None], z, 0)
            out[:n][some, sum(widths) + k] = present
    return out, len(attributes)


def hashed(numbers: I64, rows: int, salt: int, feature: int) -> I64:
    """Return int64[..., HASHES] rows of the shared table for numbers of one feature. salt: as `encode` has it.

    rows is a power of two: a table of twice the rows, both halves being the smaller one, gives each the same.
    """
    key = _mix(numbers, salt * 1000 + feature)
    return np.stack([_mix(key, k + 1) % rows for k in range(HASHES)], axis=-1)


def _mix(x: I64, salt: int) -> I64:
    """Return int64 >= 0, mixed of each value and a salt."""
    mixed: I64 = (mix(x.astype(np.uint64), salt) >> np.uint64(1)).astype(np.int64)
    return mixed
