"""The training of the cross-encoder: as the towers', phase by phase, with its own score in place of their product.

Before the pairs, which are few, come all events: next item, grade (an ordinal loss of the score) and feedback.
"""

from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from features.plugin import FitData
from features.schema import F32, I64
from neural.batches import Batch
from neural.cross_encoder.model import CrossArgus
from neural.cross_encoder.runtime import log_hours
from neural.cross_encoder.settings import CrossSettings
from neural.model import Argus, Shape
from neural.retrieval import item_vectors
from neural.train import Encoded, Trained, Trainer, fit, repeatable, take


class Asked(NamedTuple):
    """n scores that are asked for, window by window."""

    window: I64  # [n], place in the batch, never decreasing
    state: I64  # [n], 0 .. t: the last one that may be looked at
    as_of: I64  # [n], µs


class CrossTrainer(Trainer):
    """Trains a `CrossArgus`."""

    def network(self, shape: Shape) -> Argus:
        """Return the network, drawn anew."""
        return CrossArgus(shape, cast(CrossSettings, self.settings).cross_layers)

    def event_products(self, batch: Batch, encoded: Encoded, users: Tensor, items: Tensor) -> Tensor:
        """Return [n]; users, items: [n, d]."""
        events = batch.events
        return self.products(batch, encoded, Asked(events.window, events.state, events.as_of), users, items)

    def group_products(self, batch: Batch, encoded: Encoded, users: Tensor, items: Tensor) -> Tensor:
        """Return [m]; users, items: [m, d]."""
        groups, at = batch.groups, batch.groups.group
        return self.products(batch, encoded, Asked(groups.window[at], groups.state[at], groups.as_of[at]), users, items)

    def products(self, batch: Batch, encoded: Encoded, asked: Asked, users: Tensor, items: Tensor) -> Tensor:
        """Return [n] scores, over what is known of the items; users, items: [n, d]."""
        model, tokens = cast(CrossArgus, self.model), batch.tokens
        b, s = encoded.states.shape[:2]
        place, flat = padded(asked.window, b)  # int64[b, q], int64[n]
        age = log_hours(asked.as_of[place][:, :, None], tokens.ts[:, None, :])  # [b, q, t]
        hidden = np.arange(s) > asked.state[place][:, :, None]  # [b, q, s]
        history = encoded.vectors_of(tokens.item)  # [b, t, d]
        memory = model.remember(encoded.states, history, *(torch.from_numpy(x) for x in (batch.surprise, age, hidden)))
        rows = torch.from_numpy(place)
        scores = model.cross(take(users, rows), take(items, rows), memory)  # [b, q]
        return take(scores.reshape(-1, 1), torch.from_numpy(flat)).squeeze(-1)


def padded(window: I64, b: int) -> tuple[I64, I64]:
    """Return int64[b, q] rows by window (row 0 where there are fewer) and int64[n] places of the rows in it, flat."""
    count = np.bincount(window, minlength=b)
    q = max(int(count.max(initial=0)), 1)
    flat = window * q + np.arange(len(window)) - (np.cumsum(count) - count)[window]
    place = np.zeros(b * q, np.int64)
    place[flat] = np.arange(len(window))
    return place.reshape(b, q), flat


def fit_cross(data: FitData, settings: CrossSettings) -> Trained:
    """Train the network; the same data, settings (threads too) and seed give the same bits on one machine."""
    return fit(data, settings, CrossTrainer)


def served_items(trained: Trained, threads: int) -> F32:
    """Return float32[n_items + 1, d] from the item tower, the unknown item's last."""
    with repeatable(threads, 0), torch.no_grad():
        return np.asarray(item_vectors(trained.model, trained.inputs).numpy(), np.float32)
