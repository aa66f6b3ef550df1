"""A network that orders Rank in the booster's place: trained, bundled, served, explained, and compared in a study."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from served import pairlift, serving
from world import Parts, bundle_of, write_world

from features.errors import PairliftError
from features.schema import F32, F64
from neural.final import NetworkRanker
from ranker.bundle import NETWORK, Bundle, load_bundle
from ranker.cli.ask import rank, recommend
from ranker.cli.train import worse_than_booster
from ranker.columns import Columns
from ranker.config import load_config
from ranker.export.onnx import export_forest
from ranker.metrics.pair_accuracy import pair_accuracy
from ranker.pipeline import Pipeline
from ranker.request import Request
from ranker.studies.run import run_study
from ranker.studies.variants import STUDIES, Variant
from ranker.training.arms import Arms, of_kind
from ranker.training.network import checked, network_stage
from ranker.training.plugins import plugin_stage
from ranker.training.prepared import prepare

#: tables of a network that fits in seconds
NETWORK_TOML = """
[network]
width = 16
networks = 1
epochs = 4
learning_rate = 0.01
threads = 1
"""


def network_world(folder: Path) -> Path:
    """Write a log and a TOML whose Rank is ordered by a network; return the TOML."""
    toml = write_world(folder)
    text = toml.read_text().replace('plugins = ["als"]', 'plugins = ["als"]\nmodel = "network"')
    toml.write_text(text.replace("trees = 60", "trees = 12") + NETWORK_TOML)
    return toml


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained bundle, `bundle`, and of what the training printed."""
    place = tmp_path_factory.mktemp("network")
    code, said = pairlift("train", network_world(place), "--out", place / "bundle")
    assert code == 0, said
    (place / "said").write_text(said)
    return place


@pytest.fixture(scope="module")
def arms(folder: Path) -> Arms:
    return Arms.of(prepare(load_config(folder / "pairlift.toml")))


def columns_of_als(arms: Arms) -> Columns:
    return arms.plugin_columns("als", plugin_stage(arms.prepared, "als", 0))


# Training


def test_what_is_measured_is_what_is_bundled_and_the_booster_stands_beside(folder: Path, arms: Arms) -> None:
    bundle, manifest = load_bundle(folder / "bundle"), json.loads((folder / "bundle" / "manifest.json").read_text())
    assert isinstance(bundle.network, NetworkRanker)
    test, rows = of_kind(arms.pairs("test"), arms.kind), arms.rows("test", columns_of_als(arms))
    measured = manifest["measured"]
    assert pair_accuracy(bundle.score(rows), test).value == pytest.approx(measured["pair_accuracy"], abs=1e-9)
    of_booster = np.asarray(bundle.booster.predict(rows, raw_score=True))
    assert pair_accuracy(of_booster, test).value == pytest.approx(measured["booster_pair_accuracy"], abs=1e-9)
    assert measured["pair_accuracy"] > 0.6
    assert measured["pair_accuracy"] != measured["booster_pair_accuracy"]
    worse = measured["validation_accuracy"] < measured["booster_validation_accuracy"]
    assert worse == ("WARNING: the network's PairAccuracy on the validation slice" in (folder / "said").read_text())
    assert worse_than_booster({"validation_accuracy": 0.6, "booster_validation_accuracy": 0.7})
    assert measured["network_parameters"] == bundle.network.report["parameters"] > 1000
    assert (
        f"test PairAccuracy {measured['pair_accuracy']:.4f}, of the network (the booster, "
        in (folder / "said").read_text()
    )
    assert {"network/ranker.onnx", "network/network.json"} <= manifest["files"].keys()
    importance = json.loads((folder / "bundle" / "importance.json").read_text())
    assert set(importance) == {"booster", "wanted"}
    size = f"a network (`neural.final:NetworkRanker`, {measured['network_parameters']:,} parameters; trees, "
    assert size in (folder / "bundle" / "MODEL_CARD.md").read_text()
    shown = pairlift("bundle", "show", folder / "bundle")[1]
    assert "booster: column" in shown
    figures = {line.split()[0] for line in shown.splitlines() if line}
    assert {"booster_trees", "booster_at_cap"} <= figures
    assert not {"trees", "at_cap"} & figures


