"""What each feedback column is to the networks: a yes or no, a share, a count, a time or a number. NumPy alone."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from features.schema import F32, F64, Bool

#: learned by cross-entropy, as it is; the others by the Huber loss, scaled
BOUNDED = ("binary", "share")
#: learned by their logarithm
LOGGED = ("count", "time")
#: whole numbers whose median above 0 is as large are no counts but times, or sums, in a small unit (milliseconds)
SMALL_UNIT = 1000
#: skewness from which on a tail is long: of a normal variable it is 0, of an exponential one 2
LONG_TAIL = 1.0


@dataclass(frozen=True, slots=True)
class FeedbackKinds:
    """The k feedback columns as their values of the fit were.

    A count is learned as log(1 + n): of 3 and 300 plays, what differs is a factor. So is a time, or another amount with
    many zeros and a long tail, as log(1 + x / unit): dwell times are about log-normal (Yi et al., "Beyond Clicks",
    RecSys 2014), and in its own unit a zero is not far from what is short, be it in milliseconds or in hours.
    """

    kind: tuple[str, ...]  # [k], `binary`, `share`, `count`, `time` or `number`
    mean: F64  # [k], of what is learned of counts and times (their logarithms) and of numbers; 0 of the others
    scale: F64  # [k], standard deviations of the same (1 where they are 0); 1 of the others
    unit: F64  # [k], the median of a time's values above 0; 1 of the others

    @classmethod
    def build(cls, feedback: F32, all_kinds: bool) -> Self:
        """Tell the kinds of float32[n, k] values by what they are, NaN being unknown; all unknown: binary.

        all_kinds: tell shares, counts and times from other numbers.
        """
        known = [column[np.isfinite(column)] for column in feedback.T]
        kind = tuple(_kind_of(column, all_kinds) for column in known)
        unit = np.array([_unit_of(x) if of == "time" else 1.0 for x, of in zip(known, kind, strict=True)])
        plain = cls(kind, np.zeros(len(kind)), np.ones(len(kind)), unit)
        mean, scale = known_scale(plain.wanted(feedback))
        return cls(kind, np.where(plain.bounded, 0, mean), np.where(plain.bounded, 1, scale), unit)

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def bounded(self) -> Bool:
        """bool[k]: learned by cross-entropy."""
        return np.isin(self.kind, BOUNDED)

    @property
    def logged(self) -> Bool:
        """bool[k]: learned by its logarithm."""
        return np.isin(self.kind, LOGGED)

    def wanted(self, feedback: F32) -> F32:
        """Return float32[n, k], what is learned of the log's values, float32[n, k]; NaN unknown."""
        plain = feedback.astype(np.float64)
        learned = np.log1p(np.maximum(plain, 0) / self.unit, where=self.logged, out=plain)
        wanted: F32 = ((learned - self.mean) / self.scale).astype(np.float32)
        return wanted


def _kind_of(known: F32, all_kinds: bool) -> str:
    """Return the kind of a column with these known values."""
    if np.isin(known, (0, 1)).all():
        return "binary"
    if not all_kinds or known.min() < 0:
        return "number"
    if known.max() <= 1:
        return "share"
    if (known == np.floor(known)).all() and _unit_of(known) < SMALL_UNIT:
        return "count"
    tail = _skewness(known)
    return "time" if tail > LONG_TAIL and abs(_skewness(np.log1p(known / _unit_of(known)))) < tail else "number"


def _unit_of(known: F32) -> float:
    """Return the median of what is above 0; there is some."""
    return float(np.median(known[known > 0]))


def _skewness(known: F32) -> float:
    """Return the mean cube of values, each less their mean over their standard deviation; 0 where all are equal."""
    centred = known - known.mean(dtype=np.float64)
    return float(np.mean((centred / (centred.std() or 1.0)) ** 3))


def known_scale(signal: F32) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation (1 where it is 0) of each column's known values."""
    known = np.isfinite(signal)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, signal, 0).sum(0, dtype=np.float64) / count
    scale = np.sqrt((np.where(known, signal - mean, 0) ** 2).sum(0) / count)
    return tuple(mean.tolist()), tuple(np.where(scale > 0, scale, 1).tolist())
