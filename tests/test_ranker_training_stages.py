"""Stages are reused, remade and never half written."""

import ast
import gc
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import numpy as np
import pytest
from structure import PACKAGES, ROOT, imports, modules
from world import write_world

from features.baselines import ALS
from features.errors import PairliftError
from ranker import code_hash as module
from ranker.bundle import load_bundle
from ranker.code_hash import code_hash, hash_source
from ranker.config import Config, load_config
from ranker.pipeline import Pipeline
from ranker.recording.memory import memory_lines, plan_memory
from ranker.request import Request
from ranker.retune import liked
from ranker.retune import wanted as wanted_trials
from ranker.studies import fits, unified
from ranker.train import train
from ranker.training import arms, importing, parts, plugins, prepared, wanted
from ranker.training.stages import run_stage


def test_a_log_of_positives_without_negatives_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(PairliftError, match=r"pairing\.negatives"):
        train(load_config(write_world(tmp_path, where="play >= 0.9")), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_ranker_without_counters_is_trained_and_ranks(tmp_path: Path) -> None:
    path = write_world(tmp_path)
    path.write_text("counters = []\n" + path.read_text())
    train(load_config(path), tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    assert not bundle.state.counters
    assert [column for column in bundle.columns if "__" in column] == ["als__dot"]
    pipeline = Pipeline(bundle)
    items = np.arange(20, dtype=np.int32)
    answer = pipeline.rank(Request(3, bundle.state.end, state=bundle.state), items)
    pipeline.close()
    assert len(set(answer.score.tolist())) > 1
    assert memory_lines(plan_memory(bundle.state, 1000), bundle.config.record)


def test_the_toml_adds_to_the_default_features(tmp_path: Path) -> None:
    path = write_world(tmp_path)
    plain = prepared.prepare(load_config(path))
    path.write_text(
        path.read_text() + '[features]\nadd = ["weekday"]\ncounters = "add"\n'
        '[[counters]]\nkey = ["item"]\nevent = "play"\nstats = ["mean"]\n'
    )
    more = prepared.prepare(load_config(path))
    assert set(more.spec.columns) - set(plain.spec.columns) == {"weekday", "item__play__all__mean"}
    assert set(plain.spec.columns) < set(more.spec.columns)
    assert "user_x_item__impression__all__since" in plain.spec.columns
    assert more.key != plain.key


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
    assert sorted(p.name for p in tmp_path.iterdir()) == [".s.lock", "s", "s.key"]


def test_what_a_stage_made_is_made_again_when_it_is_taken_away(tmp_path: Path) -> None:
    folder = run_stage(tmp_path, "s", 1, lambda f: (f / "x").touch())
    (folder / "x").unlink()
    assert (run_stage(tmp_path, "s", 1, lambda f: (f / "x").write_text("again")) / "x").exists()


def test_a_log_of_other_times_and_the_same_content_trains_nothing_anew(tmp_path: Path) -> None:
    """As of files that were copied; one that has an event less, or a column of other values, is another log."""
    config = load_config(write_world(tmp_path))
    source = tmp_path / "log.parquet"

    def keys() -> tuple[str, str]:
        key = prepared.prepare(config).key
        return json.loads((config.work / "import.key").read_text())["key"], key

    imported, first = keys()
    os.utime(source, (1, 1))
    again = keys()
    assert again[0] != imported
    assert again[1] == first
    seen = {first}
    for rows in ("SELECT * FROM t LIMIT 1150", "SELECT * REPLACE (1 - play AS play) FROM t"):
        duckdb.sql(f"CREATE OR REPLACE TABLE t AS FROM '{source}'")
        duckdb.sql(f"COPY ({rows}) TO '{source}'")
        seen.add(keys()[1])
    assert len(seen) == 3


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
    hash_source.cache_clear()
    assert code_hash("lone_module") != first


CODE = {
    "import": importing.CODE,
    "prepare": importing.CODE + prepared.CODE,
    "plugin": importing.CODE + prepared.CODE + plugins.CODE,
    "arms": importing.CODE + prepared.CODE + arms.CODE,
    "wanted": importing.CODE + prepared.CODE + wanted.CODE,
    "prerank": importing.CODE + prepared.CODE + parts.CODE,
    "retune": importing.CODE + prepared.CODE + liked.CODE,
    "retune wanted": importing.CODE + prepared.CODE + wanted_trials.CODE,
    "study": importing.CODE + prepared.CODE + fits.CODE,
    "unified": importing.CODE + prepared.CODE + unified.CODE,
}
#: by stage, the modules that make it
MAKERS = {
    "import": ["ranker.training.importing"],
    "prepare": ["ranker.training.prepared"],
    "plugin": ["ranker.training.plugins", "features.baselines"],
    "arms": ["ranker.training.arms"],
    "wanted": ["ranker.training.wanted"],
    "prerank": ["ranker.training.wanted", "ranker.prerank.distil"],
    "retune": ["ranker.retune.liked"],
    "retune wanted": ["ranker.retune.wanted"],
    "study": ["ranker.studies.fits"],
    "unified": ["ranker.studies.unified"],
}
#: what makers import that cannot change what they make, and why
UNREAD = {
    "ranker.config": "its values enter the keys",
    "ranker.settings": "its values enter the keys",
    "ranker.studies.variants": "its values enter the keys",
    "ranker.training.fetch": "the files that it fetches enter the import's key",
    "ranker.hashes": "it makes keys alone",
    "features.files": "it writes what it is given",
    "features.progress": "it tells how far that is",
    "ranker.torchrun.place": "how many processes fit together enters the key",
    "ranker.torchrun.together": "how many processes fit together enters the key",
    "features.machine": "how many fits run at a time changes none of them",
    "ranker.code_hash": "it makes keys alone",
    "ranker.training.stages": "it keeps what was made",
    "ranker.training.booster.check_params": "it refuses settings, or does nothing",
    "ranker.training.booster.check_monotone": "it refuses settings, or does nothing",
    "ranker.training.booster.WANTED_TABLE": "what `check_params` says",
    "ranker.candidates.named.check_sources": "it refuses settings, or does nothing",
    "ranker.candidates.named.check_against": "it refuses settings, or does nothing",
    "ranker.candidates.seeds": "the sources ask it, the table of co-occurrence does not; the wanted part has the wing",
    "ranker.candidates.source": "likewise",
    "ranker.candidates.at_most.AtMost": "it refuses settings, or limits lists",
    "ranker.reranking.diversity.check_diversity": "it refuses settings, or does nothing",
    "ranker.reranking.rules.Rules": "it refuses settings, or moves items of lists",
    "ranker.candidates.filters.filters_of": "it refuses settings here; the wanted part has the module itself",
    "features.arrays": "it writes and maps what it is given",
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


Edit = Callable[[str], str]


@pytest.fixture
def anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Edit], list[str]]:
    """Return a function (file, edit of its text) -> the stages whose code has another hash after it."""

    def keys(edited: Path | None = None, path: Path | None = None) -> dict[str, str]:
        with monkeypatch.context() as patched:
            if edited is not None:
                patched.setattr(module, "hash_source", lambda p: hash_source(edited if p == path else p))
            code_hash.cache_clear()
            found = {stage: code_hash(*names) for stage, names in CODE.items()}
        code_hash.cache_clear()
        return found

    def changed(file: str, edit: Edit) -> list[str]:
        text = (ROOT / file).read_text()
        edited = tmp_path / "edited.py"
        edited.write_text(edit(text))
        assert edited.read_text() != text, "the edit changes nothing"
        before, after = keys(), keys(edited, ROOT / file)
        return [stage for stage in CODE if before[stage] != after[stage]]

    return changed


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("ranker/cli/train.py", []),
        ("ranker/server.py", []),
        ("ranker/training/objective.py", ["arms", "wanted", "prerank", "retune", "retune wanted", "study", "unified"]),
        (
            "ranker/metrics/pair_accuracy.py",
            ["arms", "wanted", "prerank", "retune", "retune wanted", "study", "unified"],
        ),
        ("ranker/lists/report.py", []),
        ("ranker/lists/asked.py", ["wanted", "prerank", "retune wanted"]),
        ("ranker/candidates/nearest.py", ["wanted", "prerank", "retune wanted"]),
        ("ranker/retune/space.py", ["retune", "retune wanted"]),
        ("ranker/uplift/measured.py", ["study", "unified"]),
        ("ranker/studies/run.py", []),
        ("features/baselines.py", ["plugin"]),
        (
            "features/counters/timeline.py",
            ["prepare", "plugin", "arms", "wanted", "prerank", "retune", "retune wanted", "study", "unified"],
        ),
        (
            "features/settings.py",
            ["import", "prepare", "plugin", "arms", "wanted", "prerank", "retune", "retune wanted", "study", "unified"],
        ),
        (
            "features/log/dataset.py",
            ["import", "prepare", "plugin", "arms", "wanted", "prerank", "retune", "retune wanted", "study", "unified"],
        ),
    ],
)
def test_changed_code_makes_anew_what_it_makes_and_nothing_else(
    file: str, stages: list[str], anew: Callable[[str, Edit], list[str]]
) -> None:
    assert anew(file, lambda text: f"{text}\nADDED = 1\n") == stages


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("features/settings.py", "LONGEST = 36_525 * DAY", "LONGEST = 36_524 * DAY"),
        ("ranker/training/objective.py", "FAR = 500.0", "FAR = 400.0"),
    ],
)
def test_another_number_makes_anew(file: str, old: str, new: str, anew: Callable[[str, Edit], list[str]]) -> None:
    assert "arms" in anew(file, lambda text: text.replace(old, new))


