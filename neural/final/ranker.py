"""The neural final ranker as `[network]` names it: trained with torch, served with ONNX Runtime and NumPy."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from features.arrays import load_arrays, save_arrays
from features.errors import PairliftError
from features.pairing.slice import Slice
from features.schema import F32, F64
from neural.final.inputs import INPUTS, Inputs
from neural.final.settings import NetworkRankerSettings
from neural.fitted import copy_files, new_folder
from neural.runtime import open_session

log = logging.getLogger(__name__)

#: version of what `save` writes
FORMAT = 1
#: files of a fit
GRAPH, READ, ABOUT = "ranker.onnx", "inputs", "network.json"
#: rows of one call: a request has one
CHUNK = 65_536


class NetworkRanker:
    """A network behind the FinalRanker Protocol; its options are `NetworkRankerSettings`.

    Cross layers and hidden layers (DCN-V2, Wang et al., arXiv 2008.13535) over all of the booster's columns, with the
    booster's pairs, weights and loss. `[booster]` margin, ndcg_at and monotone are not its own.
    """

    options = NetworkRankerSettings

    def __init__(self, **params: Any) -> None:
        self.settings = NetworkRankerSettings(**params)
        self.report: dict[str, Any] = {}
        self._inputs: Inputs | None = None
        self._session: Any = None
        self._folder: Path | None = None

    def fit(
        self, columns: Sequence[str], categorical: Sequence[str], train: Slice, validation: Slice, seed: int
    ) -> None:
        """Train, export, check against torch, and open what was exported: what is measured is what is served."""
        from neural.final.export import export_ranker
        from neural.final.train import fit

        inputs, folder = Inputs.of(columns, categorical, train.matrix), new_folder(self)
        networks, self.report = fit(train, validation, inputs, self.settings, seed)
        log.info("network of %s parameters to ONNX", f"{self.report['parameters']:,}")
        export_ranker(networks, inputs, folder / GRAPH)
        save_arrays(folder / READ, inputs)
        about = {"format": FORMAT, "settings": self.settings.model_dump(), "report": self.report}
        (folder / ABOUT).write_text(json.dumps(about, indent=1))
        self._open(folder)

    def score(self, matrix: F32) -> F64:
        """Return float64[n] of float32[n, c] rows."""
        if self._inputs is None:
            raise self._unfitted()
        scores = np.empty(len(matrix))
        for k in range(0, len(matrix), CHUNK):
            encoded = self._inputs.encode(matrix[k : k + CHUNK])
            scores[k : k + CHUNK] = self._session.run(None, dict(zip(INPUTS, encoded, strict=True)))[0]
        return scores

    @property
    def curve(self) -> list[dict[str, Any]]:
        """What the training reached: see `features.plugin.CurvePlugin`."""
        return list(self.report.get("curve", ()))

    def save(self, folder: Path) -> None:
        """Copy the fitted files into an empty folder: the graph, the arrays, JSON."""
        if self._folder is None:
            raise self._unfitted()
        copy_files(self._folder, folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote. The folder must stay for as long as the ranker may be saved again."""
        about = json.loads((folder / ABOUT).read_text())
        if about["format"] != FORMAT:
            raise PairliftError(
                f"{folder / ABOUT}: a network of format {FORMAT} was expected, found {about['format']}; train anew"
            )
        ranker = cls(**about["settings"])
        ranker.report = about["report"]
        ranker._open(folder)
        return ranker

    def _open(self, folder: Path) -> None:
        self._inputs, self._session = load_arrays(folder / READ, Inputs), open_session(folder / GRAPH)
        self._folder = folder

    def _unfitted(self) -> PairliftError:
        return PairliftError("NetworkRanker is not fitted: call fit() or load() first")
