"""What a place in a source's list is worth, learned of lists that the sources proposed and of what users wanted later.

The log-odds that a user wants an item are a sum over the sources: of each what the item's place in its list is worth,
which falls with the place and is 0 where the source does not propose the item. So an item that several sources propose
comes before one of equal places that only one does. It is a generalised additive model (Hastie, Tibshirani 1986,
"Generalized Additive Models", Statistical Science 1 (3)) with monotone steps at KNOTS, fitted by penalised likelihood;
items of equal steps are counted together, so a fit takes hundredths of a second with three sources, and seconds with a
dozen whose lists are long.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from features.kernels import njit
from features.schema import F32, F64, I8, I32, I64, Bool
from ranker.blend.order import Table
from ranker.candidates.merge import first_by_worth, merged

#: places from which a step reaches to the next; between them a worth is linear in log(1 + place)
KNOTS = (0, 1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 135, 200, 300, 450, 700)
#: weight of half the squared height of a step, beside the negative log-likelihood: that of one user whose one wanted
#: item is there
RIDGE = 1.0
#: steps of the optimiser at most, and the relative change of the loss with which it ends
STEPS, NEAR = 300, 1e-7


#: [place, its worth] of a source, by place, as JSON has it
Steps = Sequence[Sequence[float]]


class Worth(NamedTuple):
    """Of s sources."""

    at: F64  # [s, len(KNOTS)], at each knot, in log-odds; falls with the place, never below 0
    most: I64  # [s], how many places of the list count at most; 0 of a source that takes no part

    def steps(self) -> list[Steps]:
        """Return [place, worth] at the knots, of each source."""
        return [[[place, worth] for place, worth in zip(KNOTS, own, strict=True)] for own in self.at.round(4).tolist()]

    def table(self, depth: int) -> F32:
        """Return float32[s, depth]: the worth of each place."""
        return np.array([worth_at(own, depth) for own in self.steps()], np.float32).reshape(len(self.at), depth)


#: what the first places of each source are worth more than all others, in log-odds
LEAD = 1000.0


def led(worth: F32, floor: int) -> F32:
    """Return float32[s, d] worths by which the first `floor` places of each source come before all others."""
    return worth + np.where(np.arange(worth.shape[1]) < floor, np.float32(LEAD), np.float32(0))


def worth_at(steps: Steps, depth: int) -> F32:
    """Return float32[depth], the worth of each place: linear in log(1 + place) between steps, 0 of none."""
    if not steps:
        return np.zeros(depth, np.float32)
    place, worth = np.array(steps).T
    return np.asarray(np.interp(np.log1p(np.arange(depth)), np.log1p(place), worth), np.float32)


class Cells(NamedTuple):
    """The items of a table, those of equal steps together."""

    step: I8  # [c, s], in which step of each list they are, len(KNOTS) where the source does not propose them
    of: I64  # [n], the cell of each item


def cells_of(table: Table) -> Cells:
    """Return the cells of a table."""
    steps = np.searchsorted(KNOTS, np.arange(int(table.place.max(initial=0)) + 1), side="right") - 1
    step = np.append(steps, len(KNOTS)).astype(np.int8)[table.place]  # place -1 has the last one
    key = np.zeros(len(step), np.int64)
    for own in step.T:
        _, key = np.unique(key * (len(KNOTS) + 1) + own, return_inverse=True)
    _, first, of = np.unique(key, return_index=True, return_inverse=True)
    return Cells(step[first], of)


def worth_of(cells: Cells, hit: Bool, weight: F64, most: I64) -> Worth:
    """Return what places are worth.

    hit: bool[n], which items were wanted. weight: float64[n], of each item. most: int64[s], so many places of a
    source's list count at most; 0 leaves it out.
    """
    hits, every = (np.bincount(cells.of, of, len(cells.step)).astype(float) for of in (weight * hit, weight))
    step = np.where(np.array([*KNOTS, 0])[cells.step] < most, cells.step, len(KNOTS))
    told = (step < len(KNOTS)).any(axis=1) & (every > 0)
    at = _fitted(step[told], hits[told], every[told])
    return Worth(at, most)


def _fitted(step: I64, hits: F64, weight: F64) -> F64:
    """Return float64[s, len(KNOTS)] of the least penalised negative log-likelihood. hits, weight: float64[c]."""
    sources, knots = step.shape[1], len(KNOTS)
    if not 0 < hits.sum() < weight.sum():
        return np.zeros((sources, knots))

    def loss(of: F64) -> tuple[float, F64]:
        """Return the loss and its slope by the height of each step, and by the log-odds of no worth at all."""
        height, log_odds = of[:-1].reshape(sources, knots), np.full(len(step), of[-1])
        at = np.pad(np.cumsum(height[:, ::-1], axis=1)[:, ::-1], ((0, 0), (0, 1)))
        for own, places in zip(at, step.T, strict=True):
            log_odds += own[places]
        more = weight * expit(log_odds) - hits
        slope = [np.cumsum(np.bincount(places, more, knots + 1)[:knots]) for places in step.T]
        value = weight @ np.logaddexp(0.0, log_odds) - hits @ log_odds + RIDGE / 2 * (height**2).sum()
        return float(value), np.append(np.array(slope) + RIDGE * height, more.sum())

    mean = hits.sum() / weight.sum()
    start = np.append(np.zeros(sources * knots), np.log(mean / (1 - mean)))
    bounds = [(0.0, None)] * (sources * knots) + [(None, None)]
    options = {"maxiter": STEPS, "ftol": NEAR}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return np.cumsum(found[:-1].reshape(sources, knots)[:, ::-1], axis=1)[:, ::-1]


def first_of(lists: I32, worth: Worth, m: int, floor: int = 0) -> I32:
    """Return int32[u, m] of int32[s, u, n] lists: the m items of each user that are worth most, best first.

    -1 stands behind the end of a list. By the same floor (items that each source has at least) and with lists as deep,
    they are those that `within_places` has for a request.
    """
    return np.asarray(_first_of(lists, led(worth.table(lists.shape[2]), floor), worth.most, m))


@njit(cache=True, nogil=True)
def _first_of(lists: I32, table: F32, most: I64, m: int) -> I32:
    found = np.full((lists.shape[1], m), -1, np.int32)
    for u in range(lists.shape[1]):
        length = (lists[:, u] >= 0).sum(axis=1)
        starts = np.zeros(len(lists) + 1, np.int64)
        starts[1:] = np.cumsum(np.minimum(length, most))
        together = np.empty(starts[-1], np.int32)
        for s in range(len(lists)):
            together[starts[s] : starts[s + 1]] = lists[s, u, : starts[s + 1] - starts[s]]
        item, _, place = merged(together, starts)
        rows = first_by_worth(place, table, m)
        found[u, : len(rows)] = item[rows]
    return found
