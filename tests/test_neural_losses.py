"""The losses against slow definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

from neural import losses
from neural.vocabulary.feedback import FeedbackKinds


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_temperature_is_clipped() -> None:
    asked = torch.tensor([-9.0, math.log(0.5), 9.0])
    torch.testing.assert_close(losses.clipped_temperature(asked), torch.tensor([0.01, 0.5, 100.0]))


def test_next_item_over_all_items_is_the_full_softmax() -> None:
    query, key = draw(1, 5, 4), draw(2, 7, 4)
    target = torch.tensor([0, 3, 6, 3, 1])
    found = losses.next_item(query, key, target, torch.arange(7), torch.zeros(7), torch.tensor(0.3)).mean()
    expected = torch.nn.functional.cross_entropy(query @ key.T / math.exp(0.3), target)
    torch.testing.assert_close(found, expected)


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_next_item_is_its_slow_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    query, key = draw(seed, 3, 4), draw(seed + 1, 6, 4)
    target, negative = rng.integers(0, 6, 3), rng.integers(0, 6, 8)
    log_expected = rng.normal(size=8)
    total = 0.0
    for n in range(3):
        score = (query[n] @ key.T / 0.5).tolist()
        others = sum(math.exp(score[j] - log_expected[k]) for k, j in enumerate(negative) if j != target[n])
        total += math.log(math.exp(score[target[n]]) + others) - score[target[n]]
    found = losses.next_item(
        query,
        key,
        torch.tensor(target),
        torch.tensor(negative),
        torch.tensor(log_expected),
        torch.tensor(math.log(0.5)),
    ).mean()
    assert float(found) == pytest.approx(total / 3, rel=1e-6)


def test_log_q_makes_the_denominator_unbiased() -> None:
    """Over many pools, the corrected negatives sum on average to the softmax's denominator."""
    rng = np.random.default_rng(0)
    score = rng.normal(size=20)
    q = rng.dirichlet(np.ones(20))
    pools = [np.concatenate([rng.choice(20, 8, p=q), rng.integers(0, 20, 8)]) for _ in range(4000)]
    expected = 8 * q + 8 / 20
    mean = np.mean([np.sum(np.exp(score[pool] - np.log(expected[pool]))) for pool in pools])
    assert mean == pytest.approx(np.exp(score).sum(), rel=0.03)


def test_grade_is_one_cross_entropy_for_each_threshold() -> None:
    logits = draw(3, 4, 2)
    rank = torch.tensor([0, 2, -1, 1])
    above = {0: [0, 0], 1: [1, 0], 2: [1, 1]}
    total = 0.0
    for n, r in enumerate(rank.tolist()):
        for k, wanted in enumerate(above.get(r, [])):
            p = 1 / (1 + math.exp(-float(logits[n, k])))
            total -= math.log(p if wanted else 1 - p)
    assert float(losses.grade(logits, rank)) == pytest.approx(total / 3)
    assert float(losses.grade(logits, torch.full((4,), -1))) == 0


def test_feedback_sums_the_kinds_and_skips_what_is_unknown() -> None:
    nan = float("nan")
    logits = draw(4, 3, 2).requires_grad_()
    value = torch.tensor([[1.0, 3.0], [nan, -0.2], [0.0, nan]], dtype=torch.float64)
    p = torch.sigmoid(logits[:, 0]).tolist()
    entropy = -(math.log(p[0]) + math.log(1 - p[2])) / 2
    error = [abs(float(logits[k, 1].detach()) - float(value[k, 1])) for k in (0, 1)]
    huber = sum(0.5 * e * e if e <= 1 else e - 0.5 for e in error) / 2
    loss = losses.feedback(logits, value, torch.tensor([True, False]))
    assert float(loss.detach()) == pytest.approx(entropy + huber)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1, 0] == logits.grad[2, 1] == 0


def test_pairwise_is_the_rankers_loss() -> None:
    winner, loser, weight = draw(5, 6), draw(6, 6), draw(7, 6).abs()
    slow = sum(float(w) * math.log1p(math.exp(float(b - a))) for a, b, w in zip(winner, loser, weight, strict=True))
    assert float(losses.pairwise(winner, loser, weight)) == pytest.approx(slow / float(weight.sum()))
    torch.testing.assert_close(losses.pairwise(winner, loser, 7 * weight), losses.pairwise(winner, loser, weight))


def test_a_time_is_told_better_by_its_logarithm_than_as_a_number() -> None:
    """Log-normal, a third 0, some left on overnight: how each loss's fit of a line orders what is new."""
    found: dict[str, list[float]] = {"number": [], "time": []}
    for seed, unit in enumerate((1.0, 1000.0, 1 / 3600, 1.0, 1.0)):
        rng = np.random.default_rng(seed)
        inputs = rng.normal(size=(1400, 16))
        truth = inputs @ rng.normal(size=16) / 4
        seconds = np.exp(3 + truth + rng.normal(size=1400)) * np.where(rng.random(1400) < 0.01, 100, 1)
        seconds[rng.random(1400) < 1 / (1 + 2 * np.exp(truth))] = 0
        value, x = (unit * seconds[:400]).astype(np.float32)[:, None], torch.from_numpy(inputs).float()
        for all_kinds in (False, True):
            kinds = FeedbackKinds.build(value, all_kinds)
            wanted = torch.from_numpy(kinds.wanted(value))
            line = torch.nn.Linear(16, 1)
            torch.nn.init.zeros_(line.weight)
            optimizer = torch.optim.Adam(line.parameters(), lr=0.05)
            for _ in range(150):
                optimizer.zero_grad()
                losses.feedback(line(x[:400]), wanted, torch.tensor([False])).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            said = line(x[400:]).detach().numpy()[:, 0]
            found[kinds.kind[0]].append(spearmanr(said, truth[400:]).statistic)
    assert np.mean(found["time"]) > np.mean(found["number"]) + 0.03
    assert min(found["time"]) > 0.9
