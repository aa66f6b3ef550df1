"""What each feedback column is to the networks: a yes or no, a share, a count or a number. NumPy alone."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from features.schema import F32, F64, Bool

#: learned by cross-entropy, as it is; the others by the Huber loss, scaled
BOUNDED = ("binary", "share")


@dataclass(frozen=True, slots=True)
class FeedbackKinds:
    """The k feedback columns as their values of the fit were.

    A count is learned as log(1 + n): of 3 and 300 plays, what differs is a factor.
    """

    kind: tuple[str, ...]  # [k], `binary`, `share`, `count` or `number`
    mean: F64  # [k], of what is learned of counts (their logarithms) and of numbers; 0 of the others
    scale: F64  # [k], standard deviations of the same (1 where they are 0); 1 of the others

    @classmethod
    def build(cls, feedback: F32, all_kinds: bool) -> Self:
        """Tell the kinds of float32[n, k] values by what they are, NaN being unknown; all unknown: binary.

        all_kinds: tell shares and counts from other numbers.
        """
        kind = tuple(_kind_of(column[np.isfinite(column)], all_kinds) for column in feedback.T)
        plain = cls(kind, np.zeros(len(kind)), np.ones(len(kind)))
        mean, scale = known_scale(plain.wanted(feedback))
        return cls(kind, np.where(plain.bounded, 0, mean), np.where(plain.bounded, 1, scale))

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def bounded(self) -> Bool:
        """bool[k]: learned by cross-entropy."""
        return np.isin(self.kind, BOUNDED)

    @property
    def counted(self) -> Bool:
        """bool[k]: learned by its logarithm."""
        return np.isin(self.kind, "count")

    def wanted(self, feedback: F32) -> F32:
        """Return float32[n, k], what is learned of the log's values, float32[n, k]; NaN unknown."""
        counts = np.log1p(np.maximum(feedback, 0), where=self.counted, out=feedback.astype(np.float64))
        wanted: F32 = ((counts - self.mean) / self.scale).astype(np.float32)
        return wanted


def _kind_of(known: F32, all_kinds: bool) -> str:
    """Return the kind of a column with these known values."""
    if np.isin(known, (0, 1)).all():
        return "binary"
    if not all_kinds or known.min() < 0:
        return "number"
    if known.max() <= 1:
        return "share"
    return "count" if (known == np.floor(known)).all() else "number"


def known_scale(signal: F32) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation (1 where it is 0) of each column's known values."""
    known = np.isfinite(signal)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, signal, 0).sum(0, dtype=np.float64) / count
    scale = np.sqrt((np.where(known, signal - mean, 0) ** 2).sum(0) / count)
    return tuple(mean.tolist()), tuple(np.where(scale > 0, scale, 1).tolist())
