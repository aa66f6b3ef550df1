"""The plugin of SASRec: user and item vectors of the next wanted item, and their scalar product."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np

from features.arrays import load_array
from features.plugin import FitData
from features.schema import F32
from features.state.lag import Lag
from neural.runtime import open_session
from neural.sasrec.runtime import ServedEncoder
from neural.sasrec.settings import SASRecSettings
from neural.wanted import Runtime, WantedPlugin

log = logging.getLogger(__name__)

#: files of a fit
ABOUT, ENCODER, ITEMS = "sasrec.json", "encoder.onnx", "item_vectors.npy"


class SASRec(WantedPlugin):
    """SASRec (arXiv 1808.09781) with gSASRec's loss (arXiv 2308.07192) behind the FeaturePlugin Protocol.

    It reads the ids and the order of a user's wanted events (grade `FitData.wanted` or better; all events, where none
    has it), and learns which one is next: no attribute, feedback, time or surface. The product is NaN for an item
    without a wanted event before the validation slice, and for a user without a visible one of such an item.
    """

    options = SASRecSettings

    def __init__(self, **params: Any) -> None:
        self.settings = SASRecSettings(**params)
        self.report: dict[str, Any] = {}
        self._encoder = b""  # the ONNX file

    def fit(self, data: FitData) -> None:
        """Train, export, check against torch, and open what was exported: what is measured is what is served."""
        from neural.sasrec.export import export_encoder
        from neural.sasrec.train import fit

        trained = fit(data, self.settings)
        log.info("SASRec to ONNX: %s items have a vector", f"{(~np.isnan(trained.items[:, 0])).sum():,}")
        with tempfile.TemporaryDirectory(prefix="pairlift-sasrec-") as folder:
            export_encoder(trained.encoder, Path(folder) / ENCODER)
            self._open(Path(folder), trained.items, trained.floor)
        self.report = trained.report

    @property
    def curve(self) -> list[dict[str, Any]]:
        """What each epoch reached: see `features.plugin.CurvePlugin`; validation is NDCG@10 of the next wanted item."""
        return list(self.report.get("curve", ()))

    def _open(self, folder: Path, items: F32, floor: int) -> None:
        path, s = folder / ENCODER, self.settings
        self._encoder = path.read_bytes()
        self._runtime = Runtime(ServedEncoder(open_session(path)), items, floor, s.history, Lag(s.lag))

    def save(self, folder: Path) -> None:
        """Write the encoder, the items' vectors and the settings."""
        runtime = self.runtime
        about = {"settings": self.settings.model_dump(), "floor": runtime.floor, "report": self.report}
        (folder / ABOUT).write_text(json.dumps(about, indent=1))
        (folder / ENCODER).write_bytes(self._encoder)
        np.save(folder / ITEMS, runtime.items)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        about = json.loads((folder / ABOUT).read_text())
        plugin = cls()
        plugin.settings = SASRecSettings.model_construct(**about["settings"])  # durations are µs by now
        plugin.report = about["report"]
        plugin._open(folder, load_array(folder / ITEMS), about["floor"])
        return plugin
