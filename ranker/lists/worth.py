"""What lists are worth to the users who were asked about: recall, NDCG, MRR, coverage, novelty, shares of sources.

A list is a row of int32[u, m] items, best first, -1 behind its end. An item is a hit where the user wanted it.
"""

from collections.abc import Sequence

import numpy as np

from features.kernels import njit
from features.schema import F64, I32, I64, Bool, EventLog
from ranker.lists.asked import Asked
from ranker.metrics.ndcg import discounts
from ranker.request import U32

#: the k of reports
KS = (10, 50, 200)


def worth(lists: I32, asked: Asked, ks: Sequence[int] = (10, 50)) -> dict[str, F64]:
    """Return float64[u] by figure: `recall@k` and `ndcg@k` for each k, and `mrr`.

    lists: int32[u, m], distinct items of each user. recall@k is hits / min(k, wanted) (Liang et al., WWW 2018), so
    that a full list can reach 1. ndcg@k has gains of 0 and 1; the ideal list has min(k, wanted) hits. mrr is 1 / place
    of the first hit in the whole list, 0 without one. Places behind the end of a list are misses.
    """
    return worth_of_hits(hits(lists, asked.offsets, asked.item), asked.wanted, ks)


def worth_of_hits(hit: Bool, wanted: I64, ks: Sequence[int] = (10, 50)) -> dict[str, F64]:
    """Return the figures of `worth`. hit: bool[u, m], by place; wanted: int64[u], how many items each user wanted."""
    found: dict[str, F64] = {}
    most = max(ks)
    discount = discounts(most)
    ideal = np.cumsum(discount)
    for k in ks:
        top, reachable = hit[:, :k], np.minimum(wanted, k)
        found[f"recall@{k}"] = top.sum(axis=1) / reachable
        found[f"ndcg@{k}"] = top @ discount[: top.shape[1]] / ideal[reachable - 1]
    if hit.shape[1]:
        found["mrr"] = np.where(hit.any(axis=1), 1.0 / (hit.argmax(axis=1) + 1), 0.0)
    else:
        found["mrr"] = np.zeros(len(hit))
    return found


@njit(cache=True, nogil=True)
def hits(lists: I32, offsets: I64, item: I32) -> Bool:
    """Return bool[u, m]: whether each entry of the lists is among the user's item[offsets[u]:offsets[u + 1]].

    Those are ascending, so each entry takes a binary search.
    """
    hit = np.zeros(lists.shape, np.bool_)
    for u in range(len(lists)):
        wanted = item[offsets[u] : offsets[u + 1]]
        for k in range(lists.shape[1]):
            at = np.searchsorted(wanted, lists[u, k])
            hit[u, k] = at < len(wanted) and wanted[at] == lists[u, k]
    return hit


@njit(cache=True, nogil=True)
def top_hits(score: F64, hit: Bool, offsets: I64, k: int) -> Bool:
    """Return bool[u, k]: the hits of each user's rows [offsets[u], offsets[u + 1]), best score first, ties by row.

    score: float64[n] without NaN. hit: bool[n]. Boosters are stopped by it, so no row is sorted that is not among
    the best:

    for each row: where fewer than k rows stand, or the last of them is worse, put it at its place among them
    """
    found, best = np.zeros((len(offsets) - 1, k), np.bool_), np.empty(k)
    for u in range(len(found)):
        stand = 0
        for row in range(offsets[u], offsets[u + 1]):
            if stand == k and not score[row] > best[k - 1]:
                continue
            stand = min(stand + 1, k)
            at = stand - 1
            while at > 0 and score[row] > best[at - 1]:
                best[at], found[u, at] = best[at - 1], found[u, at - 1]
                at -= 1
            best[at], found[u, at] = score[row], hit[row]
    return found


def best_hits(reached: I64, m: int) -> Bool:
    """Return bool[u, m]: the hits of the best order of candidates of which int64[u] are wanted: those first."""
    return np.arange(m) < reached[:, None]


def coverage(lists: I32, known: Bool, k: int = 10) -> float:
    """Return which share of the items of the mask bool[n_items] is in the first k of some list; NaN without any."""
    top = lists[:, :k]
    shown = np.zeros(len(known), bool)
    shown[top[(top >= 0) & (top < len(known))]] = True
    return float((shown & known).sum() / known.sum()) if known.any() else float("nan")


def novelty(lists: I32, users: I64, n_users: int, k: int = 10) -> F64:
    """Return float64[u]: the mean self-information, in bits, of the first k of each list; NaN for an empty one.

    -log2 of the share of users who had an event with the item (Zhou et al., PNAS 2010), with one user added to both
    counts, so that an item without users has the most and not infinity. users: int64[n_items], how many users each
    item had; n_users: of the log.
    """
    top = lists[:, :k]
    bits = -np.log2((users + 1) / (n_users + 1))
    inside = (top >= 0) & (top < len(users))
    sums = np.where(inside, bits[np.where(inside, top, 0)], 0.0).sum(axis=1)
    count = inside.sum(axis=1)
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan)


def users_of_items(log: EventLog, n_items: int) -> I64:
    """Return int64[n_items]: how many different users have an event with each item."""
    known = (log.user >= 0) & (log.item >= 0)
    both = np.unique(log.user[known].astype(np.int64) * n_items + log.item[known])
    return np.bincount(both % n_items, minlength=n_items)


def source_shares(masks: U32, lists: I32, names: Sequence[str], k: int = 10) -> dict[str, dict[str, float]]:
    """Return, by source, the share of the first k of all lists that it proposed, and the share that it alone proposed.

    masks: uint32[u, m], bit b is set where source b proposed the entry. An item of several sources counts for each.
    NaN where all lists are empty.
    """
    mask = masks[:, :k][lists[:, :k] >= 0]
    found = {}
    for bit, name in enumerate(names):
        own = np.uint32(1 << bit)
        by = [(mask & own) > 0, mask == own]
        share, alone = (float(b.mean()) if len(mask) else float("nan") for b in by)
        found[name] = {"share": share, "alone": alone}
    return found
