"""A generated log for the ranker's benchmark, whose best possible weighted PairAccuracy is known.

Users, items and contexts have columns as logs have them: skewed counts, rates of few trials, categories of many
values, what is missing. A grade is drawn, by row and independently, with chances that depend on the columns alone, by
two utilities: one of being listened to (popular, fitting the hour), one of being liked (taste, author, freshness).
Since the two differ, the weights of the grade pairs decide which order is best.

The best order. With chances s, l, k of skip, listen and like, and weights w of grade pairs, putting i before j gains

    A(i, j) = w_ls (l_i s_j - s_i l_j) + w_ks (k_i s_j - s_i k_j) + w_kl (k_i l_j - l_i k_j)

more expected right weight than the reverse. With won = w_ls l + w_ks k and lost = w_ks s + w_kl l this is
w_ks A(i, j) = won_i lost_j - lost_i won_j, so sorting by won / lost makes the better choice for every pair: no scoring
has a higher expected PairAccuracy. `beaten_by_brute_force` tries every order of small groups.
"""

from itertools import permutations
from typing import NamedTuple

import numpy as np
from ranker_data import Best, Data, Part

from features.pairing.pairs import Pairs
from features.pairing.slice import Slice
from features.schema import F32, F64, I64

#: weight of (winner, loser) by grade rank: skip, listen, like
WEIGHTS = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [5.0, 3.0, 0.0]])
GROUP = 10
#: groups of the three slices; the test has more than a million pairs
GROUPS = {"train": 8_000, "validation": 2_000, "test": 48_000}
USERS, ITEMS, GENRES, AUTHORS, COUNTRIES, DAYPARTS = 6_000, 4_000, 20, 400, 15, 4
COLUMNS = [
    "user_age", "user_country", "user_activity", "item_genre", "item_author", "item_duration", "item_age",
    "item_count", "item_listen_rate", "item_like_rate", "hour", "surface", "device", "user_genre_count",
    "user_genre_rate", "noise", "noise_count",
]  # fmt: skip
CATEGORICAL = ["user_country", "item_genre", "item_author", "surface", "device"]


class Rows(NamedTuple):
    """matrix: float32[n, c]. chance: float64[n, 3] of each grade. group, user: int64[n]."""

    matrix: F32
    chance: F64
    group: I64
    user: I64


def best_score(chance: F64, weights: F64 = WEIGHTS) -> F64:
    """Return float64[n] scores than which none does better, of float64[n, 3] chances."""
    won = weights[1, 0] * chance[:, 1] + weights[2, 0] * chance[:, 2]
    lost = weights[2, 0] * chance[:, 0] + weights[2, 1] * chance[:, 1]
    return np.asarray(won / lost)


def without_ties(score: F64) -> F64:
    """Return float64[n] places, higher for a higher score: either order of a tie is right as often, and a tie never."""
    place = np.empty(len(score))
    place[np.argsort(score, kind="stable")] = np.arange(len(score))
    return place


def expected_weight(chance: F64, weights: F64 = WEIGHTS) -> F64:
    """Return float64[..., m, m] of groups float64[..., m, 3]: expected weight of the pair (winner i, loser j)."""
    return np.asarray(np.einsum("...ia,ab,...jb->...ij", chance, weights, chance))


def bound(chance: F64, weights: F64 = WEIGHTS) -> float:
    """Return the expected right weight of the best scores over the expected weight, of groups of GROUP rows."""
    by_group = chance.reshape(-1, GROUP, 3)
    pair = expected_weight(by_group, weights) * ~np.eye(GROUP, dtype=bool)
    place = without_ties(best_score(chance, weights)).reshape(-1, GROUP)
    before = place[:, :, None] > place[:, None, :]
    return float((pair * before).sum() / pair.sum())


