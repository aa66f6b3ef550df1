"""Where networks are trained: each loss of each network finds all that it needs on the GPU, and who has which one.

There need be no GPU: torch's meta device stands for it, whose tensors hold nothing.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from contracts import fit_data
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from world import SMALL_NETWORK, make_world

from features.pairing.pairs import Pairs
from features.pairing.slice import Slice
from features.pairing.split import make_split
from features.plugin import FitData
from features.settings import SplitSettings
from neural import train as train_module
from neural.answers import AnswersTrainer
from neural.checkpoints import Checkpoint
from neural.cross_encoder.settings import CrossSettings
from neural.cross_encoder.train import CrossTrainer
from neural.data import TowerData
from neural.distil import Student
from neural.engine import Phase
from neural.final.inputs import Inputs
from neural.final.model import Network
from neural.final.settings import NetworkRankerSettings
from neural.final.train import Paired, _phase
from neural.limaml.settings import LiMAMLSettings
from neural.limaml.train import Trainer as MetaTrainer
from neural.model import QUERIES
from neural.parallel import device as device_module
from neural.parallel.device import device, moved
from neural.parallel.ranks import ALONE
from neural.retrieval import HeadTrainer
from neural.sasrec.settings import SASRecSettings
from neural.sasrec.train import Inputs as Sequences
from neural.sasrec.train import Trainer as SASRecTrainer
from neural.settings import TowerSettings
from neural.train import Trained, Trainer

#: all that the networks can read and say
ALL: dict[str, Any] = {**SMALL_NETWORK, "feedback_kinds": True, "context": ["surface", "hour"], "id_dropout": 0.3}
#: a network with the phases that train it
Fit = tuple[nn.Module, tuple[Phase, ...]]
META = torch.device("meta")


@pytest.fixture(scope="module")
def data() -> FitData:
    world = make_world(5, n_users=12, surfaces=("feed", "search"))
    return fit_data(world, make_split(SplitSettings(), world.log, "UTC"))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Give a function that lets torch find so many GPUs."""

    def find(n: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: "a name")
        monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: None)
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        device.cache_clear()

    yield find
    device.cache_clear()


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let training be on torch's meta device, and no operation read tensors of two places."""
    for module in (device_module, train_module):
        monkeypatch.setattr(module, "device", lambda: META)
    with OnePlace():
        yield


class OnePlace(TorchDispatchMode):
    """Refuses what a GPU refuses: an operation, other than a copy, on tensors of two places. Single numbers may."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        places = {x.device for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim}
        assert len(places) < 2 or "copy" in str(func), f"{func} of {places}"
        return func(*args, **kwargs)


def towers(data: FitData, **changes: Any) -> Trainer:
    settings = TowerSettings(**ALL | changes)
    return Trainer(TowerData.build(data, settings, settings.context, True), settings, 0)


def cross(data: FitData, **changes: Any) -> CrossTrainer:
    settings = CrossSettings(**ALL | changes)
    return CrossTrainer(TowerData.build(data, settings, settings.context, True), settings, 0)


def student(data: FitData) -> Student:
    teacher = towers(data, teachers=2)
    return Student(teacher.inputs, cast(TowerSettings, teacher.settings), 0, [teacher, teacher])


def heads(data: FitData) -> list[Fit]:
    """Return the head that retrieves and those of grade and feedback, over drawn towers."""
    trainer = towers(data)
    trained = Trained(trainer.model, trainer.inputs, {})
    head = HeadTrainer(trained, cast(TowerSettings, trainer.settings), 0)
    answers = AnswersTrainer(trained, (-1, 0), 0)
    return [(head.head, (head.phase(),)), (answers.answers, (answers.phase(),))]


def meta(data: FitData) -> MetaTrainer:
    settings = LiMAMLSettings(width=8, hidden=8, history=40)
    return MetaTrainer(TowerData.build(data, settings), settings, 0, "UTC")


def sasrec(data: FitData) -> SASRecTrainer:
    return SASRecTrainer(Sequences.build(data, 0), SASRecSettings(width=8, heads=2, negatives=8), 0)


def final() -> Fit:
    """Return a network over numbers, some of them absent, and a category, with its phase."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(400, 4)).astype(np.float32)
    matrix[:50, 0] = np.nan
    matrix[:, 3] = rng.integers(0, 4, 400)
    winner = np.arange(0, 400, 2, dtype=np.int32)
    pairs = Pairs(winner, winner + 1, np.ones(200, np.float32), np.zeros(200, bool))
    rows = Slice(matrix=matrix, pairs=pairs, group=np.repeat(np.arange(100), 4).astype(np.int64))
    inputs, settings = Inputs.of("abcd", "d", matrix), NetworkRankerSettings(width=16, batch_rows=100)
    network = moved(Network(inputs.n_numbers, len(inputs.code), inputs.n_slots, settings))
    paired = Paired.of(rows, inputs)
    return network, (_phase("network", network, paired, paired, settings),)


