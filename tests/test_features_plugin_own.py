"""The plugin of one's own that stands in the README: as it is written there, it holds what every plugin must hold."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from contracts import PluginContract
from structure import ROOT
from world import make_world, write_world

from features.errors import PairliftError
from features.plugin import FeaturePlugin, plugin_class
from ranker.bundle import load_bundle
from ranker.config import load_config
from ranker.train import train


def written() -> str:
    (found,) = re.findall(
        r"```python\n(# mine\.py[^\n]*\[plugins\.mine\].*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    return str(found)


@pytest.fixture(scope="module", autouse=True)
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `mine.py`, and of a TOML beside it."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(written())
    path = write_world(folder)
    world = make_world(7, n_users=60, requests_per_user=20)
    genre = next(a for a in world.catalog.item_attributes if a.name == "genre")
    category = [genre.values[code] if code >= 0 else None for code in genre.codes]
    pq.write_table(pa.table({"item_id": np.arange(len(category)), "category": category}), folder / "items.parquet")
    text = path.read_text().replace('plugins = ["als"]', 'plugins = ["mine"]')
    items = '[items]\nsource = "items.parquet"\n[items.columns]\ncategory = "category"\n'
    path.write_text(f'{text}{items}[plugins.mine]\nclass = "mine:Familiar"\nattribute = "category"\n')
    load_config(path)  # which finds modules beside the TOML
    return folder


@cache
def familiar() -> type[FeaturePlugin]:
    return plugin_class("mine:Familiar")


class TestFamiliar(PluginContract):
    def make(self) -> FeaturePlugin:
        return familiar()(attribute="genre", latest=20)


def test_it_has_about_30_lines() -> None:
    code = written()
    assert 25 <= len([line for line in code[code.index("class ") :].splitlines() if line.strip()]) <= 33


def test_a_ranker_is_trained_with_it_and_is_served(mine: Path) -> None:
    config = load_config(mine / "pairlift.toml")
    measured = train(config, mine / "bundle")
    bundle = load_bundle(mine / "bundle")
    assert "mine__share" in bundle.columns
    assert measured["pair_accuracy"] > 0.6
    values = bundle.plugins["mine"].codes  # type: ignore[attr-defined]
    assert (values >= 0).sum() > 60


def test_an_attribute_that_is_not_there_is_told(mine: Path) -> None:
    path = mine / "pairlift.toml"
    path.with_name("wrong.toml").write_text(path.read_text().replace('attribute = "category"', 'attribute = "genre"'))
    with pytest.raises(PairliftError, match=r"one of \['category'\] was expected, found 'genre'"):
        train(load_config(path.with_name("wrong.toml")), mine / "wrong")
