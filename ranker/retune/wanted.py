"""Trials of the wanted part: NDCG@10 of the lists that the sources propose in the booster's validation slice."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from features.errors import PairliftError
from features.schema import F64
from ranker.code_hash import code_hash
from ranker.config import Config
from ranker.hashes import hash_arrays, hash_value
from ranker.retune.bench import seeds_of
from ranker.retune.report import Measure
from ranker.retune.space import Parameter, make_wanted_space
from ranker.training.booster import parameters
from ranker.training.plugins import served_plugins
from ranker.training.prepared import Prepared
from ranker.training.wanted import CODE as STAGE
from ranker.training.wanted import NO_SOURCES, NOTHING_WANTED, Rows, rows_of, wanted_settings

#: what a study reads of our code, beside what `Prepared.key` and the rows stand for
CODE = (*STAGE, "ranker.retune", "ranker.training.plugins")
LISTS = Measure("NDCG@10", "ndcg@10", "requests")


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedBench:
    """The rows of the wanted part."""

    prepared: Prepared
    rows: Rows  # not empty
    seeds: tuple[int, ...]  # of a trial's fits
    measure: Measure = LISTS

    @classmethod
    def of(cls, prepared: Prepared) -> Self:
        """Ask the sources for the rows, with the served plugins; PairliftError where they propose nothing wanted."""
        if not prepared.config.sources.on:
            raise PairliftError(f"retune --part wanted: {NO_SOURCES}; switch one on")
        rows = rows_of(prepared, served_plugins(prepared))
        if rows.empty:
            raise PairliftError(
                f"retune --part wanted: {NOTHING_WANTED}, so there is nothing to judge by; move [split] t1 or t2, or "
                "name a lower grade as [lists] wanted"
            )
        return cls.over(prepared, rows)

    @classmethod
    def over(cls, prepared: Prepared, rows: Rows) -> Self:
        """Take rows that are not empty."""
        return cls(prepared=prepared, rows=rows, seeds=seeds_of(prepared))

    @property
    def config(self) -> Config:
        """The TOML's own."""
        return self.prepared.config

    @property
    def judged(self) -> int:
        """How many requests of the validation slice had something wanted that is proposed."""
        return len(self.rows.validation.user)

    @property
    def total(self) -> float:
        """The same: the NDCG of a request is at most 1."""
        return float(self.judged)

    @property
    def key(self) -> str:
        """A hash of rows, the TOML's own parameters and the code."""
        names, slices = ("matrix", "group", "hit", "wanted"), (self.rows.train, self.rows.validation)
        digests = [hash_arrays({name: getattr(part, name) for name in names}) for part in slices]
        settings = [self.config.booster.model_dump(), self.config.lists.model_dump()]
        return hash_value([self.prepared.key, digests, settings, self.seeds, code_hash(*CODE)])

    def space(self) -> list[Parameter]:
        """Return what is searched over."""
        own = parameters(wanted_settings(self.config), len(self.rows.train.matrix))
        return make_wanted_space(own, bool(self.rows.categorical))

    def fit(self, config: Config, seed: int) -> tuple[F64, int]:
        """Fit; return float64[n_users], the sum of NDCG@10 over each user's requests, and the trees."""
        booster, validation = self.rows.fit(config, seed), self.rows.validation
        _, user = np.unique(validation.user, return_inverse=True)
        found = np.bincount(user, validation.ndcgs(self.rows.scores(booster))).astype(np.float64)
        return found, int(booster.num_trees())
