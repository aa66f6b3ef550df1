"""The booster's columns: which of a plugin's are categories, and that they are so from the fit to the server."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from world import World, train_parts, write_world

from features.baselines import ALS, Noise
from features.errors import PairliftError
from features.plugin import VectorPlugin, has_vectors
from features.schema import one_request
from ranker.bundle import load_bundle, read_manifest
from ranker.columns import Columns, categories_of, demand, full_matrix, plugin_categories
from ranker.config import load_config
from ranker.train import train


class Coded(ALS):
    categorical: tuple[str, ...] = ("dot",)


def test_a_plugins_categories_are_named_as_its_columns_are() -> None:
    assert plugin_categories("als", ALS()) == []
    assert plugin_categories("coded", Coded()) == ["coded__dot"]
    wrong = Coded()
    wrong.categorical = ("code",)
    with pytest.raises(PairliftError, match=r"\[plugins.coded\] categorical: of its columns dot .* found 'code'"):
        plugin_categories("coded", wrong)


class Halved(Noise):
    """Has item vectors, and none of users."""

    item_vectors = np.zeros((3, 2), np.float32)


def test_whether_a_plugin_has_vectors_is_what_its_protocol_says() -> None:
    for plugin, has in ((ALS(), True), (Noise(), False), (Halved(), False)):
        assert has_vectors(plugin) is has is isinstance(plugin, VectorPlugin)


def test_a_demand_that_is_no_number_is_none() -> None:
    rows = np.array([[7, 1.5], [7, np.nan], [7, np.inf], [7, -np.inf]], np.float32)
    assert demand(rows, ("hour", "source__popular")).tolist() == [1.5, 0, 0, 0]
    assert demand(rows, ("hour", "source__nearest")).tolist() == [0, 0, 0, 0]


def test_joined_columns_keep_their_categories() -> None:
    values = {"train": np.zeros((2, 1), np.float32)}
    parts = [Columns(("a",), values, ("a",)), Columns(), Columns(("b",), values), Columns(("c",), values, ("c",))]
    joined = Columns.joined(parts)
    assert joined.names == ("a", "b", "c")
    assert joined.categorical == ("a", "c")
    assert Columns.joined([]).categorical == ()


def test_the_categories_of_all_plugins_stand_behind_the_specs(world: World) -> None:
    spec = train_parts(world).spec
    assert categories_of(spec, {"als": ALS(), "coded": Coded()}) == [*spec.categorical, "coded__dot"]


def infos(booster: Any) -> dict[str, str]:
    """Return LightGBM's own words of each feature: `0:1:2` for a category, `[low:high]` for a number."""
    found = re.search(r"^feature_infos=(.*)$", booster.model_to_string(), re.MULTILINE)
    assert found is not None
    return dict(zip(booster.feature_name(), found[1].split(" "), strict=True))


def test_semantic_ids_are_categories_in_both_parts_and_in_the_server(tmp_path: Path) -> None:
    path = write_world(tmp_path)
    ids = '[plugins.ids]\nclass = "neural.semantic_ids:SemanticIds"\nlevels = 2\ncodes = 4\nfactors = 8\n'
    path.write_text(path.read_text().replace('plugins = ["als"]', 'plugins = ["ids", "als"]') + ids)
    train(load_config(path), tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    codes = ["ids__code_1", "ids__code_2"]
    assert read_manifest(tmp_path / "bundle")["categorical"] == codes
    assert bundle.wanted is not None
    for booster in (bundle.booster, bundle.wanted):
        said = infos(booster)
        assert all(re.fullmatch(r"(-1:)?\d+(:\d+)*", said[code]) for code in codes), said
        assert said["als__dot"].startswith("[")
    used = dict(zip(bundle.booster.feature_name(), bundle.booster.feature_importance(), strict=True))
    assert sum(used[code] for code in codes) > 0
    assert bundle.scorer is not None
    asked = one_request(3, bundle.state.end, -1, np.arange(-1, 60, dtype=np.int32))
    matrix = full_matrix(bundle.state, bundle.spec, bundle.plugins, asked)
    assert len(np.unique(matrix[:, bundle.columns.index(codes[0])])) > 3
    np.testing.assert_allclose(bundle.scorer.score(matrix), bundle.booster.predict(matrix, raw_score=True), rtol=1e-9)
