"""Every source keeps the contract and equals its plain definition; filters part what is kept from what is removed."""

import subprocess
import sys
from copy import copy
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
from contracts import SourceContract
from hypothesis import given, settings
from hypothesis import strategies as st

from features.baselines import ALS
from features.schema import DAY, empty_log, merged
from features.state.histories import HistoryBuffer
from features.state.store import State
from ranker.candidates import filters
from ranker.candidates.coarse import Coarse, least_of
from ranker.candidates.configured import configured_sources, with_demand_of
from ranker.candidates.cooccurrence import SEEDS, WITHIN, Cooccurrence, TakenTogether
from ranker.candidates.demand import FADED, STEPS, Demand
from ranker.candidates.merge import Places, dedupe, within_places
from ranker.candidates.nearest import Nearest
from ranker.candidates.neighbourhoods import near_together
from ranker.candidates.popular import Popular
from ranker.candidates.probed import Probed
from ranker.candidates.seeds import RECENT
from ranker.candidates.source import Proposal, best
from ranker.request import ABSENT, Candidates, Request
from ranker.settings import EXACT

WEEK = 7 * DAY


class TestPopular(SourceContract):
    def make(self, bundle):
        return Popular(Demand(bundle.state, 1, WEEK))


class TestTakenTogether(SourceContract):
    def make(self, bundle):
        return TakenTogether(bundle.cooccurrence, 1)


class TestNearest(SourceContract):
    def make(self, bundle):
        return Nearest(bundle.plugins["als"])


class OverDemand(ALS):
    """A product to which demand is added."""

    over_demand = True


def over_demand(bundle):
    plugin = copy(bundle.plugins["als"])
    plugin.__class__ = OverDemand
    return plugin


class TestNearestOverDemand(SourceContract):
    by_score = False

    def make(self, bundle):
        return Nearest(over_demand(bundle), Demand(bundle.state, 1, WEEK), 0.5)


def test_best_sorts_by_score_then_place_and_leaves_out_what_is_no_number():
    score = np.array([1.0, np.nan, 3.0, 1.0, -np.inf, 3.0, 2.0, 1.0])
    assert best(score, 8).tolist() == [2, 5, 6, 0, 3, 7]
    assert best(score, 4).tolist() == [2, 5, 6, 0]
    assert best(score, 1).tolist() == [2]
    assert best(np.full(3, np.nan), 2).tolist() == []
    assert best(np.empty(0), 5).tolist() == []


@given(st.lists(st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, 2.5]), max_size=70), st.data())
@settings(max_examples=300, deadline=None)
def test_best_equals_a_stable_sort_at_any_limit(values, data):
    n, limit = len(values), data.draw(st.integers(0, 75))
    item = np.array(data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)), np.int32)
    for kind in (np.float32, np.float64):
        score = np.array(values, kind)
        numbers = [k for k in range(n) if score[k] > -np.inf]
        assert best(score, limit).tolist() == sorted(numbers, key=lambda k: (-score[k], k))[:limit]
        assert best(score, limit, item).tolist() == sorted(numbers, key=lambda k: (-score[k], item[k], k))[:limit]


@pytest.mark.parametrize("kind", ["any", "equal", "rising", "few known"])
def test_the_least_of_the_highest_is_that_of_a_sort(kind):
    rng = np.random.default_rng(0)
    for n in (0, 1, 5, 900, 40_000):
        scores = rng.normal(size=n).astype(np.float32)
        scores = {"equal": np.ones_like(scores), "rising": np.sort(scores)}.get(kind, scores)
        scores[rng.random(n) < (0.99 if kind == "few known" else 0)] = -np.inf
        for count in (1, 4, 100, 700, 39_000):
            want = np.sort(scores)[::-1][count - 1] if count <= n else -np.inf
            assert least_of(scores, count) == want


def decayed(log, as_of, half_life, floor=1):
    """The plain definition: each wanted event counts 2 to the power of minus its age in half-lives."""
    seen = (log.ts < as_of) & (log.grade >= floor)
    return np.bincount(log.item[seen], 2.0 ** (-(as_of - log.ts[seen]) / half_life), 80)


