"""The bundle of `make bench WHAT=serving`: a large generated world with a bundle as a training would write it.

Run by `serving.py` in a process of its own: FOLDER SCALE. Of scale 1 are 1 million items and as many users with 20
events on average, of whom 40,000 have 256: those alone ask. The ids are integers far apart, so that they are found by
hash. The bundle has 60 features, 10 of them categorical; towers that were fitted on a sample of the log, over the whole
catalogue (what they cost is what counts, but what is near to what must be as of towers: items lie in clusters, by their
topics and makers); and two parts of 300 trees × 63 leaves. FOLDER gets `bundle/` and `askers.npy`, their ids.
"""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np

from features.counters.spec import make_counters
from features.pairing.groups import Groups, make_groups
from features.pairing.pairs import make_pairs, weight_table
from features.pairing.split import Split, make_split
from features.plugin import FeaturePlugin, FitData, plugin_class
from features.rows import FeatureSpec, make_spec
from features.schema import DAY, F32, I32, I64, SECOND, Attribute, Catalog, EventLog, Requests
from features.state.store import State
from ranker.bundle import write_bundle
from ranker.candidates.configured import configured_sources
from ranker.candidates.cooccurrence import Cooccurrence
from ranker.candidates.gathering import candidates_of, source_columns
from ranker.columns import columns_of, demand, full_matrix, with_sources
from ranker.config import Config, load_config, wanted_floor
from ranker.request import Request

ITEMS = USERS = 1_000_000
ASKERS, HISTORY, OTHERS_HAVE = 0.04, 256, 10.17  # 20 events on average
TREES, LEAVES = 300, 63
TOPICS, MAKERS, TASTES = 200, 1000, 3
GRADES = ("skip", "listen", "like")
#: chance of each grade for an item of one of the user's topics, and for any other
OWN, OTHER = (0.15, 0.35, 0.5), (0.7, 0.2, 0.1)
SPAN = 30 * DAY
SURFACES = ("feed", "notification", "related", "search")
#: users whose events the towers are fitted on, groups that the liked part learns from, lists of the wanted part
SAMPLE, GROUPS, LISTS = 600, 6_000, 120

TOML = """
name = "serving"
[events]
source = "events.parquet"
[events.feedback]
play = "play"
[[grades]]
name = "skip"
when = "play < 0.3"
[[grades]]
name = "listen"
when = "play < 0.9"
[[grades]]
name = "like"
when = "play >= 0.9"

[features]
columns = [
    "item_topic", "item_maker", "item_form", "item_language", "item_era", "item_mood", "item_region",
    "item_length", "item_price", "item_quality", "user_country", "user_device", "user_age", "user_tenure",
    "item_age", "hour", "surface",
]
{counters}
[sources]
popular = {{quota = 120}}
cooccurrence = {{quota = 120}}
nearest = {{quota = 380}}

[ranker]
plugins = ["two_tower"]
[plugins.two_tower]
class = "neural.two_tower:TwoTower"
history = 256
teachers = 0
pretrain_epochs = 1
finetune_epochs = 1
retrieval_epochs = 1
retrieval_events = 50000
"""
#: key, event, statistic, spans: 42 columns
COUNTERS = (
    *((["item"], "impression", "count", ["h6h", "h1d", "h7d", "all", "w7d"]),),
    *((["item"], "grade", "mean", ["h6h", "h1d", "h7d", "all"]), (["item"], "like", "rate", ["h1d", "h7d", "all"])),
    *((["item"], "listen", "rate", ["h7d", "all"]), (["item"], "impression", "since", ["all"])),
    *((["user"], "impression", "count", ["h1d", "h7d", "all"]), (["user"], "grade", "mean", ["h1d", "h7d", "all"])),
    *((["user"], "like", "rate", ["h1d", "h7d", "all"]), (["user"], "listen", "rate", ["h7d", "all"])),
    *((["user"], "impression", "since", ["all"]), (["user", "topic"], "impression", "count", ["h7d", "all"])),
    *((["user", "topic"], "grade", "mean", ["h7d", "all"]), (["user", "topic"], "like", "rate", ["h7d", "all"])),
    *((["user", "item"], "impression", "count", ["all"]), (["user", "item"], "grade", "mean", ["all"])),
    *((["user", "item"], "impression", "since", ["all"]), (["maker"], "impression", "count", ["h7d", "all"])),
    *((["maker"], "grade", "mean", ["h7d", "all"]), (["maker"], "like", "rate", ["h7d", "all"])),
)


