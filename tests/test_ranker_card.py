"""The model card says what the bundle was trained on and how good it is."""

import json
import re
from pathlib import Path

import pytest
from served import pairlift
from world import write_world

from ranker.bundle import CARD, load_bundle
from ranker.config import load_config
from ranker.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("card")
    train(load_config(write_world(path)), path / "bundle")
    return path / "bundle"


def test_a_bundle_has_a_card_of_what_it_is(folder: Path) -> None:
    card, manifest = (folder / CARD).read_text(), json.loads((folder / "manifest.json").read_text())
    assert CARD in manifest["files"]
    sections = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert sections == ["What it is", "Intended use", "Data", "Features", "Plugins", "Figures", "Limits"]
    bundle, measured = load_bundle(folder), manifest["measured"]
    counters = [name for name in bundle.columns if "__" in name and not name.startswith("als__")]
    liked = bundle.booster.num_trees()
    for text in (
        "9,600 events of 60 users with 80 items",
        "skip (`play < 0.3`), listen (`play >= 0.3`), like (`play >= 0.9`)",
        "als: `features.baselines:ALS`. Options (durations in µs): factors = 16, regularization = 0.05",
        f"{len(counters)} counters",
        f"liked part of {liked} trees",
        f"pair_accuracy {measured['pair_accuracy']}",
        f"validation_accuracy {measured['validation_accuracy']}",
        f"{measured['pairs']['test']:,} test",
        "weighted by the difference of their grades' ranks",
        "ndcg@10 of lists",
    ):
        assert text in card, text
    assert 0.5 < measured["validation_accuracy"] < 1
    assert str(folder.parent) not in card


def test_show_prints_the_same_figures(folder: Path) -> None:
    code, said = pairlift("bundle", "show", folder)
    assert code == 0
    figures = (folder / CARD).read_text().partition("## Figures")[2].partition("## Limits")[0]
    shown = {" ".join(line.split()) for line in said.splitlines()}
    lines = [line.removeprefix("- ") for line in figures.strip().splitlines()[1:]]
    assert len(lines) > 10
    assert set(lines) <= shown


def test_drawn_losers_are_a_limit_and_set_weights_are_told(tmp_path: Path) -> None:
    weights = '[pairing.weights]\n"like > sampled" = 2\n"like > skip" = 1\n"like > listen" = 1\n"listen > skip" = 1\n'
    weights += '"listen > sampled" = 1\n"skip > sampled" = 1\n'
    path = write_world(tmp_path, pairing=f"negatives = 2\n{weights}", where="play >= 0.9")
    train(load_config(path), tmp_path / "bundle")
    card = (tmp_path / "bundle" / CARD).read_text()
    assert "Losers of the pairs were drawn" in card
    assert "weighted like > sampled: 2, like > skip: 1" in card