@pytest.mark.parametrize("half_life", [WEEK, DAY])
@pytest.mark.parametrize("floor", [0, 1, 2])
@pytest.mark.parametrize("days", [3, 15, 31, 40])
def test_popular_is_the_decayed_count_of_wanted_events_as_of_the_request(world, bundle, days, floor, half_life):
    as_of = int(world.log.ts[0]) + days * DAY
    counts = decayed(world.log, as_of, half_life, floor)
    expected = sorted(np.flatnonzero(counts), key=lambda k: (-counts[k], k))
    found = Popular(Demand(bundle.state, floor, half_life)).propose(Request(-1, as_of, state=bundle.state), 10)
    assert found.item.tolist() == expected[:10]
    # Behind the last event it stops to fade.
    behind = 2.0 ** (min(0, bundle.state.end - as_of) / half_life)
    counts *= max(behind, FADED) / behind
    assert np.allclose(found.score(np.arange(80, dtype=np.int32)), np.log1p(counts), rtol=1e-6)


def test_popular_long_after_the_snapshot_keeps_the_last_order(bundle):
    popular = Popular(Demand(bundle.state, 1, WEEK))
    now = popular.propose(Request(-1, bundle.state.end, state=bundle.state), 80)
    assert len(now.item) > 70
    # 30 years are 1,500 half-lives: each count is 0 as a float by then.
    later = popular.propose(Request(-1, bundle.state.end + 30 * 365 * DAY, state=bundle.state), 80)
    assert later.item.tolist() == now.item.tolist()
    np.testing.assert_allclose(np.expm1(later.score(later.item)), FADED * np.expm1(now.score(now.item)), rtol=1e-5)


def test_popular_counts_all_events_where_none_is_wanted(world, bundle):
    log = replace(world.log, grade=np.full(len(world.log), -1, np.int8))
    state = State.build(log, world.catalog, (), world.grades)
    counts = decayed(log, state.end, WEEK, -1)
    expected = sorted(np.flatnonzero(counts), key=lambda k: (-counts[k], k))
    assert (
        Popular(Demand(state, 2, WEEK)).propose(Request(-1, state.end, state=state), 20).item.tolist() == expected[:20]
    )


def test_popular_by_another_state_keeps_what_it_was_told(world, bundle):
    later = State.build(world.log, world.catalog, (), world.grades)
    early = Popular(
        Demand(State.build(world.log.until(int(world.log.ts[200])), world.catalog, (), world.grades), 2, DAY)
    )
    request = Request(-1, later.end, state=later)
    asked = (
        early.propose(request, 20),
        early.by(early.demand.by(later)).propose(request, 20),
        Popular(Demand(later, 2, DAY)).propose(request, 20),
    )
    old, new, want = (found.item.tolist() for found in asked)
    assert old != new
    assert new == want


def test_popular_counts_late_events_of_live_histories(world, bundle):
    """What was recorded lies in blocks with gaps, of users in any order, and may be older than what is known."""
    end, rng = bundle.state.end, np.random.default_rng(0)
    late = replace(
        empty_log(("play",), 300), user=rng.integers(0, 40, 300).astype(np.int32),
        item=rng.integers(0, 80, 300).astype(np.int32), ts=np.sort(rng.integers(end - 20 * DAY, end + DAY, 300)),
        grade=rng.integers(-1, 3, 300).astype(np.int8),
    )  # fmt: skip
    state = replace(bundle.state, histories=HistoryBuffer(bundle.state.histories).extended(late), end=end + DAY)
    whole = merged([world.log, late])
    for as_of in (end - 5 * DAY, end + 2 * DAY):
        found = Popular(Demand(state, 2, WEEK)).propose(Request(-1, as_of, state=state), 80)
        assert np.allclose(found.score(np.arange(80, dtype=np.int32)), np.log1p(decayed(whole, as_of, WEEK, 2)))


def test_nearest_is_the_exact_top_of_the_dot_products(bundle):
    plugin, state = bundle.plugins["als"], bundle.state
    for user in (0, 5, 20):
        request = Request(user, state.end, state=bundle.state)
        items = np.arange(80, dtype=np.int32)
        dots = plugin.values(request.requests(items), state.histories)[:, 0]
        found, score, _ = Nearest(plugin).propose(request, 8)
        assert np.allclose(score(items), dots, rtol=1e-5, equal_nan=True)
        assert np.allclose(dots[found], np.sort(dots[~np.isnan(dots)])[::-1][:8], rtol=1e-5)


