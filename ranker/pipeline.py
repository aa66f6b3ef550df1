"""The way of one request from candidates to answer: `Pipeline.recommend` and `Pipeline.rank` read top to bottom.

Ids, filters, features and the sources read the state that the request carries, so all of it is of one moment. One
source does not: `Popular` proposes by the state that it was last made from (see there). Filters say what they
remove; features and scores have a row for each candidate that is left, in the order of the candidates. A source or
plugin that raises or is late is counted and named in the answer; its items are missing, its columns are NaN, and the
answer still comes. Those of Pairlift's own cannot block and run on the request's thread; the others have threads, with
deadlines (`ranker.lanes`).
"""

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from typing import Any, TypeVar

import numpy as np

from features.errors import PairliftError
from features.rows import assemble
from features.schema import F32, F64, I32, I64, NO_GIVEN, SECOND
from features.state.store import State
from ranker.bundle import Bundle
from ranker.candidates.configured import Sources, configured_sources, with_demand_of
from ranker.candidates.filters import filters_of
from ranker.candidates.gathering import gathered, is_for, limits, own_quotas, score_columns, scores_of, source_columns
from ranker.candidates.shortage import shortage
from ranker.candidates.source import NOTHING, Proposal, proposed
from ranker.columns import given_of, is_asked, missing, plugin_values, row_matrix, with_sources
from ranker.config import PRERANK
from ranker.explained import detail_of
from ranker.exploration.policy import Exploration
from ranker.lanes import Failures, Lane, PausedError, Running, may_block, plugin_lane, source_lane
from ranker.prerank.light import by_sources, kept
from ranker.request import MAX_SOURCES, Answer, Candidates, Explored, Request, Trace
from ranker.reranking.order import select
from ranker.reranking.reranked import Reranking

K = TypeVar("K")
#: what was begun, and the ways by which
Calls = dict[K, tuple[Lane, Running]]

#: what `Answer.source_names` says of the items of a Rank
CALLER = "caller"
#: how many items of an answer are explained
EXPLAINED = 100
#: a query to warm up with: what tells the scripts apart is made for other letters than these of ASCII
WARMING = "\u00e9"
#: seconds before its caller's deadline at which a request waits no more, so that the answer still comes in time
REST = 0.005
#: seconds that one source or plugin may take to warm up: kernels are compiled then
WARM_UP = 120.0


