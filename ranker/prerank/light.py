"""The light scorer of `[prerank]`: a small forest over columns that cost little, distilled from the ranker's scores.

    source__<name>   the sources' own scores: demand, the product of the towers' user and item vectors, co-occurrence …
    item__…          the counters of the item alone, as of the request
    source_item_…, query_…   what a candidate has to do with the source item and the query (`ranker.matching`)

The last ones and the scores of sources such as BM25 are there so that a related list or a search keeps what only they
favour. No plugin is asked, and no counter of the user's; all is as of the request, by the code that the ranker's own
rows are made by. A forest and not the product alone, with a prior of each item: see tests/bench/prerank.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lightgbm as lgb
import numpy as np

from features.errors import PairliftError
from features.rows import FeatureSpec
from features.schema import F32, F64, I32, I64
from features.state.read import item_counters, of_items
from features.state.store import State
from ranker.candidates.source import best
from ranker.forest.scorer import Scorer, checked_scorer
from ranker.request import Request

#: of a pin whose condition holds for more items, so many are kept whatever they score: the best
PINNED = 100


def light_columns(state: State, spec: FeatureSpec, sources: Sequence[str]) -> list[str]:
    """Return the names of the columns: counters of the item, those of `spec.matched`, the sources'."""
    return [*(state.counters[k].column for k in of_items(state)), *spec.matched, *sources]


def light_rows(request: Request, spec: FeatureSpec, item: I32, scores: F32) -> F32:
    """Return float32[n, c] of int32[n] items in the order of `light_columns`.

    scores: float32[n, s] of `source_values`.
    """
    state, requests = request.state, request.requests(item)
    counters = len(of_items(state))
    rows = np.empty((len(item), counters + len(spec.matched) + scores.shape[1]), np.float32)
    item_counters(state, requests, rows)
    if spec.matching is not None:
        places = list(enumerate(spec.matched, counters))
        spec.matching.write(state.catalog, places, requests, rows)
    rows[:, counters + len(spec.matched) :] = scores
    return rows


@dataclass(frozen=True, slots=True)
class Prerank:
    """The forest, loaded."""

    booster: lgb.Booster  # over `light_columns`
    scorer: Scorer | None = field(init=False)  # compiled; None where LightGBM's own predict must do

    def __post_init__(self) -> None:
        object.__setattr__(self, "scorer", checked_scorer(self.booster))

    @classmethod
    def load(cls, path: Path) -> "Prerank | None":
        """Read LightGBM's text; None where there is no such file."""
        return cls(lgb.Booster(model_file=str(path))) if path.exists() else None

    def check(self, columns: list[str], folder: Path) -> None:
        """Raise PairliftError where the forest of a bundle has other columns than its ranker's."""
        if self.booster.feature_name() != columns:
            raise PairliftError(
                f"{folder}: the forest of [prerank] and the ranker disagree about the columns; train it again"
            )

    def scores(self, request: Request, spec: FeatureSpec, item: I32, scores: F32) -> F64:
        """Return float64[n] of int32[n] items, on the calling thread. scores: float32[n, s] of `source_values`."""
        return self.of_rows(light_rows(request, spec, item, scores))

    def of_rows(self, rows: F32) -> F64:
        """Return float64[n] of `light_rows`."""
        if self.scorer is not None:
            return self.scorer.score(rows)
        return np.asarray(self.booster.predict(rows, num_threads=1, raw_score=True))


def kept(score: F64, item: I32, most: int, pins: Sequence[I64] = ()) -> I64:
    """Return int64[], ascending: the places of the `most` best of int32[n] items, and of those that are pinned.

    pins: int64[m], the places of each pin's items; of more than PINNED the best.
    """
    first: I64 = np.sort(best(score, most, item).astype(np.int64))
    if not pins:
        return first
    others = [at if len(at) <= PINNED else at[best(score[at], PINNED, item[at])] for at in pins]
    return np.unique(np.concatenate([first, *others]))


def by_sources(place: I32) -> F64:
    """Return float64[n], a score of candidates by the best place that a source has for each: what needs no forest.

    place: int32[n, s], as `Candidates.place`.
    """
    return np.asarray(-place.min(axis=1), np.float64)
