"""A generated log of three surfaces and known truth: a feed, lists beside an item, and lists for a query.

What a user likes in a feed is of their taste; beside an item it is what is like that item; for a query it is what was
meant by the words. Tastes and topics are hidden, and so is which item a searching user has in mind; quality and taste
count on all three surfaces, so one of them has something to learn from the others. Written as any user's log is.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import PairliftError
from features.files import written, written_folder
from features.schema import DAY, F64, I64, SECOND

#: of scale 1, and the fewest of a smaller world
USERS, ITEMS, REQUESTS = 20_000, 5_000, 250_000
LEAST_USERS, LEAST_ITEMS, LEAST_REQUESTS = 40, 200, 600
#: days of the log, and the first one: Monday, 1 January 2024
DAYS, START = 60, 1_704_067_200 * SECOND
#: impressions of a list, seconds between two of them
LIST, APART = 8, 10
#: numbers of a taste; topics; items of a maker; words of a topic, and others
WIDTH, TOPICS, OF_A_MAKER, OF_A_TOPIC, OTHERS = 8, 20, 20, 8, 300
SURFACES = ("feed", "related", "search")
#: share of the requests of each
SHARES = (0.5, 0.3, 0.2)
#: utility: of taste in a feed and elsewhere; of an item like the source item, and of its maker; of the query's words in
#: the title, and of the topic of the item that is meant
TASTE, TASTE_ELSEWHERE, LIKE_SOURCE, SAME_MAKER, WORDS, MEANT = 2.2, 0.8, 2.4, 1.0, 2.4, 1.0
#: utility above which an item is viewed, and liked: ordered logit
VIEW, LIKE = 0.8, 2.2
#: share of a related or a search list that is of the topic asked for
ON_TOPIC = 0.6


@dataclass(frozen=True, slots=True)
class Items:
    """n items."""

    vector: F64  # [n, WIDTH], of length 1
    topic: I64  # [n]
    maker: I64  # [n]
    quality: F64  # [n], utility for everybody
    share: F64  # [n], chance to be shown, cumulative
    words: I64  # [n, 4], of the title: three of the topic's, one of the others


@dataclass(frozen=True, slots=True)
class Lists:
    """r requests in time order, LIST items each."""

    user: I64  # [r]
    surface: I64  # [r], place in SURFACES
    source: I64  # [r], item of a related list, else -1
    typed: I64  # [r, 2], words of a query, -1 of another list
    item: I64  # [r, LIST]
    expected: F64  # [r, LIST], the grade's expectation
    grade: I64  # [r, LIST], 0 to 2


def make_surfaces_world(folder: Path, scale: float = 1.0, seed: int = 0) -> dict[str, int]:
    """Write the world of a seed to an empty or new folder; return how many users, items and events it has.

    scale: 1 is 20,000 users, 5,000 items and 2 million events. Raises PairliftError where something is in the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PairliftError(f"{folder}: an empty folder, or none, was expected for the generated log; name another")
    rng = np.random.default_rng(seed)
    n_users, n_items = max(round(USERS * scale), LEAST_USERS), max(round(ITEMS * scale), LEAST_ITEMS)
    items = _items(rng, n_items)
    lists = _lists(rng, items, n_users, max(round(REQUESTS * scale), LEAST_REQUESTS))
    with written_folder(folder) as partial:
        _write(partial, rng, items, lists)
    return {"users": n_users, "items": n_items, "events": lists.item.size}


