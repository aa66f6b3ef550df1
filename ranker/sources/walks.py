"""Random walks on the graph of users and items, from what the user took last: Pixie.

Eksombatchai, Jindal, Liu, Liu, Sharma, Sugnet, Ulrich, Leskovec, "Pixie: A System for Recommending 3+ Billion Items to
200+ Million Users in Real-Time", WWW 2018 (arXiv 1711.07601). Users stand for its boards, items for its pins.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from features.hashing import STEP, bits_for, looked_up, mixed, probe
from features.kernels import njit
from features.schema import F64, I32, I64, Bool, offsets_of
from features.settings import Settings
from ranker.candidates.named import Arrays, Served, SourceData
from ranker.candidates.seeds import taken_last
from ranker.candidates.source import NOTHING, Proposal, best
from ranker.request import Request

#: walks that go on at the same time
ABREAST = 16
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


class WalkSettings(Settings):
    """Items that random walks from what the user took last visit most: Pixie (Eksombatchai et al., WWW 2018)."""

    last: int = Field(
        default=20,
        ge=1,
        le=500,
        description="How many items are started from: the request's source item, then those that the user took last "
        "([lists] wanted). The k-th weighs 1 / sqrt(k).",
    )
    steps: int = Field(
        default=10_000,
        ge=1,
        le=10_000_000,
        description="Steps of a request's walks together, each from an item by one of its users to an item.",
    )
    restart: float = Field(
        default=0.5, gt=0, le=1, description="The chance, behind each step, that a walk begins again where it started."
    )
    enough_items: int = Field(
        default=1000,
        ge=1,
        description="Walks from an item end early when more than so many items were visited enough_visits times.",
    )
    enough_visits: int = Field(default=4, ge=1, description="How often an item is then visited.")


class Graph(NamedTuple):
    """m wanted events as edges, from both sides; one that comes twice is two edges."""

    item_offsets: I64  # [n_items + 1], the users of item i are user[item_offsets[i]:item_offsets[i + 1]]
    user: I32  # [m]
    user_offsets: I64  # [n_users + 1], the items of user u are item[user_offsets[u]:user_offsets[u + 1]]
    item: I32  # [m]


class RandomWalks:
    """Items by how often walks from the seeds visit them, each seed's visits under a root: (Σ sqrt(visits))².

    So an item that several seeds lead to stands above one that a single seed leads to as often (the multi-hit booster,
    equation 3). A seed has a share of the steps by its weight and degree (equations 1 and 2). The walks are random, but
    the same for a user and an as_of. The graph is of the events before the fit's end, and what the user took is as of
    the request: as of an earlier time than that end it knows more than it should, as co-occurrence does.
    """

    options = WalkSettings
    name = "walks"

    def __init__(self, **params: Any) -> None:
        self.settings = WalkSettings(**params)

    def fit(self, data: SourceData) -> Arrays:
        """Return the arrays of `Graph`: 8 bytes for each wanted event, and 8 for each user and item."""
        log, catalog = data.log, data.catalog
        use = (log.grade >= data.floor) & (log.user >= 0) & (log.item >= 0)
        user, item = log.user[use], log.item[use]
        return {
            "item_offsets": offsets_of(np.bincount(item, minlength=catalog.n_items)),
            "user": user[np.argsort(item, kind="stable")],
            "user_offsets": offsets_of(np.bincount(user, minlength=catalog.n_users)),
            "item": item[np.argsort(user, kind="stable")],
        }

    def open(self, served: Served) -> None:
        """Take the graph."""
        self._graph, self._floor = Graph(**served.arrays), served.floor
        self._degree = np.diff(self._graph.item_offsets)
        self._largest = float(self._degree.max(initial=0))

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the items that are visited most, and (Σ sqrt(visits))²; none for a request without a seed."""
        seeds = taken_last(request, self._floor, len(self._degree), self.settings.last)
        weight = 1 / np.sqrt(np.arange(1.0, len(seeds) + 1))
        known = self._degree[seeds] > 0
        if not known.any():
            return NOTHING
        seeds = seeds[known]
        steps = steps_of(self._degree[seeds], weight[known], self._largest, self.settings.steps)
        s = self.settings
        chance = np.uint64(s.restart * 2**32)
        items, sums, slots = _visited(
            self._graph, seeds, steps, chance, s.enough_items, s.enough_visits, seed_of(request.user, request.as_of)
        )
        boosted = sums**2
        return Proposal(items[best(boosted, limit, items)], partial(looked_up, slots, boosted))


