"""The report of `pairlift sources`: how much of what users came to want each candidate source finds.

sources_report   users of the test, each as of their first request in it; the sources know what is before t2
  told_of        what each source proposes, behind the filters, in its own order
  blended        of all, and of all but one, by what was wanted before t2 (`ranker.blend`)
  _section       recall@k of each alone, of the blend, and what each adds to the others; for all users, for known and
                 for new ones, and of new items
  milliseconds   what a request's sources cost now

The blend has k items as each source has: the first k of it. `Recommend` has the candidates of the shares at once, and
leaves the order to the ranker: that is `within_quotas`.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from features.errors import PairliftError
from features.pairing.split import iso
from features.schema import F64, I32, I64, Bool
from features.state.store import State
from ranker.blend.learned import Learner, blended
from ranker.candidates.configured import Sources
from ranker.candidates.filters import Filters, filters_of
from ranker.candidates.gathering import Quotas, gathered, limits, own_quotas
from ranker.candidates.merge import Places, dedupe, within_places
from ranker.candidates.source import Proposal
from ranker.config import Config
from ranker.lists.alone import asked_of, told_of
from ranker.lists.asked import NEW, Asked
from ranker.lists.peers import Past
from ranker.lists.shared import list_length
from ranker.lists.worth import worth
from ranker.metrics.interval import difference, finite, mean_interval
from ranker.request import Request

#: of `sources.json`; 2: the blend in the order that was learned
FORMAT = 2
#: the k of recall@k
KS = (50, 200, 500)
#: requests whose sources are timed, and those before them, by which kernels are compiled and tables read
TIMED, WARM = 200, 20
#: the sections: whose items, of which users
SECTIONS = ("all", "known_users", "new_users", "new_items")


class _Found(NamedTuple):
    """What s sources propose to u users."""

    names: list[str]  # [s]
    lists: I32  # [s, u, m], each source's own, behind the filters, -1 behind the end
    within: list[I32]  # [u], the candidates that `Recommend` has of them
    blend: I32  # [u, KS[-1]], of all
    rest: list[I32]  # [s] of the same, without one


def sources_report(
    sources: Sources, learner: Learner, past: Past, state: State, config: Config, *, most: int, seed: int = 0
) -> dict[str, Any]:
    """Return what `sources.json` holds.

    sources: fitted on what is before past.split.t2. learner: of the same sources, fitted on what is before t1, of which
    shares are learned. state: of the whole log, of which each request reads what lies before its as_of. most: users
    that are asked about, drawn by `seed` where there are more. PairliftError where nobody wanted anything in [t2, t3).
    """
    split = past.split
    eligible = past.asked(split.t2, split.t3)
    if not len(eligible):
        raise PairliftError(
            f"[lists]: of the users of the test, from {iso(split.t2)} to {iso(split.t3)}, nobody wanted an "
            f"item{NEW[past.again]}; move [split] t2 or t3, or name a lower grade as [lists] wanted"
        )
    who = eligible.drawn(most, seed)
    failed: Counter[str] = Counter()
    filters = filters_of(config, state)
    shares = learner.shares(learner.blends(), config.sources.candidates) if learner.judged else None
    quotas = own_quotas(sources) if shares is None else shares.quotas(sources)
    found = _lists(sources, learner, quotas, who, state, filters, max(KS[-1], list_length(config)), failed)
    known = state.first_seen < split.t2
    parts = {
        "all": (who, np.arange(len(who))),
        "known_users": _of(who, who.history > 0),
        "new_users": _of(who, who.history == 0),
        "new_items": _new(who, known),
    }
    report: dict[str, Any] = finite(
        {
            "format": FORMAT,
            "data": config.name,
            "wanted": list(config.grade_names[past.floor :]),
            "cut": iso(split.t2),
            "end": iso(split.t3),
            "eligible_users": len(eligible),
            "quotas": {source.name: settings.quota for source, settings in sources},
            "shares": None if shares is None else shares.report(),
            "sections": {name: _section(found, *parts[name]) for name in SECTIONS},
            "milliseconds": _milliseconds(sources, quotas, who, state, filters),
            "failed": dict(failed),
        }
    )
    return report


def _of(who: Asked, keep: Bool) -> tuple[Asked, I64]:
    return who.select(keep), np.flatnonzero(keep)


def _new(who: Asked, known: Bool) -> tuple[Asked, I64]:
    """Return those who wanted items without an event before the cut, with these items alone, and who they are."""
    new = who.requests.with_candidates(~known[who.item])
    return _of(Asked(requests=new, history=who.history), np.diff(new.offsets) > 0)


def _lists(
    sources: Sources,
    learner: Learner,
    quotas: Quotas,
    who: Asked,
    state: State,
    filters: Filters,
    length: int,
    failed: Counter[str],
) -> _Found:
    """Ask every source for every user; one that fails has an empty list, and is counted."""
    told = told_of(sources, [who], state, filters, length, failed)
    within = [_within(told.lists[:, k], quotas(Request.of(who.requests, k, state))) for k in range(len(who))]
    blend, *rest = (
        blended(told, learner.surfaces, learner.blends(without=without), KS[-1])
        for without in (None, *range(len(sources)))
    )
    return _Found([source.name for source, _ in sources], told.lists, within, blend, rest)


def _within(lists: I32, places: Places) -> I32:
    """Return the candidates of int32[s, n] lists, -1 behind their end."""
    candidates = dedupe([Proposal(own[own >= 0]) for own in lists])
    return within_places(candidates, np.ones(len(candidates), bool), places).item


def _section(found: _Found, who: Asked, rows: I64) -> dict[str, Any]:
    """Return the figures of some users: {"users": 0} where there is none. rows: int64[u], of the lists."""
    if not len(who):
        return {"users": 0}
    names, lists = found.names, found.lists[:, rows]
    blend = _recall(found.blend[rows], who)
    alone = {name: _recall(lists[s], who) for s, name in enumerate(names)}
    rest = {name: _recall(of[rows], who) for name, of in zip(names, found.rest, strict=True)}
    within, candidates = _within_quotas([found.within[k] for k in rows], who)
    return {
        "users": len(who),
        "wanted_items": float(who.wanted.mean()),
        "alone": {name: _means(of) for name, of in alone.items()},
        "blend": _means(blend),
        "adds": {name: {k: _interval(difference(blend[k], of[k])) for k in blend} for name, of in rest.items()},
        "over_best": {k: _over_best(blend[k], {name: of[k] for name, of in alone.items()}) for k in blend},
        "within_quotas": {"recall": _interval(mean_interval(within)), "candidates": candidates},
    }


def _recall(lists: I32, who: Asked) -> dict[str, F64]:
    """Return float64[u] by k: hits among the first k / min(k, wanted items)."""
    return {name: of for name, of in worth(lists, who, KS).items() if name.startswith("recall")}


def _within_quotas(within: Sequence[I32], who: Asked) -> tuple[F64, float]:
    """Return float64[u], the share of the wanted items that is within the quotas, and the mean of the candidates."""
    wanted = [who.item[start:end] for start, end in pairwise(who.offsets)]
    own = [np.isin(items, candidates).mean() for items, candidates in zip(wanted, within, strict=True)]
    return np.array(own), sum(map(len, within)) / len(who)


def _over_best(blend: F64, alone: dict[str, F64]) -> dict[str, Any]:
    """Return the best source by the mean, and how much more the blend has."""
    best = max(alone, key=lambda name: float(alone[name].mean()))
    return {"name": best, **_interval(difference(blend, alone[best]))}


def _means(of: dict[str, F64]) -> dict[str, Any]:
    return {k: _interval(mean_interval(values)) for k, values in of.items()}


def _interval(found: tuple[float, float, float]) -> dict[str, Any]:
    mean, low, high = found
    return {"mean": mean, "ci95": [low, high]}


def _milliseconds(sources: Sources, quotas: Quotas, who: Asked, state: State, filters: Filters) -> dict[str, Any]:
    """Return `milliseconds` of some users' requests, asked as of now."""
    some = np.unique(np.linspace(0, len(who) - 1, min(len(who), TIMED)).astype(np.int64))
    requests = [replace(Request.of(who.requests, int(k), state), as_of=state.end) for k in some]
    return milliseconds(sources, quotas, requests, filters)


