"""Distillation: towers that learn to say what the mean of several says, which differ by their seed alone.

Where a log is small for what is to be learned, fits of one setting differ from each other by as much as each gains, and
their mean gains more than any of them; but it costs in serving what all of them cost. One network can learn to say the
same (Hinton et al., arXiv 1503.02531): it is asked for the products of all states of a batch with all of its items,
which are many more than the log has answers for.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from features.plugin import FitData
from features.schema import I64
from neural.batches import Batch, TargetMask
from neural.checkpoints import Checkpoint
from neural.data import TowerData
from neural.engine import Engine, Phase
from neural.parallel.device import tensor
from neural.parallel.ranks import ALONE, Ranks, mean, whole
from neural.settings import TowerSettings
from neural.train import SEED_STEP, Trained, Trainer, needed_items, network_size, repeatable


def distil(data: FitData, settings: TowerSettings) -> Trained:
    """Train `settings.teachers` towers, then those that follow their mean.

    It repeats, resumes and is shared by processes as `train.fit` is.
    """
    ranks = Ranks(data.process, data.processes)
    with ranks.joined():
        return _distil(data, settings, ranks)


def _distil(data: FitData, settings: TowerSettings, ranks: Ranks) -> Trained:
    with repeatable(settings.threads, data.seed):
        inputs = TowerData.build(data, settings, settings.context, settings.feedback_kinds)
    teachers: list[Trainer] = []
    report = dict[str, Any](epochs=[], teachers=[], curve=[])
    for k in range(settings.teachers):
        with repeatable(settings.threads, data.seed + SEED_STEP * k):
            teacher, kept = Trainer(inputs, settings, data.seed + SEED_STEP * k, ranks), f"teacher{k + 1}"
            engine = _train(teacher, Checkpoint(data.scratch, kept), f"teacher {k + 1}: ", report, "teachers")
        if not teachers:  # the heads are pre-trained with a teacher, and a student begins as the first one
            teacher.keep_heads(engine, data.heads)
        teachers.append(teacher)
    with repeatable(settings.threads, data.seed):
        student = Student(inputs, settings, data.seed, teachers, ranks)
        _train(student, Checkpoint(data.scratch, "towers"), "", report, "epochs")
    return Trained(student.model, inputs, report | {"parameters": network_size(student.model)})


def _train(trainer: Trainer, checkpoint: Checkpoint, prefix: str, report: dict[str, Any], whose: str) -> Engine:
    """Train, or take up what was trained before a kill; then the model gives what it is to be served with.

    whose: where the report has its epochs. Those of teachers are apart: nobody serves what they reach.
    """
    engine = trainer.engine(checkpoint)
    engine.train(tuple(replace(phase, name=prefix + phase.name) for phase in trainer.phases()))
    trainer.model.eval()
    report[whose] += engine.progress
    report["curve"] += engine.curve
    return engine


class Student(Trainer):
    """Starts as the first teacher, and is taught by all of them."""

    def __init__(
        self,
        inputs: TowerData,
        settings: TowerSettings,
        seed: int,
        teachers: list[Trainer],
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(inputs, settings, seed, ranks)
        self.teachers, self.epochs = teachers, settings.distil_epochs
        self.model.load_state_dict(teachers[0].model.state_dict())
        # What is known of the items without towers is no part of the products: it stays as the teachers weigh it.
        weight = torch.stack([teacher.model.known.detach() for teacher in teachers]).mean()
        self.model.known.requires_grad_(False).copy_(weight)

    def phases(self) -> tuple[Phase, ...]:
        """Return the one phase of a student."""
        s, both = self.settings, TargetMask(self.inputs.pretrain.events, self.inputs.finetune.groups)
        return (self.phase("distil", both, self.distil_loss, s.finetune_rate * s.learning_rate, self.epochs),)

    def distil_loss(self, batch: Batch) -> Tensor:
        """Return the share of the variance of the teachers' mean products within a state that is missed."""
        drawn = self.negatives.draw((batch.whole or batch).events.item, self.rng).item
        if batch.whole is not None:  # the products are of all its items
            drawn = needed_items(batch.whole, drawn)
        with torch.no_grad():
            wanted = torch.stack([_products(teacher, batch, drawn) for teacher in self.teachers]).mean(0)
        missed, square = (_products(self, batch, drawn) - wanted).square(), wanted.square()
        # The number of processes is in both, and cancels: the whole batch's mean square.
        scale = whole(square.sum()) / whole(torch.tensor(square.numel(), device=square.device), 1)
        return mean(missed) / scale.clamp(min=1e-12)


def _products(trainer: Trainer, batch: Batch, drawn: I64) -> Tensor:
    """Return [n, u]: of each state that is asked for with each item of the batch, less their mean over the items."""
    encoded, parts = trainer.encode(batch, drawn), (batch.events, batch.groups)
    window, state, context = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("window", "state", "context")
    )
    users = trainer.model.user.vectors(*encoded.states_at(window, state), tensor(context))
    products = users @ encoded.items.T
    return products - products.mean(1, keepdim=True)