@dataclass(frozen=True, slots=True)
class World:
    """The log and its catalogue; who asks, as dense indexes."""

    log: EventLog
    catalog: Catalog
    askers: I32


def say(text: str) -> None:
    """Print how far it is, at once."""
    print(f"  {time.strftime('%H:%M:%S')} {text}", flush=True)


def toml() -> str:
    """Return the TOML of the bundle."""
    tables = [
        f"[[counters]]\nkey = {list(key)}\nevent = '{event}'\nstats = ['{stat}']\nspans = {list(spans)}"
        for key, event, stat, spans in COUNTERS
    ]
    return TOML.format(counters="\n".join(tables))


def make_world(scale: float, seed: int = 0) -> World:
    """Return the world of a scale, whose log ends now."""
    rng = np.random.default_rng(seed)
    n_items, n_users = int(ITEMS * scale), int(USERS * scale)
    catalog, topic = _catalog(rng, n_items, n_users)
    askers = np.sort(rng.choice(n_users, int(ASKERS * n_users), replace=False)).astype(np.int32)
    events = rng.poisson(OTHERS_HAVE, n_users)
    events[askers] = HISTORY
    start = int(time.time()) * SECOND - SPAN
    ts = np.sort(rng.integers(0, SPAN, int(events.sum()))) + start
    # Whose event each is: the users in any order over all times, as often as they have events.
    user = rng.permutation(np.repeat(np.arange(n_users, dtype=np.int32), events))
    item, own = _items_of(rng, user, topic, n_users)
    draw = rng.random(len(user), np.float32)
    chances = np.where(own, *(np.cumsum(chance)[:2, None] for chance in (OWN, OTHER))).astype(np.float32)
    grade = ((draw > chances[0]).astype(np.int8) + (draw > chances[1])).astype(np.int8)
    log = EventLog(
        user=user, item=item, ts=ts, grade=grade, surface=rng.integers(0, len(SURFACES), len(user)).astype(np.int16),
        organic=np.zeros(len(user), np.int8), request=np.full(len(user), -1, np.int64),
        pairable=np.ones(len(user), bool), feedback_names=("play",),
        feedback=np.array([0.1, 0.6, 1.0], np.float32)[grade][:, None],
    )  # fmt: skip
    return World(log, catalog, askers)


