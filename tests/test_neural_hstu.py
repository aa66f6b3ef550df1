"""HSTU's blocks: the paper's equations, times of the tokens' gaps, and plugins that serve what was trained."""

import math

import numpy as np
import pytest
import torch
from contracts import PluginContract, RetrievalContract, fit_data
from world import SMALL_NETWORK, World

from features.pairing.split import make_split
from features.plugin import FeaturePlugin
from features.schema import SECOND
from features.settings import SplitSettings
from neural.cross_encoder import CrossEncoder
from neural.data import TowerData
from neural.histories import N_GAPS, _gap_code, gap_seconds
from neural.hstu import HstuBlock
from neural.model import Block
from neural.settings import TowerSettings
from neural.train import Trainer
from neural.two_tower import TwoTower

HSTU = {**SMALL_NETWORK, "encoder": "hstu"}


class TestTwoTowerOfHstu(RetrievalContract):
    exact = False

    def make(self) -> FeaturePlugin:
        return TwoTower(**HSTU, teachers=0)


class TestCrossEncoderOfHstu(PluginContract):
    exact = False

    def make(self) -> FeaturePlugin:
        return CrossEncoder(**HSTU)


def random_block(width: int, heads: int, length: int) -> HstuBlock:
    torch.manual_seed(0)
    block = HstuBlock(width, heads, 0.0, length).double().eval()
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return block


def plain(block: HstuBlock, x: torch.Tensor, gaps: list[int]) -> torch.Tensor:
    """Equations 1 to 3 for one history, [s, d] -> [s, d], pair by pair."""
    silu, d = torch.nn.functional.silu, x.shape[1]
    normed = torch.nn.functional.layer_norm(x, (d,), block.norm.weight, block.norm.bias)
    q, u = silu(block.query_gate(normed)).split(d, dim=1)
    k, v = silu(block.key_value(normed)).split(d, dim=1)
    seconds, size = gap_seconds().tolist(), d // block.heads
    summed = torch.zeros_like(x)
    for i in range(len(x)):
        for j in range(i + 1):
            passed = sum(seconds[code] for code in gaps[j:i])
            step = min(math.floor(math.log(max(passed, 0.25), 4) + 1.25), N_GAPS - 1)
            rab = block.places[i - j] + block.times[step]
            for h in range(block.heads):
                own = slice(h * size, (h + 1) * size)
                summed[i, own] += silu(q[i, own] @ k[j, own] + rab) * v[j, own]
    gated = torch.nn.functional.layer_norm(summed, (d,), block.sum_norm.weight, block.sum_norm.bias) * u
    return x + block.out(gated)


def test_a_block_is_the_papers_equations() -> None:
    block, rng = random_block(8, 2, 11), np.random.default_rng(1)
    gaps, x = rng.integers(0, N_GAPS, (3, 11)), torch.from_numpy(rng.normal(size=(3, 12, 8)))
    with torch.no_grad():
        found, expected = block(x, torch.from_numpy(gaps)), [plain(block, x[b], gaps[b].tolist()) for b in range(3)]
        last = block.last(x, torch.from_numpy(gaps), torch.tensor([0, 5, 11]))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(last[:, 0], found[torch.arange(3), torch.tensor([0, 5, 11])])


def test_more_of_a_kind_weighs_more_and_when_it_was_counts() -> None:
    """Softmax would give the same sum for one event and for five like it."""
    block, events = random_block(8, 2, 11), torch.randn(1, 1, 8, dtype=torch.float64).expand(1, 6, 8)
    with torch.no_grad():
        block.places.zero_()
        block.times.zero_()
        same = torch.zeros(1, 5, dtype=torch.int64)
        normed = block.norm(events)
        (q, _), (k, v) = block._asked(normed), block._told(normed)
        weights = torch.nn.functional.silu(q @ k.transpose(-1, -2))
        of_all, of_one = weights[:, :, :1] @ v, weights[:, :, :1, :1] @ v[:, :, :1]
        torch.testing.assert_close(of_all, 6 * of_one)
        block.times.normal_()
        near, far = block(events, same), block(events, same + 9)
    assert (near - far).abs().max() > 0.01


def test_seconds_of_a_gap_are_within_its_code_and_steps_of_time_have_no_edge_there() -> None:
    seconds = gap_seconds()
    assert seconds[:2].tolist() == [0, 0]
    assert [_gap_code(int(s) * SECOND) for s in seconds[1:]] == list(range(1, N_GAPS))
    for code in range(2, N_GAPS - 1):
        assert [_gap_code(int(s) * SECOND) for s in (seconds[code] // 2, seconds[code] * 2 - 1)] == [code, code]
    twice = np.concatenate([seconds, 2 * seconds])
    sums = twice[:, None] + twice
    place = np.log(np.maximum(sums, 0.25)) / math.log(4) + 1.25
    assert np.abs(place - np.round(place)).min() > 1e-3


def test_the_option_builds_its_blocks_which_have_five_eighths_of_the_weights(world: World) -> None:
    inputs, sizes = TowerData.build(fit_data(world, make_split(SplitSettings(), world.log, "UTC")), TowerSettings()), {}
    for encoder, kind in (("transformer", Block), ("hstu", HstuBlock)):
        blocks = Trainer(inputs, TowerSettings(**SMALL_NETWORK, encoder=encoder), 0).model.user.blocks
        assert [type(block) for block in blocks] == [kind, kind]
        sizes[encoder] = sum(p.numel() for p in blocks[0].parameters() if p.ndim > 1)
    assert sizes["hstu"] == sizes["transformer"] * 5 / 8


def test_an_encoder_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="'transformer' or 'hstu'"):
        TowerSettings(encoder="rnn")
