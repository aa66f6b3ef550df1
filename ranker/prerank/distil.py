"""Distillation of the light scorer: the ranker scores all candidates of some requests, and a small forest learns them.

    drawn     requests of a period, each of another user: half of the users for the fit, the other half for the figure
    seen_by   all candidates of a request, as a server gathers them, with the rows of the light scorer and the scores
              that order the list
    distil    a forest on the candidates' ranks by the ranker's score
    kept_of   how many of the ranker's own first 50 are among those that are kept, of requests that the fit did not see

The ranker scores what the sources propose as of each request, and so does the light scorer learn of that: what it is
asked about later. A fifth of the items is left out of the fit, so that the figure has items that it never saw.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightgbm as lgb
import numpy as np

from features.hashing import mix
from features.plugin import FeaturePlugin
from features.progress import progress_bar
from features.rows import FeatureSpec
from features.schema import F32, F64, I32, I64, Bool, Requests
from features.state.read import of_items
from features.state.store import State
from ranker.candidates.configured import Sources
from ranker.candidates.gathering import Quotas, candidates_of, source_columns
from ranker.columns import full_matrix, given_of, with_sources
from ranker.config import Config
from ranker.prerank.light import Prerank, kept, light_columns, light_rows
from ranker.request import Request
from ranker.reranking.order import select

#: of the ranker's first so many it is asked which are kept
TOP = 50
#: requests that are learned from, and such that the figure is of; candidates of each that are learned from, at most
FITTED, MEASURED, LEARNED = 150, 150, 2000
#: a candidate's label is -log2(SHIFT + its rank by the ranker's score): the first ones stand far apart, the last ones
#: hardly, and it is of one scale in all requests
SHIFT = 25
#: of so many of the ranker's first, each is learned from
NEAR = 200
#: a small forest over so many counters, those that gain most: half of its time is that of its trees, half that of its
#: columns. The others stay, for a few requests may rest on them alone: those with a query
TREES, COUNTERS = 12, 5
PARAMS: dict[str, Any] = {
    "objective": "regression",
    "num_leaves": 16,
    "learning_rate": 0.4,
    "min_data_in_leaf": 50,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
    "num_threads": 1,
    "seed": 0,
}
#: one of so many items is not learned from
HELD = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """What orders the lists of Recommend, and from what."""

    config: Config
    state: State
    spec: FeatureSpec
    plugins: Mapping[str, FeaturePlugin]
    sources: Sources  # of what was known before the requests
    score: Callable[[F32], F64]  # gives float64[n] of the rows of the wanted part
    quotas: Quotas | None = None  # of the sources; None: their own

    @property
    def columns(self) -> list[str]:
        """The columns of the light scorer's rows."""
        return light_columns(self.state, self.spec, source_columns(self.sources))

    def seen(self, request: Request) -> "Seen":
        """Return all candidates of a request with both kinds of rows' worth."""
        candidates, scores = candidates_of(self.sources, request, self.config, self.quotas)
        given = given_of(candidates.given, self.state.catalog, self.spec)
        rows = full_matrix(self.state, self.spec, self.plugins, request.requests(candidates.item, given))
        light = light_rows(request, self.spec, candidates.item, scores)
        return Seen(candidates.item, scores, light, self.score(with_sources(rows, scores)))


class Seen(NamedTuple):
    """The n candidates of a request."""

    item: I32  # [n]
    scores: F32  # [n, s], of the sources
    light: F32  # [n, c], the light scorer's rows
    score: F64  # [n], the ranker's

    def first(self, most: int) -> I64:
        """Return int64[<= most]: the places of the ranker's first."""
        order: I64 = select(self.item, self.score)
        return order[:most]


def drawn(requests: Requests, state: State, fit: bool, most: int) -> Iterator[Request]:
    """Give at most so many requests, one of each known user: of the half that the fit sees, or of the other."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(requests))
    user = requests.user[order]
    order = order[(user >= 0) & ((mix(user.astype(np.uint64)) % np.uint64(2) == 0) == fit)]
    _, first = np.unique(requests.user[order], return_index=True)
    for k in order[np.sort(first)[:most]]:
        yield Request.of(requests, int(k), state)


def held_out(item: I32) -> Bool:
    """Return bool[n]: which items the fit does not see."""
    return np.asarray(mix(item.astype(np.uint64), 2) % np.uint64(HELD) == 0)


def distil(teacher: Teacher, requests: Requests) -> Prerank | None:
    """Return the light scorer learned from the half of the users for the fit; None where nothing is proposed."""
    rng, blocks, labels = np.random.default_rng(0), list[F32](), list[F64]()
    asked = drawn(requests, teacher.state, True, FITTED)
    for request in progress_bar(asked, desc="pre-ranking", unit=" requests", total=FITTED, leave=False):
        seen = teacher.seen(request)
        rows, rank = _learned(seen, rng)
        if len(rows) > 1:
            blocks.append(seen.light[rows])
            labels.append(-np.log2(SHIFT + rank))
    if not blocks:
        return None
    matrix = np.concatenate(blocks)
    label = np.concatenate(labels)
    gain = _fitted(matrix, label, teacher.columns).feature_importance("gain")[: len(of_items(teacher.state))]
    matrix[:, np.argsort(-gain, kind="stable")[COUNTERS:]] = np.nan
    return Prerank(_fitted(matrix, label, teacher.columns))


def _fitted(matrix: F32, label: F64, columns: list[str]) -> lgb.Booster:
    booster = lgb.train(PARAMS, lgb.Dataset(matrix, label, feature_name=columns), TREES)
    return lgb.Booster(model_str=booster.model_to_string())


def _learned(seen: Seen, rng: np.random.Generator) -> tuple[I64, I64]:
    """Return (places, ranks by the ranker's score) of candidates to learn from: the first, and others drawn evenly.

    No item that is held out is among them.
    """
    order = seen.first(len(seen.item))
    rank = np.flatnonzero(~held_out(seen.item[order]))
    first, rest = rank[rank < NEAR], rank[rank >= NEAR]
    most = max(LEARNED - len(first), 0)
    if len(rest) > most:
        rest = np.sort(rng.choice(rest, most, replace=False))
    rank = np.concatenate([first, rest])
    return order[rank], rank


def figures(teacher: Teacher, prerank: Prerank, requests: Requests, keep: int) -> dict[str, Any]:
    """Return how much of the ranker's own first TOP is among the `keep` that stay, of users that the fit did not see.

    kept_top50: mean over requests of which something is cut; of held-out items alone kept_top50_unseen_items; null
    without any. requests: of how many that is; cut: the share of requests; candidates: their mean.
    """
    shares, unseen, counts = list[float](), list[float](), list[int]()
    asked = drawn(requests, teacher.state, False, MEASURED)
    for request in progress_bar(asked, desc="pre-ranking, measured", unit=" requests", total=MEASURED, leave=False):
        seen = teacher.seen(request)
        counts.append(len(seen.item))
        if len(seen.item) > keep:
            top = seen.first(min(TOP, keep))
            score = prerank.scores(request, teacher.spec, seen.item, seen.scores)
            there = np.isin(top, kept(score, seen.item, keep))
            shares.append(float(there.mean()))
            new = held_out(seen.item[top])
            unseen += [float(there[new].mean())] if new.any() else []
    return {
        "kept_top50": float(np.mean(shares)) if shares else None,
        "kept_top50_unseen_items": float(np.mean(unseen)) if unseen else None,
        "requests": len(shares),
        "cut": len(shares) / max(len(counts), 1),
        "candidates": float(np.mean(counts)) if counts else 0.0,
    }