def _catalog(rng: np.random.Generator, n_items: int, n_users: int) -> tuple[Catalog, I32]:
    """Return the catalogue, and int32[n_items] topics: large ones and small ones, each with makers of its own."""
    topic = (TOPICS * rng.random(n_items) ** 2).astype(np.int32)
    maker = topic * (MAKERS // TOPICS) + rng.integers(0, MAKERS // TOPICS, n_items).astype(np.int32)
    # A form, a language … that most items of a maker share.
    shared = {name: rng.integers(0, n, MAKERS) for name, n in (("form", 4), ("language", 20), ("era", 12))}
    shared |= {name: rng.integers(0, n, MAKERS) for name, n in (("mood", 30), ("region", 40))}
    codes = {"topic": topic, "maker": maker}
    for name, of_maker in shared.items():
        odd = rng.random(n_items) < 0.2
        codes[name] = np.where(odd, rng.integers(0, of_maker.max() + 1, n_items), of_maker[maker]).astype(np.int32)
    items = tuple(_category(name, code) for name, code in codes.items())
    numbers = {name: rng.lognormal(3, 0.5, n_items).astype(np.float32) for name in ("length", "price", "quality")}
    users = {name: rng.integers(0, n, n_users).astype(np.int32) for name, n in (("country", 50), ("device", 6))}
    more = {name: rng.integers(16, 80, n_users).astype(np.float32) for name in ("age", "tenure")}
    return Catalog(
        user_ids=_ids(rng, n_users),
        item_ids=_ids(rng, n_items),
        surfaces=SURFACES,
        item_attributes=(*items, *(Attribute(name, "numeric", numbers=n) for name, n in numbers.items())),
        user_attributes=(
            *(_category(name, code) for name, code in users.items()),
            *(Attribute(name, "numeric", numbers=n) for name, n in more.items()),
        ),
    ), topic


def _category(name: str, codes: I32) -> Attribute:
    return Attribute(name, "categorical", codes=codes, values=tuple(f"{name}{k:04}" for k in range(codes.max() + 1)))


def _ids(rng: np.random.Generator, n: int) -> I64:
    """Return n distinct integers of 5 bytes on the wire, far apart."""
    return np.sort((rng.permutation(n).astype(np.int64) << 14) + rng.integers(0, 1 << 14, n) + (1 << 32))


def _items_of(rng: np.random.Generator, user: I32, topic: I32, n_users: int) -> tuple[I32, Any]:
    """Return the item of each event, and whether it is of the user's topics: of those three of five are, by choice.

    Within a topic and over all, few items are met often.
    """
    tastes = (TOPICS * rng.random((n_users, TASTES)) ** 2).astype(np.int32)
    by_topic = np.argsort(topic, kind="stable").astype(np.int32)
    bounds = np.searchsorted(topic[by_topic], np.arange(TOPICS + 1))
    chosen = tastes[user, rng.integers(0, TASTES, len(user))]
    size = np.diff(bounds)[chosen]
    at = bounds[:-1][chosen] + (size * rng.random(len(user)) ** 3).astype(np.int64)
    any_item = rng.permutation(len(topic)).astype(np.int32)[(len(topic) * rng.random(len(user)) ** 3).astype(np.int64)]
    item = np.where((rng.random(len(user)) < 0.6) & (size > 0), by_topic[np.minimum(at, len(topic) - 1)], any_item)
    return item, (tastes[user] == topic[item][:, None]).any(axis=1)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The part of the log that is learned from."""

    split: Split
    groups: Groups
    log: EventLog


def sample_of(world: World, config: Config) -> Sampled:
    """Return the events of some askers, and their groups."""
    some = np.zeros(world.catalog.n_users, bool)
    some[np.random.default_rng(1).permutation(world.askers)[:SAMPLE]] = True
    log = world.log.select(np.flatnonzero(some[world.log.user]))
    split = make_split(config.split, log, "UTC")
    return Sampled(split, make_groups(log, config.pairing, split), log)


def fitted_towers(world: World, sample: Sampled, config: Config) -> FeaturePlugin:
    """Fit the towers on the sample, over the whole catalogue."""
    plugin = plugin_class(config.plugins["two_tower"].path)(**config.plugins["two_tower"].params)
    groups = sample.groups.of("towers")
    pairs = make_pairs(groups, weight_table({}, GRADES, negatives=False))
    log = sample.log.until(sample.split.t1)
    plugin.fit(FitData(log=log, catalog=world.catalog, groups=groups, pairs=pairs, grades=GRADES, seed=0))
    return plugin


def grown(rows: F32, label: Any, names: list[str], categorical: Sequence[str]) -> lgb.Booster:
    """Return a booster of exactly TREES × LEAVES."""
    params = {
        "objective": "regression", "num_leaves": LEAVES, "min_data_in_leaf": 10, "learning_rate": 0.03,
        "feature_fraction": 0.7, "verbosity": -1, "num_threads": 1,
    }  # fmt: skip
    data = lgb.Dataset(rows, label, feature_name=names, categorical_feature=list(categorical))
    text = lgb.train(params, data, TREES).model_to_string()
    found = text.count(f"num_leaves={LEAVES}\n")
    if found < TREES:
        raise SystemExit(f"{TREES} trees of {LEAVES} leaves were expected, found {found}")
    return lgb.Booster(model_str=text)


def liked_part(
    state: State, spec: FeatureSpec, plugins: dict[str, FeaturePlugin], groups: Requests, grade: Any
) -> lgb.Booster:
    """Return the booster that orders Rank."""
    matrix = full_matrix(state, spec, plugins, groups)
    return grown(matrix, grade, columns_of(spec, plugins), spec.categorical)


def wanted_part(
    world: World,
    config: Config,
    parts: dict[str, Any],
) -> lgb.Booster:
    """Return the booster that orders Recommend: which of the candidates are of the user's topics, beyond demand."""
    state, spec, plugins = parts["state"], parts["spec"], parts["plugins"]
    sources = configured_sources(config, state, parts["cooccurrence"], plugins)
    topic = world.catalog.item_attribute("topic").codes
    blocks, labels = [], []
    for user in np.random.default_rng(2).permutation(world.askers)[:LISTS].tolist():
        request = Request(user, state.end, state=state)
        candidates, scores = candidates_of(sources, request, config)
        matrix = full_matrix(state, spec, plugins, request.requests(candidates.item))
        blocks.append(with_sources(matrix, scores))
        rows = slice(*(int(bound[0]) for bound in state.histories.before(np.array([user]), np.array([state.end]))))
        often = np.bincount(topic[state.histories.item[rows]], minlength=TOPICS) > HISTORY // 8
        labels.append(often[topic[candidates.item]])
    say(f"a Recommend has {np.mean([len(b) for b in blocks]):.0f} candidates")
    names, rows = [*columns_of(spec, plugins), *source_columns(sources)], np.concatenate(blocks)
    return grown(rows, np.concatenate(labels) - demand(rows, names), names, spec.categorical)


def write(folder: Path, scale: float) -> None:
    """Build the world and write its bundle."""
    config = _config(folder)
    world = make_world(scale)
    say(f"{len(world.log):,} events, of whom {len(world.askers):,} users ask")
    sample = sample_of(world, config)
    towers = fitted_towers(world, sample, config)
    say("the towers are fitted")
    counters = make_counters(config.counters, sample.log.until(sample.split.t1), world.catalog, GRADES)
    state = State.build(world.log, world.catalog, counters, GRADES)
    spec = make_spec(counters, world.catalog, "UTC", config.features.columns)
    cooccurrence = Cooccurrence.build(world.log, world.catalog.n_items, wanted_floor(config))
    say(f"the state is built: {len(spec.columns)} columns, {len(spec.categorical)} of them categorical")
    parts: dict[str, Any] = {
        "spec": spec,
        "state": state,
        "plugins": {"two_tower": towers},
        "cooccurrence": cooccurrence,
    }
    learned = sample.groups.of("booster")
    groups = learned.requests.slice(0, min(GROUPS, len(learned.requests)))
    booster = liked_part(state, spec, parts["plugins"], groups, learned.grade[: len(groups.item)])
    say("the liked part is grown")
    parts |= {"booster": booster, "wanted": wanted_part(world, config, parts)}
    say("the wanted part is grown")
    importance = {"liked": {"rows": 0, "columns": {}}}
    write_bundle(
        folder / "bundle", config=config, measured={}, importance=importance, split=sample.split, recorded={}, **parts
    )
    np.save(folder / "askers.npy", world.catalog.user_ids[world.askers])
    say(f"the bundle is written: {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()) / 2**30:.1f} GiB")


def _config(folder: Path) -> Config:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairlift.toml").write_text(toml())
    return load_config(folder / "pairlift.toml")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    write(Path(sys.argv[1]), float(sys.argv[2]))
