"""The benchmark of lists: a small world through all of it, so that it cannot rot, and its figures add up."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from listtruth import ListWorld
from listworld import make_list_world, write_list_world

from features.pairing.pairs import Pairs
from features.pairing.slice import Slice
from features.schema import F64, GIB
from ranker.config import load_config
from ranker.examples import example_names
from ranker.metrics.pair_accuracy import pair_accuracy
from ranker.request import Request
from ranker.training.wanted import sources_until

SMALL = "[booster]\ntrees = 30\nstop_after = 10\n[uplift]\nseeds = [0]\n[lists]\ngroups = 300"


def module_of(name: str, label: str) -> Any:
    # Not by its folder on the path: `features.py` there has the name of a package.
    spec = importlib.util.spec_from_file_location(label, Path(__file__).parent / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module
    spec.loader.exec_module(module)
    return module


bench, readme = module_of("lists", "lists_benchmark"), module_of("figures", "figures_of_benchmarks")


@pytest.fixture(scope="module")
def small() -> ListWorld:
    return make_list_world(3, n_users=400, n_items=250)


@pytest.fixture(scope="module")
def toml(small: ListWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_list_world(tmp_path_factory.mktemp("lists"), small, more=SMALL)


@pytest.fixture(scope="module")
def trained(toml: Path) -> Any:
    return bench.trained_of(load_config(toml))


@pytest.fixture(scope="module")
def found(toml: Path, small: ListWorld, trained: Any) -> dict[str, Any]:
    """What the benchmark finds, the small world in every place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "world_case", lambda folder, seed: (toml, small))
        patch.setattr(bench, "ALPHAS", bench.ALPHAS[:1])
        patch.setattr(bench, "WEIGHTS", (0.5,))
        patch.setattr(bench, "COMPARED_ON", trained.prepared.config.name)
        data = bench.of_data(trained.prepared.config)
        results = dict.fromkeys(example_names(), data) | {"world0": bench.of_world(0)}
    as_written: dict[str, Any] = json.loads(json.dumps(results, allow_nan=False))
    return as_written


def test_the_figures_are_those_of_the_results(found: dict[str, Any]) -> None:
    result = bench.figures(found)
    lists, world = found["movielens"]["lists"], found["world0"]
    for key, figure in (("recall10", "recall@10"), ("ndcg10", "ndcg@10")):
        peer = lists["both"]["best_peer"][figure]
        assert result[f"{key}_gain_low"] == peer["ci95"][0] < peer["mean"]
        for part in ("first", "cut"):
            assert result[f"{key}_gain_low_{part}"] == lists["parts"][part]["all"]["best_peer"][figure]["ci95"][0]
        own, best = (lists["both"]["lists"][of][figure]["mean"] for of in ("Recommend", peer["name"]))
        assert own - best == pytest.approx(peer["mean"])
        assert result[f"{key}_of_best_movielens"] == own / best
    assert 0 < result["union_share"] == lists["parts"]["first"]["all"]["union_share"] <= 1
    assert result["true_reward_gain_low"] == world["gain"][1]
    assert result["pair_accuracy_kept"] == pytest.approx(1), "the server's Rank is the booster of shown pairs"


def test_the_worse_set_is_the_figure(found: dict[str, Any]) -> None:
    worse = json.loads(json.dumps(found["kuairand"]))
    worse["lists"]["both"]["best_peer"]["ndcg@10"]["ci95"][0] = -0.5
    worse["lists"]["parts"]["first"]["all"]["union_share"] = 0.01
    worse["pairs"]["kept"] = 0.9
    poor = {**found["world0"], "gain": [0.0, -0.25, 0.25]}
    result = bench.figures({**found, "kuairand": worse, "world1": poor})
    assert (result["ndcg10_gain_low"], result["union_share"], result["pair_accuracy_kept"]) == (-0.5, 0.01, 0.9)
    assert result["true_reward_gain_low"] == -0.25
    assert result["recall10_gain_low"] == bench.figures(found)["recall10_gain_low"]


def test_the_readme_has_a_line_of_each_set(found: dict[str, Any]) -> None:
    text = readme.lists_table({"result": found, "command": "make bench", "date": "today", "machine": "this"})
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    both, world = found["movielens"]["lists"]["both"], found["world0"]
    assert [row.split(" | ")[0] for row in rows] == [f"| {n}" for n in readme.NAMES.values()] + [
        "| generated, true reward@10"
    ]
    assert f"| {both['lists']['Recommend']['ndcg@10']['mean']:.3f} |" in rows[0]
    assert f"| {max(v for of, v in world['others'].items() if of.startswith('als')):.3f} |" in rows[2]
    gain = [f"{value:+.3f}" for value in world["gain"]]
    assert rows[2].endswith(f"| {gain[0]} [{gain[1]}, {gain[2]}] | {world['users']:,} |")


