"""The report of `pairlift sources`: how much of what users came to want each candidate source finds.

sources_report   users of the test, each as of their first request in it; the sources know what is before t2
  _lists         what each source proposes, behind the filters, in its own order
  _section       recall@k of each alone, of the blend, and what each adds to the others; for all users, for known and
                 for new ones, and of new items
  milliseconds   what a request's sources cost now

The blend has k items as each source has: they take turns by their quotas, so that of the first k each has a share as
its quota is one of all quotas. `Recommend` asks for all within the quotas at once, and leaves the order to the ranker:
that is `within_quotas`.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from features.errors import PairliftError
from features.kernels import njit
from features.pairing.split import iso
from features.progress import progress_bar
from features.schema import F64, I32, I64, Bool
from features.state.store import State
from ranker.candidates.configured import Sources
from ranker.candidates.filters import Filters, filters_of
from ranker.candidates.gathering import gathered, is_for, kept_alone, limit_alone, limits, quotas
from ranker.candidates.source import NOTHING, CandidateSource, Proposal, proposed
from ranker.config import Config
from ranker.lists.asked import Asked
from ranker.lists.peers import Past
from ranker.lists.worth import worth
from ranker.metrics.interval import difference, finite, mean_interval
from ranker.request import NO_ITEMS, Request

log = logging.getLogger(__name__)

#: of `sources.json`
FORMAT = 1
#: the k of recall@k
KS = (50, 200, 500)
#: requests whose sources are timed, and those before them, by which kernels are compiled and tables read
TIMED, WARM = 200, 20
#: the sections: whose items, of which users
SECTIONS = ("all", "known_users", "new_users", "new_items")


class _Found(NamedTuple):
    """What s sources propose to u users, each a list of up to m items that are new to the user, -1 behind its end."""

    lists: I32  # [s, u, m]
    names: list[str]  # [s]
    quota: I64  # [s]


def sources_report(
    sources: Sources, past: Past, state: State, config: Config, *, most: int, seed: int = 0
) -> dict[str, Any]:
    """Return what `sources.json` holds.

    sources: fitted on what is before past.split.t2. state: of the whole log, of which each request reads what lies
    before its as_of. most: users that are asked about, drawn by `seed` where there are more. PairliftError where nobody
    wanted anything in [t2, t3).
    """
    split = past.split
    eligible = past.asked(split.t2, split.t3)
    if not len(eligible):
        raise PairliftError(
            f"[lists]: of the users of the test, from {iso(split.t2)} to {iso(split.t3)}, nobody wanted an item that "
            "is new to them; move [split] t2 or t3, or name a lower grade as [lists] wanted"
        )
    who = eligible.drawn(most, seed)
    failed: Counter[str] = Counter()
    # What is asked for is new to the user, whatever [sources] exclude_seen says.
    filters = replace(filters_of(config, state), exclude_seen=True)
    found = _lists(sources, who, state, filters, failed)
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
            "quotas": dict(zip(found.names, found.quota.tolist(), strict=True)),
            "sections": {name: _section(found, *parts[name]) for name in SECTIONS},
            "milliseconds": _milliseconds(sources, who, state, filters),
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


def _lists(sources: Sources, who: Asked, state: State, filters: Filters, failed: Counter[str]) -> _Found:
    """Ask every source for every user; one that fails has an empty list, and is counted."""
    quota, names = np.array(quotas(sources), np.int64), [source.name for source, _ in sources]
    length = max(KS[-1], int(quota.max(initial=0)))
    lists = np.full((len(sources), len(who), length), -1, np.int32)
    for k in progress_bar(range(len(who)), desc="sources", unit=" users"):
        request = Request.of(who.requests, k, state)
        for s, (source, settings) in enumerate(sources):
            row = _alone(source, request, length, filters, failed) if is_for(settings, request) else NO_ITEMS
            lists[s, k, : len(row)] = row
    return _Found(lists, names, quota)


def _alone(source: CandidateSource, request: Request, m: int, filters: Filters, failed: Counter[str]) -> I32:
    """Return int32[<= m]: what one source proposes that the filters keep, in its own order."""
    return kept_alone(_asked(source, request, limit_alone(m, request, filters), failed), m, request, filters)


def _asked(source: CandidateSource, request: Request, limit: int, failed: Counter[str]) -> Proposal:
    try:
        return proposed(source, request, limit)
    except Exception:
        if not failed[source.name]:
            log.exception("source '%s' failed; further failures are counted", source.name)
        failed[source.name] += 1
        return NOTHING


def _section(found: _Found, who: Asked, rows: I64) -> dict[str, Any]:
    """Return the figures of some users: {"users": 0} where there is none. rows: int64[u], of the lists."""
    if not len(who):
        return {"users": 0}
    names, lists = found.names, found.lists[:, rows]
    every = np.ones(len(names), bool)
    blend = _recall(blended(lists, found.quota, every, KS[-1]), who)
    alone = {name: _recall(lists[s], who) for s, name in enumerate(names)}
    rest = {
        name: _recall(blended(lists, found.quota, np.arange(len(names)) != s, KS[-1]), who)
        for s, name in enumerate(names)
    }
    within, candidates = _within_quotas(found, lists, who)
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


def _within_quotas(found: _Found, lists: I32, who: Asked) -> tuple[F64, float]:
    """Return float64[u], the share of the wanted items that is within the quotas, and the mean of the candidates."""
    own, count = np.zeros(len(who)), 0
    for k in range(len(who)):
        rows = [lists[s, k, :q] for s, q in enumerate(found.quota.tolist())]
        items = np.unique(np.concatenate([NO_ITEMS, *rows]))
        items = items[items >= 0]
        wanted = who.item[who.offsets[k] : who.offsets[k + 1]]
        own[k] = np.isin(wanted, items).mean()
        count += len(items)
    return own, count / len(who)


def _over_best(blend: F64, alone: dict[str, F64]) -> dict[str, Any]:
    """Return the best source by the mean, and how much more the blend has."""
    best = max(alone, key=lambda name: float(alone[name].mean()))
    return {"name": best, **_interval(difference(blend, alone[best]))}


def _means(of: dict[str, F64]) -> dict[str, Any]:
    return {k: _interval(mean_interval(values)) for k, values in of.items()}


def _interval(found: tuple[float, float, float]) -> dict[str, Any]:
    mean, low, high = found
    return {"mean": mean, "ci95": [low, high]}


# for each user: until the list is full or no source has more:
#     take the next item of the source of the least (taken from it + 1) / quota, the first of several
#     append it where the list does not have it
@njit(cache=True, nogil=True)
def blended(lists: I32, quota: I64, use: Bool, m: int) -> I32:
    """Return int32[u, m] of int32[s, u, n] lists: their items in turns by the quotas int64[s], each item once.

    use: bool[s], which sources take part.
    """
    blend, met = np.full((lists.shape[1], m), -1, np.int32), np.full(max(lists.max(), 0) + 1, -1, np.int64)
    for u in range(lists.shape[1]):
        at, n = np.zeros(len(quota), np.int64), 0
        while n < m:
            best, least = -1, np.inf
            for s in range(len(quota)):
                turn = (at[s] + 1) / quota[s]
                if use[s] and at[s] < lists.shape[2] and lists[s, u, at[s]] >= 0 and turn < least:
                    best, least = s, turn
            if best < 0:
                break
            item = lists[best, u, at[best]]
            at[best] += 1
            if met[item] != u:
                met[item], blend[u, n] = u, item
                n += 1
    return blend


def _milliseconds(sources: Sources, who: Asked, state: State, filters: Filters) -> dict[str, Any]:
    """Return `milliseconds` of some users' requests, asked as of now."""
    some = np.unique(np.linspace(0, len(who) - 1, min(len(who), TIMED)).astype(np.int64))
    requests = [replace(Request.of(who.requests, int(k), state), as_of=state.end) for k in some]
    return milliseconds(sources, requests, filters)


