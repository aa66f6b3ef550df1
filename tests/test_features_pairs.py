"""Groups share one as_of, are disjoint and cut at the split; pairs and weights equal the oracle; time is honest."""

from itertools import pairwise

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import make_world

from features.errors import PairliftError
from features.histories import Histories
from features.pairs import Groups, cap_pairs, count_by_grades, make_groups, make_pairs, weight_table
from features.rows import assemble, make_spec
from features.schema import MINUTE, EventLog
from features.settings import PairingSettings, SplitSettings
from features.spec import make_counters
from features.split import Split, make_split
from features.store import State
from ranker.objective import pair_accuracy

GRADES = ("skip", "listen", "like")


@st.composite
def logs(draw: st.DrawFn) -> EventLog:
    n = draw(st.integers(1, 40))
    ints = lambda lo, hi: np.array(draw(st.lists(st.integers(lo, hi), min_size=n, max_size=n)))  # noqa: E731
    return EventLog(
        ints(0, 2).astype(np.int32), ints(0, 5).astype(np.int32), np.sort(ints(0, 60)).astype(np.int64) * MINUTE,
        ints(-1, 2).astype(np.int8), ints(-1, 1).astype(np.int16), np.full(n, -1, np.int8), np.full(n, -1, np.int64),
        ints(0, 3) > 0, np.empty((n, 0), np.float32), (),
    )  # fmt: skip


SPLIT = Split(0, 20 * MINUTE, 40 * MINUTE, 55 * MINUTE, 0.2)


@given(logs(), st.integers(1, 20), st.integers(2, 6))
@settings(max_examples=60, deadline=None)
def test_groups_equal_the_oracle(log: EventLog, window: int, max_size: int) -> None:
    groups = make_groups(log, PairingSettings(window=f"{window}m", max_size=max_size), SPLIT)
    rows = [
        (r, int(log.user[r]), int(log.ts[r]))
        for r in range(len(log))
        if log.grade[r] >= 0 and log.pairable[r] and log.ts[r] < SPLIT.t3
    ]
    want = oracles.time_groups(rows, window * MINUTE, max_size, [SPLIT.t1, SPLIT.t2])
    r = groups.requests
    got = [groups.event[r.offsets[g] : r.offsets[g + 1]].tolist() for g in range(len(r))]
    assert sorted(map(tuple, got)) == sorted(map(tuple, want))
    assert all(r.as_of[g] == log.ts[members[0]] for g, members in enumerate(got))
    assert (np.diff(r.as_of) >= 0).all()


@given(logs())
@settings(max_examples=40, deadline=None)
def test_a_group_belongs_to_one_user_one_period_one_as_of(log: EventLog) -> None:
    groups = make_groups(log, PairingSettings(), SPLIT)
    owner = groups.requests.row_request()
    assert (log.user[groups.event] == groups.requests.user[owner]).all()
    assert (SPLIT.period(log.ts[groups.event]) == groups.period[owner]).all()
    assert (log.ts[groups.event] >= groups.requests.as_of[owner]).all()
    assert len(set(groups.event.tolist())) == len(groups.event)
    for period in (0, 1):
        held = groups.requests.as_of[(groups.period == period) & groups.validation]
        rest = groups.requests.as_of[(groups.period == period) & ~groups.validation]
        assert not len(held) or not len(rest) or rest.max() <= held.min()


