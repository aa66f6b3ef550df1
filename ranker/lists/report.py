"""The report of `pairlift lists`: what the lists of a held-out future are worth, beside peers, with intervals by user.

lists_report   the peers, tuned before the cut; then, as of each user's first request in the test and as of the cut:
  _part        who is asked, the answers of the server's own path and of each source, the peers' lists
    _figures   the means, for all users and for those with and without history
  _both        each user's mean of the two times
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.errors import PairliftError
from features.pairing.split import iso
from features.schema import F64, I32, I64, Bool
from ranker.config import Config
from ranker.lists.answers import Answers, ask
from ranker.lists.asked import NEW, Asked, At
from ranker.lists.diverse import PLAIN, plain_lists, similarity
from ranker.lists.peers import CHOSEN_BY, Lists, Past, factorised, popular
from ranker.lists.worth import (
    KS,
    best_hits,
    coverage,
    novelty,
    source_shares,
    users_of_items,
    worth,
    worth_of_hits,
)
from ranker.metrics.interval import difference, finite, mean_interval
from ranker.pipeline import Pipeline
from ranker.reranking.diversity import Diversity

#: of `lists.json`
FORMAT = 1
#: what the best peer is the best by, and what `Recommend` is compared by
COMPARED = ("recall@10", "ndcg@10", "recall@50", "recall@200", "mrr")
#: as of when users are asked about
PARTS: tuple[At, ...] = ("first", "cut")
#: the name of the lists of the server
RECOMMEND = "Recommend"
#: lists are this long, and those of `brief_report`
LENGTH, BRIEF = max(KS), 10
#: the source that `brief_report` compares with
POPULAR = "popular"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What was known of the items before the cut."""

    users: I64  # [n_items], how many users had an event with each
    n_users: int  # with any event
    diversity: Diversity | None  # by whose vectors items are alike; None: it is off


@dataclass(frozen=True, slots=True)
class _Part:
    """What lists as of one kind of time are worth."""

    user: I32  # [u], ascending
    worths: dict[str, dict[str, F64]]  # by list and figure, [u]
    figures: dict[str, Any]  # of the report


def lists_report(
    pipeline: Pipeline, past: Past, *, most: int, seed: int = 0, further: Mapping[str, Lists] | None = None
) -> dict[str, Any]:
    """Return the whole report as what `lists.json` holds.

    pipeline: of a bundle that was made of events before past.split.t2 (`ranker.lists.answers.patient`), whose state
    goes on to the end of the log: each request reads what lies before its as_of. most: users that are asked about,
    drawn by `seed` where there are more. further: other peers by name, fitted before t2. PairliftError where nobody
    wanted anything in [t2, t3).
    """
    config = pipeline.bundle.config
    chosen = {"popular": popular(past, most, seed)}
    chosen["als"] = factorised(past, chosen["popular"].lists, most, seed)
    peers = {name: peer.lists for name, peer in chosen.items()} | dict(further or {})
    before = past.log.until(past.split.t2)
    known = _Known(
        users=users_of_items(before, past.catalog.n_items),
        n_users=len(np.unique(before.user[before.user >= 0])),
        diversity=pipeline.reranking.diversity,
    )
    parts = {at: _part(pipeline, past, at, peers, known, most, seed) for at in PARTS}
    report: dict[str, Any] = finite(
        {
            "format": FORMAT,
            "data": config.name,
            "cut": iso(past.split.t2),
            "end": iso(past.split.t3),
            "wanted": list(config.grade_names[past.floor :]),
            "again": past.again,
            "length": LENGTH,
            "most_users": most,
            "seed": seed,
            "peers": {
                name: {peer.parameter: peer.value, "chosen_by": CHOSEN_BY, "tried": peer.tried}
                for name, peer in chosen.items()
            },
            "parts": {at: part.figures for at, part in parts.items()},
            "both": _both(list(parts.values())),
        }
    )
    return report


