"""Train the head that retrieves, over towers that stay as they are: which item is wanted next, beyond its demand.

    P(item | state) ∝ p(item) · e^(query · key / temperature)

p is the item's share of the wanted events of the fit, so the product is the pointwise mutual information of state and
item (cf. Levy and Goldberg, NeurIPS 2014): what is left to say over demand. Serving has the demand of the hour.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from features.progress import progress_bar
from features.schema import F32, I64, Bool
from neural import losses
from neural.batches import TargetMask
from neural.checkpoints import Checkpoint
from neural.data import TowerData
from neural.engine import Engine, Phase, adamw, in_batches, schedule
from neural.model import Argus, Retrieval
from neural.parallel.device import array, moved, tensor
from neural.pretraining.negatives import Negatives, Pool
from neural.settings import TowerSettings
from neural.train import Trained, all_vectors, read_histories, repeatable

#: events of a step
BATCH = 512
#: steps that a small log is gone over again for
LEAST_STEPS = 300
#: peak of the learning rate
RATE = 3e-3
#: share of the steps over which it comes down: on a log of 100,000 ratings the least loss of the validation slice was
#: 6.202 and 6.197 of two seeds, and over all the steps 6.212 and 6.203
ANNEALED = 0.5
#: padded tokens of a pass over histories
TOKENS = 8192
#: one event is added to each item's, so that an item without any has a share
SMOOTHING = 1.0


@dataclass(frozen=True, slots=True)
class States:
    """What the towers know before each of m events."""

    row: I64  # [m], of the histories, in any order
    state: Tensor  # [m, d]
    taste: Tensor  # [m, d]
    context: Tensor  # int64[m, c], codes of the event


@dataclass(frozen=True, slots=True)
class Targets:
    """n wanted events, each with a state before it."""

    known: States  # m of them
    place: I64  # [n], which of the m
    item: I64  # [n]

    def __len__(self) -> int:
        return len(self.item)


def fit_head(
    trained: Trained, settings: TowerSettings, seed: int, scratch: Path | None = None
) -> tuple[Retrieval, dict[str, Any]] | None:
    """Return the head of the best epoch, and a report as `Trained` has it; None where there is nothing to learn from.

    Nothing that came before is changed. The same towers, settings and seed give the same bits on one machine, also
    where a killed run goes on from `scratch`.
    """
    with repeatable(settings.threads, seed):
        trainer = HeadTrainer(trained, settings, seed)
        if not settings.retrieval_epochs or not len(trainer.learned):
            return None
        optimizer = adamw(trainer.head, settings.weight_decay)
        engine = Engine(trainer.head, optimizer, trainer.rng, Checkpoint(scratch, "retrieval"))
        engine.train((trainer.phase(),))
    return trainer.head.eval(), {"epochs": engine.progress, "curve": engine.curve}


def item_keys(trained: Trained, head: Retrieval, threads: int) -> F32:
    """Return float32[n_items, d]: each item's key over the temperature, NaN for an item of which nothing is known."""
    with repeatable(threads, 0), torch.no_grad():
        vectors = all_vectors(trained.model.item, trained.inputs.items)[:-1]
        ids = torch.arange(len(vectors), device=vectors.device)
        keys = head.keys(vectors, ids) / losses.clipped_temperature(head.log_temperature)
    return np.where(trained.inputs.items.known[:-1, None], array(keys), np.float32(np.nan))