@pytest.mark.parametrize("back", [0, 5 * DAY])
def test_what_leaves_out_demand_is_mixed_with_it(bundle, back):
    plugin, state, items = bundle.plugins["als"], bundle.state, np.arange(80, dtype=np.int32)
    demand = Demand(state, 2, DAY)
    request = Request(5, state.end - back, state=state)
    product = plugin.values(request.requests(items), state.histories)[:, 0]
    counts = Popular(demand).propose(request, 80).score(items)
    for weight in (0.0, 0.5, 30.0):
        found, score, _ = Nearest(over_demand(bundle), demand, weight).propose(request, 9)
        mixed = np.where(np.isnan(product), -np.inf, weight * product + counts)
        assert np.allclose(mixed[found], np.sort(mixed)[::-1][:9], atol=1e-5)
        assert np.allclose(score(items), product, rtol=1e-5, equal_nan=True)
    # Demand is in the product of ALS: none is added.
    plain, with_demand = Nearest(plugin), Nearest(plugin, demand, 0.5)
    assert with_demand.propose(request, 9).item.tolist() == plain.propose(request, 9).item.tolist()


def test_sources_share_a_demand_also_when_it_is_counted_anew(world, bundle):
    state = State.build(world.log.until(int(world.log.ts[900])), world.catalog, (), world.grades)
    plugins = {"als": over_demand(bundle)}
    config = bundle.config
    shared = configured_sources(config, state, bundle.cooccurrence, plugins)
    popular, nearest = shared[0][0], shared[2][0]
    assert popular.demand is nearest.demand
    later = with_demand_of(shared, bundle.state, pytest.fail)
    assert later[0][0].demand is later[2][0].demand
    assert later[1] is shared[1] or later[1][0] is shared[1][0]
    asked = Request(3, bundle.state.end, state=bundle.state)
    anew = configured_sources(config, bundle.state, bundle.cooccurrence, plugins)
    for (moved, _), (made, _), (old, _) in zip(later, anew, shared, strict=True):
        want = made.propose(asked, 20).item.tolist()
        assert moved.propose(asked, 20).item.tolist() == want
        assert moved.name == "cooccurrence" or old.propose(asked, 20).item.tolist() != want


def test_nearest_never_proposes_an_item_without_a_vector(bundle):
    class Holes:
        item_vectors = np.array([[1, 0], [np.nan, np.nan], [3, 0], [2, np.nan]], np.float32)

        def user_vectors(self, requests, histories):
            return np.array([[1, 1]], np.float32)

    proposal = Nearest(Holes()).propose(Request(0, 0, state=bundle.state), 9)
    assert proposal.item.tolist() == [2, 0]
    assert np.array_equal(proposal.score(np.arange(5, dtype=np.int32)), [1, np.nan, 3, np.nan, np.nan], equal_nan=True)


@pytest.mark.parametrize("kind", ["even", "clusters", "heavy tails", "same direction"])
def test_of_many_items_the_nearest_are_found_in_two_passes(bundle, kind):
    n, d, rng = 2 * EXACT, 80, np.random.default_rng(0)
    keys = (rng.standard_t(3, (n, d)) if kind == "heavy tails" else rng.normal(size=(n, d))).astype(np.float32)
    if kind == "clusters":
        keys = keys[:200][rng.integers(0, 200, n)] + 0.2 * keys
    elif kind == "same direction":
        keys = 5 + keys
    keys[rng.random(n) < 0.1] = np.nan
    logs = np.log1p(rng.pareto(1.0, n + 7)).astype(np.float32)  # of new items too

    class Many(ALS):
        def __init__(self, over):
            self.over_demand, self.item_vectors, self.query = over, keys, rng.normal(size=d).astype(np.float32)

        item_vectors = None

        def queries(self, requests, histories):
            return self.query[None]

    demand, request = SimpleNamespace(log1p=lambda as_of: logs), Request(0, 0, state=bundle.state)
    for over, weight in ((False, 0.3), (True, 0.3), (True, 0.0), (True, 20.0)):
        plugin = Many(over)
        source = Nearest(plugin, demand, weight)
        want = weight * (keys @ plugin.query) + logs[:n] if over else keys @ plugin.query
        want = np.where(np.isnan(want), -np.inf, want)
        for limit in (1, 60, 900):
            found, score, _ = source.propose(request, limit)
            top = np.argsort(-want)[:limit]
            assert len(np.intersect1d(found, top)) >= 0.99 * limit
            assert len(found) == limit == len(set(found.tolist()))
            assert (np.diff(want[found]) <= 1e-4).all()
            assert np.allclose(score(found), keys[found] @ plugin.query, rtol=1e-4, atol=1e-4)
        some = np.array([-1, n + 3, int(np.flatnonzero(np.isnan(keys[:, 0]))[0])], np.int32)
        assert np.isnan(score(some)).all()


