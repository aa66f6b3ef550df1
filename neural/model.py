"""The towers after ARGUS (Khrylchenko et al., arXiv 2507.15994): embeddings, blocks, towers, heads.

An event (context, item, feedback) is one token. A causal transformer reads [user token, event 1 .. event t]; its state j has
seen j events. Shapes: b histories of t events, s = t + 1 states, d = width, n items.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural.entities import HASHES, Layout
from neural.histories import TokenSpec


@dataclass(frozen=True)
class Shape:
    """Sizes of the model. rows: of the shared embedding table."""

    width: int
    layers: int
    heads: int
    dropout: float
    rows: int
    tokens: TokenSpec
    item: Layout
    user: Layout


class Embedding(nn.Module):
    """Entities as vectors: hashed lookups in the shared table, one projection for each feature, their sum, an MLP.

    The table and its hashes are those of unified embeddings (Coleman et al., arXiv 2305.12102): each value has HASHES
    rows of width d / HASHES, put side by side.
    """

    def __init__(self, table: nn.Embedding, layout: Layout, width: int, dropout: float) -> None:
        super().__init__()
        self.table = table
        self.slots = layout.slots
        self.features = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in layout.slots)
        self.numbers = nn.Linear(layout.n_numbers, width)
        self.mlp = Mlp(width, dropout)
        for feature in self.features:
            nn.init.eye_(feature.weight)

    def forward(self, slots: Tensor, weight: Tensor, numbers: Tensor) -> Tensor:
        """slots: int64[n, s, HASHES], weight: [n, s], numbers: [n, m] -> [n, d]."""
        looked = self.table(slots).flatten(2) * weight.unsqueeze(-1)
        x = self.numbers(numbers)
        first = 0
        for size, feature in zip(self.slots, self.features, strict=True):
            x = x + feature(looked[:, first : first + size].sum(1))
            first += size
        return x + self.mlp(x)


class Mlp(nn.Module):
    """Normalise, widen by 2, GELU, back: the residual half of a block."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        return self.dropout(self.down(F.gelu(self.up(self.norm(x)))))


