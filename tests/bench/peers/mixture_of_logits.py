"""A Mixture-of-Logits head as a light scorer: what it keeps of a ranker's first, learned as the forest learns.

Zhai, Gong, Wang et al. 2023, "Revisiting Neural Retrieval on Accelerators" (KDD), eq. 3 and 4: the score is a mean of
the products of all pairs of USER x ITEM parts of the vectors, each of length 1 and over a temperature, weighed by a
softmax that sees user, item and the products. Beside it each item has a prior, as the plain product has.

Labels have mean 0 and variance 1, and priors begin at each item's own mean: an optimizer of small steps would reach
neither, and an item without labels, whose prior stays 0, would then stand above all that were learned from.
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
#: requests of a step, and items of each that are drawn for it
STEP, DRAWN = 8, 1000
#: so many labels of 0 are added to those that an item's prior is the mean of at first
SHRINK = 3


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
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, query: Tensor, item: Tensor) -> Tensor:
        """Return [g, n] scores of int64[g, n] items for float32[g, d] queries."""
        keys = self.keys[item]
        users = normalize(self.user(query).unflatten(-1, (USER, WIDTH)), dim=-1)
        items = normalize(self.item(keys).unflatten(-1, (ITEM, WIDTH)), dim=-1)
        logits = (users[:, None] @ items.transpose(-1, -2)).flatten(-2) / TEMPERATURE
        gate = self.user_gate(query)[:, None] * silu(self.item_gate(keys)) + self.cross_gate(logits)
        mixed = (gate.softmax(-1) * logits).sum(-1)
        return self.scale * TEMPERATURE * mixed + self.prior(item)[..., 0]


def learned(keys: F32, of: Sequence[Learned]) -> MixtureOfLogits:
    """Return the head that has learned labels by least squares, up to their mean and scale; the same on every run."""
    torch.manual_seed(0)
    model, rng = MixtureOfLogits(keys), np.random.default_rng(0)
    whole = [one._replace(label=label) for one, label in zip(of, _standard([one.label for one in of]), strict=True)]
    model.prior.weight.data[:, 0] = torch.from_numpy(_means(whole, len(keys)))
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * -(-len(of) // STEP))
    for _ in range(EPOCHS):
        order = rng.permutation(len(of))
        for first in range(0, len(order), STEP):
            query, item, label = _drawn([whole[k] for k in order[first : first + STEP]], rng)
            loss = nn.functional.mse_loss(model(query, item), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _standard(labels: list[F64]) -> list[F64]:
    """Return them with mean 0 and variance 1 of all."""
    together = np.concatenate(labels)
    return [(label - together.mean()) / together.std() for label in labels]


def _means(of: Sequence[Learned], n_items: int) -> F32:
    item, label = (np.concatenate([getattr(one, name) for one in of]) for name in ("item", "label"))
    mean = np.bincount(item, label, n_items) / (np.bincount(item, minlength=n_items) + SHRINK)
    return mean.astype(np.float32)


def _drawn(of: Sequence[Learned], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return float32[g, d] queries, int64[g, n] items, drawn evenly, and float32[g, n] labels."""
    most = min(DRAWN, *(len(one.item) for one in of))
    rows = [rng.choice(len(one.item), most, replace=False) for one in of]
    query = np.stack([one.query for one in of])
    item = np.stack([one.item[some] for one, some in zip(of, rows, strict=True)])
    label = np.stack([one.label[some] for one, some in zip(of, rows, strict=True)])
    return torch.from_numpy(query), torch.from_numpy(item), torch.from_numpy(label.astype(np.float32))


def scores(model: MixtureOfLogits, query: F32, item: I32) -> F64:
    """Return float64[n] of int32[n] items for one user's float32[d] query."""
    with torch.no_grad():
        found = model(torch.from_numpy(query[None]), torch.from_numpy(item.astype(np.int64))[None])
    return found[0].numpy().astype(np.float64)
