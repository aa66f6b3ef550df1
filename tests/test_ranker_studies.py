"""Studies on a tiny generated log: what its truth says, figures that agree with the uplift report's, and resumption."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served import pairlift

from features.baselines import ALS
from features.errors import PairliftError
from features.schema import DAY, F64
from neural.settings import TowerSettings
from ranker.cli.report import LOOP
from ranker.cli.report import STUDIES as OFFERED
from ranker.columns import Columns
from ranker.config import Config, load_config
from ranker.examples import example_text
from ranker.metrics.interval import relative_uplift
from ranker.studies.figures import Measured, slope
from ranker.studies.fits import Bench, _latest_part, earlier_fit
from ranker.studies.run import best_order, run_study
from ranker.studies.simulate import LIST
from ranker.studies.truth import read_truth
from ranker.studies.variants import NAMES, STUDIES, Variant, find_study
from ranker.studies.world import live, make_world
from ranker.studies.write import write_study
from ranker.training.plugins import plugin_stage
from ranker.training.prepared import prepare
from ranker.uplift.report import uplift_report
from ranker.uplift.table import as_table

#: in place of the towers, which are slow: a column of noise that says how large it is
SIZED = """
import json
from features.baselines import Noise

class Sized(Noise):
    options = None

    def __init__(self, **kept):
        super().__init__()
        self.kept = {"layers": 1, "width": 8, "heads": 1, **kept}
        size = self.kept["layers"] * self.kept["width"] ** 2
        self.report = {"parameters": size, "epochs": [{"validation": 0.5}, {"validation": 0.6}]}

    def fit(self, data):
        self.seed = data.seed + 100 * self.kept["layers"]
        (data.heads / "heads.json").write_text(json.dumps(self.kept["width"]))

    def head_losses(self, data, later):
        width, n = json.loads((data.heads / "heads.json").read_text()), (later.log.ts >= later.since).sum()
        return {"next_item": 1 / width + data.seed, "events": float(n), "before": float(len(later.log) - n)}

    def save(self, folder):
        super().save(folder)
        (folder / "sized.json").write_text(json.dumps(self.kept))

    @classmethod
    def load(cls, folder):
        plugin = cls(**json.loads((folder / "sized.json").read_text()))
        plugin.seed = Noise.load(folder).seed
        return plugin