def reworded(text: str) -> str:
    """Return the code with other docstrings, comments and layout, and with other help of its settings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = "Other words."
        if isinstance(node, ast.keyword) and node.arg == "description":
            node.value = ast.Constant("Other help.")
    return f"# other layout\n{ast.unparse(tree)}"


@pytest.mark.parametrize(
    "file", ["features/settings.py", "features/baselines.py", "features/plugin.py", "ranker/training/arms.py"]
)
def test_other_words_make_nothing_anew(file: str, anew: Callable[[str, Edit], list[str]]) -> None:
    assert anew(file, reworded) == []


def test_other_words_in_the_towers_settings_fit_no_tower_anew(tmp_path: Path) -> None:
    text, path = (ROOT / "neural/settings.py").read_text(), tmp_path / "settings.py"
    assert "description=" in text
    path.write_text(reworded(text))
    assert hash_source(path) == hash_source(ROOT / "neural/settings.py")


#: a module of settings
SETTINGS = """
from pydantic import BaseModel, Field

class Options(BaseModel):
    "What it takes."

    width: int = Field(default=8, gt=0, description="How wide.", title="Width")  # of the layers
    "Of a vector."

    def half(self, by='two'):
        print('half')
        return self.width * 0.5
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("What it takes", "Options", True),
        ("Of a vector", "In numbers", True),
        ("# of the layers", "# the width", True),
        ('"How wide."', '"How wide a layer is."', True),
        ('description="How wide.", title="Width"', 'description=f"How {1}"', True),
        ("    width: int = Field(", "    width: int = Field(\n        ", True),
        ("default=8", "default=9", False),
        ("gt=0", "gt=1", False),
        ("width: int", "width: float", False),
        ("width: int", "breadth: int", False),
        ("Field(default=8", "Other(default=8", False),
        ("Field(default=8", "Field(alias='w', default=8", False),
        ("class Options", "N = 1\nclass Options", False),
        ("by='two'", "by='three'", False),
        ("'half'", "'a half'", False),
        ("0.5", "0.25", False),
        ("8,", "8.0,", False),
    ],
)
def test_the_hash_of_code_is_of_what_it_does(old: str, new: str, same: bool, tmp_path: Path) -> None:
    before, after = tmp_path / "before.py", tmp_path / "after.py"
    assert old in SETTINGS
    before.write_text(SETTINGS)
    after.write_text(SETTINGS.replace(old, new))
    assert (hash_source(before) == hash_source(after)) == same