class Pipeline:
    """Answers requests from one bundle; stateless otherwise, safe to call from several threads.

    A source or plugin that may block has twice as many threads as `[serve] workers`: as many requests as that can be
    under way while as many late calls are still running; and as many for surfaces that wait less long than it may take.
    """

    def __init__(
        self, bundle: Bundle, sources: Sources | None = None, state: Callable[[], State] | None = None
    ) -> None:
        """sources: other than those of the bundle's configuration; PairliftError for more than 32.

        state: gives the state of now, where it follows recorded events; else it is the bundle's.
        """
        self.bundle = bundle
        self._state = state
        now = self.state
        #: the end of the state that the sources have counted, µs UTC
        self.counted_to = now.end
        if sources is None:
            sources = configured_sources(bundle.config, now, bundle.cooccurrence, bundle.plugins, bundle.fitted)
        self.reranking = Reranking.of(bundle.config, bundle.state, bundle.plugins)
        self.sources = [*sources, *self.reranking.sources]
        if len(self.sources) > MAX_SOURCES:
            raise PairliftError(f"at most {MAX_SOURCES} candidate sources were expected, found {len(self.sources)}")
        self.filters = filters_of(bundle.config, bundle.state)
        exploration = bundle.config.exploration
        self.exploration = None if exploration is None else Exploration(exploration)
        self.failures = Failures()
        threads, deadline = 2 * bundle.config.serve.workers, bundle.config.serve.plugin_deadline

        def lane(name: str, asked: object, deadline: int) -> Lane:
            return Lane(name, threads if may_block(asked) else 0, deadline / SECOND)

        self._source_lanes = [lane(source_lane(s.name), s, settings.deadline) for s, settings in self.sources]
        self._plugin_lanes = {name: lane(plugin_lane(name), p, deadline) for name, p in bundle.plugins.items()}
        codes, profiles = bundle.state.catalog.surface_codes(), bundle.config.surfaces.items()
        self._deadlines = {codes[name]: of.deadline / SECOND for name, of in profiles if of.deadline and name in codes}
        self._source_names = tuple(source.name for source, _ in self.sources)
        self._source_columns = source_columns(self.sources)
        #: how many candidates each source has for a request
        self.quotas = own_quotas(self.sources) if bundle.shares is None else bundle.shares.quotas(self.sources)

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The ways to the sources, in the order of their bits, then those to the plugins."""
        return (*self._source_lanes, *self._plugin_lanes.values())

    @property
    def state(self) -> State:
        """The state of now: what a request that begins now is to carry."""
        return self.bundle.state if self._state is None else self._state()

    @property
    def source_names(self) -> tuple[str, ...]:
        """The sources in the order of their bits."""
        return self._source_names

    def recommend(self, request: Request, k: int) -> Answer:
        """Return the best k items that the sources propose and the filters keep, or as many as there are."""
        trace = Trace(request.check)
        proposals = self._fetch(request, trace)
        trace.mark("sources")
        candidates, trace.removed = gathered(proposals, self.filters, self.quotas(request), request)
        trace.mark("filters")
        why, scores = partial(self._shortage, request, k, trace, tuple(trace.problems)), None
        if self.bundle.wanted is not None:
            scores = self._source_scores(request, proposals, candidates.item, trace)
        _worked(self._source_lanes, trace)
        if scores is not None:
            trace.mark("source scores")
            candidates, scores = self._preranked(request, candidates, scores, trace)
        return self._answer(request, candidates, self._source_names, k, trace, scores, why)

    def _preranked(self, request: Request, candidates: Candidates, scores: F32, trace: Trace) -> tuple[Candidates, F32]:
        """Return the candidates that are ranked, with their rows of float32[n, s] scores; all where they are few.

        Where the stage fails, those stay that stand first with their sources, and the answer names it.
        """
        light, settings = self.bundle.prerank, self.bundle.config.prerank
        if light is None or settings is None or len(candidates) <= settings.keep:
            return candidates, scores
        try:
            order = light.scores(request, self.bundle.spec, candidates.item, scores)
        except Exception as error:
            trace.problems[PRERANK] = self.failures.add(PRERANK, error)
            order = by_sources(candidates.place)
        rows = kept(order, candidates.item, settings.keep, self.reranking.pins(request, candidates.item))
        trace.removed.append((PRERANK, len(candidates) - len(rows)))
        trace.mark(PRERANK)
        return candidates.select(rows), scores[rows]

    def _shortage(self, request: Request, k: int, trace: Trace, failed: tuple[str, ...], found: int) -> str:
        """Return why a list of k has only `found` items, empty where it has k. failed: lanes of sources."""
        if found >= k:
            return ""
        asked, places = zip(self.source_names, self.sources, strict=True), self.quotas(request)
        return shortage(
            k,
            found,
            proposed=sum(trace.proposed),
            removed=trace.removed,
            n_items=request.state.catalog.all_items,
            sources=[name for name, (_, settings) in asked if is_for(settings, request)],
            early=not found and request.as_of <= request.state.start,
            failed=failed,
            best=None if places.worth is None else places.total,
        )

    def _source_scores(
        self, request: Request, proposals: list[Proposal], item: I32, trace: Trace, patience: float = 0.0
    ) -> F32:
        """Return float32[n, s], the sources' columns of the wanted part: NaN of one that fails, is late or not there.

        patience: as for `_found`.
        """
        begun = time.monotonic()
        calls = self._ask_scores(request, proposals, item)
        found = [self._score_here(*asked, item, trace) for asked in zip(self._source_lanes, proposals, strict=True)]
        if calls:
            for number, score in self._found(calls, begun, trace, request, patience).items():
                found[number] = score
        values = score_columns(found, len(item))
        names, own = self.bundle.source_columns, self._source_columns
        if own == names:
            return values
        scores = np.full((len(item), len(names)), np.nan, np.float32)
        for k, name in enumerate(names):
            if name in own:
                scores[:, k] = values[:, own.index(name)]
        return scores

    def _score_here(self, lane: Lane, proposal: Proposal, item: I32, trace: Trace) -> F32 | None:
        """Return what a source that cannot block says of int32[n] items, None of the others and where it fails."""
        if proposal.score is None or lane.width:
            return None
        try:
            return scores_of(proposal.score, item)
        except BaseException as error:  # as in a lane: SystemExit is the source's failure, not the end of the call
            lane.failed()
            trace.problems[lane.name] = self.failures.add(lane.name, error)
            return None

    def _fetch(self, request: Request, trace: Trace, patience: float = 0.0) -> list[Proposal]:
        """Return what each source proposed, those with threads in parallel; `NOTHING` of one that fails.

        patience: as for `_found`.
        """
        begun = time.monotonic()
        found = self._found(self._ask_sources(request), begun, trace, request, patience)
        proposals = [found.get(number, NOTHING) for number in range(len(self.sources))]
        trace.proposed = [len(proposal.item) for proposal in proposals]
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
        why: Callable[[int], str] | None = None,
    ) -> Answer:
        """Score the candidates and return the best k: by the wanted part where there are the sources' scores.

        scores: float32[n, s] of `source_values`; None scores by the liked part. why: says of a list why it has only so
        many items; None: this is a Rank, of which nothing is removed.
        """
        matrix = self._features(request, candidates, trace)
        trace.mark("features")
        rows = matrix if scores is None else with_sources(matrix, scores)
        score = self.bundle.score(rows) if scores is None else self.bundle.score_wanted(rows)
        trace.mark("score")
        top, explored = self._top(request, candidates.item, score, k, trace, why is not None)
        trace.mark("select")
        trace.candidates = len(candidates)
        detail = None
        if request.explain:
            shown = rows[top[:EXPLAINED]]
            detail = detail_of(self.bundle, shown, top, candidates, trace, source_names, scores is not None)
        best = candidates.select(top)
        return Answer(
            index=top,
            item=best.item,
            score=score[top],
            sources=best.sources,
            source_names=source_names,
            degraded=tuple(trace.problems),
            bundle_version=self.bundle.version,
            reason="" if why is None else why(len(top)),
            detail=detail,
            values=matrix[top] if request.keep_values else None,
            explored=explored,
            trace=trace,
        )

    def _top(
        self, request: Request, item: I32, score: F64, k: int, trace: Trace, listed: bool
    ) -> tuple[I64, Explored | None]:
        """Return int64[<= k], places of the best items, or of those that were drawn, and how.

        listed: whether this is a list, which may be drawn ([exploration], under `[lists] at_most` alone: with rules or
        diversity its propensities would not be those of what is answered) or reranked; else a Rank.
        """
        order: I64 = select(item, score)
        if not listed:
            return order[:k], None
        key = None if self.exploration is None else self.exploration.key(request)
        if self.exploration is not None and key is not None:
            top, removed, explored = self.exploration.list_of(key, item, score, order, k, self.reranking.at_most)
            trace.removed += removed
            return top, explored
        return self.reranking.top(request, item, score, order, k, trace), None

    def _features(self, request: Request, candidates: Candidates, trace: Trace) -> F32:
        """Return float32[n, c] in the booster's order: counters, attributes, context, then plugin columns."""
        bundle = self.bundle
        if not len(candidates):
            return np.empty((0, len(bundle.columns)), np.float32)
        begun = time.monotonic()
        item, given = candidates.item, given_of(candidates.given, request.state.catalog, bundle.spec)
        calls = self._ask_plugins(request, item, given)
        known = assemble(request.state, bundle.spec, request.requests(item, given))
        values = self._found(calls, begun, trace, request)
        _worked((lane for lane, _ in calls.values()), trace)
        matrix = row_matrix(known, bundle.plugins, values, bundle.spec)
        trace.missing = missing(matrix)
        return matrix

    def _ask_sources(self, request: Request) -> Calls[int]:
        """Begin to ask the sources of the surface, by their numbers."""
        most = self._most(request)
        asked = limits(self.sources, request, self.filters, self.quotas(request))
        lanes = zip(self._source_lanes, self.sources, asked, strict=True)
        return {
            number: (lane, lane.start(partial(proposed, source, request, limit), most))
            for number, (lane, (source, _), limit) in enumerate(lanes)
            if limit
        }

    def _ask_scores(self, request: Request, proposals: list[Proposal], item: I32) -> Calls[int]:
        """Begin to ask what the sources that may block say of int32[n] items: in their lanes, as they proposed."""
        return {
            number: (lane, lane.go_on(partial(scores_of, proposal.score, item), self._most(request)))
            for number, (lane, proposal) in enumerate(zip(self._source_lanes, proposals, strict=True))
            if lane.width and proposal.score is not None
        }

    def _ask_plugins(self, request: Request, item: I32, given: F32) -> Calls[str]:
        """Begin to ask the plugins of the surface for their columns of int32[n] items. given: what is said of them."""
        most = self._most(request)
        return {
            name: (lane, lane.start(partial(_values, name, self.bundle, request, item, given), most))
            for name, lane in self._plugin_lanes.items()
            if is_asked(name, request.surface, self.bundle.spec)
        }

    def _most(self, request: Request) -> float:
        """Return for how many seconds a request waits from now on for any source or plugin: its surface, its caller."""
        left = request.check.until - REST - time.monotonic()
        return min(self._deadlines.get(request.surface, math.inf), left)

    def _found(
        self, calls: Calls[K], begun: float, trace: Trace, request: Request, patience: float = 0.0
    ) -> dict[K, Any]:
        """Run what is inline while the threads work, then wait for each until its deadline; without what fails.

        begun: seconds (monotonic), from which deadlines count. patience: seconds that each has in any case.
        """
        for _, running in calls.values():
            running.run()
        most, end, found = self._deadlines.get(request.surface, math.inf), request.check.until - REST, {}
        for key, (lane, running) in calls.items():
            until = begun
            if lane.width:  # else it has ended
                until += max(patience, min(lane.deadline, most) - trace.took.get(lane.name, 0) / SECOND)
            one = self._outcome(lane, running, begun, min(until, end), trace)
            if one is not None:
                found[key] = one
        return found

    def _outcome(self, lane: Lane, running: Running, begun: float, until: float, trace: Trace) -> Any:
        """Return what a call gives, None where it fails or has not ended by `until`, in seconds as `begun`."""
        found = None
        try:
            found = lane.outcome(running, max(0.0, until - time.monotonic()))
        except Exception as error:
            trace.problems[lane.name] = self.failures.add(lane.name, error)
            if isinstance(error, PausedError):
                return None
        took = running.nanoseconds / 1e9 or time.monotonic() - begun  # one that is late has not ended
        trace.took[lane.name] = trace.took.get(lane.name, 0) + round(took * SECOND)
        return found

    def warm(self) -> list[str]:
        """Run every stage, so that no request waits for a compiler or a thread; return what failed."""
        state = self.state
        items = np.arange(min(state.catalog.n_items, EXPLAINED), dtype=np.int32)
        said = np.zeros((len(items), len(state.catalog.candidates)), np.float32)
        given = given_of(said, state.catalog, self.bundle.spec)
        failed: dict[str, None] = {}
        if self.exploration is not None:
            places = np.arange(len(items))
            self.exploration.list_of(0, items, np.zeros(len(items)), places, len(items), self.reranking.at_most)
        for user, surface in product((*_a_known_user(state), -1), self._surfaces(state)):
            request = Request(user, state.end, state=state, surface=surface, source_item=0, query=WARMING)
            trace = Trace()
            proposals = self._fetch(request, trace, WARM_UP)
            self._found(self._ask_plugins(request, items, given), time.monotonic(), trace, request, WARM_UP)
            known = assemble(state, self.bundle.spec, request.requests(items, given))
            matrix = row_matrix(known, self.bundle.plugins, {}, self.bundle.spec)
            missing(matrix)
            self.bundle.score(matrix)
            self._top(request, items, np.zeros(len(items)), len(items), trace, True)
            if self.bundle.wanted is not None:
                scores = self._source_scores(request, proposals, items, trace, WARM_UP)
                self.bundle.score_wanted(with_sources(matrix, scores))
                if self.bundle.prerank is not None:
                    kept(self.bundle.prerank.scores(request, self.bundle.spec, items, scores), items, 1)
            failed |= dict.fromkeys(trace.problems)
        return list(failed)

    def _surfaces(self, state: State) -> list[int]:
        """Return codes of surfaces of which each source is for one, -1 first: none is named."""
        codes = state.catalog.surface_codes()
        return sorted({-1, *(codes.get(of.surfaces[0], -1) for _, of in self.sources if of.surfaces)})

    def refresh(self) -> None:
        """Count the demand of the state of now: too long for a request, so a server does it in a thread.

        A source that fails stays with what it has counted before, and is counted among the failures.
        """

        def failed(name: str, error: Exception) -> None:
            self.failures.add(source_lane(name), error)

        now = self.state
        self.counted_to = now.end
        self.sources = list(with_demand_of(self.sources, now, failed))

    def close(self) -> None:
        """Let the threads end."""
        for lane in self.lanes:
            lane.close()


def _worked(lanes: Iterable[Lane], trace: Trace) -> None:
    """Tell the lanes that were asked, and failed at nothing that a request asks of them."""
    for lane in lanes:
        if lane.name in trace.took and lane.name not in trace.problems:
            lane.succeeded()


def _values(name: str, bundle: Bundle, request: Request, item: I32, given: F32) -> F32:
    """Return float32[n, c] of a plugin, which knows the items that it was fitted on; a wrong shape is its failure."""
    known = request.state.catalog.described_items(item)
    requests, histories = request.requests(known, given), request.state.histories
    return plugin_values(name, bundle.plugins[name], requests, histories, bundle.spec)


def _a_known_user(state: State) -> list[int]:
    """Return the user with the longest history, as a list of one; none where no user has any."""
    sizes = state.histories.sizes
    return [int(sizes.argmax())] if sizes.any() else []
