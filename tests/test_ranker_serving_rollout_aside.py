"""Arms and the shadow on a running server, and the figures of two answers against their definitions."""

import json
import threading
import time

import duckdb
import numpy as np
import pytest
from pairlift.v1 import ranking_pb2 as pb
from scipy.stats import spearmanr
from served import pairlift, serving, user_id, within
from world import TOML, write_world_bundle

from ranker.asking.messages import ids_message
from ranker.bundle import Bundle, load_bundle
from ranker.client import Client
from ranker.serving.rollout.agreement import Agreement, Pair, Ring, common_scores, overlap, spearman, stability
from ranker.serving.rollout.recent import MOST, MOST_BYTES, Recent
from ranker.serving.rollout.shadow import WAITING, Shadow
from ranker.serving.rollout.split import CONTROL, Split
from ranker.serving.served import FeaturesTo


@pytest.fixture(scope="module")
def other(parts, tmp_path_factory):
    """A bundle of another version that scores alike."""
    folder = tmp_path_factory.mktemp("other") / "bundle"
    write_world_bundle(parts, folder, toml=TOML.replace('"world"', '"world_again"'))
    return folder


@pytest.fixture
def running(bundle_folder, tmp_path):
    log = FeaturesTo(tmp_path / "features", 1.0)
    with serving(load_bundle(bundle_folder), clock="snapshot", features_to=log) as server:
        yield server


@pytest.fixture
def client(running):
    with Client(running.address, timeout=20) as client:
        yield client


def test_an_arm_answers_its_users_and_all_is_named_after_it(running, client, other, world, tmp_path):
    users, new = world.catalog.user_ids.tolist(), load_bundle(other).version
    old = running.deployment.active.bundle.version
    words = ("--arm", "b", "--to", running.address)
    assert pairlift("deploy", other, *words, "--share", 0.4, "--experiment", "x")[0] == 0
    split = Split("x").with_arm("b", 0.4)
    expected = {user: ("b", new) if split.arm_of(user) == "b" else (CONTROL, old) for user in users}
    assert len(set(expected.values())) == 2

    def asked(way, *rest):
        replies = {user: way(user, *rest, request_id=f"{way.__name__} {user}") for user in users}
        return {user: (reply.arm, reply.bundle_version) for user, reply in replies.items()}

    assert asked(client.rank, [10, 13]) == asked(client.recommend, 3) == expected
    nobody = client.rank(None, [10])
    assert (nobody.arm, nobody.bundle_version) == ("", old)
    code, said = pairlift("deploy", *words, "--share", 0.9)
    assert code == 0, said
    assert "90.00% of the users" in said
    grown = {user: reply[0] for user, reply in asked(client.rank, [10]).items()}
    assert all(grown[user] == "b" for user, (arm, _) in expected.items() if arm == "b")
    code, said = pairlift("promote", "b", "--to", running.address)
    assert code == 0
    assert set(asked(client.rank, [10]).values()) == {("", new)}
    assert pairlift("rollback", "--to", running.address)[0] == 0
    assert set(asked(client.rank, [10]).values()) == {("", old)}
    running.stop(grace=0)
    rows = duckdb.sql(
        f"SELECT DISTINCT user_id, arm_name, bundle_version FROM '{tmp_path}/features/*.parquet' "
        "WHERE request_id LIKE 'recommend%'"
    ).fetchall()
    assert {user: (arm, version) for user, arm, version in rows} == expected


def test_a_shadow_compares_and_its_answers_are_dropped(running, client, other, world, tmp_path, monkeypatch):
    new, items = load_bundle(other).version, world.catalog.item_ids[:30].tolist()
    assert pairlift("deploy", other, "--shadow", "--to", running.address)[0] == 0
    for k in range(20):
        assert client.rank(user_id(world, k), items, request_id=str(k)).bundle_version != new
        client.recommend(user_id(world, k))
        time.sleep(0.02)
    assert within(10, lambda: shadow_of(running)["requests"] + shadow_of(running)["dropped"] == 40)
    found = shadow_of(running)
    assert found["errors"] == found["not_finite"] == 0
    assert found["rank_correlation"] == pytest.approx(1)
    assert found["overlap_at_10"] == 1
    assert found["mean"] == found["mean_active"]
    assert found["psi"] == pytest.approx(0)
    assert pairlift("drop", "--shadow", "--to", running.address)[0] == 0
    running.stop(grace=0)
    logged = duckdb.sql(f"SELECT DISTINCT bundle_version FROM '{tmp_path}/features/*.parquet'").fetchall()
    assert (new,) not in logged


def shadow_of(running):
    code, said = pairlift("deployed", "--json", "--to", running.address)
    assert code == 0
    return {one["role"]: one for one in json.loads(said)["bundles"]}["shadow"]["comparison"]


