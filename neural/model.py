"""The towers after ARGUS (Khrylchenko et al., arXiv 2507.15994): embeddings, blocks, towers, heads.

An event (context, item, feedback) is one token. A causal transformer reads [user, event 1 .. event t]; its state
j has seen j events. Shapes: b histories of t events, s = t + 1 states, d = width, k signals, n rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neural.histories import CODES, TokenSpec
from neural.vocabulary.entities import HASHES, Layout

#: what a masked score is: finite, for torch and ONNX Runtime differ on infinities
MASKED = -1e4
#: queries whose scores are in memory at a time, of each history and head
QUERIES = 512
#: place of the gap's code in a token's codes
GAP = CODES.index("gap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the model."""

    width: int  # d
    layers: int  # blocks of the transformer
    heads: int  # of each block; they divide d
    dropout: float  # share that is dropped, of tokens and of what a block adds
    rows: int  # of the embedding table that items and users share
    tokens: TokenSpec  # vocabulary of the events, and the most that a history has
    item: Layout  # features of items
    user: Layout  # features of users
    block: "Callable[[int, int, float, int], nn.Module]" = field(default_factory=lambda: Block)  # makes a HistoryBlock


def embedding(rows: int, width: int, std: float) -> nn.Embedding:
    """Return an embedding drawn from N(0, std²)."""
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=std)
    return table


def identity(width: int) -> nn.Linear:
    """Return a linear map that starts as the identity."""
    linear = nn.Linear(width, width, bias=False)
    nn.init.eye_(linear.weight)
    return linear


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
        out: Tensor = self.dropout(self.down(F.gelu(self.up(self.norm(x)))))
        return out


class EntityTower(nn.Module):
    """Items (the item tower) or users (the first token) as vectors: hashed lookups in one table shared by all.

    Unified embeddings (Coleman et al., arXiv 2305.12102): a value has HASHES rows of width d / HASHES, side by side;
    then one projection for each feature, their sum with the numbers, and an MLP.
    """

    def __init__(self, table: nn.Embedding, layout: Layout, width: int, dropout: float) -> None:
        super().__init__()
        self.table = table
        self.slots = layout.slots
        self.features = nn.ModuleList(identity(width) for _ in layout.slots)
        self.numbers = nn.Linear(layout.n_numbers, width)
        self.mlp = Mlp(width, dropout)

    def forward(self, slots: Tensor, weight: Tensor, numbers: Tensor) -> Tensor:
        """slots: int64[n, s, HASHES], weight: [n, s], numbers: [n, m] -> [n, d]."""
        x: Tensor = self.numbers(numbers)  # [n, d]
        looked = self.table(slots).flatten(2) * weight.unsqueeze(-1)  # [n, s, HASHES, d / HASHES] -> [n, s, d]
        for feature, rows in zip(self.features, looked.split(self.slots, dim=1), strict=True):
            x = x + feature(rows.sum(1))  # [n, slots of the feature, d] -> [n, d]
        out: Tensor = x + self.mlp(x)
        return out


class HistoryBlock(Protocol):
    """What reads a history, one upon the other: `Block`, or one of another file; made of width, heads, dropout, length.

    gaps: int64[b, t], codes of the time before each event.
    """

    def __call__(self, x: Tensor, gaps: Tensor, exported: bool = False) -> Tensor:
        """x: [b, s, d] -> [b, s, d], each state of those up to it. exported: s is what `filled` makes of it."""

    def last(self, x: Tensor, gaps: Tensor, length: Tensor) -> Tensor:
        """As the call, of the one state int64[b] length of each history -> [b, 1, d]."""


