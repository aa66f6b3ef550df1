"""Orders of places: by score, and with some places that are given."""

import numpy as np

from features.kernels import njit
from features.schema import F64, I32, I64
from ranker.candidates.source import order_ties


@njit(cache=True, nogil=True)
def select(item: I32, score: F64) -> I64:
    """Return int64[n]: places from best score to worst; non-finite last, ties by item, then by place."""
    falling = np.where(np.isfinite(score), -score, np.inf)
    order = np.argsort(falling)
    order_ties(order, falling, item)
    return order


def placed(order: I64, fixed: I64) -> I64:
    """Return int64[n]: an order with what is fixed at its place, or as far down as the list goes.

    fixed: int64[f], what stands at each of the first f places, -1 for none; nothing of it is in the order.
    """
    pinned = np.flatnonzero(fixed >= 0)
    n = len(order) + len(pinned)
    at = np.minimum(pinned, n - len(pinned) + np.arange(len(pinned)))
    others = np.ones(n, np.bool_)
    others[at] = False
    found = np.empty(n, np.int64)
    found[at], found[others] = fixed[pinned], order
    return found
