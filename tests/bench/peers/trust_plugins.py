"""Plugins of the `trust` benchmark.

Of its own worlds: one that knows a part of the users' taste, and three columns that know nothing. Of logs on disk:
honest plugins of every kind, which the leak controls must let pass.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from leaky import Leaky
from trust_world import DIMENSIONS, ITEMS, TRAIN_USERS, TRAINING, World

from features.baselines import ALS, Noise
from features.plugin import FitData
from features.schema import DAY, F32, HOUR, Requests
from features.state.histories import Histories


class Simulated:
    """A plugin of a world and of a draw of its test users, in memory alone."""

    columns: tuple[str, ...] = ("x",)

    def __init__(self, world: World, draw: int, users: int) -> None:
        self.world, self.draw, self.users = world, draw, users
        self.seed = 0

    def fit(self, data: FitData) -> None:
        """Take the seed: a fit's luck is all that it has of its own."""
        self.seed = data.seed

    def save(self, folder: Path) -> None:
        """Never asked for."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Never asked for."""
        raise NotImplementedError


class Knows(Simulated):
    """A dot product with a share of each user's taste; the rest is a taste that the user does not have.

    The share is the fit's luck: normal, with the setting's mean and standard deviation, within [0, 1].
    """

    def fit(self, data: FitData) -> None:
        """Draw the share, and the vectors of all users."""
        setting = self.world.setting
        rng = np.random.default_rng([self.world.seed, 4, data.seed if setting.fresh else 0])
        share = float(np.clip(rng.normal(setting.gain, setting.luck), 0, 1))
        own = [self.world.tastes(TRAINING, TRAIN_USERS), self.world.tastes(self.draw, self.users)]
        # Of other test users the luck is another one, also where all fits are the same.
        others = [rng, np.random.default_rng([self.world.seed, 5, data.seed if setting.fresh else 0, self.draw])]
        noise = [r.normal(size=(len(taste), DIMENSIONS)) for r, taste in zip(others, own, strict=True)]
        self.vectors = share * np.concatenate(own) + np.sqrt(1 - share**2) * np.concatenate(noise)

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1], NaN for the items that the plugin does not know."""
        users, items = self.vectors[requests.user[requests.row_request()]], self.world.items["taste"][requests.item]
        dot = np.einsum("nd,nd->n", users, items)
        return np.where(self.world.items["known"][requests.item], dot, np.nan)[:, None].astype(np.float32)


class NoiseColumn(Simulated):
    """Noise of each candidate, drawn anew by each fit."""

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]."""
        noise = Noise()
        noise.seed = self.seed
        return noise.values(requests, histories)


class ConstantColumn(Simulated):
    """Noise of each group, equal for its members: by its user and its time."""

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]."""
        noise, groups = Noise(), len(requests)
        noise.seed = self.seed
        one_each = replace(requests, offsets=np.arange(groups + 1), item=np.zeros(groups, np.int32))
        return noise.values(one_each, histories)[requests.row_request()]


class PopularColumn(Simulated):
    """How often an item is shown, which says nothing of how it is liked; fits differ by what they counted."""

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]: log of the count of a log of the fit's own."""
        shown = self.world.items["shown"]
        counts = np.random.default_rng([self.world.seed, 6, self.seed]).poisson(20 * ITEMS * shown / shown.sum())
        return np.log1p(counts)[requests.item, None].astype(np.float32)


#: columns whose uplift must be none
USELESS: dict[str, type[Simulated]] = {
    "noise": NoiseColumn,
    "constant_in_group": ConstantColumn,
    "popularity_like": PopularColumn,
}


class Before(Leaky):
    """Honest: a figure of the user's events before `as_of`, less a lag."""

    lag: ClassVar[int] = 0

    def of(self, user: int, item: int, as_of: int, histories: Histories) -> float:
        """Return it."""
        start, stop = histories.before(np.array([user], np.int32), np.array([as_of - self.lag]))
        rows = slice(int(start[0]), int(stop[0]))
        return self.figure(item, as_of, histories.item[rows], histories.grade[rows], histories.ts[rows])

    def figure(self, item: int, as_of: int, items: Any, grades: Any, ts: Any) -> float:
        """Return the figure of the visible events."""
        raise NotImplementedError


class MeanGrade(Before):
    """The user's mean grade; NaN without events."""

    def figure(self, item: int, as_of: int, items: Any, grades: Any, ts: Any) -> float:
        """Return it."""
        return float(np.mean(grades)) if len(grades) else np.nan


class MeanGradeLater(MeanGrade):
    """The same, a day late."""

    lag = DAY


