"""The model: torch and ONNX Runtime agree, and a state depends on nothing later."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from features.errors import PairliftError
from neural.export import check_parity, export_towers, random_head_batch, random_user_batch
from neural.histories import TokenSpec
from neural.hstu import HstuBlock
from neural.model import Argus, Block, Shape, Trunk, UserHead
from neural.runtime import HEAD_INPUTS, TRUNK, TRUNK_INPUTS, USER_HEAD
from neural.vocabulary.entities import Layout

BLOCKS = pytest.mark.parametrize("block", [Block, HstuBlock])
Kind = type[Block] | type[HstuBlock]


def random_model(length: int = 9, block: Kind = Block) -> tuple[Argus, TokenSpec]:
    spec = TokenSpec(
        n_items=30, n_grades=3, n_surfaces=2, signal_mean=(1.0, 0.5), signal_scale=(1.0, 1.0), length=length
    )
    torch.manual_seed(0)
    item, user = Layout((1, 1, 3), 4), Layout((), 2)
    shape = Shape(width=16, layers=2, heads=2, dropout=0.1, rows=64, tokens=spec, item=item, user=user, block=block)
    model = Argus(shape).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model, spec


@BLOCKS
@pytest.mark.parametrize("length", [1, 9])
def test_export_is_checked_and_a_difference_raises(length: int, block: Kind, tmp_path: Path) -> None:
    model, spec = random_model(length, block)
    export_towers(model, 64, spec, tmp_path)
    rng = np.random.default_rng(1)
    shapes = [(b, t) for b in (1, 4) for t in {1, length}]
    batches = [random_user_batch(spec, 16, b, t, rng) for b, t in shapes]
    heads = [random_head_batch(spec, 16, b, rng) for b in (1, 40)]
    parts = (
        (Trunk(model.user), TRUNK, TRUNK_INPUTS, batches, model.user.norm.bias),
        (UserHead(model.user), USER_HEAD, HEAD_INPUTS, heads, model.user.out.bias),
    )
    for part, name, inputs, given, weight in parts:
        check_parity(part, tmp_path / name, inputs, given)
        with torch.no_grad():
            weight.add_(0.01)
        with pytest.raises(PairliftError, match="differs from torch"):
            check_parity(part, tmp_path / name, inputs, given)


@BLOCKS
def test_the_last_state_is_that_of_all_states(block: Kind) -> None:
    model, spec = random_model(block=block)
    rng = np.random.default_rng(2)
    item, codes, signals, surprise, user, length = random_user_batch(spec, 16, 10, 9, rng)
    with torch.no_grad():
        states, taste = model.user.states(item, codes, signals, surprise, user)
        at = torch.arange(10), length
        expected = torch.cat([states[at], taste[at]], dim=-1)
        found = Trunk(model.user)(item, codes, signals, surprise, user, length)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@BLOCKS
def test_a_state_depends_on_nothing_later(block: Kind) -> None:
    model, spec = random_model(block=block)
    inputs = list(random_user_batch(spec, 16, 1, 9, np.random.default_rng(3)))[:5]
    with torch.no_grad():
        before = [x[:, :5].clone() for x in model.user.states(*inputs)]
        for k in range(4):
            inputs[k][:, 4:] = 1
        after = [x[:, :5] for x in model.user.states(*inputs)]
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)


@BLOCKS
def test_states_of_a_long_history_are_those_of_one_part_and_so_are_their_gradients(
    block: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores of a few queries at a time, computed again in the backward pass: s = 10 in parts of 1, 3, 4."""
    model, spec = random_model(block=block)
    inputs = random_user_batch(spec, 16, 5, 9, np.random.default_rng(4))[:5]

    def run() -> list[torch.Tensor]:
        model.zero_grad()
        states, taste = model.user.states(*inputs)
        (states.square().sum() + taste.sum()).backward()
        gradients = [p.grad.clone() for p in model.user.parameters() if p.grad is not None]
        return [states.detach(), taste.detach(), *gradients]

    whole = run()
    bias, held = "mask" if block is Block else "_by_place", set()
    for p in [model.user.blocks[0].slope] if block is Block else [model.user.blocks[0].places]:
        assert p.grad.abs().min() > 0
    of_queries = getattr(block, bias)

    def seen(block: Block, query: torch.Tensor, keys: int) -> torch.Tensor:
        held.add((len(query), keys))
        return of_queries(block, query, keys)

    monkeypatch.setattr(block, bias, seen)
    for queries in (1, 3, 4):
        held.clear()
        monkeypatch.setattr("neural.model.QUERIES", queries)
        torch.testing.assert_close(run(), whole, rtol=1e-4, atol=1e-4)
        ends = [min(first + queries, 10) for first in range(0, 10, queries)]
        assert held == {(stop - first, stop) for first, stop in zip(range(0, 10, queries), ends, strict=True)}


@BLOCKS
def test_a_long_history_is_exported_in_parts_and_holds_nothing_of_its_square(
    block: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("neural.model.QUERIES", 20)
    length = 90  # 91 states: 5 parts of 19
    model, spec = random_model(length, block)
    export_towers(model, 64, spec, tmp_path)  # which compares with torch
    rng = np.random.default_rng(5)
    batches = [random_user_batch(spec, 16, 3, t, rng) for t in (1, 4, 5, 19, 20, 21, 89, 90)]
    check_parity(Trunk(model.user), tmp_path / TRUNK, TRUNK_INPUTS, batches)
    graph = onnx.load(str(tmp_path / TRUNK)).graph
    assert max(np.prod(x.dims) for x in graph.initializer) < length * length
    assert largest_scores(graph, tmp_path / TRUNK, batches[-1]) == (19, 95)


def largest_scores(graph: onnx.GraphProto, path: Path, batch: tuple[torch.Tensor, ...]) -> tuple[int, ...]:
    """Return [queries, keys] of the largest array that a call computes with a number for each key."""
    shown, states = onnx.load(str(path)), batch[0].shape[1] + 1
    known = {x.name for x in shown.graph.output}
    names = {name for node in graph.node for name in node.output if name} - known
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names))
    session = ort.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, dict(zip(TRUNK_INPUTS, (x.numpy() for x in batch), strict=True)))
    return max((x.shape[-2:] for x in found if x.ndim >= 2 and x.shape[-1] >= states), key=np.prod)