class Block(nn.Module):
    """Pre-norm attention and MLP. Order enters as a learned slope for each head on the logarithm of the distance.

    A distance is the same whichever window a token is seen in, so training on overlapping windows and serving on
    the latest events agree; an absolute position would not.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        # Heads start from "all events alike" to "the latest ones count".
        self.slope = nn.Parameter(torch.linspace(0.0, -1.0, heads))
        self.dropout = nn.Dropout(dropout)
        self.mlp = Mlp(width, dropout)

    def forward(self, x: Tensor, distance: Tensor, last: Tensor | None = None) -> Tensor:
        """x: [b, s, d]; distance: [s, s], inf where a query may not look.

        last: int64[b], the one query of each history that is wanted: then -> [b, 1, d] instead of [b, s, d].
        """
        normed = self.norm(x)
        if last is None:
            asked, mask = normed, self.slope.view(1, -1, 1, 1) * distance.clamp(max=1e4)
            mask = mask.masked_fill(torch.isinf(distance), -1e4)
        else:
            at = last.view(-1, 1, 1).expand(-1, 1, x.shape[2])
            x, asked = x.gather(1, at), normed.gather(1, at)
            seen = distance[last].view(-1, 1, 1, distance.shape[1])
            mask = (self.slope.view(1, -1, 1, 1) * seen.clamp(max=1e4)).masked_fill(torch.isinf(seen), -1e4)
        q, k, v = (self._split(y) for y in (self.query(asked), *self.key_value(normed).chunk(2, dim=-1)))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.dropout(
            self.out(attended.transpose(1, 2).clone(memory_format=torch.contiguous_format).flatten(2))
        )
        return x + self.mlp(x)

    def _split(self, x: Tensor) -> Tensor:
        """[b, s, d] -> [b, heads, s, d / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _distances(length: int) -> Tensor:
    """Return [length + 1, length + 1]: log(1 + how many events back), inf where that is the future."""
    at = torch.arange(length + 1, dtype=torch.float32)
    back = at[:, None] - at[None, :]
    # A query always sees itself: a row without any key differs between torch and ONNX Runtime.
    return torch.where(back >= 0, torch.log1p(back.clamp(min=0)), torch.inf)


class UserTower(nn.Module):
    """Tokens to states, and states with a request's context to user vectors."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d = shape.width
        self.codes = nn.ModuleList(nn.Embedding(size, d) for size in shape.tokens.code_sizes)
        for embedding in self.codes:
            nn.init.normal_(embedding.weight, std=0.1)
        self.feedback = nn.Linear(shape.tokens.n_numbers, d)
        self.item = nn.Linear(d, d)
        self.mix = nn.Linear(d, d)
        self.input = Mlp(d, shape.dropout)
        self.blocks = nn.ModuleList(Block(d, shape.heads, shape.dropout) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(d)
        self.context = nn.Embedding(shape.tokens.n_surfaces + 1, d)
        nn.init.zeros_(self.context.weight)
        self.out = nn.Linear(d, d)
        self.dropout = nn.Dropout(shape.dropout)
        self.register_buffer("distance", _distances(shape.tokens.length), persistent=False)

    def tokens(self, item: Tensor, codes: Tensor, feedback: Tensor, user: Tensor) -> Tensor:
        """item: [b, t, d] vectors, codes: int64[b, t, 4], feedback: [b, t, m], user: [b, d] -> [b, s, d]."""
        signal = self.feedback(feedback)
        for k, embedding in enumerate(self.codes):
            signal = signal + embedding(codes[..., k])
        # What was done scales what it was done to: a like and a skip of one item point opposite ways.
        x = self.item(item) + signal + self.mix(item) * signal
        x = torch.cat([user.unsqueeze(1), x], dim=1)
        return self.dropout(x + self.input(x))

    def states(self, item: Tensor, codes: Tensor, feedback: Tensor, user: Tensor) -> Tensor:
        """As `tokens` -> [b, s, d], every state."""
        x = self.tokens(item, codes, feedback, user)
        distance = self.distance[: x.shape[1], : x.shape[1]]
        for block in self.blocks:
            x = block(x, distance)
        normed: Tensor = self.norm(x)
        return normed

    def vectors(self, states: Tensor, surface: Tensor) -> Tensor:
        """states: [n, d], surface: int64[n] context codes -> [n, d] user vectors."""
        vectors: Tensor = self.out(states + self.context(surface))
        return vectors

    def forward(
        self, item: Tensor, codes: Tensor, feedback: Tensor, user: Tensor, length: Tensor, surface: Tensor
    ) -> Tensor:
        """As `tokens`, with length: int64[b] -> [b, d]: the user vectors after each history's last event."""
        x = self.tokens(item, codes, feedback, user)
        distance = self.distance[: x.shape[1], : x.shape[1]]
        for block in self.blocks[:-1]:
            x = block(x, distance)
        x = self.blocks[-1](x, distance, length)
        return self.vectors(self.norm(x)[:, 0], surface)


class Argus(nn.Module):
    """Both towers, and the heads that only training has."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d = shape.width
        table = nn.Embedding(shape.rows, d // HASHES)
        nn.init.normal_(table.weight, std=0.1)
        self.item = Embedding(table, shape.item, d, shape.dropout)
        self.user_token = Embedding(table, shape.user, d, shape.dropout)
        self.user = UserTower(shape)
        self.next_query = nn.Linear(d, d)
        self.next_context = nn.Embedding(shape.tokens.n_surfaces + 1, d)
        self.next_key = nn.Linear(d, d)
        self.temperature = nn.Parameter(torch.tensor(math.log(0.1)))
        self.grade_bias = nn.Linear(d, 1)
        self.grade_steps = nn.Parameter(torch.full((max(shape.tokens.n_grades - 1, 1),), 1.0))
        self.feedback = nn.Sequential(
            nn.Linear(3 * d, d), nn.GELU(), nn.Linear(d, max(len(shape.tokens.feedback_mean), 1))
        )

    def next_logits(self, states: Tensor, surface: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """states: [n, d], surface: int64[n], items: [m, d] -> unit queries [n, d] and keys [m, d] of the next item."""
        query = F.normalize(self.next_query(states + self.next_context(surface)), dim=-1)
        return query, F.normalize(self.next_key(items), dim=-1)

    def grade_logits(self, states: Tensor, score: Tensor) -> Tensor:
        """states: [n, d], score: [n] scalar products -> [n, grades - 1]: logits of "the grade is above k".

        An ordinal head over the very product that ranks (with an offset of the user's): pre-training so already
        teaches the vectors to order items by grade.
        """
        steps = torch.cat([self.grade_steps[:1], F.softplus(self.grade_steps[1:])]).cumsum(0)
        logits: Tensor = (score + self.grade_bias(states).squeeze(-1)).unsqueeze(-1) - steps
        return logits

    def feedback_logits(self, states: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """states, user vectors and item vectors: [n, d] each -> [n, k], one for each feedback column."""
        logits: Tensor = self.feedback(torch.cat([states, users * items, items], dim=-1))
        return logits
