"""The classes that a [sources.NAME] can name keep the contract, and equal their plain definitions."""

import tracemalloc
from copy import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from contracts import NamedSourceContract
from hypothesis import given, settings
from hypothesis import strategies as st

from features.baselines import ALS
from features.errors import PairliftError
from features.schema import DAY, Attribute, Catalog, empty_log
from features.state.store import State
from ranker.candidates.approximate import recalls
from ranker.candidates.named import Served, SourceData, make_source
from ranker.candidates.nearest import Nearest
from ranker.candidates.source import Proposal
from ranker.card import measured_lines
from ranker.request import Request
from ranker.settings import NamedSource
from ranker.sources import fresh as fresh_module
from ranker.sources.by_value import scores_of, value_scores
from ranker.sources.fresh import Fresh, fitted_prior
from ranker.sources.nearest import NearestBy
from ranker.sources.popular import PopularBy
from ranker.sources.similar import Similar
from ranker.sources.walks import ABREAST, RandomWalks, steps_of

SIMILAR, WALKS = "ranker.sources.similar:Similar", "ranker.sources.walks:RandomWalks"
NEAREST = "ranker.sources.nearest:NearestBy"
POPULAR, FRESH = "ranker.sources.popular:PopularBy", "ranker.sources.fresh:Fresh"
LONG = "400d"


class TestSimilar(NamedSourceContract):
    path, params = SIMILAR, {"plugin": "als"}


class TestSimilarInTwoPasses(NamedSourceContract):
    path, params = SIMILAR, {"plugin": "als", "exact": 10}


class TestNearestBy(NamedSourceContract):
    path, params = NEAREST, {"plugin": "als"}

    def test_it_proposes_what_the_source_nearest_does(self, bundle):
        source, nearest = self.make(bundle), Nearest(bundle.plugins["als"])
        for user in range(10):
            request = Request(user, bundle.state.end - DAY, state=bundle.state)
            assert source.propose(request, 30).item.tolist() == nearest.propose(request, 30).item.tolist()


class OverDemand(ALS):
    over_demand = True


class TestNearestByOverDemand(NamedSourceContract):
    path, params, by_score = NEAREST, {"plugin": "als"}, False

    def opened(self, bundle, arrays, state=None):
        plugin = copy(bundle.plugins["als"])
        plugin.__class__ = OverDemand
        return super().opened(replace(bundle, plugins={"als": plugin}), arrays, state)


class TestRandomWalks(NamedSourceContract):
    path = WALKS


class TestPopular(NamedSourceContract):
    path = POPULAR


class TestPopularBySurface(NamedSourceContract):
    path, params = POPULAR, {"by": "surface"}


class TestPopularByGenre(NamedSourceContract):
    path, params = POPULAR, {"by": "item.genre"}


class TestTrendingByGenre(NamedSourceContract):
    path, params = POPULAR, {"by": "item.genre", "half_life": "2d", "trend": "10d"}


class TestFresh(NamedSourceContract):
    path, params = FRESH, {"age": LONG}


USERS, ITEMS = 6, 14
WHO = Attribute("region", "categorical", codes=np.array([0, 0, 1, 1, -1, 2], np.int32), values=("a", "b", "c"))
CLUBS = Attribute(
    "clubs", "multi", codes=np.array([0, 1, 1, 0], np.int32), offsets=np.array([0, 2, 3, 4, 4, 4, 4]), values=("x", "y")
)
GENRE = Attribute(
    "genre", "categorical", codes=np.array([0, 1, 2, -1] * 3 + [0, 1], np.int32), values=("p", "q", "r", "s")
)
TAGS = Attribute(
    "tags", "multi", codes=np.arange(2 * ITEMS, dtype=np.int32) % 5, offsets=2 * np.arange(ITEMS + 1),
    values=tuple("vwxyz"),
)  # fmt: skip
CATALOG = Catalog(
    user_ids=np.arange(USERS), item_ids=np.arange(ITEMS), surfaces=("feed", "search"), user_attributes=(WHO, CLUBS),
    item_attributes=(GENRE, TAGS),
)  # fmt: skip
FLOOR = 1