def milliseconds(sources: Sources, quotas: Quotas, requests: Sequence[Request], filters: Filters) -> dict[str, Any]:
    """Return the median time of each source, and of all with merge and filters, on one thread.

    Of the processor's time, so that a busy machine tells the same; a source that waits is not charged for it.
    """
    failed: Counter[str] = Counter()
    took = np.zeros((len(requests), len(sources) + 1))
    for request in requests[:WARM]:
        _timed(sources, request, filters, quotas(request), failed)
    for k, request in enumerate(requests):
        took[k] = _timed(sources, request, filters, quotas(request), failed)
    median = np.median(took, axis=0).tolist()
    names = [source.name for source, _ in sources]
    return {"requests": len(requests), "sources": dict(zip(names, median, strict=False)), "blend": median[-1]}


def _timed(sources: Sources, request: Request, filters: Filters, places: Places, failed: Counter[str]) -> list[float]:
    """Return the milliseconds of each source, and those of all together with merge and filters."""
    begun, proposals, took = time.thread_time(), list[Proposal](), list[float]()
    for (source, _), limit in zip(sources, limits(sources, request, filters, places), strict=True):
        last = time.thread_time()
        proposals.append(asked_of(source, request, limit, failed))
        took.append(1e3 * (time.thread_time() - last))
    gathered(proposals, filters, places, request)
    return [*took, 1e3 * (time.thread_time() - begun)]