@pytest.mark.parametrize("name", ["broken.py", "compiled.so"])
def test_what_is_not_python_is_hashed_by_its_bytes(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"def (:  # one")
    first = hash_source(path)
    path.write_bytes(b"def (:  # two")
    hash_source.cache_clear()
    assert hash_source(path) != first


def test_a_name_that_is_no_module_is_not_hashed_as_nothing() -> None:
    with pytest.raises(ValueError, match=r"ranker\.no_such"):
        code_hash("ranker.no_such")


def keys_of(config: Config, folder: Path) -> dict[str, str]:
    """Train, and return the keys of what was made, by stage."""
    train(config, folder)
    stamps = {"import": "import.key", "plugin": "plugins/*.key", "arms": "arms/*.key"}
    stamps["wanted"] = "wanted/*.key"
    found = {stage: json.loads(next(config.work.glob(name)).read_text())["key"] for stage, name in stamps.items()}
    ready = prepared.prepare(config)
    return found | {
        "prepare": ready.key,
        "retune": liked.LikedBench.of(ready).key,
        "retune wanted": wanted_trials.WantedBench.of(ready).key,
    }


def test_code_is_hashed_by_several_threads() -> None:
    """Fits side by side ask for it; at different depths of their stacks, and switched amid a parse."""
    files = sorted((ROOT / "ranker" / "training").glob("*.py"))
    before = gc.get_threshold()

    def switch(*_: object) -> None:
        time.sleep(1e-5)

    def deep(depth: int, path: Path) -> str:
        return deep(depth - 1, path) if depth else hash_source.__wrapped__(path)

    gc.callbacks.append(switch)
    gc.set_threshold(50)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(deep, range(len(files)), files))
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(switch)
    assert found == [hash_source.__wrapped__(path) for path in files]


