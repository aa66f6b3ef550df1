"""Train on the wanted events before the validation slice; keep the epoch with the best NDCG@10 in it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from features.plugin import FitData
from features.schema import F32, I64, Bool
from features.state.histories import Histories
from neural.checkpoints import NOWHERE, Checkpoint
from neural.engine import Engine, Phase
from neural.parallel.device import array, moved, tensor
from neural.retrieval import some
from neural.sasrec.losses import gbce, power
from neural.sasrec.model import Encoder, Network
from neural.sasrec.sequences import Batch, Sequences, Windows
from neural.sasrec.settings import SASRecSettings
from neural.train import repeatable, take
from neural.wanted import floor_of

#: events of the validation slice that choose the epoch, drawn once where there are more
HELD = 10_000
#: scores that are held at a time in validation
SCORES = 1 << 24
#: `k` of NDCG@k
BEST = 10
#: decays of Adam's means, the paper's
BETAS = (0.9, 0.98)


@dataclass(frozen=True, slots=True)
class Trained:
    """What a fit gives."""

    encoder: Encoder  # of the best epoch
    items: F32  # [n_items, d], NaN of an item that was never trained on
    floor: int  # rank of the lowest grade that was wanted; -1: all events were
    report: dict[str, Any]  # what the epochs reached, and the curve


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a fit reads, arranged from the log."""

    row: I64  # [n_items], of the embedding; -1 for an item without a wanted event before the validation slice
    floor: int  # as in `Trained`
    learned: Sequences  # of events before the validation slice
    known: Sequences  # of all events
    held: Bool  # [m of known], in the validation slice, to be predicted there

    @classmethod
    def build(cls, data: FitData, seed: int) -> "Inputs":
        """Events of the validation slice are no targets; they only stand before later ones of the slice."""
        as_of = data.groups.requests.as_of[data.groups.validation]
        boundary = int(as_of.min(initial=np.iinfo(np.int64).max))
        log = data.log.until(boundary)
        floor = floor_of(log.grade, data.wanted)
        count = np.bincount(log.item[(log.grade >= floor) & (log.item >= 0)], minlength=data.catalog.n_items)
        row = np.where(count > 0, np.cumsum(count > 0) - 1, -1)
        n_users = data.catalog.n_users
        learned, known = (Sequences.build(Histories.build(x, n_users), row, floor) for x in (log, data.log))
        held = some(known.ts >= boundary, HELD, np.random.default_rng(seed))
        return cls(row, floor, learned, known, held)


def fit(data: FitData, settings: SASRecSettings) -> Trained:
    """Train; the same data, settings (threads too) and seed give the same bits on one machine, killed or not."""
    with repeatable(settings.threads, data.seed):
        inputs, checkpoint = Inputs.build(data, data.seed), Checkpoint(data.scratch, "sasrec")
        trainer = Trainer(inputs, settings, data.seed, checkpoint)
        trainer.train()
    row, network = trainer.inputs.row, trainer.network
    vectors = array(network.items.weight)
    items = np.full((len(row), settings.width), np.nan, np.float32)
    report = {"epochs": trainer.progress, "curve": trainer.engine.curve}
    if trainer.progress:  # else nothing was learned
        items[row >= 0] = vectors
    return Trained(network.encoder.eval(), items, trainer.inputs.floor, report)


