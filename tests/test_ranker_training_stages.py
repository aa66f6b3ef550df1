"""Stages are reused, remade and never half written."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structure import PACKAGES, ROOT, imports, modules
from world import write_world

from features.errors import PairliftError
from ranker.config import load_config
from ranker.hashes import hash_file
from ranker.train import train
from ranker.training import arms, importing, plugins, prepared, retune, stages
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


CODE = {
    "import": importing.CODE,
    "prepare": importing.CODE + prepared.CODE,
    "plugin": importing.CODE + prepared.CODE + plugins.CODE,
    "arms": importing.CODE + prepared.CODE + arms.CODE,
    "retune": importing.CODE + prepared.CODE + retune.CODE,
}
#: by stage, the modules that make it
MAKERS = {
    "import": ["ranker.training.importing"],
    "prepare": ["ranker.training.prepared"],
    "plugin": ["ranker.training.plugins", "features.baselines"],
    "arms": ["ranker.training.arms"],
    "retune": ["ranker.training.retune"],
}
#: what makers import that cannot change what they make, and why
UNREAD = {
    "ranker.config": "its values enter the keys",
    "ranker.settings": "its values enter the keys",
    "ranker.training.fetch": "the files that it fetches enter the import's key",
    "ranker.hashes": "it makes keys alone",
    "features.files": "it writes what it is given",
    "ranker.training.stages": "it makes keys, and keeps what was made",
    "ranker.training.booster.check_params": "it refuses settings, or does nothing",
    "ranker.training.booster.check_monotone": "it refuses settings, or does nothing",
    "ranker.columns.plugin_columns": "it gives names for `check_monotone`; the arms have the module itself",
    "ranker.recording.logged": "the values that it puts in place enter the arms' key",
}
PATHS = {name: path for package in PACKAGES for name, path in modules(package).items()}


def read_by(makers: list[str]) -> set[str]:
    """Return the modules that some modules import, and those that these import, but what is UNREAD."""
    found, todo = set[str](), list(makers)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        for imported in imports(PATHS[name]):
            module = imported if imported in PATHS else imported.rpartition(".")[0]
            if module in PATHS and not {imported, module} & UNREAD.keys():
                todo.append(module)
    return found


def covered(module: str, code: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in code)


@pytest.mark.parametrize("stage", CODE)
def test_a_stages_key_hashes_all_code_that_makes_it(stage: str) -> None:
    read = read_by(MAKERS[stage])
    assert [module for module in sorted(read) if not covered(module, CODE[stage])] == []
    idle = [name for name in CODE[stage] if not any(covered(module, (name,)) for module in read)]
    assert idle == [], "it reads nothing of these"


def test_the_towers_key_hashes_all_code_that_makes_them() -> None:
    read = read_by([name for name in PATHS if name.startswith("neural.")])
    assert [module for module in sorted(read) if not covered(module, (*CODE["plugin"], "neural"))] == []


def keys_where(changed: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the hash of each stage's code where the text of a file has changed."""
    with monkeypatch.context() as patched:
        patched.setattr(stages, "hash_file", lambda path: "new" if path == ROOT / changed else hash_file(path))
        code_hash.cache_clear()
        found = {stage: code_hash(*names) for stage, names in CODE.items()}
    code_hash.cache_clear()
    return found


@pytest.mark.parametrize(
    ("changed", "anew"),
    [
        ("ranker/cli/train.py", []),
        ("ranker/server.py", []),
        ("ranker/training/objective.py", ["arms", "retune"]),
        ("ranker/metrics/pair_accuracy.py", ["arms", "retune"]),
        ("features/baselines.py", ["plugin"]),
        ("features/counters/timeline.py", ["prepare", "plugin", "arms", "retune"]),
        ("features/log/dataset.py", ["import", "prepare", "plugin", "arms", "retune"]),
    ],
)
def test_changed_code_makes_anew_what_it_makes_and_nothing_else(
    changed: str, anew: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (ROOT / changed).is_file()
    before, after = keys_where("none", monkeypatch), keys_where(changed, monkeypatch)
    assert [stage for stage in CODE if before[stage] != after[stage]] == anew


def test_a_name_that_is_no_module_is_not_hashed_as_nothing() -> None:
    with pytest.raises(ValueError, match=r"ranker\.no_such"):
        code_hash("ranker.no_such")
