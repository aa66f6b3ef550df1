"""The study of the towers' defaults: it cannot read the test, and it goes on where it was ended."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from world import TOML, make_world

from features.pairing.pairs import Pairs
from ranker.config import load_config

# Not by its folder on the path: a file there has the name of a package, `features`.
FOUND = importlib.util.spec_from_file_location("towers", Path(__file__).parent / "bench" / "towers.py")
assert FOUND is not None
assert FOUND.loader is not None
towers = importlib.util.module_from_spec(FOUND)
sys.modules["towers"] = towers  # where its dataclasses look for it
FOUND.loader.exec_module(towers)


def test_no_event_of_the_test_is_in_what_it_measures_on(tmp_path: Path) -> None:
    log = make_world(2).log
    columns = {"user_id": log.user, "item_id": log.item, "ts": log.ts.view("M8[us]"), "play": log.feedback[:, 0]}
    pq.write_table(pa.table(columns), tmp_path / "events.parquet")
    (tmp_path / "pairlift.toml").write_text(TOML)
    seen = towers.until_t2(load_config(tmp_path / "pairlift.toml"))
    assert seen.log.ts[-1] < seen.split.t2 < log.ts[-1]
    assert seen.state.histories.ts.max() < seen.split.t2
    assert seen.groups.requests.as_of.max() < seen.split.t2
    part = towers.fit_data(seen, 0, 3)
    assert set(part.log.user % 3) == set(part.groups.requests.user % 3) == {0}
    assert part.log.ts.max() < seen.split.t1
    assert 0 < part.pairs.winner.max() < len(part.groups.grade)


def test_a_trial_that_stands_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    def trial(study: Any, changed: dict[str, Any], seed: int, every: int) -> dict[str, Any]:
        ran.append((changed, seed))
        return {key: 0.01 * (seed + len(changed)) for key in ("uplift", "dot_alone", "held", "seconds")}

    monkeypatch.setattr(towers, "TRIALS", tmp_path / "trials.json")
    monkeypatch.setattr(towers, "load", lambda data, folder: None)
    monkeypatch.setattr(towers, "trial", trial)
    towers.keep({"movielens defaults seed=1": {"uplift": 0.5, "dot_alone": 0.0, "held": 0.0, "seconds": 0.0}})
    done = towers.run(["movielens"], float("inf"))
    assert len(ran) == len(towers.wanted()) - 1
    assert ({}, 1) not in ran
    assert json.loads((tmp_path / "trials.json").read_text()) == done
    towers.run(["movielens"], float("inf"))
    assert len(ran) == len(towers.wanted()) - 1
    result = towers.summary(done, ["movielens"])
    assert result["lacking"] == []
    assert result["movielens"]["defaults"]["uplift"] == pytest.approx((0.0 + 0.5 + 0.02) / 3)


def test_a_tie_is_one_half() -> None:
    pairs = Pairs(np.array([0, 1, 2]), np.array([1, 2, 0]), np.array([1.0, 2.0, 5.0], np.float32), np.zeros(3, bool))  # type: ignore[arg-type]
    assert towers.ties_half(np.array([3.0, 1.0, 1.0]), pairs) == pytest.approx((1 + 1) / 8)
