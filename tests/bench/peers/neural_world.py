"""A log of which the length of every history is given, and the fit of the towers that it makes. NumPy alone.

Nothing is to be learnt from it: it is for what a step costs.
"""

import numpy as np

from features.pairing.groups import Groups
from features.pairing.pairs import Pairs
from features.plugin import FitData
from features.schema import DAY, I64, NO_CONTEXT, SECOND, Attribute, Catalog, EventLog, Requests, offsets_of

GRADES = ("skip", "listen", "like")
START = 1_700_000_000 * SECOND
#: events of a user are so far apart: a group is asked for between two
STEP = 60 * SECOND
#: impressions of a group
PER_GROUP = 2


def make_log(lengths: I64, n_items: int, seed: int = 0) -> EventLog:
    """Return a log in which user u has lengths[u] events, a minute apart, of items by a popularity of 1 / rank^0.8."""
    rng = np.random.default_rng(seed)
    n = int(lengths.sum())
    user = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(n) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    popularity = (1.0 + np.arange(n_items)) ** -0.8
    grade = rng.integers(0, len(GRADES), n)
    order = np.argsort(place, kind="stable")
    return EventLog(
        user=user[order].astype(np.int32),
        item=rng.choice(n_items, n, p=popularity / popularity.sum()).astype(np.int32),
        ts=START + place[order] * STEP,
        grade=grade.astype(np.int8),
        surface=rng.integers(0, 2, n).astype(np.int16),
        organic=np.zeros(n, np.int8),
        request=np.full(n, -1),
        pairable=np.ones(n, bool),
        feedback=np.stack([grade / 2, grade == 2], axis=1).astype(np.float32),
        feedback_names=("share", "like"),
    )


def make_catalog(n_users: int, n_items: int, seed: int = 0) -> Catalog:
    """Return the catalogue, in which an item has a genre."""
    genre = np.random.default_rng(seed).integers(0, 20, n_items).astype(np.int32)
    return Catalog(
        user_ids=np.arange(n_users),
        item_ids=np.arange(n_items),
        surfaces=("feed", "search"),
        item_attributes=(Attribute("genre", "categorical", codes=genre, values=tuple(map(str, range(20)))),),
    )


def make_groups(user: I64, seen: I64, n_items: int, seed: int = 0) -> tuple[Groups, Pairs]:
    """Return groups of two impressions, each asked for when its user has so many events, and the pair of each.

    user, seen: int64[g]. One more group is behind all events: the validation slice, so that every event is trained on.
    """
    rng = np.random.default_rng(seed)
    as_of = START + seen * STEP - STEP // 2
    as_of, user = np.append(as_of, START + 10_000 * DAY), np.append(user, user[-1])
    order = np.argsort(as_of, kind="stable")
    g = len(order)
    requests = Requests(
        user=user[order].astype(np.int32),
        as_of=as_of[order],
        surface=rng.integers(0, 2, g).astype(np.int16),
        offsets=offsets_of(np.full(g, PER_GROUP)),
        item=rng.integers(0, n_items, g * PER_GROUP).astype(np.int32),
        context=NO_CONTEXT,
    )
    winner = np.arange(0, g * PER_GROUP, PER_GROUP, dtype=np.int32)
    weight = rng.uniform(0.5, 2.0, g).astype(np.float32)
    groups = Groups(
        requests=requests,
        period=np.zeros(g, np.int8),
        validation=np.arange(g) == g - 1,
        grade=np.tile([2, 0], g).astype(np.int8),
        event=np.full(g * PER_GROUP, -1),
    )
    return groups, Pairs(winner, winner + 1, weight, np.zeros(g, bool))


def fit_data(lengths: I64, n_items: int, seen: I64 | None = None, seed: int = 0) -> FitData:
    """Return what a fit may see. seen: int64[users, g], at how many events each user's groups are asked for.

    Left out: one group for each user, behind all events.
    """
    seen = lengths[:, None] if seen is None else seen
    groups, pairs = make_groups(np.repeat(np.arange(len(lengths)), seen.shape[1]), seen.ravel(), n_items, seed)
    log, catalog = make_log(lengths, n_items, seed), make_catalog(len(lengths), n_items, seed)
    return FitData(log=log, catalog=catalog, groups=groups, pairs=pairs, grades=GRADES, seed=seed)
