"""Pre-train on the events before the validation slice, fine-tune on the pairs before it, keep the best epoch."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from features.pairing.pairs import right_weight
from features.plugin import FitData, LaterEvents
from features.schema import F32, I64, Bool
from neural import losses
from neural.batches import Batch, Batches, TargetMask
from neural.checkpoints import Checkpoint
from neural.data import TowerData
from neural.engine import Engine, Phase
from neural.hstu import HstuBlock
from neural.model import Argus, Block, EntityTower, Shape
from neural.parallel.device import array, device, moved, tensor
from neural.parallel.ranks import ALONE, Ranks, whole
from neural.pretraining.heads import FEEDBACK, NEXT_ITEM, NEXT_WANTED, Said, mean_losses
from neural.pretraining.negatives import NO_POOL, Negatives, Pool, even_pool
from neural.settings import FitSettings, NetworkSettings
from neural.vocabulary.earlier import Known
from neural.vocabulary.entities import Entities

#: epochs of a phase that `max_steps` never leaves out
LEAST_EPOCHS = 2
#: norm that a step's gradient is cut to
LARGEST_GRADIENT = 1.0
#: between the seeds of several networks of one fit, so that those of two fits share none
SEED_STEP = 1000
#: items whose vectors are computed at a time
ITEMS = 65_536
NO_NEGATIVES = NO_POOL.item
#: file of `FitData.heads`
HEADS = "heads.pt"
#: blocks by `encoder`
BLOCKS = {"transformer": Block, "hstu": HstuBlock}


@dataclass(frozen=True, slots=True)
class Trained:
    """What a fit gives."""

    model: Argus  # of the best epoch
    inputs: TowerData  # that its towers were fitted on
    report: dict[str, Any]  # what the epochs reached, the curve, and the number of parameters


@dataclass(frozen=True, slots=True)
class Encoded:
    """What one pass over a batch gives."""

    states: Tensor  # [b, s, d], of the transformer: state j has seen j events; s = t + 1
    taste: Tensor  # [b, s, d], of `UserTower.taste` at each state
    items: Tensor  # [u, d], the vectors of `ids`
    ids: I64  # [u], sorted

    def states_at(self, window: I64, state: I64) -> tuple[Tensor, Tensor]:
        """Return [n, d] states and tastes."""
        place = tensor(window * self.states.shape[1] + state)
        return take(self.states.flatten(0, 1), place), take(self.taste.flatten(0, 1), place)

    def vectors_of(self, item: I64) -> Tensor:
        """Return the vectors of items, [..., d]."""
        return take(self.items, self.places(item))

    def places(self, item: I64) -> Tensor:
        """Return int64[...] rows of `items`."""
        return tensor(np.searchsorted(self.ids, item))


def fit(data: FitData, settings: NetworkSettings, kind: "type[Trainer] | None" = None) -> Trained:
    """Train a network, the towers by default; the same data, settings (threads too) and seed give the same bits.

    A fit that was killed goes on from what it kept in `data.scratch`, to the same bits. Several processes
    (`data.processes`) train it together. Raises PairliftError where a loss is not finite.
    """
    ranks = Ranks(data.process, data.processes)
    with repeatable(settings.threads, data.seed), ranks.joined():
        inputs = TowerData.build(data, settings, settings.context, settings.feedback_kinds)
        return run((kind or Trainer)(inputs, settings, data.seed, ranks), data)


def run(trainer: "Trainer", data: FitData) -> Trained:
    """Train through all phases, or take up what was trained before a kill."""
    engine = trainer.engine(Checkpoint(data.scratch, "towers"))
    engine.train(trainer.phases())
    trainer.keep_heads(engine, data.heads)
    trainer.model.eval()
    report = {"epochs": engine.progress, "curve": engine.curve, "parameters": network_size(trainer.model)}
    return Trained(trainer.model, trainer.inputs, report)


def head_losses(
    data: FitData, later: LaterEvents, settings: NetworkSettings, kind: "type[Trainer] | None" = None
) -> dict[str, float]:
    """Return what the heads that `fit` kept in `data.heads` reach on later events: see `Trainer.head_losses`.

    Empty where pre-training had no epoch, or nothing to learn from. data, settings, kind: as of the fit.
    """
    if data.heads is None or not (data.heads / HEADS).exists():
        return {}
    earlier = None if data.earlier is None else Known.load(data.earlier)
    with repeatable(settings.threads, data.seed):
        inputs = TowerData.build(data, settings, settings.context, settings.feedback_kinds, earlier)
        trainer = (kind or Trainer)(inputs, settings, data.seed)
        trainer.model.load_state_dict(torch.load(data.heads / HEADS, map_location="cpu", weights_only=True))
        return trainer.head_losses(*inputs.later(data, later))


def network_size(model: Argus) -> int:
    """Return the number of parameters without the embedding table, whose size the catalogue decides."""
    return sum(p.numel() for p in model.parameters()) - model.table.weight.numel()


def user_tokens(trained: Trained, threads: int) -> tuple[F32, I64]:
    """Return the distinct users' first tokens, float32[k, d] (the unknown one's last), and int64[n_users] places."""
    rows, place = trained.inputs.users.distinct()
    with repeatable(threads, 0), torch.no_grad():
        tokens = trained.model.user_token(*entity_inputs(trained.inputs.users, rows))
    return np.asarray(array(tokens), np.float32), place.astype(np.int64)


class Trainer:
    """Model, inputs and random state of one fit. For another score of the same inputs: `network` and both products."""

    def __init__(self, inputs: TowerData, settings: NetworkSettings, seed: int, ranks: Ranks = ALONE) -> None:
        self.inputs, self.settings, self.ranks = inputs, settings, ranks
        self.rng = np.random.default_rng(seed)
        shape = Shape(
            width=settings.width,
            layers=settings.layers,
            heads=settings.heads,
            dropout=settings.dropout,
            rows=inputs.rows,
            tokens=inputs.spec,
            item=inputs.items.layout,
            user=inputs.users.layout,
            block=BLOCKS[settings.encoder],
        )
        self.model = moved(self.network(shape))
        self.optimizer = make_optimizer(self.model, self.model.table, settings)
        learned, popularity = inputs.pretrain.events, inputs.popularity
        if settings.next_items == "wanted":
            learned, items = inputs.wanted, inputs.batches.histories.item
            popularity = np.bincount(items[learned], minlength=len(popularity))
        # bool[rows of the histories], the events whose item is learned
        self.next_items = learned & (NEXT_ITEM in settings.pretrain_losses)
        in_fit = np.flatnonzero(inputs.popularity)  # items with events
        self.negatives = Negatives(popularity, in_fit, settings.negatives, settings.log_q)

    def network(self, shape: Shape) -> Argus:
        """Return the network, drawn anew."""
        return Argus(shape)

    def engine(self, checkpoint: Checkpoint) -> Engine:
        """Return what trains the model."""
        return Engine(self.model, self.optimizer, self.rng, checkpoint, LARGEST_GRADIENT, self.ranks)

    # Phases

    def phases(self) -> tuple[Phase, ...]:
        """Return the two phases of a fit, in their order."""
        s, inputs = self.settings, self.inputs
        rate = s.finetune_rate * s.learning_rate
        with_score = FEEDBACK in s.pretrain_losses
        targets = inputs.pretrain if with_score else TargetMask(self.next_items, inputs.pretrain.groups)
        pretrain = self.phase("pre-train", targets, self.pretrain_loss, s.learning_rate, s.pretrain_epochs)
        if not with_score:
            pretrain = replace(pretrain, validate=self.likelihood)
        return pretrain, self.phase("fine-tune", inputs.finetune, self.finetune_loss, rate, s.finetune_epochs)

    def phase(self, name: str, targets: TargetMask, loss: Callable[[Batch], Tensor], rate: float, epochs: int) -> Phase:
        """Return a phase that learns from some targets, judged by PairAccuracy on the validation slice."""
        s, batches = self.settings, self.inputs.batches
        windows, steps = batches.windows, len(batches.plan(targets, s.batch_tokens))
        return Phase(
            name=name,
            epochs=min(epochs, max(s.max_steps // max(steps, 1), LEAST_EPOCHS)),
            rate=rate,
            plan=lambda rng: batches.plan(targets, s.batch_tokens, rng),
            loss=lambda chosen: loss(self.batch(chosen, targets)),
            size=lambda chosen: int((windows.stop[chosen] - windows.start[chosen]).sum()),
            unit="tokens",
            describe=self.inputs.describe,
            remedy="a lower learning_rate (of fine-tuning: finetune_rate) takes smaller steps.",
            validate=self.accuracy,
            patience=s.patience,
        )

    def batch(self, chosen: I64, targets: TargetMask) -> Batch:
        """Return what is read of a batch, int64[b] windows: this process's share, where several train together."""
        make, share = self.inputs.batches.make, self.ranks.share(chosen)
        batch = make(share, targets)
        return batch if share is chosen else replace(batch, whole=make(chosen, targets))

    def accuracy(self) -> float:
        """Return the PairAccuracy of the training score on the groups of the validation slice; NaN without pairs."""
        self.model.eval()
        right = total = 0.0
        batches, mask = self.inputs.batches, self.inputs.validation
        with torch.no_grad():
            for chosen in batches.plan(mask, 4 * self.settings.batch_tokens)[self.ranks.number :: self.ranks.of]:
                batch = batches.make(chosen, mask)
                score, groups = array(self.scores(batch, self.encode(batch, NO_NEGATIVES))), batch.groups
                right += right_weight(score, groups.winner, groups.loser, groups.weight)
                total += float(groups.weight.sum(dtype=np.float64))
        right, total = self.ranks.total(right, total)
        return right / total if total else float("nan")

    def likelihood(self) -> float:
        """Return the mean log-likelihood, in nats, of the next items in the validation slice; NaN without any.

        Of the events that the next-item loss learns: all or the wanted ones.
        """
        found = self.head_losses(self.inputs.batches, ~self.inputs.pretrain.events)
        figure = found.get(NEXT_WANTED if self.settings.next_items == "wanted" else NEXT_ITEM, float("nan"))
        return -self.ranks.from_first(figure)

    # What is kept of pre-training, and measured

    def keep_heads(self, engine: Engine, folder: Path | None) -> None:
        """Write the network of pre-training's best epoch where a folder is given: fine-tuning leaves heads behind."""
        if folder is not None and self.phases()[0].epochs and self.inputs.pretrain.events.any():
            torch.save(engine.left[0], folder / HEADS)

    def head_losses(self, batches: Batches, events: Bool) -> dict[str, float]:
        """Return the mean losses of the heads of `pretrain_losses` over the events of a mask: see `mean_losses`.

        Each from the state that has seen all of its user's events before it, without a lag, as in pre-training; its
        item is told from those of `even_pool`. events: bool[rows of the histories of `batches`].
        """
        s, inputs = self.settings, self.inputs
        mask, pool = TargetMask(events, np.zeros_like(inputs.pretrain.groups)), even_pool(inputs.spec.n_items)
        self.model.eval()
        with torch.no_grad():
            said = [self.said(batches.make(chosen, mask), pool) for chosen in batches.plan(mask, s.batch_tokens)]
        return mean_losses(said, batches.histories, inputs.feedback, inputs.floor, s.pretrain_losses)

    def said(self, batch: Batch, pool: Pool) -> Said:
        """Return what the heads say of the events of a batch."""
        encoded = self.encode(batch, pool.item)
        states, taste = encoded.states_at(batch.events.window, batch.events.state)  # [n, d] each
        next_item = self.next_item_losses(batch, encoded, states, pool)
        return Said(batch.events.row, next_item, *self.answers(batch, encoded, states, taste))

    # The losses of a batch

    def pretrain_loss(self, batch: Batch) -> Tensor:
        """The heads of `pretrain_losses` at once: next item and feedback of each event, from the state before it."""
        events, every, parts = batch.events, (batch.whole or batch).events, list[Tensor]()
        targets = every.item[self.next_items[every.row]]
        pool = self.negatives.draw(targets, self.rng) if len(targets) else NO_POOL
        encoded = self.encode(batch, pool.item)
        states, taste = encoded.states_at(events.window, events.state)  # [n, d] each
        if len(targets):
            each = self.next_item_losses(batch, encoded, states, pool)
            learned = tensor(self.next_items[events.row])
            parts.append((each * learned).sum() / whole(learned.sum(), 1))
        if FEEDBACK in self.settings.pretrain_losses:
            grade, feedback = self.answers(batch, encoded, states, taste)
            parts.append(losses.grade(grade, tensor(events.grade)))
            if len(self.inputs.feedback):
                parts.append(self.feedback_loss(feedback, events.feedback))
        return sum(parts[1:], parts[0])

    def next_item_losses(self, batch: Batch, encoded: Encoded, states: Tensor, pool: Pool) -> Tensor:
        """Return [n]: the loss of each event's item, told from those of a pool. states: [n, d], before the events."""
        events, temperature = batch.events, self.model.log_temperature
        query, key = self.model.next_item(states, tensor(events.context), encoded.items)  # [n, d], [u, d]
        target, drawn = encoded.places(events.item), encoded.places(pool.item)  # [n], [k]
        return losses.next_item(query, key, target, drawn, tensor(pool.log_expected), temperature)

    def answers(self, batch: Batch, encoded: Encoded, states: Tensor, taste: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of the events' grades, [n, grades - 1], and feedback, [n, k]. states, taste: [n, d]."""
        model, events = self.model, batch.events
        users = model.user.vectors(states, taste, tensor(events.context))  # [n, d]
        items = encoded.vectors_of(events.item)  # [n, d]
        score = model.residual(self.event_products(batch, encoded, users, items), tensor(events.offset))
        return model.grade_logits(states, score), model.feedback_logits(states, users, items)

    def event_products(self, batch: Batch, encoded: Encoded, users: Tensor, items: Tensor) -> Tensor:
        """Return [n]: what the network says of each event over what is known; users, items: [n, d], its vectors."""
        return (users * items).sum(-1)

    def feedback_loss(self, logits: Tensor, value: F32) -> Tensor:
        """Return the loss of the feedback columns; logits: [n, k], value: float32[n, k] as in the log."""
        kinds = self.inputs.feedback
        return losses.feedback(logits, tensor(kinds.wanted(value)), tensor(kinds.bounded))

    def finetune_loss(self, batch: Batch) -> Tensor:
        """The ranker's own loss over the pairs of the batch's groups."""
        score, groups = self.scores(batch, self.encode(batch, NO_NEGATIVES)), batch.groups
        winner, loser = (score.index_select(0, tensor(rows)) for rows in (groups.winner, groups.loser))
        return losses.pairwise(winner, loser, tensor(groups.weight))  # of [p] each

    def scores(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Return [m]: the training score of every impression of the batch's groups."""
        groups = batch.groups
        states, taste = encoded.states_at(groups.window, groups.state)  # [g, d] each
        users = self.model.user.vectors(states, taste, tensor(groups.context))  # [g, d]
        users, items = take(users, tensor(groups.group)), encoded.vectors_of(groups.item)  # [m, d] each
        product = self.group_products(batch, encoded, users, items)
        return self.model.residual(product, tensor(groups.offset))

    def group_products(self, batch: Batch, encoded: Encoded, users: Tensor, items: Tensor) -> Tensor:
        """Return [m]: as `event_products`, of the impressions of the groups."""
        return (users * items).sum(-1)

    # One pass over a batch

    def encode(self, batch: Batch, negatives: I64) -> Encoded:
        """Run the item tower over all items that the batch needs, and the transformer once over its windows."""
        ids = needed_items(batch, negatives)
        vectors = item_vectors(self.model.item, self.inputs.items, ids, self.hidden(ids, batch, negatives))
        return read_histories(self.model, self.inputs, batch, vectors, ids)

    def hidden(self, ids: I64, batch: Batch, negatives: I64) -> Tensor | None:
        """Return bool[n]: which of these items lose their id, in training; the same ones in all processes."""
        whole = ids if batch.whole is None else needed_items(batch.whole, negatives)
        hide = hidden_ids(self.model.item, len(whole), self.settings.id_dropout, self.ranks.drawn)
        return hide if hide is None or batch.whole is None else hide[tensor(np.searchsorted(whole, ids))]


def needed_items(batch: Batch, negatives: I64) -> I64:
    """Return int64[n], sorted: the items whose vectors a batch needs."""
    return np.unique(np.concatenate([batch.tokens.item.ravel(), batch.events.item, negatives, batch.groups.item]))


def hidden_ids(tower: EntityTower, n: int, id_dropout: float, drawn: torch.Generator | None = None) -> Tensor | None:
    """Return bool[n], in training: who loses its id, so that attributes learn to speak for new items."""
    if not tower.training or id_dropout <= 0:
        return None
    return (torch.rand(n, generator=drawn) < id_dropout).to(device())  # drawn on the CPU, as all networks are


def item_vectors(tower: EntityTower, items: Entities, ids: I64, hide: Tensor | None) -> Tensor:
    """Return [n, d]; hide: of `hidden_ids`."""
    slots, weight, numbers = entity_inputs(items, ids)
    if hide is not None:
        weight = torch.cat([weight[:, :1].masked_fill(hide[:, None], 0), weight[:, 1:]], dim=1)
    vectors: Tensor = tower(slots, weight, numbers)
    return vectors


def all_vectors(tower: EntityTower, entities: Entities) -> Tensor:
    """Return [n + 1, d], the unknown one's last; nothing is hidden of what is known."""
    parts = (slice(first, first + ITEMS) for first in range(0, len(entities.weight), ITEMS))
    return torch.cat([tower(*entity_inputs(entities, part)) for part in parts])


def read_histories(model: Argus, inputs: TowerData, batch: Batch, items: Tensor, ids: I64) -> Encoded:
    """Run the transformer once over the windows of a batch. items: [u, d], the vectors of int64[u] ids, sorted."""
    tokens, users = batch.tokens, batch.user.astype(np.int64)
    states, taste = model.user.states(
        take(items, tensor(np.searchsorted(ids, tokens.item))),  # [b, t, d]
        tensor(tokens.codes),
        tensor(tokens.signals),
        tensor(batch.surprise),
        model.user_token(*entity_inputs(inputs.users, users)),  # [b, d]
    )  # [b, s, d] each
    return Encoded(states, taste, items, ids)


def take(rows: Tensor, places: Tensor) -> Tensor:
    """Return `rows[places]`, [..., d] of [n, d]; its gradient is summed in one order, and by several threads."""
    return F.embedding(places, rows)


def entity_inputs(entities: Entities, rows: I64 | slice) -> tuple[Tensor, Tensor, Tensor]:
    """Return slots, weight and numbers of some rows as the entity towers take them."""
    slots, weight, numbers = (tensor(x[rows]) for x in (entities.slots, entities.weight, entities.numbers))
    return slots, weight, numbers


def make_optimizer(model: nn.Module, table: nn.Embedding, settings: FitSettings) -> torch.optim.Optimizer:
    """Return AdamW; the table decays much faster than the rest, for an id of few events must say little."""
    others = [p for p in model.parameters() if p is not table.weight]
    return torch.optim.AdamW(
        [
            {"params": [table.weight], "weight_decay": settings.table_decay},
            {"params": [p for p in others if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )


@contextlib.contextmanager
def repeatable(threads: int, seed: int) -> Iterator[None]:
    """Let torch compute on so many threads, from this seed and with deterministic kernels; then as before.

    On a GPU some have no such kernel (sums along a history): torch warns of them, and bits may differ.
    """
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    gpus = [device()] if device().type == "cuda" else []
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=bool(gpus))
    try:
        with torch.random.fork_rng(devices=gpus):
            torch.manual_seed(seed)
            yield
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(before)
