"""Lists whose order is drawn: chances against their definition, draws against chances, and how they are served."""

import time
from collections import Counter
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import pairlift, serving, user_id, within
from world import TOML, with_config

from features.hashing import mix, mixed
from features.schema import Attribute, Catalog
from ranker.candidates.at_most import AtMost
from ranker.client import Client
from ranker.config import load_config
from ranker.exploration.draw import chances, drawn, race, standing
from ranker.exploration.policy import Exploration
from ranker.pipeline import Pipeline, select
from ranker.recording.logged import read_features
from ranker.request import Request
from ranker.serving.served import FeaturesTo
from ranker.settings import ExplorationSettings, ListSettings

EVERY = ExplorationSettings(share=1)


def limits_of(authors, most):
    """At most so many items of one author; -1 has none."""
    ids = np.arange(len(authors), dtype=np.int64)
    author = Attribute("author", "categorical", codes=np.array(authors, np.int32), values=("a", "b", "c"))
    return AtMost.of({"author": most}, Catalog(user_ids=ids, item_ids=ids, surfaces=(), item_attributes=(author,)))


def slow_chances(listed, score, order, temperature, top, authors, most):
    """The definition, item by item: who may stand there, and what each weighs."""
    out, above = [], []
    for item in listed:
        used = Counter(authors[i] for i in above)
        free = [i for i in order if i not in above and (authors[i] < 0 or used[authors[i]] < most)]
        racing = [i for i in order[:top] if np.isfinite(score[i]) and i in free]
        if item in racing:
            weights = {
                i: np.exp(0.0 if temperature is None else (score[i] - score[order[0]]) / temperature) for i in racing
            }
            out.append(weights[item] / sum(weights.values()))
        else:
            out.append(float(not racing and bool(free) and item == free[0]))
        above.append(item)
    return out


@st.composite
def cases(draw):
    n = draw(st.integers(1, 7))
    score = np.array(draw(st.lists(st.sampled_from([0.0, 1.0, 1.5, -2.0, np.nan, np.inf]), min_size=n, max_size=n)))
    authors = draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n))
    temperature = draw(st.sampled_from([None, 0.3, 1.0, 5.0]))
    return score, authors, temperature, draw(st.integers(2, 8)), draw(st.integers(1, 3)), draw(st.integers(0, 5))