@st.composite
def states(draw):
    """A log of few users and items, with ties in time, and its state."""
    n = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    log = replace(
        empty_log((), n),
        user=rng.integers(0, USERS, n).astype(np.int32),
        item=rng.integers(0, draw(st.integers(1, ITEMS)), n).astype(np.int32),
        ts=np.sort(rng.integers(0, 40, n)) * DAY,
        grade=rng.integers(-1, 3, n).astype(np.int8),
        surface=rng.integers(-1, 2, n).astype(np.int16),
    )
    return log, State.build(log, CATALOG, (), ("skip", "listen", "like"))


def opened(source, state, log=None, plugins=None):
    arrays = source.fit(SourceData(log=log, catalog=CATALOG, floor=FLOOR)) if hasattr(source, "fit") else {}
    source.open(Served(arrays=arrays, plugins=plugins or {}, state=state, floor=FLOOR))
    return source


def taken(log, user, as_of, most, source_item=-1):
    """The items that a user took last, the latest first, behind the source item."""
    rows = [k for k in range(len(log)) if log.user[k] == user and log.ts[k] < as_of and log.grade[k] >= FLOOR]
    found = [source_item] * (source_item >= 0) + [int(log.item[k]) for k in reversed(rows)]
    return list(dict.fromkeys(found))[:most]


requests = st.tuples(
    st.integers(-1, USERS + 1), st.integers(0, 50), st.integers(-1, 1), st.sampled_from([-1, -1, 2, 5, ITEMS + 2])
)


def request_of(asked, state):
    user, day, surface, source_item = asked
    return Request(user, day * DAY, state=state, surface=surface, source_item=source_item)


def check_order(proposal, want, limit):
    """The proposal is the first `limit` of {item: score}, ties by item, and scores every item so."""
    order = sorted(want, key=lambda i: (-want[i], i))[:limit]
    score = proposal.score(np.arange(-1, ITEMS + 3, dtype=np.int32))
    np.testing.assert_allclose(score, [want.get(i, np.nan) for i in range(-1, ITEMS + 3)], rtol=2e-5, atol=1e-6)
    assert len(proposal.item) == len(order)
    np.testing.assert_allclose(score[proposal.item + 1], [want[i] for i in order], rtol=2e-5, atol=1e-6)


def values_of(attribute, index):
    if attribute.kind == "multi":
        inside = 0 <= index < len(attribute.offsets) - 1
        return attribute.codes[attribute.offsets[index] : attribute.offsets[index + 1]].tolist() if inside else []
    return [int(c) for c in attribute.codes[index : index + 1] if c >= 0] if index >= 0 else []


def weights_of(by, log, asked, as_of):
    """{value: weight} of a request."""
    user, _, surface, source_item = asked
    if by == "surface":
        return {surface: 1.0} if surface >= 0 else {}
    if by is None:
        return {}
    side, name = by.split(".")
    attribute = {"region": WHO, "clubs": CLUBS, "genre": GENRE, "tags": TAGS}[name]
    if side == "user":
        own = values_of(attribute, user)
        return {value: 1 / len(own) for value in own}
    lists = [values_of(attribute, source_item)]
    if not lists[0]:
        lists = [values_of(attribute, item) for item in taken(log, user, as_of, 20)]
    total = {}
    for k, own in enumerate(lists, 1):
        for value in own:
            total[value] = total.get(value, 0) + 1 / len(own) / np.sqrt(k)
    return {value: weight / sum(total.values()) for value, weight in total.items()}


