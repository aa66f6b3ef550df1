"""The losses, as free functions of tensors. Of several processes' shares of a batch: see `neural.parallel.ranks`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from neural.parallel.ranks import whole

LOWEST, HIGHEST = 0.01, 100.0


def clipped_temperature(log_temperature: Tensor) -> Tensor:
    """Return e^T within [0.01, 100] (ARGUS, arXiv 2507.15994, section 3)."""
    return log_temperature.exp().clamp(LOWEST, HIGHEST)


def next_item(
    query: Tensor,
    key: Tensor,
    target: Tensor,
    negative: Tensor,
    log_expected: Tensor,
    log_temperature: Tensor,
    prior: Tensor | None = None,
) -> Tensor:
    """Return [n]: the sampled softmax loss of each target, -log P(target).

    query: [n, d] and key: [m, d] unit vectors; target: int64[n] and negative: int64[k] rows of key, in-batch and
    uniform negatives together; log_expected: [k], the logarithm of how often the pool is expected to hold that item.
    prior: [m], what is added to the product of each key.
    Less this (logQ, Yi et al., RecSys 2019) the negatives sum to an unbiased estimate of the softmax's denominator;
    the target is in it once, uncorrected, so a negative equal to it is left out (Khrylchenko et al., arXiv 2507.09331).
    """
    scale = 1 / clipped_temperature(log_temperature)
    # Not `key[target]`: the gradient of that has no fixed order, or one thread.
    positive = (query * F.embedding(target, key)).sum(-1) * scale
    logits = query @ F.embedding(negative, key).T * scale - log_expected
    if prior is not None:
        positive, logits = positive + prior[target], logits + prior[negative]
    logits = logits.masked_fill(target[:, None] == negative[None, :], float("-inf"))
    return torch.logsumexp(torch.cat([positive[:, None], logits], dim=1), dim=1) - positive


def grade(logits: Tensor, rank: Tensor) -> Tensor:
    """Return the mean ordinal loss: one binary cross-entropy for each "is the grade above k?".

    logits: [n, grades - 1]; rank: int64[n], -1 unknown: no part of the mean, which is 0 where all are.
    """
    known = rank >= 0
    above = (rank[:, None] > torch.arange(logits.shape[1], device=logits.device)).to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, above, reduction="none").sum(1)
    return (loss * known).sum() / whole(known.sum(), 1)


def feedback(logits: Tensor, value: Tensor, bounded: Tensor) -> Tensor:
    """Return the sum over feedback columns of each one's mean loss over its known values.

    logits, value: [n, k], NaN unknown. bounded: bool[k], the columns within 0 to 1 (cross-entropy); the others are
    scaled numbers (Huber: a player left on overnight must not count a thousandfold).
    """
    known = torch.isfinite(value)
    wanted = torch.where(known, value, torch.zeros_like(value))
    entropy = F.binary_cross_entropy_with_logits(logits, wanted.clamp(0, 1), reduction="none")
    loss = torch.where(bounded, entropy, F.huber_loss(logits, wanted, reduction="none"))
    return ((loss * known).sum(0) / whole(known.sum(0), 1)).sum()


def pairwise(winner: Tensor, loser: Tensor, weight: Tensor) -> Tensor:
    """Return Σ w·log(1 + e^-(s_winner - s_loser)) / Σ w of scores and weights [p]: the ranker's own loss."""
    return (F.softplus(loser - winner) * weight).sum() / whole(weight.sum(), 1e-12)
