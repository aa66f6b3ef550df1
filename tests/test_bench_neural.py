"""The parts of `make bench WHAT=neural`: peers do the same, what is counted is what is made, and null has a reason."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench" / "peers"))

import neural_pretrain
import neural_serving
from neural_clock import in_turns, ratio
from neural_finetune import IMPRESSIONS, PEERS, check_same, make_trainer, one_pass, pass_for_each
from neural_padding import padded_share, shares
from neural_pretrain import FIGURE, pretrain, some_lengths, write_log
from neural_world import PER_GROUP, fit_data

from neural.data import TowerData
from neural.settings import TowerSettings
from neural.train import repeatable


def module_of(name: str, label: str) -> Any:
    # Not by its folder on the path: `features.py` there has the name of a package, as `neural.py` has.
    spec = importlib.util.spec_from_file_location(label, Path(__file__).parent / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench, figures = module_of("neural", "neural_benchmark"), module_of("figures", "figures_of_the_benchmark")


@pytest.mark.parametrize("latest", [False, True])
def test_a_pass_for_each_impression_does_what_one_pass_does(latest: bool) -> None:
    with repeatable(1, 0):
        trainer, chosen = make_trainer(64, latest)
        batches, mask = trainer.inputs.batches, trainer.inputs.finetune
        chosen = chosen[:2]
        batch, start = batches.make(chosen, mask), batches.windows.start[chosen]
        assert np.bincount(batch.groups.window[batch.groups.group]).tolist() == [IMPRESSIONS, IMPRESSIONS]

        def own() -> float:
            return one_pass(trainer, batch)

        def peer(how: dict[str, bool], start: Any = start) -> Callable[[], float]:
            return lambda: pass_for_each(trainer, batch, start, **how)

        for how in PEERS.values():
            check_same(trainer, own, peer(how))
        with pytest.raises(SystemExit, match="pass for each"):
            check_same(trainer, own, peer(PEERS["obvious"], start[::-1]))


def test_groups_are_asked_for_when_so_much_was_seen() -> None:
    seen = np.array([[1, 5, 9], [2, 3, 20]])
    inputs = TowerData.build(fit_data(np.array([9, 20]), 50, seen), TowerSettings(threads=1))
    batch = inputs.batches.make(np.arange(2), inputs.finetune).groups
    found = [sorted(batch.state[batch.window == user].tolist()) for user in range(2)]
    assert found == seen.tolist()
    assert len(batch.row) == PER_GROUP * seen.size
    assert inputs.pretrain.events.all()


def test_the_padded_share_is_that_of_the_batches_that_are_made() -> None:
    inputs = TowerData.build(fit_data(some_lengths(60), 100), TowerSettings(threads=1))
    batches, mask, rng = inputs.batches, inputs.pretrain, np.random.default_rng(0)
    made = [batches.make(c, mask).tokens for _ in range(3) for c in batches.plan(mask, 500, rng)]
    events, places = sum(int((t.length + 1).sum()) for t in made), sum(t.item.size + len(t.length) for t in made)
    assert padded_share(batches, mask, 500) == pytest.approx(1 - events / places)


def test_less_than_a_tenth_of_the_tokens_is_padding() -> None:
    assert max(shares(fit_data(some_lengths(600), 500)).values()) < 0.1


def test_the_log_of_the_peer_has_every_event(tmp_path: Path) -> None:
    data = fit_data(np.array([3, 5]), 10)
    write_log(data, tmp_path / "w")
    head, *rows = (tmp_path / "w" / "log" / "log.inter").read_text().splitlines()
    assert head == "user_id:token\titem_id:token\ttimestamp:float"
    found = np.array([row.split("\t") for row in rows], int)
    np.testing.assert_array_equal(found[:, 0], data.log.user)
    np.testing.assert_array_equal(found[:, 1], data.log.item)
    assert (np.diff(found[:, 2]) >= 0).all()


def test_what_cannot_be_had_is_null_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neural_pretrain, "INSTALLED", tmp_path / "none")
    monkeypatch.setattr(neural_pretrain, "USERS", 3)
    found = pretrain(tmp_path, 1)
    assert found[FIGURE] is None
    assert "RecBole" in found["why"][FIGURE]
    monkeypatch.setattr(neural_serving, "CROSS_MODULE", "neural.not_there")
    crossed = neural_serving.cross(1)
    assert crossed["cross_encoder_ms"] is None
    rows = bench.table(
        bench.FIGURES, dict.fromkeys(bench.FIGURES, None) | {"batch_padding": 0.2}, found["why"] | crossed["why"]
    )
    assert found["why"][FIGURE] in rows
    assert "neural.not_there" in rows
    (padded,) = (row for row in rows.splitlines() if "batch_padding" in row)
    assert padded.endswith("missed")


def test_the_readmes_line_leaves_out_what_is_null() -> None:
    values = dict.fromkeys(bench.FIGURES, None) | {"user_tower_vs_floor": 0.5}
    line = figures.neural_line({"result": values, "command": "c", "date": "d", "machine": "m"})
    assert line == (
        "What the networks cost: the user tower's call takes 0.5 of the time of a bare export of its blocks. `c`, d; m."
    )
    assert set(figures.NETWORKS) <= set(bench.FIGURES)


def test_turns_are_counted_without_the_first() -> None:
    calls: list[str] = []
    took = in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 3, 2)  # type: ignore[misc]
    assert calls == list("aabb") * 4
    assert {name: len(seconds) for name, seconds in took.items()} == {"a": 3, "b": 3}
    assert ratio({"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 1.0]}, "a", "b") == 3.0