@settings(deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_the_chances_of_any_list_are_their_definition(case, random):
    score, authors, temperature, top, most, k = case
    item = np.arange(len(score), dtype=np.int32)
    order, limits = select(item, score), limits_of(authors, most)
    listed = np.array(random.sample(range(len(score)), min(k, len(score))), np.int64)
    last = standing(listed, limits.last_of(item, item[listed]))
    found = chances(listed, order, race(score, order, temperature, top), last)
    expected = slow_chances(listed.tolist(), score, order.tolist(), temperature, top, authors, most)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@settings(deadline=None, max_examples=30)
@given(cases(), st.integers(0, 2**64 - 1))
def test_the_chances_of_all_lists_sum_to_one_and_a_draw_gives_one_of_them(case, key):
    score, authors, temperature, top, most, k = case
    item, limits = np.arange(len(score), dtype=np.int32), limits_of(authors, most)
    order = select(item, score)
    weight = race(score, order, temperature, top)
    places, _ = limits.first_of(item, drawn(key, item, order, weight), k)
    total, seen = 0.0, False
    for listed in permutations(range(len(score)), len(places)):
        there = np.array(listed, np.int64)
        chance = chances(there, order, weight, standing(there, limits.last_of(item, item[there]))).prod()
        total += chance
        seen |= chance > 0 and listed == tuple(places)
    assert total == pytest.approx(1)
    assert seen


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_draws_come_as_often_as_their_chances_say(temperature):
    score, item = np.array([2.0, 1.0, 0.5, 0.0, -9.0]), np.arange(5, dtype=np.int32)
    limits, order, n = limits_of([0, 0, 1, -1, 2], 1), select(item, score), 4_000
    asked = ExplorationSettings(share=1, top=4, **({"kind": "uniform"} if temperature is None else {}))
    lists, stated = Counter(), {}
    for key in range(n):
        top, _, explored = Exploration(asked).list_of(key * 7919, item, score, order, 3, limits)
        lists[tuple(top)] += 1
        stated[tuple(top)] = explored.propensity.prod()
    assert sum(stated.values()) == pytest.approx(1)
    for listed, chance in stated.items():
        assert abs(lists[listed] - n * chance) < 5 * np.sqrt(n * chance * (1 - chance)), listed


def test_scores_that_cannot_be_drawn_by_stand_behind_in_their_order():
    score, item = np.array([np.nan, 1e308, -1e308, np.inf, 0.0]), np.arange(5, dtype=np.int32)
    top, _, explored = Exploration(EVERY).list_of(3, item, score, select(item, score), 5, None)
    assert (top[0], set(top[1:3]), top[3:].tolist()) == (1, {2, 4}, [0, 3])  # behind 1e308, the others count alike
    np.testing.assert_allclose(explored.propensity, [1, 0.5, 1, 1, 1], rtol=1e-6)
    alike = Exploration(ExplorationSettings(share=1, kind="uniform"))
    top, _, explored = alike.list_of(3, item, score, select(item, score), 5, None)
    assert set(top[:3]) == {1, 2, 4}
    np.testing.assert_allclose(explored.propensity, [1 / 3, 1 / 2, 1, 1, 1])
    assert explored.temperature is None
    none = np.empty(0, np.int32)
    assert not len(alike.list_of(3, none, np.empty(0), np.empty(0, np.int64), 5, None)[2].propensity)


def test_the_noise_is_that_of_the_known_hash():
    x = np.random.default_rng(0).integers(0, 2**64, 100, np.uint64)
    assert [int(mixed(one)) for one in x] == mix(x).tolist()


def test_a_draw_among_other_candidates_keeps_their_order():
    rng = np.random.default_rng(0)
    item, score = rng.permutation(50).astype(np.int32), rng.normal(size=50)
    whole = item[drawn(9, item, select(item, score), race(score, select(item, score), 1.0, 50))]
    some = rng.random(50) < 0.5
    item, score = item[some], score[some]
    fewer = item[drawn(9, item, select(item, score), race(score, select(item, score), 1.0, 50))]
    assert fewer.tolist() == [i for i in whole if i in fewer]


def answers(bundle, request, k=10, **tables):
    pipeline = Pipeline(with_config(bundle, **tables))
    try:
        return pipeline.recommend(request, k)
    finally:
        pipeline.close()


def test_a_list_is_drawn_where_it_may_be_and_a_resend_gets_the_same(bundle):
    asked = Request(3, bundle.state.end, state=bundle.state, request_id="r1")
    plain, may = answers(bundle, asked), replace(asked, may_explore=True)
    for request, tables in ((asked, {"exploration": EVERY}), (may, {})):  # switched on, or asked for, alone
        same = answers(bundle, request, **tables)
        assert same.explored is None
        np.testing.assert_array_equal(same.item, plain.item)
        np.testing.assert_array_equal(same.score, plain.score)
    one = answers(bundle, may, exploration=EVERY)
    assert one.explored.kind == "plackett_luce"
    assert one.explored.temperature == 1
    assert ((one.explored.propensity > 0) & (one.explored.propensity <= 1)).all()
    assert one.item.tolist() != plain.item.tolist()
    assert dict(zip(plain.item.tolist(), plain.score.tolist(), strict=True)).items() & set(
        zip(one.item.tolist(), one.score.tolist(), strict=True)
    )
    again = answers(bundle, may, exploration=EVERY)
    np.testing.assert_array_equal(again.item, one.item)
    np.testing.assert_array_equal(again.explored.propensity, one.explored.propensity)
    for other in (replace(may, request_id="r2"), replace(may, request_id=""), replace(may, request_id="", user=4)):
        assert answers(bundle, other, exploration=EVERY).item.tolist() != one.item.tolist()
    seeded = answers(bundle, may, exploration=ExplorationSettings(share=1, seed=1))
    assert seeded.item.tolist() != one.item.tolist()


def test_limits_of_lists_hold_in_drawn_ones(bundle):
    lists = ListSettings(at_most={"genre": 2})
    genre = next(a for a in bundle.state.catalog.item_attributes if a.name == "genre").codes
    for number in range(20):
        asked = Request(3, bundle.state.end, state=bundle.state, request_id=f"r{number}", may_explore=True)
        found = answers(bundle, asked, exploration=EVERY, lists=lists)
        assert max(Counter(genre[found.item[genre[found.item] >= 0]].tolist()).values()) <= 2
        assert (found.explored.propensity > 0).all()


def test_about_the_share_of_the_requests_is_drawn_and_not_the_one_that_is_logged(bundle):
    policy = Exploration(ExplorationSettings(share=0.1))
    asked = [Request(3, 0, state=bundle.state, request_id=f"r{k}", may_explore=True) for k in range(5000)]
    explored = [policy.key(one) is not None for one in asked]
    assert 400 < sum(explored) < 600
    without_id = [policy.key(replace(one, request_id="", as_of=k)) is not None for k, one in enumerate(asked)]
    assert 400 < sum(without_id) < 600


def test_a_server_says_and_logs_how_a_list_was_drawn(bundle, world, tmp_path: Path):
    exploring = with_config(bundle, exploration=EVERY)
    to = FeaturesTo(tmp_path / "log", 1e-9)  # of the others, none
    with serving(exploring, clock="snapshot", features_to=to) as server, Client(server.address, timeout=20) as client:
        drawn = client.recommend(user_id(world, 3), 8, request_id="r1")
        assert (drawn.exploration, drawn.temperature) == ("plackett_luce", 1.0)
        assert all(0 < item.propensity <= 1 for item in drawn.items)
        assert [i.item for i in client.recommend(user_id(world, 3), 8, request_id="r1").items] == [
            i.item for i in drawn.items
        ]
        ranked = client.rank(user_id(world, 3), [10, 13, 16], request_id="r2")
        assert (ranked.exploration, ranked.items[0].propensity) == ("", None)
        code, said = pairlift("recommend", "--user", user_id(world, 3), "--k", 3, "--address", server.address)
        assert code == 0
        assert "propensity" in said
        assert "the order was drawn (plackett_luce at temperature 1)" in said
    rows = pq.read_table(tmp_path / "log").to_pylist()
    assert {row["request_id"] for row in rows} == {"r1"}
    assert [row["propensity"] for row in rows[:8]] == [item.propensity for item in drawn.items]
    assert {(row["exploration"], row["temperature"]) for row in rows} == {("plackett_luce", 1.0)}
    logged = read_features(tmp_path / "log", bundle.state.catalog, bundle.spec.listed)
    assert set(logged.columns) == set(bundle.columns)


def test_a_list_that_is_not_drawn_has_no_propensities(bundle, world, tmp_path: Path):
    to = FeaturesTo(tmp_path / "log", 1.0)
    with serving(bundle, clock="snapshot", features_to=to) as server, Client(server.address, timeout=20) as client:
        plain = client.recommend(user_id(world, 3), 4, request_id="r1")
    assert (plain.exploration, plain.temperature, plain.items[0].propensity) == ("", None, None)
    rows = pq.read_table(tmp_path / "log").to_pylist()
    assert {(row["exploration"], row["temperature"], row["propensity"]) for row in rows} == {(None, None, None)}


def test_a_shadow_is_compared_on_lists_that_were_not_drawn(bundle, world):
    class Shadow:
        share = 1.0

        def __init__(self, served):
            self.served, self.offered = served, []

        def offer(self, message, reply, seconds):
            self.offered.append(reply)

        def close(self):
            pass

    half = with_config(bundle, exploration=ExplorationSettings(share=0.5))
    with serving(half, clock="snapshot") as server, Client(server.address, timeout=20) as client:
        shadow = Shadow(server.deployment.active)
        server.deployment.swap(replace(server.deployment.standing, shadow=shadow))
        replies = [client.recommend(user_id(world, 3), 8, request_id=f"r{k}") for k in range(20)]
        explored = sum(bool(reply.exploration) for reply in replies)
        assert 0 < explored < 20
        assert within(5, lambda: len(shadow.offered) == 20 - explored)
        time.sleep(0.05)
        assert {reply.request_id for reply in shadow.offered} == {r.request_id for r in replies if not r.exploration}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('kind = "uniform"\ntemperature = 2.0', "temperature goes with kind = 'plackett_luce'"),
        ("share = 0.0", "exploration.share"),
        ("temperature = 0.0", "exploration.temperature"),
        ("top = 1", "exploration.top"),
        ("tmperature = 1.0", "did you mean 'temperature'"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, table, said):
    (tmp_path / "p.toml").write_text(f"{TOML}\n[exploration]\n{table}\n")
    with pytest.raises(Exception, match=said):
        load_config(tmp_path / "p.toml")


def test_the_table_alone_draws_one_in_a_hundred(tmp_path: Path):
    (tmp_path / "p.toml").write_text(f"{TOML}\n[exploration]\n")
    asked = load_config(tmp_path / "p.toml").exploration
    assert (asked.share, asked.kind, asked.temperature, asked.top) == (0.01, "plackett_luce", 1.0, 50)
