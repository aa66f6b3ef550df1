"""Pre-training: positions with a loss in a second of CPU time, against RecBole's SASRec on the same log.

Of equal width, depth, heads and length, one thread each. Ours has three losses for each position (next item, grade, and
feedback) and reads an event's context; RecBole has one, and reads its item. Beside it is our own SASRec, which has one
loss for each position, too, and all of them in one pass.
"""

import importlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from neural_clock import cpu_seconds
from neural_world import fit_data

from features.plugin import FitData
from features.schema import I64
from neural.checkpoints import NOWHERE
from neural.data import TowerData
from neural.settings import TowerSettings
from neural.train import Trainer, repeatable

HERE = Path(__file__).parent
VENV = HERE.parents[2] / ".venv-recbole"
PYTHON = VENV / "bin" / "python"
#: is there where RecBole could be installed
INSTALLED = VENV / ".installed"
FIGURE, OWN_SASREC = "pretrain_vs_recbole_sasrec", "sasrec_vs_recbole_sasrec"
SASREC_MODULE = "neural.sasrec"
ITEMS = 1_700
USERS = 16
#: epochs of ours that are timed; of RecBole, one
EPOCHS = 5
#: sequences of a batch of RecBole: the faster one counts (2,048, its default, needs some GiB at this length)
BATCHES = (64, 256)


def some_lengths(users: int, seed: int = 0) -> I64:
    """Return how many events each user has: lognormal, as MovieLens-100K has it (20 at least, half have over 65)."""
    drawn = np.exp(np.random.default_rng(seed).normal(4.2, 0.95, users))
    return np.maximum(np.rint(drawn), 20).astype(np.int64)


def write_log(data: FitData, folder: Path) -> None:
    """Write the log as RecBole reads it."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "log").mkdir(parents=True)
    log = data.log
    rows = zip(log.user, log.item, (log.ts - log.ts[0]) // 1_000_000, strict=True)
    text = "".join(f"{user}\t{item}\t{ts}\n" for user, item, ts in rows)
    (folder / "log" / "log.inter").write_text(f"user_id:token\titem_id:token\ttimestamp:float\n{text}")


def own_rate(data: FitData, settings: TowerSettings) -> float:
    """Return positions a second of our pre-training; an epoch that is not counted comes before."""
    with repeatable(1, 0):
        trainer = Trainer(TowerData.build(data, settings), settings, 0)
        epoch = replace(trainer.phases()[0], epochs=1, validate=lambda: float("nan"))
        engine = trainer.engine(NOWHERE)
        engine.train([epoch])
        seconds = cpu_seconds(lambda: [engine.train([epoch]) for _ in range(EPOCHS)])
    return EPOCHS * int(trainer.inputs.pretrain.events.sum()) / seconds


def sasrec_rate(data: FitData, settings: TowerSettings) -> float | None:
    """As `own_rate`, of our SASRec, every event being wanted; None without it."""
    if importlib.util.find_spec(SASREC_MODULE) is None:
        return None
    part = {name: importlib.import_module(f"{SASREC_MODULE}.{name}") for name in ("settings", "train")}
    sizes = {name: getattr(settings, name) for name in ("history", "width", "layers", "heads", "threads")}
    with repeatable(1, 0):
        inputs = part["train"].Inputs.build(replace(data, wanted=0), 0)
        trainer = part["train"].Trainer(inputs, part["settings"].SASRecSettings(**sizes), 0)
        epoch = replace(trainer.phase(), epochs=1, validate=lambda: float("nan"))
        trainer.engine.train([epoch])
        seconds = cpu_seconds(lambda: [trainer.engine.train([epoch]) for _ in range(EPOCHS)])
    return EPOCHS * int((trainer.windows.stop - trainer.windows.start).sum()) / seconds


def recbole(folder: Path, settings: TowerSettings, batch: int) -> dict[str, Any]:
    """Return what RecBole's trainer took, with positions a second."""
    s = settings
    sizes = [str(n) for n in (s.history, s.width, s.layers, s.heads, batch)]
    # -P: the folder of the parts must not hide a package of the same name.
    done = subprocess.run(
        [str(PYTHON), "-P", str(HERE / "neural_recbole.py"), str(folder), *sizes],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"RecBole failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"per_second": found["positions"] / found["seconds"]}


def pretrain(work: Path, rounds: int) -> dict[str, Any]:
    """Return the ratios, and the rates that they are of."""
    settings = TowerSettings(threads=1)
    data = fit_data(some_lengths(USERS), ITEMS)
    why = {} if sasrec_rate(data, settings) else {OWN_SASREC: f"there is no {SASREC_MODULE}"}
    if not INSTALLED.exists():
        missing = f"RecBole is not in {VENV.name}: `make bench WHAT=neural` installs it, where it can"
        return {FIGURE: None, OWN_SASREC: None, "why": {FIGURE: missing, OWN_SASREC: missing}}
    write_log(data, work)
    batch = max(BATCHES, key=lambda size: float(recbole(work, settings, size)["per_second"]))
    turns = [
        {
            "own": own_rate(data, settings),
            "sasrec": sasrec_rate(data, settings),
            "recbole": recbole(work, settings, batch),
        }
        for _ in range(rounds)
    ]
    rates = {"own": _rates(turns, "own"), "sasrec": _rates(turns, "sasrec")}
    theirs = [float(turn["recbole"]["per_second"]) for turn in turns]
    said = {name: statistics.median(of) for name, of in (rates | {"recbole": theirs}).items() if of}
    print("  positions/s: " + ", ".join(f"{name} {value:,.0f}" for name, value in said.items()), flush=True)
    return {
        FIGURE: _ratio(rates["own"], theirs),
        OWN_SASREC: _ratio(rates["sasrec"], theirs),
        "per_second": said,
        "recbole": {name: turns[-1]["recbole"][name] for name in ("version", "batch", "positions")},
        "length": settings.history,
        "events": len(data.log),
        "why": why,
    }


def _rates(turns: list[dict[str, Any]], name: str) -> list[float]:
    return [turn[name] for turn in turns if turn[name] is not None]


def _ratio(rates: list[float], below: list[float]) -> float | None:
    """Return the median over the turns of one rate over another's; None without any."""
    return statistics.median(a / b for a, b in zip(rates, below, strict=True)) if rates else None