def of_towers(trainer: Trainer) -> list[Fit]:
    return [(trainer.model, trainer.phases())]


FITS: dict[str, Callable[[FitData], list[Fit]]] = {
    "towers": lambda data: of_towers(towers(data)),
    "hstu": lambda data: of_towers(towers(data, encoder="hstu")),
    "long": lambda data: of_towers(towers(data, history=2 * QUERIES)),
    "cross": lambda data: of_towers(cross(data)),
    "student": lambda data: of_towers(student(data)),
    "heads": heads,
    "limaml": lambda data: [((t := meta(data)).model, t.phases())],
    "sasrec": lambda data: [((t := sasrec(data)).network, (t.phase(),))],
    "final": lambda data: [final()],
}


@pytest.mark.parametrize("name", FITS)
@pytest.mark.usefixtures("on_meta")
def test_a_step_of_each_network_has_all_in_one_place(name: str, data: FitData) -> None:
    for network, phases in FITS[name](data):
        assert {x.device for x in network.parameters()} == {META}
        for phase in phases:
            network.zero_grad()
            network.train()
            loss = phase.loss(phase.plan(np.random.default_rng(0))[0])
            assert loss.device == META
            loss.backward()
            assert {x.grad.device for x in network.parameters() if x.grad is not None} == {META}


@pytest.mark.usefixtures("on_meta")
def test_what_lies_elsewhere_is_found() -> None:
    rows = torch.ones(3, 2, device=META)
    torch.ones(3, 2).to(META) * rows + torch.tensor(1.0)
    for wrong in (lambda: rows + torch.ones(2), lambda: rows[torch.tensor([0])], lambda: rows @ torch.ones(2, 1)):
        with pytest.raises(AssertionError, match="meta"):
            wrong()


@pytest.mark.parametrize(
    ("gpus_there", "rank", "processes", "found"),
    [
        (0, 0, 1, "cpu"),
        (1, 0, 1, "cuda:0"),
        (4, 0, 1, "cuda:0"),
        (4, 3, 4, "cuda:3"),
        (1, 1, 2, "cpu"),
        (0, 1, 2, "cpu"),
    ],
)
def test_each_process_has_a_gpu_of_its_own_or_none_has_one(
    gpus_there: int, rank: int, processes: int, found: str, gpus: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    if processes > 1:
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    gpus(gpus_there)
    assert {str(device()) for _ in range(3)} == {found}
    (said,) = [line for line in caplog.messages if "networks are trained" in line]
    on = (
        f"the GPU {found} (a name)"
        if found != "cpu"
        else f"the CPU: {'2 processes have 1 GPUs' if gpus_there else 'torch finds no GPU'}"
    )
    assert said.startswith(f"networks are trained on {on}")


def test_a_checkpoint_keeps_what_a_gpu_draws(
    tmp_path: Path, gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(1)
    state, given = torch.arange(16, dtype=torch.uint8), list[tuple[Tensor, torch.device]]()
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda at: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda new, at: given.append((new, at)))
    checkpoint = Checkpoint(tmp_path, "x")
    checkpoint.save({"torch": ALONE.random_state}, "step 1")
    saved = checkpoint.load()
    assert saved is not None
    before = torch.get_rng_state()
    torch.rand(3)
    ALONE.random_state = saved["torch"]
    assert torch.equal(torch.get_rng_state(), before)
    ((new, at),) = given
    assert torch.equal(new, state)
    assert at == torch.device("cuda", 0)
    gpus(0)  # what a GPU drew is of no use on the CPU, and the rest is taken up
    ALONE.random_state = saved["torch"]
    assert len(given) == 1
    assert len(ALONE.random_state) == 1