def test_the_network_learns_from_the_slices_of_the_booster(arms: Arms, folder: Path) -> None:
    columns, fitted = columns_of_als(arms), NetworkRanker(width=16, networks=1, epochs=4, learning_rate=0.01, threads=1)
    spec, train, validation = arms.prepared.spec, *(arms.slice(part, columns, 0) for part in ("train", "validation"))
    fitted.fit([*spec.columns, *columns.names], spec.categorical, train, validation, 0)
    stage = network_stage(arms, "als", columns, 0)
    np.testing.assert_array_equal(fitted.score(arms.rows("test", columns)), stage.scores)
    # The stage was made by the training, and is reused.
    assert sorted(path.name for path in (folder / "work" / "networks").iterdir() if path.is_dir()) == ["als-seed0"]


def test_without_the_key_there_is_no_network(folder: Path, tmp_path: Path, parts: Parts) -> None:
    assert bundle_of(parts).network is None
    text = (folder / "pairlift.toml").read_text()
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(text.replace('model = "network"', 'model = "forest"'))
    code, said = pairlift("validate", wrong)
    assert (code, "ranker.model" in said, "'booster' or 'network'" in said) == (2, True, True), said
    wrong.write_text(text.replace("networks = 1", "networks = 0").replace('root = "."', f'root = "{folder}"'))
    for words in (("validate", wrong), ("train", wrong, "--out", tmp_path / "none")):
        code, said = pairlift(*words)
        assert (code, "[network]: networks" in said) == (2, True), said
    wrong.write_text(text.replace("width = 16", "widht = 16").replace('root = "."', f'root = "{folder}"'))
    code, said = pairlift("train", wrong, "--out", tmp_path / "bundle")
    assert (code, "[network]: widht: unknown key (did you mean 'width'?)" in said) == (2, True), said


class Broken:
    """A ranker whose scores are not one finite number for each row."""

    def __init__(self, scores: F64) -> None:
        self.scores = scores

    def score(self, matrix: F32) -> F64:
        return self.scores


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (np.zeros((3, 1)), r"3 finite scores were expected of score\(\), found an array of shape \(3, 1\), 3 of them"),
        (np.array([1, np.nan, 2]), r"found an array of shape \(3,\), 2 of them finite"),
    ],
)
def test_scores_of_another_shape_or_that_are_not_finite_are_refused(scores: F64, says: str) -> None:
    with pytest.raises(PairliftError, match=says):
        checked(Broken(scores), np.zeros((3, 2), np.float32))  # type: ignore[arg-type]


# Serving


def test_rank_is_ordered_by_the_network_and_recommend_by_the_wanted_part(folder: Path) -> None:
    bundle = load_bundle(folder / "bundle")
    assert bundle.network is not None
    pipeline = Pipeline(bundle)
    items, now = np.arange(40, dtype=np.int32), bundle.state.end
    request = Request(3, now, state=bundle.state, explain=True, keep_values=True)
    answer = pipeline.rank(request, items)
    assert answer.values is not None
    np.testing.assert_allclose(bundle.network.score(answer.values), answer.score, rtol=1e-4, atol=1e-5)
    assert (np.diff(answer.score) <= 0).all()
    of_booster = np.asarray(bundle.booster.predict(answer.values, raw_score=True))
    assert (np.argsort(-of_booster, kind="stable") != np.arange(40)).any()
    assert answer.detail is not None
    assert answer.detail.contributions is None
    np.testing.assert_allclose(answer.detail.liked, answer.score, rtol=1e-4, atol=1e-5)
    listed = pipeline.recommend(request, 10)
    assert listed.detail is not None
    assert listed.detail.contributions is not None  # of the trees that ordered it
    sums = listed.detail.contributions.sum(axis=1) + listed.detail.base
    np.testing.assert_allclose(sums, listed.score, atol=1e-4)
    np.testing.assert_allclose(listed.detail.liked, bundle.network.score(listed.values), rtol=1e-4, atol=1e-5)
    assert pipeline.warm() == []
    pipeline.close()
    alone = Pipeline(replace(bundle, wanted=None))  # nothing else is there to order by
    listed = alone.recommend(request, 10)
    np.testing.assert_allclose(bundle.network.score(listed.values), listed.score, rtol=1e-4, atol=1e-5)
    assert listed.detail is not None
    assert listed.detail.contributions is None
    alone.close()


