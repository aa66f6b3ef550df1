"""The training of the cross-encoder: as the towers', phase by phase, with its own score in place of their product.

Before the pairs, which are few, come all events: next item, grade (an ordinal loss of the score) and feedback.
"""

from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from features.plugin import FitData
from features.schema import F32, I64
from neural.batches import Batch
from neural.cross_encoder.model import CrossArgus
from neural.cross_encoder.runtime import log_hours
from neural.cross_encoder.settings import CrossSettings
from neural.model import QUERIES, Argus, Shape
from neural.parallel.device import array, tensor
from neural.train import Encoded, Trained, Trainer, all_vectors, fit, repeatable, take


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
        """Return [n] scores, over what is known of the items; users, items: [n, d].

        Of a long history the backward pass looks at it anew for each part of what is asked: its weights for all that
        is asked are never held at once.
        """
        model, tokens = cast(CrossArgus, self.model), batch.tokens
        history, surprise = encoded.vectors_of(tokens.item), tensor(batch.surprise)
        seen = np.arange(encoded.states.shape[1])

        def look(place: I64) -> Tensor:
            """int64[b, q] rows of what is asked -> [b, q]."""
            age = log_hours(asked.as_of[place][:, :, None], tokens.ts[:, None, :])  # [b, q, t]
            hidden = seen > asked.state[place][:, :, None]  # [b, q, s]
            memory = model.remember(encoded.states, history, surprise, tensor(age), tensor(hidden))
            rows = tensor(place)
            scores: Tensor = model.cross(take(users, rows), take(items, rows), memory)
            return scores

        place, flat = padded(asked.window, len(batch.user))  # int64[b, q], int64[n]
        parts = [place[:, first : first + QUERIES] for first in range(0, place.shape[1], QUERIES)]
        if len(parts) == 1:
            scores = look(place)
        else:
            scores = torch.cat([checkpoint(look, part, use_reentrant=False) for part in parts], dim=1)
        return take(scores.reshape(-1, 1), tensor(flat)).squeeze(-1)


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
        return np.asarray(array(all_vectors(trained.model.item, trained.inputs.items)), np.float32)
