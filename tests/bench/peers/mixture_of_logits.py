"""A Mixture-of-Logits head as a light scorer: what it keeps of a ranker's first, learned as the forest learns.

Zhai, Gong, Wang et al. 2023, "Revisiting Neural Retrieval on Accelerators" (KDD), eq. 3 and 4: the score is a mean of
the products of all pairs of USER x ITEM parts of the vectors, each of length 1 and over a temperature, weighed by a
softmax that sees user, item and the products. Beside it each item has a prior, as the plain product has.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, silu

from features.schema import F32, F64, I32, I64

#: parts of a user's and of an item's vector, and their width
USER, ITEM, WIDTH = 8, 4, 32
#: of the softmax's network
HIDDEN = 64
TEMPERATURE = 0.05
EPOCHS, RATE, DECAY = 40, 3e-3, 1e-4
#: requests of a step
STEP = 8


class Learned(NamedTuple):
    """The candidates of one request that are learned from."""

    query: F32  # [d] of the user
    item: I64  # [n]
    label: F64  # [n], what the score is to be


class MixtureOfLogits(nn.Module):
    """Scores of items for users, of vectors that stay as they are. keys: float32[items, d]; NaN is an item without."""

    def __init__(self, keys: F32) -> None:
        super().__init__()
        width, known = keys.shape[1], np.isfinite(keys).all(axis=1)
        self.register_buffer("keys", torch.from_numpy(np.where(known[:, None], keys, 0).astype(np.float32)))
        self.user, self.item = nn.Linear(width, USER * WIDTH), nn.Linear(width, ITEM * WIDTH)
        self.prior = nn.Embedding(len(keys), 1)
        nn.init.zeros_(self.prior.weight)
        self.user_gate, self.item_gate, self.cross_gate = (
            nn.Sequential(nn.Linear(n, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, USER * ITEM))
            for n in (width, width, USER * ITEM)
        )
        self.scale = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, query: Tensor, item: Tensor) -> Tensor:
        """Return [n] scores of int64[n] items for float32[n, d] queries, or for float32[1, d]."""
        keys = self.keys[item]
        users = normalize(self.user(query).unflatten(-1, (USER, WIDTH)), dim=-1)
        items = normalize(self.item(keys).unflatten(-1, (ITEM, WIDTH)), dim=-1)
        logits = (users @ items.transpose(-1, -2)).flatten(-2) / TEMPERATURE
        gate = self.user_gate(query) * silu(self.item_gate(keys)) + self.cross_gate(logits)
        mixed = (gate.softmax(-1) * logits).sum(-1)
        return self.scale[0] * TEMPERATURE * mixed + self.scale[1] + self.prior(item)[..., 0]


def learned(keys: F32, of: Sequence[Learned]) -> MixtureOfLogits:
    """Return the head that has learned labels by least squares, the same on every run."""
    torch.manual_seed(0)
    model, rng = MixtureOfLogits(keys), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    steps = EPOCHS * -(-len(of) // STEP)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        order = rng.permutation(len(of))
        for first in range(0, len(order), STEP):
            some = [of[k] for k in order[first : first + STEP]]
            query = torch.from_numpy(np.concatenate([np.repeat(one.query[None], len(one.item), 0) for one in some]))
            item, label = (np.concatenate([getattr(one, name) for one in some]) for name in ("item", "label"))
            found = model(query, torch.from_numpy(item))
            loss = nn.functional.mse_loss(found, torch.from_numpy(label.astype(np.float32)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def scores(model: MixtureOfLogits, query: F32, item: I32) -> F64:
    """Return float64[n] of int32[n] items for one user's float32[d] query."""
    with torch.no_grad():
        found = model(torch.from_numpy(query[None]), torch.from_numpy(item.astype(np.int64)))
    return found.numpy().astype(np.float64)
