"""A seeded world with a known answer: users and items have a latent taste, and feedback follows from it.

`make_world(seed)` gives a log in which the right ranking is known: for any user, the items of the user's own
taste come before all others (`World.affinity` is the expected grade). Tastes are hidden: no attribute tells
them (a `genre` tells them half of the time), so counters of items and a matrix factorisation both have
something to learn.

`make_bundle(world)` trains a small ranker on it (counters, ALS, 20 trees) and gives the Bundle in memory;
`write_world_bundle(world, folder)` writes the same to disk.
"""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import lightgbm as lgb
import numpy as np
import pyarrow as pa

from features.baselines import ALS
from features.counters.spec import make_counters
from features.log.recorded import Recorded
from features.pairing.groups import Groups, make_groups
from features.pairing.pairs import make_pairs, weight_table
from features.pairing.split import Split, make_split
from features.plugin import FeaturePlugin, FitData
from features.rows import FeatureSpec, make_spec
from features.schema import DAY, F64, HOUR, I32, MINUTE, SECOND, Attribute, Catalog, EventLog, Ids, Requests
from features.state.store import State
from ranker.bundle import Bundle, write_bundle
from ranker.candidates.configured import Sources, configured_sources
from ranker.candidates.cooccurrence import Cooccurrence
from ranker.candidates.gathering import candidates_of, source_columns
from ranker.columns import columns_of, demand, full_matrix, with_sources
from ranker.config import Config, load_config, wanted_floor
from ranker.request import Request

START = 1_700_000_000 * SECOND
SPAN = 30 * DAY
GRADES = ("skip", "listen", "like")
#: chance of each grade for an item of the user's own taste, and for any other
OWN, OTHER = (0.1, 0.3, 0.6), (0.85, 0.13, 0.02)
TASTES = 4
PER_REQUEST = 8

TOML = """
name = "world"

[events]
source = "events.parquet"
feedback = {play = "play"}

[[grades]]
name = "skip"
when = "play < 0.3"
[[grades]]
name = "listen"
when = "play < 0.9"
[[grades]]
name = "like"
when = "play >= 0.9"

[sources]
popular = {quota = 20, deadline = "20s"}
cooccurrence = {quota = 20, deadline = "20s"}
nearest = {quota = 20, deadline = "20s"}

[serve]
max_items = 200
max_k = 50
plugin_deadline = "20s"

[ranker]
plugins = ["als"]

[plugins.als]
class = "features.baselines:ALS"
factors = 8
iterations = 10
"""


class World(NamedTuple):
    """log, catalog, grades: what `features` takes. affinity: float64[n_users, n_items], the expected grade (0
    to 2).

    user_taste: int64[n_users]. item_taste: int64[n_items].
    """

    log: EventLog
    catalog: Catalog
    grades: tuple[str, ...]
    affinity: F64
    user_taste: Any
    item_taste: Any


def make_world(
    seed: int = 0,
    *,
    n_users: int = 40,
    n_items: int = 80,
    requests_per_user: int = 12,
    text_ids: bool = False,
    surfaces: tuple[str, ...] = (),
    request_ids: bool = False,
) -> World:
    """Return the world of a seed: n_users · requests_per_user lists of 8 distinct items, shown 10 s apart.

    Items are shown by a popularity that falls like 1 / sqrt(rank). Ids are integers (users 1000, 1007 …,
    items 10, 13 …) or text (`user-0001`, `item-0001`). With `surfaces` each list has one; with `request_ids`
    the log names the lists.
    """
    rng = np.random.default_rng(seed)
    user_taste, item_taste = np.arange(n_users) % TASTES, rng.permutation(n_items) % TASTES
    own = user_taste[:, None] == item_taste[None, :]
    chances = np.where(own[..., None], OWN, OTHER)
    lists = n_users * requests_per_user
    user, item, ts = _shown(rng, n_users, n_items, lists)
    grade = (rng.random(len(user))[:, None] > np.cumsum(chances[user, item], axis=1)).sum(axis=1).clip(0, 2)
    surface = rng.integers(0, len(surfaces), lists) if surfaces else np.full(lists, -1)
    request = np.arange(lists) if request_ids else np.full(lists, -1)
    play = np.array([0.1, 0.6, 1.0])[grade]
    play[rng.random(len(play)) < 0.05] = np.nan
    order = np.argsort(ts, kind="stable")
    log = EventLog(
        user=user[order].astype(np.int32),
        item=item[order].astype(np.int32),
        ts=ts[order],
        grade=grade[order].astype(np.int8),
        surface=np.repeat(surface, PER_REQUEST)[order].astype(np.int16),
        organic=np.zeros(len(order), np.int8),
        request=np.repeat(request, PER_REQUEST)[order].astype(np.int64),
        pairable=np.ones(len(order), bool),
        feedback=play[order, None].astype(np.float32),
        feedback_names=("play",),
    )
    catalog = Catalog(
        user_ids=_ids("user", n_users, 1000, 7, text_ids),
        item_ids=_ids("item", n_items, 10, 3, text_ids),
        surfaces=tuple(sorted(surfaces)),
        item_attributes=_item_attributes(rng, item_taste),
    )
    return World(log, catalog, GRADES, chances @ np.arange(3.0), user_taste, item_taste)


