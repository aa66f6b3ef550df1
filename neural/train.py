"""Pre-train on the events before the validation slice, fine-tune on the pairs before it, keep the best epoch."""

import contextlib
import copy
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from features.plugin import FitData
from features.schema import F32, I64, Bool
from neural import losses
from neural.entities import Entities
from neural.model import Argus, Shape
from neural.prepare import Batch, Prepared, prepare
from neural.settings import TowerSettings

LEAST_EPOCHS = 2
WARM_UP = 0.05
LARGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class Trained:
    """The model, the inputs that its towers were fitted on, and what the epochs reached."""

    model: Argus
    inputs: Prepared
    report: dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """What one pass over a batch gives.

    states, taste: [b, s, d]. items: [u, d], the vectors of ids: int64[u], sorted.
    """

    states: Tensor
    taste: Tensor
    items: Tensor
    ids: I64

    def of(self, item: I64) -> Tensor:
        """Return the vectors of items, [..., d]."""
        return take(self.items, self.places(item))

    def places(self, item: I64) -> Tensor:
        """Return int64[...] rows of `items`."""
        return torch.from_numpy(np.searchsorted(self.ids, item))

    def at(self, window: I64, state: I64) -> tuple[Tensor, Tensor]:
        """Return [n, d] states and tastes."""
        place = torch.from_numpy(window * self.states.shape[1] + state)
        return take(self.states.flatten(0, 1), place), take(self.taste.flatten(0, 1), place)


def take(rows: Tensor, places: Tensor) -> Tensor:
    """Return `rows[places]`, [..., d] of [n, d]; its gradient is summed in one order, and by several threads."""
    return F.embedding(places, rows)