def brief_report(pipeline: Pipeline, past: Past, *, most: int, seed: int = 0) -> dict[str, Any]:
    """Return what `train` says of lists: recall@10 and NDCG@10 of Recommend and of the source `popular` alone.

    As of each user's first request of the test; the same users and lists as in `lists_report`, which says more and
    takes longer. popular and difference are None where that source is turned off. pipeline, most and errors: as there.
    """
    eligible = past.asked(past.split.t2, past.split.t3)
    if not len(eligible):
        raise _nobody(past, pipeline.bundle.config)
    who = _drawn(eligible, most, seed)
    answers = ask(pipeline, who, BRIEF, alone=(POPULAR,))
    own = worth(answers.lists, who, (BRIEF,))
    peer = worth(answers.alone[POPULAR], who, (BRIEF,)) if POPULAR in answers.alone else None
    figures = {figure: _compared(own[figure], None if peer is None else peer[figure]) for figure in COMPARED[:2]}
    of: dict[str, Any] = {"users": len(who), "eligible_users": len(eligible), "again": past.again}
    found: dict[str, Any] = finite(of | figures)
    return found


def _compared(own: F64, popular: F64 | None) -> dict[str, Any]:
    """Return a figure of Recommend, of the popular list, and the difference with its interval."""
    found: dict[str, Any] = {"recommend": float(own.mean()), "popular": None, "difference": None, "ci95": None}
    if popular is not None:
        less, low, high = difference(own, popular)
        found |= {"popular": float(popular.mean()), "difference": less, "ci95": [low, high]}
    return found


def _part(
    pipeline: Pipeline, past: Past, at: At, peers: Mapping[str, Lists], known: _Known, most: int, seed: int
) -> "_Part":
    """Ask as of one kind of time, and return the figures for all users, and for those with and without history."""
    eligible = past.asked(past.split.t2, past.split.t3, at)
    if not len(eligible):
        raise _nobody(past, pipeline.bundle.config)
    who = _drawn(eligible, most, seed)
    answers = ask(pipeline, who, LENGTH)
    lists = {RECOMMEND: answers.lists} | plain_lists(pipeline, who, LENGTH)
    lists |= {name: peer(who, LENGTH) for name, peer in peers.items()}
    lists |= {f"source {name}": found for name, found in answers.alone.items()}
    kinds = {"all": np.ones(len(who), bool), "with_history": who.history > 0, "without_history": who.history == 0}
    worths = {name: worth(found, who, KS) for name, found in lists.items()}
    figures = {
        kind: _figures(who, answers, lists, worths, keep, known, pipeline.source_names) for kind, keep in kinds.items()
    }
    return _Part(who.requests.user, worths, {"eligible_users": len(eligible), **figures})


def _drawn(eligible: Asked, most: int, seed: int) -> Asked:
    """Return at most so many of the users, evenly: the same ones in every part, as far as they are eligible there."""
    turn = np.random.default_rng(seed).random(int(eligible.requests.user.max()) + 1)[eligible.requests.user]
    return eligible.select(np.sort(np.argsort(turn)[:most]))


def _both(parts: list[_Part]) -> dict[str, Any]:
    """Return the figures of each user's mean over the parts, of the users who are in all of them."""
    user = parts[0].user
    for part in parts[1:]:
        user = np.intersect1d(user, part.user)
    if not len(user):
        return {"users": 0}
    rows = [np.searchsorted(part.user, user) for part in parts]

    def mean(name: str, figure: str) -> F64:
        found = [part.worths[name][figure][at] for part, at in zip(parts, rows, strict=True)]
        return np.asarray(np.mean(found, axis=0))

    worths = {name: {figure: mean(name, figure) for figure in COMPARED} for name in parts[0].worths}
    own, others, peers = _sides(worths)
    return {
        "users": len(user),
        "lists": {name: _means(of) for name, of in worths.items()},
        "less": _less(own, others),
        "best_peer": {figure: _best_peer(own, peers, figure) for figure in COMPARED},
    }


_Worths = Mapping[str, Mapping[str, F64]]


