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


def test_the_overview_has_a_column_for_each_data_set_and_gains_over_the_first_arm(studies: ModuleType) -> None:
    def of(value: float) -> dict[str, object]:
        return {"relative_uplift": value, "ci95": [value - 0.01, value + 0.01]}

    def study(fits: int, over: float, slope: dict[str, object] | None = None) -> dict[str, object]:
        arms = [{"arm": "none", **of(0.02), "over_first": None}, {"arm": "all", **of(0.03), "over_first": of(over)}]
        return {"fits": fits, "date": "", "slope": slope, "arms": arms}

    found = {
        "one": {"finetuning": study(2, 0.01), "history": study(2, 0.05, of(0.04))},
        "two": {"history": study(3, 0)},
    }
    text = studies.overview(found)
    assert text.index("## history") < text.index("## finetuning"), "in the order of `pairlift study --help`"
    assert "| none | +2.00 % [+1.00, +3.00] | +2.00 % [+1.00, +3.00] |" in text
    assert "| all | +5.00 % [+4.00, +6.00] | +0.00 % [-1.00, +1.00] |" in text
    assert "| for each factor of 10 | +4.00 % [+3.00, +5.00] |  |" in text
    assert text.endswith("| all | +1.00 % [+0.00, +2.00] |\n\nFits of each arm: 2 of one.\n")
