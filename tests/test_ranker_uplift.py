"""The report on worlds with a known answer: a column that knows is useful, noise is not, and the figures add up."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from world import make_world

from features.errors import PairliftError
from features.pairing.groups import Groups
from features.schema import Requests
from ranker.config import BoosterSettings, load_config
from ranker.train import train
from ranker.training.booster import check_params
from ranker.training.stages import code_hash, run_stage
from ranker.training.validate import validation_text
from ranker.uplift.report import _shuffle, uplift_report
from ranker.uplift.table import as_table

TOML = """
name = "world"
[data]
root = "."
[events]
source = "log.parquet"
ts = "make_timestamp(ts)"
{request}
[events.feedback]
play = "play"
[[grades]]
name = "skip"
when = "play < 0.3"
[[grades]]
name = "listen"
when = "play >= 0.3"
[[grades]]
name = "like"
when = "play >= 0.9"
[pairing]
window = "30m"
{pairing}
[plugins.noise]
class = "features.baselines:Noise"
[plugins.als]
class = "features.baselines:ALS"
factors = 16
[ranker]
plugins = ["als"]
[booster]
trees = 60
stop_after = 10
[uplift]
seeds = [0, 1, 2]
fits = 2
[serve]
plugin_deadline = "20s"
"""


def write_world(
    folder: Path, pairing: str = "", request: str = "", where: str = "true", rows: str = "", **world: Any
) -> Path:
    """Write a world's log as Parquet and its TOML; return the TOML. rows: a SELECT over the log's columns."""
    log = make_world(7, n_users=60, requests_per_user=20, **world).log
    shown = pa.table(  # noqa: F841  (DuckDB reads it by its name)
        {"user_id": log.user, "item_id": log.item, "ts": log.ts, "play": log.feedback[:, 0], "request": log.request}
    )
    rows = f"{rows or 'SELECT *'} FROM (SELECT * REPLACE (nullif(play, 'nan'::FLOAT) AS play) FROM shown WHERE {where})"
    duckdb.sql(f"COPY ({rows}) TO '{folder}/log.parquet'")
    (folder / "pairlift.toml").write_text(TOML.format(pairing=pairing, request=request))
    return folder / "pairlift.toml"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    config = load_config(write_world(tmp_path_factory.mktemp("world")))
    return {name: uplift_report(config, name) for name in ("als", "noise")}


def test_a_column_that_knows_is_useful(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["als"]
    assert report["useful"]
    assert report["ci95"][0] > 0.1
    assert report["with"] > report["without"] + 0.1
    assert report["importance"]["als__dot"] > 0.1


def test_noise_and_shuffled_columns_are_not(reports: dict[str, dict[str, Any]]) -> None:
    noise = reports["noise"]
    assert not noise["useful"]
    assert noise["ci95"][0] <= 0 <= noise["ci95"][1]
    for report in reports.values():
        assert not report["shuffled"]["above_zero"]
        assert abs(report["random"] - 0.5) < 0.05


def test_the_figures_agree_with_each_other(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["als"]
    assert report["relative_uplift"] == pytest.approx(report["with"] / report["without"] - 1)
    catboost, ties = report["pair_accuracy_catboost"], report["tie_share"]
    assert report["with"] == pytest.approx(catboost["with"] + ties["with"] / 2)
    assert report["effective_users"] <= report["users"]
    assert np.shape(report["trees"]["with"]) == (report["fits"], len(report["seeds"])) == (2, 3)
    assert np.shape(report["trees"]["without"]) == (1, 3)
    sides = [report["missingness"][name]["pairs"] for name in ("both_sides", "one_side", "no_side")]
    assert sum(sides) == report["pairs"]
    for name in ("ndcg@10", "map", "mrr", "auc"):
        assert 0.3 < report[name]["without"] < report[name]["with"] <= 1
    for kind in report["slices"].values():
        assert sum(part["pairs"] for part in kind.values()) == report["pairs"]
    json.dumps(report, allow_nan=False)
    assert "als is useful" in as_table(report)
    for name in ("NDCG@10", "MAP", "MRR", "AUC within groups"):
        assert re.search(rf"^{name} +0\.\d{{4}} +0\.\d{{4}}$", as_table(report), re.MULTILINE)


def test_both_arms_are_resumed_and_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(write_world(tmp_path))
    first = uplift_report(config, "noise")
    monkeypatch.setattr("ranker.training.arms.fit_booster", None)  # a second run must not fit
    assert uplift_report(config, "noise") == first


def test_drawn_pairs_are_never_mixed_with_shown_ones(tmp_path: Path) -> None:
    report = uplift_report(load_config(write_world(tmp_path, pairing="negatives = 2")), "noise")
    assert report["pairs_kind"] == "shown"
    assert report["sampled"]["pairs"] > 0
    positives = tmp_path / "positives"
    positives.mkdir()
    config = load_config(write_world(positives, pairing="negatives = 4", where="play >= 0.9"))
    report = uplift_report(config, "als")
    assert report["pairs_kind"] == "sampled"
    assert "sampled" not in report
    assert report["ndcg@10"]["with"] > 0  # drawn losers are worse than the log's only grade


def test_a_log_of_positives_without_negatives_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(PairliftError, match=r"pairing\.negatives"):
        train(load_config(write_world(tmp_path, where="play >= 0.9")), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_stages_are_reused_remade_and_never_half_written(tmp_path: Path) -> None:
    made: list[int] = []

    def make(folder: Path) -> None:
        made.append(1)
        (folder / "x").write_text("done")

    for inputs in (1, 1, 2):
        assert (run_stage(tmp_path, "s", inputs, make) / "x").read_text() == "done"
    assert len(made) == 2

    def fail(folder: Path) -> None:
        (folder / "y").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, "s", 3, fail)
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["x"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "s", "s.key"]


def test_what_a_stage_made_is_made_again_when_it_is_taken_away(tmp_path: Path) -> None:
    folder = run_stage(tmp_path, "s", 1, lambda f: (f / "x").touch())
    (folder / "x").unlink()
    assert (run_stage(tmp_path, "s", 1, lambda f: (f / "x").write_text("again")) / "x").exists()


def test_two_runs_in_one_work_folder_wait_for_each_other(tmp_path: Path) -> None:
    made: list[int] = []

    def make(folder: Path) -> None:
        made.append(1)
        time.sleep(0.2)
        (folder / "x").touch()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: run_stage(tmp_path, "s", 1, make), range(4)))
    assert (len(made), set(found)) == (1, {tmp_path / "s"})


def test_a_plugin_of_one_file_is_fitted_anew_when_its_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "lone_module.py").write_text("VALUE = 1")
    first = code_hash("lone_module")
    (tmp_path / "lone_module.py").write_text("VALUE = 2")
    code_hash.cache_clear()
    assert code_hash("lone_module") != first


def test_columns_that_are_equal_within_a_group_are_shuffled_between_groups() -> None:
    offsets = np.array([0, 2, 4, 6])
    requests = Requests(
        np.zeros(3, np.int32), np.zeros(3, np.int64), np.zeros(3, np.int16), offsets, np.zeros(6, np.int32)
    )
    groups = Groups(requests, np.zeros(3, np.int8), np.zeros(3, bool), np.zeros(6, np.int8), np.zeros(6, np.int64))
    values = np.stack([np.repeat([1.0, np.nan, 3.0], 2), np.arange(6.0)], axis=1).astype(np.float32)
    seen = set()
    for seed in range(20):
        shuffled = _shuffle(values, groups, seed)
        np.testing.assert_array_equal(np.sort(shuffled[:, 0]), np.sort(values[:, 0]))
        np.testing.assert_array_equal(shuffled[::2, 0], shuffled[1::2, 0])
        assert (shuffled[:, 1] // 2 == values[:, 1] // 2).all()
        seen.add(str(shuffled[:, 0]))
    assert len(seen) > 3


def test_a_small_log_is_trained_and_told_to_be_small(tmp_path: Path) -> None:
    config = write_world(tmp_path, where="user_id < 3")
    report = uplift_report(load_config(config), "noise")
    json.dumps(report, allow_nan=False)
    assert report["pairs"] < 300
    assert "WARNING: only 3 seeds" in as_table(report)
    assert "WARNING: only 2 fits of the plugin" in as_table(report)
    assert "will hardly be shown" in validation_text(load_config(config))


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"num_leavs": 7}, "did you mean 'num_leaves'"),
        ({"n_estimators": 3}, "Pairlift sets this"),
        ({"random_state": 3}, "Pairlift sets this"),
        ({"min_data": 3, "eta": 0.1}, ""),
    ],
)
def test_booster_parameters_are_lightgbms_and_not_ours(params: dict[str, Any], says: str) -> None:
    if says:
        with pytest.raises(PairliftError, match=says):
            check_params(BoosterSettings(params=params))
    else:
        check_params(BoosterSettings(params=params))
