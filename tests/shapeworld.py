"""Seeded logs of five shapes, as tables: each with columns of its own names, and tastes that are known.

Every list is made by a logging policy that knows something: it orders what it could show by an estimate of what the
user wants (a taste that is off, what others wanted), with noise. A place further down is looked at less
(`LOOKED`). `tests/shapes.py` writes these tables as files, with a TOML for each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from listworld import drawn

from features.schema import DAY, F64, HOUR, I32, I64, SECOND, Bool

START = 1_767_225_600 * SECOND  # 2026-01-01
DAYS = 20
RANK, GENRES = 8, 10
#: place k (from 1) is looked at with the chance k ** -LOOKED
LOOKED = 0.5
#: rows of a block of `shown`
BLOCK = 1000
TOWNS = ("Oslo", "Rome", "Paris", "Kyoto", "Lima", "Cairo")

Tables = dict[str, dict[str, Any]]


class Tastes(NamedTuple):
    """What users like and items are: utility is user · item + quality, of about unit variance each."""

    user: F64  # [n_users, RANK]
    item: F64  # [n_items, RANK]
    quality: F64  # [n_items]
    genre: I64  # [n_items]
    choice: I64  # [n_users], the genre that a user likes best

    def of(self, user: I64, item: I64) -> F64:
        """Return the utility of items for users, by the shapes' broadcast."""
        return np.einsum("...k,...k->...", self.user[user], self.item[item]) + self.quality[item]

    def believed(self, rng: np.random.Generator) -> "Tastes":
        """Return what a recommender believes: tastes and qualities that are off by as much as they vary."""
        off = rng.normal(0, self.user.std(), self.user.shape)
        return self._replace(user=self.user + off, quality=self.quality + rng.normal(0, 0.7, len(self.quality)))


def make_tastes(rng: np.random.Generator, n_users: int, n_items: int) -> Tastes:
    """Return tastes for a few genres each."""
    centres = rng.normal(size=(GENRES, RANK))
    genre = rng.choice(GENRES, n_items, p=rng.dirichlet(np.full(GENRES, 5.0)))
    item = centres[genre] + rng.normal(0, 0.6, (n_items, RANK))
    liking = rng.dirichlet(np.full(GENRES, 0.3), n_users)
    user = liking @ centres + rng.normal(0, 0.2, (n_users, RANK))
    user -= user.mean(axis=0)  # what all like alike is quality
    return Tastes(user / (user @ item.T).std(), item, rng.normal(0, 0.7, n_items), genre, liking.argmax(axis=1))


