"""A generated world of known examination: who looks at a place, and what each item is worth to each user, are given.

`examined(seed)` shows lists of ten of 300 items in the order of what the policy knows of them, and luck. Place k is
looked at with the chance k ** -power; an item that is looked at is clicked with the chance of its worth.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from features.pairing.exposure import Places
from features.pairing.groups import Groups
from features.schema import DAY, F64, I8, EventLog, Requests, empty_log

SHOWN, ITEMS, USERS = 10, 300, 2000


class Examined(NamedTuple):
    """What is known of such a world."""

    log: EventLog  # grade 1 is a click
    places: Places
    worth: F64  # [n], the chance of a click once looked at
    liked: I8  # [n], 1 where the user would have clicked, had the place been looked at
    lists: int


def examined(
    seed: int, *, lists: int = 12_000, power: float = 0.8, personal: float = 0.0, drawn: float = 0.0, luck: float = 1.0
) -> Examined:
    """personal: how much the policy knows of what a user likes, beside the items' quality. drawn: share of the lists
    whose order is drawn evenly, with known propensity. luck: scale of the policy's noise.
    """
    rng = np.random.default_rng(seed)
    quality, taste = rng.normal(size=ITEMS), rng.normal(size=(ITEMS, 4)) / 2
    user, of_user = rng.integers(0, USERS, lists), rng.normal(size=(USERS, 4))
    item = rng.random((lists, ITEMS)).argpartition(SHOWN, axis=1)[:, :SHOWN]
    own = np.einsum("ld,lcd->lc", of_user[user], taste[item])
    score = quality[item] + personal * own + luck * rng.gumbel(size=item.shape)
    even = rng.random(lists) < drawn
    score[even] = rng.random((int(even.sum()), SHOWN))
    place = (-score).argsort(axis=1).argsort(axis=1) + 1
    worth = 1 / (1 + np.exp(2 - quality[item] - own))
    liked = rng.random(item.shape) < worth
    clicked = liked & (rng.random(item.shape) < place**-power)
    n, propensity = item.size, np.where(even, 1 / SHOWN, 1 if drawn else np.nan)
    log = replace(
        empty_log((), n),
        user=np.repeat(user, SHOWN).astype(np.int32),
        item=item.ravel().astype(np.int32),
        ts=np.repeat(np.sort(rng.integers(0, 14 * DAY, lists)), SHOWN),
        grade=clicked.ravel().astype(np.int8),
        request=np.repeat(np.arange(lists), SHOWN),
    )
    places = Places(place.ravel().astype(np.float32), np.repeat(propensity, SHOWN).astype(np.float32))
    return Examined(log, places, worth.ravel(), liked.ravel().astype(np.int8), lists)


def lists_of(world: Examined, grade: I8) -> Groups:
    """Return every list as a group of the test, with these grades."""
    first = np.arange(world.lists) * SHOWN
    requests = Requests(
        user=world.log.user[first],
        as_of=world.log.ts[first],
        surface=np.full(world.lists, -1, np.int16),
        offsets=np.append(first, len(grade)),
        item=world.log.item,
    )
    return Groups(
        requests=requests,
        period=np.full(world.lists, 2, np.int8),
        validation=np.zeros(world.lists, bool),
        grade=grade,
        event=np.arange(len(grade)),
    )


EXAMINED_TOML = """
name = "examined"
[events]
source = "log.parquet"
ts = "make_timestamp(ts)"
request_id = "request"
position = "place"
propensity = "propensity"
feedback = {clicked = "clicked"}
[[grades]]
name = "skip"
when = "NOT clicked"
[[grades]]
name = "click"
when = "clicked"
[pairing]
position_power = 0.5
[plugins.noise]
class = "features.baselines:Noise"
[ranker]
plugins = []
[booster]
trees = 40
[uplift]
seeds = [0, 1]
fits = 2
"""


def write_examined(folder: Path, world: Examined) -> Path:
    """Write such a log as Parquet and its TOML; return the TOML."""
    log, places = world.log, world.places
    columns = {"user_id": log.user, "item_id": log.item, "ts": log.ts, "request": log.request, "place": places.position}
    shown = pa.table(columns | {"propensity": places.propensity, "clicked": log.grade > 0})  # noqa: F841 (read by name)
    nulls = "nullif(place, 'nan'::FLOAT) AS place, nullif(propensity, 'nan'::FLOAT) AS propensity"
    duckdb.sql(f"COPY (SELECT * REPLACE ({nulls}) FROM shown) TO '{folder}/log.parquet'")
    (folder / "pairlift.toml").write_text(EXAMINED_TOML)
    return folder / "pairlift.toml"
