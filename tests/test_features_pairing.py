"""Groups share one as_of, are disjoint and cut at the split; pairs and weights equal the oracle; time is honest."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import mapping_of
from world import GRADES, groups_of, make_world

from features.counters.spec import make_counters
from features.errors import PairliftError
from features.log.dataset import import_log
from features.log.grading import Grading
from features.pairing.cuts import count_cuts
from features.pairing.exposure import Exposure, Places, corrected, explored, load_places, make_exposure
from features.pairing.groups import Groups, make_groups
from features.pairing.pairs import Pairs, count_by_grades, count_pairs, make_pairs, weight_table
from features.pairing.split import Split, make_split
from features.rows import assemble, make_spec
from features.schema import DAY, F64, MINUTE, EventLog
from features.settings import EventsSettings, Grade, PairingSettings, SplitSettings
from features.state.histories import Histories
from features.state.store import State
from ranker.metrics.pair_accuracy import pair_accuracy


@st.composite
def logs(draw: st.DrawFn) -> EventLog:
    n = draw(st.integers(1, 40))
    ints = lambda lo, hi: np.array(draw(st.lists(st.integers(lo, hi), min_size=n, max_size=n)))  # noqa: E731
    return EventLog(
        user=ints(0, 2).astype(np.int32),
        item=ints(0, 5).astype(np.int32),
        ts=np.sort(ints(0, 60)).astype(np.int64) * MINUTE,
        grade=ints(-1, 2).astype(np.int8),
        surface=ints(-1, 1).astype(np.int16),
        organic=np.full(n, -1, np.int8),
        request=np.full(n, -1, np.int64),
        pairable=ints(0, 3) > 0,
        feedback=np.empty((n, 0), np.float32),
        feedback_names=(),
    )


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
    counters = make_counters(None, world.log.until(split.t1), world.catalog, GRADES)
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
    for wrong in ({"t1": 0.8, "t2": 0.5}, {"t1": 0.5, "t2": 0.5}, {"t0": 0.6, "t1": 0.5}, {"t2": 0.7, "t3": 0.7}):
        with pytest.raises(PairliftError, match="t0 <= t1 < t2 < t3"):
            make_split(SplitSettings(**wrong), log, "UTC")


def test_the_towers_period_alone_may_be_empty() -> None:
    log = make_world(0).log
    split = make_split(SplitSettings(t0=0.2, t1=0.2, t2=0.5), log, "UTC")
    assert split.t0 == split.t1
    groups = make_groups(log, PairingSettings(), split)
    assert not len(groups.of("towers").requests)
    assert len(groups.of("booster", True).requests)
    assert not (split.period(log.ts) == 0).any()


def test_a_plugin_sees_nothing_of_a_later_period() -> None:
    world = make_world(4)
    split = make_split(SplitSettings(), world.log, "UTC")
    assert (world.log.until(split.t1).ts < split.t1).all()
    towers: Groups = make_groups(world.log, PairingSettings(), split).of("towers")
    assert (world.log.ts[towers.event] < split.t1).all()


def test_a_request_begins_with_its_first_event_graded_or_not() -> None:
    n = 5
    log = EventLog(
        user=np.zeros(n, np.int32),
        item=np.arange(n, dtype=np.int32),
        ts=np.array([10, 20, 30, 40, 50]) * MINUTE,
        grade=np.array([-1, 0, 2, 0, 1], np.int8),
        surface=np.array([1, 0, 0, 0, 0], np.int16),
        organic=np.full(n, -1, np.int8),
        request=np.array([7, 7, 7, 8, 8], np.int64),
        pairable=np.array([True, True, True, False, True]),
        feedback=np.empty((n, 0), np.float32),
        feedback_names=(),
    )
    whole = Split(0, 60 * MINUTE, 70 * MINUTE, 80 * MINUTE, 0.2)
    groups = make_groups(log, PairingSettings(), whole)
    assert groups.requests.as_of.tolist() == [10 * MINUTE, 40 * MINUTE]
    assert groups.requests.surface.tolist() == [1, 0]
    assert groups.event.tolist() == [1, 2, 4]
    cut = make_groups(log, PairingSettings(), Split(0, 25 * MINUTE, 70 * MINUTE, 80 * MINUTE, 0.2))
    assert cut.requests.as_of.tolist() == [10 * MINUTE, 30 * MINUTE, 40 * MINUTE]


BOUNDS = [10 * MINUTE, 25 * MINUTE, 40 * MINUTE, 55 * MINUTE]
CUTTING = Split(*BOUNDS, 0.2)


@st.composite
def logs_of_requests(draw: st.DrawFn) -> EventLog:
    """Events of three users, some in one of nine requests, whose codes say nothing of their time."""
    n = draw(st.integers(1, 50))
    ints = lambda lo, hi, size=n: np.array(draw(st.lists(st.integers(lo, hi), min_size=size, max_size=size)))  # noqa: E731
    request = ints(-3, 8).clip(-1)
    # A request lasts some minutes: it is often cut, and seldom by two boundaries.
    begun, owner = ints(0, 60, 9), ints(0, 2, 9)
    ts = np.where(request >= 0, begun[request] + ints(0, 12), ints(0, 60)) * MINUTE
    user = np.where(request >= 0, owner[request], ints(0, 2))
    order = np.argsort(ts, kind="stable")
    return EventLog(
        user=user[order].astype(np.int32),
        item=ints(0, 5).astype(np.int32),
        ts=ts[order].astype(np.int64),
        grade=ints(-1, 2).astype(np.int8),
        surface=ints(-1, 1).astype(np.int16),
        organic=np.full(n, -1, np.int8),
        request=request[order].astype(np.int64),
        pairable=ints(0, 3) > 0,
        feedback=np.empty((n, 0), np.float32),
        feedback_names=(),
    )


def as_tuples(log: EventLog) -> list[tuple[int, int, int, int, bool]]:
    makes_pairs = (log.grade >= 0) & log.pairable
    columns = (range(len(log)), log.user.tolist(), log.ts.tolist(), log.request.tolist(), makes_pairs.tolist())
    return list(zip(*columns, strict=True))


@given(logs_of_requests(), st.integers(1, 20), st.integers(2, 6))
@settings(max_examples=300, deadline=None)
def test_groups_of_requests_and_sittings_equal_the_oracle(log: EventLog, window: int, max_size: int) -> None:
    groups = make_groups(log, PairingSettings(window=f"{window}m", max_size=max_size), CUTTING)
    want = oracles.groups(as_tuples(log), window * MINUTE, max_size, BOUNDS)
    r = groups.requests
    members = [groups.event[r.offsets[g] : r.offsets[g + 1]].tolist() for g in range(len(r))]
    made = zip(r.user.tolist(), r.as_of.tolist(), r.surface.tolist(), groups.period.tolist(), members, strict=True)
    first = [(log.user[f], log.ts[f], log.surface[f], CUTTING.period(log.ts[f : f + 1])[0], m) for f, m in want]
    assert sorted(made, key=lambda group: group[-1]) == sorted(first, key=lambda group: group[-1])
    assert (np.diff(r.as_of) >= 0).all()


@given(logs_of_requests(), st.integers(1, 20), st.integers(2, 6))
@settings(max_examples=200, deadline=None)
def test_what_each_boundary_cuts_equals_the_oracle(log: EventLog, window: int, max_size: int) -> None:
    limits = window * MINUTE, max_size
    found = count_cuts(log, PairingSettings(window=f"{window}m", max_size=max_size), CUTTING)
    cut = list(zip(found.requests.tolist(), found.sittings.tolist(), strict=True))
    assert cut == oracles.cuts(as_tuples(log), *limits, BOUNDS)
    outside = zip(found.groups_outside.tolist(), found.impressions_outside.tolist(), strict=True)
    graded = [event for event in as_tuples(log) if event[4]]
    for (low, high), counted in zip(((0, BOUNDS[0]), (BOUNDS[3], 99 * MINUTE)), outside, strict=True):
        beyond = [event for event in graded if low <= event[2] < high]
        assert counted == (len(oracles.groups(beyond, *limits, [low, low, low, high])), len(beyond))


def test_a_request_that_another_user_began_is_refused() -> None:
    log = make_world(1, request_ids=True).log
    later = np.flatnonzero(log.request == log.request[0])[1:]
    log.grade[0], log.user[0] = -1, (log.user[later[0]] + 1) % 40  # no pair is made of it, but it gives the as_of
    split = Split(int(log.ts[0]), int(log.ts[-1]) // 2 + int(log.ts[0]) // 2, int(log.ts[-9]), int(log.ts[-1]), 0.2)
    with pytest.raises(PairliftError, match=r"another user \(the first at \d{4}-\d\d-\d\dT"):
        make_groups(log, PairingSettings(), split)


@pytest.mark.parametrize("wrong", [0, -1])
def test_a_group_of_another_user_or_of_no_period_stops_the_build(monkeypatch: pytest.MonkeyPatch, wrong: int) -> None:
    log = make_world(1, request_ids=True).log
    low, high = int(log.ts[0]), int(log.ts[-1])
    split = Split(low, low + (high - low) // 2, low + (high - low) * 3 // 4, high, 0.2)
    monkeypatch.setattr(
        "features.pairing.groups._first_events", lambda log, first, split: np.full_like(first, wrong % len(log))
    )
    with pytest.raises(RuntimeError, match="a fault of Pairlift"):
        make_groups(log, PairingSettings(), split)


CLICKS = weight_table({}, ("skip", "click"), negatives=True)
NOWHERE = np.full(4, np.nan)


def weights(groups: Groups, position: F64, chance: F64, **keys: object) -> F64:
    asked = PairingSettings(**keys)
    pairs = make_pairs(groups, CLICKS)
    given_ = Exposure.of(np.array(position, float), np.array(chance, float), asked)
    return corrected(pairs, groups, given_, asked).weight


def test_a_winner_counts_for_those_who_did_not_look_at_its_place() -> None:
    groups, position = groups_of([0, 1], [0, 1]), [1, 4, 2, 1]  # winners at the places 4 and 1
    got = weights(groups, position, NOWHERE, position_power=1.0)
    np.testing.assert_allclose(got, np.array([4, 1]) * 2 / 5)  # the mean stays 1
    got = weights(groups, position, NOWHERE, position_power=0.5)
    np.testing.assert_allclose(got, np.array([2, 1]) * 2 / 3, rtol=1e-6)
    got = weights(groups, position, NOWHERE, examination=[0.8, 0.4])  # place 4 has the chance of the last one named
    np.testing.assert_allclose(got, np.array([2.5, 1.25]) * 2 / 3.75, rtol=1e-6)
    got = weights(groups, position, NOWHERE, position_power=1.0, max_correction=3.0)
    np.testing.assert_allclose(got, np.array([3, 1]) * 2 / 4)


def test_propensities_of_winner_and_loser_count_and_unknown_ones_do_not() -> None:
    groups = groups_of([0, 1], [0, 1], [-1, 1])
    propensity = [0.5, 0.25, 1, np.nan, np.nan, 0.5]
    got = weights(groups, np.full(6, np.nan), propensity, propensity=True)
    raw = np.array([1 * 8, 1 * 1, 2 * 2])  # a drawn loser has no propensity; its pair weighs two ranks
    np.testing.assert_allclose(got, raw * 4 / raw.sum(), rtol=1e-6)
    both = weights(groups, [9, 3, 9, np.nan, 9, 1], propensity, propensity=True, position_power=1.0)
    raw = np.array([1 * 10, 1 * 1, 2 * 2])  # 24 is clipped to 10
    np.testing.assert_allclose(both, raw * 4 / raw.sum(), rtol=1e-6)


def test_only_pairs_of_drawn_lists_are_learned_from_and_those_that_stop_stay() -> None:
    groups = groups_of([0, 1], [0, 1], [-1, 1], [0, 1, 1])
    chance = np.array([0.5, 0.25, 1, np.nan, np.nan, 0.5, np.nan, 0.5, 1], np.float32)
    places, pairs = Places(np.full(9, np.nan, np.float32), chance), make_pairs(groups, CLICKS)
    kept = explored(pairs, groups, places)
    assert list(zip(kept.winner.tolist(), kept.loser.tolist(), strict=True)) == [(1, 0), (5, 4)]
    stops = replace(groups, validation=np.array([False, False, False, True]))
    assert len(explored(pairs, stops, places)) == 4
    with pytest.raises(
        PairliftError, match=r"explored_only: of 5 pairs to learn from, none has an \[events\] propensity"
    ):
        explored(pairs, groups, Places(places.position, np.full(9, np.nan, np.float32)))


def test_a_pair_halves_with_each_half_life_and_never_reaches_zero() -> None:
    groups = groups_of([0, 1], [0, 1], [0, 1])
    groups.requests.as_of[:] = [0, 2 * DAY, 3 * DAY]
    pairs, asked = make_pairs(groups, CLICKS), PairingSettings(half_life="1d")
    raw = np.array([1 / 8, 1 / 2, 1])
    np.testing.assert_allclose(corrected(pairs, groups, None, asked).weight, raw * 3 / raw.sum(), rtol=1e-6)
    short = corrected(pairs, groups, None, PairingSettings(half_life="1s")).weight
    assert short[2] == pytest.approx(3)
    assert (short > 0).all()


def test_pairs_of_a_validation_slice_keep_their_weights() -> None:
    groups = groups_of([0, 1], [0, 1], [0, 1])
    groups.validation[2] = True
    got = weights(groups, [1, 3, 1, 1, 1, 5], np.full(6, np.nan), position_power=1.0, half_life="365d")
    np.testing.assert_allclose(got, [1.5, 0.5, 1], rtol=1e-4)
    groups.validation[:] = True
    pairs, asked = make_pairs(groups, CLICKS), PairingSettings(half_life="1d")
    assert corrected(pairs, groups, None, asked) is pairs


def test_without_a_key_nothing_changes() -> None:
    groups = groups_of([0, 1, 1], [0, 1])
    pairs = make_pairs(groups, CLICKS)
    assert corrected(pairs, groups, None, PairingSettings()) is pairs


@given(
    st.lists(st.lists(st.sampled_from([-1, 0, 1]), max_size=6), min_size=1, max_size=5), st.integers(0, 99),
    st.floats(1, 50), st.floats(0.1, 3),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_the_mean_the_rows_and_the_signs_stay(members: list[list[int]], seed: int, most: float, power: float) -> None:
    groups, rng = groups_of(*members), np.random.default_rng(seed)
    n = max(len(groups.event), 1)
    position = np.where(rng.random(n) < 0.2, np.nan, rng.integers(1, 9, n))
    propensity = np.where(rng.random(n) < 0.2, np.nan, 1 - rng.random(n))
    asked = PairingSettings(position_power=power, propensity=True, max_correction=most, half_life="3m")
    pairs = make_pairs(groups, CLICKS)
    got = corrected(pairs, groups, Exposure.of(position, propensity, asked), asked)
    for name in ("winner", "loser", "sampled"):
        np.testing.assert_array_equal(getattr(got, name), getattr(pairs, name))
    assert (got.weight > 0).all()
    if len(pairs):
        assert got.weight.mean() == pytest.approx(pairs.weight.mean(), rel=1e-5)
    slow = []
    for winner, loser, weight in zip(pairs.winner, pairs.loser, pairs.weight, strict=True):
        chance = 1.0
        if groups.event[winner] >= 0:
            chance *= np.nan_to_num(position[winner], nan=1.0) ** -power * np.nan_to_num(propensity[winner], nan=1.0)
        if groups.event[loser] >= 0:
            chance *= np.nan_to_num(propensity[loser], nan=1.0)
        group = np.searchsorted(groups.requests.offsets, winner, side="right") - 1
        age = groups.requests.as_of.max() - groups.requests.as_of[group]
        slow.append(weight * min(most, 1 / chance) * 2.0 ** (-age / (3 * MINUTE)))
    np.testing.assert_allclose(got.weight, np.array(slow) * pairs.weight.sum() / np.sum(slow or [1]), rtol=1e-4)


RELEVANCE = np.array([0.30, 0.25, 0.20, 0.15, 0.10, 0.05])


def biased_log(seed: int, lists: int = 6000) -> tuple[Groups, F64]:
    """Lists of all six items by a policy that likes the worst best; place k is looked at with the chance 1 / k."""
    rng = np.random.default_rng(seed)
    taste = rng.gumbel(size=(lists, 6)) + np.arange(6)  # item 5, the least relevant, mostly stands first
    position = (-taste).argsort(axis=1).argsort(axis=1) + 1.0
    clicked = rng.random((lists, 6)) < RELEVANCE / position
    return groups_of(*clicked.astype(int).tolist()), position.ravel()


def learned_scores(pairs: Pairs) -> F64:
    """Minimise the pairwise logistic loss over one score for each of the six items."""
    weight = np.zeros((6, 6))
    np.add.at(weight, (pairs.winner % 6, pairs.loser % 6), pairs.weight.astype(np.float64))
    scores = np.zeros(6)
    for _ in range(2000):
        pull = weight / (1 + np.exp(scores[:, None] - scores[None, :]))
        scores += 2 * (pull.sum(axis=1) - pull.sum(axis=0)) / weight.sum()
    return scores


def test_a_log_that_is_biased_by_position_gives_the_true_order_once_corrected() -> None:
    groups, position = biased_log(3)
    asked = PairingSettings(position_power=1.0)
    pairs = make_pairs(groups, CLICKS)
    right = corrected(pairs, groups, Exposure.of(position, np.full(len(position), np.nan), asked), asked)
    assert (-learned_scores(right)).argsort().tolist() == [0, 1, 2, 3, 4, 5]
    assert (-learned_scores(pairs)).argsort().tolist() != [0, 1, 2, 3, 4, 5]


CSV = """u,i,t,click,place,chance
1,1,2024-01-01 00:00:02,true,2,0.5
1,2,2024-01-01 00:00:01,false,1,1.0
2,1,2024-01-01 00:00:03,false,,
"""


def imported(folder: Path, text: str = CSV, **events: str) -> tuple[Path, EventsSettings]:
    (folder / "log.csv").write_text(text)
    mapped = EventsSettings(source="log.csv", user_id="u", item_id="i", ts="t", feedback={"click": "click"}, **events)
    grades = (Grade(name="skip", when="NOT click"), Grade(name="click", when="click"))
    import_log(mapping_of(folder, mapped, grades), folder / "log.duckdb")
    return folder / "log.duckdb", mapped


def test_exposure_is_read_in_the_order_of_the_events(tmp_path: Path) -> None:
    database, events = imported(tmp_path, position="place", propensity="chance")
    asked = PairingSettings(position_power=1.0, propensity=True)
    places = load_places(database, events)
    exposure = make_exposure(places, events, asked)
    assert exposure is not None
    assert exposure.won.tolist() == [1, 4, 1]
    assert exposure.lost.tolist() == [1, 2, 1]
    assert make_exposure(places, events, PairingSettings(half_life="1d")) is None
    assert load_places(database, EventsSettings(source="log.csv")) is None


@pytest.mark.parametrize(
    ("old", "new", "events", "says"),
    [
        ("0.5", "0", {"propensity": "chance"}, r"propensity = 'chance': a chance outside \(0, 1\] in 1 rows"),
        ("0.5", "1.01", {"propensity": "chance"}, r"outside \(0, 1\] in 1 rows"),
        ("0.5", "nan", {"propensity": "chance"}, r"outside \(0, 1\] in 1 rows"),
        ("1,1", "1,1", {}, "needs .events. (position|propensity), which is not there"),
        ("1,1", "1,1", {"position": "NULL", "propensity": "NULL"}, "NULL in every row"),
    ],
)
def test_what_is_no_position_and_no_chance_is_refused(
    tmp_path: Path, old: str, new: str, events: dict[str, str], says: str
) -> None:
    database, mapped = imported(tmp_path, CSV.replace(old, new), **events)
    keys = {"position": [{"position_power": 1.0}], "propensity": [{"propensity": True}, {"explored_only": True}]}
    for key in (key for name in events or keys for key in keys[name]):
        asked = PairingSettings(**key)
        with pytest.raises(PairliftError, match=rf"(?s){says}"):
            make_exposure(load_places(database, mapped), mapped, asked)


def test_an_infinite_propensity_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(PairliftError, match=r"\[events\] propensity: an infinite number in 1 rows"):
        imported(tmp_path, CSV.replace("0.5", "inf"), propensity="chance")


def test_a_grade_may_read_the_propensity() -> None:
    Grading((Grade(name="shown", when="propensity < 1"), Grade(name="click", when="click = 1")), {"click": "DOUBLE"})


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"position_power": 1.0, "examination": [1.0]}, "keep one of them"),
        ({"position_power": 0.0}, "greater than 0"),
        ({"examination": []}, "at least 1"),
        ({"examination": [1.0, 0.0]}, "greater than 0"),
        ({"examination": [1.5]}, "less than or equal to 1"),
        ({"max_correction": 0.5}, "greater than or equal to 1"),
        ({"half_life": "0s"}, "greater than 0"),
    ],
)
def test_wrong_keys_are_told(keys: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PairingSettings(**keys)
