"""gBCE, the loss of gSASRec (Petrov and Macdonald, RecSys 2023, arXiv 2308.07192)."""

import torch.nn.functional as F
from torch import Tensor


def power(negatives: int, others: int, calibration: float) -> float:
    """Return β = α (t (1 - 1/α) + 1/α); α = negatives / others is the share of all negatives that is drawn.

    others: all items but the wanted one. calibration: t; with 0, β is 1, and the loss is cross-entropy.
    """
    share = negatives / others
    return share * (calibration * (1 - 1 / share) + 1 / share)


def gbce(positive: Tensor, negative: Tensor, beta: float) -> Tensor:
    """Return [...], -(log σ(s+)^β + Σ log(1 - σ(s-))) / (k + 1) of logits.

    positive: [...]. negative: [..., k]; -inf is a negative that adds nothing.
    """
    loss = beta * F.softplus(-positive) + F.softplus(negative).sum(-1)
    return loss / (negative.shape[-1] + 1)
