"""Pre-train on the events before the validation slice, fine-tune on the pairs before it, keep the best epoch."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from features.pairing.pairs import right_weight
from features.plugin import FitData
from features.schema import F32, I64
from neural import losses
from neural.batches import Batch, TargetMask
from neural.checkpoints import Checkpoint
from neural.data import TowerData
from neural.engine import Engine, Phase
from neural.hstu import HstuBlock
from neural.model import Argus, Block, EntityTower, Shape
from neural.settings import FitSettings, NetworkSettings
from neural.vocabulary.entities import Entities

#: epochs of a phase that `max_steps` never leaves out
LEAST_EPOCHS = 2
#: norm that a step's gradient is cut to
LARGEST_GRADIENT = 1.0
#: between the seeds of several networks of one fit, so that those of two fits share none
SEED_STEP = 1000
#: items whose vectors are computed at a time
ITEMS = 65_536
NO_NEGATIVES = np.empty(0, np.int64)
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
        place = torch.from_numpy(window * self.states.shape[1] + state)
        return take(self.states.flatten(0, 1), place), take(self.taste.flatten(0, 1), place)

    def vectors_of(self, item: I64) -> Tensor:
        """Return the vectors of items, [..., d]."""
        return take(self.items, self.places(item))

    def places(self, item: I64) -> Tensor:
        """Return int64[...] rows of `items`."""
        return torch.from_numpy(np.searchsorted(self.ids, item))


def fit(data: FitData, settings: NetworkSettings, kind: "type[Trainer] | None" = None) -> Trained:
    """Train a network, the towers by default; the same data, settings (threads too) and seed give the same bits.

    A fit that was killed goes on from what it kept in `data.scratch`, to the same bits. Raises PairliftError where a
    loss is not finite.
    """
    with repeatable(settings.threads, data.seed):
        inputs = TowerData.build(data, settings, settings.context, settings.feedback_kinds)
        return run((kind or Trainer)(inputs, settings, data.seed), Checkpoint(data.scratch, "towers"))


def run(trainer: "Trainer", checkpoint: Checkpoint) -> Trained:
    """Train through all phases, or take up what was trained before a kill."""
    engine = trainer.engine(checkpoint)
    engine.train(trainer.phases())
    trainer.model.eval()
    report = {"epochs": engine.progress, "curve": engine.curve, "parameters": network_size(trainer.model)}
    return Trained(trainer.model, trainer.inputs, report)


def network_size(model: Argus) -> int:
    """Return the number of parameters without the embedding table, whose size the catalogue decides."""
    return sum(p.numel() for p in model.parameters()) - model.table.weight.numel()


def user_tokens(trained: Trained, threads: int) -> tuple[F32, I64]:
    """Return the distinct users' first tokens, float32[k, d] (the unknown one's last), and int64[n_users] places."""
    rows, place = trained.inputs.users.distinct()
    with repeatable(threads, 0), torch.no_grad():
        tokens = trained.model.user_token(*entity_inputs(trained.inputs.users, torch.from_numpy(rows)))
    return np.asarray(tokens.numpy(), np.float32), place.astype(np.int64)


class Trainer:
    """Model, inputs and random state of one fit. For another score of the same inputs: `network` and both products."""

    def __init__(self, inputs: TowerData, settings: NetworkSettings, seed: int) -> None:
        self.inputs, self.settings = inputs, settings
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
        self.model = self.network(shape)
        self.optimizer = make_optimizer(self.model, self.model.table, settings)
        self.in_fit = np.flatnonzero(inputs.popularity)  # items with events

    def network(self, shape: Shape) -> Argus:
        """Return the network, drawn anew."""
        return Argus(shape)

    def engine(self, checkpoint: Checkpoint) -> Engine:
        """Return what trains the model."""
        return Engine(self.model, self.optimizer, self.rng, checkpoint, LARGEST_GRADIENT)

    # Phases

    def phases(self) -> tuple[Phase, ...]:
        """Return the two phases of a fit, in their order."""
        s, inputs = self.settings, self.inputs
        rate = s.finetune_rate * s.learning_rate
        return (
            self.phase("pre-train", inputs.pretrain, self.pretrain_loss, s.learning_rate, s.pretrain_epochs),
            self.phase("fine-tune", inputs.finetune, self.finetune_loss, rate, s.finetune_epochs),
        )

    def phase(self, name: str, targets: TargetMask, loss: Callable[[Batch], Tensor], rate: float, epochs: int) -> Phase:
        """Return a phase that learns from some targets, judged by PairAccuracy on the validation slice."""
        s, batches = self.settings, self.inputs.batches
        windows, steps = batches.windows, len(batches.plan(targets, s.batch_tokens))
        return Phase(
            name=name,
            epochs=min(epochs, max(s.max_steps // max(steps, 1), LEAST_EPOCHS)),
            rate=rate,
            plan=lambda rng: batches.plan(targets, s.batch_tokens, rng),
            loss=lambda chosen: loss(batches.make(chosen, targets)),
            size=lambda chosen: int((windows.stop[chosen] - windows.start[chosen]).sum()),
            unit="tokens",
            describe=self.inputs.describe,
            remedy="a lower learning_rate (of fine-tuning: finetune_rate) takes smaller steps.",
            validate=self.accuracy,
            patience=s.patience,
        )

    def accuracy(self) -> float:
        """Return the PairAccuracy of the training score on the groups of the validation slice; NaN without pairs."""
        self.model.eval()
        right = total = 0.0
        batches, mask = self.inputs.batches, self.inputs.validation
        with torch.no_grad():
            for chosen in batches.plan(mask, 4 * self.settings.batch_tokens):
                batch = batches.make(chosen, mask)
                score, groups = self.scores(batch, self.encode(batch, NO_NEGATIVES)).numpy(), batch.groups
                right += right_weight(score, groups.winner, groups.loser, groups.weight)
                total += float(groups.weight.sum(dtype=np.float64))
        return right / total if total else float("nan")

    # The losses of a batch

    def pretrain_loss(self, batch: Batch) -> Tensor:
        """Both heads at once: next item and feedback of every event, from the state before it."""
        model, events = self.model, batch.events
        negatives, log_expected = self.draw_negatives(events.item)
        encoded = self.encode(batch, negatives)
        states, taste = encoded.states_at(events.window, events.state)  # [n, d] each
        context = torch.from_numpy(events.context)
        query, key = model.next_item(states, context, encoded.items)  # [n, d], [u, d]
        target, drawn = encoded.places(events.item), encoded.places(negatives)  # [n], [negatives]
        loss = losses.next_item(query, key, target, drawn, log_expected, model.log_temperature)
        users, items = model.user.vectors(states, taste, context), encoded.vectors_of(events.item)  # [n, d] each
        score = model.residual(self.event_products(batch, encoded, users, items), torch.from_numpy(events.offset))
        loss = loss + losses.grade(model.grade_logits(states, score), torch.from_numpy(events.grade))
        if len(self.inputs.feedback):
            loss = loss + self.feedback_loss(model.feedback_logits(states, users, items), events.feedback)
        return loss

    def event_products(self, batch: Batch, encoded: Encoded, users: Tensor, items: Tensor) -> Tensor:
        """Return [n]: what the network says of each event over what is known; users, items: [n, d], its vectors."""
        return (users * items).sum(-1)

    def draw_negatives(self, targets: I64) -> tuple[I64, Tensor]:
        """Draw half from the batch's targets, half evenly from the items of the fit; return them and log E[count]."""
        half = self.settings.negatives // 2
        popularity = self.inputs.popularity
        drawn = np.concatenate([self.rng.choice(targets, half), self.rng.choice(self.in_fit, half)])
        expected = half * popularity[drawn] / popularity.sum() + half / len(self.in_fit)
        return drawn, torch.from_numpy(np.log(expected).astype(np.float32))

    def feedback_loss(self, logits: Tensor, value: F32) -> Tensor:
        """Return the loss of the feedback columns; logits: [n, k], value: float32[n, k] as in the log."""
        kinds = self.inputs.feedback
        return losses.feedback(logits, torch.from_numpy(kinds.wanted(value)), torch.from_numpy(kinds.bounded))

    def finetune_loss(self, batch: Batch) -> Tensor:
        """The ranker's own loss over the pairs of the batch's groups."""
        score, groups = self.scores(batch, self.encode(batch, NO_NEGATIVES)), batch.groups
        winner, loser = (score.index_select(0, torch.from_numpy(rows)) for rows in (groups.winner, groups.loser))
        return losses.pairwise(winner, loser, torch.from_numpy(groups.weight))  # of [p] each

    def scores(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Return [m]: the training score of every impression of the batch's groups."""
        groups = batch.groups
        states, taste = encoded.states_at(groups.window, groups.state)  # [g, d] each
        users = self.model.user.vectors(states, taste, torch.from_numpy(groups.context))  # [g, d]
        users, items = take(users, torch.from_numpy(groups.group)), encoded.vectors_of(groups.item)  # [m, d] each
        product = self.group_products(batch, encoded, users, items)
        return self.model.residual(product, torch.from_numpy(groups.offset))

    def group_products(self, batch: Batch, encoded: Encoded, users: Tensor, items: Tensor) -> Tensor:
        """Return [m]: as `event_products`, of the impressions of the groups."""
        return (users * items).sum(-1)

    # One pass over a batch

    def encode(self, batch: Batch, negatives: I64) -> Encoded:
        """Run the item tower over all items that the batch needs, and the transformer once over its windows."""
        ids = np.unique(np.concatenate([batch.tokens.item.ravel(), batch.events.item, negatives, batch.groups.item]))
        return read_histories(self.model, self.inputs, batch, self.item_vectors(ids), ids)

    def item_vectors(self, ids: I64) -> Tensor:
        """Return [n, d]; see `item_vectors`."""
        return item_vectors(self.model.item, self.inputs.items, ids, self.settings.id_dropout)


def item_vectors(tower: EntityTower, items: Entities, ids: I64, id_dropout: float) -> Tensor:
    """Return [n, d]; in training some lose their id, so that attributes learn to speak for new items."""
    slots, weight, numbers = entity_inputs(items, torch.from_numpy(ids))
    if tower.training and id_dropout > 0:
        hide = torch.rand(len(ids)) < id_dropout
        weight = torch.cat([weight[:, :1].masked_fill(hide[:, None], 0), weight[:, 1:]], dim=1)
    vectors: Tensor = tower(slots, weight, numbers)
    return vectors


def all_vectors(tower: EntityTower, entities: Entities) -> Tensor:
    """Return [n + 1, d], the unknown one's last; nothing is hidden of what is known."""
    parts = torch.split(torch.arange(len(entities.weight)), ITEMS)
    return torch.cat([tower(*entity_inputs(entities, part)) for part in parts])


def read_histories(model: Argus, inputs: TowerData, batch: Batch, items: Tensor, ids: I64) -> Encoded:
    """Run the transformer once over the windows of a batch. items: [u, d], the vectors of int64[u] ids, sorted."""
    tokens, users = batch.tokens, torch.from_numpy(batch.user.astype(np.int64))
    states, taste = model.user.states(
        take(items, torch.from_numpy(np.searchsorted(ids, tokens.item))),  # [b, t, d]
        torch.from_numpy(tokens.codes),
        torch.from_numpy(tokens.signals),
        torch.from_numpy(batch.surprise),
        model.user_token(*entity_inputs(inputs.users, users)),  # [b, d]
    )  # [b, s, d] each
    return Encoded(states, taste, items, ids)


def take(rows: Tensor, places: Tensor) -> Tensor:
    """Return `rows[places]`, [..., d] of [n, d]; its gradient is summed in one order, and by several threads."""
    return F.embedding(places, rows)


def entity_inputs(entities: Entities, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return slots, weight and numbers of some rows as the entity towers take them."""
    slots, weight, numbers = (torch.from_numpy(x) for x in (entities.slots, entities.weight, entities.numbers))
    return slots[rows], weight[rows], numbers[rows]


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
    """Let torch compute on so many threads, from this seed and with deterministic kernels alone; then as before."""
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(before)