def steps_of(degree: I64, weight: F64, largest: float, steps: int) -> I64:
    """Return int64[q] of each seed: its share of the steps, at least 1, by weight · degree · (largest - log(degree)).

    Equations 1 and 2 of the paper, with the weights in the sum, so that all steps together are `steps`. degree:
    int64[q] > 0. largest: of all items.
    """
    share = weight * degree * (largest - np.log(degree))
    return np.asarray(np.maximum(np.round(steps * share / share.sum()), 1), np.int64)


def seed_of(user: int, as_of: int) -> np.uint64:
    """Return what the random numbers of a request are made of: the same for a user and an as_of."""
    return np.uint64((as_of * 0x9E3779B97F4A7C15 + user + 1) % 2**64)


# for each seed:
#     ABREAST walks begin there; in turns, until the seed's steps are done:
#         each goes to a user of its item, evenly, then each to an item of that user, evenly
#         for each: count a visit of its item; end, where more than `enough_items` items have `enough_visits` visits
#                   where its draw says restart, it is back at the seed
#     add the root of each item's visits to its sum
@njit(cache=True, nogil=True)
def _visited(
    graph: Graph, seeds: I32, steps: I64, restart: np.uint64, enough_items: int, enough_visits: int, state: np.uint64
) -> tuple[I32, F64, I64]:
    """Return (int32[m] the visited items; float64[m] Σ sqrt(visits); a hash table of their places)."""
    most = min(steps.sum(), len(graph.item_offsets) - 1)
    bits, n = bits_for(most), 0
    slots = np.full((1 << bits, 2), -1, np.int64)
    items, sums = np.empty(most, np.int32), np.zeros(most)
    visits, met = np.zeros(most, np.int64), np.empty(most, np.int64)
    at, again = np.empty(ABREAST, np.int64), np.empty(ABREAST, np.bool_)
    for q in range(len(seeds)):
        at[:] = seeds[q]
        n_met, often, left = 0, 0, steps[q]
        while left > 0 and often <= enough_items:
            turn = min(left, ABREAST)
            state = _step(graph, at[:turn], again, restart, state)
            left -= turn
            for k in range(turn):
                slot = probe(slots, at[k], 64 - bits)
                if slots[slot, 1] < 0:
                    slots[slot, 0], slots[slot, 1], items[n] = at[k], n, at[k]
                    n += 1
                place = slots[slot, 1]
                if visits[place] == 0:
                    met[n_met] = place
                    n_met += 1
                visits[place] += 1
                often += visits[place] == enough_visits
                if often > enough_items:
                    break
                if again[k]:
                    at[k] = seeds[q]
        for place in met[:n_met]:
            sums[place] += np.sqrt(visits[place])
            visits[place] = 0
    return items[:n].copy(), sums[:n].copy(), slots


@njit(cache=True, nogil=True)
def _step(graph: Graph, at: I64, again: Bool, restart: np.uint64, state: np.uint64) -> np.uint64:
    """Move each walk from its item by a user to an item, and say which begin again; return the random state.

    Every load waits for memory: those of one loop wait together, for none needs another's.
    """
    edge = np.empty(len(at), np.int64)
    for k in range(len(at)):
        state, random = drawn(state)
        edge[k] = _edge(graph.item_offsets, at[k], random)
    for k in range(len(at)):
        at[k] = graph.user[edge[k]]
    for k in range(len(at)):
        state, random = drawn(state)
        edge[k] = _edge(graph.user_offsets, at[k], random)
        again[k] = (random & LOW) < restart  # the high half chose the edge
    for k in range(len(at)):
        at[k] = graph.item[edge[k]]
    return state


@njit(cache=True, nogil=True, inline="always")
def drawn(state: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Return the next state of SplitMix64, and its 64 random bits."""
    return state + STEP, mixed(state)


@njit(cache=True, nogil=True, inline="always")
def _edge(offsets: I64, node: int, random: np.uint64) -> Any:
    """Return one of a node's edges (int64), evenly, by the high half of 64 random bits (Lemire, TOMACS 2019)."""
    degree = np.uint64(offsets[node + 1] - offsets[node])
    return offsets[node] + np.int64(((random >> HALF) * degree) >> HALF)