def milliseconds(sources: Sources, requests: Sequence[Request], filters: Filters) -> dict[str, Any]:
    """Return the median time of each source, and of all with merge and filters, on one thread.

    Of the processor's time, so that a busy machine tells the same; a source that waits is not charged for it.
    """
    failed: Counter[str] = Counter()
    took = np.zeros((len(requests), len(sources) + 1))
    for request in requests[:WARM]:
        _timed(sources, request, filters, failed)
    for k, request in enumerate(requests):
        took[k] = _timed(sources, request, filters, failed)
    median = np.median(took, axis=0).tolist()
    names = [source.name for source, _ in sources]
    return {"requests": len(requests), "sources": dict(zip(names, median, strict=False)), "blend": median[-1]}


def _timed(sources: Sources, request: Request, filters: Filters, failed: Counter[str]) -> list[float]:
    """Return the milliseconds of each source, and those of all together with merge and filters."""
    begun, proposals, took = time.thread_time(), list[Proposal](), list[float]()
    for (source, _), limit in zip(sources, limits(sources, request, filters), strict=True):
        last = time.thread_time()
        proposals.append(_asked(source, request, limit, failed))
        took.append(1e3 * (time.thread_time() - last))
    gathered(proposals, filters, quotas(sources), request)
    return [*took, 1e3 * (time.thread_time() - begun)]
