"""The studies' bench: which plugins each data set's TOML has, and that the towers that are varied have no teachers."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from features.plugin import make_plugin
from ranker.examples import example_names

BENCH = Path(__file__).parent / "bench"


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCH / "peers"), *sys.path])
    spec = spec_from_file_location("bench_studies", BENCH / "studies.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "WORK", tmp_path)
    return module


@pytest.mark.parametrize("data", [*example_names(), "world"])
def test_all_have_the_same_plugins_and_vary_one_network(studies: ModuleType, data: str) -> None:
    config, truth = studies.configured(data, 2, 3, 0.001)
    assert (truth is not None and truth.exists()) == (data == "world")
    teachers = {n: getattr(make_plugin(n, p.path, p.params), "settings", None) for n, p in config.plugins.items()}
    assert {n: s.teachers for n, s in teachers.items() if hasattr(s, "teachers")} == {
        "two_tower": 0,
        "taught": 3,
        "today": 0,
    }
    others = {"als", "noise", "cross_encoder", "sasrec", "item2vec", "limaml", "semantic_ids"}
    assert set(config.plugins) == {"two_tower", "taught", "today"} | others
    assert (config.uplift.fit_seeds, config.uplift.seeds) == ([0, 1], [0, 1, 2])
