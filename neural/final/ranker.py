"""The neural final ranker as `[network]` names it: trained with torch, served with ONNX Runtime and NumPy."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import load_arrays, save_arrays
from features.pairing.slice import Slice
from features.schema import F32, F64
from neural.final.inputs import INPUTS, Inputs
from neural.final.settings import NetworkRankerSettings
from neural.fitted import FolderFit, new_folder
from neural.runtime import open_session

log = logging.getLogger(__name__)

#: version of what `save` writes
FORMAT = 1
#: files of a fit
GRAPH, READ = "ranker.onnx", "inputs"
#: rows of one call: a request has one
CHUNK = 65_536


class NetworkRanker(FolderFit):
    """A network behind the FinalRanker Protocol; its options are `NetworkRankerSettings`.

    Cross layers and hidden layers (DCN-V2, Wang et al., arXiv 2008.13535) over all of the booster's columns, with the
    booster's pairs, weights and loss. `[booster]` margin, ndcg_at and monotone are not its own.
    """

    options = NetworkRankerSettings
    about, format = "network.json", FORMAT
    wanted_format = f"a network of format {FORMAT} was"
    settings: NetworkRankerSettings

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._inputs: Inputs | None = None
        self._session: Any = None

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
        self._write(folder)

    def score(self, matrix: F32) -> F64:
        """Return float64[n] of float32[n, c] rows."""
        if self._inputs is None:
            raise self._unfitted()
        scores = np.empty(len(matrix))
        for k in range(0, len(matrix), CHUNK):
            encoded = self._inputs.encode(matrix[k : k + CHUNK])
            scores[k : k + CHUNK] = self._session.run(None, dict(zip(INPUTS, encoded, strict=True)))[0]
        return scores

    def _open(self, folder: Path, about: dict[str, Any]) -> None:
        self._inputs, self._session = load_arrays(folder / READ, Inputs), open_session(folder / GRAPH)