def beaten_by_brute_force(chance: F64, weights: F64 = WEIGHTS) -> float:
    """Return by how much the best of all orders of float64[m, 3] chances is above that of `best_score` (0 is right)."""
    pair = expected_weight(chance, weights)

    def right(order: tuple[int, ...]) -> float:
        return float(sum(pair[a, b] for k, a in enumerate(order) for b in order[k + 1 :]))

    ours = right(tuple(np.argsort(-best_score(chance, weights)).tolist()))
    return max(map(right, permutations(range(len(chance))))) - ours


def make_world(seed: int = 0, scale: float = 1.0) -> Data:
    """Return the data set of a seed; `scale` times as many groups."""
    rng = np.random.default_rng(seed)
    tables = _tables(rng)
    parts, best = {}, []
    for name, groups in GROUPS.items():
        rows = _rows(rng, tables, max(int(groups * scale), 20))
        grade = (rng.random(len(rows.group))[:, None] > np.cumsum(rows.chance, axis=1)[:, :2]).sum(axis=1)
        parts[name] = Part(Slice(rows.matrix, rows.group, _pairs(grade)), grade, rows.user)
        if name == "test":
            tables_of_weights = (WEIGHTS, (WEIGHTS > 0).astype(float))
            best = [Best(without_ties(best_score(rows.chance, w)), bound(rows.chance, w)) for w in tables_of_weights]
    return Data("generated", COLUMNS, CATEGORICAL, parts["train"], parts["validation"], parts["test"], *best)


def _pairs(grade: I64) -> Pairs:
    """Return all pairs of different grades within consecutive groups of GROUP rows."""
    by_group = grade.reshape(-1, GROUP)
    group, i, j = np.nonzero(by_group[:, :, None] > by_group[:, None, :])
    winner, loser = group * GROUP + i, group * GROUP + j
    weight = WEIGHTS[grade[winner], grade[loser]].astype(np.float32)
    return Pairs(winner.astype(np.int32), loser.astype(np.int32), weight, np.zeros(len(winner), bool))


def _zipf(rng: np.random.Generator, n: int, size: int, power: float) -> I64:
    chance = 1 / np.arange(1, n + 1) ** power
    return rng.choice(n, size, p=chance / chance.sum())


def _tables(rng: np.random.Generator) -> dict[str, F64 | I64]:
    """Return what is fixed: attributes of users and items, and effects of categories."""
    taste = rng.dirichlet(np.full(GENRES, 0.3), USERS)
    count = rng.permutation(np.floor(np.exp(rng.normal(3.0, 1.8, ITEMS))))
    author = _zipf(rng, AUTHORS, ITEMS, 0.8)
    return {
        "age": np.where(rng.random(USERS) < 0.1, np.nan, np.clip(rng.gamma(6, 5.5, USERS), 13, 90).round()),
        "country": _zipf(rng, COUNTRIES, USERS, 1.0),
        "activity": np.floor(np.exp(rng.normal(3.5, 1.2, USERS))),
        "taste": taste,
        "liking": np.clip(rng.normal(0.25, 0.2, (USERS, GENRES)), 0.01, 0.95),
        "genre": _zipf(rng, GENRES, ITEMS, 0.6),
        "author": author,
        "duration": np.exp(rng.normal(5.2, 0.7, ITEMS)).round(),
        "item_age": np.where(rng.random(ITEMS) < 0.05, np.nan, rng.exponential(20, ITEMS)),
        "count": count,
        "listen_rate": _rate(rng, count, rng.beta(4, 6, ITEMS)),
        "like_rate": _rate(rng, count, rng.beta(1, 10, ITEMS)),
        "author_effect": rng.normal(0, 0.7, AUTHORS),
        "genre_daypart": rng.normal(0, 0.5, (GENRES, DAYPARTS)),
        "country_genre": rng.normal(0, 0.5, (COUNTRIES, GENRES)),
        "genre_centre": rng.uniform(18, 55, GENRES),
    }


def _rate(rng: np.random.Generator, trials: F64, chance: F64) -> F64:
    """Return the measured rate of so many trials; NaN without any."""
    return np.where(trials > 0, rng.binomial(trials.astype(np.int64), chance) / np.maximum(trials, 1), np.nan)


