"""What is installed serves: `pip install pairlift` without what trains, and a client with grpcio and protobuf alone.

Each is a process that can import nothing but our code, Python's own and what the named requirements bring with them.
"""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from served import ROOT, pairlift
from world import SMALL_TOWERS, write_world

from ranker.cli.train import TRAIN

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLIENT = ["grpcio", "protobuf"]
#: any other module is not to be found, whether it is installed here or not
ONLY = """
import sys
sys.path[:0] = {path}
ALLOWED, OURS = set({allowed}), {{"features", "neural", "ranker", "pairlift"}}

class Only:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        known = top in ALLOWED or top in OURS or top in sys.stdlib_module_names or top.startswith("_")
        return self.finder.find_spec(name, path, target) if known else None

sys.meta_path[:] = map(Only, sys.meta_path)
"""


def brought_by(names: list[str]) -> set[str]:
    """Return the distributions that an installation of these brings, by their own metadata."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name not in found:
            try:
                needed = requires(name) or []
            except PackageNotFoundError:
                continue  # for another system
            found.add(name)
            todo += [re.split(r"[^\w.-]", line)[0] for line in needed if "extra ==" not in line]
    return found


def importable(names: list[str]) -> list[str]:
    """Return the top-level modules of these distributions and of what they bring."""
    dists = brought_by(names)
    of = packages_distributions().items()
    return sorted(top for top, by in of if any(re.sub(r"[-_.]+", "-", one).lower() in dists for one in by))


def run(script: str, names: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    head = ONLY.format(path=[str(ROOT), str(ROOT / "proto")], allowed=importable(names))
    words = [sys.executable, "-c", head + script, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)


def base() -> list[str]:
    return [re.split(r"[>=<\[]", one)[0] for one in PYPROJECT["dependencies"]]


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with towers and ALS, trained by the command."""
    folder = tmp_path_factory.mktemp("installed")
    toml = write_world(folder)
    options = "\n".join(f"{name} = {json.dumps(value)}" for name, value in SMALL_TOWERS.items())
    text = toml.read_text().replace(
        'class = "features.baselines:Noise"', 'class = "neural.two_tower:TwoTower"\n' + options
    )
    toml.write_text(text.replace("plugins.noise", "plugins.towers").replace('["als"]', '["als", "towers"]'))
    code, said = pairlift("train", toml, "--out", folder / "bundle")
    assert code == 0, said
    return folder / "bundle"


SERVE = """
from pathlib import Path
import pyarrow as pa
from ranker.bundle import load_bundle
from ranker.client import Client
from ranker.recording.batch import Batch
from ranker.server import RecordTo, Server

folder = Path(sys.argv[1])
server = Server(load_bundle(folder), clock="snapshot", record_to=RecordTo(folder.parent / "log"))
server.start()
with Client(server.address, timeout=60) as client:
    catalog = server.pipeline.bundle.state.catalog
    user, items = int(catalog.user_ids[3]), catalog.item_ids[:5].tolist()
    ranked, listed = client.rank(user, items, explain=True), client.recommend(user, k=5)
    assert len(ranked.items) == 5 and len(listed.items) == 5, (ranked, listed)
    assert not ranked.degraded and not listed.degraded, (ranked.degraded, listed.degraded)
    assert any(name == "towers__dot" and value == value for name, value, _ in ranked.items[0].features), ranked.items[0]
    columns = {"event_id": ["a"], "user_id": [user], "item_id": [items[0]], "ts": [server.pipeline.state.end + 1]}
    columns |= {"surface": pa.nulls(1, pa.string()), "organic": pa.nulls(1, pa.bool_())}
    columns |= {"request_id": pa.nulls(1, pa.string()), "position": pa.nulls(1, pa.int32())}
    (outcome,) = client.record([Batch(pa.table(columns), {"play": pa.array([0.9])}, [])])
    assert outcome.recorded == 1, outcome
    assert Path(client.snapshot().folder).is_dir()
server.stop(grace=0)
print("answered")
"""


def test_what_is_installed_without_training_serves_towers_and_records(towers: Path) -> None:
    done = run(SERVE, base(), towers)
    assert done.returncode == 0, done.stderr
    assert "answered" in done.stdout


CLI = "from ranker.cli.main import main; sys.argv[0] = 'pairlift'; main()"


@pytest.mark.parametrize("verb", [[], ["serve"], ["train"], ["recommend"], ["bundle"], ["retune"]], ids=" ".join)
def test_every_help_is_there_without_what_trains(verb: list[str]) -> None:
    done = run(CLI, base(), *verb, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage: pairlift" in done.stdout


def test_a_bundle_is_verified_and_shown_and_its_toml_checked_without_what_trains(towers: Path) -> None:
    for words in (
        ["bundle", "verify", towers],
        ["bundle", "show", towers],
        ["validate", towers.parent / "pairlift.toml"],
    ):
        done = run(CLI, base(), *words)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", ["train TOML --out x", "retune TOML", "lists TOML", "bundle onnx BUNDLE --out x"])
def test_what_trains_is_named_with_the_extra_that_brings_it(towers: Path, words: str) -> None:
    places = {"TOML": towers.parent / "pairlift.toml", "BUNDLE": towers}
    done = run(CLI, base(), *(places.get(word, word) for word in words.split()))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "pip install 'pairlift[train]'" in done.stderr
    assert "torch" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_packages_that_train_are_those_of_the_extra() -> None:
    extra = PYPROJECT["optional-dependencies"]["train"]
    assert sorted(re.split(r"[>=<\[]", one)[0] for one in extra) == sorted(TRAIN)
    assert not set(TRAIN) & brought_by(base())


def test_a_client_needs_grpcio_and_protobuf_alone(towers: Path) -> None:
    ask = """
from ranker.client import Client, ServerError
try:
    Client("127.0.0.1:1", timeout=5).recommend("user", 3)
except ServerError as error:
    print(error.code, error)
"""
    done = run(ask, CLIENT)
    assert done.returncode == 0, done.stderr
    assert "UNAVAILABLE no server answers" in done.stdout