class LastGrade(Before):
    """The grade that the user gave the item last."""

    def figure(self, item: int, as_of: int, items: Any, grades: Any, ts: Any) -> float:
        """Return it, NaN where they never met: for most candidates."""
        mine = grades[items == item]
        return float(mine[-1]) if len(mine) else np.nan


class TimesMet(Before):
    """How often the user met the item."""

    def figure(self, item: int, as_of: int, items: Any, grades: Any, ts: Any) -> float:
        """Return it."""
        return float(np.sum(items == item))


class HoursSince(Before):
    """Hours since the user's last event."""

    def figure(self, item: int, as_of: int, items: Any, grades: Any, ts: Any) -> float:
        """Return it, NaN without one."""
        return (as_of - int(ts[-1])) / HOUR if len(ts) else np.nan


class Decayed(Before):
    """The user's grades, the older the less they weigh: a sum that float32 rounds."""

    def figure(self, item: int, as_of: int, items: Any, grades: Any, ts: Any) -> float:
        """Return it."""
        weights = np.float32(0.5) ** ((as_of - ts) / np.float32(DAY))
        return float((weights * grades).sum(dtype=np.float32))


class ItemMean(Leaky):
    """The item's mean grade of the towers' period."""

    def fit(self, data: FitData) -> None:
        """Count; an item without an event has none."""
        n = data.catalog.n_items
        count = np.bincount(data.log.item, minlength=n)
        total = np.bincount(data.log.item, data.log.grade, n)
        self.item_values = np.divide(total, count, out=np.full(n, np.nan), where=count > 0).astype(np.float32)

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]."""
        return self.item_values[requests.item, None]


class ItemWins(ItemMean):
    """The item's share of the towers' pairs that it wins."""

    def fit(self, data: FitData) -> None:
        """Count pairs."""
        n, item = data.catalog.n_items, data.groups.requests.item
        wins, losses = (np.bincount(item[rows], data.pairs.weight, n) for rows in (data.pairs.winner, data.pairs.loser))
        self.item_values = ((wins + 1) / (wins + losses + 2)).astype(np.float32)


class Drawn(ItemMean):
    """A random number of each item, by the seed."""

    def fit(self, data: FitData) -> None:
        """Draw."""
        self.item_values = np.random.default_rng(data.seed).normal(size=data.catalog.n_items).astype(np.float32)


class AllMissing(Leaky):
    """A column that is NaN everywhere."""

    def of(self, user: int, item: int, as_of: int, histories: Histories) -> float:
        """Return NaN."""
        return np.nan


class UnsteadyMean(ItemMean):
    """The item's mean grade with luck that no seed tells, and declared so."""

    deterministic = False

    def fit(self, data: FitData) -> None:
        """Count, and add the luck."""
        super().fit(data)
        luck = np.random.default_rng().normal(0, 0.1, len(self.item_values))
        self.item_values = (self.item_values + luck).astype(np.float32)


class UnsteadyALS(ALS):
    """ALS from a start that no seed tells: what a fit on several threads or an accelerator is like."""

    deterministic = False

    def fit(self, data: FitData) -> None:
        """Fit with a seed of its own."""
        seed = int(np.random.default_rng().integers(2**31))
        super().fit(replace(data, seed=seed))


#: what stands in the TOML of a log on disk, by name
HONEST: dict[str, dict[str, Any]] = {
    **{
        name: {"class": f"trust_plugins:{kind.__name__}"}
        for name, kind in {
            "mean_grade": MeanGrade,
            "mean_grade_later": MeanGradeLater,
            "last_grade": LastGrade,
            "times_met": TimesMet,
            "hours_since": HoursSince,
            "decayed": Decayed,
            "item_mean": ItemMean,
            "item_wins": ItemWins,
            "drawn": Drawn,
            "all_missing": AllMissing,
            "unsteady_mean": UnsteadyMean,
        }.items()
    },
    "unsteady_als": {"class": "trust_plugins:UnsteadyALS", "factors": 8, "iterations": 5},
    "als": {"class": "features.baselines:ALS", "factors": 16},
    "als_daily": {"class": "features.baselines:ALS", "factors": 8, "lag": "1d"},
    "noise": {"class": "features.baselines:Noise"},
    "only_known": {"class": "leaky:OnlyKnown", "factors": 8},
}


def as_toml(plugins: dict[str, dict[str, Any]]) -> str:
    """Return the tables of plugins."""
    lines = [f"[plugins.{n}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in p.items()) for n, p in plugins.items()]
    return "\n".join(lines)