def entity_inputs(entities: Entities, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return slots, weight and numbers of some rows as the entity towers take them."""
    slots, weight, numbers = (torch.from_numpy(x) for x in (entities.slots, entities.weight, entities.numbers))
    return slots[rows], weight[rows], numbers[rows]


class Trainer:
    """Model, inputs and random state of one fit."""

    def __init__(self, inputs: Prepared, settings: TowerSettings, seed: int) -> None:
        self.inputs, self.settings = inputs, settings
        self.rng = np.random.default_rng(seed)
        s = settings
        self.model = Argus(
            Shape(
                s.width,
                s.layers,
                s.heads,
                s.dropout,
                inputs.rows,
                inputs.spec,
                inputs.items.layout,
                inputs.users.layout,
            )
        )
        self.in_fit = np.flatnonzero(inputs.popularity)
        self.no_events = np.zeros(len(inputs.events), bool)
        self.no_groups = np.zeros(len(inputs.tuned), bool)
        self.epochs: list[dict[str, Any]] = []
        self.best = -1.0

    # One pass over a batch

    def item_vectors(self, ids: I64) -> Tensor:
        """Return [n, d]; in training some lose their id, so that attributes learn to speak for new items."""
        slots, weight, numbers = entity_inputs(self.inputs.items, torch.from_numpy(ids))
        if self.model.training and self.settings.id_dropout > 0:
            hide = torch.rand(len(ids)) < self.settings.id_dropout
            weight = torch.cat([weight[:, :1].masked_fill(hide[:, None], 0), weight[:, 1:]], dim=1)
        vectors: Tensor = self.model.item(slots, weight, numbers)
        return vectors

    def look(self, batch: Batch, negatives: I64) -> Seen:
        """Run the item tower over all items that the batch needs, and the transformer once over its windows."""
        tokens = batch.tokens
        events = self.inputs.histories.item[batch.event].astype(np.int64)
        ids = np.unique(np.concatenate([tokens.item.ravel(), events, negatives, batch.item]))
        items = self.item_vectors(ids)
        users = torch.from_numpy(batch.user.astype(np.int64))
        states, taste = self.model.user.states(
            take(items, torch.from_numpy(np.searchsorted(ids, tokens.item))),
            torch.from_numpy(tokens.codes),
            torch.from_numpy(tokens.signals),
            torch.from_numpy(tokens.surprise(self.inputs.expected.before(tokens.item, tokens.ts))),
            self.model.user_token(*entity_inputs(self.inputs.users, users)),
        )
        return Seen(states, taste, items, ids)

    def scores(self, batch: Batch, seen: Seen) -> Tensor:
        """Return [m]: the training score of every candidate of the batch's groups."""
        states, taste = seen.at(batch.group_at, batch.group_state)
        users = self.model.user.vectors(states, taste, torch.from_numpy(batch.surface))
        dot = (take(users, torch.from_numpy(batch.group)) * seen.of(batch.item)).sum(-1)
        return self.model.residual(dot, torch.from_numpy(self.inputs.candidate_offset[batch.row]))

    # The losses of a batch

    def draw_negatives(self, batch: Batch) -> tuple[I64, Tensor]:
        """Draw half from the batch's targets, half evenly from the items of the fit; return them and log E[count]."""
        half = self.settings.negatives // 2
        popularity = self.inputs.popularity
        targets = self.inputs.histories.item[batch.event].astype(np.int64)
        drawn = np.concatenate([self.rng.choice(targets, half), self.rng.choice(self.in_fit, half)])
        expected = half * popularity[drawn] / popularity.sum() + half / len(self.in_fit)
        return drawn, torch.from_numpy(np.log(expected).astype(np.float32))

    def pretrain_loss(self, batch: Batch) -> Tensor:
        """Both heads at once: next item and feedback of every event, from the state before it."""
        model, h, spec = self.model, self.inputs.histories, self.inputs.spec
        negatives, log_expected = self.draw_negatives(batch)
        seen = self.look(batch, negatives)
        states, taste = seen.at(batch.event_at, batch.event_state)
        surface = torch.from_numpy(spec.surface_code(h.surface[batch.event]))
        target = h.item[batch.event].astype(np.int64)
        query, key = model.next_item(states, surface, seen.items)
        loss = losses.next_item(
            query, key, seen.places(target), seen.places(negatives), log_expected, model.log_temperature
        )
        users, items = model.user.vectors(states, taste, surface), seen.of(target)
        score = model.residual((users * items).sum(-1), torch.from_numpy(self.inputs.event_offset[batch.event]))
        rank = torch.from_numpy(h.grade[batch.event].astype(np.int64))
        loss = loss + losses.grade(model.grade_logits(states, score), rank)
        if len(self.inputs.binary):
            loss = loss + self.feedback_loss(model.feedback_logits(states, users, items), h.feedback[batch.event])
        return loss

    def feedback_loss(self, logits: Tensor, value: F32) -> Tensor:
        """Return the loss of the feedback columns, value: float32[n, k] as in the log."""
        spec, binary = self.inputs.spec, self.inputs.binary
        scaled = (value - np.array(spec.signal_mean[1:])) / np.array(spec.signal_scale[1:])
        wanted = np.where(binary, value, scaled).astype(np.float32)
        return losses.feedback(logits, torch.from_numpy(wanted), torch.from_numpy(binary))

    def finetune_loss(self, batch: Batch) -> Tensor:
        """The ranker's own loss over the pairs of the batch's groups."""
        score = self.scores(batch, self.look(batch, np.empty(0, np.int64)))
        winner, loser = (score.index_select(0, torch.from_numpy(rows)) for rows in (batch.winner, batch.loser))
        return losses.pairwise(winner, loser, torch.from_numpy(batch.weight))

    # Epochs

    def accuracy(self, groups: Bool) -> float:
        """Return the PairAccuracy of the training score on the groups of the mask."""
        self.model.eval()
        right = total = 0.0
        lookout = self.inputs.lookout
        with torch.no_grad():
            for chosen in lookout.plan(self.no_events, groups, 4 * self.settings.batch_tokens, None):
                batch = lookout.make(chosen, self.no_events, groups)
                score = self.scores(batch, self.look(batch, np.empty(0, np.int64))).numpy()
                ahead = score[batch.winner] - score[batch.loser]
                right += float((batch.weight * (np.sign(ahead) + 1) / 2).sum(dtype=np.float64))
                total += float(batch.weight.sum(dtype=np.float64))
        return right / max(total, 1e-12)

    def phase(self, name: str, optimizer: torch.optim.Optimizer, rate: float, epochs: int) -> None:
        """Train for the epochs of one phase, or until the validation slice has had enough; go on from the best one."""
        pretrain = name == "pre-train"
        events = self.inputs.events if pretrain else self.no_events
        groups = self.no_groups if pretrain else self.inputs.tuned
        s, lookout = self.settings, self.inputs.lookout
        per_epoch = len(lookout.plan(events, groups, s.batch_tokens, None))
        if not per_epoch:
            return
        epochs = min(epochs, max(s.max_steps // per_epoch, LEAST_EPOCHS))
        best_state, step, since = copy.deepcopy(self.model.state_dict()), 0, 0
        with tqdm(total=epochs * per_epoch, desc=name, unit="batch", file=sys.stderr, mininterval=1) as bar:
            for epoch in range(epochs):
                self.model.train()
                total = 0.0
                plan = lookout.plan(events, groups, s.batch_tokens, self.rng)
                for chosen in plan:
                    batch = lookout.make(chosen, events, groups)
                    loss = self.pretrain_loss(batch) if pretrain else self.finetune_loss(batch)
                    self.step(optimizer, loss, rate * schedule(step / (epochs * per_epoch)))
                    total, step = total + loss.item(), step + 1
                    bar.update()
                accuracy = self.accuracy(self.inputs.held)
                self.epochs.append({"phase": name, "epoch": epoch, "loss": total / len(plan), "held": accuracy})
                bar.set_postfix(loss=f"{total / len(plan):.4f}", held=f"{accuracy:.4f}")
                since = 0 if accuracy > self.best or not self.inputs.held.any() else since + 1
                if since == 0:
                    self.best, best_state = accuracy, copy.deepcopy(self.model.state_dict())
                elif since >= s.patience:
                    break
        self.model.load_state_dict(best_state)

    def step(self, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
        """Go one step down the gradient."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
        optimizer.step()


def schedule(done: float) -> float:
    """Return the share of the peak rate: up over the first twentieth, then half a cosine down."""
    return min((done + 1e-3) / WARM_UP, 1.0) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def make_optimizer(model: Argus, settings: TowerSettings) -> torch.optim.Optimizer:
    """Return AdamW; the table decays much faster than the rest, for an id of few events must say little."""
    table = model.table.weight
    others = [p for p in model.parameters() if p is not table]
    return torch.optim.AdamW(
        [
            {"params": [table], "weight_decay": settings.table_decay},
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


def fit(data: FitData, settings: TowerSettings) -> Trained:
    """Train the towers; the same data, settings (threads too) and seed give the same bits on one machine."""
    with repeatable(settings.threads, data.seed):
        trainer = Trainer(prepare(data, settings), settings, data.seed)
        optimizer = make_optimizer(trainer.model, settings)
        trainer.phase("pre-train", optimizer, settings.learning_rate, settings.pretrain_epochs)
        rate = settings.finetune_rate * settings.learning_rate
        trainer.phase("fine-tune", optimizer, rate, settings.finetune_epochs)
    trainer.model.eval()
    return Trained(trainer.model, trainer.inputs, {"epochs": trainer.epochs})


def user_tokens(trained: Trained, threads: int) -> tuple[F32, I64]:
    """Return the distinct users' first tokens, float32[k, d] (the unknown one's last), and int64[n_users] places."""
    rows, place = trained.inputs.users.distinct()
    with repeatable(threads, 0), torch.no_grad():
        tokens = trained.model.user_token(*entity_inputs(trained.inputs.users, torch.from_numpy(rows)))
    return np.asarray(tokens.numpy(), np.float32), place.astype(np.int64)