def ask(command: object, *words: str) -> Result:
    return CliRunner().invoke(command, list(words))  # type: ignore[arg-type]


def test_the_commands_ask_a_served_network_and_explain_says_that_it_has_no_parts(folder: Path) -> None:
    bundle = load_bundle(folder / "bundle")
    with serving(bundle, clock="snapshot") as server:
        asked = ("--user", "3", "--items", "5,1,2", "--address", server.address)
        explained = ask(rank, *asked, "--explain")
        assert explained.exit_code == 0, explained.output
        assert "a network scored, whose scores have no parts by feature" in explained.output
        assert "moved most" not in explained.output
        assert "a network scored" not in ask(rank, *asked).output
        plain = json.loads(ask(rank, *asked, "--explain", "--json").output)
        features = plain["items"][0]["features"]
        assert [feature["name"] for feature in features] == list(bundle.columns)
        assert {feature["contribution"] for feature in features} == {None}
        assert any(feature["value"] is not None for feature in features)
        scores = [item["score"] for item in plain["items"]]
        assert scores == sorted(scores, reverse=True)
        listed = ask(recommend, "--user", "3", "--k", "5", "--address", server.address, "--explain")
        assert "moved most by" in listed.output


def test_a_changed_byte_of_the_network_is_refused_and_it_is_no_forest(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PairliftError, match="a network orders Rank, no forest does"):
        export_forest(folder / "bundle", tmp_path / "forest.onnx", "liked")
    assert export_forest(folder / "bundle", tmp_path / "forest.onnx", "wanted") > 0
    graph = folder / "bundle" / NETWORK / "ranker.onnx"
    content = graph.read_bytes()
    try:
        graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(PairliftError, match=r"network/ranker\.onnx: changed"):
            load_bundle(folder / "bundle")
    finally:
        graph.write_bytes(content)


def test_an_earlier_bundle_gives_its_trees_and_the_network_is_trained_anew(folder: Path, tmp_path: Path) -> None:
    words = ("train", folder / "pairlift.toml", "--out", tmp_path / "again", "--warm-start", folder / "bundle")
    code, said = pairlift(*words)
    assert (code, "of the network (the booster, " in said) == (0, True), said
    again, before = load_bundle(tmp_path / "again"), load_bundle(folder / "bundle")
    assert again.booster.num_trees() >= before.booster.num_trees()
    assert isinstance(again, Bundle)
    assert again.network is not None


# The study


def test_the_study_compares_networks_with_boosters_on_the_same_pairs(folder: Path, arms: Arms) -> None:
    config = load_config(folder / "pairlift.toml")
    variants = [Variant("booster", "als"), Variant("network", "als", network=True)]
    seeds = {"uplift": config.uplift.model_copy(update={"fits": 1, "seeds": [0, 1]})}
    config = config.model_copy(update=seeds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STUDIES, "rankers", replace(STUDIES["rankers"], of=lambda _: variants))
        report = run_study(config, "rankers", "als")
        again = run_study(config, "rankers", "als")
    assert again["arms"] == report["arms"]
    booster, network = report["arms"]
    columns, test = columns_of_als(arms), of_kind(arms.pairs("test"), arms.kind)
    of = {
        "booster": [arms.fit(f"als-fit0-{seed}", columns, seed).scores for seed in (0, 1)],
        "network": [network_stage(arms, f"als-fit0-{seed}", columns, seed).scores for seed in (0, 1)],
    }
    for arm in (booster, network):
        expected = np.mean([pair_accuracy(score, test).value for score in of[arm["arm"]]])
        assert arm["pair_accuracy"] == pytest.approx(expected, abs=1e-9)
    gain = network["pair_accuracy"] / booster["pair_accuracy"] - 1
    assert network["over_first"]["relative_uplift"] == pytest.approx(gain, abs=1e-9)
    low, high = network["over_first"]["ci95"]
    assert low < gain < high
