"""What all learners of the ranker's benchmark share: rows, pairs, grades and users of three slices."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.pairing.pairs import Pairs
from features.pairing.slice import Slice
from features.schema import F32, F64, I64
from ranker.config import load_config
from ranker.examples import example_text
from ranker.training.arms import Arms
from ranker.training.prepared import prepare


@dataclass(frozen=True, slots=True)
class Part:
    """One slice of a data set. rows: matrix, group and pairs. grade: int64[n], 0 the worst. user: int64[n]."""

    rows: Slice
    grade: I64
    user: I64

    @property
    def sizes(self) -> I64:
        """int64[g]: how many rows each group has."""
        starts = np.flatnonzero(np.diff(self.rows.group, prepend=-1))
        return np.diff(np.append(starts, len(self.rows.group)))

    def first(self, share: float) -> "Part":
        """Return the first groups that hold a share of the rows."""
        if share >= 1:
            return self
        group, pairs = self.rows.group, self.rows.pairs
        n = int(np.searchsorted(group, group[int(share * len(group))]))
        rows = Slice(self.rows.matrix[:n], group[:n], pairs.select(pairs.winner < n))
        return Part(rows, self.grade[:n], self.user[:n])

    def weights_1(self) -> "Part":
        """Return the slice with every pair weighing 1."""
        p = self.rows.pairs
        ones = Pairs(p.winner, p.loser, np.ones_like(p.weight), p.sampled)
        return replace(self, rows=replace(self.rows, pairs=ones))


class Best(NamedTuple):
    """score: float64[n] of the test rows, than which none has a higher expected PairAccuracy, `bound`."""

    score: F64
    bound: float


@dataclass(frozen=True, slots=True)
class Data:
    """A data set. best, best_1: the best possible scores where they are known; with all weights 1."""

    name: str
    columns: list[str]
    categorical: list[str]
    train: Part
    validation: Part
    test: Part
    best: Best | None = None
    best_1: Best | None = None

    @property
    def coded(self) -> list[int]:
        """Places of the categorical columns."""
        return [self.columns.index(name) for name in self.categorical]

    def weights_1(self) -> "Data":
        """Return the data set with every pair weighing 1, in all three slices."""
        parts = {name: part.weights_1() for name, part in self.parts().items()}
        return replace(self, best=self.best_1, **parts)

    def parts(self) -> dict[str, Part]:
        """The slices by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def example_data(name: str, root: Path) -> Data:
    """Return a shipped example as the real training path makes it: counters and attributes, without plugins."""
    folder = root / ".pairlift" / "bench" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairlift.toml").write_text(example_text(name))
    arms = Arms.of(prepare(load_config(folder / "pairlift.toml")))
    parts = {}
    for part, groups in arms.groups.items():
        row_group = groups.requests.row_request()
        matrix: F32 = arms.base.values[part]
        parts[part] = Part(
            Slice(matrix, row_group, arms.pairs(part)),
            groups.grade.astype(np.int64),
            groups.requests.user[row_group].astype(np.int64),
        )
    spec = arms.prepared.spec
    return Data(name, list(spec.columns), list(spec.categorical), parts["train"], parts["validation"], parts["test"])