def _rows(rng: np.random.Generator, t: dict[str, F64 | I64], groups: int) -> Rows:
    """Draw groups: a user in a context, and GROUP items by a flattened popularity."""
    of_group = np.repeat(np.arange(groups), GROUP)
    n = len(of_group)
    user = _zipf(rng, USERS, groups, 0.3)[of_group]
    hour = rng.choice(24, groups, p=_day())[of_group]
    surface, device = (rng.choice(3, groups, p=p)[of_group] for p in ([0.6, 0.25, 0.15], [0.5, 0.35, 0.15]))
    shown = np.sqrt(t["count"] + 1)
    item = rng.choice(ITEMS, n, p=shown / shown.sum())
    genre = t["genre"][item]
    seen = rng.poisson(t["activity"][user] * t["taste"][user, genre]).astype(float)
    rate = _rate(rng, seen, t["liking"][user, genre])
    x = {
        "user_age": t["age"][user], "user_country": t["country"][user], "user_activity": t["activity"][user],
        "item_genre": genre, "item_author": t["author"][item], "item_duration": t["duration"][item],
        "item_age": t["item_age"][item], "item_count": t["count"][item], "item_listen_rate": t["listen_rate"][item],
        "item_like_rate": t["like_rate"][item], "hour": hour, "surface": surface, "device": device,
        "user_genre_count": seen, "user_genre_rate": rate,
        "noise": rng.normal(size=n), "noise_count": np.floor(np.exp(rng.normal(1, 1, n))),
    }  # fmt: skip
    matrix = np.column_stack([x[name] for name in COLUMNS]).astype(np.float32)
    utility = np.column_stack([np.zeros(n), _listened(x, t), _liked(x, t)])
    chance = np.exp(utility)
    return Rows(matrix, chance / chance.sum(axis=1, keepdims=True), of_group.astype(np.int64), user.astype(np.int64))


def _day() -> F64:
    busy = 1.5 + np.cos((np.arange(24) - 20) / 24 * 2 * np.pi)
    return np.asarray(busy / busy.sum())


def _known(value: F64, otherwise: float) -> F64:
    return np.where(np.isnan(value), otherwise, value)


def _listened(x: dict[str, F64], t: dict[str, F64 | I64]) -> F64:
    """Utility of listening: popular, short on a telephone, the genre at its part of the day and in its country."""
    daypart = x["hour"] // 6
    long = np.maximum(np.log(x["item_duration"] / 180), 0)
    return np.asarray(
        -1.0
        + 0.25 * (np.log1p(x["item_count"]) - 3)
        + 3.0 * (_known(x["item_listen_rate"], 0.4) - 0.4) * x["item_count"] / (x["item_count"] + 5)
        + t["genre_daypart"][x["item_genre"], daypart]
        + t["country_genre"][x["user_country"], x["item_genre"]]
        - 0.9 * long * (x["device"] == 0)
        + 0.5 * (x["surface"] == 1) * (x["user_genre_count"] > 2)
    )


def _liked(x: dict[str, F64], t: dict[str, F64 | I64]) -> F64:
    """Utility of liking: the user's taste as far as it is known, the author, fresh in the feed, fitting the age."""
    sure = x["user_genre_count"] / (x["user_genre_count"] + 5)
    from_centre = (_known(x["user_age"], 33) - t["genre_centre"][x["item_genre"]]) / 15
    return np.asarray(
        -2.4
        + 4.0 * sure * (_known(x["user_genre_rate"], 0.25) - 0.25)
        + t["author_effect"][x["item_author"]]
        + 1.2 * np.exp(-_known(x["item_age"], 20) / 5) * (x["surface"] == 0)
        + 5.0 * (_known(x["item_like_rate"], 0.09) - 0.09) * x["item_count"] / (x["item_count"] + 20)
        - 0.4 * np.minimum(from_centre**2, 4)
        - 0.2 * (np.log1p(x["item_count"]) - 3) * (x["user_activity"] > 60)
    )