class HeadTrainer:
    """The head, its targets and random state."""

    def __init__(self, trained: Trained, settings: TowerSettings, seed: int) -> None:
        inputs = trained.inputs
        self.settings, self.rng = settings, np.random.default_rng(seed)
        self.head = moved(Retrieval(trained.model.shape))
        with torch.no_grad():
            self.items = all_vectors(trained.model.item, inputs.items)  # [n_items + 1, d]
            # The id of an item that is never met in training says nothing, and stays so: it gets no gradient.
            self.head.id.weight[tensor(inputs.popularity == 0)] = 0.0
            self.learned = self.targets(trained.model, inputs, inputs.wanted, self.rng)
            # Draws of its own: what is wanted in the slice trains nothing.
            self.held = self.targets(trained.model, inputs, inputs.wanted_later, np.random.default_rng(seed))
        self.in_fit = np.flatnonzero(inputs.popularity)
        count = np.bincount(self.learned.item, minlength=len(inputs.popularity))
        self.negatives = Negatives(count, self.in_fit, settings.retrieval_negatives, log_q=True)
        smooth = (count + SMOOTHING) / (count + SMOOTHING).sum()
        self.prior = tensor(np.log(smooth).astype(np.float32))  # [n_items]

    def targets(self, model: Argus, inputs: TowerData, events: Bool, rng: np.random.Generator) -> Targets:
        """Return some events of a mask, each with a state of its user before it, drawn evenly of those within reach.

        A list is for more than the very next event: what is wanted later is wanted now, too (cf. the dense all-action
        loss of PinnerFormer, Pancha et al., KDD 2022).
        """
        h, events = inputs.batches.histories, some(events, self.settings.retrieval_events, rng)
        user, row = h.rows()
        user, row = user[events], row[events]
        known = rng.integers(h.before(user, h.ts[row] - self.settings.retrieval_ahead)[1], row + 1)
        asked = np.zeros_like(events)
        asked[known] = True
        states = find_states(model, inputs, self.items, asked)
        order = np.argsort(states.row)
        place = order[np.searchsorted(states.row[order], known)]
        return Targets(states, place, h.item[row].astype(np.int64))

    def phase(self) -> Phase:
        """Return the one phase: the head is that of the epoch with the least loss on the validation slice."""
        per_epoch = -(-len(self.learned) // BATCH)
        return Phase(
            name="retrieve",
            epochs=max(self.settings.retrieval_epochs, -(-LEAST_STEPS // per_epoch)),
            rate=RATE,
            plan=self.plan,
            loss=lambda rows: self.loss(self.learned, rows, self.pool(self.rng)),
            size=len,
            unit="events",
            describe=lambda rows: f"{len(rows)} wanted events",
            remedy="retrieval_epochs = 0 goes without this head.",
            validate=self.validation,
            higher_is_better=False,
            schedule=lambda done: schedule(done / ANNEALED),
        )

    def plan(self, rng: np.random.Generator | None) -> list[I64]:
        """Return the targets by batch, each int64[b]; mixed with `rng`."""
        return in_batches(len(self.learned), BATCH, rng)

    def validation(self) -> float:
        """Return the mean loss on the validation slice: over the same drawn items in every epoch; NaN without any."""
        rng, total = np.random.default_rng(0), 0.0
        with torch.no_grad():
            for first in range(0, len(self.held), BATCH):
                rows = np.arange(first, min(first + BATCH, len(self.held)))
                total += self.loss(self.held, rows, self.pool(rng)).item() * len(rows)
        return total / len(self.held) if len(self.held) else float("nan")

    def loss(self, targets: Targets, rows: I64, pool: Pool) -> Tensor:
        """Return the mean sampled softmax loss of some targets, demand being the prior."""
        known, at = targets.known, tensor(targets.place[rows])
        query = self.head.queries(known.state[at], known.taste[at], known.context[at])
        ids = np.unique(np.concatenate([targets.item[rows], pool.item]))
        unique = tensor(ids)
        key = self.head.keys(self.items[unique], unique)
        target, negative = (tensor(np.searchsorted(ids, item)) for item in (targets.item[rows], pool.item))
        log_expected, temperature = tensor(pool.log_expected), self.head.log_temperature
        return losses.next_item(query, key, target, negative, log_expected, temperature, self.prior[unique]).mean()

    def pool(self, rng: np.random.Generator) -> Pool:
        """Return all items of the fit; of many, half drawn as the targets have them and half evenly."""
        n = len(self.in_fit)
        if n <= self.settings.retrieval_negatives:
            return Pool(self.in_fit, np.zeros(n, np.float32))
        return self.negatives.draw(self.learned.item, rng)


def some(mask: Bool, most: int, rng: np.random.Generator) -> Bool:
    """Return at most so many of a mask's places, drawn evenly."""
    places = np.flatnonzero(mask)
    if len(places) <= most:
        return mask
    drawn = np.zeros_like(mask)
    drawn[rng.choice(places, most, replace=False)] = True
    return drawn


def find_states(model: Argus, inputs: TowerData, items: Tensor, events: Bool) -> States:
    """Return the states before the events of a mask: one pass over each window that has any."""
    mask, batches = TargetMask(events, np.zeros_like(inputs.pretrain.groups)), inputs.batches
    plan = progress_bar(batches.plan(mask, TOKENS), desc="states", unit="batch", mininterval=1, leave=False)
    parts = [_states(model, inputs, items, chosen, mask) for chosen in plan]
    if not parts:
        none, empty = np.empty(0, np.int64), items[:0]
        return States(none, empty, empty, tensor(batches.context_of(none)))
    return States(
        np.concatenate([part.row for part in parts]),
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("state", "taste", "context")),
    )


def _states(model: Argus, inputs: TowerData, items: Tensor, chosen: I64, mask: TargetMask) -> States:
    """Return the states of one batch of windows."""
    batch = inputs.batches.make(chosen, mask)
    encoded = read_histories(model, inputs, batch, items, np.arange(len(items)))
    state, taste = encoded.states_at(batch.events.window, batch.events.state)  # [m, d] each
    return States(batch.events.row, state, taste, tensor(batch.events.context))
