"""Training: pre-train on all events, then fine-tune on the ranker's own pairs."""

import copy
import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from features.histories import Histories
from features.plugin import FitData
from features.schema import F32, I32, I64, Bool
from neural import losses
from neural.batches import Batch, Batches
from neural.entities import Entities, count_values, encode, table_rows
from neural.histories import TokenSpec, known_feedback
from neural.model import Argus, Shape
from neural.settings import TowerSettings


@dataclass(frozen=True)
class Trained:
    """The model with the inputs that its towers were fitted on."""

    model: Argus
    spec: TokenSpec
    items: Entities
    users: Entities
    rows: int
    report: dict[str, object]

    def user_tokens(self) -> tuple[F32, I32]:
        """Return the tokens float32[k, d] of all distinct users (the unknown one's last), and each user's row int32[n_users]."""
        u = self.users
        n = len(u.weight)
        flat = np.concatenate([u.slots.reshape(n, -1), u.weight, u.numbers], axis=1)
        _, first, place = np.unique(flat, axis=0, return_index=True, return_inverse=True)
        place = place.ravel()
        # The unknown user's row goes last.
        unknown = place[-1]
        order = np.append(np.delete(np.arange(len(first)), unknown), unknown)
        rank = np.empty(len(first), np.int32)
        rank[order] = np.arange(len(first))
        at = torch.from_numpy(first[order])
        with torch.no_grad():
            tokens = self.model.user_token(*(x[at] for x in _tensors(u))).numpy()
        return tokens, rank[place[:-1]]


