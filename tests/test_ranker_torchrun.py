"""One command under `torchrun`: the first process does all, the others take part in fits, and all end together."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import fit_data
from served import ROOT, pairlift
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from world import SMALL_TOWERS, make_world, write_world

from features.errors import PairliftError
from features.pairing.split import make_split
from features.plugin import FitData, make_plugin
from features.settings import SplitSettings
from ranker.bundle import load_bundle
from ranker.config import load_config
from ranker.pipeline import Pipeline
from ranker.request import Request
from ranker.torchrun import together as module
from ranker.torchrun.together import follow, leading, processes, together
from ranker.training.plugins import plugin_errors, plugin_stage
from ranker.training.prepared import prepare

TOWERS = "\n".join(f"{key} = {value}" for key, value in {**SMALL_TOWERS, "dropout": 0.0, "retrieval_epochs": 0}.items())

PLUGINS = """
import os
import signal
import time
from pathlib import Path

from features.baselines import Noise

HERE = Path(__file__).parent


def met(name):
    until = time.monotonic() + 60
    while not (HERE / name).exists():
        assert time.monotonic() < until
        time.sleep(0.01)


class Meeting(Noise):
    parallel = True

    def fit(self, data):
        (HERE / f"met{data.process}").write_text(f"{data.processes} {len(data.log)} {data.scratch}")
        met(f"met{1 - data.process}")
        super().fit(data)
        if data.process:
            self.other()
        else:
            self.first()

    def other(self):
        pass

    def first(self):
        pass


class OtherFails(Meeting):
    def other(self):
        (HERE / "failed").touch()
        raise OSError("no room")

    def first(self):
        met("failed")
        time.sleep(0.2)
        raise RuntimeError("connection closed by peer")


