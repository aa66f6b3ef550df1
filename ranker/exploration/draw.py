"""The draw that orders a list, and the chance of each of its items given the items above it.

The candidates stand from best to worst. Of the first m, the race, one after the other is drawn, each with a chance in
proportion to exp(weight) among those that are left (Plackett 1975, "The analysis of permutations"; Luce 1959). Behind
them stand the others, in their order. A list takes what comes first and is not taken out by a rule of lists
(`ranker.candidates.at_most`), which reads the items above alone. So, with the race's items that may still stand there,

    chance(item | items above) = exp(weight) / Σ exp(weight)    of the race
                               = 1 for the first of the others, where none of the race may stand there, else 0

and that holds with rules too: what a rule takes out leaves the race, and a draw among fewer is a draw given that it is
one of those. Adding Gumbel noise to the weights and sorting draws all places at once (Yellott 1977; Kool et al. 2019,
"Stochastic beams and where to find them").

One definition serves the server, which writes down the chances of what it drew, and `pairlift offpolicy`, which asks
for those of another bundle. Without a race they say what an order without a draw would show: 1 or 0.
"""

import numpy as np

from features.hashing import mixed
from features.kernels import njit
from features.schema import F64, I32, I64

#: weights that lie further below the greatest than this count alike: no draw tells them from another
LEAST = -1e9


def race(score: F64, order: I64, temperature: float | None, top: int) -> F64:
    """Return float64[m], the weights of the first m places of an order, at most `top`: scores over the temperature.

    score: float64[n]; order: int64[n], best first, non-finite ones last, which are never drawn. temperature: None
    draws all of the race alike.
    """
    best = score[order[:top]]
    best = best[np.isfinite(best)]
    if temperature is None or not len(best):
        return np.zeros(len(best))
    with np.errstate(over="ignore"):
        weight: F64 = np.maximum((best - best[0]) / temperature, LEAST)
    return weight


def drawn(key: int, item: I32, order: I64, weight: F64) -> I64:
    """Return int64[n]: the order with its race drawn. key: of the request, 64 bits.

    The noise is of the key and of each item alone, so a draw among other candidates keeps the order of those it shares.
    """
    found: I64 = _drawn(np.uint64(key), item, order, weight)
    return found


@njit(cache=True, nogil=True)
def _drawn(key: np.uint64, item: I32, order: I64, weight: F64) -> I64:
    m, found = len(weight), order.copy()
    falling = np.empty(m)
    for r in range(m):
        bits = mixed(mixed(np.uint64(item[order[r]])) ^ key) >> np.uint64(11)
        falling[r] = np.log(-np.log((np.float64(bits) + 0.5) * 2.0**-53)) - weight[r]
    found[:m] = order[np.argsort(falling, kind="mergesort")]
    return found


# logs[p] ← log Σ exp(weight) of the race's items that may stand at place p, from the last place to the first
# for each place: the item's weight less that; of the others 1 for the first that may stand where no race is left
@njit(cache=True, nogil=True)
def chances(place: I64, order: I64, weight: F64, last: I64) -> F64:
    """Return float64[k]: the chance of each item of a list given the items above it.

    place: int64[k], the list's items as places among the candidates; -1 is no candidate, whose chance is 0. order:
    int64[n], candidates best first; weight: float64[m] of the race, its first m. last: int64[n], of each candidate the
    last place of the list at which it may still stand (0 first): where it stands, or where the rule that takes it out
    has its last item.
    """
    k, m, n = len(place), len(weight), len(order)
    logs, found = np.full(k + 1, -np.inf), np.zeros(k)
    rank = np.full(n, -1, np.int64)
    for r in range(n):
        rank[order[r]] = r
    for r in range(m):
        p = min(last[order[r]], k)
        if p >= 0:
            logs[p] = np.logaddexp(logs[p], weight[r])
    for p in range(k - 1, -1, -1):
        logs[p] = np.logaddexp(logs[p], logs[p + 1])
    first = m  # rank of the first of the others that may stand here: what may not, may not further down either
    for p in range(k):
        while first < n and last[order[first]] < p:
            first += 1
        if place[p] < 0 or last[place[p]] < p:
            continue
        r = rank[place[p]]
        if r < m:
            found[p] = min(np.exp(weight[r] - logs[p]), 1.0)
        elif r == first and logs[p] == -np.inf:
            found[p] = 1.0
    return found


@njit(cache=True, nogil=True)
def standing(place: I64, last: I64) -> I64:
    """Return int64[n]: `last` (of the rules alone) with where the items of a list stand; places as in `chances`."""
    found = last.copy()
    for p in range(len(place)):
        if place[p] >= 0:
            found[place[p]] = min(found[place[p]], p)
    return found
