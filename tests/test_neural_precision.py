"""The trunk in int8: what it changes is small, measured, and not due to whose vectors are computed beside."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from contracts import RetrievalContract, check_serves_without, fit_data
from world import SMALL_TOWERS, World

from features.pairing.groups import make_groups
from features.pairing.split import make_split
from features.plugin import FeaturePlugin
from features.schema import Requests
from features.settings import PairingSettings, SplitSettings
from features.state.histories import Histories
from neural.runtime import INT8_TRUNK, TRUNK
from neural.two_tower import TwoTower

INT8 = {**SMALL_TOWERS, "precision": "int8"}


class TestTwoTowerInInt8(RetrievalContract):
    exact = False

    def make(self) -> FeaturePlugin:
        return TwoTower(**INT8)


@pytest.fixture(scope="module")
def fitted(world: World) -> tuple[dict[str, TwoTower], Requests, Histories]:
    split, plugins = make_split(SplitSettings(), world.log, "UTC"), {}
    for precision in ("float32", "int8"):  # of whole histories, as training reads them then
        plugins[precision] = TwoTower(**{**SMALL_TOWERS, "history": 200, "precision": precision})
        plugins[precision].fit(fit_data(world, split))
    requests = make_groups(world.log, PairingSettings(), split).of("test").requests.slice(0, 60)
    return plugins, requests, Histories.build(world.log, world.catalog.n_users)


def test_what_int8_changes_is_reported_and_small(fitted: Any) -> None:
    plugins, requests, histories = fitted
    assert "int8" not in plugins["float32"].report
    found = plugins["int8"].report["int8"]
    assert 0 < found["value_change"] < 0.1
    last = plugins["float32"].report["epochs"]
    assert found["pair_accuracy_float32"] == pytest.approx(max(epoch["validation"] for epoch in last), abs=1e-3)
    assert found["pair_accuracy_int8"] == pytest.approx(found["pair_accuracy_float32"], abs=0.02)
    values = [plugin.values(requests, histories)[:, 0] for plugin in plugins.values()]
    moved = np.sqrt(np.mean((values[1] - values[0]) ** 2)) / values[0].std()
    assert 0 < moved < 0.1


def test_int8_takes_the_place_of_the_trunk_and_serves_without_what_made_it(fitted: Any, tmp_path: Path) -> None:
    plugins, requests, histories = fitted
    (tmp_path / "saved").mkdir()
    plugins["int8"].save(tmp_path / "saved")
    assert not (tmp_path / "saved" / TRUNK).exists()
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "saved" / INT8_TRUNK)).graph.node]
    assert kinds.count("MatMulInteger") > 8
    assert "MatMul" not in kinds
    (tmp_path / "served").mkdir()
    as_of = int(requests.as_of[0])
    check_serves_without({"torch", "onnx"}, plugins["int8"], histories, as_of, tmp_path / "served")
