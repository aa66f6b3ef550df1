"""The loop of a training: killed at any step it goes on to the same bits, and what is not finite stops it by name."""

import hashlib
import logging
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from contracts import fit_data
from world import SMALL_TOWERS, World, make_world

from features.errors import PairliftError
from features.pairing.split import make_split
from features.plugin import FitData
from features.settings import SplitSettings
from neural import checkpoints, retrieval
from neural.checkpoints import Checkpoint
from neural.engine import Engine, Phase, Place
from neural.retrieval import fit_head, item_keys
from neural.settings import TowerSettings
from neural.train import HEADS, all_vectors, fit
from neural.two_tower import TwoTower

#: several epochs of several steps in each phase
SEVERAL: dict[str, Any] = {**SMALL_TOWERS, "finetune_epochs": 3, "batch_tokens": 150, "patience": 2}
#: where processes are killed one after the other, each going on from what the last one left: phase, and step of it
DRAWN = np.random.default_rng(20).integers([2, 9, 3, 6], [8, 16, 10, 35]).tolist()
KILLED = list(zip(("pre-train", "pre-train", "fine-tune", "retrieve"), DRAWN, strict=True))


def data_of(world: World, scratch: Path | None = None) -> FitData:
    return replace(fit_data(world, make_split(SplitSettings(), world.log, "UTC")), scratch=scratch)


def vectors(scratch: Path | None) -> str:
    """Return a hash of the vectors, keys, weights (those that pre-training left, too) and reports of a fit."""
    settings = TowerSettings(**SEVERAL)
    with TemporaryDirectory() as heads:
        trained = fit(replace(data_of(make_world(surfaces=("feed", "search")), scratch), heads=Path(heads)), settings)
        pretrained = torch.load(Path(heads) / HEADS, weights_only=True)
    with patch.object(retrieval, "LEAST_STEPS", 40):
        found = fit_head(trained, settings, 3, scratch)
    assert found is not None
    head, report = found
    with torch.no_grad():
        arrays = [all_vectors(trained.model.item, trained.inputs.items).numpy(), item_keys(trained, head, 1)]
    states = (trained.model.state_dict(), head.state_dict(), pretrained)
    arrays += [weights.numpy() for state in states for weights in state.values()]
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays) + repr((trained.report, report)).encode()).hexdigest()


def killed_at(phase: str, step: int, scratch: Path) -> None:
    """Fit with a checkpoint after every third step; die by SIGKILL behind a step, or in the middle of writing."""
    checkpoints.EVERY = checkpoints.REST = 0.0
    make, save, at = Engine._step, torch.save, ["", 0]

    def counted(engine: Engine, of: Phase, place: Place, *args: Any) -> float:
        loss = make(engine, of, place, *args)
        at[:] = [of.name, len(place.losses) + 1]
        if at == [phase, step] and step % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    def half(state: Any, path: Path) -> None:
        if at == [phase, step]:
            path.write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        save(state, path)

    Engine._step = counted  # type: ignore[assignment, method-assign]
    torch.save = half  # type: ignore[assignment]
    Checkpoint.due = lambda self: at[1] % 3 == 0 or at == [phase, step]  # type: ignore[method-assign]
    vectors(scratch)


#: forks one process for each kill, then fits to the end
CHAIN = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_neural_engine import KILLED, killed_at, vectors
for phase, step in KILLED:
    child = os.fork()
    if not child:
        killed_at(phase, step, Path(sys.argv[1]))
        os._exit(0)
    print("died of", os.waitpid(child, 0)[1])