@given(logs(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_pairs_equal_the_oracle(log: EventLog, negatives: bool) -> None:
    weights = weight_table({}, GRADES, negatives)
    groups = make_groups(log, PairingSettings(negatives=2 if negatives else 0), SPLIT)
    pairs = make_pairs(groups, weights)
    offsets = groups.requests.offsets
    want = [
        (a + int(start), b + int(start), w)
        for start, stop in pairwise(offsets)
        for a, b, w in oracles.pairs_of(groups.grade[start:stop].tolist(), groups.sampled[start:stop].tolist(), weights)
    ]
    assert list(zip(pairs.winner.tolist(), pairs.loser.tolist(), pairs.weight.tolist(), strict=True)) == want
    assert sum(count_by_grades(pairs, groups, GRADES).values()) == len(want)


@given(logs())
@settings(max_examples=30, deadline=None)
def test_negatives_are_known_then_and_not_the_groups_own(log: EventLog) -> None:
    groups = make_groups(log, PairingSettings(negatives=3), SPLIT, seed=1)
    r = groups.requests
    for g in range(len(r)):
        rows = slice(int(r.offsets[g]), int(r.offsets[g + 1]))
        drawn = r.item[rows][groups.sampled[rows]]
        own = set(r.item[rows][~groups.sampled[rows]].tolist())
        before = set(log.item[log.ts < r.as_of[g]].tolist())
        assert set(drawn.tolist()) <= before - own
    again = make_groups(log, PairingSettings(negatives=3), SPLIT, seed=1)
    np.testing.assert_array_equal(again.requests.item, r.item)


def test_requests_of_the_log_are_the_groups() -> None:
    world = make_world(1, request_ids=True)
    split = make_split(SplitSettings(), world.log, "UTC")
    groups = make_groups(world.log, PairingSettings(), split)
    owner = groups.requests.row_request()
    request = world.log.request[groups.event]
    for g in range(len(groups.requests)):
        assert len(set(request[owner == g].tolist())) == 1


def test_a_request_of_two_users_is_refused() -> None:
    world = make_world(1, request_ids=True)
    world.log.request[:] = 7
    with pytest.raises(PairliftError, match="belongs to one user"):
        make_groups(world.log, PairingSettings(), make_split(SplitSettings(), world.log, "UTC"))


def test_a_ranker_of_the_user_and_the_context_alone_ties_on_every_pair() -> None:
    """Features that know nothing of the item are equal for all members of a group (DESIGN.md section 4)."""
    world = make_world(2, surfaces=("feed", "search"))
    split = make_split(SplitSettings(), world.log, "UTC")
    groups = make_groups(world.log, PairingSettings(), split)
    counters = make_counters([], world.log.until(split.t1), world.catalog, GRADES)
    spec = make_spec(counters, world.catalog, "UTC")
    matrix = assemble(State.build(world.log, world.catalog, counters, GRADES), spec, groups.requests)
    pairs = make_pairs(groups, weight_table({}, GRADES, False))
    blind = [k for k, c in enumerate(spec.columns) if c in ("hour", "surface") or c.startswith("user__")]
    assert len(blind) > 8
    for k in blind:
        assert pair_accuracy(matrix[:, k].astype(np.float64), pairs) == (0.0, 1.0)


@given(logs(), st.integers(-1, 3), st.integers(0, 62))
@settings(max_examples=60, deadline=None)
def test_histories_are_strictly_before(log: EventLog, user: int, minute: int) -> None:
    histories = Histories.build(log, 3)
    start, stop = histories.before(np.array([user], np.int32), np.array([minute * MINUTE]))
    assert histories.item[start[0] : stop[0]].tolist() == oracles.history(log, user, minute * MINUTE)


def test_a_cap_is_even_seeded_and_within_the_group() -> None:
    world = make_world(3)
    split = make_split(SplitSettings(), world.log, "UTC")
    groups = make_groups(world.log, PairingSettings(), split)
    pairs = make_pairs(groups, weight_table({}, GRADES, False))
    capped = cap_pairs(pairs, groups, 3, seed=5)
    group = groups.requests.row_request()
    whole, kept = (np.bincount(group[p.winner], minlength=len(groups.requests)) for p in (pairs, capped))
    np.testing.assert_array_equal(kept, np.minimum(whole, 3))
    np.testing.assert_array_equal(capped.winner, cap_pairs(pairs, groups, 3, seed=5).winner)
    assert not np.array_equal(capped.winner, cap_pairs(pairs, groups, 3, seed=6).winner)
    assert cap_pairs(pairs, groups, None, seed=5) is pairs


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"like > skip": 1.0}, "lacks 'listen > skip'"),
        ({"like > skp": 1.0}, "did you mean 'skip'"),
        ({"skip > like": 1.0}, "must be the better one"),
        ({"like": 1.0}, "the form 'winner > loser'"),
        ({"like > skip": -1.0}, "a finite weight above zero"),
    ],
)
def test_wrong_weights_are_told(weights: dict[str, float], says: str) -> None:
    with pytest.raises(PairliftError, match=says):
        weight_table(weights, GRADES, negatives=False)


def test_a_split_out_of_order_is_told() -> None:
    log = make_world(0).log
    with pytest.raises(PairliftError, match="t0 < t1 < t2 < t3"):
        make_split(SplitSettings(t1=0.8, t2=0.5), log, "UTC")


def test_a_plugin_sees_nothing_of_a_later_period() -> None:
    world = make_world(4)
    split = make_split(SplitSettings(), world.log, "UTC")
    assert (world.log.until(split.t1).ts < split.t1).all()
    towers: Groups = make_groups(world.log, PairingSettings(), split).of("towers")
    assert (world.log.ts[towers.event] < split.t1).all()


def test_a_request_begins_with_its_first_event_graded_or_not() -> None:
    n = 5
    log = EventLog(
        np.zeros(n, np.int32),
        np.arange(n, dtype=np.int32),
        np.array([10, 20, 30, 40, 50]) * MINUTE,
        np.array([-1, 0, 2, 0, 1], np.int8),
        np.array([1, 0, 0, 0, 0], np.int16),
        np.full(n, -1, np.int8),
        np.array([7, 7, 7, 8, 8], np.int64),
        np.array([True, True, True, False, True]),
        np.empty((n, 0), np.float32),
        (),
    )
    whole = Split(0, 60 * MINUTE, 70 * MINUTE, 80 * MINUTE, 0.2)
    groups = make_groups(log, PairingSettings(), whole)
    assert groups.requests.as_of.tolist() == [10 * MINUTE, 40 * MINUTE]
    assert groups.requests.surface.tolist() == [1, 0]
    assert groups.event.tolist() == [1, 2, 4]
    cut = make_groups(log, PairingSettings(), Split(0, 25 * MINUTE, 70 * MINUTE, 80 * MINUTE, 0.2))
    assert cut.requests.as_of.tolist() == [10 * MINUTE, 30 * MINUTE, 40 * MINUTE]
