"""The network: a candidate looks at the tokens of the history, and an MLP over all of them gives one score.

Target attention is that of DIN (Zhou et al., KDD 2018, arXiv 1706.06978, section 4.3) and TransAct (Xia et al., KDD
2023, arXiv 2306.00248), over the states of the towers' causal transformer in place of bare items: one pass over a
window serves all that is asked of it. Where DIN leaves its weights without a sum of 1, so that few like events weigh
little, the user's own token is one to look at: it takes what no event deserves.
Shapes as in `neural.model`; q: what is asked of a history (candidates, in serving).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural.model import MASKED, Argus, Mlp, Shape

#: vectors that stand side by side before the last MLP
PARTS = 5


class Memory(NamedTuple):
    """What candidates look at: the user's token, then the events."""

    key: Tensor  # [b, s, 2d]: the state that has just seen the event, the event's item
    value: Tensor  # [b, s, 2d]: the same state, what was surprising in the event's signals
    age: Tensor  # [b, q, s], or [b, 1, s] where all have one time: `runtime.log_hours` since then, 0 for the user
    hidden: Tensor  # bool[b, q, s] or [b, 1, s]: later than what is asked, or padding


class TargetAttention(nn.Module):
    """One look of the candidates at the memory, then an MLP: pre-norm, both residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(2 * width, width)
        self.value = nn.Linear(2 * width, width)
        self.out = nn.Linear(width, width)
        # Heads start between "all events alike" and "the latest ones count".
        self.slope = nn.Parameter(torch.linspace(0.0, -0.5, heads))
        self.dropout = nn.Dropout(dropout)
        self.mlp = Mlp(width, dropout)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """x: [b, q, d] -> [b, q, d]."""
        q, k, v = self._split(self.query(self.norm(x))), self._split(self.key(memory.key)), self.value(memory.value)
        mask = (self.slope.view(-1, 1, 1) * memory.age.unsqueeze(1)).masked_fill(memory.hidden.unsqueeze(1), MASKED)
        mask = mask.expand(-1, -1, x.shape[1], -1)  # ONNX Runtime wants a row for each candidate
        attended = F.scaled_dot_product_attention(q, k, self._split(v), attn_mask=mask).transpose(1, 2)
        # The clone is for the exporter, as in `neural.model.Block`.
        x = x + self.dropout(self.out(attended.clone(memory_format=torch.contiguous_format).flatten(2)))
        out: Tensor = x + self.mlp(x)
        return out

    def _split(self, x: Tensor) -> Tensor:
        """[b, n, d] -> [b, heads, n, d / heads]."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


class Cross(nn.Module):
    """User vectors, candidates and memory to scores: the towers' product, and what only a look at both can add."""

    def __init__(self, shape: Shape, layers: int) -> None:
        super().__init__()
        d = shape.width
        self.looks = nn.ModuleList(TargetAttention(d, shape.heads, shape.dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(PARTS * d)
        self.up = nn.Linear(PARTS * d, 2 * d)
        self.dropout = nn.Dropout(shape.dropout)
        self.down = nn.Linear(2 * d, 1)
        nn.init.zeros_(self.down.weight)  # training starts from the product alone

    def forward(self, users: Tensor, candidates: Tensor, memory: Memory) -> Tensor:
        """users: [b, q, d] or [b, 1, d], candidates: [b, q, d] -> [b, q]."""
        x = candidates
        for look in self.looks:
            x = look(x, memory)
        matched = users * candidates
        parts = torch.cat([users.expand_as(x), candidates, x, candidates * x, matched], dim=-1)  # [b, q, 5d]
        added: Tensor = self.down(self.dropout(F.gelu(self.up(self.norm(parts))))).squeeze(-1)  # [b, q]
        return matched.sum(-1) + added


class CrossArgus(Argus):
    """The towers with `Cross` over them."""

    def __init__(self, shape: Shape, layers: int) -> None:
        super().__init__(shape)
        self.cross = Cross(shape, layers)

    def remember(self, states: Tensor, item: Tensor, surprise: Tensor, age: Tensor, hidden: Tensor) -> Memory:
        """states: [b, s, d], item: [b, t, d], surprise: [b, t, k], age: [b, q or 1, t], hidden: bool[b, q or 1, s]."""
        before = (0, 0, 1, 0)  # nothing, at the place of the user's token
        key = torch.cat([states, F.pad(item, before)], dim=-1)
        value = torch.cat([states, F.pad(self.user.gate(surprise), before)], dim=-1)
        return Memory(key, value, F.pad(age, (1, 0)), hidden)


class Scorer(nn.Module):
    """A request from its history to the scores of its candidates, as it is served."""

    def __init__(self, model: CrossArgus) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, item: Tensor, codes: Tensor, signals: Tensor, surprise: Tensor, user: Tensor, length: Tensor,
        age: Tensor, context: Tensor, candidates: Tensor,
    ) -> Tensor:  # fmt: skip
        """As `UserTower.last`, with age: [b, t], context: int64[b, c] codes, candidates: [b, q, d] -> [b, q]."""
        model = self.model
        states, taste = model.user.states(item, codes, signals, surprise, user, exported=True)  # [b, s, d] each
        at = length.view(-1, 1, 1).expand(-1, 1, states.shape[2])
        last, liked = (x.gather(1, at).squeeze(1) for x in (states, taste))  # [b, d] each
        users = model.user.vectors(last, liked, context).unsqueeze(1)  # [b, 1, d]
        hidden = (torch.arange(states.shape[1], device=states.device) > length.unsqueeze(1)).unsqueeze(1)  # [b, 1, s]
        memory = model.remember(states, item, surprise, age.unsqueeze(1), hidden)
        scores: Tensor = model.cross(users, candidates, memory)
        return scores
