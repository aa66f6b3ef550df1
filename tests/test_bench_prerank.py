"""The benchmark of pre-ranking: a small world through all of it, so that it cannot rot."""

from typing import Any

import numpy as np
import pytest
from test_bench_lists import module_of
from world import write_world

from ranker.config import load_config
from ranker.prerank.distil import Seen

bench = module_of("prerank", "prerank_benchmark")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = write_world(tmp_path_factory.mktemp("prerank"))
    path.write_text(path.read_text() + "[sources]\nexclude_seen = false\n")
    return bench.trained_of(load_config(path))


def test_all_scorers_are_measured_on_the_same_requests(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "KEEP", 30)
    monkeypatch.setattr(bench, "TOP", 10)
    monkeypatch.setattr(bench, "CALLS", 2)
    monkeypatch.setattr(bench.kept_top, "__defaults__", (30,))
    monkeypatch.setattr(bench, "trained_of", lambda config: parts)
    monkeypatch.setattr(bench, "example", lambda: parts.prepared.config)
    found = bench.figures()
    assert {"prerank_kept_top50", "prerank_ms"} <= found.keys()
    assert 0.6 < found["prerank_kept_top50"] <= 1
    assert found["prerank_ms"] > 0


def test_what_is_kept_is_a_share_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TOP", 4)
    none = np.zeros((100, 1), np.float32)
    seen = Seen(np.arange(100, dtype=np.int32), none, none, -np.arange(100.0))
    right = bench.kept_top(lambda one: one.score, [seen], 10)
    half = bench.kept_top(lambda one: np.where(one.item < 2, 0, one.item).astype(float), [seen], 98)
    none_of = bench.kept_top(lambda one: -one.score, [seen], 10)
    assert (right["kept"], half["kept"], none_of["kept"]) == (1.0, 0.5, 0.0)