"""
QUICK = """
[booster]
trees = 15
stop_after = 5
[uplift]
fits = 2
seeds = [0, 1]
[plugins.sized]
class = "sized:Sized"
"""


def tiny(folder: Path) -> Path:
    """Write a world of 100 users without towers; return its TOML."""
    make_world(folder, 0.005, seed=1)
    (folder / "sized.py").write_text(SIZED)
    toml = folder / "pairlift.toml"
    text = toml.read_text().replace('plugins = ["two_tower"]', "plugins = []")
    toml.write_text(re.sub(r"\[plugins\.\w+\]\nclass = \"neural.*\n", "", text) + QUICK)
    return toml


def study(toml: Path, name: str, **more: Any) -> dict[str, Any]:
    """Run a study by its command and return its JSON."""
    words = [word for key, value in more.items() for word in (f"--{key}", value)]
    truth, out = toml.parent / "truth.parquet", toml.parent / "out"
    code, said = pairlift("study", toml, "--study", name, "--truth", truth, "--out", out, *words)
    assert code == 0, said
    assert (out / f"{name}.md").read_text() in said
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return found


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("world") / "tiny")


@pytest.fixture(scope="module")
def plugins(toml: Path) -> dict[str, Any]:
    return study(toml, "plugins")


# The world


def test_a_seed_gives_one_world_and_the_log_is_in_order(tmp_path: Path) -> None:
    made = [make_world(tmp_path / name, 0.005, seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))]
    assert made[0] == made[1] != made[2]
    for name in ("events", "items", "users", "truth"):
        one, same, other = (pq.read_table(tmp_path / world / f"{name}.parquet") for world in "abc")
        assert one.equals(same)
        assert not one.equals(other)
    events = columns(tmp_path / "a" / "events.parquet")
    assert (np.diff(events["ts"].astype("datetime64[us]").astype(np.int64)) > 0).all()
    shown = ~events["organic"]
    request = events["request_id"][shown].astype(np.int64)
    assert np.isnan(events["request_id"][~shown].astype(float)).all()
    assert (np.bincount(request) == LIST).all()
    lists = set(zip(request.tolist(), events["item_id"][shown].tolist(), strict=True))
    assert len(lists) == shown.sum()  # the items of a list are distinct
    assert len(set(zip(request.tolist(), events["user_id"][shown].tolist(), strict=True))) == len(set(request.tolist()))
    assert (events["watched"][events["liked"]] > 0.5).all()
    assert 0.15 < np.isnan(events["replays"]).mean() < 0.25
    assert 0.05 < (~shown).mean() < 0.3


def columns(path: Path) -> dict[str, Any]:
    """Return the columns of a Parquet file as arrays."""
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


def test_the_truth_is_true_and_a_taste_has_a_past() -> None:
    world = live(np.random.default_rng(5), 0.05, 5)
    met, visits, topic = world.met, world.visits, world.catalogue.items.topic
    bins = np.digitize(met.expected, np.linspace(0.1, 1.9, 10))
    for k in range(11):  # of all events of about this expectation, the mean is this expectation
        grade, expected = met.grade[bins == k], met.expected[bins == k]
        assert abs(grade.mean() - expected.mean()) < 5 / np.sqrt(len(grade)), k
    request = np.repeat(np.arange(len(visits.user)), np.diff(visits.first))
    shares, last = world.catalogue.items.shares, np.maximum(met.item - 1, 0)
    day = visits.day[request]
    chance = shares[day, met.item] - np.where(met.item > 0, shares[day, last], 0)
    assert (chance > 0).all()  # nothing is met before it is there
    # A topic that follows what was liked last, in the same sitting, is worth more than others are.
    liked = np.full(len(visits.user), -1)
    rows = np.flatnonzero(met.grade == 2)
    liked[request[rows]] = topic[met.item[rows]]  # the last of a request
    before = np.where(np.diff(visits.sitting, prepend=-1) == 0, np.roll(liked, 1), -1)[request]
    known = before >= 0
    follows = known & (topic[met.item] == world.after[before])
    assert follows.sum() > 300
    assert met.expected[follows].mean() > met.expected[known & ~follows].mean() + 0.2


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    code, said = pairlift("world", tmp_path, "--scale", "0.001")
    assert code == 2
    assert "an empty folder, or none, was expected" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    code, said = pairlift("world", tmp_path / "new", "--scale", "0.001")
    assert (code, "20 users, 300 items" in said) == (0, True)


@pytest.mark.parametrize(
    ("ts", "names", "says"),
    [
        ([1, 2, 3], ("ts", "expected"), "none for 1 of 3 events"),
        ([1, 2, 2, 5], ("ts", "expected"), "or a ts twice"),
        ([], ("ts", "expected"), "none for 3 of 3 events"),
        ([1, 2, 5], ("ts", "other"), "Parquet with the columns ts and expected was expected"),
    ],
)
def test_another_truth_is_refused(ts: list[int], names: tuple[str, str], says: str, tmp_path: Path) -> None:
    path, asked = tmp_path / "truth.parquet", np.array([5, 1, 2])
    pq.write_table(pa.table(dict(zip(names, (np.array(ts, np.int64), np.arange(len(ts)) / 2), strict=True))), path)
    with pytest.raises(PairliftError, match=re.escape(says)):
        read_truth(path, asked, shown=True)
    with pytest.raises(PairliftError, match="drawn losers have none"):
        read_truth(path, asked, shown=False)
    with pytest.raises(PairliftError, match="there is no file"):
        read_truth(tmp_path / "none", asked, shown=True)
    pq.write_table(pa.table({"ts": pa.array([5, 2, 1], pa.timestamp("us")), "expected": [0.5, 0.2, 0.1]}), path)
    np.testing.assert_array_equal(read_truth(path, asked, shown=True), [0.5, 0.1, 0.2])


# The studies


def test_the_figures_are_those_of_the_uplift_report(toml: Path, plugins: dict[str, Any]) -> None:
    report = uplift_report(load_config(toml), "als", lists=False)
    arm = next(arm for arm in plugins["arms"] if arm["arm"] == "als")
    assert plugins["without"] == pytest.approx(report["without"], abs=1e-12)
    assert arm["pair_accuracy"] == pytest.approx(report["with"], abs=1e-12)
    np.testing.assert_allclose(arm["ci95"], report["ci95"], rtol=1e-9)
    assert (plugins["users"], plugins["pairs_kind"]) == (report["users"], "shown")
    assert report["heads"] == arm["heads"] == {}
    assert [a["arm"] for a in plugins["arms"]] == ["als", "noise", "sized"]
    assert plugins["slope"] is None
    assert plugins["arms"][0]["over_first"] is None


def test_beside_a_plugin_the_rankers_have_the_columns_of_both(toml: Path, plugins: dict[str, Any]) -> None:
    report = study(toml, "beside", plugin="als")
    alone, *both = report["arms"]
    assert [arm["arm"] for arm in both] == ["+ noise", "+ sized"]
    assert alone["pair_accuracy"] == next(arm for arm in plugins["arms"] if arm["arm"] == "als")["pair_accuracy"]
    bench, right = Bench.of(load_config(toml)), []
    for seed in bench.prepared.config.uplift.fit_seeds:
        of = [
            bench.arms.plugin_columns(name, plugin_stage(bench.prepared, name, seed))
            for name in ("als", "noise")  # the arms' order of columns
        ]
        right.append(bench.boosters(f"expected-{seed}", Columns.joined(of)))
    expected = np.sum(np.mean(right, (0, 1))) / bench.judged.pairs.weight.sum(dtype=np.float64)
    assert both[0]["pair_accuracy"] == pytest.approx(expected, abs=1e-12)
    assert both[0]["pair_accuracy"] != alone["pair_accuracy"]


def test_the_best_order_is_above_all_arms_and_mixed_truth_is_not(
    toml: Path, plugins: dict[str, Any], tmp_path: Path
) -> None:
    assert plugins["best"]["pair_accuracy"] > max(arm["pair_accuracy"] for arm in plugins["arms"]) + 0.05
    truth = pq.read_table(toml.parent / "truth.parquet")
    mixed = np.random.default_rng(0).permutation(truth["expected"].to_numpy())
    pq.write_table(truth.set_column(1, "expected", pa.array(mixed)), tmp_path / "mixed.parquet")
    bench = Bench.of(load_config(toml))
    share = best_order(bench, tmp_path / "mixed.parquet").sum() / bench.judged.pairs.weight.sum()
    assert abs(share - 0.5) < 0.05
    weighed = load_config(toml).pairing.model_copy(update={"weights": {"like > skip": 1.0}})
    config = bench.prepared.config.model_copy(update={"pairing": weighed})
    with pytest.raises(PairliftError, match=r"but \[pairing.weights\] gives others"):
        best_order(replace(bench, prepared=replace(bench.prepared, config=config)), tmp_path / "mixed.parquet")


def test_the_results_are_a_table_data_and_a_chart(toml: Path, plugins: dict[str, Any]) -> None:
    out = toml.parent / "out"
    text = (out / "plugins.md").read_text()
    for arm in plugins["arms"]:
        assert f"| {arm['arm']} | {arm['pair_accuracy']:.4f} | {100 * arm['relative_uplift']:+.2f} % [" in text
    assert f"true expected grade: {plugins['best']['pair_accuracy']:.4f}" in text
    assert plugins["command"].startswith("pairlift ")
    assert plugins["minutes"] > 0
    with (out / "plugins.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["relative_uplift"]) for row in rows] == [arm["relative_uplift"] for arm in plugins["arms"]]
    assert [row["fits"] for row in rows] == ["2"] * 3
    heads = [row["next_item_loss"] for row in rows]
    assert heads == ["", "", str(plugins["arms"][2]["heads"]["next_item"])]
    assert "| s | next_item | events | before |" in text
    chart = ET.fromstring((out / "plugins.svg").read_text())
    dots = [float(dot.attrib["cx"]) for dot in chart.iter("{http://www.w3.org/2000/svg}circle")]
    assert np.array_equal(np.argsort(dots), np.argsort([arm["relative_uplift"] for arm in plugins["arms"]]))


def test_sizes_lie_on_the_axis_of_what_the_fits_say(toml: Path) -> None:
    report = study(toml, "sizes", plugin="sized")
    at = [arm["at"] for arm in report["arms"]]
    assert at == [576, 8192, 27648, 65536]
    expected = np.polyfit(np.log10(at), [arm["relative_uplift"] for arm in report["arms"]], 1)[0]
    assert report["slope"]["relative_uplift"] == pytest.approx(expected)
    assert report["slope"]["ci95"][0] < expected < report["slope"]["ci95"][1]
    assert [arm["validation"] for arm in report["arms"]] == [0.6] * 4
    assert "Slope for each factor of 10 of parameters" in (toml.parent / "out" / "sizes.md").read_text()


def test_heads_are_measured_on_the_events_of_the_test_by_studies_and_uplift_alike(toml: Path) -> None:
    config = load_config(toml)
    arms = {arm["arm"]: arm for arm in study(toml, "sizes", plugin="sized")["arms"]}
    log, split = prepare(config).log, prepare(config).split
    n = int(((log.ts >= split.t2) & (log.ts < split.t3)).sum())
    for width in (24, 64):
        arm = next(arm for name, arm in arms.items() if name.endswith(f"x {width}"))
        expected = {"next_item": 1 / width + 0.5, "events": n, "before": int((log.ts < split.t2).sum())}
        assert arm["heads"] == pytest.approx(expected)
        assert [fit["heads"]["next_item"] for fit in arm["fits"]] == [1 / width, 1 / width + 1]
    report = uplift_report(config, "sized", lists=False)
    assert report["heads"]["next_item"] == [1 / 8, 1 / 8 + 1]
    assert "heads that are not served: next_item 0.6250," in as_table(report)


def test_a_killed_study_goes_on_and_ends_as_if_it_had_not_been(
    toml: Path, plugins: dict[str, Any], tmp_path: Path
) -> None:
    again = tiny(tmp_path / "again")
    kept = again.parent / "work" / "studies"
    words = ["study", str(again), "--study", "plugins", "--out", str(tmp_path / "never")]
    with subprocess.Popen([sys.executable, "-m", "ranker.cli", *words], stderr=subprocess.DEVNULL) as run:
        until = time.monotonic() + 120
        while not list(kept.glob("*.key")) and run.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    first = {path: path.stat().st_mtime_ns for path in kept.glob("*.key")}
    assert 1 <= len(first) < 6
    report = study(again, "plugins")
    assert {path: path.stat().st_mtime_ns for path in first} == first  # they were not made anew
    assert len(list(kept.glob("*.key"))) == 6
    for one, other in zip(report["arms"], plugins["arms"], strict=True):
        assert (one["pair_accuracy"], one["ci95"]) == (other["pair_accuracy"], other["ci95"])


def test_finished_fits_are_kept_until_what_they_read_changes(
    toml: Path, plugins: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[str] = []
    real = Bench.boosters

    def boosters(self: Bench, label: str, columns: Any) -> F64:
        fitted.append(label)
        return real(self, label, columns)

    monkeypatch.setattr(Bench, "boosters", boosters)
    config = load_config(toml)
    assert run_study(config, "plugins", "")["arms"] == plugins["arms"]
    assert fitted == ["without"]
    booster = config.booster.model_copy(update={"trees": 14})
    run_study(config.model_copy(update={"booster": booster}), "plugins", "")
    assert len(fitted) == 2 + 6


def test_of_finished_fits_no_plugin_is_fitted_again(
    toml: Path, plugins: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("ranker.studies.fits.fit_beside", lambda fits, seconds: asked.append(len(fits)))
    config = load_config(toml)
    booster = config.booster.model_copy(update={"trees": 13})
    changed = config.model_copy(update={"booster": booster})
    run_study(changed, "plugins", "")
    assert any(asked)
    asked.clear()
    run_study(changed, "plugins", "")
    assert asked
    assert not any(asked)


def test_less_of_the_period_is_its_latest_part(toml: Path) -> None:
    prepared = prepare(load_config(toml))
    config, split = prepared.config, prepared.split
    data = prepare(_latest_part(config, split, 0.25)).fit_data(0)
    t0 = split.t1 - (split.t1 - split.t0) // 4
    assert t0 - 2_000_000 <= data.log.ts.min() < data.log.ts.max() < split.t1
    assert data.log.ts.min() < t0 + (split.t1 - t0) / 10
    assert _latest_part(config, split, 1.0) is config


def test_an_arm_goes_on_from_a_fit_of_so_much_less(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = list[Any]()

    def staged(prepared: Any, name: str, seed: int, label: str) -> Any:
        ends.append((prepared.fit_data(seed).log.ts.max(), label))
        return plugin_stage(prepared, name, seed, label)

    monkeypatch.setattr("ranker.studies.fits.plugin_stage", staged)
    prepared = prepare(load_config(toml))
    assert earlier_fit(prepared, Variant("anew", "als"), 0, "label") is None
    folder = earlier_fit(prepared, Variant("after a day", "als", after=DAY), 0, "label")
    assert folder is not None
    assert ALS.load(folder).best_grade == 2
    assert folder.is_relative_to(prepared.config.work)  # which all processes of a torchrun see
    assert [label for _, label in ends] == ["label-earlier"]
    assert prepared.split.t1 - 2 * DAY < ends[0][0] < prepared.split.t1 - DAY


def test_a_plugin_that_says_no_size_has_no_slope(toml: Path) -> None:
    arms = [Measured(Variant("a", "als"), np.ones((1, 1, 3)), [{"seconds": 1.0, "report": {}}])] * 2
    assert "the plugin does not say its parameters" in slope("parameters", arms, np.ones((1, 1, 3)))["remark"]


def test_a_slope_is_found_with_an_interval_that_holds_it() -> None:
    """Arms whose true uplift is 1 % for each factor of ten; users, fits and seeds with noise of their own."""
    rng, held, at = np.random.default_rng(0), 0, (10.0, 100.0, 1000.0)
    for _ in range(200):
        users = rng.uniform(0.5, 1.5, 60)
        base = users * (1 + 0.1 * rng.standard_normal(60))
        without = base * (1 + 0.001 * rng.standard_normal((1, 3, 1)))
        arms = []
        for k, x in enumerate(at):
            fit = 0.003 * rng.standard_normal((3, 1, 1)) + 0.01 * k
            right = without * (1 + fit) + 0.02 * users * rng.standard_normal(60)
            arms.append(Measured(Variant(str(k), "x", at=x), right, []))
        found = slope("history", arms, without)
        uplifts = [relative_uplift(without, arm.right).uplift for arm in arms]
        assert found["relative_uplift"] == pytest.approx(np.polyfit([1, 2, 3], uplifts, 1)[0], abs=1e-12)
        held += found["ci95"][0] <= 0.01 <= found["ci95"][1]
    assert 182 <= held <= 200


def towers(toml: Path) -> Config:
    """Return the world's TOML with towers, and a config that names a wrong plugin's option."""
    path = toml.parent / "towers.toml"
    path.write_text(toml.read_text() + '[plugins.two_tower]\nclass = "neural.two_tower:TwoTower"\nwidth = 32\n')
    return load_config(path)


def test_the_generated_log_compares_all_plugins(tmp_path: Path) -> None:
    make_world(tmp_path / "world", 0.001)
    config = load_config(tmp_path / "world" / "pairlift.toml")
    _, arms = find_study(config, "plugins", "")
    ours = set(re.findall(r'"((?:neural|features)\.\w+:\w+)"', example_text("template")))
    assert {config.plugins[arm.plugin].path for arm in arms} == ours - {config.network.path}
    assert config.ranker.plugins == ["two_tower"]


def test_every_study_is_of_options_that_the_towers_have(toml: Path) -> None:
    assert (*NAMES, LOOP) == OFFERED
    config = towers(toml)
    for name in STUDIES:
        _, arms = find_study(config, name, "two_tower")
        configured = [arm.configured(config) for arm in arms]
        assert len({(arm.label(c), arm.network) for arm, c in zip(arms, configured, strict=True)}) == len(arms)
        for arm, changed in zip(arms, configured, strict=True):
            params = changed.plugins["two_tower"].params
            assert TowerSettings(**params).width == arm.options.get("width", 32)
    same = [Variant("a", "two_tower", {"history": 128}), Variant("b", "two_tower", {"layers": 2})]  # the defaults
    assert len({arm.label(arm.configured(config)) for arm in same}) == 1


def test_what_the_toml_or_the_plugin_lacks_is_told_before_anything_is_fitted(toml: Path) -> None:
    words = ("study", toml, "--out", toml.parent / "none", "--study", "history")
    code, said = pairlift(*words)
    assert (code, "there is no [plugins.two_tower]" in said) == (2, True)
    code, said = pairlift(*words, "--plugin", "als")
    assert code == 2
    assert "study history has an arm with history = 32, which features.baselines:ALS does not take" in said
    assert "[plugins.als]: history: unknown key" in said
    code, said = pairlift("study", toml, "--out", toml.parent / "none", "--study", "warm", "--plugin", "als")
    assert (code, "features.baselines:ALS cannot go on from an earlier fit" in said) == (2, True)
    assert not (toml.parent / "none").exists()


def test_without_the_truth_there_is_no_best_order_and_the_command_is_told(toml: Path) -> None:
    paths = write_study(load_config(toml), "plugins", "", None, toml.parent / "other", "pairlift study 'a b'")
    assert "`pairlift study 'a b'`, 20" in paths[0].read_text()
    assert "true expected grade" not in paths[0].read_text()
