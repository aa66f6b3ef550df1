"""The model: torch and ONNX Runtime agree, and a state depends on nothing later."""

from pathlib import Path

import numpy as np
import pytest
import torch

from features.errors import PairliftError
from neural.entities import Layout
from neural.export import check_parity, export_towers, random_head_batch, random_user_batch
from neural.histories import TokenSpec
from neural.model import Argus, Block, Shape, Trunk, UserHead
from neural.runtime import HEAD_INPUTS, TRUNK, TRUNK_INPUTS, USER_HEAD


def random_model(length: int = 9) -> tuple[Argus, TokenSpec]:
    spec = TokenSpec(
        n_items=30, n_grades=3, n_surfaces=2, signal_mean=(1.0, 0.5), signal_scale=(1.0, 1.0), length=length
    )
    torch.manual_seed(0)
    item, user = Layout((1, 1, 3), 4), Layout((), 2)
    shape = Shape(width=16, layers=2, heads=2, dropout=0.1, rows=64, tokens=spec, item=item, user=user)
    model = Argus(shape).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model, spec


@pytest.mark.parametrize("length", [1, 9])
def test_export_is_checked_and_a_difference_raises(length: int, tmp_path: Path) -> None:
    model, spec = random_model(length)
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


def test_the_last_state_is_that_of_all_states() -> None:
    model, spec = random_model()
    rng = np.random.default_rng(2)
    item, codes, signals, surprise, user, length = random_user_batch(spec, 16, 10, 9, rng)
    with torch.no_grad():
        states, taste = model.user.states(item, codes, signals, surprise, user)
        at = torch.arange(10), length
        expected = torch.cat([states[at], taste[at]], dim=-1)
        found = Trunk(model.user)(item, codes, signals, surprise, user, length)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_state_depends_on_nothing_later() -> None:
    model, spec = random_model()
    inputs = list(random_user_batch(spec, 16, 1, 9, np.random.default_rng(3)))[:5]
    with torch.no_grad():
        before = [x[:, :5].clone() for x in model.user.states(*inputs)]
        for k in range(4):
            inputs[k][:, 4:] = 1
        after = [x[:, :5] for x in model.user.states(*inputs)]
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)


def test_states_of_a_long_history_are_those_of_one_part_and_so_are_their_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The scores of a few queries at a time, computed again in the backward pass: s = 10 in parts of 1, 3, 4."""
    model, spec = random_model()
    inputs = random_user_batch(spec, 16, 5, 9, np.random.default_rng(4))[:5]

    def run() -> list[torch.Tensor]:
        model.zero_grad()
        states, taste = model.user.states(*inputs)
        (states.square().sum() + taste.sum()).backward()
        gradients = [p.grad.clone() for p in model.user.parameters() if p.grad is not None]
        return [states.detach(), taste.detach(), *gradients]

    whole = run()
    assert model.user.blocks[0].slope.grad.abs().min() > 0
    mask, held = Block.mask, set()

    def seen(block: Block, query: torch.Tensor, keys: int) -> torch.Tensor:
        held.add((len(query), keys))
        return mask(block, query, keys)

    monkeypatch.setattr(Block, "mask", seen)
    for queries in (1, 3, 4):
        held.clear()
        monkeypatch.setattr("neural.model.QUERIES", queries)
        torch.testing.assert_close(run(), whole, rtol=1e-4, atol=1e-4)
        ends = [min(first + queries, 10) for first in range(0, 10, queries)]
        assert held == {(stop - first, stop) for first, stop in zip(range(0, 10, queries), ends, strict=True)}


def test_a_long_history_is_exported_without_a_mask_of_its_longest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("neural.model.QUERIES", 4)
    length = 400
    model, spec = random_model(length)
    export_towers(model, 64, spec, tmp_path)  # which compares with torch
    inputs = random_user_batch(spec, 16, 3, length, np.random.default_rng(5))
    check_parity(Trunk(model.user), tmp_path / TRUNK, TRUNK_INPUTS, [inputs])
    assert (tmp_path / TRUNK).stat().st_size < 4 * length * length