class Block(nn.Module):
    """Pre-norm attention and MLP. Order enters as a learned slope of each head on the logarithm of the distance.

    A distance is the same in whichever window a token is seen, so training on overlapping windows and serving
    the latest events agree; an absolute position would not.
    """

    steps: Tensor  # [length + 1]: log(1 + how many states back a key is)

    def __init__(self, width: int, heads: int, dropout: float, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        # Heads start between "all events alike" and "the latest ones count".
        self.slope = nn.Parameter(torch.linspace(0.0, -1.0, heads))
        self.dropout = nn.Dropout(dropout)
        self.mlp = Mlp(width, dropout)
        self.register_buffer("steps", torch.log1p(torch.arange(length + 1).float()), persistent=False)

    def mask(self, query: Tensor, keys: int) -> Tensor:
        """Return [heads, q, keys], added to the scores of the states int64[q] query for the first so many states."""
        back = query[:, None] - torch.arange(keys, device=query.device)  # [q, keys]
        # A query sees itself always: a row without a key differs between torch and ONNX Runtime.
        return (self.slope.view(-1, 1, 1) * self.steps[back.clamp(min=0)]).masked_fill(back < 0, MASKED)

    def whole_mask(self, s: int) -> Tensor:
        """Return [heads, s, s] of all states, for an exporter: a part of a constant of the graph, made once."""
        n = len(self.steps)
        return self.mask(torch.arange(n, device=self.slope.device), n)[:, :s, :s]

    def forward(self, x: Tensor, gaps: Tensor, exported: bool = False) -> Tensor:
        """As `HistoryBlock`; it goes by the order of the events, and reads no gaps."""
        mask = self.whole_mask(x.shape[1]) if exported and part_count(len(self.steps)) == 1 else None
        normed = self.norm(x)
        key, value = self.key_value(normed).chunk(2, dim=-1)  # [b, s, d] each
        q, k, v = self._split(self.query(normed)), self._split(key), self._split(value)
        if mask is not None:
            return self._added(x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

        def part(q: Tensor, query: Tensor, stop: int) -> Tensor:
            mask = self.mask(query, stop)
            return F.scaled_dot_product_attention(q, k[:, :, :stop], v[:, :, :stop], attn_mask=mask)

        return self._added(x, in_parts(part, q, len(self.steps), exported))

    def last(self, x: Tensor, gaps: Tensor, length: Tensor) -> Tensor:
        """As `HistoryBlock`."""
        normed = self.norm(x)
        at = length.view(-1, 1, 1).expand(-1, 1, x.shape[2])
        key, value = self.key_value(normed).chunk(2, dim=-1)  # [b, s, d] each
        q, k, v = self._split(self.query(normed.gather(1, at))), self._split(key), self._split(value)
        mask = self.mask(length, x.shape[1]).transpose(0, 1).unsqueeze(2)  # [b, heads, 1, s]
        return self._added(x.gather(1, at), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def _added(self, x: Tensor, attended: Tensor) -> Tensor:
        """x: [b, q, d], attended: [b, heads, q, d / heads] -> [b, q, d]."""
        x = x + self.dropout(self.out(join_heads(attended)))
        out: Tensor = x + self.mlp(x)
        return out

    def _split(self, x: Tensor) -> Tensor:
        return split_heads(x, self.heads)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[b, s, d] -> [b, heads, s, d / heads]."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[b, heads, s, d / heads] -> [b, s, d]."""
    # The clone is for the exporter, which cannot view the transposed result otherwise.
    return x.transpose(1, 2).clone(memory_format=torch.contiguous_format).flatten(2)


def part_count(longest: int) -> int:
    """Return in how many parts an exported graph attends whose longest history has so many states."""
    return -(-longest // QUERIES)


def in_parts(part: Callable[[Tensor, Tensor, int], Tensor], q: Tensor, longest: int, exported: bool) -> Tensor:
    """Attend, [b, heads, s, d / heads], with the scores of QUERIES states at a time for those up to them.

    part: of some queries and their places int64[q], the last of which is before stop, for the keys before it. Of a long
    history the backward pass computes each
    part's scores again: no s × s of them is ever held. An exported graph has no loop: it has the parts that the longest
    history needs, which are as many, and smaller, of a short one; s is a multiple of their number.
    """
    s = q.shape[2]
    run: Callable[[Tensor, Tensor, int], Tensor] = part
    if exported:
        size = s // part_count(longest)
        ends = [(k * size, (k + 1) * size) for k in range(part_count(longest))]
    else:
        ends = [(first, min(first + QUERIES, s)) for first in range(0, s, QUERIES)]
        if len(ends) > 1:
            run = partial(checkpoint, part, use_reentrant=False, preserve_rng_state=False)
    # Behind the longest history a state is as its last one: there is no distance for it, and nobody reads it.
    query = torch.arange(s, device=q.device)
    query = query.clamp(max=longest - 1) if exported else query
    parts = [run(q[:, :, first:stop], query[first:stop], stop) for first, stop in ends]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def filled(events: tuple[Tensor, ...], longest: int) -> tuple[Tensor, ...]:
    """Return [b, t, ...] of events with more behind them, as an exported graph needs for its parts: see `in_parts`.

    The last event is repeated. What has seen less does not see it, and nobody reads a state that has seen more.
    """
    n, t = part_count(longest), events[0].shape[1]
    if n == 1:
        return events
    rows = torch.arange(n * ((t + n) // n) - 1, device=events[0].device).clamp(max=t - 1)
    return tuple(x.index_select(1, rows) for x in events)


class Context(nn.Module):
    """A state that has met a request: what the request says of itself is added, and beyond its surface an MLP mixes it.

    It stands behind the trunk, so a kept state serves requests of any context.
    """

    def __init__(self, sizes: tuple[int, ...], width: int, dropout: float) -> None:
        super().__init__()
        self.codes = nn.ModuleList(embedding(size, width, 0.0) for size in sizes)
        self.meet = Mlp(width, dropout) if len(sizes) > 1 else None
        if self.meet is not None:
            nn.init.zeros_(self.meet.down.weight)  # training starts from the sum alone

    def forward(self, states: Tensor, context: Tensor) -> Tensor:
        """states: [n, d], context: int64[n, c], `TokenSpec.context_codes` -> [n, d]."""
        for place, table in enumerate(self.codes):
            states = states + table(context[:, place])
        return states if self.meet is None else states + self.meet(states)


class UserTower(nn.Module):
    """A history to its states, and a state with a request's context to the user vector.

    Beside the transformer stands a short way from feedback to the vector (`taste`): with few users it carries most of
    what can be learnt, and the transformer adds order, context and interactions where there is data for them.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d, k = shape.width, shape.tokens.n_signals
        self.codes = nn.ModuleList(embedding(size, d, 0.1) for size in shape.tokens.code_sizes)
        self.signals = nn.Linear(2 * k, d)
        self.gate = nn.Linear(k, d, bias=False)
        nn.init.constant_(self.gate.weight, 1 / k)
        self.item = nn.Linear(d, d)
        self.mix = nn.Linear(d, d)
        self.input = Mlp(d, shape.dropout)
        self.longest = shape.tokens.length + 1  # states
        self.blocks = nn.ModuleList(
            shape.block(d, shape.heads, shape.dropout, shape.tokens.length) for _ in range(shape.layers)
        )
        self.norm = nn.LayerNorm(d)
        self.context = Context(shape.tokens.context_sizes, d, shape.dropout)
        self.out = nn.Linear(d, d)
        self.pooled = identity(d)
        self.shrink = nn.Parameter(torch.full((2,), math.log(5.0)))
        self.dropout = nn.Dropout(shape.dropout)

    def tokens(self, item: Tensor, codes: Tensor, signals: Tensor, gate: Tensor, user: Tensor) -> Tensor:
        """Mix an event's parts into its token, and put the user's before them.

        item, gate: [b, t, d], codes: int64[b, t, c], signals: [b, t, 2k], user: [b, d] -> [b, s, d].
        """
        signal = self.signals(signals) + gate  # [b, t, 2k] -> [b, t, d]
        for place, table in enumerate(self.codes):
            signal = signal + table(codes[..., place])
        # What was done scales what it was done to: a like and a skip of one item point opposite ways.
        x = self.item(item) + signal + self.mix(item) * signal
        x = torch.cat([user.unsqueeze(1), x], dim=1)  # [b, t, d] -> [b, s, d]
        out: Tensor = self.dropout(x + self.input(x))
        return out

    def taste(self, item: Tensor, gate: Tensor, seen: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """Return [b, s, d]: Σ (gate - mean gate) · item vector over the `seen` events ([.., s, 1]), shrunk for few.

        As a factor model folds a user in (cf. SVD++, Koren 2008), with gates from the surprise in each signal.
        total: how a [b, t, d] is summed over the events that each of the s states has seen.
        """
        own, all_ = self.shrink.exp()  # as so many events, drawing the mean gate and the sum towards 0
        mean = total(gate) / (seen + own)  # [b, s, d]
        taste: Tensor = self.pooled((total(gate * item) - mean * total(item)) / (seen + all_).sqrt())
        return taste

    def states(
        self, item: Tensor, codes: Tensor, signals: Tensor, surprise: Tensor, user: Tensor, exported: bool = False
    ) -> tuple[Tensor, Tensor]:
        """As `tokens`, with surprise: [b, t, k] -> [b, s, d] twice: every state, and its taste.

        exported: as an exporter needs it, which cannot tell a long history from a short one.
        """
        s = item.shape[1] + 1
        if exported:
            item, codes, signals, surprise = filled((item, codes, signals, surprise), self.longest)
        gate = self.gate(surprise)  # [b, t, k] -> [b, t, d]
        x = self.tokens(item, codes, signals, gate, user)  # [b, s, d]
        for block in self.blocks:
            x = block(x, codes[..., GAP], exported)
        seen = torch.arange(x.shape[1], dtype=x.dtype, device=x.device).view(1, -1, 1)  # [1, s, 1]
        taste = self.taste(item, gate, seen, lambda y: F.pad(y.cumsum(1), (0, 0, 1, 0)))
        states = self.norm(x)
        return (states[:, :s], taste[:, :s]) if exported and part_count(self.longest) > 1 else (states, taste)

    def vectors(self, states: Tensor, taste: Tensor, context: Tensor) -> Tensor:
        """states, taste: [n, d], context: int64[n, c] codes -> [n, d] user vectors."""
        vectors: Tensor = self.out(self.context(states, context)) + taste
        return vectors

    def last(
        self, item: Tensor, codes: Tensor, signals: Tensor, surprise: Tensor, user: Tensor, length: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `states`, with length: int64[b] -> [b, d] twice: the state after each history's last event, its taste."""
        item, codes, signals, surprise = filled((item, codes, signals, surprise), self.longest)
        gate = self.gate(surprise)  # [b, t, k] -> [b, t, d]
        x = self.tokens(item, codes, signals, gate, user)  # [b, s, d]
        s, gaps = x.shape[1], codes[..., GAP]
        *blocks, final = self.blocks
        for block in blocks:
            x = block(x, gaps, exported=True)
        x = cast(HistoryBlock, final).last(x, gaps, length)  # [b, 1, d]
        there = (torch.arange(s - 1, device=x.device) < length.unsqueeze(1)).to(x.dtype).unsqueeze(-1)  # [b, t, 1]
        seen = length.to(x.dtype).view(-1, 1, 1)  # [b, 1, 1]
        taste = self.taste(item, gate, seen, lambda y: (y * there).sum(1, keepdim=True))  # [b, 1, d]
        return self.norm(x).squeeze(1), taste.squeeze(1)


class Argus(nn.Module):
    """Both towers, and the heads that only training has."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d = shape.width
        self.shape = shape
        self.table = embedding(shape.rows, d // HASHES, 0.1)
        self.item = EntityTower(self.table, shape.item, d, shape.dropout)
        self.user_token = EntityTower(self.table, shape.user, d, shape.dropout)
        self.user = UserTower(shape)
        self.next_query = nn.Linear(d, d)
        self.next_context = Context(shape.tokens.context_sizes, d, shape.dropout)
        self.next_key = nn.Linear(d, d)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.1)))
        self.known = nn.Parameter(torch.tensor(1.0))
        self.grade_bias = nn.Linear(d, 1)
        self.grade_steps = nn.Parameter(torch.ones(max(shape.tokens.n_grades - 1, 1)))
        self.feedback = nn.Sequential(nn.Linear(3 * d, d), nn.GELU(), nn.Linear(d, max(shape.tokens.n_signals - 1, 1)))

    def residual(self, dot: Tensor, known: Tensor) -> Tensor:
        """dot, known: [n] -> [n]: the score that training fits: the product, over what is known without it.

        known: the item's mean grade before then, which the ranker has as a counter; its factor is learned. So
        the product is spent on what the counters cannot say.
        """
        return dot + self.known * known

    def next_item(self, states: Tensor, context: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """states: [n, d], context: int64[n, c], items: [m, d] -> unit queries [n, d] and unit keys [m, d]."""
        query = F.normalize(self.next_query(self.next_context(states, context)), dim=-1)
        return query, F.normalize(self.next_key(items), dim=-1)

    def grade_logits(self, states: Tensor, score: Tensor) -> Tensor:
        """states: [n, d], score: [n] -> [n, grades - 1]: logits of "the grade is above k".

        An ordinal head over the very product that ranks, with an offset of the user's own: pre-training so
        teaches the vectors to order items by grade.
        """
        logits: Tensor = (score + self.grade_bias(states).squeeze(-1)).unsqueeze(-1) - ordered(self.grade_steps)
        return logits

    def feedback_logits(self, states: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """states, user vectors, item vectors: [n, d] each -> [n, feedback columns]."""
        logits: Tensor = self.feedback(torch.cat([states, users * items, items], dim=-1))
        return logits


class Retrieval(nn.Module):
    """What an item is wanted for beyond its demand: query · key / temperature, over the trunk as it was trained.

    Both are unit vectors. A key is of the item's vector and of its own id, so an item that no one has wanted yet has
    one of its attributes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d = shape.width
        self.context = Context(shape.tokens.context_sizes, d, shape.dropout)
        self.query = nn.Sequential(nn.LayerNorm(2 * d), nn.Linear(2 * d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.key = nn.Linear(d, d)
        self.id = embedding(shape.tokens.n_items, d, 0.02)
        self.log_temperature = nn.Parameter(torch.tensor(-2.0))

    def queries(self, states: Tensor, taste: Tensor, context: Tensor) -> Tensor:
        """states, taste: [n, d], context: int64[n, c] codes -> unit [n, d]."""
        return F.normalize(self.query(torch.cat([self.context(states, context), taste], dim=-1)), dim=-1)

    def keys(self, items: Tensor, ids: Tensor) -> Tensor:
        """items: [n, d] vectors of the items int64[n] -> unit [n, d]."""
        return F.normalize(self.key(items) + self.id(ids), dim=-1)


def ordered(steps: Tensor) -> Tensor:
    """Return increasing thresholds of the grades, [grades - 1]."""
    return torch.cat([steps[:1], F.softplus(steps[1:])]).cumsum(0)


class Trunk(nn.Module):
    """A history to what the heads read of it, whatever the context is: the state after its last event, its taste."""

    def __init__(self, user: UserTower) -> None:
        super().__init__()
        self.user = user

    def forward(
        self, item: Tensor, codes: Tensor, signals: Tensor, surprise: Tensor, user: Tensor, length: Tensor
    ) -> Tensor:
        """As `UserTower.last` -> [b, 2d]: the state, then the taste."""
        return torch.cat(self.user.last(item, codes, signals, surprise, user, length), dim=-1)


class UserHead(nn.Module):
    """What `Trunk` gives to user vectors."""

    def __init__(self, user: UserTower) -> None:
        super().__init__()
        self.user = user

    def forward(self, state: Tensor, context: Tensor) -> Tensor:
        """state: [b, 2d], context: int64[b, c] codes -> [b, d]."""
        last, taste = state.chunk(2, dim=-1)
        return self.user.vectors(last, taste, context)


class QueryHead(nn.Module):
    """What `Trunk` gives to queries."""

    def __init__(self, head: Retrieval) -> None:
        super().__init__()
        self.head = head

    def forward(self, state: Tensor, context: Tensor) -> Tensor:
        """state: [b, 2d], context: int64[b, c] codes -> unit [b, d]."""
        last, taste = state.chunk(2, dim=-1)
        return self.head.queries(last, taste, context)
