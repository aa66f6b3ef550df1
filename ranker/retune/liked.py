"""Trials of the liked part: PairAccuracy of the pairs of the booster's validation slice."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from features.pairing.slice import Slice
from features.schema import F64, I64
from ranker.code_hash import code_hash
from ranker.columns import Columns
from ranker.config import Config
from ranker.hashes import hash_arrays, hash_value
from ranker.metrics.pair_accuracy import right_by_user
from ranker.retune.bench import seeds_of
from ranker.retune.report import Measure
from ranker.retune.space import Parameter, make_space
from ranker.training.arms import Arms
from ranker.training.booster import fit_booster
from ranker.training.plugins import served_plugins
from ranker.training.prepared import Prepared

#: what a study reads of our code, beside what `Prepared.key` and the rows stand for
CODE = ("features.pace", "ranker.columns", "ranker.forest.text", "ranker.metrics", "ranker.retune", "ranker.training")
PAIRS = Measure("PairAccuracy", "pair_accuracy", "pairs")


@dataclass(frozen=True, slots=True, kw_only=True)
class LikedBench:
    """The rows of the liked part."""

    arms: Arms  # the rows, and the configuration whose parameters are searched
    columns: tuple[str, ...]  # the booster's
    categorical: list[str]  # those of them that are codes
    train: Slice  # learned from, with the pairs of the TOML's own [pairing]
    validation: Slice  # stopped by and judged by
    user: I64  # [n] of the validation rows, in [0, n_users)
    n_users: int  # of the validation rows
    seeds: tuple[int, ...]  # of a trial's fits
    measure: Measure = PAIRS

    @classmethod
    def of(cls, prepared: Prepared) -> Self:
        """Make the rows of the served plugins' ranker."""
        arms = Arms.of(prepared)
        return cls.over(arms, arms.served_columns(served_plugins(prepared)))

    @classmethod
    def over(cls, arms: Arms, columns: Columns) -> Self:
        """Make the rows of some arms, with the columns of plugins."""
        prepared, seeds = arms.prepared, seeds_of(arms.prepared)
        train, validation = (arms.slice(part, columns, seeds[0]) for part in ("train", "validation"))
        requests = arms.groups["validation"].requests
        users, user = np.unique(requests.user[requests.row_request()], return_inverse=True)
        return cls(
            arms=arms,
            columns=(*prepared.spec.columns, *columns.names),
            categorical=[*prepared.spec.categorical, *columns.categorical],
            train=train,
            validation=validation,
            user=user,
            n_users=len(users),
            seeds=seeds,
        )

    @property
    def config(self) -> Config:
        """The TOML's own."""
        return self.arms.prepared.config

    @property
    def judged(self) -> int:
        """How many pairs the validation slice has."""
        return len(self.validation.pairs)

    @property
    def total(self) -> float:
        """The weight of all validation pairs."""
        return float(self.validation.pairs.weight.sum(dtype=np.float64))

    @property
    def key(self) -> str:
        """A hash of rows, pairs, the TOML's own parameters and the code."""
        rows = hash_arrays({"train": self.train.matrix, "validation": self.validation.matrix})
        settings = self.config.booster.model_dump()
        return hash_value([self.arms.prepared.key, rows, settings, self.seeds, code_hash(*CODE)])

    def space(self) -> list[Parameter]:
        """Return what is searched over."""
        prepared, requests = self.arms.prepared, self.arms.groups["train"].requests
        size, span = int(np.diff(requests.offsets).max()), int(np.ptp(requests.as_of))
        rows, categorical = len(self.train.matrix), bool(self.categorical)
        return make_space(prepared.config, rows, categorical, size * (size - 1) // 2, span)

    def fit(self, config: Config, seed: int) -> tuple[F64, int]:
        """Fit; return float64[n_users] weight of the right validation pairs (a tie is half), and the trees."""
        prepared = replace(self.arms.prepared, config=config)
        arms = replace(self.arms, prepared=prepared)
        train = replace(self.train, pairs=arms.pairs("train", seed))
        booster = fit_booster(list(self.columns), self.categorical, train, self.validation, config.booster, seed)
        score = np.asarray(booster.predict(self.validation.matrix, raw_score=True))
        right, tied, _ = right_by_user(score, self.validation.pairs, self.user, self.n_users)
        return right + tied / 2, int(booster.num_trees())