def test_a_shadow_that_fails_or_is_late_harms_nobody(running, client, other, world, monkeypatch):
    new = load_bundle(other).version
    assert pairlift("deploy", other, "--shadow", "--share", "1", "--to", running.address)[0] == 0
    honest, held = Bundle.score, threading.Event()

    def score(bundle, matrix):
        if bundle.version == new:
            held.wait(20)
            raise ValueError("the shadow is broken")
        return honest(bundle, matrix)

    monkeypatch.setattr(Bundle, "score", score)
    for _ in range(WAITING + 5):
        assert not client.rank(user_id(world, 1), [10, 13]).degraded
    assert shadow_of(running)["dropped"] >= 4
    held.set()
    assert within(10, lambda: shadow_of(running)["errors"] == WAITING + 5 - shadow_of(running)["dropped"])


def test_rank_correlation_is_the_known_one_with_ties_and_what_is_not_finite():
    rng = np.random.default_rng(0)
    for n in (2, 5, 50):
        for _ in range(20):
            a, b = rng.integers(0, 6, n).astype(float), rng.normal(size=n)
            expected = spearmanr(a, b).statistic if len(set(a)) > 1 else np.nan
            assert spearman(a, b) == pytest.approx(expected, nan_ok=True)
    assert spearman(np.array([3.0, 2, 1]), np.array([5.0, 4, np.nan])) == 1
    assert np.isnan(spearman(np.array([1.0]), np.array([1.0])))


def test_the_stability_index_is_its_definition():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=5000), rng.normal(0.3, 1.2, 5000)
    edges = np.quantile(a, np.arange(1, 10) / 10)
    p, q = (np.histogram(x, [-np.inf, *edges, np.inf])[0] / len(x) for x in (a, b))
    assert stability(a, b) == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=1e-6)
    assert stability(a, a) == 0
    assert np.isfinite(stability(a, b + 100))
    assert np.isnan(stability(np.empty(0), np.empty(0)))


def test_common_items_are_found_by_place_in_a_rank_and_by_id_in_a_recommend():
    a = pb.RankResponse(items=ids_message([7, 7, 9]), indexes=[2, 0, 1], scores=[3, 2, 1])
    b = pb.RankResponse(items=ids_message([7, 9, 7]), indexes=[0, 1, 2], scores=[30, 20, 10])
    assert common_scores(a, b).tolist() == [[2, 30], [1, 20], [3, 10]]
    c = pb.RecommendResponse(items=ids_message(["x", "y", "z"]), scores=[3, 2, 1])
    d = pb.RecommendResponse(items=ids_message(["z", "w"]), scores=[5, 4])
    assert common_scores(c, d).tolist() == [[1, 5]]
    assert overlap(c, d) == pytest.approx(1 / 3)
    assert common_scores(pb.RecommendResponse(), d).shape == (0, 2)
    assert np.isnan(overlap(pb.RecommendResponse(), pb.RecommendResponse()))


def test_figures_of_no_pair_are_unknown_and_of_some_are_theirs():
    agreement = Agreement()
    assert np.isnan(agreement.figures().rank_correlation)
    reply = pb.RankResponse(items=ids_message([1, 2]), indexes=[0, 1], scores=[2, 1])
    turned = pb.RankResponse(items=ids_message([2, 1]), indexes=[1, 0], scores=[2, float("nan")])
    agreement.add(Pair(reply, turned, 0.001, 0.003))
    agreement.fail()
    agreement.drop()
    found = agreement.figures()
    assert (found.requests, found.errors, found.dropped, found.not_finite) == (1, 1, 1, 1)
    assert (found.rank_correlation, found.overlap_at_10) == (-1, 1)
    assert (found.p50_active, found.p50) == pytest.approx((1, 3))


def test_a_ring_keeps_the_latest():
    ring = Ring(5, 1)
    for k in range(0, 12, 3):
        ring.add(np.arange(k, k + 3, dtype=float)[:, None])
    assert sorted(ring.rows[:, 0]) == [7, 8, 9, 10, 11]


def test_recent_requests_are_few_and_bounded_in_bytes(monkeypatch):
    recent, now = Recent(), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for k in range(3 * MOST):
        recent.offer(pb.RankRequest(request_id=str(k)))
        recent.offer(pb.RankRequest(request_id="too soon"))
        now[0] += 0.1
    kept = recent.newest(10_000)
    assert [one.request_id for one in kept] == [str(k) for k in range(3 * MOST - 1, 2 * MOST - 1, -1)]
    for _ in range(10):
        recent.offer(pb.RankRequest(request_id="x" * (MOST_BYTES // 4)))
        now[0] += 0.1
    assert sum(one.ByteSize() for one in recent.newest(10_000)) <= MOST_BYTES
    recent.offer(pb.RankRequest(request_id="x" * (MOST_BYTES + 1)))
    assert recent.newest(1)[0].ByteSize() < MOST_BYTES


def test_a_shadow_ends(bundle_folder, running):
    shadow = Shadow(running.deployment.active, 1.0)
    shadow.close()
    assert within(5, lambda: not shadow._thread.is_alive())