def _sides(worths: _Worths) -> tuple[Mapping[str, F64], _Worths, _Worths]:
    """Return the worth of `Recommend`, of all other lists, and of those of others than the server."""
    others = {name: of for name, of in worths.items() if name != RECOMMEND}
    return worths[RECOMMEND], others, {name: of for name, of in others.items() if name != PLAIN}


def _less(own: Mapping[str, F64], peers: Mapping[str, Mapping[str, F64]]) -> dict[str, Any]:
    """Return how much more `Recommend` has than each other list."""
    return {
        name: {figure: _interval(difference(own[figure], of[figure])) for figure in COMPARED}
        for name, of in peers.items()
    }


def _nobody(past: Past, config: Config) -> PairliftError:
    return PairliftError(
        f"[lists]: of the users of the test, from {iso(past.split.t2)} to {iso(past.split.t3)}, nobody has an event of "
        f"the grade '{config.grade_names[past.floor]}' or better with an item{NEW[past.again]}; move [split] t2 or "
        "t3, or name a lower grade as [lists] wanted"
    )


def _figures(
    who: Asked,
    answers: Answers,
    lists: Mapping[str, I32],
    of_all: Mapping[str, Mapping[str, F64]],
    keep: Bool,
    known: _Known,
    sources: tuple[str, ...],
) -> dict[str, Any]:
    """Return the figures of some users: {"users": 0} where there is none. of_all: the worths of all users' lists."""
    rows = np.flatnonzero(keep)
    if not len(rows):
        return {"users": 0}
    wanted = who.wanted[rows]
    worths = {name: {figure: values[rows] for figure, values in of.items()} for name, of in of_all.items()}
    best = worth_of_hits(best_hits(answers.reached[rows], LENGTH), wanted, KS)
    own, others, peers = _sides(worths)
    return {
        "users": len(rows),
        "wanted_items": float(wanted.mean()),
        "candidates": float(answers.candidates[rows].mean()),
        "lists": {name: _means(of) | _variety(lists[name][rows], known) for name, of in worths.items()},
        "less": _less(own, others),
        "best_peer": {figure: _best_peer(own, peers, figure) for figure in COMPARED},
        "union": {"recall": _interval(mean_interval(answers.reached[rows] / wanted)), "best_order": _means(best)},
        "union_share": _share(own["recall@10"], best["recall@10"]),
        "sources": source_shares(answers.masks[rows], answers.lists[rows], sources),
        "empty": dict(Counter(answers.empty[k] for k in rows.tolist() if k in answers.empty)),
        "degraded": dict(Counter(lane for k in rows.tolist() for lane in answers.degraded.get(k, ()))),
    }  # fmt: skip


def _means(of: Mapping[str, F64]) -> dict[str, Any]:
    return {figure: _interval(mean_interval(values)) for figure, values in of.items()}


def _variety(lists: I32, known: _Known) -> dict[str, Any]:
    """Return how many of the items known before the cut the first 10 have, how little known these are, and how alike.

    How alike only where `[lists] diversity` says by what.
    """
    bits, found = novelty(lists, known.users, known.n_users), {}
    if known.diversity is not None:
        alike = similarity(lists, known.diversity)
        found["similarity@10"] = _interval(mean_interval(alike[~np.isnan(alike)]))
    return found | {
        "coverage@10": coverage(lists, known.users > 0),
        "novelty@10": _interval(mean_interval(bits[~np.isnan(bits)])),
        "empty": int((lists[:, 0] < 0).sum()),
    }


def _best_peer(own: Mapping[str, F64], peers: Mapping[str, Mapping[str, F64]], figure: str) -> dict[str, Any]:
    """Return the peer of the highest mean, and how much more `Recommend` has."""
    name = max(peers, key=lambda peer: float(peers[peer][figure].mean()))
    return {"name": name, **_interval(difference(own[figure], peers[name][figure]))}


def _interval(found: tuple[float, float, float]) -> dict[str, Any]:
    mean, low, high = found
    return {"mean": mean, "ci95": [low, high]}


def _share(own: F64, best: F64) -> float:
    return float(own.mean() / best.mean()) if best.any() else float("nan")
