"""A new bundle is tried beside the one that answers, before it gets its place: contract, requests, time and scores.

What is found is of two kinds. What breaks callers is never taken: ids of another kind, values of another kind, requests
that fail. What may be meant (`--force` takes it) is odd: it is slower, its scores differ, it ignores what callers send.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from pairlift.v1 import admin_pb2 as admin
from pairlift.v1 import ranking_pb2 as pb

from features.errors import PairliftError, told
from features.pace import REST
from ranker.asking.messages import id_message, ids_message
from ranker.request import RequestError
from ranker.serving.rollout.agreement import Agreement, Pair, Reply
from ranker.serving.rollout.recent import Asked
from ranker.serving.served import Served

log = logging.getLogger(__name__)

#: requests that are tried, at most
TRIED = 64
#: where fewer are known, so many known users are asked for
PROBES, PROBED_ITEMS = 16, 100
#: the median time of an answer may be so many times that of the active bundle, or be so many ms
SLOWER, FAST_MS = 2.0, 5.0
#: the least median rank correlation, and the least overlap of the first ten: two rankers of the same log that are
#: trained on other days, or with other plugins, lie far above; shuffled columns and wrong items far below
CORRELATION, OVERLAP = 0.2, 0.1
#: the share of the requests in which all items may have one score, where those of the active bundle differ
CONSTANT = 0.25
IDS = {pb.ID_KIND_UNSPECIFIED: "unknown", pb.ID_KIND_INTEGER: "integers", pb.ID_KIND_TEXT: "text"}
VALUES = {pb.VALUE_KIND_UNSPECIFIED: "thing", pb.VALUE_KIND_NUMBER: "number", pb.VALUE_KIND_TEXT: "text"}


@dataclass(slots=True)
class Findings:
    """What speaks against a bundle, as sentences."""

    broken: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)

    def refuse(self, version: str, force: bool) -> None:
        """Raise PairliftError where there is reason to."""
        reasons = self.broken if force else [*self.broken, *self.odd]
        if reasons:
            hint = "" if self.broken else " (--force takes it as it is)"
            raise PairliftError(f"bundle {version} is refused, and the one before goes on: {'; '.join(reasons)}{hint}")
        for reason in self.odd:
            log.warning("bundle %s is taken by force: %s", version, reason)


def tried(
    active: Served, new: Served, recent: list[Asked], force: bool, say: Callable[[str], None]
) -> admin.Comparison:
    """Try a warm bundle; return how it compares. PairliftError where it is refused.

    recent: the latest requests; where there are few, users that the active bundle knows are asked for too.
    """
    findings = Findings()
    compare_contracts(active, new, findings)
    if findings.broken:
        findings.refuse(new.bundle.version, force)
    asked = recent[:TRIED]
    if len(asked) < PROBES:
        asked = [*asked, *probes(active)]
    agreement = Agreement()
    problems = [problem for message in asked if (problem := _compared(active, new, message, agreement))]
    figures = agreement.figures()
    if problems:
        findings.broken.append(f"{len(problems)} of {len(asked)} recent requests failed, the first with: {problems[0]}")
    _judge(figures, agreement.constant, findings)
    say(
        f"scored {figures.requests} requests aside ({len(asked) - len(recent[:TRIED])} of them made up): rank "
        f"correlation {figures.rank_correlation:.3f}, overlap@10 {figures.overlap_at_10:.3f}, "
        f"{figures.p50:.1f} ms against {figures.p50_active:.1f}"
    )
    findings.refuse(new.bundle.version, force)
    return figures


def compare_contracts(active: Served, new: Served, findings: Findings) -> None:
    """Add what a caller of the active bundle would miss; what is new is fine."""
    old, now = (pb.DescribeResponse(**served.described()) for served in (active, new))
    for ids in ("user_ids", "item_ids"):
        before, after = (IDS[getattr(one, ids)] for one in (old, now))
        if before != after:
            findings.broken.append(f"its {ids.replace('_', ' ')} are {after}, and callers send {before}")
    if gone := [surface for surface in old.surfaces if surface not in now.surfaces]:
        findings.odd.append(f"it ignores what callers may send: surface {', '.join(gone)}")
    for words, sent, read in (
        ("context attribute", old.context_attributes, now.context_attributes),
        ("candidate column", old.candidate_columns, now.candidate_columns),
    ):
        kinds = {one.name: one.kind for one in read}
        if gone := [one.name for one in sent if one.name not in kinds]:
            findings.odd.append(f"it ignores what callers may send: {words} {', '.join(gone)}")
        findings.broken += [
            f"its {words} '{one.name}' is a {VALUES[kinds[one.name]]}, and callers send a {VALUES[one.kind]}"
            for one in sent
            if kinds.get(one.name, one.kind) != one.kind
        ]
    for name, most, asked in (("max_k", now.max_k, old.max_k), ("max_items", now.max_items, old.max_items)):
        if most < asked:
            findings.odd.append(f"its [serve] {name} is {most}, and callers may send up to {asked}")


def probes(active: Served) -> list[Asked]:
    """Return requests for users and items that a bundle knows, some of them with the longest history."""
    catalog, sizes = active.bundle.state.catalog, active.bundle.state.histories.sizes
    users = np.argsort(-sizes, kind="stable")[np.linspace(0, max(len(sizes) // 2, 1), PROBES, False).astype(int)]
    places = np.linspace(0, catalog.n_items, min(PROBED_ITEMS, catalog.n_items), False).astype(np.int32)
    items = ids_message(catalog.ids_of_items(places))
    asked: list[Asked] = []
    for user in catalog.ids_of_users(users.astype(np.int32)):
        asked.append(pb.RankRequest(user=id_message(user), items=items))
        asked.append(pb.RecommendRequest(user=id_message(user)))
    return asked


def answered(served: Served, message: Asked) -> tuple[Reply, float]:
    """Return an answer that nobody gets, and the seconds that it took."""
    begun = time.perf_counter()
    if isinstance(message, pb.RankRequest):
        return served.rank(message, aside=True), time.perf_counter() - begun
    return served.recommend(message, aside=True), time.perf_counter() - begun


def _rested(served: Served, message: Asked) -> tuple[Reply, float]:
    """Answer and rest: requests go on meanwhile, and no bundle is timed while the processor is owed to others."""
    reply, seconds = answered(served, message)
    time.sleep(REST * seconds)
    return reply, seconds


def _compared(active: Served, new: Served, message: Asked, agreement: Agreement) -> str:
    """Answer a request by both, and add the pair; return why the new bundle fails on it, empty where it does not."""
    try:
        before, took = _rested(active, message)
    except RequestError:
        return ""  # a caller's mistake, or a limit of a bundle before it
    try:
        _rested(new, message)  # what is kept of a user is made: the active bundle has it of recent ones
        now, took_now = _rested(new, message)
    except Exception as error:
        if not isinstance(error, RequestError):
            log.exception("a bundle that is tried failed on a request")
        agreement.fail()
        return told(error)
    agreement.add(Pair(before, now, took, took_now))
    lost = [name for name in now.degraded if name not in before.degraded]
    return f"{', '.join(lost)} failed or was late" if lost else ""


def _judge(figures: admin.Comparison, constant: int, findings: Findings) -> None:
    if figures.not_finite:
        findings.odd.append(f"{figures.not_finite} of its scores are not finite")
    if constant > CONSTANT * figures.requests:
        findings.odd.append(f"it gives all items of a request one score, in {constant} of {figures.requests}")
    if figures.p50 > max(SLOWER * figures.p50_active, FAST_MS):
        findings.odd.append(
            f"it is too slow: {figures.p50:.1f} ms for an answer, against {figures.p50_active:.1f} of the active one "
            f"(at most {SLOWER:g} times that, or {FAST_MS:g} ms, was expected)"
        )
    for value, least, words in (
        (figures.rank_correlation, CORRELATION, "rank correlation"),
        (figures.overlap_at_10, OVERLAP, "overlap of the first ten items"),
    ):
        if value < least:
            findings.odd.append(
                f"it ranks otherwise: the {words} is {value:.2f} with the active one (at least {least:g} was expected)"
            )
