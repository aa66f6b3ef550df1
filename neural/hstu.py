"""HSTU (Zhai et al., ICML 2024, arXiv 2402.17152, section 3.2) in the place of the transformer's blocks.

    U, V, Q, K = split(SiLU(f1(norm(X))))                         equation 1
    A = SiLU(Q Kᵀ + rab), 0 for what is later                     equation 2
    Y = X + f2(norm(A V) · U)                                     equation 3, and the residual

Weights are pointwise: no softmax gives them the sum 1, so what is summed over a history says how much of a kind there
was. (The authors' code divides it by the length of the longest history, which the norm behind it takes out again.)
There is no MLP: U, by which the sum is multiplied, has its part.
rab is of the distance and of the time between two events, one number for all heads. Times are summed from the gaps of
the tokens, each known to a factor of 2: so what is served needs no further input.
Shapes as in `neural.model`; at: int64[b, s], seconds.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural.histories import N_GAPS, gap_seconds
from neural.model import in_parts, join_heads, part_count, split_heads

#: where the first step of the time between two events begins, each step being a factor of 4: sums of gaps often are
#: powers of 2, which so lie within a step, for torch and ONNX Runtime round logarithms apart
SHIFT = 1.25


class HstuBlock(nn.Module):
    """Pointwise aggregated attention, gated: a `neural.model.HistoryBlock`."""

    seconds: Tensor  # int64[N_GAPS], of each code of a gap

    def __init__(self, width: int, heads: int, dropout: float, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query_gate = nn.Linear(width, 2 * width)  # f1 of Q and U
        self.key_value = nn.Linear(width, 2 * width)  # f1 of K and V
        self.sum_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.places = nn.Parameter(torch.zeros(length + 1))  # rab by distance
        self.times = nn.Parameter(torch.zeros(N_GAPS))  # rab by step of time
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("seconds", torch.from_numpy(gap_seconds()), persistent=False)

    def forward(self, x: Tensor, gaps: Tensor, exported: bool = False) -> Tensor:
        """As `HistoryBlock`."""
        normed, at, s, longest = self.norm(x), self._elapsed(gaps), x.shape[1], len(self.places)
        (q, gate), (k, v) = self._asked(normed), self._told(normed)
        if exported and part_count(longest) == 1:
            every = torch.arange(longest, device=x.device)  # a constant of the graph, of which a call takes its part
            place, seen = self._by_place(every, longest), self._seen(every, longest)
            rab = place[:s, :s] + self._by_time(at, at)
            return self._added(x, gate, _attend(q, k, v, rab, seen[:s, :s]))

        def part(q: Tensor, query: Tensor, stop: int) -> Tensor:
            rab = self._by_place(query, stop) + self._by_time(at.index_select(1, query), at[:, :stop])
            return _attend(q, k[:, :, :stop], v[:, :, :stop], rab, self._seen(query, stop))

        return self._added(x, gate, in_parts(part, q, longest, exported))

    def last(self, x: Tensor, gaps: Tensor, length: Tensor) -> Tensor:
        """As `HistoryBlock`."""
        normed, at, s = self.norm(x), self._elapsed(gaps), x.shape[1]
        place = length.view(-1, 1, 1).expand(-1, 1, x.shape[2])
        (q, gate), (k, v) = self._asked(normed.gather(1, place)), self._told(normed)
        rab = self._by_place(length, s).unsqueeze(1) + self._by_time(at.gather(1, length.unsqueeze(1)), at)
        seen = self._seen(length, s).view(-1, 1, 1, s)
        return self._added(x.gather(1, place), gate, _attend(q, k, v, rab, seen))

    def _asked(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """[b, s, d] -> queries [b, heads, s, d / heads] and gates [b, s, d]."""
        query, gate = F.silu(self.query_gate(normed)).chunk(2, dim=-1)
        return split_heads(query, self.heads), gate

    def _told(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """[b, s, d] -> keys and values, [b, heads, s, d / heads] each."""
        key, value = F.silu(self.key_value(normed)).chunk(2, dim=-1)
        return split_heads(key, self.heads), split_heads(value, self.heads)

    def _elapsed(self, gaps: Tensor) -> Tensor:
        """Return [b, s], seconds to each state from the user's token, which is as the event before the first."""
        return F.pad(self.seconds[gaps].cumsum(1), (1, 0))

    def _by_place(self, query: Tensor, keys: int) -> Tensor:
        """Return [q, keys]: rab of the distance from the states int64[q] query to the first so many states."""
        back = query[:, None] - torch.arange(keys, device=query.device)
        return F.embedding(back.clamp(min=0), self.places.unsqueeze(1)).squeeze(-1)

    def _by_time(self, query: Tensor, key: Tensor) -> Tensor:
        """Return [b, q, k]: rab of the time between states at int64[b, q] and states at int64[b, k] before them."""
        seconds = (query.unsqueeze(2) - key.unsqueeze(1)).float()
        step = (seconds.clamp(min=0.25).log() / math.log(4) + SHIFT).clamp(max=len(self.times) - 1).long()
        return F.embedding(step, self.times.unsqueeze(1)).squeeze(-1)

    @staticmethod
    def _seen(query: Tensor, keys: int) -> Tensor:
        """Return [q, keys]: 1 for a key that a query sees, 0 for a later one."""
        return (query[:, None] >= torch.arange(keys, device=query.device)).float()

    def _added(self, x: Tensor, gate: Tensor, summed: Tensor) -> Tensor:
        """x, gate: [b, q, d], summed: [b, heads, q, d / heads] -> [b, q, d]."""
        out: Tensor = x + self.out(self.dropout(self.sum_norm(join_heads(summed)) * gate))
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor, rab: Tensor, seen: Tensor) -> Tensor:
    """Return SiLU(q kᵀ + rab) v, [b, heads, q, d / heads]. rab: [b, q, k], of all heads; seen: 1 or 0, broadcast."""
    # What is not seen is multiplied away: a score far below 0 would not do, whose sigmoid ONNX Runtime ends at 1e-8.
    weights = F.silu(q @ k.transpose(-1, -2) + rab.unsqueeze(1)) * seen
    return weights @ v
