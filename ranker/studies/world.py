"""A generated sequential log of known truth, written as Parquet and TOML as any user's log is.

It answers what no real log can: how much of what there is to know does a ranker have? The expected grade of each event,
as of its list, is known (`truth.parquet`), and where pairs weigh the difference of their grades' ranks no order has a
higher expected PairAccuracy than that by the expected grade. No ranker reaches it, for tastes and moods are hidden.
"""

import json
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import PairliftError
from features.files import written, written_folder
from features.schema import DAY, F64, HOUR, I8, I32, I64, MINUTE, SECOND, Bool
from ranker.studies.simulate import LIST, Items, Met, Users, Visits, simulate

#: of scale 1
USERS, ITEMS, EVENTS = 20_000, 6_000, 2_200_000
#: the fewest of a smaller world
LEAST_USERS, LEAST_ITEMS = 20, 300
#: days of the log, and the first one: Monday, 1 January 2024
DAYS, START = 60, 1_704_067_200 * SECOND
#: numbers of a taste; topics; items of a maker
WIDTH, TOPICS, OF_A_MAKER = 8, 24, 20
#: days until an item is a third as often shown, and how much (as a logarithm) that differs between items
LIFE, LIVES_DIFFER = 8.0, 0.7
#: spread of the logarithm of a user's activity; lists of a sitting, and what is looked for behind each, on average
ACTIVITY, LISTS, SOUGHT = 1.0, 2.5, 1.5
#: the first ids of users and items
FIRST_USER, FIRST_ITEM = 1_000_000, 10
#: share of lists on a large screen, and of items whose topic is not told, of counts that are not known
LARGE, UNTOLD, UNKNOWN = 0.35, 0.2, 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """All that is true of a generated log."""

    catalogue: "Catalogue"
    users: Users
    interest: I64  # [users], the topic that is nearest to their taste at the start
    after: I64  # [topics], what each topic's mood goes on to
    begun: I64  # [r], µs, when each request began
    visits: Visits
    met: Met


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The items as the log tells of them, beside what the simulation needs."""

    items: Items
    maker: I64  # [n]
    told: I64  # [n] topic, -1 where it is not told
    also: I64  # [n] a second tag
    born: F64  # [n], days from START


#: of a world's folder: the scale and the seed that it was made of
MADE_OF = "world.json"


def make_world(folder: Path, scale: float = 1.0, seed: int = 0) -> dict[str, int]:
    """Write the world of a seed to an empty or new folder; return how many users, items and events it has.

    scale: 1 is 20,000 users, 6,000 items and 2.4 million events. Raises PairliftError where something is in the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PairliftError(f"{folder}: an empty folder, or none, was expected for the generated log; name another")
    rng = np.random.default_rng(seed)
    world = live(rng, scale, seed)
    with written_folder(folder) as partial:
        _write(partial, rng, world)
        (partial / MADE_OF).write_text(json.dumps({"scale": scale, "seed": seed}))
    users, items = len(world.users.taste), len(world.catalogue.maker)
    return {"users": users, "items": items, "events": len(world.met.item)}


def live(rng: np.random.Generator, scale: float, seed: int) -> World:
    """Make users, items and requests of a scale, and simulate them. rng: of the seed."""
    born = born_of(rng, scale)
    return replace(born, met=simulate(born.catalogue.items, born.users, born.visits, born.after, seed))


def born_of(rng: np.random.Generator, scale: float) -> World:
    """Make users, items and requests of a scale, before anything is met. rng: of the seed."""
    n_users, n_items = max(round(USERS * scale), LEAST_USERS), max(round(ITEMS * scale), LEAST_ITEMS)
    centre = _unit(rng.standard_normal((TOPICS, WIDTH)))
    catalogue, users, after = _catalogue(rng, n_items, centre), _users(rng, n_users, centre), _after(rng)
    begun, visits = _visits(rng, n_users)
    return World(
        catalogue=catalogue,
        users=users,
        interest=(users.taste @ centre.T).argmax(axis=1),
        after=after,
        begun=begun,
        visits=visits,
        met=Met(np.empty(0, np.int32), np.empty(0, np.int8), np.empty(0)),
    )


