"""A seeded world of known truth for lists: what its users want is in `listtruth`, what its log shows of it is here.

`make_list_world(seed)` simulates a feed for 30 days. What was shown, and so what the log knows, a logging policy
decided that is neither random nor perfect: a mixture of the items wanted lately, of a recommender whose tastes are off,
and of some exploration; and a place further down a list is looked at less. Attributes tell a part of the tastes: an
item's genre and author, a user's cohort. Some users and items are new in the held-out future.

`write_list_world` writes log, attributes and TOML for `pairlift train`; `world_case` those of the benchmark `lists`.
"""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from listtruth import DAYS, NEVER, START, T1, T2, WANTED, Items, ListWorld, Users

from features.schema import DAY, F64, I32, I64, MINUTE, SECOND, Bool, empty_log

PER_REQUEST = 10
GENRES, AUTHORS, COHORTS, RANK = 12, 150, 6, 16
#: mean utility, and the standard deviations of its parts
BASE, MOOD, TASTE, QUALITY, DEMAND = -2.8, 0.5, 1.3, 0.7, 0.5
#: days after which half of an item's freshness is left, least and most
FADES = (1.0, 8.0)
#: shares of the logging policy: the lately popular, the recommender; the rest explores
POPULAR, PERSONAL = 0.4, 0.5
#: days after which an event counts half for "lately"; the popular are shown by this power of the count
LATELY, SHARP = 3.0, 1.5
#: standard deviation of the recommender's error in a taste, by that of tastes
OFF = 1.0
#: place k (from 1) is looked at with the chance k ** -LOOKED
LOOKED = 0.25
#: what is wanted is liked with the chance sigmoid(u + LIKED)
LIKED = -0.3
#: requests of a user are at least so far apart
SLOT = 10 * MINUTE

TOML = """
name = "lists"

[events]
source = "events.parquet"
request_id = "request"
position = "place"
feedback = {{play = "play"}}
columns = {{uniform = "uniform"}}

[items]
source = "items.parquet"
[items.columns]
genre = "genre"
author = "author"
length = "length"

[users]
source = "users.parquet"
[users.columns]
cohort = "cohort"

[[grades]]
name = "skip"
when = "play < 0.3"
[[grades]]
name = "listen"
when = "play >= 0.3"
[[grades]]
name = "like"
when = "play >= 0.9"

[split]
t1 = {t1}
t2 = {t2}

[ranker]
plugins = ["{plugin}"]

[plugins.two_tower]
class = "neural.two_tower:TwoTower"
teachers = 0
[plugins.als]
class = "features.baselines:ALS"

[sources]
popular = {{deadline = "20s"}}
cooccurrence = {{deadline = "20s"}}
nearest = {{deadline = "20s"}}

[serve]
plugin_deadline = "20s"
{more}
"""


def make_list_world(
    seed: int = 0,
    *,
    n_users: int = 3000,
    n_items: int = 1500,
    per_user: float = 10.0,
    uniform: float = 0.0,
    positives_only: bool = False,
) -> ListWorld:
    """Return the world of a seed; the same arguments give the same bits.

    per_user: requests of a user who is there from the start, in the mean; each shows 10 items that are new to the user.
    uniform: share of the requests whose items are drawn uniformly, not by the policy; 1 is random traffic.
    positives_only: the log has wanted events alone, and what was skipped counts as not met.
    """
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(GENRES, RANK))
    items = _make_items(rng, n_items, centres)
    users = _make_users(rng, n_users, centres, items)
    steps = rng.normal(0, DEMAND / 2, (GENRES, DAYS + 1))
    steps[:, 0] *= 2
    demand = steps.copy()
    for day in range(1, DAYS + 1):  # a walk that is drawn back, so that its spread stays DEMAND
        demand[:, day] += demand[:, day - 1] * np.sqrt(0.75)
    nothing = ListWorld(
        users=users, items=items, demand=demand, log=empty_log(("play",)), place=np.empty(0, np.int32),
        uniform=np.empty(0, bool),
    )  # fmt: skip
    world = _simulated(rng, nothing, per_user, uniform)
    return _rows(world, world.log.grade >= WANTED) if positives_only else world


def _make_items(rng: np.random.Generator, n: int, centres: F64) -> Items:
    """Six of ten items are there from the start; an author has a genre of choice and a quality."""
    size = rng.dirichlet(np.full(GENRES, 4.0))
    author, of_author = rng.integers(0, AUTHORS, n), rng.choice(GENRES, AUTHORS, p=size)
    genre = np.where(rng.random(n) < 0.8, of_author[author], rng.choice(GENRES, n, p=size))
    good = rng.normal(0, 0.5, AUTHORS)[author] + rng.normal(0, np.sqrt(0.75), n)
    day = np.where(rng.random(n) < 0.6, -rng.exponential(20, n), rng.uniform(0, DAYS, n))
    return Items(
        ids=np.arange(n, dtype=np.int64) * 3 + 10,
        vector=centres[genre] + rng.normal(0, 0.8, (n, RANK)),
        quality=QUALITY * good,
        born=START + (day * DAY).astype(np.int64),
        fades=rng.uniform(*FADES, n),
        genre=genre.astype(np.int32),
        author=author.astype(np.int32),
    )


