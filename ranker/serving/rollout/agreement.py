"""How far the answers of two bundles to the same requests agree: ranks, the first ten, scores, and time."""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from pairlift.v1 import admin_pb2 as admin
from pairlift.v1 import ranking_pb2 as pb

from features.schema import F64, I64
from ranker.asking.messages import id_list

#: items of an answer that are looked at for the overlap
TOP = 10
#: requests, and scores, that the figures are of: the latest
REQUESTS, SCORES = 4096, 1 << 16
#: scores of one answer that are kept, spread over it
SCORES_OF_ONE = 64
#: parts of the active bundle's scores that the population stability index compares, and the least share of one
PARTS, LEAST_SHARE = 10, 1e-4
#: seconds to milliseconds
_MS = 1000.0

Reply = pb.RecommendResponse | pb.RankResponse


class Ring:
    """The latest rows of some numbers."""

    def __init__(self, most: int, columns: int) -> None:
        self._rows = np.empty((most, columns))
        self._count = 0

    def add(self, rows: F64) -> None:
        """Append float64[n, columns] in place of the oldest; n at most as many as are kept."""
        most = len(self._rows)
        self._rows[np.arange(self._count, self._count + len(rows)) % most] = rows
        self._count += len(rows)

    @property
    def rows(self) -> F64:
        """float64[m, columns], in no order."""
        return self._rows[: min(self._count, len(self._rows))].copy()


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one request, and the seconds that each took."""

    active: Reply
    other: Reply
    active_seconds: float
    seconds: float


class Agreement:
    """Collects pairs of answers. `add` from one thread, `figures` from any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = Ring(REQUESTS, 4)  # correlation, overlap, and the seconds of both
        self._scores = Ring(SCORES, 2)  # of items that both answered: the active bundle's, and the other's
        self._count = self._not_finite = 0
        self.errors = self.dropped = self.constant = 0  # requests; constant: several items with one score

    def add(self, pair: Pair) -> None:
        """Take a pair of answers."""
        a, b = pair.active, pair.other
        both = common_scores(a, b)
        other = np.array(b.scores)
        step = max(1, len(both) // SCORES_OF_ONE)
        row = (spearman(both[:, 0], both[:, 1]), overlap(a, b), pair.active_seconds, pair.seconds)
        with self._lock:
            self._count += 1
            self._not_finite += int((~np.isfinite(other)).sum())
            self.constant += _is_constant(other) and not _is_constant(np.array(a.scores))
            self._requests.add(np.array([row]))
            self._scores.add(both[::step][:SCORES_OF_ONE])

    def fail(self) -> None:
        """Count a request that the other bundle could not answer, and the active one could."""
        with self._lock:
            self.errors += 1

    def drop(self) -> None:
        """Count a request that was not tried."""
        with self._lock:
            self.dropped += 1

    def figures(self) -> admin.Comparison:
        """Return the figures of the latest pairs."""
        with self._lock:
            requests, scores = self._requests.rows, self._scores.rows
            counts = {"requests": self._count, "errors": self.errors, "dropped": self.dropped}
            not_finite = self._not_finite
        scores = scores[np.isfinite(scores).all(axis=1)]
        return admin.Comparison(
            **counts,
            not_finite=not_finite,
            rank_correlation=_of_known(np.median, requests[:, 0]),
            overlap_at_10=_of_known(np.mean, requests[:, 1]),
            mean_active=_of_known(np.mean, scores[:, 0]),
            std_active=_of_known(np.std, scores[:, 0]),
            mean=_of_known(np.mean, scores[:, 1]),
            std=_of_known(np.std, scores[:, 1]),
            psi=stability(scores[:, 0], scores[:, 1]),
            p50_active=_of_known(np.median, requests[:, 2]) * _MS,
            p99_active=_of_known(_p99, requests[:, 2]) * _MS,
            p50=_of_known(np.median, requests[:, 3]) * _MS,
            p99=_of_known(_p99, requests[:, 3]) * _MS,
        )


def _p99(values: F64) -> float:
    return float(np.quantile(values, 0.99))


def _is_constant(scores: F64) -> bool:
    return len(scores) > 1 and bool((scores == scores[0]).all())


def _of_known(figure: Any, values: F64) -> float:
    known = values[~np.isnan(values)]
    return float(figure(known)) if len(known) else float("nan")


def common_scores(a: Reply, b: Reply) -> F64:
    """Return float64[m, 2]: of each item that both answered its two scores. An item that stands twice counts twice."""
    if isinstance(a, pb.RankResponse) and isinstance(b, pb.RankResponse):
        # By the place in the request's list, which both name: ids may repeat there.
        first, second = (np.argsort(np.array(one.indexes, np.int64)) for one in (a, b))
        return np.stack([np.array(a.scores)[first], np.array(b.scores)[second]], axis=1).reshape(-1, 2)
    place = {item: k for k, item in enumerate(id_list(b.items))}
    pairs = [(k, place[item]) for k, item in enumerate(id_list(a.items)) if item in place]
    first, second = np.array(pairs, np.int64).reshape(-1, 2).T
    return np.stack([np.array(a.scores)[first], np.array(b.scores)[second]], axis=1).reshape(-1, 2)


def overlap(a: Reply, b: Reply) -> float:
    """Return the share of the first ten items (or of as many as the longer list has) that both have; NaN of none."""
    if isinstance(a, pb.RankResponse) and isinstance(b, pb.RankResponse):
        first, second = set(a.indexes[:TOP]), set(b.indexes[:TOP])
    else:
        first, second = set(id_list(a.items)[:TOP]), set(id_list(b.items)[:TOP])
    most = max(len(first), len(second))
    return len(first & second) / most if most else float("nan")


def spearman(a: F64, b: F64) -> float:
    """Return the rank correlation of float64[n] and float64[n]; ties share a rank; NaN where one is constant.

    What is not finite has the lowest rank, as in an answer.
    """
    if len(a) < 2:
        return float("nan")
    x, y = (_ranks(np.where(np.isfinite(values), values, -np.inf)) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size else float("nan")


def _ranks(values: F64) -> F64:
    """Return the rank of each value from 0, the mean of their ranks for equal ones."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: F64 = (ends - (counts + 1) / 2)[place]
    return ranks


def stability(active: F64, other: F64) -> float:
    """Return the population stability index Σ (q - p) · ln(q / p) over tenths of the active scores; NaN of none."""
    if not len(active):
        return float("nan")
    edges = np.unique(np.quantile(active, np.arange(1, PARTS) / PARTS))
    p, q = (_shares(np.searchsorted(edges, scores, "right"), len(edges) + 1) for scores in (active, other))
    return float(((q - p) * np.log(q / p)).sum())


def _shares(part: I64, parts: int) -> F64:
    counts: F64 = np.bincount(part, minlength=parts) / len(part)
    return np.maximum(counts, LEAST_SHARE)
