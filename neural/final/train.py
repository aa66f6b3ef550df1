"""The training: the booster's loss, Σ w · log(1 + e^-(s_winner - s_loser)), over its pairs, by batches of whole groups.

Each network is that of the epoch with the highest PairAccuracy on the slice that stops the booster too.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from features.pairing.pairs import right_weight
from features.pairing.slice import Slice
from features.schema import F32, I64
from neural.checkpoints import NOWHERE
from neural.engine import Engine, Phase, adamw
from neural.final.inputs import Inputs
from neural.final.model import Mean, Network
from neural.final.settings import NetworkRankerSettings
from neural.histories import ranges
from neural.parallel.device import array, moved, tensor
from neural.train import LARGEST_GRADIENT, SEED_STEP, repeatable, take

#: rows that are scored at a time in a validation
CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class Paired:
    """g groups that have pairs, with their rows and pairs side by side."""

    numbers: F32  # [n, a]
    codes: I64  # [n, k]
    row: I64  # [g, 2], first row of each group, and the one behind its last
    pair: I64  # [g, 2], likewise of its pairs
    winner: I64  # [p], row
    loser: I64  # [p], row
    weight: F32  # [p]

    @classmethod
    def of(cls, rows: Slice, inputs: Inputs) -> "Paired":
        """Read the rows and sort the pairs by group."""
        of_pair = rows.group[rows.pairs.winner]
        order = np.argsort(of_pair, kind="stable")
        group = np.unique(of_pair)
        row, pair = _bounds(rows.group, group), _bounds(of_pair[order], group)
        winner, loser = (x[order].astype(np.int64) for x in (rows.pairs.winner, rows.pairs.loser))
        return cls(*inputs.encode(rows.matrix), row, pair, winner, loser, rows.pairs.weight[order])

    def plan(self, most: int, rng: np.random.Generator | None = None) -> list[I64]:
        """Return batches of groups, int64 each, of about `most` rows; drawn anew where there is a generator."""
        order = np.arange(len(self.row)) if rng is None else rng.permutation(len(self.row))
        batch = np.cumsum(np.diff(self.row[order], axis=1)[:, 0]) // most
        return np.split(order, np.flatnonzero(np.diff(batch)) + 1)

    def pairs_of(self, chosen: I64) -> tuple[I64, Tensor, Tensor, Tensor]:
        """Return int64[m] rows of some groups; of their pairs the winner's and the loser's place in it; the weight."""
        start, stop = self.row[chosen].T
        place = np.cumsum(stop - start) - (stop - start)  # of each group's first row among the m
        pairs = ranges(*self.pair[chosen].T)
        shift = np.repeat(place - start, np.diff(self.pair[chosen], axis=1)[:, 0])
        found = (self.winner[pairs] + shift, self.loser[pairs] + shift, self.weight[pairs])
        winner, loser, weight = map(tensor, found)
        return ranges(start, stop), winner, loser, weight

    def scores(self, network: Network, rows: I64 | slice) -> Tensor:
        """Return [m] scores of some rows."""
        scores: Tensor = network(tensor(self.numbers[rows]), tensor(self.codes[rows]))
        return scores

    def accuracy(self, network: Network) -> float:
        """Return the weighted share of pairs that it orders right, ties one half."""
        network.eval()
        parts = (slice(k, k + CHUNK) for k in range(0, len(self.numbers), CHUNK))
        with torch.no_grad():
            score = np.concatenate([array(self.scores(network, part)) for part in parts])
        right = right_weight(score, self.winner, self.loser, self.weight)
        return right / float(self.weight.sum(dtype=np.float64))


def _bounds(sorted_groups: I64, group: I64) -> I64:
    """Return int64[g, 2]: where each group begins in a sorted array, and where it ends."""
    return np.stack([np.searchsorted(sorted_groups, group), np.searchsorted(sorted_groups, group, "right")], axis=1)


def fit(
    train: Slice, validation: Slice, inputs: Inputs, settings: NetworkRankerSettings, seed: int
) -> tuple[Mean, dict[str, Any]]:
    """Return the networks and what they reached. The same rows, settings (threads too) and seed give the same bits.

    Raises PairliftError where a loss is not finite.
    """
    learned, judged = Paired.of(train, inputs), Paired.of(validation, inputs)
    networks, epochs, curve = [], [], []
    for k in range(settings.networks):
        with repeatable(settings.threads, seed + SEED_STEP * k):
            network = moved(Network(inputs.n_numbers, len(inputs.code), inputs.n_slots, settings))
            rng = np.random.default_rng(seed + SEED_STEP * k)
            engine = Engine(network, adamw(network, settings.weight_decay), rng, NOWHERE, LARGEST_GRADIENT)
            engine.train([_phase(f"network {k + 1} of {settings.networks}", network, learned, judged, settings)])
        networks.append(network.eval())
        epochs += engine.progress
        curve += engine.curve
    mean = Mean(networks)
    size = sum(p.numel() for p in mean.parameters())
    return mean, {"epochs": epochs, "curve": curve, "parameters": size}


def _phase(name: str, network: Network, learned: Paired, judged: Paired, settings: NetworkRankerSettings) -> Phase:
    batches = len(learned.plan(settings.batch_rows))
    # One number for all batches, so that a pair weighs the same in each.
    whole = float(learned.weight.sum(dtype=np.float64)) / batches

    def loss(chosen: I64) -> Tensor:
        rows, winner, loser, weight = learned.pairs_of(chosen)
        score = learned.scores(network, rows).unsqueeze(1)
        behind = (take(score, loser) - take(score, winner)).squeeze(1)  # [p]
        return (weight * F.softplus(behind)).sum() / whole

    return Phase(
        name=name,
        epochs=settings.epochs,
        rate=settings.learning_rate,
        plan=lambda rng: learned.plan(settings.batch_rows, rng),
        loss=loss,
        size=lambda chosen: int(np.diff(learned.pair[chosen], axis=1).sum()),
        unit="pairs",
        describe=lambda chosen: f"{len(chosen)} groups",
        remedy="a lower [network] learning_rate takes smaller steps.",
        validate=lambda: judged.accuracy(network),
        patience=settings.patience,
    )