class Trainer:
    """Network, inputs and random state of one fit."""

    def __init__(self, inputs: Inputs, settings: SASRecSettings, seed: int, checkpoint: Checkpoint = NOWHERE) -> None:
        self.inputs, self.settings = inputs, settings
        self.rng = np.random.default_rng(seed)
        self.n = int((inputs.row >= 0).sum())
        s = settings
        self.network = moved(Network(max(self.n, 1), Encoder(s.history, s.width, s.layers, s.heads, s.dropout)))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=s.learning_rate, betas=BETAS, fused=True)
        self.negatives = min(s.negatives, self.n - 1)
        self.windows = inputs.learned.windows(s.history)
        self.engine = Engine(self.network, self.optimizer, self.rng, checkpoint)

    @property
    def progress(self) -> list[dict[str, Any]]:
        """Of each epoch: number, steps so far, loss, NDCG@10 in validation."""
        return self.engine.progress

    def train(self) -> None:
        """Train until the validation slice stops improving, or as long as settings say; take the best epoch."""
        if self.negatives >= 1 and len(self.windows.start):
            self.engine.train((self.phase(),))

    def phase(self) -> Phase:
        """Return the one phase, at a steady rate."""
        s, held, steps = self.settings, self.held_windows(), len(self.plan(None))
        return Phase(
            name="SASRec",
            epochs=min(s.epochs, -(-s.max_steps // steps)),
            rate=s.learning_rate,
            plan=self.plan,
            loss=lambda part: self.loss(self.inputs.learned.batch(part)),
            size=lambda part: int((part.stop - part.start).sum()),
            unit="events",
            describe=lambda part: f"{len(part.start)} sequences",
            remedy="a lower learning_rate takes smaller steps.",
            validate=lambda: self.validation(held),
            patience=s.patience,
            schedule=lambda done: 1.0,
        )

    def plan(self, rng: np.random.Generator | None) -> list[Windows]:
        """Return the batches of an epoch."""
        return list(self.windows.batches(self.settings.batch_tokens, rng))

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean gBCE over the targets of a batch.

        The negatives are drawn for each window and serve all its targets, each but those that are its own wanted item:
        one product of matrices, where negatives for each target would cost a row of the embedding for each score.
        """
        drawn = self.rng.integers(0, self.n, (len(batch.item), self.negatives))  # [b, k]
        item, target, negative = (tensor(x) for x in (batch.item, batch.target, drawn))
        states = self.network.states(item, tensor(batch.length))  # [b, t, d]
        own = target.unsqueeze(2) == negative.unsqueeze(1)  # [b, t, k]
        scores = self.network.logits(states, negative).masked_fill(own, float("-inf"))
        wanted = (states * self.network.items(target)).sum(-1)  # [b, t]
        beta = power(self.negatives, self.n - 1, self.settings.calibration)
        there = tensor(batch.there)
        return (gbce(wanted, scores, beta) * there).sum() / there.sum()

    def held_windows(self) -> Windows:
        """Return the windows with an event to predict that chooses the epoch."""
        known, held = self.inputs.known, self.inputs.held
        windows = known.windows(self.settings.history)
        before = np.concatenate([[0], np.cumsum(held)])  # how many stand before each place
        has = before[windows.stop + 1] > before[windows.start + 1] if len(windows.stop) else np.zeros(0, bool)
        return Windows(windows.start[has], windows.stop[has])

    def validation(self, windows: Windows) -> float:
        """Return the mean NDCG@10 of the held events among all items that were trained on; NaN without any."""
        self.network.eval()
        gains = [np.empty(0)]
        with torch.no_grad():
            for part in windows.batches(self.settings.batch_tokens):
                batch = self.inputs.known.batch(part)
                chosen = self.inputs.held[batch.place] & batch.there
                states = self.network.states(tensor(batch.item), tensor(batch.length))
                target = tensor(batch.target[chosen])
                gains.append(ndcg(states[tensor(chosen)], target, self.network.items.weight))
        gain = np.concatenate(gains)
        return float(gain.mean()) if len(gain) else float("nan")


def ndcg(states: Tensor, target: Tensor, items: Tensor) -> Any:
    """Return float64[n]: NDCG@10 of one wanted item among all, 1 / log2(1 + its place); ties share their places.

    states: [n, d]. target: int64[n]. items: [m, d].
    """
    gains = [np.empty(0)]
    size = max(SCORES // max(len(items), 1), 1)
    for some_states, wanted in zip(torch.split(states, size), torch.split(target, size), strict=True):
        scores = some_states @ items.T  # [n, m]
        own = (some_states * take(items, wanted)).sum(-1, keepdim=True)
        scores.scatter_(1, wanted.unsqueeze(1), own)  # the same sum, or rounding would set it before itself
        above, equal = (scores > own).sum(1), (scores == own).sum(1) - 1
        place = 1 + above.double() + equal.double() / 2
        gains.append(array(torch.where(place <= BEST, 1 / torch.log2(1 + place), 0.0)))
    return np.concatenate(gains)
