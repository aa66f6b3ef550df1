"""The search for parameters: what it finds, what it says of noise, and that it goes on where it ended."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from served import pairlift
from world import write_world

import ranker.retune.search as module
from features.schema import DAY
from ranker.config import Config, load_config
from ranker.metrics.pair_accuracy import pair_accuracy
from ranker.retune.automatic import retuned
from ranker.retune.liked import LikedBench
from ranker.retune.report import as_table
from ranker.retune.search import retune
from ranker.retune.space import Parameter, make_space, toml_lines, with_values
from ranker.retune.wanted import WantedBench
from ranker.training.arms import Arms
from ranker.training.booster import parameters
from ranker.training.plugins import plugin_stage
from ranker.training.prepared import prepare
from ranker.training.wanted import rows_of


def write_config(folder: Path, params: str = "") -> Path:
    config = write_world(folder)
    text = (
        config.read_text().replace("trees = 60", f"trees = 25\n{params}").replace("stop_after = 10", "stop_after = 5")
    )
    config.write_text(text)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("retune")


@pytest.fixture(scope="module")
def searched(folder: Path) -> module.TuningResult:
    # Trees that hardly move: nearly anything is better.
    return retune(load_config(write_config(folder, "params = { num_leaves = 2, eta = 0.0005 }")), 10, 12)


def test_better_parameters_are_found_and_said(searched: module.TuningResult, folder: Path) -> None:
    assert searched.better
    assert searched.best.value > searched.own.value
    table = as_table(searched)
    assert "better than the TOML's own" in table
    written = json.loads((folder / "work" / "retune.json").read_text(), parse_constant=pytest.fail)
    assert len(written["trials"]) == 12
    assert written["best"] == max(t["pair_accuracy"] or 0 for t in written["trials"])
    assert written["trials"][0]["values"]["learning_rate"] == 0.0005
    assert written["trials"][0]["values"]["num_leaves"] == 2
    assert sum(searched.importance.values()) == pytest.approx(1, abs=0.01)


def test_the_lines_for_the_toml_give_the_fits_that_were_measured(searched: module.TuningResult, folder: Path) -> None:
    lines = as_table(searched).partition(f"for {searched.config.path}:\n")[2]
    result = tomllib.loads(lines)
    config = load_config(folder / "pairlift.toml")
    text = config.path.read_text().replace("params = { num_leaves = 2, eta = 0.0005 }", "")
    merged = {t: {**tomllib.loads(text).get(t, {}), **result.get(t, {})} for t in ("booster", "pairing")}
    pasted = Config(**{**tomllib.loads(text), **merged})
    bench = LikedBench.of(prepare(config))
    total = bench.validation.pairs.weight.sum(dtype=np.float64)
    got = [bench.fit(pasted, seed) for seed in bench.seeds]
    assert np.mean([right.sum() / total for right, _ in got]) == pytest.approx(searched.best.value, abs=1e-9)
    assert [trees for _, trees in got] == searched.best.user_attrs["trees"]


def test_the_first_trial_is_what_train_would_measure(searched: module.TuningResult, folder: Path) -> None:
    config = load_config(folder / "pairlift.toml")
    prepared = prepare(config)
    arms = Arms.of(prepared)
    columns = arms.served_columns({"als": plugin_stage(prepared, "als", 0)})
    arm = arms.fit("als", columns, 0)
    score = np.asarray(arm.booster.predict(arms.rows("validation", columns), raw_score=True))
    accuracy = pair_accuracy(score, arms.pairs("validation")).value
    assert searched.own.intermediate_values[0] == pytest.approx(accuracy, abs=1e-9)


def test_a_second_run_goes_on(searched: module.TuningResult, folder: Path) -> None:
    more = retune(load_config(folder / "pairlift.toml"), 10, 2)
    assert [t.number for t in more.trials] == list(range(14))
    assert [t.params for t in more.trials[:12]] == [t.params for t in searched.trials]
    assert len({json.dumps(t.params) for t in more.trials}) == 14
    assert more.own.value == searched.own.value


def test_other_parameters_of_the_toml_are_another_study(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    code, said = pairlift("retune", config, "--trials", 1)
    assert code == 0, said
    assert "nothing better than the TOML's own was found" in said
    assert "importance takes 10 finished trials" in said
    config.write_text(config.read_text().replace("trees = 25", "trees = 24"))
    assert len(retune(load_config(config), 10, 1).trials) == 1


def test_noise_is_called_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, fits = np.random.default_rng(0), LikedBench.fit

    def fit(self: LikedBench, config: Config, seed: int) -> tuple[np.ndarray, int]:
        right, trees = fits(self, load_config(config.path), 0)
        return right * rng.uniform(0.97, 1.03, len(right)), trees  # every trial is the same but for chance

    monkeypatch.setattr(LikedBench, "fit", fit)
    found = retune(load_config(write_config(tmp_path)), 10, 6)
    assert found.best.number != found.own.number
    assert "not distinguishable from the TOML's own" in as_table(found)


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, fits, count = load_config(write_config(tmp_path)), LikedBench.fit, iter(range(100))

    def interrupted(self: LikedBench, config: Config, seed: int) -> tuple[np.ndarray, int]:
        if next(count) in (1, 7):
            raise KeyboardInterrupt
        return fits(self, config, seed)

    monkeypatch.setattr(LikedBench, "fit", interrupted)
    code, said = pairlift("retune", config.path)
    assert (code, "before the TOML's own parameters were measured" in said) == (2, True)
    code, said = pairlift("retune", config.path)  # the TOML's own is tried again, then one more and a half
    assert code == 0, said
    states = [t["state"] for t in json.loads((tmp_path / "work" / "retune.json").read_text())["trials"]]
    assert states == ["fail", "complete", "complete", "fail"]


def test_the_ranges_hold_the_tomls_own_values(tmp_path: Path) -> None:
    params = "params = { num_leaves = 500, lambda_l2 = 0, reg_alpha = 1 }\nmargin = 3.0\nndcg_at = 4"
    path = write_config(tmp_path, params)
    path.write_text(path.read_text().replace('window = "30m"', 'window = "30m"\ntrain_cap = 7\nhalf_life = "2d"'))
    config = load_config(path)
    space = make_space(config, 1000, True, 200, 10 * DAY)
    for p in space:
        assert p.distribution._contains(p.distribution.to_internal_repr(p.own)), p.name
    own = {p.name: p.own for p in space}
    assert own["train_cap"] == 7
    assert {"cat_smooth", "half_life"} <= own.keys()
    assert "cat_smooth" not in {k.name for k in make_space(config, 1000, False, 200, DAY)}
    same = with_values(config, space, own)
    assert parameters(same.booster, 1000) == parameters(config.booster, 1000) | {"path_smooth": 0.0}
    assert same.pairing == config.pairing
    lines = "\n".join(toml_lines(space, own))
    assert tomllib.loads(lines)["pairing"] == {"train_cap": 7, "half_life": "2d"}
    assert tomllib.loads(lines)["booster"]["ndcg_at"] == 4
    none = toml_lines([Parameter("pairing", "train_cap", None, space[0].distribution)], {"train_cap": None})
    assert none == ["[pairing]", "# no train_cap"]


@pytest.fixture(scope="module")
def lists_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    path = write_config(folder)
    path.write_text(path.read_text() + "[lists]\nparams = { num_leaves = 2, eta = 0.0005 }\n")
    return folder


@pytest.fixture(scope="module")
def searched_lists(lists_folder: Path) -> module.TuningResult:
    return retune(load_config(lists_folder / "pairlift.toml"), 10, 8, "wanted")


def test_lists_are_searched_by_their_own_figure(searched_lists: module.TuningResult, lists_folder: Path) -> None:
    assert searched_lists.best.value > searched_lists.own.value
    assert {p.table for p in searched_lists.space} == {"lists.params"}
    table = as_table(searched_lists)
    assert "NDCG@10" in table
    assert f"{searched_lists.judged:,} requests of the booster's validation slice" in table
    written = json.loads((lists_folder / "work" / "retune-wanted.json").read_text(), parse_constant=pytest.fail)
    assert written["measure"] == "NDCG@10"
    assert written["requests"] == searched_lists.judged
    assert written["best"] == max(t["ndcg@10"] or 0 for t in written["trials"])
    assert not (lists_folder / "work" / "retune.json").exists()


def test_the_lines_for_lists_give_the_fits_that_were_measured(searched_lists: module.TuningResult) -> None:
    config = searched_lists.config
    lines = tomllib.loads(as_table(searched_lists).partition(f"for {config.path}:\n")[2])
    assert list(lines) == ["lists"]
    pasted = Config(**{**tomllib.loads(config.text), "lists": lines["lists"]})
    bench = WantedBench.of(prepare(config))
    got = [bench.fit(pasted, seed) for seed in bench.seeds]
    assert np.mean([worth.sum() / bench.total for worth, _ in got]) == pytest.approx(
        searched_lists.best.value, abs=1e-9
    )
    assert [trees for _, trees in got] == searched_lists.best.user_attrs["trees"]


def test_the_first_trial_of_lists_is_what_train_would_measure(searched_lists: module.TuningResult) -> None:
    prepared = prepare(searched_lists.config)
    rows = rows_of(prepared, {"als": plugin_stage(prepared, "als", 0)})
    worth = rows.validation.ndcg(rows.scores(rows.fit(prepared.config, 0)))
    assert searched_lists.own.intermediate_values[0] == pytest.approx(worth, abs=1e-9)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("[sources]\npopular = false\ncooccurrence = false\nnearest = false\n", "[sources] are all switched off"),
        (
            '[lists]\nwanted = "best"\n[[grades]]\nname = "best"\nwhen = "play > 9"\n',
            "[sources] propose nothing that was wanted",
        ),
    ],
)
def test_lists_that_cannot_be_judged_are_refused_with_what_to_do(tmp_path: Path, more: str, why: str) -> None:
    path = write_config(tmp_path)
    path.write_text(path.read_text() + more)
    code, said = pairlift("retune", path, "--part", "wanted", "--trials", 1)
    assert code == 2
    assert f"retune --part wanted: {why}" in said


@pytest.fixture
def seven(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search takes 7 trials, however fast the machine is."""
    run = module.Search.run
    monkeypatch.setattr(module.Search, "run", lambda search, minutes, trials: run(search, 1e6, 7))