def test_each_stages_key_on_disk_has_the_hash_of_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_world(tmp_path)
    path.write_text(path.read_text().replace("trees = 60", "trees = 3") + "[lists]\ngroups = 50\n")
    config = load_config(path)
    before = keys_of(config, tmp_path / "bundle")
    moved = {importing: {*before}, prepared: {*before} - {"import"}, plugins: {"plugin"}, arms: {"arms"}}
    for stage, expected in {**moved, wanted: {"wanted"}, liked: {"retune"}, wanted_trials: {"retune wanted"}}.items():
        asked: set[tuple[str, ...]] = set()

        def noted(*names: str, asked: set[tuple[str, ...]] = asked) -> str:
            asked.add(names)
            return "another"

        with monkeypatch.context() as patched:
            patched.setattr(stage, "code_hash", noted)
            after = keys_of(config, tmp_path / "bundle")
        assert {name for name in before if before[name] != after[name]} == expected, stage.__name__
        assert asked == {(*stage.CODE, "features") if stage in (plugins, wanted) else stage.CODE}


def test_a_plugins_key_hashes_its_own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(plugins, "code_hash", lambda *names: asked.append(names) or "a")
    monkeypatch.setattr(ALS, "__module__", "neural.two_tower")
    plugins.plugin_stage(prepared.prepare(load_config(write_world(tmp_path))), "als", 0)
    assert asked == [(*plugins.CODE, "neural")]


def test_a_file_two_folders_deep_and_a_library_are_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    deep = tmp_path / "a_package" / "one" / "two.py"
    deep.parent.mkdir(parents=True)
    (tmp_path / "a_package" / "__init__.py").touch()
    found = set()
    for text in ("VALUE = 1", "VALUE = 2"):
        deep.write_text(text)
        code_hash.cache_clear()
        hash_source.cache_clear()
        found.add(code_hash("a_package"))
    monkeypatch.setattr(module, "versions", lambda: {"numpy": "0"})
    code_hash.cache_clear()
    found.add(code_hash("a_package"))
    code_hash.cache_clear()
    assert len(found) == 3