def plainly_popular(by, log, asked, half_life, trend, prior, end):
    as_of = min(asked[1] * DAY, end)
    weights = weights_of(by, log, asked, asked[1] * DAY)
    use = [k for k in range(len(log)) if log.grade[k] >= FLOOR] or list(range(len(log)))
    use = [k for k in use if log.ts[k] < as_of]
    decay = lambda k, h: 2.0 ** (-(as_of - log.ts[k]) / h)  # noqa: E731
    total = sum(decay(k, half_life) for k in use)
    want = {}
    for item in {int(log.item[k]) for k in use}:
        sums = []
        for h in (half_life, trend or half_life):
            c = (prior / total if weights else 1.0) * sum(decay(k, h) for k in use if log.item[k] == item)
            for k in use:
                if log.item[k] != item:
                    continue
                if by == "surface":
                    own = [int(log.surface[k])]
                elif by and by.startswith("user."):
                    own = values_of(WHO if by == "user.region" else CLUBS, log.user[k])
                else:
                    own = values_of(GENRE if by == "item.genre" else TAGS, item)
                c += sum(weights.get(value, 0.0) for value in own) * decay(k, h)
            sums.append(c)
        e = sums[1] * half_life / trend if trend else 0
        want[item] = (sums[0] - e) / np.sqrt(e + 1) if trend else np.log1p(sums[0])
    return want


@given(states(), requests, st.sampled_from([None, "surface", "user.region", "user.clubs", "item.genre", "item.tags"]),
       st.sampled_from([None, 20 * DAY]), st.sampled_from([0.5, 10.0]))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_popular_by_equals_the_plain_definition(made, asked, by, trend, prior):
    log, state = made
    source = PopularBy(by=by, half_life="4d", trend="20d" if trend else None, prior=prior)
    source.check(CATALOG)
    proposal = opened(source, state).propose(request_of(asked, state), ITEMS)
    check_order(proposal, plainly_popular(by, log, asked, 4 * DAY, trend, prior, state.end), ITEMS)


@given(states(), st.integers(0, 40), st.sampled_from([None, "surface", "user.clubs", "item.tags"]),
       st.sampled_from([0, 20 * DAY]))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_all_items_of_a_value_score_as_any_items_do(made, day, by, trend):
    source = opened(PopularBy(by=by, half_life="4d", trend=f"{trend // DAY}d" if trend else None), made[1])
    table, spans, whole = source._table, source._spans, source._whole
    for value in range(whole + 1):
        item = table.item[table.starts[value] : table.starts[value + 1]]
        alone = value == whole or by == "item.tags"
        own = (np.empty(0, np.int64), np.empty(0)) if alone else (np.array([value]), np.ones(1))
        expected = scores_of(table, spans, *own, np.full(len(item), 0.3), day * DAY, item)
        found = value_scores(table, spans, value, 0.0 if alone else 1.0, 0.3, day * DAY)
        np.testing.assert_array_equal(found, expected)


