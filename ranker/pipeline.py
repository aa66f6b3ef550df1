"""The way of one request from candidates to answer: `Pipeline.recommend` and `Pipeline.rank` read top to
bottom.

Stages keep length and order. A source or plugin that raises or is late is counted and named in the answer;
its items are missing, its columns are NaN, and the answer still comes.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from features.errors import PairliftError
from features.plugin import FeaturePlugin, VectorPlugin
from features.rows import assemble
from features.schema import F32, F64, I32, I64
from features.state.store import State
from ranker.bundle import Bundle
from ranker.candidates import filters
from ranker.candidates.cooccurrence import TakenTogether
from ranker.candidates.merge import dedupe, within_quota
from ranker.candidates.nearest import Nearest
from ranker.candidates.popular import Popular
from ranker.candidates.source import CandidateSource
from ranker.lanes import Failures, Lane
from ranker.request import ABSENT, MAX_SOURCES, Answer, Candidates, Detail, Request, SourceReport
from ranker.settings import SourceSettings

log = logging.getLogger(__name__)

Sources = Sequence[tuple[CandidateSource, SourceSettings]]
#: what `Answer.source_names` says of the items of a Rank
CALLER = "caller"
#: how many items of an answer are explained
EXPLAINED = 100
#: a source is asked for its quota and for what the filters are sure to remove, but for no more than quota
#: times this
MOST_ASKED = 5
#: seconds that one source or plugin may take to warm up: kernels are compiled then
WARM_UP = 120.0
SECOND = 1_000_000


class Trace:
    """What one request leaves behind beside its items: durations, counts and problems."""

    def __init__(self) -> None:
        self.degraded: list[str] = []
        self.proposed: list[tuple[int, str]] = []
        self.removed: list[tuple[str, int]] = []
        self.stages: list[tuple[str, int]] = []
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.stages.append((stage, round((now - self._last) * SECOND)))
        self._last = now


class Pipeline:
    """Answers requests from one bundle and its state; stateless otherwise, safe to call from several threads.

    A source or plugin has twice as many threads as `[serve] workers`: as many requests as that can be under
    way while as many late calls are still running.
    """

    def __init__(
        self, bundle: Bundle, sources: Sources | None = None, state: Callable[[], State] | None = None
    ) -> None:
        """sources: other than those of the bundle's configuration; PairliftError for more than 32.

        state: gives the state of now, where it follows recorded events; else it is the bundle's.
        """
        self.bundle = bundle
        self._state = state
        self.sources = list(configured_sources(bundle, self.state) if sources is None else sources)
        if len(self.sources) > MAX_SOURCES:
            raise PairliftError(f"at most {MAX_SOURCES} candidate sources were expected, found {len(self.sources)}")
        self.filters: list[tuple[str, filters.Filter]] = [
            ("unknown", filters.unknown),
            ("excluded", filters.excluded),
        ]
        if bundle.config.sources.exclude_seen:
            self.filters.append(("seen", filters.seen))
        self.failures = Failures()
        names = [f"sources.{source.name}" for source, _ in self.sources] + [
            f"plugins.{name}" for name in bundle.plugins
        ]
        self._lanes = {name: Lane(name, 2 * bundle.config.serve.workers) for name in names}

    @property
    def state(self) -> State:
        """What a request that begins now reads to its end."""
        return self.bundle.state if self._state is None else self._state()

    @property
    def source_names(self) -> tuple[str, ...]:
        """The sources in the order of their bits."""
        return tuple(source.name for source, _ in self.sources)

    def recommend(self, request: Request, k: int) -> Answer:
        """Return the best k items that the sources propose and the filters keep, or as many as there are."""
        trace, state = Trace(), request.state or self.state
        request = replace(request, state=state)
        candidates = dedupe(self._fetch(request, state, trace))
        trace.mark("sources")
        for name, keep in self.filters:
            candidates, removed = keep(candidates, request, state)
            trace.removed.append((name, len(removed)))
        candidates = within_quota(candidates, [settings.quota for _, settings in self.sources])
        trace.mark("filters")
        matrix = self._features(request, state, candidates.item, trace)
        trace.mark("features")
        score = self.bundle.score(matrix)
        trace.mark("score")
        top = select(candidates.item, score)[:k]
        trace.mark("select")
        detail = self._detail(matrix[top[:EXPLAINED]], candidates, trace) if request.explain else None
        sources = candidates.sources[top]
        degraded = tuple(trace.degraded)
        values = matrix[top] if request.keep_values else None
        return Answer(top, candidates.item[top], score[top], sources, self.source_names, degraded, detail, values)

    def rank(self, request: Request, item: I32) -> Answer:
        """Return all of int32[n] items (-1 is cold, repeats stay), best first."""
        trace, state = Trace(), request.state or self.state
        matrix = self._features(request, state, item, trace)
        trace.mark("features")
        score = self.bundle.score(matrix)
        trace.mark("score")
        top = select(item, score)
        trace.mark("select")
        detail = self._detail(matrix[top[:EXPLAINED]], None, trace) if request.explain else None
        sources = np.ones(len(top), np.uint32)
        values = matrix[top] if request.keep_values else None
        return Answer(top, item[top], score[top], sources, (CALLER,), tuple(trace.degraded), detail, values)

    def warm(self) -> list[str]:
        """Run every stage, so that no request waits for a compiler or a thread; return what failed."""
        state = self.state
        requests = [Request(user, state.end, state=state) for user in (*_a_known_user(state), -1)]
        items = np.arange(min(state.catalog.n_items, EXPLAINED), dtype=np.int32)
        failed: dict[str, None] = {}
        for request in requests:
            calls: list[tuple[str, Callable[[], Any]]] = [
                (f"sources.{source.name}", partial(_proposed, source, request, settings.quota))
                for source, settings in self.sources
            ]
            calls += [
                (f"plugins.{name}", self._values(plugin, request, state, items)) for name, plugin in self._plugins()
            ]
            for name, call in calls:
                try:
                    self._lanes[name].start(call).result(WARM_UP)
                except Exception as error:
                    self.failures.add(name, error)
                    failed[name] = None
            known = assemble(state, self.bundle.spec, request.requests(items))
            missing = np.full((len(items), len(self.bundle.columns) - known.shape[1]), np.nan, np.float32)
            self.bundle.score(np.concatenate([known, missing], axis=1))
        return list(failed)

    def refresh(self) -> None:
        """Order the popular items anew by the state of now: too long for a request, so a server does it aside."""
        popular = Popular(self.state)
        self.sources = [(popular if isinstance(s, Popular) else s, settings) for s, settings in self.sources]

    def close(self) -> None:
        """Let the threads end."""
        for lane in self._lanes.values():
            lane.close()

    def _fetch(self, request: Request, state: State, trace: Trace) -> list[I32]:
        """Return what each source proposed, in parallel, each with its quota and deadline."""
        # The user's history and the exclusions will be removed: without more to choose from, a user who has
        # seen all that is popular would get nothing of it.
        surplus = len(request.exclude) + 1
        if self.bundle.config.sources.exclude_seen:
            surplus += len(filters.history(request, state))
        begun = time.monotonic()
        calls = []
        for source, settings in self.sources:
            limit = settings.quota + min(surplus, (MOST_ASKED - 1) * settings.quota)
            calls.append(self._lanes[f"sources.{source.name}"].start(partial(_proposed, source, request, limit)))
        proposals = []
        for (source, settings), call in zip(self.sources, calls, strict=True):
            items, problem = self._outcome(f"sources.{source.name}", call, begun, settings.deadline, trace)
            proposals.append(np.empty(0, np.int32) if items is None else items)
            trace.proposed.append((len(proposals[-1]), problem))
        return proposals

    def _features(self, request: Request, state: State, item: I32, trace: Trace) -> F32:
        """Return float32[n, c] in the booster's order: counters, attributes, context, then plugin columns."""
        bundle = self.bundle
        matrix = np.full((len(item), len(bundle.columns)), np.nan, np.float32)
        if not len(item):
            return matrix
        begun = time.monotonic()
        calls = [
            (name, plugin, self._lanes[f"plugins.{name}"].start(self._values(plugin, request, state, item)))
            for name, plugin in self._plugins()
        ]
        column = len(bundle.spec.columns)
        matrix[:, :column] = assemble(state, bundle.spec, request.requests(item))
        deadline = bundle.config.serve.plugin_deadline
        for name, plugin, call in calls:
            values, _ = self._outcome(f"plugins.{name}", call, begun, deadline, trace)
            if values is not None:
                matrix[:, column : column + len(plugin.columns)] = values
            column += len(plugin.columns)
        return matrix

    def _outcome(self, name: str, call: "Future[Any]", begun: float, deadline: int, trace: Trace) -> tuple[Any, str]:
        """Wait for a call until `deadline` µs after `begun`; return (result, "") or (None, its problem)."""
        try:
            return call.result(max(0.0, begun + deadline / SECOND - time.monotonic())), ""
        except Exception as error:
            trace.degraded.append(name)
            return None, self.failures.add(name, error)

    def _plugins(self) -> list[tuple[str, FeaturePlugin]]:
        return list(self.bundle.plugins.items())

    def _values(self, plugin: FeaturePlugin, request: Request, state: State, item: I32) -> Callable[[], F32]:
        def call() -> F32:
            known = state.catalog.described_items(item)  # a plugin knows those that it was fitted on
            values = plugin.values(request.requests(known), state.histories)
            expected = (len(item), len(plugin.columns))
            if np.shape(values) != expected:
                raise ValueError(f"values of shape {expected} were expected, found {np.shape(values)}")
            return values

        return call

    def _detail(self, matrix: F32, candidates: Candidates | None, trace: Trace) -> Detail:
        columns = self.bundle.columns
        parts = np.zeros((0, len(columns) + 1))
        if len(matrix):
            parts = np.asarray(self.bundle.booster.predict(matrix, num_threads=1, pred_contrib=True))
        reports: tuple[SourceReport, ...] = ()
        if candidates is not None:
            scored = (candidates.place < ABSENT).sum(axis=0).tolist()
            reports = tuple(
                SourceReport(name, proposed, kept, problem)
                for name, (proposed, problem), kept in zip(self.source_names, trace.proposed, scored, strict=True)
            )
        trace.mark("explain")
        base = float(parts[0, -1]) if len(parts) else 0.0
        contributions = parts[:, :-1].astype(np.float32)
        return Detail(columns, matrix, contributions, base, reports, tuple(trace.removed), tuple(trace.stages))


