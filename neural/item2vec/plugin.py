"""The plugin of item2vec: items that are wanted in one session are near."""

import json
import logging
from pathlib import Path
from typing import Any, Self

import numpy as np

from features.arrays import load_array
from features.plugin import FitData
from features.schema import F32, I64
from features.state.lag import Lag
from neural.item2vec.settings import Item2VecSettings
from neural.wanted import Runtime, WantedPlugin

log = logging.getLogger(__name__)

#: files of a fit
ABOUT, ITEMS = "item2vec.json", "item_vectors.npy"


class Item2Vec(WantedPlugin):
    """Item2vec (Barkan and Koenigstein, arXiv 1603.04259; Pin2Vec of Liu et al., arXiv 1702.07969), by gensim.

    A user's vector is the mean of the unit vectors of the latest wanted items, so the product is the mean cosine of a
    candidate to them. NaN for an item that no session of two wanted events has, and for a user of no such item.
    """

    options = Item2VecSettings

    def __init__(self, **params: Any) -> None:
        self.settings = Item2VecSettings(**params)

    def fit(self, data: FitData) -> None:
        """Learn from the wanted events (grade `FitData.wanted` or better; all, where none has it)."""
        from neural.item2vec.train import fit

        vectors, floor = fit(data, self.settings)
        log.info("item2vec: %s items have a vector", f"{(~np.isnan(vectors[:, 0])).sum():,}")
        self._open(vectors, floor)

    def _open(self, vectors: F32, floor: int) -> None:
        self._runtime = Runtime(mean, vectors, floor, self.settings.history, Lag(self.settings.lag))

    def save(self, folder: Path) -> None:
        """Write the items' vectors and the settings."""
        runtime = self.runtime
        about = {"settings": self.settings.model_dump(), "floor": runtime.floor}
        (folder / ABOUT).write_text(json.dumps(about, indent=1))
        np.save(folder / ITEMS, runtime.items)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        about = json.loads((folder / ABOUT).read_text())
        plugin = cls()
        plugin.settings = Item2VecSettings.model_construct(**about["settings"])  # durations are µs by now
        plugin._open(load_array(folder / ITEMS), about["floor"])
        return plugin


def mean(item: F32, length: I64) -> F32:
    """Return float32[b, d], the mean of the last length[b] of the vectors [b, t, d]: a `neural.wanted.Encode`."""
    t = item.shape[1]
    there = (np.arange(t) >= t - length[:, None])[..., None]  # [b, t, 1]
    total = np.where(there, item, 0).sum(axis=1, dtype=np.float64)
    return np.asarray(total / length[:, None], np.float32)
