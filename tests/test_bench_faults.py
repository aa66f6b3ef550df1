"""The benchmark of faults: a few of each, so that it cannot rot, and faults of ours that it must find."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent / "bench" / "peers"))

import faults_disk as disks
from faults_cut import cut
from faults_kill import killed, warmed

from features.log.dedupe import SeenIds
from ranker.recording import exports


@pytest.fixture(scope="module")
def faults() -> Any:
    spec = importlib.util.spec_from_file_location("faults_benchmark", Path(__file__).parent / "bench" / "faults.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("faults"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(exports, "EXPORT_EVERY", exports.EXPORT_EVERY)  # `warmed` changes it
    yield
    warmed.cache_clear()


def test_the_benchmark_runs_is_resumed_and_adds_up(faults: Any, folder: str, tmp_path: Path) -> None:
    tasks = [("kill", (1, 3, folder)), ("cut", (1, 4, folder)), ("fuzz", (1, 400, folder))]
    store = faults.Store(tmp_path / "results.jsonl")
    faults.run(tasks, store, 1)
    with store.path.open("a") as file:
        file.write('[["kill", [')  # as where a run was stopped
    again = faults.Store(store.path)
    assert again.found == store.found
    figures = faults.summary(again.found)
    assert figures == json.loads(json.dumps(figures))
    assert (figures["kill_trials"], figures["power_cut_trials"], figures["kill_trials_midway"] > 0) == (3, 4, True)
    assert [figures[name] for name in ("kill_lost_events", "power_cut_lost_events", "twice_counted_events")] == [0] * 3
    assert [figures[f"fuzz_{name}"] for name in ("crashes", "hangs", "without_status", "internal")] == [0] * 4
    assert figures["fuzz_messages"] >= 400
    assert {"OK", "INVALID_ARGUMENT", "UNIMPLEMENTED"} <= figures["fuzz_codes"].keys()
    assert figures["problems"] == []
    assert "power_cut_lost_events" in faults.table(figures)


def test_all_trials_are_asked_for(faults: Any) -> None:
    tasks = faults.tasks_of(1000, 995, 50_000, Path("x"))
    assert len(set(tasks)) == len(tasks)
    trials = {part: sum(arguments[1] for name, arguments in tasks if name == part) for part in faults.PARTS}
    assert (trials["kill"] + trials["serve"], trials["serve"], trials["cut"], trials["fuzz"]) == (1000, 50, 995, 50_000)


def test_a_log_that_is_not_synced_is_found(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks.Journal, "synced", lambda *_: None)
    found = cut(2, 4, folder)
    assert found["lost"] > 0 or found["problems"]


def test_events_that_count_twice_are_found(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SeenIds, "known", lambda _, keys: np.zeros(len(keys), bool))
    found = killed(3, 3, folder)
    assert found["twice"] > 0


@pytest.fixture
def journal(tmp_path_factory: pytest.TempPathFactory) -> disks.Journal:
    """Of a file that was synced and grew, of one that took its place, and of one whose name was not synced."""
    root = tmp_path_factory.mktemp("disk")
    (root / "old").write_bytes(b"o" * 600)
    journal = disks.Journal(root)
    with disks.watched(journal):
        handle = os.open(root / "old", os.O_WRONLY | os.O_APPEND)
        os.write(handle, b"s" * 1000)
        os.fsync(handle)
        os.write(handle, b"n" * 1000)
        os.close(handle)
        (root / "new").write_bytes(b"whole")
        os.rename(root / "new", root / "renamed")
    return journal


def drawn(journal: disks.Journal, point: int, seed: int) -> dict[str, bytes]:
    disk = disks.after_cut(journal, point, np.random.default_rng(seed))
    return {name: disk.there.files.get(node, b"") for name, node in disk.there.folders[_root(journal)].items()}


def _root(journal: disks.Journal) -> int:
    return journal.root.stat().st_ino


def test_a_cut_keeps_what_was_synced_and_may_drop_the_rest(journal: disks.Journal) -> None:
    found = [drawn(journal, len(journal.steps), seed) for seed in range(300)]
    assert all(one["old"][:1600] == b"o" * 600 + b"s" * 1000 for one in found)
    behind = {one["old"][1600:] for one in found}
    assert {b"", b"n" * 1000, b"\0" * 1000} <= behind
    assert any(0 < len(one) < 1000 for one in behind)
    assert any(b"\0" in one and b"n" in one for one in behind)
    names = [set(one) - {"old"} for one in found]
    assert [{"renamed"} in names, set() in names, {"new"} in names] == [True] * 3
    assert {one["renamed"] for one in found if "renamed" in one} >= {b"", b"whole"}


def test_a_kill_keeps_all_and_makes_nothing_durable(journal: disks.Journal, tmp_path: Path) -> None:
    disk = disks.after_kill(journal, len(journal.steps))
    durable = disks.made(disk, _root(journal), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "old": b"o" * 600 + b"s" * 1000 + b"n" * 1000,
        "renamed": b"whole",
    }
    assert list(durable.folders[tmp_path.stat().st_ino]) == ["old"]
    assert durable.files[(tmp_path / "old").stat().st_ino] == b"o" * 600 + b"s" * 1000
    after = disks.Journal(tmp_path, durable)
    with disks.watched(after):
        pass
    assert b"o" * 600 + b"s" * 1000 in {drawn(after, len(after.steps), seed)["old"] for seed in range(30)}


def test_before_a_sync_nothing_of_it_is_durable(journal: disks.Journal) -> None:
    point = next(k for k, step in enumerate(journal.steps) if isinstance(step, disks.Synced))
    assert b"o" * 600 in {drawn(journal, point, seed)["old"] for seed in range(30)}
