"""The networks of LiMAML (Wang et al., arXiv 2403.00803): a meta block that each user adapts, beside the item tower.

The meta block maps a user's attributes to the meta embedding, with one hidden layer. MAML (Finn et al., arXiv
1703.03400) adapts a copy of it to each user's support; the gradient of so small a network is written out, so training
differentiates through it (all orders), and serving repeats it without torch (`limaml.inner`). The global block, which
all users share, is the item tower: score = meta embedding · item vector. Shapes: b tasks of t events, d = width,
h = hidden, c = grades - 1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural.limaml.inner import N_RATES
from neural.model import EntityTower, embedding, ordered
from neural.vocabulary.entities import HASHES, Layout

#: the rate that the inner loop starts from, for the mean over the cuts: from ten times that the first epochs diverge
FIRST_RATE = 0.1


class MetaBlock(nn.Module):
    """A user's attributes to the meta embedding and, as its last number, how generous the user is with grades."""

    def __init__(self, width: int, hidden: int, inner_steps: int, n_cuts: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width + 1)
        nn.init.zeros_(self.down.bias)
        # One rate for each step and array (Antoniou et al., arXiv 1810.09502: one for all is what makes MAML unstable).
        self.log_rate = nn.Parameter(torch.full((inner_steps, N_RATES), math.log(FIRST_RATE / n_cuts)))
        self.log_shrink = nn.Parameter(torch.tensor(1.0))

    def forward(
        self, user: Tensor, events: Tensor, known: Tensor, above: Tensor, there: Tensor, cuts: Tensor
    ) -> Tensor:
        """Adapt to each task's support, and return what the adapted block gives, [b, d + 1].

        user: [b, d]. events: [b, t, d + 1], item vectors and 1. known: [b, t], what the score is over. above:
        [b, t, c], 1 where the grade is above k. there: [b, t], 1 for an event of the support. cuts: [c].

        The inner loss is the mean ordinal loss over the support and e^log_shrink events without a gradient, so that a
        user of few events stays near what is known of all.
        """
        share = there / (there.sum(1, keepdim=True) + self.log_shrink.exp())  # [b, t]
        up, up_bias, down, down_bias = (
            p.expand(len(user), *p.shape) for p in (self.up.weight, self.up.bias, self.down.weight, self.down.bias)
        )  # [b, h, d], [b, h], [b, d + 1, h], [b, d + 1]
        for rate in self.log_rate.exp():
            hidden = torch.tanh(_times(up, user) + up_bias)  # [b, h]
            out = _times(down, hidden) + down_bias  # [b, d + 1]
            logits = (_times(events, out) + known).unsqueeze(-1) - cuts  # [b, t, c]
            slope = (logits.sigmoid() - above).sum(-1) * share  # [b, t], of the loss by the score
            to_out = _times(events.transpose(1, 2), slope)  # [b, d + 1]
            to_hidden = _times(down.transpose(1, 2), to_out) * (1 - hidden.square())  # [b, h]
            up, up_bias = up - rate[0] * _outer(to_hidden, user), up_bias - rate[1] * to_hidden
            down, down_bias = down - rate[2] * _outer(to_out, hidden), down_bias - rate[3] * to_out
        return _times(down, torch.tanh(_times(up, user) + up_bias)) + down_bias


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """[b, n, m] times [b, m] -> [b, n]."""
    return torch.bmm(matrix, vector.unsqueeze(-1)).squeeze(-1)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """[b, n], [b, m] -> [b, n, m]."""
    return a.unsqueeze(2) * b.unsqueeze(1)


class MetaNetwork(nn.Module):
    """The meta block, both entity towers over one table, and what turns a score into grades."""

    def __init__(
        self, rows: int, item: Layout, user: Layout, n_cuts: int, width: int, hidden: int, steps: int, dropout: float
    ) -> None:
        """rows: of the embedding table. n_cuts: how many grades there are to be above of."""
        super().__init__()
        self.table = embedding(rows, width // HASHES, 0.1)
        self.item = EntityTower(self.table, item, width, dropout)
        self.user = EntityTower(self.table, user, width, dropout)
        self.meta = MetaBlock(width, hidden, steps, n_cuts)
        self.known = nn.Parameter(torch.tensor(1.0))
        self.grade_steps = nn.Parameter(torch.ones(n_cuts))

    @property
    def cuts(self) -> Tensor:
        """[c], in rising order."""
        return ordered(self.grade_steps)

    def embeddings(self, user: Tensor, items: Tensor, offset: Tensor, rank: Tensor) -> Tensor:
        """Return what the adapted meta blocks give, [b, d + 1].

        user: [b, d]. items: [b, t, d], of the support; offset: [b, t]; rank: int64[b, t], -1 for no part of it.
        """
        cuts = self.cuts
        above = (rank.unsqueeze(-1) > torch.arange(len(cuts), device=cuts.device)).to(items.dtype)
        there = (rank >= 0).to(items.dtype)
        out: Tensor = self.meta(user, with_one(items), self.known * offset, above, there, cuts)
        return out

    def scores(self, embeddings: Tensor, items: Tensor, offset: Tensor) -> Tensor:
        """Return [m]: the score that training fits, over what is known without it.

        embeddings: [m, d + 1], items: [m, d], offset: [m], the items' mean grade before then. The ranker has that as a
        counter; its factor is learned, so the meta embedding is spent on what the counters cannot say.
        """
        return (embeddings * with_one(items)).sum(-1) + self.known * offset


def with_one(items: Tensor) -> Tensor:
    """[..., d] -> [..., d + 1], a 1 behind."""
    return F.pad(items, (0, 1), value=1.0)