def _make_users(rng: np.random.Generator, n: int, centres: F64, items: Items) -> Users:
    """A taste is a few genres and something of one's own. Three of ten users turn to others, and three join later."""
    liking = np.stack([rng.dirichlet(np.full(GENRES, 0.25), n) for _ in range(2)])
    taste = liking @ centres + rng.normal(0, 0.2, (2, n, RANK))
    taste -= taste.mean(axis=(0, 1))  # what all like alike is quality
    taste *= TASTE / (taste[0] @ items.vector.T).std()
    turns = rng.random(n) < 0.3
    cohort = np.where(rng.random(n) < 0.6, liking[0].argmax(axis=1) * COHORTS // GENRES, rng.integers(0, COHORTS, n))
    joined = np.where(rng.random(n) < 0.3, rng.uniform(0, DAYS - 1, n), 0) * DAY
    return Users(
        ids=np.arange(n, dtype=np.int64) * 7 + 1000,
        taste=taste,
        turn=np.where(turns, START + rng.integers(0, DAYS, n) * DAY, NEVER),
        mood=BASE + rng.normal(0, MOOD, n),
        cohort=cohort.astype(np.int32),
        joined=START + joined.astype(np.int64),
    )


class Visits(NamedTuple):
    """The requests, a user's in the order of time. `turn` counts those of the user's day."""

    user: I32
    ts: I64
    day: I64
    turn: I64


def _visits(rng: np.random.Generator, users: Users, per_user: float) -> Visits:
    """Some users come far more often than others; every user comes at least once."""
    left = (START + DAYS * DAY - users.joined) // SLOT - 1
    often = np.minimum(per_user * rng.lognormal(-0.32, 0.8, len(left)), 6 * per_user) * left * SLOT / (DAYS * DAY)
    count = 1 + rng.poisson(np.maximum(often - 1, 0))
    user = np.repeat(np.arange(len(left)), count)
    slot = (users.joined[user] - START) // SLOT + 1 + (rng.random(len(user)) * left[user]).astype(np.int64)
    user, slot = np.unique(np.stack([user, slot]), axis=1)
    ts = START + slot * SLOT
    day = (ts - START) // DAY
    _, first, place = np.unique(user * DAYS + day, return_index=True, return_inverse=True)
    return Visits(user.astype(np.int32), ts, day, np.arange(len(user)) - first[place])


def _simulated(rng: np.random.Generator, world: ListWorld, per_user: float, uniform: float) -> ListWorld:
    """Return the world with the log that its policy makes, day by day, and of each day the users' turns.

    for each day:
        lately = wanted events of the days before, decayed
        for each turn of the day (no user has two requests in it):
            items = drawn without replacement by the policy's chances, of what is born and new to the user
            grade: looked at, wanted, liked?
    """
    visits, n = _visits(rng, world.users, per_user), len(world.items.ids)
    is_uniform = rng.random(len(visits.user)) < uniform
    believed = _believed(rng, world.users, world.items)
    item, grade = (np.full((len(visits.user), PER_REQUEST), -1, np.int32) for _ in range(2))
    lately, new = np.zeros(n), np.ones((len(world.users.ids), n), bool)
    place = np.arange(1, PER_REQUEST + 1)
    for day in range(DAYS):
        today = np.flatnonzero(visits.day == day)
        for turn in range(visits.turn[today].max(initial=-1) + 1):
            rows = today[visits.turn[today] == turn]
            user, when = visits.user[rows], visits.ts[rows, None]
            chance = _policy(lately, believed[(visits.ts[rows] >= world.users.turn[user]).astype(int), user])
            chance[is_uniform[rows]] = 1.0
            chance *= new[user] & (world.items.born <= when)
            with np.errstate(divide="ignore"):
                item[rows] = drawn(rng, np.log(chance), PER_REQUEST)
            grade[rows] = _graded(rng, world.chance(user[:, None], item[rows], when), place)
            grade[rows] = np.where(item[rows] < 0, -1, grade[rows])
            shown = item[rows] >= 0
            new[np.repeat(user, shown.sum(axis=1)), item[rows][shown]] = False
        wanted = item[today][grade[today] >= WANTED]
        lately = (lately + np.bincount(wanted, minlength=n)) * 0.5 ** (1 / LATELY)
    return _logged(rng, world, visits, item, grade, is_uniform)


def _believed(rng: np.random.Generator, users: Users, items: Items) -> F64:
    """Return float64[2, n_users, n_items]: what the policy's recommender believes of utility: tastes that are off."""
    off = rng.normal(0, OFF * users.taste.std(), users.taste.shape)
    quality = items.quality + rng.normal(0, QUALITY, len(items.ids))
    return (users.taste + off) @ items.vector.T + quality


def _policy(lately: F64, believed: F64) -> F64:
    """Return float64[u, n_items] chances, up to a factor: a mixture of three."""
    popular = (lately + 1) ** SHARP
    popular /= popular.sum()
    liked = np.exp(believed - believed.max(axis=1, keepdims=True))
    liked /= liked.sum(axis=1, keepdims=True)
    return POPULAR * popular + PERSONAL * liked + (1 - POPULAR - PERSONAL) / len(popular)


def drawn(rng: np.random.Generator, score: F64, n: int) -> I32:
    """Return int32[u, n] drawn without replacement by exp(score) of float64[u, n_items], in the order of the draw.

    An item of score -inf is never drawn; -1 where no item is left. The highest score + Gumbel noise first: see Kool,
    van Hoof, Welling (2019), "Stochastic Beams and Where to Find Them", section 2.
    """
    keys = score + rng.gumbel(size=score.shape)
    order = np.argsort(-keys, axis=1)[:, :n]
    possible = np.take_along_axis(score, order, axis=1) > -np.inf
    return np.where(possible, order, -1).astype(np.int32)


def _graded(rng: np.random.Generator, chance: F64, place: I64) -> I32:
    looked = rng.random(chance.shape) < place**-LOOKED
    wanted = rng.random(chance.shape) < chance
    odds = chance / np.maximum(1 - chance, 1e-12) * np.exp(LIKED)
    liked = rng.random(chance.shape) < odds / (1 + odds)
    return (looked & wanted).astype(np.int32) + (looked & wanted & liked)


def _logged(
    rng: np.random.Generator, world: ListWorld, visits: Visits, item: I32, grade: I32, is_uniform: Bool
) -> ListWorld:
    """Return the world with its events in time order; those of a list are 10 s apart."""
    request, place = np.nonzero(item >= 0)
    ts = visits.ts[request] + place * 10 * SECOND
    order = np.argsort(ts, kind="stable")
    request, place = request[order], place[order]
    got = grade[request, place]
    play = rng.uniform(np.array([0.0, 0.31, 0.91])[got], np.array([0.29, 0.89, 1.0])[got])
    log = replace(
        empty_log(("play",), len(order)),
        user=visits.user[request],
        item=item[request, place],
        ts=ts[order],
        grade=got.astype(np.int8),
        request=request.astype(np.int64),
        feedback=play[:, None].astype(np.float32),
    )
    return replace(world, log=log, place=(place + 1).astype(np.int32), uniform=is_uniform[request])


def _rows(world: ListWorld, rows: Bool) -> ListWorld:
    return replace(world, log=world.log.select(rows), place=world.place[rows], uniform=world.uniform[rows])


def write_list_world(folder: Path, world: ListWorld, plugin: str = "als", more: str = "") -> Path:
    """Write a world's log and attributes as Parquet, and the TOML; return the TOML. more: further tables of it.

    An item's genre is known of nine in ten, its length tells nothing. `uniform` is a column for conditions.
    """
    for name, columns in _tables(world).items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    t1, t2 = (datetime.fromtimestamp(t / SECOND, UTC).date() for t in (T1, T2))
    (folder / "pairlift.toml").write_text(TOML.format(t1=t1, t2=t2, plugin=plugin, more=more))
    return folder / "pairlift.toml"


def _tables(world: ListWorld) -> dict[str, dict[str, Any]]:
    log, items, users = world.log, world.items, world.users
    rng = np.random.default_rng(len(items.ids))
    genre = np.where(rng.random(len(items.ids)) < 0.9, [f"genre{g:02d}" for g in items.genre], None)
    events = {"user_id": users.ids[log.user], "item_id": items.ids[log.item], "request": log.request}
    events |= {"ts": pa.array(log.ts, pa.timestamp("us")), "play": log.feedback[:, 0]}
    events |= {"place": world.place, "uniform": world.uniform}
    about = {"item_id": items.ids, "genre": genre.tolist(), "author": [f"author{a:03d}" for a in items.author]}
    about["length"] = rng.lognormal(5, 0.5, len(items.ids))
    cohorts = {"user_id": users.ids, "cohort": [f"cohort{c}" for c in users.cohort]}
    return {"events": events, "items": about, "users": cohorts}


def world_case(folder: Path, seed: int, plugin: str = "two_tower") -> tuple[Path, ListWorld]:
    """Write the world of the benchmark `lists` to a folder, which is made; return its TOML and the world."""
    folder.mkdir(parents=True, exist_ok=True)
    world = make_list_world(seed)
    return write_list_world(folder, world, plugin), world