def _unit(rows: F64) -> F64:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _items(rng: np.random.Generator, n: int) -> Items:
    centre = _unit(rng.standard_normal((TOPICS, WIDTH)))
    maker = rng.integers(0, max(n // OF_A_MAKER, 2), n)
    topic = np.where(rng.random(n) < 0.5, maker * 7 % TOPICS, rng.integers(0, TOPICS, n))
    vector = _unit(centre[topic] + 0.8 * rng.standard_normal((n, WIDTH)) / np.sqrt(WIDTH))
    quality = 0.5 * rng.standard_normal(n)
    own = np.argsort(rng.random((n, OF_A_TOPIC)), axis=1)[:, :3] + OF_A_TOPIC * topic[:, None]
    words = np.column_stack([own, OF_A_TOPIC * TOPICS + rng.integers(0, OTHERS, n)])
    return Items(vector, topic, maker, quality, np.cumsum(rng.lognormal(0, 1, n) * np.exp(quality)), words)


def _lists(rng: np.random.Generator, items: Items, n_users: int, r: int) -> Lists:
    liked = items.vector[rng.integers(0, len(items.topic), n_users)]
    taste = _unit(liked + 0.5 * rng.standard_normal((n_users, WIDTH)))
    user, surface = rng.integers(0, n_users, r), rng.choice(len(SURFACES), r, p=SHARES)
    started = _sought(rng, items, taste[user])  # beside which item, and which one is meant
    source = np.where(surface == 1, started, -1)
    picked = np.take_along_axis(items.words[started], np.argsort(rng.random((r, 4)), axis=1)[:, :2], axis=1)
    typed = np.where((surface == 2)[:, None], picked, -1)
    item = _shown(rng, items, np.where(surface > 0, items.topic[started], -1), started)
    z = _utility(items, taste[user], surface, started, typed, item)
    view, like = (1 / (1 + np.exp(bound - z)) for bound in (VIEW, LIKE))
    at = rng.random(z.shape)
    return Lists(user, surface, source, typed, item, view + like, (at < view).astype(np.int64) + (at < like))


def _drawn(rng: np.random.Generator, items: Items, shape: tuple[int, ...]) -> I64:
    """Return items by their chance to be shown."""
    at = np.searchsorted(items.share, rng.random(shape) * items.share[-1], side="right")
    return np.asarray(np.minimum(at, len(items.topic) - 1))


def _sought(rng: np.random.Generator, items: Items, taste: F64) -> I64:
    """Return int64[r]: the best for the user of some items, with noise."""
    some = _drawn(rng, items, (len(taste), 12))
    worth = TASTE * np.einsum("rk,rjk->rj", taste, items.vector[some]) + rng.gumbel(size=some.shape)
    return np.take_along_axis(some, worth.argmax(axis=1)[:, None], axis=1)[:, 0]


def _shown(rng: np.random.Generator, items: Items, topic: I64, started: I64) -> I64:
    """Return int64[r, LIST] distinct items other than where a list started. topic: of which a part is, -1 for none."""
    pool = _drawn(rng, items, (len(topic), 10 * LIST))
    on_topic = (items.topic[pool] == topic[:, None]) & (rng.random(pool.shape) < ON_TOPIC)
    order = np.argsort(pool, axis=1, kind="stable")
    sorted_pool = np.take_along_axis(pool, order, axis=1)
    again = np.zeros(pool.shape, bool)
    np.put_along_axis(again, order[:, 1:], sorted_pool[:, 1:] == sorted_pool[:, :-1], axis=1)
    key = rng.random(pool.shape) - on_topic + 10.0 * (again | (pool == started[:, None]))
    first = np.take_along_axis(pool, np.argsort(key, axis=1)[:, :LIST], axis=1)
    return rng.permuted(first, axis=1)


def _utility(items: Items, taste: F64, surface: I64, started: I64, typed: I64, item: I64) -> F64:
    """Return float64[r, LIST]: what each item is worth in its list."""
    feed, related, search = ((surface == k)[:, None] for k in range(3))
    vector = items.vector[item]
    z = np.where(feed, TASTE, TASTE_ELSEWHERE) * np.einsum("rk,rjk->rj", taste, vector) + items.quality[item]
    z += related * LIKE_SOURCE * np.einsum("rk,rjk->rj", items.vector[started], vector)
    z += related * SAME_MAKER * (items.maker[item] == items.maker[started][:, None])
    held = (items.words[item][:, :, None, :] == typed[:, None, :, None]).any(axis=3).mean(axis=2)
    return np.asarray(z + search * (WORDS * held + MEANT * (items.topic[item] == items.topic[started][:, None])))


def _write(folder: Path, rng: np.random.Generator, items: Items, lists: Lists) -> None:
    events = _events(rng, lists)
    tables = {
        "events": events,
        "items": _item_table(rng, items),
        "truth": {"ts": events["ts"], "expected": lists.expected.ravel().astype(np.float32)},
    }
    for name, columns in tables.items():
        with written(folder / f"{name}.parquet") as partial:
            pq.write_table(pa.table(columns), partial)
    (folder / "pairlift.toml").write_text((files("ranker.studies") / "surfaces_world.toml").read_text())


def _events(rng: np.random.Generator, lists: Lists) -> dict[str, Any]:
    """Return the columns of the log in time order. No two events have one ts."""
    r = len(lists.user)
    spacing = DAYS * DAY // r
    begun = START + np.arange(r) * spacing + rng.integers(0, max(spacing - LIST, 1), r)
    ts = (begun[:, None] + np.arange(LIST)).ravel()  # the rest of a list follows at once: one answer, one as_of
    query = [" ".join(map(_word, words)) if words[0] >= 0 else None for words in lists.typed.tolist()]
    source = lists.source * 3 + 10
    return {
        "user_id": np.repeat(lists.user + 1_000_000, LIST),
        "item_id": lists.item.ravel() * 3 + 10,
        "ts": pa.array(ts, pa.timestamp("us", "UTC")),
        "surface": pa.array(np.array(SURFACES)[np.repeat(lists.surface, LIST)]),
        "request_id": np.repeat(np.arange(r), LIST),
        "source_item": pa.array(np.repeat(source, LIST), mask=np.repeat(lists.source < 0, LIST)),
        "query": pa.array(np.repeat(np.array(query, object), LIST), pa.string()),
        "feedback": lists.grade.ravel(),
    }


def _word(number: int) -> str:
    """Return a word that can be said, of its own for each number."""
    return "".join("bdfgklmnprst"[number // 5**k % 12] + "aeiou"[number // 12**k % 5] for k in range(3)) + str(number)


def _item_table(rng: np.random.Generator, items: Items) -> dict[str, Any]:
    n = len(items.topic)
    told = np.where(rng.random(n) < 0.7, items.topic, TOPICS)
    topics = np.array([*(f"topic-{t:02d}" for t in range(TOPICS)), None], object)
    return {
        "item_id": np.arange(n) * 3 + 10,
        "title": [" ".join(map(_word, words)) for words in items.words.tolist()],
        "topic": pa.array(topics[told], pa.string()),
        "maker": [f"maker-{m}" for m in items.maker.tolist()],
    }