print(sorted(path.name for path in Path(sys.argv[1]).glob("*.pt")))
print(vectors(Path(sys.argv[1])))
"""


def test_killed_at_any_step_a_fit_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", CHAIN, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *deaths, kept, found = done.stdout.splitlines()
    assert deaths == ["died of 9"] * len(KILLED)
    assert found == vectors(None)
    assert kept == "['retrieval.pt', 'towers.pt']"  # the last one died in the head


def test_a_fit_says_how_fast_it_is_and_gives_its_curve(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("features.progress.EVERY", 0)
    caplog.set_level("INFO")
    report = fit(data_of(world), TowerSettings(**SEVERAL)).report
    assert re.search(r"fine-tune, epoch \d of 3: .* \d\d:\d\d left, .* tokens/s, loss=\d", caplog.text)
    curve, epochs = report["curve"], report["epochs"]
    assert list(dict.fromkeys(point["phase"] for point in curve)) == ["pre-train", "fine-tune"]
    for phase in ("pre-train", "fine-tune"):
        points, ends = ([p for p in part if p["phase"] == phase] for part in (curve, epochs))
        figures = [(p["step"], p["validation"]) for p in points if p["validation"] is not None]
        assert figures == [(e["step"], e["validation"]) for e in ends]
        means = [(p["step"], p["loss"]) for p in points if p["loss"] is not None]
        total, of_epochs = (
            np.average([loss for _, loss in part], weights=np.diff([0] + [step for step, _ in part]))
            for part in (means, [(e["step"], e["loss"]) for e in ends])
        )
        assert math.isclose(total, of_epochs)


def test_towers_that_diverge_say_where_and_what_to_do(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "REST", 0.0)
    with pytest.raises(PairliftError) as error:
        TwoTower(**SEVERAL, learning_rate=1e30).fit(data_of(world, tmp_path))
    said = str(error.value)
    kept = re.search(rf"Last good checkpoint: {tmp_path}/towers.pt, step (\d+) of pre-train", said)
    step = re.search(r"in epoch \d of 2, step \d+ of \d+ \(step (\d+) of the phase\), learning rate", said)
    assert kept, said
    assert step, said
    assert int(step[1]) == int(kept[1]) + 1
    assert re.match(r"pre-train: a finite (loss|gradient's norm) was expected, found (nan|inf)", said), said
    assert re.search(r"batch of \d+ windows of \d+ users \(1\d\d\d, .*learning_rate", said), said
    model = torch.load(tmp_path / "towers.pt", weights_only=True)["model"]
    assert all(torch.isfinite(weights).all() for weights in model.values())


# A model of one line


def line_phase(loss: Callable[[torch.Tensor], torch.Tensor], figures: list[float], **changes: Any) -> Phase:
    """Return a phase of four steps an epoch, whose validation gives these figures."""
    given = iter(figures)
    phase = Phase(
        name="line",
        epochs=len(figures),
        rate=0.1,
        plan=lambda rng: list((np.arange(8) if rng is None else rng.permutation(8)).reshape(4, 2)),
        loss=lambda chosen: loss(torch.from_numpy(chosen).float()[:, None]),
        size=len,
        unit="rows",
        describe=lambda chosen: f"{len(chosen)} rows",
        remedy="do otherwise.",
        validate=lambda: next(given),
    )
    return replace(phase, **changes)


def line(folder: Path | None = None) -> tuple[torch.nn.Linear, Engine]:
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    return model, Engine(
        model, torch.optim.AdamW(model.parameters()), np.random.default_rng(0), Checkpoint(folder, "x")
    )


def squares(model: torch.nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: ((model(x) - 3 * x) ** 2).mean()


@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("loss was expected, found nan", lambda loss: loss * math.nan),
        ("loss was expected, found inf", lambda loss: loss * math.inf),
        ("gradient's norm was expected, found (nan|inf)", lambda loss: (loss - loss.detach()).abs().sqrt()),
    ],
)
def test_no_step_is_made_with_what_is_not_finite(what: str, spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model, engine = line()
    good, steps = squares(model), [0]

    def loss(x: torch.Tensor) -> torch.Tensor:
        steps[0] += 1
        return spoil(good(x)) if steps[0] == 7 else good(x)

    said = rf"line: a finite {what} in epoch 2 of 3, step 3 of 4 \(step 7 of the phase\).*batch of 2 rows.*none is kept"
    with pytest.raises(PairliftError, match=said):
        engine.train([line_phase(loss, [1.0, 2.0, 3.0])])
    assert torch.isfinite(model.weight).all()
    assert len(engine.progress) == 1


@pytest.mark.parametrize(
    ("higher", "patience", "epochs", "best"), [(True, 2, 4, 1), (False, 2, 3, 0), (False, None, 6, 5)]
)
def test_the_best_epoch_is_kept_and_patience_ends_a_phase(
    higher: bool, patience: int | None, epochs: int, best: int
) -> None:
    figures, weights = [2.0, 4.0, 3.0, 1.0, 1.5, 0.5], []
    model, engine = line()
    given = iter(figures)

    def validate() -> float:
        weights.append(model.weight.item())
        return next(given)

    engine.train([line_phase(squares(model), figures, validate=validate, higher_is_better=higher, patience=patience)])
    assert len(engine.progress) == epochs
    assert model.weight.item() == weights[best]
    assert len(set(weights)) == epochs


def test_without_a_validation_slice_the_last_epoch_is_kept() -> None:
    model, engine = line()
    engine.train([line_phase(squares(model), [math.nan] * 3)])
    last = model.weight.item()
    other, longer = line()
    longer.train([line_phase(squares(other), [1.0, 2.0, 3.0])])
    assert last == other.weight.item()
    assert [point["validation"] for point in engine.curve if point["loss"] is None] == []


def test_a_damaged_checkpoint_is_said_and_training_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "REST", 0.0)
    found = []
    for damage in (lambda b: b, lambda b: b[: len(b) // 2], lambda b: b"no checkpoint", lambda b: b""):
        model, engine = line(tmp_path)
        with caplog.at_level(logging.INFO):
            engine.train([line_phase(squares(model), [0.0] * 3, validate=model.weight.item)])
        found.append(model.weight.item())
        (tmp_path / "x.pt").write_bytes(damage((tmp_path / "x.pt").read_bytes()))
    assert len(set(found)) == 1
    assert sum("goes on from" in line for line in caplog.messages) == 1  # the whole one
    assert sum("cannot be read" in line for line in caplog.messages) == 2


def test_a_large_model_is_written_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    kept = Checkpoint(tmp_path, "x")
    real = torch.save
    for seconds, rest in ((0.1, 30.0), (6.0, 120.0)):
        now[0] += 1000.0
        assert kept.due()
        monkeypatch.setattr(torch, "save", lambda *a, s=seconds: (now.__setitem__(0, now[0] + s), real(*a)))
        kept.save({}, "step 1")
        now[0] += rest - 0.01
        assert not kept.due()
        now[0] += 0.02
        assert kept.due()
    assert not Checkpoint(None, "x").due()
