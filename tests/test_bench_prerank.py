"""The benchmark of pre-ranking: a small world through all of it, so that it cannot rot."""

from typing import Any

import numpy as np
import pytest
from bench.peers import mixture_of_logits
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
    assert {"prerank_kept_top50", "prerank_ms", "prerank_ms_mixture"} <= found.keys()
    assert 0.6 < found["prerank_kept_top50"] <= 1
    assert 0.3 < found["prerank_kept_top50_mixture"] <= 1
    assert found["prerank_ms"] > 0


def test_what_is_kept_is_a_share_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TOP", 4)
    none = np.zeros((100, 1), np.float32)
    seen = Seen(np.arange(100, dtype=np.int32), none, none, -np.arange(100.0))
    right = bench.kept_top([seen.score], [seen], 10)
    half = bench.kept_top([np.where(seen.item < 2, 0, seen.item).astype(float)], [seen], 98)
    none_of = bench.kept_top([-seen.score], [seen], 10)
    assert (right["kept"], half["kept"], none_of["kept"]) == (1.0, 0.5, 0.0)


def test_the_mixture_learns_what_no_single_product_can_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """A score is the better of two products. A fifth of the items has no label and must not come first for that."""
    monkeypatch.setattr(mixture_of_logits, "DRAWN", 60)
    monkeypatch.setattr(mixture_of_logits, "EPOCHS", 30)
    rng = np.random.default_rng(0)
    keys, queries = (rng.normal(size=(n, 8)).astype(np.float32) for n in (200, 40))
    products = [queries @ rng.normal(size=(8, 8)) @ keys.T for _ in range(2)]
    score = np.maximum(*products)
    label = -np.log2(25 + np.argsort(np.argsort(-score, axis=1), axis=1))
    item = np.flatnonzero(np.arange(200) % 5 > 0)
    told = [mixture_of_logits.Learned(queries[k], item, label[k, item]) for k in range(30)]
    mixture = mixture_of_logits.learned(keys, told)
    every, none = np.arange(200, dtype=np.int32), np.zeros((200, 1), np.float32)
    seen = [Seen(every, none, none, score[k]) for k in range(30, 40)]
    found = [mixture_of_logits.scores(mixture, queries[k], every) for k in range(30, 40)]
    assert bench.kept_top(found, seen, 60)["kept"] > 0.6  # by chance 0.3