def test_what_lists_of_the_world_are_worth_is_its_truth(found: dict[str, Any], trained: Any, small: ListWorld) -> None:
    world, who = found["world0"], bench.everybody(trained.prepared, small)
    users, when = bench.in_world(trained.prepared, small, who)
    pipeline, worth = bench.pipeline_of(trained), []
    for k in range(0, len(who), 5):
        answer = pipeline.recommend(Request.of(who.requests, k, pipeline.state), 10)
        items = small.items_of(trained.prepared.catalog.item_ids, answer.item)
        chance = [float(small.reward(users[k], item, int(when[k]))) for item in items.tolist()]
        discount = 1 / np.log2(np.arange(2, 12))
        worth.append((chance @ discount[: len(chance)]) / discount.sum())
    pipeline.close()
    padded = np.full((len(who), 10), -1, np.int32)
    assert (bench.true_reward(trained.prepared, small, who, padded) == 0).all()
    assert world["users"] == len(who)
    assert world["recommend"][0] == pytest.approx(np.mean(worth), abs=4 * np.std(worth) / np.sqrt(len(worth)))
    assert world["others"][world["best"]] == max(world["others"].values())
    assert world["gain"][0] == pytest.approx(world["recommend"][0] - world["others"][world["best"]])
    assert world["oracle"] > max(world["recommend"][0], world["others"][world["best"]])
    assert {"popular", "als", "source"} == {name.split()[0] for name in world["others"]}


def test_each_design_answers_both_questions(found: dict[str, Any], trained: Any) -> None:
    designs = found["movielens"]["designs"]
    kinds = {"one, shown pairs weigh 0.5", "two", *(f"two, lists by wanted + {w} liked" for w in bench.SUMS)}
    assert set(designs) == kinds | {"liked alone", "wanted alone", "popular"}
    assert designs["two"] == {
        "pair_accuracy": designs["liked alone"]["pair_accuracy"], "ndcg@10": designs["wanted alone"]["ndcg@10"],
    }  # fmt: skip
    arms, booster = trained.arms, trained.liked.booster
    score = np.asarray(booster.predict(arms.rows("validation", trained.columns)))
    assert designs["two"]["pair_accuracy"] == pytest.approx(pair_accuracy(score, arms.pairs("validation")).value)
    assert designs["two"]["ndcg@10"] >= designs["popular"]["ndcg@10"]


def test_shown_items_have_the_scores_that_the_sources_give(trained: Any) -> None:
    p, groups = trained.prepared, trained.arms.groups["validation"]
    sources = sources_until(p, trained.plugins, p.split.t1, GIB)
    got, r = bench.scores_of_shown(p, sources, groups), groups.requests
    assert got.shape[0] == len(r.item)
    for k in range(0, len(r), 40):
        rows = slice(r.offsets[k], r.offsets[k + 1])
        for column, (source, _) in zip(got[rows].T, sources, strict=True):
            score = source.propose(Request.of(r, k, p.state), 200).score
            want = np.full(len(column), np.nan) if score is None else score(r.item[rows])
            np.testing.assert_array_equal(column, want)
    assert (~np.isnan(got)).any(axis=0).all()


def a_slice(rng: np.random.Generator, graded: bool) -> Slice:
    winner, loser = rng.permutation(6)[:4].reshape(2, 2).astype(np.int32)
    pairs = Pairs(winner, loser, rng.uniform(0.1, 3, 2).astype(np.float32), np.zeros(2, bool))
    grade = rng.integers(0, 2, 6).astype(np.int8) if graded else None
    return Slice(rng.normal(size=(6, 2)).astype(np.float32), np.repeat(np.arange(2), 3), pairs, grade)


@given(st.integers(0, 1000), st.floats(0.05, 0.95), st.booleans())
@settings(max_examples=50, deadline=None)
def test_pairs_of_both_kinds_share_the_weight(seed: int, weight: float, graded: bool) -> None:
    rng = np.random.default_rng(seed)
    shown, lists = a_slice(rng, graded), a_slice(rng, True)
    both = bench.beside(shown, lists, weight, ["a", "b"])
    score: F64 = rng.normal(size=12)
    own, other = both.pairs.weight[:2], both.pairs.weight[2:]
    assert own.sum() / both.pairs.weight.sum() == pytest.approx(weight, rel=1e-5)
    assert both.pairs.weight.mean() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(own / own.sum(), shown.pairs.weight / shown.pairs.weight.sum(), rtol=1e-5)
    np.testing.assert_allclose(other / other.sum(), lists.pairs.weight / lists.pairs.weight.sum(), rtol=1e-5)
    parts = [pair_accuracy(s, p).value for s, p in ((score[:6], shown.pairs), (score[6:], lists.pairs))]
    want = weight * parts[0] + (1 - weight) * parts[1]
    assert pair_accuracy(score, both.pairs).value == pytest.approx(want, abs=1e-5)
    assert (np.diff(both.group) >= 0).all()
    assert len(np.unique(both.group)) == 4


def test_the_command_prints_json_last_and_the_figures_of_a_whole_run_alone(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "of_world", lambda seed: found["world0"])
    monkeypatch.setattr(bench, "example", lambda data: data)
    monkeypatch.setattr(bench, "of_data", lambda data: found[data])
    some = CliRunner().invoke(bench.main, ["--data", "world", "--seeds", "2"], catch_exceptions=False)
    assert json.loads(some.output.splitlines()[-1]) == {"world0": found["world0"], "world1": found["world0"]}
    whole = CliRunner().invoke(bench.main, [], catch_exceptions=False)
    assert json.loads(whole.output.splitlines()[-1]) == bench.figures(found) | found
