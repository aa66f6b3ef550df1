"""Users who are so much of a log that its numbers are theirs: a bot, say, or the id of all who are not known."""

import numpy as np

from features.pairing.groups import Groups
from features.pairing.pairs import count_pairs
from features.schema import F64, I64, Catalog, EventLog

#: of the events, or of the pairs, from which on one user is told; and of few users, so many times their mean share
HEAVY, TIMES = 0.1, 3
#: users that are named
FIRST_FEW = 3


def heavy_user_lines(log: EventLog, catalog: Catalog, groups: Groups, table: F64) -> list[str]:
    """Return a line for each user with more than HEAVY of the events or of the pairs, the heaviest first, and few.

    table: of `weight_table`. Makes no pair. Of n users, one with less than TIMES / n is as heavy as others.
    """
    events = _shares(np.bincount(log.user, minlength=catalog.n_users))
    pairs = _shares(np.bincount(groups.requests.user, count_pairs(groups, table), catalog.n_users))
    share = np.maximum(events, pairs)
    heavy = np.flatnonzero(share > max(HEAVY, TIMES / max(catalog.n_users, 1)))
    return [
        f"user {catalog.ids_of_users(np.array([user]))[0]} has {100 * events[user]:.1f} % of the events and "
        f"{100 * pairs[user]:.1f} % of the pairs: what is counted of items, popularity and examination is that much "
        "theirs by events, training and PairAccuracy by pairs; where that is a bot or no one person, leave it out of "
        "[events] source, a SELECT with a WHERE"
        for user in heavy[np.argsort(-share[heavy], kind="stable")][:FIRST_FEW].tolist()
    ]


def _shares(counts: F64 | I64) -> F64:
    """Return float64[n] of counts by user, 0 of a total of 0."""
    total = counts.sum()
    return np.asarray(counts / total if total else np.zeros(len(counts)))