class Trainer:
    """Model, data and random state of one fit."""

    def __init__(self, data: FitData, settings: TowerSettings) -> None:
        self.settings = settings
        self.rng = np.random.default_rng(data.seed)
        torch.manual_seed(data.seed)
        log, catalog = data.log, data.catalog
        mean, scale = known_feedback(log.feedback)
        self.spec = TokenSpec(
            catalog.n_items, len(data.grades), len(catalog.surfaces), mean, scale, settings.history
        )
        known = np.isfinite(log.feedback)
        self.binary = torch.from_numpy(np.all(~known | (log.feedback == 0) | (log.feedback == 1), axis=0))
        self.histories = Histories.build(log, catalog.n_users)
        n_values = count_values(catalog.n_items, catalog.item_attributes) + count_values(
            0, catalog.user_attributes
        )
        rows = table_rows(n_values)
        self.popularity = np.bincount(log.item, minlength=catalog.n_items)
        user_count = np.bincount(log.user, minlength=catalog.n_users)
        self.items = encode(self.popularity, catalog.item_attributes, rows, with_id=True, salt=1)
        self.users = encode(user_count, catalog.user_attributes, rows, with_id=False, salt=2)
        self.item_inputs = _tensors(self.items)
        self.user_inputs = _tensors(self.users)
        self.rows = rows
        shape = Shape(
            settings.width, settings.layers, settings.heads, settings.dropout, rows, self.spec, self.items.layout,
            self.users.layout,
        )  # fmt: skip
        self.model = Argus(shape)
        self.batches = Batches(self.histories, data.groups, data.pairs, self.spec, settings.lag)
        self.known_items = np.flatnonzero(self.popularity)
        self.groups = data.groups

    # -- one pass ---------------------------------------------------------------------------------------------

    def item_vectors(self, ids: I64) -> Tensor:
        """Return [n, d]; in training, some lose their id embedding, so that attributes can speak for a new item."""
        at = torch.from_numpy(ids)
        slots, weight, numbers = (x[at] for x in self.item_inputs)
        if self.model.training and self.settings.id_dropout > 0:
            keep = torch.ones_like(weight)
            keep[:, 0] = (torch.rand(len(ids)) >= self.settings.id_dropout).float()
            weight = weight * keep
        vectors: Tensor = self.model.item(slots, weight, numbers)
        return vectors

    def user_tokens(self, users: I64) -> Tensor:
        """Return [b, d]; -1 is a user of whom nothing is known."""
        at = torch.from_numpy(users.astype(np.int64))
        tokens: Tensor = self.model.user_token(*(x[at] for x in self.user_inputs))
        return tokens

    def forward(self, batch: Batch, negatives: I64) -> tuple[Tensor, Tensor, I64]:
        """Return states [b, s, d], the vectors [u, d] of the items that the batch needs, and which those are (sorted)."""
        wanted = (
            batch.tokens.item.ravel(),
            self.histories.item[batch.event].astype(np.int64),
            negatives,
            batch.item,
        )
        ids = np.unique(np.concatenate(wanted))
        vectors = self.item_vectors(ids)
        item = vectors[torch.from_numpy(np.searchsorted(ids, batch.tokens.item))]
        states = self.model.user.states(
            item,
            torch.from_numpy(batch.tokens.codes),
            torch.from_numpy(batch.tokens.feedback),
            self.user_tokens(batch.user),
        )
        return states, vectors, ids

    # -- the losses of a batch --------------------------------------------------------------------------------

    def event_losses(self, batch: Batch, next_weight: float, negatives: I64, log_expected: Tensor,
                     states: Tensor, vectors: Tensor, ids: I64) -> Tensor:  # fmt: skip
        """Next item and feedback of every event of the batch, each from the state before it."""
        model, h = self.model, self.histories
        state = states[torch.from_numpy(batch.event_at), torch.from_numpy(batch.event_state)]
        surface = torch.from_numpy(self.spec.surface_code(h.surface[batch.event]))
        at = torch.from_numpy(np.searchsorted(ids, h.item[batch.event]))
        total = torch.zeros(())
        if next_weight:
            query, key = model.next_logits(state, surface, vectors)
            negative = torch.from_numpy(np.searchsorted(ids, negatives))
            total = total + next_weight * losses.next_item(
                query, key, at, negative, log_expected, model.temperature
            )
        user, item = model.user.vectors(state, surface), vectors[at]
        rank = torch.from_numpy(h.grade[batch.event].astype(np.int64))
        total = total + losses.grade(model.grade_logits(state, (user * item).sum(-1)), rank)
        if len(self.binary):
            value = torch.from_numpy(h.feedback[batch.event])
            mean, scale = torch.tensor(self.spec.feedback_mean), torch.tensor(self.spec.feedback_scale)
            value = torch.where(self.binary, value, (value - mean) / scale)
            total = total + losses.feedback(model.feedback_logits(state, user, item), value, self.binary)
        return total

    def scores(self, batch: Batch, states: Tensor, vectors: Tensor, ids: I64) -> Tensor:
        """Return [m]: the scalar product of every candidate of the batch's groups."""
        state = states[torch.from_numpy(batch.group_at), torch.from_numpy(batch.group_state)]
        user = self.model.user.vectors(state, torch.from_numpy(batch.surface))
        item = vectors[torch.from_numpy(np.searchsorted(ids, batch.item))]
        return (user[torch.from_numpy(batch.candidate_group)] * item).sum(-1)

    def negatives(self, batch: Batch) -> tuple[I64, Tensor]:
        """Draw half the negatives from the batch's own targets and half evenly from the items of the fit."""
        half = self.settings.negatives // 2 + 1
        targets = self.histories.item[batch.event].astype(np.int64)
        in_batch = self.rng.choice(targets, half)
        uniform = self.rng.choice(self.known_items, half)
        drawn = np.concatenate([in_batch, uniform])
        expected = half * self.popularity[drawn] / self.popularity.sum() + half / len(self.known_items)
        return drawn, torch.from_numpy(np.log(expected).astype(np.float32))

    def loss(self, batch: Batch, next_weight: float, event_weight: float, pair_weight: float) -> Tensor:
        """The weighted sum of the losses of a batch."""
        negatives, log_expected = np.empty(0, np.int64), torch.zeros(0)
        if next_weight and len(batch.event):
            negatives, log_expected = self.negatives(batch)
        states, vectors, ids = self.forward(batch, negatives)
        total = torch.zeros(())
        if event_weight and len(batch.event):
            total = total + event_weight * self.event_losses(
                batch, next_weight, negatives, log_expected, states, vectors, ids
            )
        if pair_weight and len(batch.winner):
            score = self.scores(batch, states, vectors, ids)
            winner, loser = torch.from_numpy(batch.winner), torch.from_numpy(batch.loser)
            total = total + pair_weight * losses.pairwise(
                score[winner], score[loser], torch.from_numpy(batch.weight)
            )
        return total

    # -- epochs -----------------------------------------------------------------------------------------------

    def evaluate(self, groups: Bool) -> tuple[float, float]:
        """Return PairAccuracy (a tie is wrong) and pairwise loss on the groups of the mask."""
        self.model.eval()
        right = weight = total = 0.0
        with torch.no_grad():
            for batch in self.batches.epoch(None, groups, 4 * self.settings.batch_tokens, None):
                if not len(batch.winner):
                    continue
                states, vectors, ids = self.forward(batch, np.empty(0, np.int64))
                score = self.scores(batch, states, vectors, ids).numpy()
                margin = score[batch.winner] - score[batch.loser]
                right += float(batch.weight[margin > 0].sum())
                total += float((np.logaddexp(0, -margin) * batch.weight).sum())
                weight += float(batch.weight.sum())
        return right / max(weight, 1e-12), total / max(weight, 1e-12)

    def epoch(self, optimizer: torch.optim.Optimizer, schedule: "Schedule", events: Bool | None, groups: Bool | None,
              weights: tuple[float, float, float], bar: "tqdm[None]") -> float:  # fmt: skip
        """Go once over everything that has a target."""
        self.model.train()
        seen, total = 0, 0.0
        for batch in self.batches.epoch(events, groups, self.settings.batch_tokens, self.rng):
            loss = self.loss(batch, *weights)
            if not loss.requires_grad:
                continue
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            schedule.step(optimizer)
            optimizer.step()
            seen, total = seen + 1, total + loss.item()
            bar.update()
        return total / max(seen, 1)


