"""The heads of grade and feedback, trained once more over towers that stay as they are: fine-tuning left them behind.

A head learns from the states that serving would have: those of the events before an event, less the lag.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from features.schema import I64, Bool
from neural import losses
from neural.checkpoints import Checkpoint
from neural.data import TowerData
from neural.engine import Engine, Phase, adamw, in_batches
from neural.model import Argus, ordered
from neural.parallel.device import moved, tensor
from neural.retrieval import find_states, some
from neural.settings import TowerSettings
from neural.train import Trained, all_vectors, repeatable, take
from neural.vocabulary.feedback import FeedbackKinds

#: events that the heads learn from, at most: an MLP of one hidden layer needs no more, and of each a state is held
EVENTS = 300_000
#: epochs at most, and those without a lower loss on the validation slice before it stops
EPOCHS, PATIENCE = 10, 2
#: events of a step
BATCH = 256
#: peak of the learning rate
RATE = 2e-3
#: the largest logarithm of a count or time that is expected: no feedback is larger (`features.schema.LARGEST_FEEDBACK`)
LARGEST_LOG = 27.6


class Answers(nn.Module):
    """What a user will answer to an item: the grade and each feedback, by the towers' heads over towers that stay.

    It starts from the heads of pre-training, which fine-tuning left behind.
    """

    def __init__(self, model: Argus, kinds: FeedbackKinds, asked: tuple[int, ...]) -> None:
        """asked: what `forward` gives, -1 for the grade, else places of feedback columns."""
        super().__init__()
        self.feedback, self.grade_bias = copy.deepcopy(model.feedback), copy.deepcopy(model.grade_bias)
        self.grade_steps, self.known = copy.deepcopy(model.grade_steps), copy.deepcopy(model.known)
        self.slope = nn.Parameter(torch.tensor(1.0))  # fine-tuning has scaled the product
        self.kinds, self.asked = kinds, asked

    def logits(self, states: Tensor, users: Tensor, items: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """As `Argus.grade_logits` and `Argus.feedback_logits`; known: [n], the items' mean grade before then."""
        score = self.slope * (users * items).sum(-1) + self.known * known
        bias = self.grade_bias(states).squeeze(-1)
        feedback = self.feedback(torch.cat([states, users * items, items], dim=-1))
        return (score + bias).unsqueeze(-1) - ordered(self.grade_steps), feedback

    def forward(self, state: Tensor, user: Tensor, items: Tensor, request: Tensor, known: Tensor) -> Tensor:
        """Return [n, len(asked)]: the expected grade (a rank), and what is expected of feedback, in the log's units.

        state: [g, 2d] of `Trunk`, user: [g, d] vectors, items: [n, d], request: int64[n] rows of these, known: [n].
        """
        last = state.chunk(2, dim=-1)[0]
        grade, feedback = self.logits(last[request], user[request], items, known)
        expected = (grade.sigmoid().sum(-1) if k < 0 else self._unscaled(k, feedback[:, k]) for k in self.asked)
        return torch.stack(list(expected), dim=-1)

    def _unscaled(self, k: int, x: Tensor) -> Tensor:
        """Return what is expected of one feedback column, of what its head gives."""
        if self.kinds.bounded[k]:
            return x.sigmoid()
        x = x * float(self.kinds.scale[k]) + float(self.kinds.mean[k])
        if not self.kinds.logged[k]:
            return x
        return F.relu(x).clamp(max=LARGEST_LOG).expm1() * float(self.kinds.unit[k])


@dataclass(frozen=True, slots=True)
class Answered:
    """n events with all that the heads read, and what came."""

    states: Tensor  # [n, d]
    users: Tensor  # [n, d], vectors
    item: Tensor  # int64[n]
    known: Tensor  # [n], the item's mean grade before then
    grade: Tensor  # int64[n], rank; -1 none
    wanted: Tensor  # [n, k], `FeedbackKinds.wanted`

    def __len__(self) -> int:
        return len(self.item)