@given(states(), requests, st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_popular_by_one_value_finds_the_first_at_any_limit(made, asked, limit):
    log, state = made
    source = opened(PopularBy(by="item.genre", prior=2.0), state)
    want = plainly_popular("item.genre", log, asked, 7 * DAY, None, 2.0, state.end)
    check_order(source.propose(request_of(asked, state), limit), want, limit)


@pytest.mark.parametrize(
    ("path", "params", "says"),
    [
        (POPULAR, {"by": "region"}, r"\[sources.mine\]: by: 'surface', 'user.NAME' or 'item.NAME' was expected"),
        (POPULAR, {"trend": "7d"}, "trend: a longer time than half_life was expected"),
        (POPULAR, {"half_lief": "7d"}, r"half_lief: unknown key \(did you mean 'half_life'\?\)"),
        (SIMILAR, {}, "plugin: missing key; `pairlift config ranker.sources.similar:Similar` lists the keys"),
        ("ranker.sources.walks:Graph", {}, "lacks propose of ranker.candidates.source"),
        ("nowhere:Mine", {}, "No module named 'nowhere'"),
    ],
)
def test_a_wrong_table_is_one_sentence(path, params, says):
    with pytest.raises(PairliftError, match=says):
        make_source("mine", NamedSource(**{"class": path, **params}))


@pytest.mark.parametrize("by", ["user.rgion", "item.region", "user.genre"])
def test_an_attribute_that_the_log_lacks_is_told(by):
    with pytest.raises(PairliftError, match=r"is no text or list of \[(user|item)s.columns\]"):
        PopularBy(by=by).check(CATALOG)


class Vectors:
    """A plugin with item vectors alone."""

    def __init__(self, vectors):
        self.item_vectors = vectors

    def __getattr__(self, name):
        return len


@given(states(), requests, st.integers(0, 2**20), st.integers(1, 20))
@settings(max_examples=80, deadline=None)
def test_similar_equals_the_plain_definition(made, asked, seed, limit):
    log, state = made
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(ITEMS, 3)).astype(np.float32)
    vectors[rng.random(ITEMS) < 0.2] = np.nan
    vectors[rng.random(ITEMS) < 0.1] = 0
    source = opened(Similar(plugin="v", last=4), state, plugins={"v": Vectors(vectors)})
    proposal = source.propose(request_of(asked, state), limit)
    user, day, _, source_item = asked
    known = {i for i in range(ITEMS) if np.linalg.norm(vectors[i]) > 0}
    own = 0 <= source_item < ITEMS
    seeds = [i for i in ([source_item] if own else taken(log, user, day * DAY, 4)) if i in known]
    if not seeds:
        assert not len(proposal.item)
        assert proposal.score is None
        return
    unit = {i: vectors[i].astype(float) / np.linalg.norm(vectors[i].astype(float)) for i in known}
    check_order(
        proposal, {i: sum(unit[i] @ unit[s] / np.sqrt(k) for k, s in enumerate(seeds, 1)) for i in known}, limit
    )


def test_similar_of_many_items_finds_the_nearest_in_two_passes():
    rng = np.random.default_rng(0)
    n = 20_000
    vectors = rng.normal(size=(n, 16)).astype(np.float32) * rng.lognormal(0, 1, (n, 1)).astype(np.float32)
    vectors[rng.random(n) < 0.1] = np.nan
    source = Similar(plugin="v", exact=100)
    source.open(Served(arrays={}, plugins={"v": Vectors(vectors)}, state=None, floor=FLOOR))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    recall = []
    for item in np.flatnonzero(np.isfinite(unit[:, 0]))[:20].tolist():
        found = source.propose(Request(-1, 0, state=None, source_item=item), 100).item
        cosine = np.where(np.isnan(unit[:, 0]), -np.inf, unit @ unit[item])
        recall.append(len(np.intersect1d(found, np.argsort(-cosine)[:100])) / 100)
        assert found[0] == item
    assert np.mean(recall) > 0.99


class Halved:
    """Proposes the even ones of its items; in full, all."""

    name, items = "halved", np.arange(100, dtype=np.int32)

    def propose(self, request, limit):
        return Proposal(self.items[::2][: max(0, limit * request.user)])

    def in_full(self):
        return Whole()


class Whole(Halved):
    def propose(self, request, limit):
        return Proposal(self.items if request.user else self.items[:0])  # the first user gets nothing

    def in_full(self):
        return None


