"""The house rules that imports and files keep."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from numba.core.dispatcher import Dispatcher
from structure import PACKAGES, cycles, entered, imports, module_graph, modules, part_graph
from world import Parts, write_world

from features.rows import assemble
from features.schema import one_request
from ranker.bundle import Bundle
from ranker.cli.main import cli
from ranker.config import Config, load_config
from ranker.examples import example_names, example_text
from ranker.pipeline import Pipeline
from ranker.request import Request
from ranker.train import train

ROOT = Path(__file__).parent.parent
OURS = {"features", "neural", "ranker", "pairlift"}
MAY_IMPORT = {"features": {"features"}, "neural": {"features", "neural"}, "ranker": {"features", "ranker", "pairlift"}}
TORCH = {
    "answers.py", "checkpoints.py", "device.py", "distil.py", "engine.py", "export.py", "heads.py", "hstu.py",
    "losses.py", "model.py", "ranks.py", "retrieval.py", "train.py", "weights.py",
}  # fmt: skip
STUBS = {"administrator.py", "server.py", "client.py", "wire.py", "messages.py"}
#: modules of a folder
MOST = 20
#: lines of a file of tests
LONGEST = 700


def packages_of(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports."""
    return {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_they_may(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        extra = (packages_of(path) & OURS) - MAY_IMPORT[package]
        assert not extra, f"{path.name} imports {extra}"
        if "pairlift" in packages_of(path):
            assert path.name in STUBS or "serving" in path.parts


def test_torch_is_for_training_alone() -> None:
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            if "torch" in packages_of(path):
                assert package == "neural", path
                assert path.name in TORCH, path
    networks = ("two_tower", "cross_encoder", "sasrec", "item2vec", "limaml", "semantic_ids", "final")
    plugins = ", ".join(["features.baselines", *(f"neural.{name}" for name in networks)])
    loaded = f"import ranker.server, ranker.bundle, {plugins}, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_kernels_hold_no_lock() -> None:
    """So that the threads of requests run at the same time."""
    kernels = {}
    for name, path in [module for package in PACKAGES for module in modules(package).items()]:
        if "njit" in path.read_text():
            for symbol, found in vars(importlib.import_module(name)).items():
                if isinstance(found, Dispatcher):
                    kernels[name, symbol] = found.targetoptions.get("nogil", False)
    assert len(kernels) > 50
    assert [kernel for kernel, free in kernels.items() if not free] == []


def is_wing(path: Path) -> bool:
    return path.name == "__init__.py" and path.parent.parent != ROOT


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_make_no_circle_and_folders_are_not_crowded(package: str) -> None:
    of_modules, of_parts = module_graph(package), part_graph(package)
    assert not cycles(of_modules)
    assert not cycles(of_parts)
    for folder in {path.parent for path in modules(package).values()}:
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST, folder
    print(
        f"{package}: {len(of_modules)} modules, {sum(map(len, of_modules.values()))} imports, no circle; "
        f"{len(of_parts)} parts, {sum(map(len, of_parts.values()))} imports, no circle"
    )
    for part, asked in of_parts.items():
        print(f"  {part} <- {', '.join(sorted(name.partition('.')[2] for name in asked)) or 'none'}")


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert cycles(graph) == [["b", "c"]]
    assert cycles({"a": {"a"}}) == [["a"]]


def test_every_wing_says_in_a_sentence_what_it_is_for() -> None:
    wings = [path for package in PACKAGES for path in (ROOT / package).rglob("__init__.py") if is_wing(path)]
    assert len(wings) > 10
    for path in wings:
        tree = ast.parse(path.read_text())
        sentence = ast.get_docstring(tree) or ""
        assert 30 < len(sentence) < 160, path
        assert "\n" not in sentence, path
        plain = ("parallel", "pretraining", "vocabulary", "warm")
        if path.parent.parent == ROOT / "neural" and path.parent.name not in plain:
            assert len(tree.body) == 3, f"{path}: of a plugin's wing, the class alone is imported by the wing's name"
        elif path.parent.name != "examples":
            assert len(tree.body) == 1, f"{path}: a wing's modules are imported by their own names"


def test_files_of_tests_are_named_after_what_they_test() -> None:
    known = {name.replace(".", "_") for package in PACKAGES for name in modules(package)}
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        subject = path.stem.removeprefix("test_")
        words = subject.split("_")
        parts = {"_".join(words[:n]) for n in range(2, len(words) + 1)}
        assert subject == "layout" or subject.startswith("bench_") or parts & known, path.name
        assert len(path.read_text().splitlines()) < LONGEST, path.name


def test_the_ways_through_the_modules(bundle: Bundle, parts: Parts, tmp_path: Path) -> None:
    """Printed with `-s`: which modules a call enters, in the order of the run."""
    state, spec = bundle.state, bundle.spec
    items = np.arange(20, dtype=np.int32)
    one, many = one_request(3, state.end, 0, items), parts.groups.of("booster").requests
    config = load_config(write_world(tmp_path))
    assemble(state, spec, one)  # what is made once is there
    ways = {
        "rows.assemble, many requests": entered(lambda: assemble(state, spec, many)),
        "rows.assemble, one request": entered(lambda: assemble(state, spec, one)),
        "train": entered(lambda: train(config, tmp_path / "bundle")),
    }
    asked = Request(3, state.end, state=state)
    for name, call in {"rank": lambda p: p.rank(asked, items), "recommend": lambda p: p.recommend(asked, 10)}.items():
        pipeline = Pipeline(bundle)  # its threads begin with the call, so that what they enter is seen
        ways[f"Pipeline.{name}"] = entered(lambda call=call, pipeline=pipeline: call(pipeline))  # type: ignore[misc]
        pipeline.close()
    for title, way in ways.items():
        print(way.text(title))
        assert way.steps
    assert next(iter(ways["rows.assemble, one request"].steps.values())) == "features.rows"


def test_only_examples_name_a_data_set() -> None:
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            if path.name in ("main.py", "setup.py", "demo.py"):
                continue  # their help and the demo say which example to begin with
            assert not re.search(r"movielens|kuairand|ml-100k", path.read_text(), re.IGNORECASE), path


@pytest.mark.parametrize("name", ["template", *example_names()])
def test_examples_are_valid_and_round_trip(name: str, tmp_path: Path) -> None:
    (tmp_path / "pairlift.toml").write_text(example_text(name))
    config = load_config(tmp_path / "pairlift.toml")
    assert config.grade_names
    for plugin in config.ranker.plugins:
        assert plugin in config.plugins


def test_the_readme_calls_from_other_languages_in_the_words_of_the_contract() -> None:
    text, contract = (ROOT / "README.md").read_text(), (ROOT / "proto/pairlift/v1/ranking.proto").read_text()
    node, go = (re.findall(rf"```{name}\n(.*?)```", text, re.DOTALL)[0] for name in ("js", "go"))
    assert "keepCase: true" in node
    sent = re.findall(r"(\w+):", node[node.index("client.Recommend") :].partition("=>")[0])
    fields = {*sent, *re.findall(r"answer\.([a-z_]+)", node)}
    fields |= {name.lower() for name in re.findall(r"Get(\w+)\(\)|\b([A-Z]\w*):", go) for name in name if name}
    assert {"user", "integer", "k", "scores", "reason", "items"} <= fields
    assert [name for name in fields - {"kind"} if not re.search(rf"\b{name} = \d+;", contract)] == []


def test_the_template_names_every_table() -> None:
    text = example_text("template")
    for name in Config.model_fields:
        if name not in ("path", "fetch", "name"):
            assert re.search(rf"^(# )?\[+{name}", text, re.MULTILINE), f"[{name}] is not in the template"


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_every_verb_is_in_the_readme_and_teaches() -> None:
    runner = CliRunner()
    for name, command in cli.commands.items():
        assert f"pairlift {name}" in readme(), name
        done = runner.invoke(cli, [name, "--help"])
        assert done.exit_code == 0
        assert len(command.help or "") > 60, name


def test_every_command_of_the_readme_is_real() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"\bmake ([a-z]+)", readme()):
        assert target in targets, f"make {target}"
    runner = CliRunner()
    for line in re.findall(r"^\s*pairlift ([^\n#]+)", readme(), re.MULTILINE):
        words = line.split()
        verb = words[:2] if isinstance(cli.commands.get(words[0]), click.Group) else words[:1]
        known = runner.invoke(cli, [*verb, "--help"]).output
        for option in re.findall(r"--[a-z-]+", line):
            assert option in known, f"pairlift {line}: {option}"


def test_the_readme_links_to_what_is_there_and_names_every_folder() -> None:
    links = re.findall(r"\]\(([^)]+)\)", readme())
    for link in links:
        assert (ROOT / link).exists(), link
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("__init__.py"):
            assert str(path.parent.relative_to(ROOT)) in links, path


def test_every_plugin_is_in_the_template() -> None:
    for name in (
        "neural.two_tower:TwoTower",
        "neural.cross_encoder:CrossEncoder",
        "neural.sasrec:SASRec",
        "neural.item2vec:Item2Vec",
        "neural.final:NetworkRanker",
        "neural.limaml:LiMAML",
        "neural.semantic_ids:SemanticIds",
        "features.baselines:ALS",
        "features.baselines:Noise",
    ):
        assert name in example_text("template")


def test_no_registry_and_no_path_of_a_machine_is_named() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=False, cwd=ROOT).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    for name in tracked:
        if name.endswith((".py", ".toml", ".md", ".txt", "Makefile", "run")) and name != "tests/test_layout.py":
            text = (ROOT / name).read_text()
            assert not re.search(r"pypi\.org|pythonhosted|/work/|/root/|/opt/wheels", text), name


def test_the_readmes_figures_are_those_of_the_committed_results() -> None:
    spec = spec_from_file_location("figures", ROOT / "tests" / "bench" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    figures = module_from_spec(spec)
    spec.loader.exec_module(figures)
    assert figures.with_figures(readme()) == readme(), "run `make figures`"


def test_constraints_pin_what_pyproject_asks_for() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = asked["optional-dependencies"]
    names = {
        re.split(r"[>=<\[]", d)[0].lower()
        for d in [*asked["dependencies"], *extras["train"], *extras["otel"], *extras["dev"]]
    }
    lines = (ROOT / ".ci" / "constraints.txt").read_text().lower().splitlines()
    pinned = {line.partition("==")[0].strip().replace("_", "-") for line in lines}
    assert names <= pinned
    assert "torch==2.13.0" in lines
