"""SASRec (Kang and McAuley, ICDM 2018, arXiv 1808.09781): causal self-attention over the items that were wanted.

Shapes: b sequences of t items, padded on the left; d = width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural.model import MASKED, embedding


class Block(nn.Module):
    """x + dropout(g(norm(x))) with self-attention as g, then with the point-wise network (section III)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.wide_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, *, last: bool = False) -> Tensor:
        """x: [b, t, d], mask: [b, 1, t, t] -> [b, t, d]; of the last place alone [b, 1, d]."""
        normed = self.norm(x)
        asked = normed
        if last:
            x, asked, mask = x[:, -1:], normed[:, -1:], mask[:, :, -1:]
        q, k, v = self._split(self.query(asked)), self._split(self.key(normed)), self._split(self.value(normed))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        # The clone is for the exporter, which cannot view the transposed result otherwise.
        x = x + self.dropout(attended.clone(memory_format=torch.contiguous_format).flatten(2))
        out: Tensor = x + self.dropout(self.down(F.relu(self.up(self.wide_norm(x)))))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """[b, t, d] -> [b, heads, t, d / heads]."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


class Encoder(nn.Module):
    """The vectors of a sequence's items to its states; the last one is the user's vector."""

    def __init__(self, length: int, width: int, layers: int, heads: int, dropout: float) -> None:
        """length: the most items of a sequence. A place is counted from the end: the last item has the last place."""
        super().__init__()
        self.position = embedding(length, width, width**-0.5)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def _embedded(self, item: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Return [b, t, d], the items in their places, and the mask [b, 1, t, t]."""
        t = item.shape[1]
        at = torch.arange(t, device=item.device)
        there = at >= t - length.unsqueeze(1)  # [b, t], not padding
        may = (at <= at.unsqueeze(1)) & there.unsqueeze(1)  # [b, t, t]: keys not behind the query
        # Of padding, all keys are masked alike: its states are finite, and nobody reads them.
        mask = torch.zeros(1, device=item.device).masked_fill(~may, MASKED).unsqueeze(1)
        places = self.position.weight[self.position.num_embeddings - t :]
        return self.dropout(item + places), mask

    def states(self, item: Tensor, length: Tensor) -> Tensor:
        """item: [b, t, d], length: int64[b] -> [b, t, d]: each state has seen the items up to its own."""
        x, mask = self._embedded(item, length)
        for block in self.blocks:
            x = block(x, mask)
        out: Tensor = self.norm(x)
        return out

    def forward(self, item: Tensor, length: Tensor) -> Tensor:
        """As `states` -> [b, d]: the last one, what is served."""
        x, mask = self._embedded(item, length)
        *blocks, final = self.blocks
        for block in blocks:
            x = block(x, mask)
        out: Tensor = self.norm(final(x, mask, last=True)).squeeze(1)
        return out


class Network(nn.Module):
    """The encoder with the vectors of n items, which are what is read and what is predicted."""

    def __init__(self, n: int, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.position.embedding_dim
        self.items = embedding(n, width, width**-0.5)

    def states(self, item: Tensor, length: Tensor) -> Tensor:
        """item: int64[b, t], length: int64[b] -> [b, t, d]."""
        return self.encoder.states(self.items(item), length)

    def logits(self, states: Tensor, item: Tensor) -> Tensor:
        """states: [b, t, d], item: int64[b, k] -> [b, t, k]."""
        logits: Tensor = states @ self.items(item).transpose(1, 2)
        return logits