def test_what_sources_lose_that_do_not_compare_all_items_is_measured(bundle):
    n, rng = 30_000, np.random.default_rng(0)
    vectors, users = (rng.normal(size=(m, 8)).astype(np.float32) for m in (n, bundle.state.catalog.n_users))
    plugin = SimpleNamespace(item_vectors=vectors, user_vectors=lambda requests, _: users[requests.user])
    sources = {exact: NearestBy(plugin="v", exact=exact) for exact in (100, n)}
    for source in sources.values():
        source.open(Served(arrays={}, plugins={"v": plugin}, state=bundle.state, floor=FLOOR))
    assert sources[n].in_full() is None
    found = recalls([(source, None) for source in (Halved(), Whole(), Fresh(), *sources.values())], bundle.state)
    n_users = int((bundle.state.histories.sizes > 0).sum())
    assert list(found) == ["halved", "nearest_by"]
    assert found["halved"] == {"recall@200": 0.5, "users": n_users - 1}
    assert 0.97 < found["nearest_by"]["recall@200"] <= 1
    assert measured_lines({"approximate": found})[0] == (
        f"source halved, which does not compare all items: recall@200 0.5000 of what that would give ({n_users - 1} "
        "users)"
    )


@pytest.mark.parametrize("path", [SIMILAR, NEAREST])
def test_a_plugin_without_vectors_is_told(path):
    source = make_source("mine", NamedSource(**{"class": path, "plugin": "v"}))
    with pytest.raises(PairliftError, match=r"\[sources.mine\] plugin: 'v' has no (item )?vectors"):
        source.open(Served(arrays={}, plugins={"v": SimpleNamespace()}, state=None, floor=FLOOR))


def splitmix(state):
    """SplitMix64 by Python's integers."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    x = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return state, x ^ (x >> 31)


def plainly_walked(log, asked, steps, restart, enough_items, enough_visits):
    """Algorithms 2 and 3 of the paper, with lists of edges."""
    edges = [(int(log.user[k]), int(log.item[k])) for k in range(len(log)) if log.grade[k] >= FLOOR]
    users_of = {i: [u for u, j in edges if j == i] for _, i in edges}
    by_user = sorted(edges, key=lambda edge: edge[0])
    items_of = {u: [i for v, i in by_user if v == u] for u, _ in edges}
    user, day, _, source_item = asked
    seeds = taken(log, user, day * DAY, 20, source_item if source_item < ITEMS else -1)
    weight = {seed: 1 / np.sqrt(k) for k, seed in enumerate(seeds, 1) if seed in users_of}
    if not weight:
        return {}
    most = max(len(users) for users in users_of.values())
    s = {q: w * len(users_of[q]) * (most - np.log(len(users_of[q]))) for q, w in weight.items()}
    state, sums = (day * DAY * 0x9E3779B97F4A7C15 + user + 1) % 2**64, {}
    for q in weight:
        visits, left = {}, max(int(np.round(steps * s[q] / sum(s.values()))), 1)
        lanes = [q] * ABREAST
        while left > 0 and sum(count >= enough_visits for count in visits.values()) <= enough_items:
            turn = min(left, ABREAST)
            left -= turn
            for k in range(turn):
                state, bits = splitmix(state)
                lanes[k] = users_of[lanes[k]][((bits >> 32) * len(users_of[lanes[k]])) >> 32]
            again = []
            for k in range(turn):
                state, bits = splitmix(state)
                lanes[k] = items_of[lanes[k]][((bits >> 32) * len(items_of[lanes[k]])) >> 32]
                again.append(bits % 2**32 < int(restart * 2**32))
            for k in range(turn):
                visits[lanes[k]] = visits.get(lanes[k], 0) + 1
                if sum(count >= enough_visits for count in visits.values()) > enough_items:
                    break
                lanes[k] = q if again[k] else lanes[k]
        for item, count in visits.items():
            sums[item] = sums.get(item, 0) + np.sqrt(count)
    return {item: root**2 for item, root in sums.items()}


@given(states(), requests, st.integers(1, 300), st.sampled_from([0.2, 1.0]), st.integers(1, 8), st.integers(1, 20))
@settings(max_examples=80, deadline=None)
def test_walks_visit_what_the_plain_definition_does(made, asked, steps, restart, enough, limit):
    log, state = made
    source = opened(RandomWalks(steps=steps, restart=restart, enough_items=enough), state, log)
    want = plainly_walked(log, asked, steps, restart, enough, 4)
    proposal = source.propose(request_of(asked, state), limit)
    if not want:
        assert not len(proposal.item)
    else:
        check_order(proposal, want, limit)


def test_walks_approach_the_chances_of_the_graph(world, bundle):
    """A walk that begins again behind each step visits an item by its share of the users' items."""
    log = world.log
    source = RandomWalks(steps=400_000, restart=1.0, enough_items=10**6, last=1)
    arrays = source.fit(SourceData(log=log, catalog=world.catalog, floor=1))
    source.open(Served(arrays=arrays, plugins={}, state=bundle.state, floor=1))
    use = log.grade >= 1
    edges = np.zeros((40, 80))
    np.add.at(edges, (log.user[use], log.item[use]), 1)
    chance = (edges[:, 3] / edges[:, 3].sum()) @ (edges / np.maximum(edges.sum(axis=1, keepdims=True), 1))
    visits = source.propose(Request(-1, 0, state=bundle.state, source_item=3), 80).score(np.arange(80, dtype=np.int32))
    found = np.nan_to_num(visits) / 400_000
    assert np.abs(found - chance).max() < 4 * np.sqrt(chance.max() / 400_000)
    assert found.sum() == pytest.approx(1)


