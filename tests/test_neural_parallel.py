"""A network that two processes train is the network that one trains, and goes on after a kill to the same bits."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pytest
from contracts import fit_data
from world import SMALL_NETWORK, make_world

from features.pairing.split import make_split
from features.plugin import FitData
from features.settings import SplitSettings
from neural.checkpoints import Checkpoint
from neural.cross_encoder.settings import CrossSettings
from neural.cross_encoder.train import fit_cross
from neural.distil import distil
from neural.engine import Engine, Phase, Place
from neural.settings import TowerSettings
from neural.train import Trained, fit

#: batches of one to a few windows, of which some are fewer than the processes; ids are hidden, nothing is dropped out
TINY: dict[str, Any] = {
    **SMALL_NETWORK, "batch_tokens": 100, "dropout": 0.0, "id_dropout": 0.3, "feedback_kinds": True, "max_steps": 60,
    "context": ["surface", "hour"],
}  # fmt: skip
FITS: dict[str, Callable[[FitData], Trained]] = {
    "towers": lambda data: fit(data, TowerSettings(**TINY)),
    "cross": lambda data: fit_cross(data, CrossSettings(**TINY)),
    "distil": lambda data: distil(data, TowerSettings(**{**TINY, "teachers": 2, "distil_epochs": 1})),
    "dropout": lambda data: fit(data, TowerSettings(**{**TINY, "dropout": 0.2})),
}
#: step of fine-tuning behind which both processes die
DIES = 3


def data_of(scratch: Path | None = None) -> FitData:
    world = make_world(5, n_users=12, surfaces=("feed", "search"))
    return replace(fit_data(world, make_split(SplitSettings(), world.log, "UTC")), scratch=scratch)


def said_of(trained: Trained) -> dict[str, Any]:
    """Return the report of a fit, and a hash of its weights."""
    weights = b"".join(x.numpy().tobytes() for x in trained.model.state_dict().values())
    return {**trained.report, "weights": hashlib.sha256(weights).hexdigest()}


def one_of_two(number: int, port: int, names: list[str], scratch: Path | None, dies: bool) -> None:
    """Fit as one of two processes; what each fit reached goes to stdout, as a line of JSON."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(number), LOCAL_WORLD_SIZE="2")
    if dies:
        Checkpoint.due = lambda self: self.path is not None  # type: ignore[method-assign]
        make = Engine._step

        def dying(engine: Engine, phase: Phase, at: Place, *args: Any) -> float:
            if phase.name == "fine-tune" and len(at.losses) == DIES:
                os._exit(9)
            return make(engine, phase, at, *args)

        Engine._step = dying  # type: ignore[assignment, method-assign]
    data = replace(data_of(None if number else scratch), process=number, processes=2)
    for name in names:
        line = json.dumps({"process": number, "fit": name, **said_of(FITS[name](data))})
        os.write(sys.stdout.fileno(), f"{line}\n".encode())  # at once: two processes write


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


#: forks two processes for each of some runs, one run after the other
RUNS = f"""
import json, os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_neural_parallel import free_port, one_of_two
for names, scratch, dies in json.loads(sys.argv[1]):
    port, children = free_port(), []
    for number in (0, 1):
        children.append(os.fork())
        if not children[-1]:
            code = 1
            try:
                one_of_two(number, port, names, Path(scratch) if scratch else None, dies)
                code = 0
            finally:
                os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert all((code != 0) == dies for code in codes), codes
"""


def by_two(*runs: tuple[list[str], Path | None, bool]) -> list[dict[str, Any]]:
    """Return what each fit of some runs reached in each of two processes."""
    asked = json.dumps([(names, str(scratch or ""), dies) for names, scratch, dies in runs])
    command = [sys.executable, "-c", RUNS, asked]
    with TemporaryFile("a+") as said:  # not a pipe, whose long lines of two processes may mix
        root = Path(__file__).parent.parent
        done = subprocess.run(command, cwd=root, stdout=said, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said.seek(0)
        return [json.loads(line) for line in said]


def test_two_processes_take_the_steps_of_one() -> None:
    exact = [name for name in FITS if name != "dropout"]
    found = by_two((exact, None, False))
    assert len(found) == 2 * len(exact)
    data = data_of()
    for name in exact:
        alone = said_of(FITS[name](data))
        both = [said for said in found if said["fit"] == name]
        assert both[0]["weights"] == both[1]["weights"]
        steps = [point["loss"] for point in alone["curve"] if point["loss"] is not None]
        assert len(steps) > 20
        assert alone["weights"] != both[0]["weights"]  # it was shared: sums are rounded otherwise
        for said in both:
            points = [point for point in said["curve"] if point["loss"] is not None]
            assert len(points) == len(steps)
            np.testing.assert_allclose([point["loss"] for point in points], steps, rtol=1e-5)
            figures = [[epoch["validation"] for epoch in of["epochs"]] for of in (said, alone)]
            np.testing.assert_allclose(*figures, rtol=1e-3)  # a pair may turn by rounding


def test_two_processes_that_were_killed_go_on_to_the_same_bits(tmp_path: Path) -> None:
    found = by_two((["dropout"], None, False), (["dropout"], tmp_path, True), (["dropout"], tmp_path, False))
    assert len(found) == 4  # nothing of those that were killed
    assert len({json.dumps(said["curve"]) for said in found}) == 1
    assert len({said["weights"] for said in found}) == 1


@pytest.mark.parametrize("least", [0.0, 3.0])
def test_a_whole_batch_is_divided_by_its_own_total(least: float) -> None:
    from torch import tensor

    from neural.parallel.ranks import mean, whole

    assert whole(tensor(2.0), least).item() == max(2.0, least)
    values = tensor([0.1, 0.7, 0.4])
    assert mean(values).item() == values.mean().item()
