"""One log of the study `defaults`: rows with the columns of all families, and arms that have some of them.

Nothing of the test is read. Arms walk forward in the booster's period: each of the last `FOLDS` fifths is judged by
boosters that learned from what was before it (the last fifth of that stops them); the last one is the validation
slice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from features.counters.spec import Counter, make_counters
from features.pairing.groups import Groups
from features.pairing.pairs import Pairs, make_pairs
from features.pairing.slice import Slice
from features.rows import FeatureSpec, assemble, make_spec
from features.schema import F32, F64, I64, Catalog
from features.settings import CounterSettings
from features.state.store import State
from ranker.config import Config
from ranker.metrics.interval import relative_uplift
from ranker.metrics.pair_accuracy import right_by_user
from ranker.training.arms import of_kind
from ranker.training.booster import fit_booster
from ranker.training.prepared import prepare

#: how many fifths of the booster's period are judged
FOLDS = 2
#: of what lies before a fifth, the last part, which stops the trees
STOPS = 0.2


class Family(NamedTuple):
    """Columns that belong together."""

    counters: list[CounterSettings]
    columns: list[str]  # plain ones


#: gives a family for a catalogue and grades; nothing where it has no columns on that log
MakeFamily = Callable[[Catalog, tuple[str, ...]], Family]


@dataclass(frozen=True, slots=True)
class Fold:
    """Three runs of groups, one after the other: to learn from, to stop by, to judge."""

    groups: tuple[Groups, Groups, Groups]
    rows: tuple[F32, F32, F32]  # [n, c] of all columns
    pairs: tuple[Pairs, Pairs, Pairs]


@dataclass(frozen=True, slots=True)
class Study:
    """A log and the columns of all families."""

    config: Config
    spec: FeatureSpec
    names: dict[str, list[str]]  # the columns of each family
    folds: list[Fold]
    n_users: int

    @classmethod
    def of(cls, config: Config, families: dict[str, MakeFamily]) -> "Study":
        """Import the log, and make the rows of the folds. A column that two families have is the first one's."""
        prepared = prepare(config)
        log, catalog, grades = prepared.log.until(prepared.split.t1), prepared.catalog, config.grade_names
        counters: dict[str, Counter] = {}
        plain: dict[str, None] = {}
        names = {}
        for name, make in families.items():
            family = make(catalog, grades)
            own = {c.column: c for c in make_counters(family.counters, log, catalog, grades)}
            counters = own | counters
            plain |= dict.fromkeys(family.columns)
            names[name] = [*own, *family.columns]
        order = tuple(counters.values())
        spec = make_spec(order, catalog, config.time.zone, list(plain))
        state = State.build(prepared.log.until(prepared.split.t2), catalog, order, grades)
        mine = prepared.groups.of("booster")
        through = np.cumsum(np.diff(mine.requests.offsets)) / len(mine.grade)
        starts = [1 - (FOLDS - k) / 5 for k in range(FOLDS)]
        folds = []
        for start in starts:
            masks = (
                through <= (1 - STOPS) * start,
                (through > (1 - STOPS) * start) & (through <= start),
                (through > start) & (through <= start + 0.2 + 1e-9),
            )
            learn, stop, judge = (mine.select(mask) for mask in masks)
            rows = tuple(assemble(state, spec, g.requests) for g in (learn, stop, judge))
            pairs = prepared.training_pairs(learn, 0), *(shown_pairs(g, prepared.weights) for g in (stop, judge))
            folds.append(Fold((learn, stop, judge), rows, pairs))
        return cls(config, spec, names, folds, catalog.n_users)

    def columns(self, families: Sequence[str]) -> list[str]:
        """Return the columns of families, each once."""
        return list(dict.fromkeys(name for family in families for name in self.names[family]))

    def right(self, columns: list[str], seeds: Sequence[int]) -> tuple[F64, F64]:
        """Return float64[seeds, users] weight of the right pairs of an arm, ties one half, and [users] of all pairs."""
        at = [self.spec.columns.index(name) for name in columns]
        categories = [name for name in columns if name in self.spec.categorical]
        right, total = np.zeros((len(seeds), self.n_users)), np.zeros(self.n_users)
        for fold in self.folds:
            slices = [
                Slice(rows[:, at], g.requests.row_request(), pairs, g.grade)
                for g, rows, pairs in zip(fold.groups, fold.rows, fold.pairs, strict=True)
            ]
            user = users_of(fold.groups[2])
            for k, seed in enumerate(seeds):
                booster = fit_booster(columns, categories, slices[0], slices[1], self.config.booster, seed)
                score = np.asarray(booster.predict(slices[2].matrix, raw_score=True))
                found = right_by_user(score, fold.pairs[2], user, self.n_users)
                right[k] += found[0] + found[1] / 2
            total += found[2]
        return right[:, total > 0], total[total > 0]

    def gain(self, base: tuple[F64, F64], columns: list[str], seeds: Sequence[int]) -> dict[str, Any]:
        """Return how much more right the arm of some columns is than `base`, what `right` gave for another one."""
        right, total = self.right(columns, seeds)
        found = relative_uplift(base[0][None], right[None])
        accuracy = float(right.mean(axis=0).sum() / total.sum())
        return {
            "pair_accuracy": accuracy, "columns": len(columns), "gain": found.uplift, "ci95": [found.low, found.high],
            "error": found.error,
        }  # fmt: skip


def shown_pairs(groups: Groups, weights: F64) -> Pairs:
    """Return the shown pairs of groups, or the sampled ones where nothing was shown."""
    return of_kind(make_pairs(groups, weights), "shown")


def users_of(groups: Groups) -> I64:
    """Return int64[n], the user of each row."""
    return groups.requests.user[groups.requests.row_request()].astype(np.int64)