def test_steps_go_by_weight_and_degree():
    steps = steps_of(np.array([1, 4, 4]), np.array([1.0, 1.0, 0.5]), 8.0, 1000)
    share = np.array([1 * 8, 4 * (8 - np.log(4)), 0.5 * 4 * (8 - np.log(4))])
    assert steps.tolist() == np.round(1000 * share / share.sum()).tolist()
    assert steps_of(np.array([1, 10**6]), np.ones(2), 1e6, 10).tolist()[0] == 1


def test_walks_end_early_where_enough_was_visited(world, bundle):
    data, state = SourceData(log=world.log, catalog=world.catalog, floor=1), bundle.state
    sums = []
    for enough in (5, 10**6):
        source = RandomWalks(steps=100_000, enough_items=enough)
        source.open(Served(arrays=source.fit(data), plugins={}, state=state, floor=1))
        score = source.propose(Request(3, state.end, state=state), 80).score(np.arange(80, dtype=np.int32))
        sums.append(np.nansum(score))
    assert sums[0] < sums[1] / 20


@given(states(), requests, st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_fresh_items_are_those_whose_first_event_was_lately(made, asked, days):
    log, state = made
    source = opened(Fresh(age=f"{days}d"), state, log)
    as_of = asked[1] * DAY
    first = {i: int(log.ts[log.item == i].min()) for i in set(log.item.tolist())}
    new = {i for i, ts in first.items() if as_of - days * DAY <= ts < as_of}
    proposal = source.propose(request_of(asked, state), ITEMS)
    assert set(proposal.item.tolist()) == new
    score = proposal.score(np.arange(-1, ITEMS + 3, dtype=np.int32))
    assert {i for i in range(-1, ITEMS + 3) if np.isfinite(score[i + 1])} == new
    draws = score[np.isfinite(score)]  # in float32 one may round to 0 or 1
    assert ((draws >= 0) & (draws <= 1)).all()
    assert (np.diff(score[proposal.item + 1]) <= 0).all()


def test_draws_have_the_moments_of_the_posterior_and_are_of_a_request_and_an_item_alone():
    n = 30
    grade = np.array(([2] * 3 + [0] * 7 + [2] * 9 + [0] * 1 + [0] * 10)[:n], np.int8)
    log = replace(empty_log((), n), user=np.zeros(n, np.int32), item=np.repeat([0, 1, 2], 10).astype(np.int32),
                  ts=np.arange(n) * DAY // 10, grade=grade)  # fmt: skip
    state = State.build(log, CATALOG, (), ("skip", "listen", "like"))
    source = opened(Fresh(age="40d"), state, log)
    a, b = fitted_prior(np.array([3.0, 9.0, 0.0]), np.array([10.0, 10.0, 10.0]))
    items = np.arange(3, dtype=np.int32)
    draws = [source.propose(Request(7, state.end + k, state=state), 3).score(items) for k in range(4000)]
    for item, wins in enumerate((3, 9, 0)):
        alpha, beta = a + wins, b + 10 - wins
        own = np.array(draws)[:, item]
        mean, variance = alpha / (alpha + beta), alpha * beta / (alpha + beta) ** 2 / (alpha + beta + 1)
        assert own.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / 4000))
        assert own.var() == pytest.approx(variance, rel=0.15)
    assert abs(np.corrcoef(np.array(draws).T)[0, 1]) < 0.06
    # What was counted is what lay before as_of: of item 1, its first three events.
    early = source.propose(Request(7, 13 * DAY // 10, state=state), 3)
    assert sorted(early.item.tolist()) == [0, 1]
    assert (
        len({source.propose(Request(user, state.end, state=state), 3).score(items).tobytes() for user in range(9)}) == 9
    )


def test_of_very_many_new_items_a_request_has_a_sample_and_many_requests_have_all(monkeypatch):
    monkeypatch.setattr(fresh_module, "MOST", 7)
    n = ITEMS
    log = replace(empty_log((), n), user=np.zeros(n, np.int32), item=np.arange(n, dtype=np.int32),
                  ts=DAY + np.arange(n), grade=np.zeros(n, np.int8))  # fmt: skip
    state = State.build(log, CATALOG, (), ("skip", "listen", "like"))
    source = opened(Fresh(), state, log)
    found = [source.propose(Request(user, 2 * DAY, state=state), n).item.tolist() for user in range(400)]
    assert all(len(set(items)) == 7 for items in found)
    count = np.bincount(np.concatenate(found), minlength=n)
    assert count.min() > 0.5 * 400 * 7 / n
    assert source.propose(Request(3, 2 * DAY, state=state), n).item.tolist() == found[3]


def test_the_prior_is_that_of_the_items():
    rng = np.random.default_rng(0)
    n = rng.integers(5, 200, 4000).astype(float)
    share = rng.beta(2.0, 6.0, 4000)
    a, b = fitted_prior(rng.binomial(n.astype(int), share).astype(float), n)
    assert a == pytest.approx(2, rel=0.1)
    assert b == pytest.approx(6, rel=0.1)
    for wins, n in (([], []), ([3], [3]), ([0, 0], [2, 5]), ([1, 4], [1, 4])):
        a, b = fitted_prior(np.array(wins, float), np.array(n, float))
        assert a + b == pytest.approx(2)
        assert a / (a + b) == pytest.approx((sum(wins) + 1) / (sum(n) + 2))
    assert sum(fitted_prior(np.array([5.0, 5.0]), np.array([10.0, 10.0]))) == pytest.approx(9999)  # no spread at all


@pytest.mark.parametrize(
    "source", [PopularBy(), PopularBy(by="surface"), PopularBy(by="user.region", trend="20d"), Fresh(age=LONG)]
)
def test_counting_anew_takes_no_more_memory_than_is_said(source):
    n, rng = 200_000, np.random.default_rng(0)
    log = replace(
        empty_log((), n),
        user=rng.integers(0, USERS, n).astype(np.int32),
        item=rng.integers(0, ITEMS, n).astype(np.int32),
        ts=np.arange(n),
        grade=np.full(n, 2, np.int8),
        surface=rng.integers(0, 2, n).astype(np.int16),
    )
    opened(source, State.build(log.until(10), CATALOG, (), ("skip", "listen", "like")), log.until(10))
    state = State.build(log, CATALOG, (), ("skip", "listen", "like"))
    first = source.over(state)
    tracemalloc.start()
    again = first.over(state)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert again.event_bytes * n / 6 < peak < 0.8 * again.event_bytes * n  # the counts in use are not traced
