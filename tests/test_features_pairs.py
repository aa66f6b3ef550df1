"""Groups share one as_of, are disjoint and cut at the split; pairs and weights equal the oracle; time is honest."""

from collections import Counter
from itertools import pairwise

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import make_world

from features.counters.spec import make_counters
from features.errors import PairliftError
from features.pairing.groups import Groups, make_groups
from features.pairing.pairs import Pairs, count_by_grades, count_pairs, make_pairs, weight_table
from features.pairing.split import Split, make_split
from features.rows import assemble, make_spec
from features.schema import MINUTE, EventLog, Requests
from features.settings import PairingSettings, SplitSettings
from features.state.histories import Histories
from features.state.store import State
from ranker.training.objective import pair_accuracy

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
    names = ("sampled", *GRADES)
    slow = Counter(f"{names[groups.grade[a] + 1]} > {names[groups.grade[b] + 1]}" for a, b, _ in want)
    assert count_by_grades(groups, weights, GRADES) == slow


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
        assert pair_accuracy(matrix[:, k].astype(np.float64), pairs) == (0.5, 0.0, 1.0)


@given(logs(), st.integers(-1, 3), st.integers(0, 62))
@settings(max_examples=60, deadline=None)
def test_histories_are_strictly_before(log: EventLog, user: int, minute: int) -> None:
    histories = Histories.build(log, 3)
    start, stop = histories.before(np.array([user], np.int32), np.array([minute * MINUTE]))
    assert histories.item[start[0] : stop[0]].tolist() == oracles.history(log, user, minute * MINUTE)


@given(logs(), st.integers(1, 8), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_capped_pairs_are_some_of_all_pairs_as_many_as_asked_for_in_their_order(
    log: EventLog, cap: int, seed: int
) -> None:
    groups, table = make_groups(log, PairingSettings(negatives=1), SPLIT), weight_table({}, GRADES, True)
    whole, capped = make_pairs(groups, table), make_pairs(groups, table, cap, seed)
    group = groups.requests.row_request()
    every, kept = (np.bincount(group[p.winner], minlength=len(groups.requests)) for p in (whole, capped))
    np.testing.assert_array_equal(every, count_pairs(groups, table))
    np.testing.assert_array_equal(kept, np.minimum(every, cap))
    place = {pair: k for k, pair in enumerate(zip(*_columns(whole), strict=True))}
    places = [place[pair] for pair in zip(*_columns(capped), strict=True)]
    assert places == sorted(set(places))
    assert _columns(capped) == _columns(make_pairs(groups, table, cap, seed))


def _columns(pairs: Pairs) -> list[list[float]]:
    return [pairs.winner.tolist(), pairs.loser.tolist(), pairs.weight.tolist(), pairs.sampled.tolist()]


def groups_of(*grades: list[int]) -> Groups:
    """Groups of one user with rows of these grades; -1 is a drawn one."""
    grade = np.array([g for members in grades for g in members], np.int8)
    sizes, n = np.array([len(members) for members in grades]), len(grades)
    requests = Requests(
        np.zeros(n, np.int32), np.arange(n, dtype=np.int64) * MINUTE, np.full(n, -1, np.int16),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), np.arange(len(grade), dtype=np.int32),
    )  # fmt: skip
    event = np.where(grade >= 0, np.arange(len(grade)), -1).astype(np.int64)
    return Groups(requests, np.ones(n, np.int8), np.zeros(n, bool), grade, event)


@pytest.mark.parametrize("cap", [1, 7, 13, 22])
def test_a_draw_is_even_over_the_pairs_and_over_pairs_of_pairs(cap: int) -> None:
    """Chi-square of fixed seeds, against the definition: each pair, and each two, are drawn together equally often."""
    groups, table, seeds = groups_of([0, 0, 2], [1, 0, 2, 2, 0, 1, 0, 1]), weight_table({}, GRADES, False), 4000
    pairs = [make_pairs(groups, table, cap, seed) for seed in range(seeds)]
    whole = make_pairs(groups, table)
    place = np.full((11, 11), -1)
    place[whole.winner, whole.loser] = np.arange(len(whole))
    n, drawn = len(whole) - 2, np.zeros((seeds, len(whole)))
    assert n == 21
    for k, p in enumerate(pairs):
        drawn[k, place[p.winner, p.loser]] = 1
    cap = min(cap, n)
    drawn = drawn[:, 2:]  # of the second group; of the first all two are kept
    assert (drawn.sum(axis=1) == cap).all()
    together = (drawn.T @ drawn)[np.triu_indices(n, 1)]
    for count, chance in ((drawn.sum(axis=0), cap / n), (together, cap * (cap - 1) / (n * (n - 1)))):
        variance = seeds * chance * (1 - chance)
        if variance:
            # The mean over cells of z² is about 1, with an sd under 0.35 for 21 cells: 2.5 is beyond any luck.
            assert np.mean((count - seeds * chance) ** 2 / variance) < 2.5
        else:
            assert (count == seeds * chance).all()


def test_a_draw_of_a_huge_group_makes_no_more_than_it_keeps() -> None:
    rng = np.random.default_rng(0)
    groups, table = groups_of(rng.integers(0, 3, 100_000).tolist(), [0, 2]), weight_table({}, GRADES, False)
    assert count_pairs(groups, table)[0] > 2**31
    pairs = make_pairs(groups, table, 1000, seed=1)
    assert len(set(zip(pairs.winner.tolist(), pairs.loser.tolist(), strict=True))) == 1001
    assert (groups.grade[pairs.winner] > groups.grade[pairs.loser]).all()
    assert not np.array_equal(pairs.winner, make_pairs(groups, table, 1000, seed=2).winner)
    # Winners are drawn by how many they beat: in the middle of the group on average.
    assert abs(pairs.winner[:1000].mean() - 50_000) < 4 * 100_000 / np.sqrt(12 * 1000)
    with pytest.raises(PairliftError, match=r"largest of 2 groups has 100,000 impressions.*train_cap"):
        make_pairs(groups, table)


@pytest.mark.parametrize("members", [[], [1], [2, 2, 2], [0, 0], [-1, -1], [-1]])
def test_groups_of_one_side_have_no_pairs(members: list[int]) -> None:
    """All winners, all losers, all drawn, one impression, none: no pair, and the group beside it keeps its own."""
    table = weight_table({}, GRADES, True)
    pairs = make_pairs(groups_of(members, [0, 1], members), table, 5)
    assert (pairs.winner - len(members)).tolist() == [1]
    assert len(make_pairs(groups_of(members), table, 5)) == 0
    assert len(make_pairs(groups_of(), table)) == 0


def test_an_impression_that_stands_twice_makes_its_pairs_twice_and_none_with_itself() -> None:
    table = weight_table({}, GRADES, False)
    assert _columns(make_pairs(groups_of([2, 0, 0]), table))[:2] == [[0, 0], [1, 2]]
    assert _columns(make_pairs(groups_of([2, 2, 0]), table))[:2] == [[0, 1], [2, 2]]


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