class OtherDies(Meeting):
    def other(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def first(self):
        time.sleep(0.5)
        raise RuntimeError("connection closed by peer")


class FirstFails(Meeting):
    def other(self):
        met("failed")
        time.sleep(0.2)
        raise RuntimeError("connection closed by peer")

    def first(self):
        (HERE / "failed").touch()
        raise OSError("no room")


class OtherFailsUnseen(OtherFails):
    def first(self):
        time.sleep(60)


class Alone(Meeting):
    parallel = False

    def fit(self, data):
        Noise.fit(self, data)
        assert data.processes == 1
"""


def data_of(scratch: Path) -> FitData:
    world = make_world(5, n_users=12)
    return replace(fit_data(world, make_split(SplitSettings(), world.log, "UTC")), scratch=scratch)


def other(work: Path) -> None:
    """Be the second process; a failure ends the first one, as `torchrun` does."""
    os.environ["RANK"], code = "1", 1
    try:
        follow(work)
        code = 0
    except PairliftError as error:
        (work / "said").write_text(str(error))
        os.kill(os.getppid(), signal.SIGTERM)
        code = 3
    finally:
        os._exit(code)


@dataclass
class Pair:
    """Two processes of a `torchrun`: this one is the first."""

    work: Path
    child: int  # the other one's number
    code: int | None = None  # what it ended with

    def ended(self) -> int:
        """Return what the other one ended with, before long."""
        until = time.monotonic() + 60
        while self.code is None and time.monotonic() < until:
            found, status = os.waitpid(self.child, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if found else None
            time.sleep(0.02)
        assert self.code is not None, "the other process outlives the first one"
        return self.code

    def fit(self, name: str) -> FitData:
        """Fit a plugin of `PLUGINS` as a command does; return what it was fitted on here."""
        path = f"shared_plugins:{name}"
        with (
            leading(self.work),
            plugin_errors("p", "fit"),
            together("p", path, {}, data_of(self.work / "scratch")) as data,
        ):
            make_plugin("p", path, {}).fit(data)
        return data


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """The other process has started, and waits for the first."""
    run = {"TORCHELASTIC_RUN_ID": "run", "TORCHELASTIC_RESTART_COUNT": "0", "MASTER_PORT": "1"}
    for name, value in {**run, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "GRACE", 1.0)
    child = os.fork()
    if not child:
        other(tmp_path)
    (tmp_path / "shared_plugins.py").write_text(PLUGINS)
    monkeypatch.syspath_prepend(tmp_path)  # the other one does not know of it: it is told
    made = Pair(tmp_path, child)
    yield made
    sys.modules.pop("shared_plugins", None)
    if made.code is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_both_fit_on_the_same_data_and_end_together(pair: Pair) -> None:
    data = pair.fit("Meeting")
    assert pair.ended() == 0
    assert (data.process, data.processes) == (0, 2)
    n = len(data.log)
    assert (pair.work / "met0").read_text() == f"2 {n} {pair.work / 'scratch'}"
    assert (pair.work / "met1").read_text() == f"2 {n} None"  # one writes, and what the other fits is thrown away
    assert not list(pair.work.glob(".torchrun*"))


def test_a_class_that_does_not_say_so_is_fitted_by_the_first_alone(pair: Pair) -> None:
    assert pair.fit("Alone").processes == 1
    assert pair.ended() == 0
    assert not list(pair.work.glob("met*"))


@pytest.mark.parametrize(
    ("name", "said", "code"),
    [
        ("OtherFails", r"^\[plugins.p\]: process 1 of torchrun: fit\(\) raised OSError: no room$", 0),
        (
            "OtherDies",
            r"^\[plugins.p\]: process 1 of torchrun: it has ended; the same command resumes .*$",
            -signal.SIGKILL,
        ),
        ("FirstFails", r"^\[plugins.p\] fit\(\) raised OSError: no room$", 0),
        ("OtherFailsUnseen", r"^\[plugins.p\]: torchrun ends this process", 3),
    ],
)
def test_where_one_fails_all_end_and_one_sentence_says_why(pair: Pair, name: str, said: str, code: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(PairliftError, match=said):
        pair.fit(name)
    assert pair.ended() == code
    assert signal.getsignal(signal.SIGTERM) == before
    if code == 3:  # the first one had not noticed
        assert "no room" in (pair.work / "said").read_text()


def test_a_fit_by_two_is_not_taken_for_a_fit_by_one(pair: Pair) -> None:
    paths = [f"shared_plugins:{name}" for name in ("Meeting", "Alone")]
    with leading(pair.work):
        assert [processes(path) for path in paths] == [2, 1]
    assert pair.ended() == 0
    assert [processes(path) for path in paths] == [1, 1]


def torchrun(*words: object) -> "subprocess.CompletedProcess[str]":
    """Run a command by two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "ranker.cli", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


def losses(points: Iterable[Mapping[str, Any]]) -> list[float]:
    return [float(point["loss"]) for point in points if point["loss"]]


def test_torchrun_trains_the_bundle_that_one_process_trains(tmp_path: Path) -> None:
    toml = write_world(tmp_path)
    text = toml.read_text().replace('plugins = ["als"]', 'plugins = ["two_tower"]').replace("trees = 60", "trees = 5")
    toml.write_text(f'{text}\n[plugins.two_tower]\nclass = "neural.two_tower:TwoTower"\n{TOWERS}\n')
    done = torchrun("train", toml, "--out", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test PairAccuracy") == 1
    assert done.stderr.count("2 processes fit it together") == 1
    bundle = load_bundle(tmp_path / "bundle")
    pipeline = Pipeline(bundle)
    answer = pipeline.rank(Request(3, bundle.state.end, state=bundle.state), np.arange(20, dtype=np.int32))
    pipeline.close()
    assert len(answer.item) == 20
    alone = plugin_stage(prepare(load_config(toml)), "two_tower", 0)
    with (tmp_path / "bundle/curves/two_tower.csv").open() as file:
        both = losses(csv.DictReader(file))
    assert len(both) > 4
    np.testing.assert_allclose(both, losses(alone.curve), rtol=1e-5)  # type: ignore[attr-defined]


def test_the_report_of_torchrun_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pairlift.toml").write_text("[split]\nt4 = 1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    code, said = pairlift("train", tmp_path / "pairlift.toml", "--out", tmp_path / "bundle")
    found = ProcessFailure(local_rank=0, pid=os.getpid(), exitcode=code, error_file=str(tmp_path / "error.json"))
    assert code == 2
    assert found.message in said
    assert "t4" in found.message
    assert found.timestamp > 0


def test_a_command_that_fits_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "run", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    code, said = pairlift("config")
    assert code == 2
    assert "commands whose fits processes can share (train, retune, lists, sources, uplift, study)" in said