def _unit(rows: F64) -> F64:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _after(rng: np.random.Generator) -> I64:
    """Return int64[topics]: what each topic's mood goes on to, in one circle through all."""
    circle = rng.permutation(TOPICS)
    after = np.empty(TOPICS, np.int64)
    after[circle] = np.roll(circle, -1)
    return after


def _catalogue(rng: np.random.Generator, n: int, centre: F64) -> Catalogue:
    maker = rng.integers(0, max(n // OF_A_MAKER, 1), n)
    topic = np.where(rng.random(n) < 0.6, maker * 7 % TOPICS, rng.integers(0, TOPICS, n))
    vector = _unit(centre[topic] + 0.7 * rng.standard_normal((n, WIDTH)) / np.sqrt(WIDTH))
    quality = 0.4 * rng.standard_normal(n) + 0.3 * rng.standard_normal(maker.max() + 1)[maker]
    born, life = rng.uniform(-DAYS / 2, DAYS - 1, n), LIFE * rng.lognormal(0, LIVES_DIFFER, n)
    age = np.arange(DAYS)[:, None] - born  # [days, n]
    alive = np.exp(-np.maximum(age, 0) / life + 0.8 * quality) * (age >= 0)
    alive += 0.02 * alive.mean(axis=1, keepdims=True) * (age >= 0)  # what has faded is met now and then
    length = 0.6 * rng.standard_normal(n)
    items = Items(vector, topic, quality, length, alive.cumsum(axis=1))
    return Catalogue(items, maker, np.where(rng.random(n) < UNTOLD, -1, topic), rng.integers(0, TOPICS, n), born)


def _users(rng: np.random.Generator, n: int, centre: F64) -> Users:
    liked = centre[rng.integers(0, TOPICS, (n, 3))] * np.array([1.0, 0.7, 0.5])[:, None]
    taste = _unit(liked.sum(axis=1) + 0.4 * rng.standard_normal((n, WIDTH)) / np.sqrt(WIDTH))
    evening = 0.6 * centre[rng.integers(0, TOPICS, n)]
    return Users(taste, evening, rng.lognormal(0, 0.5, n))


def _visits(rng: np.random.Generator, n_users: int) -> tuple[I64, Visits]:
    """Return int64[r] when each request began, µs, and the requests: of each user in time order, sittings apart."""
    lists_of_user = EVENTS / USERS / (LIST + SOUGHT)
    active = rng.lognormal(-(ACTIVITY**2) / 2, ACTIVITY, n_users)
    sittings = 2 + rng.poisson(np.maximum(active * lists_of_user / LISTS - 2, 0))
    owner = np.repeat(np.arange(n_users), sittings)
    hour = np.clip(rng.normal(np.where(rng.random(len(owner)) < 0.6, 19.5, 10), 2.5), 0, 23)
    begun = START + rng.integers(0, DAYS, len(owner)) * DAY + (hour * HOUR).astype(np.int64)
    begun = begun[np.lexsort((begun, owner))]
    sitting = np.repeat(np.arange(len(owner)), 1 + rng.poisson(LISTS - 1, len(owner)))
    turn = np.arange(len(sitting)) - np.searchsorted(sitting, sitting)
    ts = np.minimum(begun[sitting] + turn * 4 * MINUTE, START + DAYS * DAY - HOUR)
    order = np.lexsort((ts, owner[sitting]))  # sittings of a busy user overlap
    ts, sitting = ts[order], sitting[order]
    first = np.concatenate([[0], np.cumsum(LIST + rng.poisson(SOUGHT, len(ts)))])
    evening = (ts - START) % DAY >= 18 * HOUR
    return ts, Visits(owner[sitting], sitting, (ts - START) // DAY, evening, rng.random(len(ts)) < LARGE, first)


def _write(folder: Path, rng: np.random.Generator, world: World) -> None:
    events, expected = _events(rng, world)
    tables = {
        "events": events,
        "items": item_table(world.catalogue),
        "users": user_table(rng, world.interest),
        "truth": {"ts": events["ts"], "expected": expected.astype(np.float32)},
    }
    for name, columns in tables.items():
        with written(folder / f"{name}.parquet") as partial:
            pq.write_table(pa.table(columns), partial)
    (folder / "pairlift.toml").write_text((files("ranker.studies") / "world.toml").read_text())


def _events(rng: np.random.Generator, world: World) -> tuple[dict[str, Any], F64]:
    """Return the columns of the log in time order, and the expected grades. No two events have one ts."""
    begun, visits, met = world.begun, world.visits, world.met
    request = np.repeat(np.arange(len(begun)), np.diff(visits.first))
    place = np.arange(len(request)) - visits.first[request]
    ts = begun[request] + place * 12 * SECOND
    order = np.argsort(ts, kind="stable")
    ts = np.maximum.accumulate(ts[order] - np.arange(len(ts))) + np.arange(len(ts))
    request, organic = request[order], place[order] >= LIST
    told = told_of(rng, world, ts, request, place[order], organic, met.item[order], met.grade[order])
    return told, met.expected[order]


def told_of(
    rng: np.random.Generator, world: World, ts: I64, request: I64, place: I64, organic: Bool, item: I32, grade: I8
) -> dict[str, Any]:
    """Return the columns of a log of n events: arrays of n, ts in µs, place from 0 in what a request brought."""
    n = len(ts)
    low, high = np.array([0.0, 0.3, 0.6])[grade], np.array([0.29, 1.0, 1.0])[grade]
    replays = rng.poisson(np.array([0.02, 0.3, 1.5])[grade]).astype(np.float64)
    return {
        "user_id": world.visits.user[request] + FIRST_USER,
        "item_id": item_ids(item),
        "ts": pa.array(ts, pa.timestamp("us", "UTC")),
        "surface": pa.array(np.array(["feed", "search"])[organic.astype(int)]),
        "request_id": pa.array(request, mask=organic),
        "organic": organic,
        "position": pa.array(place + 1, mask=organic),
        "watched": (low + rng.random(n) * (high - low)).astype(np.float32),
        "liked": grade == 2,
        "replays": pa.array(replays, mask=rng.random(n) < UNKNOWN),
        "device": pa.array(np.array(["phone", "tv"])[world.visits.large[request].astype(int)]),
    }


def item_ids(item: I32) -> I64:
    """Return the log's ids of items."""
    return item.astype(np.int64) * 3 + FIRST_ITEM


def item_table(catalogue: Catalogue) -> dict[str, Any]:
    """Return the columns of the items."""
    told, n = catalogue.told, len(catalogue.told)
    topics = np.array([*(f"topic-{t:02d}" for t in range(TOPICS)), None], object)
    tags = [[f"tag-{t}" for t in sorted({int(a), int(b)} - {-1})] for a, b in zip(told, catalogue.also, strict=True)]
    return {
        "item_id": item_ids(np.arange(n, dtype=np.int32)),
        "topic": pa.array(topics[told], pa.string()),
        "maker": [f"maker-{m}" for m in catalogue.maker.tolist()],
        "tags": pa.array(tags, pa.list_(pa.string())),
        "minutes": np.round(8 * np.exp(catalogue.items.length), 1),
    }


def user_table(rng: np.random.Generator, interest: I64) -> dict[str, Any]:
    """Return the columns of the users."""
    n = len(interest)
    said = np.where(rng.random(n) < 0.4, interest, TOPICS)
    topics = np.array([*(f"topic-{t:02d}" for t in range(TOPICS)), None], object)
    return {
        "user_id": np.arange(n) + FIRST_USER,
        "region": [f"region-{r}" for r in rng.integers(0, 8, n).tolist()],
        "interest": pa.array(topics[said], pa.string()),
    }
