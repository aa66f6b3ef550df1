"""The way of one request from candidates to answer: `Pipeline.recommend` and `Pipeline.rank` read top to bottom.

Ids, filters, features and the sources read the state that the request carries, so all of it is of one moment. One
source does not: `Popular` proposes by the state that it was last made from (see there). Filters return what they
removed; features and scores have a row for each candidate that is left, in the order of the candidates. A source or
plugin that raises or is late is counted and named in the answer; its items are missing, its columns are NaN, and the
answer still comes.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from features.errors import PairliftError
from features.plugin import FeaturePlugin
from features.rows import assemble
from features.schema import F32, F64, I32, I64, NO_GIVEN, SECOND
from features.state.store import State
from ranker.bundle import Bundle
from ranker.candidates.configured import Sources, configured_sources, with_demand_of
from ranker.candidates.gathering import filters_of, gathered, limits, quotas, source_columns, source_values
from ranker.candidates.shortage import shortage
from ranker.candidates.source import NOTHING, Proposal, proposed
from ranker.columns import given_of, plugin_values, row_matrix, with_sources
from ranker.explained import Trace, detail_of
from ranker.lanes import Failures, Lane
from ranker.request import MAX_SOURCES, Answer, Candidates, Request

#: what `Answer.source_names` says of the items of a Rank
CALLER = "caller"
#: how many items of an answer are explained
EXPLAINED = 100
#: seconds that one source or plugin may take to warm up: kernels are compiled then
WARM_UP = 120.0


def source_lane(name: str) -> str:
    """Return the name of a source's lane, by which it is also counted and named where it fails."""
    return f"sources.{name}"


def plugin_lane(name: str) -> str:
    """Return the name of a plugin's lane, by which it is also counted and named where it fails."""
    return f"plugins.{name}"


class _Call(NamedTuple):
    """What one source or plugin is asked in a request: it runs on a thread of its lane."""

    name: str  # of the source or plugin
    lane: str  # of `source_lane` or `plugin_lane`
    deadline: int  # µs that it may take
    work: Callable[[], Any]  # gives the source's Proposal, or the plugin's columns