def test_a_coarse_pass_finds_what_there_is():
    rng = np.random.default_rng(1)
    for known in (0, 1, 70, 200):
        keys = np.full((200, 5), np.nan, np.float32)
        keys[rng.permutation(200)[:known]] = rng.normal(size=(known, 5))
        keys[known // 2] = 0
        rows = Coarse.of(keys).highest(np.ones(5, np.float32), 1.0, np.empty(0, np.float32), 900)
        assert rows.tolist() == np.flatnonzero(~np.isnan(keys[:, 0])).tolist()
    assert Coarse.of(keys).highest(np.zeros(5, np.float32), 1.0, np.empty(0, np.float32), 3).size


class OfUsers(ALS):
    """Keys and a query for each user index."""

    item_vectors = None

    def __init__(self, keys, users, over):
        self.item_vectors, self.users, self.over_demand = keys, users, over

    def queries(self, requests, histories):
        return self.users[requests.user]


@pytest.mark.parametrize("kind", ["even", "clusters", "heavy tails"])
def test_where_it_pays_only_blocks_that_may_have_the_nearest_are_read(bundle, kind):
    n, d, rng = 2 * EXACT, 32, np.random.default_rng(0)
    keys = (rng.standard_t(3, (n, d)) if kind == "heavy tails" else rng.normal(size=(n, d))).astype(np.float32)
    if kind == "clusters":
        keys = 4 * keys[:200][rng.integers(0, 200, n)] + keys
    keys[rng.random(n) < 0.1] = np.nan
    users = rng.normal(size=(bundle.state.catalog.n_users, d)).astype(np.float32)
    logs = np.log1p(rng.pareto(1.0, n + 7)).astype(np.float32)
    demand = SimpleNamespace(log1p=lambda as_of: logs)
    for over, weight in ((False, 1.0), (True, 0.02), (True, 2.0)):
        source = Nearest(OfUsers(keys, users, over), demand, weight, bundle.state)
        # Of clusters it pays, and where demand says more than the product; of even keys not.
        if kind == "clusters" or weight == 0.02:
            assert isinstance(source._coarse, Probed)
        elif kind == "even" and not over:
            assert isinstance(source._coarse, Coarse)
        again = Nearest(OfUsers(keys, users, over), demand, weight, bundle.state)
        for limit in (20, 400):
            recall = []
            for user in range(30):
                want = weight * (keys @ users[user]) + logs[:n] if over else keys @ users[user]
                want = np.where(np.isnan(want), -np.inf, want)
                request = Request(user, bundle.state.end, state=bundle.state)
                found = source.propose(request, limit).item
                assert len(found) == limit == len(set(found.tolist()))
                assert (np.diff(want[found]) <= 1e-4).all()
                recall.append(len(np.intersect1d(found, np.argsort(-want)[:limit])) / limit)
                assert again.propose(request, limit).item.tolist() == found.tolist()
            assert np.mean(recall) >= 0.95


def test_all_is_read_without_queries_to_tell_by(bundle, caplog):
    keys = np.random.default_rng(0).normal(size=(EXACT + 1, 4)).astype(np.float32)
    few = np.full((bundle.state.catalog.n_users, 4), np.nan, np.float32)
    few[:5] = 1
    assert isinstance(Nearest(OfUsers(keys, few, False), None, 1.0, bundle.state)._coarse, Coarse)
    assert isinstance(
        Nearest(OfUsers(np.full_like(keys, np.nan), few + 1, False), None, 1.0, bundle.state)._coarse, Coarse
    )
    assert not caplog.records
    broken = Nearest(OfUsers(keys, few[:0], False), None, 1.0, bundle.state)
    assert isinstance(broken._coarse, Coarse)
    assert "its plugin failed" in caplog.text
    assert (
        Nearest(OfUsers(keys, few, False), None, 1.0, bundle.state)
        .propose(Request(7, 0, state=bundle.state), 5)
        .item.size
        == 0
    )


def test_probing_reads_on_until_there_is_enough():
    rng = np.random.default_rng(3)
    keys = rng.normal(size=(9000, 6)).astype(np.float32)
    keys[rng.random(9000) < 0.5] = np.nan
    known = np.flatnonzero(~np.isnan(keys[:, 0]))
    probed = Probed.of(keys, rng.normal(size=(20, 6)).astype(np.float32))
    query, none = rng.normal(size=6).astype(np.float32), np.empty(0, np.float32)
    assert probed.highest(query, 1.0, none, 9000).tolist() == known.tolist()
    # Equal scores are not parted: a rank among them is by row, which the caller gives them.
    assert probed.highest(0 * query, 1.0, none, 10).tolist() == known.tolist()
    assert probed.highest(query, 0.0, np.ones(9000, np.float32), 10).tolist() == known.tolist()
    # Offsets alone: exactly their highest, also those that are set apart.
    offset = rng.permutation(9000).astype(np.float32)
    rows = probed.highest(query, 0.0, offset, 300)
    assert set(known[np.argsort(-offset[known])][:300]) <= set(rows.tolist())
    assert len(rows) < 500
    assert probed.search(query, 0.0, offset, 5)[1] < len(probed.spread) / 2
    assert probed.highest(query, 0.0, -offset, 300).tolist() != rows.tolist()


def plainly_searched(probed, query, weight, offset, limit):
    """What `Probed.search` does, with all estimates in order at each step."""
    over, coded, wanted = probed.over(offset), probed.keys.coded(query, weight), limit + limit // 8 + 64
    reach = np.float32(weight * probed.reach * np.linalg.norm(query))
    every = np.arange(probed.means.blocks)
    estimates = probed.means.scores(probed.means.coded(query, weight), over.most + probed.spread * reach, every)
    estimates = estimates[: len(over.most)]
    beside = over.apart.scores(coded, over.apart_offset, np.arange(over.apart.blocks))[: len(over.apart_rows)]
    found = [(score, row) for score, row in zip(beside, over.apart_rows, strict=True) if score > -np.inf]
    nth = lambda values, k: sorted(values, reverse=True)[k - 1] if k <= len(values) else -np.inf  # noqa: E731
    read, count = np.zeros(len(estimates), bool), 2 * wanted // 64
    while True:
        least = nth([score for score, _ in found], wanted)
        found = [pair for pair in found if pair[0] >= least]
        down_to = max(nth([score for score, _ in found], limit), nth(estimates, count))
        blocks = np.flatnonzero((estimates >= down_to) & ~read)
        if not len(blocks):
            return sorted(row for _, row in found), read.sum()
        read[blocks] = True
        for place in [k for b in blocks for k in range(64 * b, min(64 * b + 64, len(probed.rows)))]:
            score = probed.keys.scores(coded, over.offset, np.array([place // 64]))[place % 64]
            found += [(score, probed.rows[place])] if score >= least and score > -np.inf else []
        count = 4 * read.sum()


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_probing_reads_what_the_plain_definition_does(weight):
    rng = np.random.default_rng(4)
    keys = (2 * rng.normal(size=(40, 6))[rng.integers(0, 40, 9000)] + rng.normal(size=(9000, 6))).astype(np.float32)
    probed = Probed.of(keys, rng.normal(size=(20, 6)).astype(np.float32))
    some = np.zeros(9000, np.float32)
    some[rng.permutation(9000)[:70]] = rng.permutation(70) + 1
    for offset in (np.empty(0, np.float32), rng.pareto(1.0, 9000).astype(np.float32), some):
        for limit in (1, 20, 300):
            query = rng.normal(size=6).astype(np.float32)
            rows, read = probed.search(query, weight, offset, limit)
            assert (rows.tolist(), read) == plainly_searched(probed, query, weight, offset, limit)


def test_near_keys_stand_together():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 32, 20_000)
    keys = (rng.normal(size=(32, 16))[group] * 10 + rng.normal(size=(20_000, 16))).astype(np.float32)
    keys[7], keys[8, 3] = np.nan, np.inf
    rows = near_together(keys, 64)
    assert sorted(rows.tolist()) == [i for i in range(20_000) if i not in {7, 8}]
    assert rows.tolist() == near_together(keys, 64).tolist()
    whole = keys[rows[: len(rows) // 64 * 64]].reshape(-1, 64, 16)
    assert whole.var(axis=1).mean() < keys[rows].var(axis=0).mean() / 10
    assert sorted(near_together(np.ones((200, 3), np.float32), 64).tolist()) == list(range(200))


def test_the_logarithm_of_demand_serves_a_while(bundle):
    demand, end = Demand(bundle.state, 2, DAY), bundle.state.end
    step, rng = DAY // STEPS, np.random.default_rng(0)
    for ahead in (0, 1, step // 3, step, 5 * step, DAY, 9 * DAY, 10**6 * DAY):
        exact = np.log1p(demand.counts(end + ahead).at * demand.counts(end + ahead).faded)
        assert np.abs(demand.log1p(end + ahead) - exact).max() < 0.0056
    assert np.allclose(demand.log1p(end), np.log1p(demand.at_end), atol=1e-6)
    # What a request gets does not depend on those before it.
    times = end + rng.integers(-3 * DAY, 3 * DAY, 30)
    first = [demand.log1p(int(t)).copy() for t in times]
    for k in rng.permutation(30):
        assert (demand.log1p(int(times[k])) == first[k]).all()
    assert demand.log1p(end + 10) is demand.log1p(end + step // 4)


def test_nearest_finds_the_users_taste(world, bundle):
    source = Nearest(bundle.plugins["als"])
    shares = [
        np.mean(
            world.item_taste[source.propose(Request(user, bundle.state.end, state=bundle.state), 5).item]
            == world.user_taste[user]
        )
        for user in range(40)
    ]
    assert np.mean(shares) > 0.6  # by chance: 0.25


@st.composite
def logs(draw):
    """Of one user or few, with items that come again and again, all of one grade or of several."""
    n = draw(st.integers(0, 60))
    users, best_grade = draw(st.sampled_from([0, 3])), draw(st.sampled_from([-1, 0, 2]))
    ints = lambda lo, hi: np.array(draw(st.lists(st.integers(lo, hi), min_size=n, max_size=n)), np.int64)  # noqa: E731
    return replace(
        empty_log((), n),
        user=ints(0, users).astype(np.int32),
        item=ints(0, 12).astype(np.int32),
        ts=np.arange(n),
        grade=ints(-1, best_grade).astype(np.int8),
    )


@given(logs(), st.integers(0, 2), st.integers(1, 15), st.sampled_from([1, 900, 2**30]))
@settings(max_examples=300, deadline=None)
def test_cooccurrence_equals_the_oracle_in_blocks_of_any_size(log, floor, k, memory):
    found = Cooccurrence.build(log, 14, floor, k, memory)
    want = oracles.taken_together(log, 14, floor, k, WITHIN)
    for a in range(14):
        rest = k - len(want[a])
        assert found.neighbour[a].tolist() == [b for b, _ in want[a]] + [-1] * rest
        assert found.score[a].tolist() == [score for _, score in want[a]] + [0] * rest


def test_cooccurrence_of_a_million_events_stays_within_its_memory():
    """The process may take 8 MiB for this, the table's 8, two threads' stacks and 16 of room: counts took 290."""
    text = """
import resource
import numpy as np
from features.schema import EventLog
from ranker.candidates.cooccurrence import Cooccurrence

n, rng = 1_000_000, np.random.default_rng(0)
user, item = rng.integers(0, n // 20, n), (10_000 * rng.random(n) ** 3).astype(np.int32)
grade, none = np.zeros(n, np.int8), np.full(n, -1)
log = EventLog(
    user=user.astype(np.int32), item=item, ts=np.arange(n), grade=grade, surface=none.astype(np.int16), organic=grade,
    request=none, pairable=grade == 0, feedback=np.empty((n, 0), np.float32), feedback_names=())
Cooccurrence.build(log.until(1000), 10_000, 0)  # compiled
status = dict(line.split(":") for line in open("/proc/self/status"))
limit = int(status["VmData"].split()[0]) * 1024 + (8 + 8 + 2 * 8 + 16) * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
print((Cooccurrence.build(log, 10_000, 0, memory=8 * 2**20).score > 0).any())
"""
    done = subprocess.run([sys.executable, "-c", text], check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def table(rows, k=3):
    neighbour, score = np.full((6, k), -1, np.int32), np.zeros((6, k), np.float32)
    for item, pairs in rows.items():
        for place, (other, value) in enumerate(pairs):
            neighbour[item, place], score[item, place] = other, value
    return Cooccurrence(neighbour, score)


class Past:
    """Histories of one user, latest last."""

    def __init__(self, items, grades):
        self.item, self.grade = np.array(items, np.int32), np.array(grades, np.int8)

    def past(self, user, cut):
        return slice(0, len(self.item))


def after(items, grades, **more):
    """A request of the user with this past."""
    return Request(0, 1, state=SimpleNamespace(histories=Past(items, grades)), **more)


def test_taken_together_adds_up_over_what_was_taken_last():
    together = table({0: [(2, 0.9), (3, 0.8)], 1: [(3, 0.5), (4, 0.4)]})
    # 1 was taken last and 5 was skipped: 3 gets .5 + .8 / √2, 2 gets .9 / √2, 4 gets .4
    source = TakenTogether(together, floor=1)
    proposal = source.propose(after([0, 1, 5], [2, 1, 0]), 9)
    assert proposal.item.tolist() == [3, 2, 4]
    scores = proposal.score(np.array([4, 3, 0, 2, 3, -1, 9], np.int32))
    assert np.allclose(
        scores, [0.4, 0.5 + 0.8 / 2**0.5, np.nan, 0.9 / 2**0.5, 0.5 + 0.8 / 2**0.5, np.nan, np.nan], equal_nan=True
    )


def test_taken_together_starts_with_the_source_item():
    together = table({0: [(2, 0.9)], 1: [(3, 0.8)]})
    source = TakenTogether(together, floor=1)
    assert source.propose(after([0], [2], source_item=1), 9).item.tolist() == [3, 2]
    assert source.propose(after([], [], source_item=1), 9).item.tolist() == [3]


def plainly_taken_together(table, past, source_item):
    """The sums of the neighbours, by their definition."""
    latest = [source_item] * (source_item >= 0) + [
        i for i, g in list(zip(*past, strict=True))[: -RECENT - 1 : -1] if g >= 1
    ]
    sums = {}
    for place, seed in enumerate(list(dict.fromkeys(i for i in latest if i < len(table.neighbour)))[:SEEDS]):
        for b, value in zip(table.neighbour[seed].tolist(), table.score[seed], strict=True):
            if b >= 0:
                sums[b] = sums.get(b, 0.0) + np.float64(value) / np.sqrt(1 + place)
    return sums


@given(st.lists(st.tuples(st.integers(0, 34), st.integers(0, 2)), max_size=60), st.integers(-1, 34), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_taken_together_equals_the_plain_definition(past, source_item, limit):
    rng = np.random.default_rng(0)
    neighbour = np.array([rng.permutation(40)[:8] for _ in range(30)], np.int32)
    neighbour[rng.random(neighbour.shape) < 0.1] = -1
    neighbour.sort(axis=1)
    together = Cooccurrence(neighbour[:, ::-1].copy(), rng.choice([0.25, 0.5, 0.3], (30, 8)).astype(np.float32))
    past = [[item for item, _ in past], [grade for _, grade in past]]
    proposal = TakenTogether(together, 1).propose(after(*past, source_item=source_item), limit)
    sums = plainly_taken_together(together, past, source_item)
    assert proposal.item.tolist() == sorted(sums, key=lambda b: (-sums[b], b))[:limit]
    want = np.array([sums.get(b, np.nan) for b in range(-1, 45)], np.float32)
    assert proposal.score(np.arange(-1, 45, dtype=np.int32)).tobytes() == want.tobytes()


def test_taken_together_hears_an_item_once_and_no_more_than_the_last_seeds():
    together = table({0: [(2, 0.5)], 1: [(3, 0.4)]})
    source = TakenTogether(together, floor=1)
    assert source._seeds(after([0] * 50 + [1, 0, 1], [1] * 53)).tolist() == [1, 0]
    many = after(list(range(6)) * 20, [1] * 120)
    assert source._seeds(many).tolist() == [5, 4, 3, 2, 1, 0]
    assert len(source._seeds(many)) <= SEEDS


def test_an_empty_log_proposes_nothing(world):
    state = State.build(world.log.until(0), world.catalog, (), world.grades)
    proposal = Popular(Demand(state, 1, WEEK)).propose(Request(0, 10, state=state), 5)
    assert len(proposal.item) == 0
    assert proposal.score(np.array([3, -1], np.int32)).tolist()[0] == 0


def judged(bundle, items, user=-1, as_of=None, exclude_seen=True, **more):
    """Which filter removes each item; None where it stays."""
    request = Request(user, bundle.state.end if as_of is None else int(as_of), state=bundle.state, **more)
    verdict = filters.judged(np.array(items, np.int32), request, exclude_seen)
    return [None if v == filters.KEPT else filters.NAMES[v] for v in verdict]


def test_every_item_has_the_first_filter_that_removes_it(bundle):
    assert judged(bundle, []) == []
    assert judged(bundle, [-1, 0, 79, 80]) == ["unknown", None, None, "unknown"]
    excluded = np.array([2, -1, 2, 99], np.int32)
    found = judged(bundle, [1, 2, 5, 7, -1, 99], source_item=5, exclude=excluded)
    assert found == [None, "excluded", "excluded", None, "unknown", "unknown"]
    history = filters.history(Request(4, bundle.state.end, state=bundle.state))
    one, other = history[0], history[history != history[0]][0]
    assert judged(bundle, [one, other], 4, exclude=np.array([one], np.int32)) == ["excluded", "seen"]
    assert judged(bundle, [one, other], 4, exclude_seen=False) == [None, None]


def test_seen_is_strictly_before_as_of(bundle):
    histories = bundle.state.histories
    user = 4
    start, stop = histories.offsets[user : user + 2]
    k = start + (stop - start) // 2
    item, ts = int(histories.item[k]), int(histories.ts[k])
    first = int(histories.ts[start:stop][histories.item[start:stop] == item][0])
    assert [judged(bundle, [item], user, as_of) for as_of in (first, first + 1, ts + 1)] == [[None], ["seen"], ["seen"]]


def test_seen_equals_the_plain_definition(bundle, world):
    log = world.log
    for user in range(0, 40, 7):
        for as_of in (log.ts[0], log.ts[len(log) // 3], log.ts[-1], log.ts[-1] + 1):
            seen = {int(i) for u, i, t in zip(log.user, log.item, log.ts, strict=True) if u == user and t < as_of}
            assert judged(bundle, range(80), user, as_of) == ["seen" if i in seen else None for i in range(80)]


def test_a_cold_user_has_seen_nothing(bundle):
    assert judged(bundle, range(80)) == judged(bundle, range(80), 10**6) == [None] * 80


lists = st.lists(st.lists(st.integers(-1, 12), max_size=12), max_size=4)


def plain_places(lengths, quota, most, total):
    """How many places each source has: one after another, each to the source whose turn it is."""
    own = [min(n, q) for n, q in zip(lengths, quota, strict=True)]
    while sum(own) < total:
        more = [s for s, n in enumerate(lengths) if own[s] < min(n, most[s])]
        if not more:
            break
        own[min(more, key=lambda s: ((own[s] + 1) / max(quota[s], 1), s))] += 1
    return own


@given(
    lists,
    st.sets(st.integers(-1, 12)),
    st.lists(st.integers(0, 5), min_size=4, max_size=4),
    st.lists(st.integers(0, 12), min_size=4, max_size=4),
    st.integers(0, 30),
)
@settings(max_examples=300, deadline=None)
def test_the_merged_lists_are_those_of_the_plain_definition(lists, removed, quotas, most, total):
    merged = dedupe([Proposal(np.array(items, np.int32)) for items in lists])
    assert merged.item.tolist() == list(dict.fromkeys(chain(*lists)))
    places = [[own.index(i) if i in own else int(ABSENT) for own in lists] for i in merged.item.tolist()]
    assert merged.place.tolist() == places
    keep = np.array([i not in removed for i in merged.item.tolist()], bool)
    quotas, most = quotas[: len(lists)], most[: len(lists)]
    left = within_places(merged, keep, Places(quotas, most, total))
    some = [[i for i in dict.fromkeys(own) if i not in removed] for own in lists]
    first = [own[:n] for own, n in zip(some, plain_places(list(map(len, some)), quotas, most, total), strict=True)]
    assert left.item.tolist() == sorted(set(chain(*first)))
    assert [[bool(at < ABSENT) for at in row] for row in left.place] == [[i in f for f in first] for i in left.item]
    assert merged.place.tolist() == places  # as it was


def test_sources_are_bits_of_the_places():
    place = np.array([[0, ABSENT, 3], [ABSENT, 1, ABSENT], [2, 0, 0]], np.int32)
    assert Candidates(np.arange(3, dtype=np.int32), place).sources.tolist() == [0b101, 0b010, 0b111]
