"""Fits of plugins in processes of their own: what they leave, what is left out, and what fails."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest
from world import write_world

from features.errors import PairliftError
from features.files import made_folder
from ranker.config import Config, load_config
from ranker.training import beside as module
from ranker.training.beside import Wanted, fit_beside
from ranker.training.plugins import plugin_is_fitted, plugin_seconds, plugin_stage, refit_stage
from ranker.training.prepared import prepare

BROKEN = """
import time
from pathlib import Path

from features.baselines import Noise
from features.errors import PairliftError


class Broken(Noise):

    def fit(self, data):
        raise OSError("no room")


class Told(Noise):

    def fit(self, data):
        raise PairliftError("the loss is not finite")


class Endless(Noise):

    def fit(self, data):
        Path(__file__).with_name("begun").touch()
        time.sleep(600)
"""


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cores", lambda: 2)


def imported(folder: Path, more: str = "") -> Config:
    made_folder(folder)
    toml = write_world(folder)
    toml.write_text(toml.read_text() + more)
    config = load_config(toml)
    prepare(config)
    return config


def fitted(config: Config, name: str = "als") -> list[bool]:
    found = [plugin_is_fitted(config, name, seed) for seed in (0, 1)]
    return [*found, plugin_is_fitted(config, name, 0, cut=True)]


def all_of(config: Config, name: str = "als") -> list[Wanted]:
    wanted = [Wanted(config=config, name=name, seed=seed) for seed in (0, 1)]
    return [*wanted, Wanted(config=config, name=name, seed=0, cut=True)]


def test_what_is_fitted_beside_is_what_a_stage_loads(two_cores: None, tmp_path: Path) -> None:
    config, other = imported(tmp_path / "beside"), imported(tmp_path / "alone")
    fit_beside(all_of(config), module.WORTH)
    assert fitted(config) == [True] * 3
    for k, label in enumerate(("als-seed1", "als-seed0-cut")):
        stamp = config.work / "plugins" / f"{label}.key"
        before = stamp.read_text()
        run, seed = (refit_stage, 0) if k else (plugin_stage, 1)
        here, there = (run(prepare(of), "als", seed) for of in (config, other))
        assert stamp.read_text() == before  # it was loaded
        np.testing.assert_array_equal(here.item_vectors, there.item_vectors)  # type: ignore[attr-defined]
    assert plugin_seconds(config, "als", 1) > 0


def test_short_fits_and_one_alone_need_no_process(
    two_cores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = imported(tmp_path)
    monkeypatch.setattr(module.subprocess, "Popen", None)
    fit_beside(all_of(config), module.WORTH - 1)
    fit_beside(all_of(config)[:1], module.WORTH)
    monkeypatch.setattr(module, "_in_memory", lambda: 1)
    fit_beside(all_of(config), module.WORTH)
    assert fitted(config) == [False] * 3


def test_fits_of_as_many_threads_as_there_are_cores_are_made_one_by_one(
    two_cores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = '[plugins.tower]\nclass = "neural.two_tower:TwoTower"\nthreads = 2\n'
    config = imported(tmp_path, tower)
    assert [fit.threads for fit in (*all_of(config), *all_of(config, "tower"))] == [1, 1, 1, 2, 2, 2]
    monkeypatch.setattr(module.subprocess, "Popen", None)
    fit_beside(all_of(config, "tower"), module.WORTH)
    assert fitted(config, "tower") == [False] * 3


def test_what_fails_beside_fails_again_where_it_is_wanted(
    two_cores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    config = imported(tmp_path / "world", '[plugins.broken]\nclass = "broken:Broken"\n')
    fit_beside(all_of(config, "broken"), module.WORTH)
    assert fitted(config, "broken") == [False] * 3
    with pytest.raises(PairliftError, match="no room"):
        plugin_stage(prepare(config), "broken", 0)


def test_a_fit_that_is_refused_says_nothing_beside(
    two_cores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    config = imported(tmp_path / "world", '[plugins.broken]\nclass = "broken:Told"\n')
    fit_beside(all_of(config, "broken")[:2], module.WORTH)
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(PairliftError, match="not finite"):
        plugin_stage(prepare(config), "broken", 0)


@pytest.mark.parametrize("how", ["parent", "told", "interrupted"])
def test_a_fit_beside_ends_with_its_parent_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    config = imported(tmp_path / "world", '[plugins.broken]\nclass = "broken:Endless"\n')
    process = module._started([Wanted(config=config, name="broken", seed=0)], shown=False)
    assert process.stdin is not None
    try:
        until = time.monotonic() + 240
        while not (tmp_path / "begun").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert process.poll() is None
        if how == "interrupted":
            process.send_signal(signal.SIGINT)  # as a Ctrl-C does; then it is ended as `fit_beside` does
        if how == "parent":
            process.stdin.close()  # as the end of the parent does, however it came
        else:
            process.terminate()
        assert process.wait(60) == 1
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
    said = capfd.readouterr().err
    assert not [word for word in ("Traceback", "leaked") if word in said]
    if how != "parent":
        assert not list((config.work / "plugins").glob(".*.partial"))