def trials_of(folder: Path) -> list[FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


@pytest.mark.usefixtures("seven")
def test_a_training_retunes_itself_where_the_rows_are_others_from_the_best_of_before(tmp_path: Path) -> None:
    # Trees that hardly move: nearly anything is better.
    path = write_config(tmp_path, "retune_minutes = 1\nparams = { num_leaves = 2, eta = 0.0005 }")
    config = load_config(path)
    arms = Arms.of(prepare(config))
    first = retuned(arms, {})
    assert first.found["liked"]["values"]
    assert first.found["liked"]["gain"]["low"] > 0
    used = first.arms.prepared.config
    assert used.booster.params["learning_rate"] > 0.0005
    assert used.pairing == config.pairing

    before = sorted((config.work / "retune").iterdir())
    assert retuned(arms, {}).found == first.found  # the same rows: nothing is searched
    assert sorted((config.work / "retune").iterdir()) == before

    uplift = config.uplift.model_copy(update={"seeds": [7, 8]})
    other = replace(arms.prepared, config=config.model_copy(update={"uplift": uplift}))
    second = retuned(replace(arms, prepared=other), {})
    searches = set((config.work / "retune").iterdir()) - set(before)
    assert len(searches) == len(first.found)
    for folder in searches:
        trials = trials_of(folder)
        old = [trials_of(own) for own in before if trials_of(own)[0].params.keys() == trials[0].params.keys()]
        best = max(old[0], key=lambda t: t.value or 0)
        assert trials[1].params == best.params
    assert second.found.keys() == first.found.keys()
