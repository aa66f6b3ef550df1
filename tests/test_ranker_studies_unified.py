"""The study of surfaces: a world whose lists start from items and words, and one model against one for each surface."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from served import pairlift
from world import write_world

from features.errors import PairliftError
from ranker.config import load_config
from ranker.studies.surfaces_world import LIST, SURFACES, make_surfaces_world
from ranker.studies.unified import Bench, run_unified

QUICK = """
[booster]
trees = 25
stop_after = 5
[uplift]
seeds = [0, 1]
"""


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of 1,200 lists, with ALS."""
    folder = tmp_path_factory.mktemp("surfaces") / "world"
    make_surfaces_world(folder, 0.005, seed=1)
    text = re.sub(r"\[plugins\.two_tower\]\nclass.*\n", "", (folder / "pairlift.toml").read_text())
    (folder / "pairlift.toml").write_text(text + QUICK)
    return folder / "pairlift.toml"


@pytest.fixture(scope="module")
def report(toml: Path) -> dict[str, Any]:
    out = toml.parent / "out"
    options = ["--study", "unified", "--truth", toml.parent / "truth.parquet", "--out", out]
    code, said = pairlift("study", toml, *options)
    assert code == 0, said
    assert (out / "unified.md").read_text() in said
    assert {path.suffix for path in out.iterdir()} == {".md", ".csv", ".svg", ".json"}
    found: dict[str, Any] = json.loads((out / "unified.json").read_text())
    return found


def test_a_seed_gives_one_world_whose_lists_say_what_they_start_from(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_surfaces_world(tmp_path / name, 0.001, seed)
    one, same, other = (pq.read_table(tmp_path / world / "events.parquet") for world in "abc")
    assert one == same
    assert one != other
    rows = one.to_pandas()
    assert rows.ts.is_monotonic_increasing
    assert rows.ts.is_unique
    lists = rows.groupby("request_id")
    assert (lists.item_id.nunique() == LIST).all()
    for column in ("surface", "source_item", "query", "user_id"):
        assert (lists[column].nunique(dropna=False) == 1).all()
    assert set(rows.surface) == set(SURFACES)
    np.testing.assert_array_equal(rows.source_item.notna(), rows.surface == "related")
    np.testing.assert_array_equal(rows["query"].notna(), rows.surface == "search")
    assert (rows.item_id != rows.source_item).all()
    with pytest.raises(PairliftError, match="an empty folder, or none, was expected"):
        make_surfaces_world(tmp_path / "a", 0.001)


def test_the_expected_grade_is_that_of_what_happened(tmp_path: Path) -> None:
    make_surfaces_world(tmp_path / "world", 0.02, 5)
    grade = pq.read_table(tmp_path / "world" / "events.parquet")["feedback"].to_numpy()
    expected = pq.read_table(tmp_path / "world" / "truth.parquet")["expected"].to_numpy().astype(np.float64)
    for low, high in ((0, 0.3), (0.3, 1.0), (1.0, 2.0)):
        some = (expected >= low) & (expected < high)
        assert some.sum() > 1000
        assert abs(grade[some].mean() - expected[some].mean()) < 5 / np.sqrt(some.sum())


def test_what_a_list_starts_from_orders_it(report: dict[str, Any]) -> None:
    """The one model without these columns is worse where there is such a thing, and the best order is above all."""
    found = {arm["arm"]: arm for arm in report["arms"]}
    assert list(found) == ["all", *SURFACES]
    assert {"source_item_cooccurrence", "source_item_same_maker", "query_share", "als__source_item"} <= set(
        report["told"]
    )
    for surface in ("related", "search"):
        assert found[surface]["over"]["untold"]["relative_uplift"] > 0.02
    for arm in found.values():
        assert arm["best"] > max(arm["pair_accuracy"].values()) > 0.5
        low, high = arm["ci95"]
        assert low < arm["relative_uplift"] < high
        assert arm["relative_uplift"] == pytest.approx(arm["pair_accuracy"]["one"] / arm["pair_accuracy"]["own"] - 1)
    assert sum(found[surface]["pairs"] for surface in SURFACES) == found["all"]["pairs"]


def test_an_own_model_learns_from_its_surface_alone(toml: Path) -> None:
    bench = Bench.of(load_config(toml))
    own = bench.only(1)
    for part, groups in own.arms.groups.items():
        assert set(groups.requests.surface) == {1}
        of = bench.arms.groups[part].requests
        rows = (of.surface == 1)[of.row_request()]
        np.testing.assert_array_equal(own.arms.base.values[part], bench.arms.base.values[part][rows])
        np.testing.assert_array_equal(groups.requests.item, of.item[rows])
        assert len(own.columns.values[part]) == len(own.arms.base.values[part])
    untold = bench.without(bench.told)
    assert set(bench.names) - set(untold.names) == set(bench.told)
    assert untold.arms.base.values["test"].shape[1] == len(untold.arms.base.names)


def test_a_log_of_one_surface_is_refused(tmp_path: Path) -> None:
    config = load_config(write_world(tmp_path, request='request_id = "request"', request_ids=True))
    with pytest.raises(PairliftError, match=r"\[events\] surface names none"):
        run_unified(config)
    alone = load_config(write_world(tmp_path, request='surface = "\'feed\'"\nrequest_id = "request"', request_ids=True))
    with pytest.raises(PairliftError, match="needs two surfaces with pairs in each period, found 1"):
        run_unified(alone)