class Schedule:
    """Learning rate: up over the first twentieth of the steps, then half a cosine down to nearly 0."""

    def __init__(self, peak: float, steps: int) -> None:
        self.peak, self.steps, self.at = peak, max(steps, 1), 0

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the rate of the next step."""
        done = min((self.at + 1) / self.steps, 1.0)
        rate = self.peak * min(done / 0.05, 1.0) * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        self.at += 1


def _tensors(entities: Entities) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.from_numpy(entities.slots),
        torch.from_numpy(entities.weight),
        torch.from_numpy(entities.numbers),
    )


def _optimizer(model: Argus, settings: TowerSettings) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=settings.learning_rate, betas=(0.9, 0.98),
    )  # fmt: skip


def fit(data: FitData, settings: TowerSettings) -> Trained:
    """Pre-train on the events before the validation slice, fine-tune on the pairs before it, keep the best epoch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        trainer = Trainer(data, settings)
        return train(trainer)
    finally:
        torch.set_num_threads(threads)


def train(t: Trainer) -> Trained:
    s = t.settings
    validation = t.groups.validation
    has_pairs = np.diff(t.batches.pair_offsets) > 0
    boundary = t.groups.requests.as_of[validation].min() if validation.any() else np.iinfo(np.int64).max
    events = t.histories.ts < boundary
    tuned = ~validation & has_pairs
    optimizer = _optimizer(t.model, s)
    steps = sum(1 for _ in t.batches.epoch(events, None, s.batch_tokens, t.rng))
    history = []
    with tqdm(total=None, file=sys.stderr, desc="towers", disable=None) as bar:
        schedule = Schedule(s.learning_rate, steps * s.pretrain_epochs)
        for k in range(s.pretrain_epochs):
            loss = t.epoch(optimizer, schedule, events, None, (1.0, 1.0, 0.0), bar)
            history.append(("pre", k, loss, *t.evaluate(validation & has_pairs)))
            if VERBOSE:
                print(history[-1], flush=True)
        steps = sum(1 for _ in t.batches.epoch(None, tuned, s.batch_tokens, t.rng))
        best, state, waited = -1.0, None, 0
        schedule = Schedule(s.learning_rate * s.finetune_rate, steps * s.finetune_epochs)
        for k in range(s.finetune_epochs):
            loss = t.epoch(
                optimizer, schedule, events if s.joint else None, tuned, (s.joint_next, s.joint, 1.0), bar
            )
            accuracy, pairloss = t.evaluate(validation & has_pairs)
            history.append(("fine", k, loss, accuracy, pairloss))
            if VERBOSE:
                print(history[-1], flush=True)
            if accuracy > best:
                best, state, waited = accuracy, copy.deepcopy(t.model.state_dict()), 0
            else:
                waited += 1
                if waited >= s.patience:
                    break
        if state:
            t.model.load_state_dict(state)
    t.model.eval()
    return Trained(t.model, t.spec, t.items, t.users, t.rows, {"history": history})


VERBOSE = False
