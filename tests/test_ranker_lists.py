"""Lists of a held-out future: who is asked and what they wanted, and what lists are worth, against slow definitions."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import N_ITEMS, N_USERS, graded_logs

from features.pairing.groups import Groups, make_groups
from features.pairing.split import Split
from features.schema import I32, MINUTE, EventLog, Requests
from features.settings import PairingSettings
from features.state.histories import Histories
from ranker.lists.asked import Asked, At, asked
from ranker.lists.worth import best_hits, coverage, novelty, source_shares, users_of_items, worth, worth_of_hits

SPLIT = Split(0, 20 * MINUTE, 40 * MINUTE, 61 * MINUTE, 0.2)


def wanted_by(log: EventLog, user: int, as_of: int, end: int, floor: int, again: bool) -> set[int]:
    """The items that a user wanted in [as_of, end) and, unless `again`, had no event of before."""
    rows = [r for r in range(len(log)) if log.user[r] == user]
    before = set() if again else {int(log.item[r]) for r in rows if log.ts[r] < as_of}
    later = [r for r in rows if as_of <= log.ts[r] < end and log.item[r] >= 0]
    return {int(log.item[r]) for r in later if log.grade[r] >= floor and log.pairable[r]} - before


def slowly_asked(
    log: EventLog, groups: Groups, start: int, end: int, floor: int, at: str, again: bool = False
) -> list[tuple[object, ...]]:
    """(user, as_of, surface, history, wanted) of each user who is asked about."""
    r, found = groups.requests, []
    for user in range(N_USERS):
        own = [(int(r.as_of[g]), g) for g in range(len(r)) if r.user[g] == user and start <= r.as_of[g] < end]
        if not own:
            continue
        first, g = min(own)
        as_of = first if at == "first" else start
        wanted = wanted_by(log, user, as_of, end, floor, again)
        if wanted:
            history = sum(log.user[e] == user and log.ts[e] < as_of for e in range(len(log)))
            found.append((user, as_of, int(r.surface[g]), history, sorted(wanted)))
    return found


def as_rows(found: Asked) -> list[tuple[object, ...]]:
    r = found.requests
    wanted = [found.item[found.offsets[k] : found.offsets[k + 1]].tolist() for k in range(len(found))]
    return list(zip(r.user, r.as_of, r.surface, found.history, wanted, strict=True))


@given(graded_logs(), st.sampled_from(["first", "cut"]), st.integers(0, 2), st.sampled_from([0, 2]), st.booleans())
@settings(max_examples=200, deadline=None)
def test_asked_equals_the_oracle(log: EventLog, at: str, floor: int, negatives: int, again: bool) -> None:
    groups = make_groups(log, PairingSettings(window="5m", negatives=negatives), SPLIT)
    histories = Histories.build(log, N_USERS)
    for start, end in ((SPLIT.t2, SPLIT.t3), (SPLIT.t1, SPLIT.t2), (13 * MINUTE, 50 * MINUTE)):
        found = asked(log, histories, groups, start, end, floor, at, again=again)  # type: ignore[arg-type]
        assert as_rows(found) == slowly_asked(log, groups, start, end, floor, at, again)


@given(graded_logs(), st.sampled_from(["first", "cut", "each"]), st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_blocks_of_any_size_change_nothing(log: EventLog, at: At, size: int) -> None:
    groups, histories = make_groups(log, PairingSettings(), SPLIT), Histories.build(log, N_USERS)
    whole = asked(log, histories, groups, SPLIT.t1, SPLIT.t3, 1, at)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ranker.lists.asked.BLOCK", size)
        assert as_rows(asked(log, histories, groups, SPLIT.t1, SPLIT.t3, 1, at)) == as_rows(whole)


@given(graded_logs(), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_a_sample_is_some_of_the_users_and_the_same_for_a_seed(log: EventLog, most: int, seed: int) -> None:
    groups, histories = make_groups(log, PairingSettings(), SPLIT), Histories.build(log, N_USERS)
    span = (SPLIT.t2, SPLIT.t3, 0)
    whole, some = (as_rows(asked(log, histories, groups, *span, most=m, seed=seed)) for m in (None, most))
    assert len(some) == min(most, len(whole))
    assert all(row in whole for row in some)
    assert some == as_rows(asked(log, histories, groups, *span, most=most, seed=seed))


@given(graded_logs())
@settings(max_examples=50, deadline=None)
def test_what_follows_the_end_changes_nothing(log: EventLog) -> None:
    groups, end = make_groups(log, PairingSettings(), SPLIT), 50 * MINUTE
    cut = log.until(end)
    whole, early = (asked(part, Histories.build(part, N_USERS), groups, SPLIT.t2, end, 1) for part in (log, cut))
    assert as_rows(whole) == as_rows(early)


@given(graded_logs())
@settings(max_examples=50, deadline=None)
def test_a_context_is_that_of_the_first_group(log: EventLog) -> None:
    own = (log.ts / MINUTE).astype(np.float32)[:, None]  # each event's context is its minute
    log = replace(log, context=own)
    groups = make_groups(log, PairingSettings(), SPLIT)
    found = asked(log, Histories.build(log, N_USERS), groups, SPLIT.t1, SPLIT.t3, 1)
    assert found.requests.context[:, 0].tolist() == (found.requests.as_of / MINUTE).tolist()
    some = found.select(np.arange(len(found)) % 2 == 0)
    assert as_rows(some) == as_rows(found)[::2]
    assert some.requests.context.tolist() == found.requests.context[::2].tolist()


def asked_for(*wanted: list[int]) -> Asked:
    sizes = [len(w) for w in wanted]
    n = len(wanted)
    requests = Requests(
        user=np.arange(n, dtype=np.int32),
        as_of=np.zeros(n, np.int64),
        surface=np.zeros(n, np.int16),
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        item=np.array([i for w in wanted for i in sorted(w)], np.int32),
    )
    return Asked(requests=requests, history=np.zeros(n, np.int64))


def slow_worth(order: list[int], wanted: set[int], k: int) -> tuple[float, float, float]:
    reach = min(k, len(wanted))
    gained = sum(1 / math.log2(place + 2) for place, item in enumerate(order[:k]) if item in wanted)
    ideal = sum(1 / math.log2(place + 2) for place in range(reach))
    first = [place for place, item in enumerate(order) if item in wanted]
    return len(wanted & set(order[:k])) / reach, gained / ideal, 1 / (first[0] + 1) if first else 0.0


@st.composite
def lists(draw: st.DrawFn) -> tuple[I32, list[list[int]]]:
    """Lists of up to m distinct items for up to 4 users, and what each wanted."""
    m, n = draw(st.integers(0, 12)), draw(st.integers(1, 4))
    found, wanted = np.full((n, m), -1, np.int32), []
    for u in range(n):
        items = draw(st.lists(st.integers(0, 15), max_size=m, unique=True))
        found[u, : len(items)] = items
        wanted.append(draw(st.lists(st.integers(0, 15), min_size=1, max_size=8, unique=True)))
    return found, wanted


@given(lists())
@settings(max_examples=150, deadline=None)
def test_the_worth_of_lists_equals_the_oracle(case: tuple[I32, list[list[int]]]) -> None:
    found, wanted = case
    got = worth(found, asked_for(*wanted), ks=(1, 3, 10))
    for u, row in enumerate(found.tolist()):
        order = [item for item in row if item >= 0]
        for k in (1, 3, 10):
            recall, gain, first = slow_worth(order, set(wanted[u]), k)
            assert got[f"recall@{k}"][u] == pytest.approx(recall)
            assert got[f"ndcg@{k}"][u] == pytest.approx(gain)
            assert got["mrr"][u] == pytest.approx(first)


@given(lists())
@settings(max_examples=50, deadline=None)
def test_no_order_of_the_same_items_is_worth_more_than_the_best(case: tuple[I32, list[list[int]]]) -> None:
    found, wanted = case
    of = asked_for(*wanted)
    own = worth(found, of)
    reached = np.array([len(set(row) & set(w)) for row, w in zip(found.tolist(), wanted, strict=True)])
    best = worth_of_hits(best_hits(reached, 50), of.wanted)
    assert all((best[name] >= own[name] - 1e-12).all() for name in own)
    assert np.allclose(best["recall@50"], own["recall@50"])


def test_coverage_novelty_and_shares() -> None:
    found = np.array([[0, 1, -1], [1, 2, 3], [-1, -1, -1]], np.int32)
    known = np.array([True, True, False, True, True])
    assert coverage(found, known, k=2) == 2 / 4  # item 2 has no event, item 3 stands third
    assert math.isnan(coverage(found, np.zeros(5, bool)))
    users = np.array([7, 3, 0, 1, 7])
    got = novelty(found, users, n_users=7, k=2)
    assert got[0] == pytest.approx((0 + 1) / 2)  # 8 / 8 and 4 / 8
    assert got[1] == pytest.approx((1 + 3) / 2)
    assert math.isnan(got[2])
    masks = np.array([[1, 3, 0], [2, 3, 1], [0, 0, 0]], np.uint32)
    assert source_shares(masks, found, ("a", "b"), k=2) == {
        "a": {"share": 3 / 4, "alone": 1 / 4},
        "b": {"share": 3 / 4, "alone": 1 / 4},
    }


@given(graded_logs())
@settings(max_examples=30, deadline=None)
def test_users_of_items_counts_each_user_once(log: EventLog) -> None:
    rows = {(int(u), int(i)) for u, i in zip(log.user, log.item, strict=True)}
    want = [len({u for u, i in rows if i == item}) for item in range(N_ITEMS)]
    assert users_of_items(log, N_ITEMS).tolist() == want
