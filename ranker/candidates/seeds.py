"""What sources start from: the source item of a request, and the items that its user took last."""

import numpy as np

from features.kernels import njit
from features.schema import I8, I32
from ranker.request import Request

#: items are searched for among so many last events of a user
RECENT = 500


def taken_last(request: Request, floor: int, n_items: int, most: int) -> I32:
    """Return int32[<= most]: the source item, then the items that the user took before as_of, the latest first.

    Each stands once. An item is taken by an event of a grade >= floor. Those from n_items on came after a fit, and are
    left out.
    """
    histories = request.state.histories
    rows = histories.past(request.user, request.as_of)
    item, grade = histories.item[rows], histories.grade[rows]
    seeds: I32 = _latest(item, grade, floor, int(request.source_item), n_items, most)
    return seeds


@njit(cache=True, nogil=True)
def _latest(item: I32, grade: I8, floor: int, source_item: int, n_items: int, most: int) -> I32:
    """Return `taken_last`. item, grade: of a user's events, latest last; a source item of -1 is none."""
    seeds, n = np.empty(most, np.int32), 0
    if 0 <= source_item < n_items:
        seeds[0], n = source_item, 1
    for k in range(len(item) - 1, max(len(item) - RECENT, 0) - 1, -1):
        if n == most:
            break
        if grade[k] >= floor and item[k] < n_items and not (seeds[:n] == item[k]).any():
            seeds[n] = item[k]
            n += 1
    return seeds[:n].copy()