def fit_answers(
    trained: Trained, asked: tuple[int, ...], settings: TowerSettings, seed: int, scratch: Path | None = None
) -> tuple[Answers, dict[str, Any]]:
    """Return the heads of the epoch with the least loss on the validation slice, and a report as `Trained` has it.

    asked: as `Answers` takes it. Nothing that came before is changed. The same towers, settings and seed give the same
    bits on one machine, also where a killed run goes on from `scratch`.
    """
    with repeatable(settings.threads, seed):
        trainer = AnswersTrainer(trained, asked, seed)
        optimizer = adamw(trainer.answers, settings.weight_decay)
        engine = Engine(trainer.answers, optimizer, trainer.rng, Checkpoint(scratch, "answers"))
        engine.train((trainer.phase(),))
    return trainer.answers.eval(), {"epochs": engine.progress, "curve": engine.curve}


class AnswersTrainer:
    """The heads, the events that they learn from, and random state."""

    def __init__(self, trained: Trained, asked: tuple[int, ...], seed: int) -> None:
        model, inputs = trained.model, trained.inputs
        self.rng, self.kinds = np.random.default_rng(seed), inputs.feedback
        self.answers = moved(Answers(model, inputs.feedback, asked))
        before = inputs.pretrain.events
        with torch.no_grad():
            self.items = all_vectors(model.item, inputs.items)  # [n_items + 1, d]
            learned, held = some(before, EVENTS, self.rng), some(~before, EVENTS, self.rng)
            self.learned, self.held = (answered(model, inputs, self.items, events) for events in (learned, held))

    def phase(self) -> Phase:
        """Return the one phase."""
        return Phase(
            name="answers",
            epochs=EPOCHS,
            rate=RATE,
            plan=self.plan,
            loss=lambda rows: self.loss(self.learned, rows),
            size=len,
            unit="events",
            describe=lambda rows: f"{len(rows)} events",
            remedy="leave grade and feedback out of the columns.",
            validate=self.validation,
            higher_is_better=False,
            patience=PATIENCE,
        )

    def plan(self, rng: np.random.Generator | None) -> list[I64]:
        """Return the events by batch, each int64[b]; mixed with `rng`."""
        return in_batches(len(self.learned), BATCH, rng)

    def validation(self) -> float:
        """Return the mean loss on the validation slice; NaN where it has no events."""
        if not len(self.held):
            return float("nan")
        with torch.no_grad():
            parts = np.array_split(np.arange(len(self.held)), -(-len(self.held) // BATCH))
            return sum(self.loss(self.held, rows).item() * len(rows) for rows in parts) / len(self.held)

    def loss(self, events: Answered, rows: I64) -> Tensor:
        """Return the sum of the grade's mean loss and of each feedback column's, as in pre-training."""
        at = tensor(rows)
        items = take(self.items, events.item[at])
        grade, feedback = self.answers.logits(events.states[at], events.users[at], items, events.known[at])
        loss = losses.grade(grade, events.grade[at])
        if len(self.kinds):
            loss = loss + losses.feedback(feedback, events.wanted[at], tensor(self.kinds.bounded))
        return loss


def answered(model: Argus, inputs: TowerData, items: Tensor, events: Bool) -> Answered:
    """Return the events of a mask, bool[rows of the histories], each with what is seen of its user as of then."""
    batches, h = inputs.batches, inputs.batches.histories
    user, row = h.rows()
    user, row = user[events[row]], row[events[row]]
    seen = h.before(user, batches.lag.cut(h.ts[row]))[1]  # an event's row: the state before it is asked for
    asked = np.zeros_like(events)
    asked[seen] = True
    found = find_states(model, inputs, items, asked)
    order = np.argsort(found.row)
    place = tensor(order[np.searchsorted(found.row, seen, sorter=order)])
    states, context = found.state[place], tensor(batches.context_of(row))
    return Answered(
        states=states,
        users=model.user.vectors(states, found.taste[place], context),
        item=tensor(h.item[row].astype(np.int64)),
        known=tensor(batches.event_offset[row]),
        grade=tensor(h.grade[row].astype(np.int64)),
        wanted=tensor(inputs.feedback.wanted(h.feedback[row])),
    )
