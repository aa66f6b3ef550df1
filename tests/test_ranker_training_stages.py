"""Stages are reused, remade and never half written."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from world import write_world

from features.errors import PairliftError
from ranker.config import load_config
from ranker.train import train
from ranker.training.stages import code_hash, run_stage


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
