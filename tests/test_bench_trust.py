"""The benchmark of the report's word: a few reports of each kind, so that it cannot rot, and its figures add up."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent / "bench" / "peers"))

import trust_ab as experiments
import trust_reports as reports
from trust_plugins import HONEST, USELESS, Knows
from trust_world import TRAIN_USERS, World

from ranker.settings import UpliftSettings


@pytest.fixture(scope="module")
def trust() -> Any:
    spec = importlib.util.spec_from_file_location("trust_benchmark", Path(__file__).parent / "bench" / "trust.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "USERS", 60)
    monkeypatch.setattr(reports, "MANY", 60)
    monkeypatch.setattr(reports, "DRAWS", 4)
    monkeypatch.setattr(reports, "SEEDS", 2)
    monkeypatch.setattr(reports, "FAMILY", 3)
    some = {name: HONEST[name] for name in ("decayed", "last_grade", "unsteady_mean")}
    monkeypatch.setattr(reports, "HONEST", some)


@pytest.mark.usefixtures("few")
def test_the_benchmark_runs_is_resumed_and_adds_up(trust: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = trust.Store(tmp_path / "reports.jsonl")
    tasks = [("leaking", (1,)), ("honest", (0,))]
    tasks += [("truth", (name, 0)) for name in list(reports.SETTINGS)[:2]]
    tasks += [("covered", (name, 0, k)) for k, name in enumerate(list(reports.SETTINGS)[:2])]
    tasks += [("useless", (kind, 1, 0)) for kind in USELESS] + [("family", (1, 0))]
    tasks += experiments.tasks_of(1)
    trust.run(tasks, store, 1)
    with store.path.open("a") as file:
        file.write('[["useless", ["noi')  # as where a run was stopped
    again = trust.Store(store.path)
    monkeypatch.setattr(trust, "run_task", None)  # nothing is left to run
    trust.run(tasks, again, 1)
    assert again.found == store.found
    result = trust.summary(again.found)
    assert result["leaks_found"] == 1
    assert result["false_leaks"] == 0
    assert result["reports"].pop("slices") > 10
    assert result["reports"] == {
        "coverage": 2,
        "useless": dict.fromkeys(USELESS, 1),
        "families": 1,
        "honest": 3,
        "leaks": 8,
    }
    assert result["false_useful"] == max(result["false_useful_by_kind"].values())
    assert json.loads(json.dumps(result)) == result
    assert "leaks reported of honest plugins" in trust.table(result)


def test_the_figures_are_of_the_results(trust: Any) -> None:
    names = list(reports.SETTINGS)[:2]
    true = {"uplift": 0.01, "error": 0.001, "slices": {"kind": {"a": 0.01, "b": 0.03}}}
    found: dict[Any, Any] = {("truth", (name, 0)): true for name in names}
    of = {"shrunk": [0.0, 0.02], "raw": [0.0, 0.1]}
    slices = {"kind": {"a": of, "b": of, "never drawn": of}, "other": {"a": of}}
    slices["kind"]["c"] = {"shrunk": [None, None], "raw": [None, None]}
    for setting, n in ((0, 3), (1, 4)):
        for k in range(n):
            ends = [0.0, 0.02] if k or not setting else [0.011, 0.02]
            found["covered", (names[setting], 0, k)] = {"ci95": ends, "slices": slices if k == 0 else {}}
    found |= {("useless", (kind, 0, k)): {"useful": k == 0 and kind == "noise"} for kind in USELESS for k in range(4)}
    false = ({"useful": 1, "more": 0, "uncorrected": 2}, {"useful": 0, "more": 3, "uncorrected": 0})
    found |= {("family", (0, k)): (*false, *[{"useful": 0, "more": 0, "uncorrected": 1}] * 6)[k] for k in range(8)}
    found["honest", (0,)] = {"a": {"leaks": 0, "ratio": None}, "b": {"leaks": 2, "ratio": 1.2}}
    found["leaking", (0,)] = {"x": {"leaks": 1}, "y": {"leaks": 0}}
    off, wide = [0.11, 0.2], [0.0, 0.2]
    for k, ends in enumerate((off, wide, wide, wide)):
        found["ab_covered", ("few users", k)] = dict.fromkeys(experiments.METRICS, ends)
        found["ab_null", ("few users", k)] = {"ctr": {"always95": k == 0, "fixed95": k < 2}}
    found["ab_covered", ("few users", 0)] |= {"not known": [None, None]}
    result = trust.summary(found)
    assert (result["ab_coverage"], result["ab_false_positive"], result["ab_false_positive_fixed"]) == (0.75, 0.25, 0.5)
    assert result["ab_experiments"] == 4
    assert (result["ab_refused"], result["ab_refused_by_setting"]) == (1, {"few users": 1})
    assert "1 of 8 not known" in trust.table(result)
    assert result["coverage"] == pytest.approx(6 / 7, abs=1e-4)
    assert (result["smallest_coverage"], result["largest_coverage"]) == (0.75, 1)
    assert (result["slice_coverage"], result["slice_coverage_unshrunk"], result["reports"]["slices"]) == (0.5, 1, 4)
    assert result["slice_coverage_by_kind"] == {"kind": 0.5}
    assert (result["false_useful"], result["false_useful_by_kind"]["constant_in_group"]) == (0.25, 0)
    assert (result["leaks_found"], result["false_leaks"], result["unsteady_largest_ratio"]) == (0.5, 1, 1.2)
    assert result["family_false_useful"] == 0.25
    assert result["family_by_question"] == {"alone": 0.125, "adds": 0.125, "alone, uncorrected": 0.875}
    assert "a try, for fewer than 1,000 reports tell little" in trust.table(result)
    many = result | {"reports": result["reports"] | {"coverage": 1000}}
    assert "NOT KEPT: " in trust.table(many)
    right = many | {
        "coverage": 0.95,
        "slice_coverage": 0.95,
        "false_useful": 0.03,
        "family_false_useful": 0.06,
        "ab_coverage": 0.95,
        "ab_false_positive": 0.01,
        "leaks_found": 1.0,
        "false_leaks": 0,
    }
    assert "\nkept: " in trust.table(right)
    assert "NOT KEPT: " in trust.table(right | {"family_false_useful": 0.07})
    assert "NOT KEPT: " in trust.table(right | {"ab_false_positive": 0.06})
    assert "NOT KEPT: " in trust.table(right | {"ab_coverage": 0.98})


def test_all_tasks_are_there(trust: Any) -> None:
    tasks = trust.tasks_of(1000)
    count = {part: sum(t[0] == part for t in tasks) for part in trust.PARTS}
    assert len(set(tasks)) == len(tasks)
    assert count["covered"] == 1000
    assert count["useless"] == 3000
    assert count["family"] == trust.ENOUGH_FAMILIES == 200
    assert count["ab_covered"] == count["ab_null"] == 1000
    assert count["honest"] * len(HONEST) >= 200
    assert {t[1][:2] for t in tasks if t[0] == "covered"} == {t[1] for t in tasks if t[0] == "truth"}


def test_the_training_log_is_fixed_and_the_test_is_new(tmp_path: Path) -> None:
    world = World(reports.SETTINGS["large gain, luck 4, ties"], 3)
    first, second = (world.prepared(draw, 50, UpliftSettings(), tmp_path) for draw in (7, 8))
    one, other = first.log.until(first.split.t2), second.log.until(first.split.t2)
    for name in ("user", "item", "ts", "grade"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.user.max() < TRAIN_USERS <= first.groups.of("test").requests.user.min()
    assert len(first.log) != len(second.log)
    plugin, again, new = Knows(world, 7, 50), Knows(world, 7, 50), Knows(world, 7, 50)
    for fitted, seed in ((plugin, 1), (again, 1), (new, 2)):
        fitted.fit(first.fit_data(seed))
    requests, histories = first.groups.requests, first.state.histories
    np.testing.assert_array_equal(plugin.values(requests, histories), again.values(requests, histories))
    assert (plugin.values(requests, histories) != new.values(requests, histories)).any()
