"""Item to item: the neighbours, by a plugin's item vectors, of the source item or of what the user took last."""

from copy import copy
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field

from features.dots import row_dots
from features.plugin import VectorPlugin
from features.schema import F32, I32, I64
from features.settings import Settings
from ranker.candidates.coarse import Coarse
from ranker.candidates.named import Served, vector_plugin
from ranker.candidates.nearest import LEAVES
from ranker.candidates.probed import NO_OFFSET
from ranker.candidates.seeds import taken_last
from ranker.candidates.source import NOTHING, Proposal, best
from ranker.request import Request
from ranker.settings import exact_limit


class SimilarSettings(Settings):
    """Neighbours, by a plugin's item vectors, of the request's source item, else of the items that the user took last.

    An item's score is the sum of its cosines with them.
    """

    plugin: str = Field(
        description="Name of the one of [ranker] plugins whose item vectors are compared (towers, item2vec, ALS)."
    )
    last: int = Field(
        default=20,
        ge=1,
        le=500,
        description="How many of the items that the user took last ([lists] wanted) are started from, where the "
        "request has no source item. The k-th weighs 1 / sqrt(k).",
    )
    exact: int = exact_limit()


class Similar:
    """Items by the weighted sum of their cosines with the seeds: one product of a summed query with all items.

        query = Σ_k seed_k / (|seed_k| · sqrt(k))        score = query · item / |item|

    An item without a vector is never proposed, and is no seed. It reads the vectors alone, none of the plugin's code.
    """

    options = SimilarSettings
    name = "similar"
    vectors = True

    def __init__(self, **params: Any) -> None:
        self.settings = SimilarSettings(**params)
        self.plugins = (self.settings.plugin,)

    def open(self, served: Served) -> None:
        """Take the plugin's item vectors."""
        plugin: VectorPlugin = vector_plugin(f"[sources.{self.name}]", self.settings.plugin, served.plugins)
        self._floor = served.floor
        self._vectors = np.ascontiguousarray(plugin.item_vectors, np.float32)  # the plugin's own (mapped) array
        norm = np.sqrt(np.einsum("ij,ij->i", self._vectors, self._vectors))
        self._over = np.where(norm > 0, 1 / np.where(norm > 0, norm, 1), np.nan).astype(np.float32)
        self._rows, self._coarse = np.arange(len(self._over)), None
        if len(self._over) > self.settings.exact:
            self._coarse = _coarse_cosines(self._vectors, self._over)

    def in_full(self) -> "Similar | None":
        """Return the same source without a first pass; None where it has none."""
        if self._coarse is None:
            return None
        other = copy(self)
        other._coarse = None
        return other

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the items nearest to the seeds; none for a request without any that has a vector."""
        query = self._query(request)
        if query is None:
            return NOTHING
        rows: I64 = self._rows
        if self._coarse is not None and limit < len(rows) // LEAVES:
            rows = self._coarse.highest(query, 1.0, NO_OFFSET, limit)
        found = rows[best(self._cosines(query, rows), limit)].astype(np.int32)
        return Proposal(found, partial(self._score, query))

    def _query(self, request: Request) -> F32 | None:
        """Return float32[d], the weighted sum of the seeds' unit vectors; None without a seed that has one."""
        n_items = len(self._over)
        source = np.array([request.source_item])
        seeds = source if 0 <= request.source_item < n_items else self._taken(request, n_items)
        seeds = seeds[np.isfinite(self._over[seeds])]
        if not len(seeds):
            return None
        weight = self._over[seeds] / np.sqrt(np.arange(1, len(seeds) + 1))
        return np.asarray(weight @ self._vectors[seeds], np.float32)

    def _taken(self, request: Request, n_items: int) -> I32:
        return taken_last(request, self._floor, n_items, self.settings.last)

    def _score(self, query: F32, item: I32) -> F32:
        """Return float32[n] sums of cosines of any items; NaN of one without a vector, or that is none."""
        return self._cosines(query, np.where(item < len(self._over), item, -1).astype(np.int64))

    def _cosines(self, query: F32, rows: I64) -> F32:
        products = row_dots(self._vectors, rows, np.array([0, len(rows)]), query[None])
        return products * np.where(rows >= 0, self._over[rows], np.float32(np.nan))


def _coarse_cosines(vectors: F32, over: F32) -> Coarse:
    """Return the vectors in 8 bits, over their lengths: those are factors of the keys' scales."""
    coarse = Coarse.of(vectors)
    scale = coarse.scale.copy()
    scale[: len(over)] *= over
    return Coarse(coarse.codes, scale, coarse.count)
