"""Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) over the item vectors of a plugin.

Place by place, of the best `among` items the one is taken that has the most of

    (1 - weight) · relevance - weight · similarity

relevance    (score - lowest) / (highest - lowest) of those items: scores are log-odds whose spread is another in each
             bundle and request, and so it is in [0, 1] as the similarity is; 0 where all scores are equal
similarity   the highest cosine with an item that stands above, in [0, 1]: below 0, two items are as unlike as at 0

An item without a vector (new, or one with a number that is not finite, or all 0) is taken for as similar as those with
one are in the mean, so that the lack of a vector neither raises nor lowers it; nothing is similar to it. Of equal
values the better scored item is taken, so a weight of 0 changes nothing. Given what stands above, a higher weight never
takes a more similar item. Items whose score is not finite stay at the end.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from features.kernels import njit
from features.plugin import FeaturePlugin, VectorPlugin
from features.schema import F32, F64, I32, I64, Bool
from ranker.candidates.at_most import NOTHING_FIXED
from ranker.candidates.named import vector_plugin
from ranker.settings import DiversitySettings

log = logging.getLogger(__name__)

PLACE = "[lists] diversity"


@dataclass(frozen=True, slots=True)
class Diversity:
    """`[lists] diversity` over the vectors of a plugin."""

    vectors: F32  # [n_items, d], the plugin's own
    weight: float
    among: int

    @classmethod
    def of(cls, settings: DiversitySettings | None, plugins: Mapping[str, FeaturePlugin]) -> "Diversity | None":
        """Return it over the served plugins, by name; None where it is off, or its plugin is not served."""
        if settings is None or not settings.weight:
            return None
        name = diversity_plugin(settings, plugins)
        if name not in plugins:  # in an arm of a study without the plugin; `check_diversity` refuses what trains
            log.info("[lists] diversity is left out: its plugin is not served")
            return None
        plugin: VectorPlugin = vector_plugin(PLACE, name, plugins)
        return cls(np.ascontiguousarray(plugin.item_vectors, np.float32), settings.weight, settings.among)

    def reordered(self, item: I32, score: F64, order: I64, picks: int, fixed: I64 = NOTHING_FIXED) -> I64:
        """Return int64[n]: an order of places, best first, of which the first `picks` are chosen as said above.

        item: int32[n]. order: int64[n], by float64[n] score, non-finite last. fixed: int64[f], the places of items that
        stand in the first f places of the list whatever is chosen, -1 for none: others are compared with them too.
        """
        pool = order[: self.among]
        pool = pool[: np.count_nonzero(np.isfinite(score[pool]))]
        if len(pool) < 2:
            return order
        unit, known = unit_vectors(self.vectors, item[pool])
        beside, _ = unit_vectors(self.vectors, np.where(fixed < 0, -1, item[fixed]))
        picks = min(picks, len(pool))
        chosen = pool[_chosen(unit, known, beside, fixed >= 0, _relevance(score[pool]), self.weight, picks)]
        left = np.ones(len(item), np.bool_)
        left[chosen] = False
        return np.concatenate([chosen, order[left[order]]])


def check_diversity(settings: DiversitySettings | None, plugins: Mapping[str, object]) -> None:
    """Refuse what names no plugin with vectors. plugins: the classes of `[ranker] plugins`, by name."""
    if settings is not None:
        vector_plugin(PLACE, diversity_plugin(settings, plugins), plugins)


def diversity_plugin(settings: DiversitySettings, plugins: Mapping[str, object]) -> str:
    """Return the name of the plugin whose vectors are compared: the first that has some, where none is named.

    plugins: those that are served, or their classes, by name; empty where none of them has vectors.
    """
    if settings.plugin is not None:
        return settings.plugin
    return next((name for name, plugin in plugins.items() if hasattr(plugin, "user_vectors")), "")


def mean_similarity(vectors: F32, item: I32) -> float:
    """Return the mean cosine of the pairs of int32[n] items that both have a vector; NaN without such a pair."""
    unit, known = unit_vectors(vectors, item[item >= 0])
    unit = unit[known].astype(np.float64)
    n = len(unit)
    return float((np.square(unit.sum(axis=0)).sum() - np.square(unit).sum()) / (n * (n - 1))) if n > 1 else np.nan


@njit(cache=True, nogil=True)
def unit_vectors(vectors: F32, item: I32) -> tuple[F32, Bool]:
    """Return (float32[n, d] vectors of length 1, bool[n] which items have one)."""
    unit, known = np.zeros((len(item), vectors.shape[1]), np.float32), np.zeros(len(item), np.bool_)
    for k in range(len(item)):
        if 0 <= item[k] < len(vectors):
            square = np.float64(0)
            for number in vectors[item[k]]:
                square += np.float64(number) * np.float64(number)
            if 0 < square < np.inf:
                known[k], length = True, np.float32(np.sqrt(square))
                for j in range(vectors.shape[1]):
                    unit[k, j] = vectors[item[k], j] / length
    return unit, known


def _relevance(score: F64) -> F64:
    """Return float64[m] from 1 to 0. score: finite, falling."""
    low, high = 0.5 * score[-1], 0.5 * score[0]  # halves: the whole difference could overflow
    return (0.5 * score - low) / (high - low) if high > low else np.zeros(len(score))


# for each place: where an item is fixed there, it stands; else take the item of the highest value, the first of equals
#     those left are as similar as they are to it, where that is more: to no vector (zeros) they are not
@njit(cache=True, nogil=True)
def _chosen(
    unit: F32, known: Bool, beside: F32, fixed: Bool, relevance: F64, weight: float, picks: int
) -> I64:  # fmt: skip
    """Return int64[picks] of the rows of float32[m, d] unit. beside: float32[f, d] of the places that are fixed."""
    m, place, n = len(unit), 0, 0
    similarity, left, chosen = np.zeros(m), np.ones(m, np.bool_), np.empty(picks, np.int64)
    while n < picks:
        if place < len(fixed) and fixed[place]:
            _compare(unit, beside[place], similarity)
        else:
            taken = _best(relevance, similarity, known, left, weight)
            left[taken], chosen[n] = False, taken
            n += 1
            _compare(unit, unit[taken], similarity)
        place += 1
    return chosen


@njit(cache=True, nogil=True)
def _best(relevance: F64, similarity: F64, known: Bool, left: Bool, weight: float) -> int:
    total, count = 0.0, 0
    for k in range(len(left)):
        if left[k] and known[k]:
            total += similarity[k]
            count += 1
    mean = total / count if count else 0.0
    best, most = -1, -np.inf
    for k in range(len(left)):
        value = (1 - weight) * relevance[k] - weight * (similarity[k] if known[k] else mean)
        if left[k] and (best < 0 or value > most):
            best, most = k, value
    return best


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _compare(unit: F32, other: F32, similarity: F64) -> None:
    """Raise the similarities to the cosines with another vector, where these are higher."""
    for k in range(len(unit)):
        cosine = np.float32(0)
        for j in range(len(other)):
            cosine += unit[k, j] * other[j]
        similarity[k] = max(similarity[k], np.float64(cosine))