def _a_known_user(state: State) -> list[int]:
    """Return the user with the longest history, as a list of one; none where no user has any."""
    sizes = state.histories.sizes
    return [int(sizes.argmax())] if sizes.any() else []


def configured_sources(bundle: Bundle, state: State) -> Sources:
    """Return the sources of `[sources]`, each with its settings, in the order of their bits. state: of now."""
    # Histories are those of a request's state; what is held here must not be arrays that recording leaves behind.
    settings, histories = bundle.config.sources, bundle.state.histories
    found: list[tuple[CandidateSource, SourceSettings]] = []
    if settings.popular:
        found.append((Popular(state), settings.popular))
    if settings.cooccurrence:
        floor = min(len(bundle.config.grades) - 1, 1)
        found.append((TakenTogether(bundle.cooccurrence, histories, floor), settings.cooccurrence))
    if settings.nearest:
        vectors = next((plugin for plugin in bundle.plugins.values() if isinstance(plugin, VectorPlugin)), None)
        if vectors is None:
            log.info("source 'nearest' is left out: none of the served plugins has vectors")
        else:
            found.append((Nearest(vectors, histories), settings.nearest))
    return found


def _proposed(source: CandidateSource, request: Request, limit: int) -> I32:
    """Ask a source; what is no list of integers is its failure, a list that is too long is cut."""
    items = np.asarray(source.propose(request, limit))
    if items.ndim != 1:
        raise ValueError(f"a list of items was expected, found an array of shape {items.shape}")
    return items.astype(np.int32, casting="same_kind")[:limit]


def select(item: I32, score: F64) -> I64:
    """Return int64[n]: places from best score to worst; non-finite last, ties by item, then by place."""
    clean = np.where(np.isfinite(score), score, -np.inf)
    return np.lexsort((item, -clean))