class Pipeline:
    """Answers requests from one bundle; stateless otherwise, safe to call from several threads.

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
        if sources is None:
            sources = configured_sources(bundle.config, self.state, bundle.cooccurrence, bundle.plugins.values())
        if len(sources) > MAX_SOURCES:
            raise PairliftError(f"at most {MAX_SOURCES} candidate sources were expected, found {len(sources)}")
        self.sources = list(sources)
        self.filters = filters_of(bundle.config)
        self.failures = Failures()
        lanes = [*map(source_lane, self.source_names), *map(plugin_lane, bundle.plugins)]
        self._lanes = {lane: Lane(lane, 2 * bundle.config.serve.workers) for lane in lanes}

    @property
    def state(self) -> State:
        """The state of now: what a request that begins now is to carry."""
        return self.bundle.state if self._state is None else self._state()

    @property
    def source_names(self) -> tuple[str, ...]:
        """The sources in the order of their bits."""
        return tuple(source.name for source, _ in self.sources)

    def recommend(self, request: Request, k: int) -> Answer:
        """Return the best k items that the sources propose and the filters keep, or as many as there are."""
        trace = Trace(request.check)
        proposals = self._fetch(request, trace)
        trace.mark("sources")
        candidates, trace.removed = gathered(proposals, self.filters, quotas(self.sources), request)
        trace.mark("filters")
        reason, scores = self._shortage(request, k, len(candidates), trace), None
        if self.bundle.wanted is not None:
            scores = self._source_scores(proposals, candidates.item, trace)
            trace.mark("source scores")
        return replace(self._answer(request, candidates, self.source_names, k, trace, scores), reason=reason)

    def _shortage(self, request: Request, k: int, found: int, trace: Trace) -> str:
        """Return why a list of k has only `found` items, empty where it has k."""
        return shortage(
            k,
            found,
            proposed=sum(count for _, count, _ in trace.proposed),
            removed=trace.removed,
            n_items=request.state.catalog.all_items,
            sources=self.source_names,
            early=not found and request.as_of <= request.state.start,
            failed=trace.degraded,
        )

    def _source_scores(self, proposals: list[Proposal], item: I32, trace: Trace) -> F32:
        """Return float32[n, s], the sources' columns of the wanted part; NaN of a source that is not there now."""
        values = source_values(proposals, item, partial(self._no_score, trace))
        names, own = self.bundle.source_columns, source_columns(self.sources)
        if own == names:
            return values
        scores = np.full((len(item), len(names)), np.nan, np.float32)
        for k, name in enumerate(names):
            if name in own:
                scores[:, k] = values[:, own.index(name)]
        return scores

    def _no_score(self, trace: Trace, number: int, error: Exception) -> None:
        """Count a source whose scores failed; it is named in the answer."""
        lane = source_lane(self.source_names[number])
        if lane not in trace.degraded:
            trace.degraded.append(lane)
        self.failures.add(lane, error)

    def _fetch(self, request: Request, trace: Trace) -> list[Proposal]:
        """Return what each source proposed, in parallel, each with its deadline; `NOTHING` of one that fails."""
        begun = time.monotonic()
        proposals = []
        for call, running in self._started(self._source_calls(request)):
            found, problem = self._outcome(call, running, begun, trace)
            proposals.append(NOTHING if found is None else found)
            trace.proposed.append((call.name, len(proposals[-1].item), problem))
        return proposals

    def rank(self, request: Request, item: I32, given: F32 = NO_GIVEN) -> Answer:
        """Return all of int32[n] items (-1 is cold, repeats stay), best first. given: of them, as `Requests.given`."""
        candidates = Candidates(item, np.zeros((len(item), 1), np.int32), given)
        return self._answer(request, candidates, (CALLER,), len(item), Trace(request.check))

    def _answer(
        self,
        request: Request,
        candidates: Candidates,
        source_names: tuple[str, ...],
        k: int,
        trace: Trace,
        scores: F32 | None = None,
    ) -> Answer:
        """Score the candidates and return the best k: by the wanted part where there are the sources' scores.

        scores: float32[n, s] of `source_values`; None scores by the liked part.
        """
        matrix = self._features(request, candidates, trace)
        trace.mark("features")
        rows = matrix if scores is None else with_sources(matrix, scores)
        score = self.bundle.score(rows) if scores is None else self.bundle.score_wanted(rows)
        trace.mark("score")
        top = select(candidates.item, score)[:k]
        trace.mark("select")
        detail = None
        if request.explain:
            detail = detail_of(self.bundle, rows[top[:EXPLAINED]], candidates, trace, scores is not None)
        return Answer(
            index=top,
            item=candidates.item[top],
            score=score[top],
            sources=candidates.sources[top],
            source_names=source_names,
            degraded=tuple(trace.degraded),
            bundle_version=self.bundle.version,
            detail=detail,
            values=matrix[top] if request.keep_values else None,
        )

    def _features(self, request: Request, candidates: Candidates, trace: Trace) -> F32:
        """Return float32[n, c] in the booster's order: counters, attributes, context, then plugin columns."""
        bundle = self.bundle
        if not len(candidates):
            return np.empty((0, len(bundle.columns)), np.float32)
        begun = time.monotonic()
        item, given = candidates.item, given_of(candidates.given, request.state.catalog, bundle.spec)
        calls = self._started(self._plugin_calls(request, item, given))
        known = assemble(request.state, bundle.spec, request.requests(item, given))
        outcomes = [(call.name, self._outcome(call, running, begun, trace)[0]) for call, running in calls]
        return row_matrix(known, bundle.plugins, {name: found for name, found in outcomes if found is not None})

    def _source_calls(self, request: Request) -> list[_Call]:
        """Return what each source is asked."""
        asked = limits(self.sources, request, self.bundle.config.sources.exclude_seen)
        return [
            _Call(source.name, source_lane(source.name), settings.deadline, partial(proposed, source, request, limit))
            for (source, settings), limit in zip(self.sources, asked, strict=True)
        ]

    def _plugin_calls(self, request: Request, item: I32, given: F32) -> list[_Call]:
        """Return what each plugin is asked: its columns of int32[n] items and what is given of them."""
        deadline = self.bundle.config.serve.plugin_deadline
        return [
            _Call(name, plugin_lane(name), deadline, partial(_values, name, plugin, request, item, given))
            for name, plugin in self.bundle.plugins.items()
        ]

    def _started(self, calls: list[_Call]) -> "list[tuple[_Call, Future[Any]]]":
        """Start calls, each in its lane; all of them run while the caller goes on."""
        return [(call, self._lanes[call.lane].start(call.work)) for call in calls]

    def _outcome(self, call: _Call, running: "Future[Any]", begun: float, trace: Trace) -> tuple[Any, str]:
        """Wait for a call until its deadline, counted from `begun`; return (result, "") or (None, its problem)."""
        try:
            return running.result(max(0.0, begun + call.deadline / SECOND - time.monotonic())), ""
        except Exception as error:
            trace.degraded.append(call.lane)
            return None, self.failures.add(call.lane, error)

    def warm(self) -> list[str]:
        """Run every stage, so that no request waits for a compiler or a thread; return what failed."""
        state = self.state
        items = np.arange(min(state.catalog.n_items, EXPLAINED), dtype=np.int32)
        said = np.zeros((len(items), len(state.catalog.candidates)), np.float32)
        given = given_of(said, state.catalog, self.bundle.spec)
        failed: dict[str, None] = {}
        for user in (*_a_known_user(state), -1):
            request, trace = Request(user, state.end, state=state), Trace()
            source_calls, plugin_calls = self._source_calls(request), self._plugin_calls(request, items, given)
            proposals = [self._warmed(call, trace) or NOTHING for call in source_calls]
            for call in plugin_calls:
                self._warmed(call, trace)
            known = assemble(state, self.bundle.spec, request.requests(items, given))
            matrix = row_matrix(known, self.bundle.plugins, {})
            self.bundle.score(matrix)
            if self.bundle.wanted is not None:
                scores = self._source_scores(proposals, items, trace)
                self.bundle.score_wanted(with_sources(matrix, scores))
            failed |= dict.fromkeys(trace.degraded)
        return list(failed)

    def _warmed(self, call: _Call, trace: Trace) -> Any:
        """Return what a call gives, in its lane and with time for a compiler; None where it fails."""
        try:
            return self._lanes[call.lane].start(call.work).result(WARM_UP)
        except Exception as error:
            self.failures.add(call.lane, error)
            trace.degraded.append(call.lane)
            return None

    def refresh(self) -> None:
        """Count the demand of the state of now: too long for a request, so a server does it in a thread."""
        self.sources = list(with_demand_of(self.sources, self.state))

    def close(self) -> None:
        """Let the threads end."""
        for lane in self._lanes.values():
            lane.close()


def select(item: I32, score: F64) -> I64:
    """Return int64[n]: places from best score to worst; non-finite last, ties by item, then by place."""
    clean = np.where(np.isfinite(score), score, -np.inf)
    return np.lexsort((item, -clean))


def _values(name: str, plugin: FeaturePlugin, request: Request, item: I32, given: F32) -> F32:
    """Return float32[n, c] of a plugin, which knows the items that it was fitted on; a wrong shape is its failure."""
    known = request.state.catalog.described_items(item)
    return plugin_values(name, plugin, request.requests(known, given), request.state.histories)


def _a_known_user(state: State) -> list[int]:
    """Return the user with the longest history, as a list of one; none where no user has any."""
    sizes = state.histories.sizes
    return [int(sizes.argmax())] if sizes.any() else []
