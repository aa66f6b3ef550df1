"""Meta-training: adapt to a user's support, ask for what came later, and learn from that what to adapt from.

The outer loss goes through the inner loop. First it is the ordinal loss of the grades of later events, of which there
are many; then the ranker's own pairwise loss, which is what counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from features.pairing.pairs import right_weight
from features.plugin import FitData
from features.schema import F32, I64
from neural import losses
from neural.checkpoints import Checkpoint
from neural.data import TowerData
from neural.engine import Engine, Phase
from neural.limaml.inner import MetaParameters
from neural.limaml.model import MetaNetwork
from neural.limaml.settings import LiMAMLSettings
from neural.limaml.tasks import Query, TaskData, Tasks
from neural.parallel.device import array, moved, tensor
from neural.runtime import Vectors
from neural.train import (
    LARGEST_GRADIENT,
    LEAST_EPOCHS,
    all_vectors,
    entity_inputs,
    hidden_ids,
    item_vectors,
    make_optimizer,
    repeatable,
    take,
)


@dataclass(frozen=True, slots=True)
class Trained:
    """What a fit gives."""

    model: MetaNetwork  # of the best epoch
    inputs: TowerData  # that it was fitted on
    report: dict[str, Any]  # what the epochs reached, and the curve


def fit(data: FitData, settings: LiMAMLSettings) -> Trained:
    """Meta-train; the same data, settings (threads too) and seed give the same bits on one machine, killed or not."""
    with repeatable(settings.threads, data.seed):
        trainer = Trainer(TowerData.build(data, settings), settings, data.seed, data.zone)
        engine = Engine(
            trainer.model, trainer.optimizer, trainer.rng, Checkpoint(data.scratch, "limaml"), LARGEST_GRADIENT
        )
        engine.train(trainer.phases())
    trainer.model.eval()
    return Trained(trainer.model, trainer.inputs, {"epochs": engine.progress, "curve": engine.curve})


class Trainer:
    """Network, inputs and random state of one fit."""

    def __init__(self, inputs: TowerData, settings: LiMAMLSettings, seed: int, zone: str) -> None:
        self.inputs, self.settings = inputs, settings
        self.data = TaskData(inputs, settings, zone)
        self.rng = np.random.default_rng(seed)
        s = settings
        self.model = moved(
            MetaNetwork(
                rows=inputs.rows,
                item=inputs.items.layout,
                user=inputs.users.layout,
                n_cuts=max(inputs.spec.n_grades - 1, 1),
                width=s.width,
                hidden=s.hidden,
                steps=s.inner_steps,
                dropout=s.dropout,
            )
        )
        self.optimizer = make_optimizer(self.model, self.model.table, settings)

    def phases(self) -> tuple[Phase, ...]:
        """Return the two phases of a fit, in their order."""
        s, data, inputs = self.settings, self.data, self.inputs
        # Where all events have one grade there is none to be told from another.
        epochs = s.pretrain_epochs if inputs.spec.n_grades > 1 else 0
        groups, rate = data.groups(inputs.finetune.groups), s.finetune_rate * s.learning_rate
        return (
            self.phase("pre-train", "events", data.events, self.event_loss, s.learning_rate, epochs),
            self.phase("fine-tune", "groups", lambda rng: groups, self.pair_loss, rate, s.finetune_epochs),
        )

    def phase(
        self,
        name: str,
        unit: str,
        tasks: Callable[[np.random.Generator | None], Tasks],
        loss: Callable[[Tasks], Tensor],
        rate: float,
        epochs: int,
    ) -> Phase:
        """Return a phase that learns from some tasks, judged by PairAccuracy on the validation slice."""
        s = self.settings

        def plan(rng: np.random.Generator | None) -> list[Tasks]:
            return tasks(rng).batches(s.batch_tokens, s.query, rng)

        return Phase(
            name=name,
            epochs=min(epochs, max(s.max_steps // max(len(plan(None)), 1), LEAST_EPOCHS)),
            rate=rate,
            plan=plan,
            loss=loss,
            size=lambda batch: int((batch.last - batch.first).sum()),
            unit=unit,
            describe=self.describe,
            remedy="a lower learning_rate (of fine-tuning: finetune_rate) takes smaller steps.",
            validate=self.accuracy,
            patience=s.patience,
        )

    def describe(self, tasks: Tasks) -> str:
        """Return whose tasks these are, for an error."""
        return f"{len(tasks)} tasks of {self.inputs.named(tasks.user)}"

    def event_loss(self, tasks: Tasks) -> Tensor:
        """Return the ordinal loss of the grades of the events that came next."""
        query, rank = self.data.event_query(tasks)
        logits = self.scores(tasks, query).unsqueeze(-1) - self.model.cuts  # [m, c]
        return losses.grade(logits, tensor(rank))

    def pair_loss(self, tasks: Tasks) -> Tensor:
        """Return the ranker's own loss over the pairs of the groups."""
        query, pairs = self.data.group_query(tasks)
        score = self.scores(tasks, query)
        winner, loser = (score.index_select(0, tensor(rows)) for rows in (pairs.winner, pairs.loser))
        return losses.pairwise(winner, loser, tensor(pairs.weight))

    def accuracy(self) -> float:
        """Return the PairAccuracy of the training score on the groups of the validation slice; NaN without pairs."""
        self.model.eval()
        right = total = 0.0
        tasks = self.data.groups(self.inputs.validation.groups)
        with torch.no_grad():
            for part in tasks.batches(4 * self.settings.batch_tokens, self.settings.query, None):
                query, pairs = self.data.group_query(part)
                score = array(self.scores(part, query))
                right += right_weight(score, pairs.winner, pairs.loser, pairs.weight)
                total += float(pairs.weight.sum(dtype=np.float64))
        return right / total if total else float("nan")

    def scores(self, tasks: Tasks, query: Query) -> Tensor:
        """Return [m]: the training score of what is asked for, after the meta block was adapted to the support."""
        model, support = self.model, self.data.support(tasks)
        ids = np.unique(np.concatenate([support.item.ravel(), query.item]))
        hide = hidden_ids(model.item, len(ids), self.settings.id_dropout)
        vectors = item_vectors(model.item, self.inputs.items, ids, hide)

        def of(item: I64) -> Tensor:
            return take(vectors, tensor(np.searchsorted(ids, item)))

        user = model.user(*entity_inputs(self.inputs.users, tasks.user.astype(np.int64)))
        offset, rank = tensor(support.offset), tensor(support.rank)
        adapted = take(model.embeddings(user, of(support.item), offset, rank), tensor(query.task))
        return model.scores(adapted, of(query.item), tensor(query.offset))


def served_block(model: MetaNetwork) -> MetaParameters:
    """Return the meta block for serving."""
    meta = model.meta

    def copied(x: Tensor) -> F32:
        return np.array(array(x), np.float32)

    return MetaParameters(
        up=copied(meta.up.weight),
        up_bias=copied(meta.up.bias),
        down=copied(meta.down.weight),
        down_bias=copied(meta.down.bias),
        rate=copied(meta.log_rate.exp()),
        cuts=copied(model.cuts),
        shrink=meta.log_shrink.exp().item(),
        known=model.known.item(),
    )


def served_vectors(trained: Trained, threads: int) -> Vectors:
    """Return the vectors of all items, and of all distinct users' attributes."""
    inputs, model = trained.inputs, trained.model
    rows, place = inputs.users.distinct()
    with repeatable(threads, 0), torch.no_grad():
        users = model.user(*entity_inputs(inputs.users, rows))
        items = all_vectors(model.item, inputs.items)
    return Vectors(
        items=np.asarray(array(items), np.float32),
        known_items=inputs.items.known[:-1],
        users=np.asarray(array(users), np.float32),
        user_row=place.astype(np.int64),
        keys=np.empty((inputs.spec.n_items, 0), np.float32),
    )