def _shown(rng: np.random.Generator, n_users: int, n_items: int, lists: int) -> tuple[Any, Any, Any]:
    """Return user, item and ts of each impression, list by list. A user's lists are over an hour apart."""
    user = np.tile(np.arange(n_users), lists // n_users)
    popularity = 1 / np.sqrt(1 + np.arange(n_items))
    keys = rng.random((lists, n_items)) ** (1 / popularity)  # Efraimidis and Spirakis: a draw without replacement
    item = np.argsort(-keys, axis=1)[:, :PER_REQUEST]
    turn = np.arange(lists) // n_users
    step = SPAN // (lists // n_users)
    begun = START + turn * step + rng.integers(0, step - 2 * HOUR, lists)
    ts = begun[:, None] + np.arange(PER_REQUEST) * 10 * SECOND
    return np.repeat(user, PER_REQUEST), item.ravel(), ts.ravel().astype(np.int64)


def _ids(side: str, n: int, start: int, step: int, text: bool) -> Ids:
    if text:
        return np.array([f"{side}-{k:04d}" for k in range(n)], dtype=object)
    return np.arange(n, dtype=np.int64) * step + start


def _item_attributes(rng: np.random.Generator, taste: Any) -> tuple[Attribute, ...]:
    n = len(taste)
    genre = np.where(rng.random(n) < 0.5, taste, rng.integers(0, TASTES, n)).astype(np.int32)
    genre[rng.random(n) < 0.1] = -1
    length = rng.lognormal(5, 0.5, n).astype(np.float32)
    length[rng.random(n) < 0.1] = np.nan
    tags = [sorted(rng.choice(5, rng.integers(0, 4), replace=False).tolist()) for _ in range(n)]
    offsets = np.cumsum([0, *map(len, tags)]).astype(np.int64)
    codes = np.array([tag for row in tags for tag in row], np.int32)
    return (
        Attribute("genre", "categorical", codes=genre, values=tuple("abcd")),
        Attribute("length", "numeric", numbers=length),
        Attribute("tags", "multi", codes=codes, offsets=offsets, values=tuple("vwxyz")),
    )


class Parts(NamedTuple):
    """What `make_bundle` trains on the way: the groups of the log and the parts of a bundle."""

    config: Config
    split: Split
    groups: Groups
    state: State
    spec: FeatureSpec
    plugins: dict[str, FeaturePlugin]
    booster: lgb.Booster
    wanted: lgb.Booster
    cooccurrence: Cooccurrence


def train_parts(world: World, config: Config | None = None) -> Parts:
    """Train a small ranker: counters, ALS on the towers' period, 20 trees for each part on the booster's period."""
    config = config or Config(**tomllib.loads(TOML))
    log, catalog = world.log, world.catalog
    split = make_split(config.split, log, "UTC")
    groups = make_groups(log, config.pairing, split)
    counters = make_counters(config.counters, log.until(split.t1), catalog, world.grades)
    state = State.build(log, catalog, counters, world.grades)
    spec = make_spec(counters, catalog, "UTC")
    towers = groups.of("towers")
    pairs = make_pairs(towers, weight_table({}, world.grades, negatives=False))
    plugins: dict[str, FeaturePlugin] = {}
    for name in config.ranker.plugins:
        plugins[name] = ALS(**config.plugins[name].params)
        plugins[name].fit(
            FitData(log=log.until(split.t1), catalog=catalog, groups=towers, pairs=pairs, grades=world.grades, seed=0)
        )
    booster_groups = groups.of("booster")
    matrix = full_matrix(state, spec, plugins, booster_groups.requests)
    booster = _trees(lgb.Dataset(matrix, booster_groups.grade, feature_name=columns_of(spec, plugins)), "regression")
    cooccurrence = Cooccurrence.build(log, catalog.n_items, wanted_floor(config))
    sources = configured_sources(config, state, cooccurrence, plugins)
    wanted = _trees(proposed_data(world, config, sources, state, spec, plugins, booster_groups.requests), "binary")
    return Parts(config, split, groups, state, spec, plugins, booster, wanted, cooccurrence)


def _trees(data: lgb.Dataset, objective: str) -> lgb.Booster:
    params = {"objective": objective, "num_leaves": 15, "verbosity": -1, "num_threads": 1, "min_data_in_leaf": 10}
    return lgb.Booster(model_str=lgb.train(params, data, 20).model_to_string())


def proposed_data(
    world: World,
    config: Config,
    sources: Sources,
    state: State,
    spec: FeatureSpec,
    plugins: dict[str, FeaturePlugin],
    requests: Requests,
) -> lgb.Dataset:
    """What the sources propose as of each request, and whether it is of the user's taste, beyond its demand."""
    blocks, labels = [], []
    for user, as_of, surface in zip(requests.user, requests.as_of, requests.surface, strict=True):
        request = Request(int(user), int(as_of), surface=int(surface), state=state)
        candidates, scores = candidates_of(sources, request, config)
        matrix = full_matrix(state, spec, plugins, request.requests(candidates.item))
        blocks.append(with_sources(matrix, scores))
        labels.append(world.user_taste[user] == world.item_taste[candidates.item])
    names, rows = [*columns_of(spec, plugins), *source_columns(sources)], np.concatenate(blocks)
    return lgb.Dataset(rows, np.concatenate(labels), feature_name=names, init_score=demand(rows, names))


def bundle_of(parts: Parts) -> Bundle:
    """Return the bundle of trained parts, in memory."""
    p = parts
    columns = tuple(columns_of(p.spec, p.plugins))
    return Bundle(
        folder=Path("in-memory"),
        version="world",
        config=p.config,
        columns=columns,
        spec=p.spec,
        state=p.state,
        plugins=p.plugins,
        booster=p.booster,
        wanted=p.wanted,
        cooccurrence=p.cooccurrence,
    )


def make_bundle(world: World) -> Bundle:
    """Train and return a bundle in memory."""
    return bundle_of(train_parts(world))


def write_world_bundle(parts: Parts, folder: Path, recorded: Recorded | None = None, toml: str = TOML) -> None:
    """Write trained parts as a bundle to `folder` (its TOML lies beside it)."""
    path = folder.parent / "world.toml"
    path.write_text(toml)
    config = load_config(path)
    p = parts
    write_bundle(
        folder,
        config=config,
        spec=p.spec,
        state=p.state,
        plugins=p.plugins,
        booster=p.booster,
        wanted=p.wanted,
        cooccurrence=p.cooccurrence,
        measured={},
        importance={"liked": {"rows": 0, "columns": {}}},
        split=p.split,
        recorded=recorded or {},
    )


def with_config(bundle: Bundle, **tables: Any) -> Bundle:
    """Return a bundle with other tables of its configuration, for example `serve=ServeSettings(max_k=3)`."""
    return replace(bundle, config=bundle.config.model_copy(update=tables))


def right_order(world: World, user: int, item: I32) -> F64:
    """Return the expected grade of each item for a user: what a perfect ranker sorts by."""
    return world.affinity[user, item]


LOGGED = """
name = "world"
[data]
root = "."
[events]
source = "log.parquet"
ts = "make_timestamp(ts)"
{request}
[events.feedback]
play = "play"
[[grades]]
name = "skip"
when = "play < 0.3"
[[grades]]
name = "listen"
when = "play >= 0.3"
[[grades]]
name = "like"
when = "play >= 0.9"
[pairing]
window = "30m"
{pairing}
[plugins.noise]
class = "features.baselines:Noise"
[plugins.als]
class = "features.baselines:ALS"
factors = 16
[ranker]
plugins = ["als"]
[booster]
trees = 60
stop_after = 10
[uplift]
seeds = [0, 1, 2]
fits = 2
[serve]
plugin_deadline = "20s"
"""


def write_world(
    folder: Path, pairing: str = "", request: str = "", where: str = "true", rows: str = "", **world: Any
) -> Path:
    """Write a world's log as Parquet and its TOML; return the TOML. rows: a SELECT over the log's columns."""
    log = make_world(7, n_users=60, requests_per_user=20, **world).log
    shown = pa.table(  # noqa: F841  (DuckDB reads it by its name)
        {"user_id": log.user, "item_id": log.item, "ts": log.ts, "play": log.feedback[:, 0], "request": log.request}
    )
    rows = f"{rows or 'SELECT *'} FROM (SELECT * REPLACE (nullif(play, 'nan'::FLOAT) AS play) FROM shown WHERE {where})"
    duckdb.sql(f"COPY ({rows}) TO '{folder}/log.parquet'")
    (folder / "pairlift.toml").write_text(LOGGED.format(pairing=pairing, request=request))
    return folder / "pairlift.toml"


def groups_of(*grades: list[int]) -> Groups:
    """Groups of one user with rows of these grades; -1 is a drawn one."""
    grade = np.array([g for members in grades for g in members], np.int8)
    sizes, n = np.array([len(members) for members in grades]), len(grades)
    requests = Requests(
        user=np.zeros(n, np.int32), as_of=np.arange(n, dtype=np.int64) * MINUTE, surface=np.full(n, -1, np.int16),
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), item=np.arange(len(grade), dtype=np.int32),
    )  # fmt: skip
    event = np.where(grade >= 0, np.arange(len(grade)), -1).astype(np.int64)
    return Groups(requests=requests, period=np.ones(n, np.int8), validation=np.zeros(n, bool), grade=grade, event=event)


#: options of networks over histories that fit in seconds, and of towers
SMALL_NETWORK: dict[str, Any] = {
    "width": 16, "heads": 2, "layers": 2, "history": 12, "pretrain_epochs": 2, "finetune_epochs": 1, "threads": 1,
    "batch_tokens": 512, "negatives": 32,
}  # fmt: skip
SMALL_TOWERS: dict[str, Any] = {**SMALL_NETWORK, "teachers": 0}
