"""Logs of known truth for the `trust` benchmark: a fixed training log, and new test users as often as one likes.

A user likes an item by its quality, which the base's columns tell, and by their common taste, which only a plugin can
know: u = quality + TASTE · taste + luck, cut into three grades. A list has SIZE items, and some users have far more
lists than others. Nothing else of an item or a user matters: popularity decides only what is shown.
"""

import tomllib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from features.pairing.groups import make_groups
from features.pairing.pairs import weight_table
from features.pairing.split import Split
from features.rows import make_spec
from features.schema import DAY, F64, HOUR, SECOND, Attribute, Catalog, EventLog, empty_log
from features.state.store import State
from ranker.config import Config
from ranker.settings import UpliftSettings
from ranker.training.prepared import Prepared

TOML = """
name = "trust"
events = {source = "none", request_id = "request"}
grades = [{name = "skip", when = "true"}, {name = "listen", when = "true"}, {name = "like", when = "true"}]
features = {columns = ["item_price", "item_length", "item_genre", "user_country", "hour"]}
booster = {trees = 40, stop_after = 15, params = {num_threads = 1}}
"""
START = 1_700_000_000 * SECOND
#: t1, t2 and t3
T1, T2, T3 = (START + days * DAY for days in (2, 22, 27))
ITEMS, DIMENSIONS, SIZE, COUNTRIES = 150, 3, 6, 5
TASTE, LUCK, CUTS = 0.9, 0.6, (0.3, 1.6)
#: who trains the booster, and how many lists a user has in the mean
TRAIN_USERS, LISTS = 60, 3.0
#: the draw that the training's users are
TRAINING = 0


@dataclass(frozen=True, slots=True)
class Setting:
    """What a world and its plugin are like."""

    name: str
    gain: float = 0.0  # mean share of the users' taste that a fit of the plugin knows
    luck: float = 0.0  # its standard deviation over fits
    fresh: bool = True  # what a fit does not know differs from fit to fit; else all fits are the same
    tied: bool = False  # attributes have few levels: many pairs tie without the plugin
    missing: float = 0.0  # share of attributes, and of the plugin's items, that are NaN


@dataclass(frozen=True)
class World:
    """The training log of a seed, and the tastes of any draw of users."""

    setting: Setting
    seed: int

    @cached_property
    def items(self) -> dict[str, Any]:
        """Attributes, tastes and chances of the items, by name."""
        rng = np.random.default_rng([self.seed, 1])
        price, length, genre = rng.normal(size=ITEMS), rng.normal(size=ITEMS), rng.integers(0, 4, ITEMS)
        if self.setting.tied:
            price, length, genre = np.sign(np.round(price / 2)), np.sign(np.round(length / 2)), genre // 3 * 3
        quality = 0.6 * price + 0.4 * length + 0.3 * (genre - 1.5)
        for numbers in (price, length):
            numbers[rng.random(ITEMS) < self.setting.missing] = np.nan
        taste = rng.normal(size=(ITEMS, DIMENSIONS)) / np.sqrt(DIMENSIONS)
        shown = 1 / (1 + rng.permutation(ITEMS)) ** 0.7
        known = rng.random(ITEMS) >= self.setting.missing
        attributes = {"price": price, "length": length, "genre": genre, "country": rng.integers(0, COUNTRIES, 64)}
        return attributes | {"quality": quality, "taste": taste, "shown": shown, "known": known}

    def tastes(self, draw: int, users: int) -> F64:
        """Return float64[users, DIMENSIONS] of the users of a draw."""
        rng = np.random.default_rng([self.seed, 2, draw])
        return rng.normal(size=(users, DIMENSIONS)) * rng.uniform(0.5, 1.5, (users, 1))

    def lists(self, draw: int, users: int, start: int, end: int, mean: float) -> dict[str, Any]:
        """Return what the users of a draw are shown and do in a period: the columns of a log, list by list."""
        rng = np.random.default_rng([self.seed, 3, draw, start // DAY])
        count = np.minimum(np.ceil(mean * 0.4 * (rng.pareto(1.7, users) + 1)), 60).astype(int)
        user = np.repeat(np.arange(users), count)
        keys = rng.random((len(user), ITEMS)) ** (1 / self.items["shown"])  # Efraimidis and Spirakis
        item = np.argpartition(-keys, SIZE, axis=1)[:, :SIZE]
        taste = np.einsum("gd,gkd->gk", self.tastes(draw, users)[user], self.items["taste"][item])
        liking = self.items["quality"][item] + TASTE * taste + rng.logistic(0, LUCK, item.shape)
        ts = rng.integers(start, end - HOUR, len(user))[:, None] + np.arange(SIZE) * SECOND
        return {"user": user, "item": item, "ts": ts, "grade": np.searchsorted(CUTS, liking.ravel())}

    def log(self, draw: int, users: int) -> EventLog:
        """Return the training's events and those of so many test users of a draw, who come behind its users."""
        parts = [self.lists(TRAINING, TRAIN_USERS, START, T1, 1.0), self.lists(TRAINING, TRAIN_USERS, T1, T2, LISTS)]
        test = self.lists(draw, users, T2, T3, LISTS)
        parts.append(test | {"user": test["user"] + TRAIN_USERS})
        user = np.concatenate([p["user"] for p in parts])
        item, ts, grade = (np.concatenate([p[name].ravel() for p in parts]) for name in ("item", "ts", "grade"))
        order = np.argsort(ts, kind="stable")
        n = len(order)
        return replace(
            empty_log((), n),
            user=np.repeat(user, SIZE)[order].astype(np.int32),
            item=item[order].astype(np.int32),
            ts=ts[order].astype(np.int64),
            grade=grade[order].astype(np.int8),
            organic=np.zeros(n, np.int8),
            request=np.repeat(np.arange(len(user)), SIZE)[order].astype(np.int64),
        )

    def prepared(self, draw: int, users: int, uplift: UpliftSettings, work: Path) -> Prepared:
        """Return it as `ranker.training.prepared.prepare` would of a log on disk. work: a folder for what is fitted."""
        config = Config(**tomllib.loads(TOML)).model_copy(update={"uplift": uplift})
        config._path = work / "trust.toml"
        log, catalog, split = self.log(draw, users), self._catalog(users), Split(START, T1, T2, T3, 0.2)
        grades = config.grade_names
        return Prepared(
            config=config,
            key=f"{self} {draw} {users}",
            database=work / "none",
            log=log,
            catalog=catalog,
            split=split,
            groups=make_groups(log, config.pairing, split),
            weights=weight_table({}, grades, negatives=False),
            state=State.build(log, catalog, (), grades),
            counters=(),
            spec=make_spec((), catalog, "UTC", config.features.columns),
            places=None,
            exposure=None,
            recorded={},
            texts=(),
        )

    def _catalog(self, users: int) -> Catalog:
        n = TRAIN_USERS + users
        items = [_number(name, self.items[name]) for name in ("price", "length")]
        items.append(_category("genre", self.items["genre"], 4))
        country = _category("country", np.resize(self.items["country"], n), COUNTRIES)
        return Catalog(
            user_ids=np.arange(n), item_ids=np.arange(ITEMS), item_attributes=tuple(items), user_attributes=(country,)
        )


def _number(name: str, values: F64) -> Attribute:
    return Attribute(name, "numeric", numbers=values.astype(np.float32))


def _category(name: str, codes: Any, n: int) -> Attribute:
    values = tuple(str(k) for k in range(n))
    return Attribute(name, "categorical", codes=codes.astype(np.int32), values=values)