def visits(rng: np.random.Generator, n: int, n_users: int) -> tuple[I64, I64]:
    """Return user and ts (µs) of n requests in time order: some users come far more often, most in the evening."""
    often = rng.lognormal(0, 0.8, n_users)
    user = rng.choice(n_users, n, p=often / often.sum())
    hour = np.where(rng.random(n) < 0.6, rng.normal(19, 2.5, n) % 24, rng.uniform(0, 24, n))
    ts = START + rng.integers(0, DAYS, n) * DAY + (hour * HOUR).astype(np.int64)
    return user.astype(np.int64), np.sort(ts // SECOND * SECOND)


def shown(rng: np.random.Generator, score: Callable[[I64], F64], n: int, most: int) -> I32:
    """Return int32[n, most] items of n requests in the order of the policy, -1 where there is none.

    score(rows): float64[len(rows), n_items], what the policy sorts by beside its Gumbel noise; -inf cannot be shown.
    """
    blocks = [np.arange(first, min(first + BLOCK, n)) for first in range(0, n, BLOCK)]
    return np.concatenate([drawn(rng, score(rows), most) for rows in blocks])


def cut(rng: np.random.Generator, item: I32, least: int) -> tuple[I64, I64, I64]:
    """Return row, place (from 0) and item of each impression: a list ends at its own place, `least` or later."""
    length = rng.integers(least, item.shape[1] + 1, len(item))
    row, place = np.nonzero((item >= 0) & (np.arange(item.shape[1]) < length[:, None]))
    return row.astype(np.int64), place.astype(np.int64), item[row, place].astype(np.int64)


def looked(rng: np.random.Generator, place: I64) -> Bool:
    """Return whether each place, from 0, was looked at."""
    return np.asarray(rng.random(len(place)) < (1.0 + place) ** -LOOKED)


def happens(rng: np.random.Generator, utility: F64) -> Bool:
    """Return true with the chance sigmoid(utility)."""
    return np.asarray(rng.random(len(utility)) < 1 / (1 + np.exp(-utility)))


def some(rng: np.random.Generator, values: Any, share: float) -> Any:
    """Return the values as an array of objects, a share of them NULL."""
    return np.where(rng.random(len(values)) < share, None, np.asarray(values).astype(object))


def named(prefix: str, numbers: Any) -> list[str]:
    """Return text ids."""
    return [f"{prefix}{n:05d}" for n in np.asarray(numbers).tolist()]


def search(size: int, seed: int) -> Tables:
    """Hotel searches: price, distance and text match are of one impression; utility has the price relative to the list.

    A price is the hotel's own times the season's and the day's. The policy knows match, quality and distance, and of
    the price little.
    """
    rng = np.random.default_rng(seed)
    n = max(size // 14, 50)
    n_users, n_items = n // 3 + 10, 60 * len(TOWNS)
    tastes, town = make_tastes(rng, n_users, n_items), rng.permutation(n_items) % len(TOWNS)
    thrift = rng.lognormal(0.3, 0.4, n_users)
    user, ts = visits(rng, n, n_users)
    asked = rng.integers(0, len(TOWNS), n)
    km = np.abs(rng.normal(0, 4, (n, n_items)) + rng.normal(0, 2, n_items))
    match = rng.normal(0, 1, (n, n_items)) + 0.5 * tastes.quality
    season = 0.3 * np.sin(2 * np.pi * (ts - START) / (10 * DAY))
    own = rng.normal(4.6, 0.5, n_items) + 0.4 * tastes.quality
    price = own + season[:, None] + rng.normal(0, 0.35, (n, n_items))

    def score(rows: I64) -> F64:
        good = 1.2 * match[rows] + tastes.quality - 0.2 * km[rows] - 0.3 * price[rows]
        return np.where(town == asked[rows, None], good, -np.inf)

    row, place, hotel = cut(rng, shown(rng, score, n, 20), 8)
    dear = price[row, hotel] - _medians(price[row, hotel], row)
    utility = tastes.of(user[row], hotel) + 0.8 * match[row, hotel] - 0.15 * km[row, hotel]
    utility -= 2.5 * thrift[user[row]] * dear
    clicked = looked(rng, place) & happens(rng, utility - 0.5)
    log = {
        "search_id": named("s", row), "visitor": user[row] + 500_000, "hotel": hotel * 3 + 7,
        "searched_at": ts[row].astype("datetime64[us]"), "rank_shown": place + 1,
        "price_eur": some(rng, np.exp(price[row, hotel]).round(2), 0.01),
        "km_from_point": some(rng, km[row, hotel].round(2), 0.03), "match_score": match[row, hotel].round(4),
        "badge": some(rng, np.where(dear < -0.4, "deal", "plain"), 0.1), "clicked": clicked,
        "booked": clicked & happens(rng, utility - 1.5), "nights": rng.integers(1, 8, n)[row],
        "device": np.array(["phone", "desktop"])[user[row] % 2], "town": np.array(TOWNS)[asked[row]],
    }  # fmt: skip
    about = {
        "hotel": np.arange(n_items) * 3 + 7, "town": np.array(TOWNS)[town], "style": named("style", tastes.genre),
        "guest_score": some(rng, (7.5 + tastes.quality + rng.normal(0, 0.5, n_items)).round(1), 0.1),
    }  # fmt: skip
    return {"searches": log, "hotels": about}


def _medians(values: F64, row: I64) -> F64:
    """Return the median of each row's values, for each value. row: never decreasing."""
    parts = np.split(values, np.flatnonzero(np.diff(row)) + 1)
    return np.repeat([np.median(part) for part in parts], list(map(len, parts)))


def news(size: int, seed: int) -> Tables:
    """A news page: new articles every hour, of interest for a day or two; each request shows a list of fresh ones."""
    rng = np.random.default_rng(seed)
    n = max(size // 10, 50)
    n_users, n_items = n // 12 + 10, DAYS * 40
    tastes = make_tastes(rng, n_users, n_items)
    tastes = tastes._replace(quality=1.3 * tastes.quality)
    believed = tastes.believed(rng)
    born = np.sort(rng.integers(START - 2 * DAY, START + DAYS * DAY, n_items))
    fades = rng.uniform(0.3, 1.5, n_items)
    user, ts = visits(rng, n, n_users)

    def score(rows: I64) -> F64:
        age = (ts[rows, None] - born) / DAY
        liked = believed.of(user[rows, None], np.arange(n_items))
        return np.where((age > 0) & (age < 3), liked - 0.7 * age, -np.inf)

    row, place, article = cut(rng, shown(rng, score, n, 15), 5)
    age = (ts[row] - born[article]) / DAY
    utility = tastes.of(user[row], article) - 1.2 * age / fades[article]
    clicked = looked(rng, place) & happens(rng, utility + 0.3)
    log = {
        "reader": user[row] + 1, "article": article + 1, "page_view": row, "slot": place + 1, "clicked": clicked * 1,
        "shown_at": np.datetime_as_string(ts[row].astype("datetime64[us]"), unit="s"),
    }  # fmt: skip
    about = {
        "article": np.arange(n_items) + 1, "section": named("section", tastes.genre),
        "words": rng.lognormal(6, 0.5, n_items).astype(int),
        "published": np.datetime_as_string(born.astype("datetime64[us]"), unit="s"),
    }  # fmt: skip
    return {"impressions": log, "articles": about}


def positives(size: int, seed: int) -> Tables:
    """Purchases of a shop, and nothing that was shown and not bought; text ids; a sitting buys several things."""
    rng = np.random.default_rng(seed)
    n = max(size // 3, 100)
    n_users, n_items = n // 8 + 10, 300 + size // 200
    tastes = make_tastes(rng, n_users, n_items)
    fame, born = rng.normal(0, 1.0, n_items), START + (rng.uniform(-3, 1, n_items).clip(0) * DAYS * DAY)
    user, ts = visits(rng, n, n_users)

    def score(rows: I64) -> F64:
        liked = fame + 2.0 * tastes.of(user[rows, None], np.arange(n_items))
        return np.where(born <= ts[rows, None], liked, -np.inf)

    row, place, bought = cut(rng, shown(rng, score, n, 5), 1)
    log = {
        "customer": named("c-", user[row]), "sku": named("sku-", bought),
        "bought_at": (ts[row] + place * 40 * SECOND).astype("datetime64[us]"), "pieces": rng.geometric(0.8, len(row)),
    }  # fmt: skip
    about = {
        "sku": named("sku-", np.arange(n_items)), "aisle": some(rng, named("aisle", tastes.genre), 0.1),
        "cents": rng.lognormal(7, 0.8, n_items).astype(int),
    }  # fmt: skip
    return {"purchases": log, "products": about}


def stars(size: int, seed: int) -> Tables:
    """Ratings of half to five stars, in bursts: who joins rates many films at once, some come back later."""
    rng = np.random.default_rng(seed)
    n_users, n_items = max(size // 25, 40), 250 + size // 400
    tastes, fame = make_tastes(rng, n_users, n_items), rng.normal(0, 1.2, n_items)
    joined = np.sort(START + rng.integers(0, DAYS * DAY // 2, n_users))
    item = shown(rng, lambda rows: fame + 0.4 * tastes.of(rows[:, None], np.arange(n_items)), n_users, 45)
    member, place, film = cut(rng, item, 5)
    burst = place // 12  # the next ones come some days later
    later = np.cumsum(rng.integers(DAY, 5 * DAY, (n_users, 4)), axis=1) - DAY
    ts = joined[member] + np.where(burst > 0, later[member, burst], 0) + (place % 12) * 7 * SECOND
    mood = rng.normal(0, 0.5, n_users)[member]
    given = 3.4 + mood + 0.7 * tastes.of(member, film) + rng.normal(0, 0.6, len(film))
    log = {
        "member": member + 1, "film": film + 1, "stars": (given * 2).round().clip(1, 10) / 2, "rated_at": ts // SECOND
    }  # fmt: skip
    second = rng.integers(0, GENRES, n_items)
    pairs = [sorted({f"g{a}", f"g{b}"}) for a, b in zip(tastes.genre.tolist(), second.tolist(), strict=True)]
    about = {
        "film": np.arange(n_items) + 1, "genres": ["|".join(genres) for genres in pairs],
        "year": rng.integers(1960, 2026, n_items),
    }  # fmt: skip
    people = {"member": np.arange(n_users) + 1, "age": some(rng, rng.integers(16, 70, n_users), 0.2)}
    return {"ratings": log, "films": about, "members": people}


def sessions(size: int, seed: int) -> Tables:
    """Short videos on three surfaces and two devices: text ids, several kinds of feedback, NULLs everywhere.

    A long video is liked less on a phone; on the surface `related` tastes matter more.
    """
    rng = np.random.default_rng(seed)
    n = max(size // 7, 50)
    n_users, n_items = n // 15 + 10, 120 + size // 200
    tastes = make_tastes(rng, n_users, n_items)
    believed, length = tastes.believed(rng), rng.normal(0, 1, n_items)
    user, ts = visits(rng, n, n_users)
    surface, tv = rng.choice(3, n, p=[0.6, 0.25, 0.15]), rng.random(n) < np.where(user % 3 == 0, 0.7, 0.1)
    item = shown(rng, lambda rows: believed.of(user[rows, None], np.arange(n_items)), n, 9)
    row, place, video = cut(rng, item, 4)
    suits = np.where(tv[row], 0.7, -0.7) * length[video]
    utility = np.array([1.0, 0.6, 1.6])[surface[row]] * tastes.of(user[row], video) + suits - 0.4
    watched = looked(rng, place) & happens(rng, utility)
    likes, hides = watched & happens(rng, utility - 1.5), ~watched & happens(rng, -utility - 2.5)
    seconds = np.exp(3.5 + 0.6 * length)
    ms = 1000 * seconds[video] * np.where(watched, rng.uniform(0.6, 1, len(row)), rng.uniform(0, 0.2, len(row)))
    log = {
        "viewer": named("u", user[row]), "video": named("v", video), "seen": ts[row] // 1000 + place * 4000,
        "visit": some(rng, named("visit-", np.arange(n)), 0.1)[row], "slot": some(rng, place + 1, 0.15),
        "where": some(rng, np.array(["home", "search", "related"])[surface], 0.1)[row],
        "screen": some(rng, np.where(tv, "tv", "phone"), 0.2)[row],
        "watch_ms": some(rng, ms.astype(int), 0.05), "liked": some(rng, likes, 0.1), "hidden": some(rng, hides, 0.1),
    }  # fmt: skip
    about = {
        "video": named("v", np.arange(n_items)), "channel": some(rng, named("ch", rng.integers(0, 60, n_items)), 0.2),
        "topic": some(rng, named("topic", tastes.genre), 0.3), "seconds": some(rng, seconds.round(1), 0.15),
    }  # fmt: skip
    return {"plays": log, "videos": about}
