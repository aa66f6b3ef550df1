"""The plugin of the towers: user and item vectors of a history transformer, and their scalar product."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np

from features.errors import PairliftError
from features.histories import Histories
from features.plugin import FitData
from features.schema import F32, Requests
from neural.runtime import Runtime, encode_items, load_runtime, open_session, save_arrays
from neural.settings import TowerSettings


class TwoTower:
    """ARGUS-like towers (`neural.model`) behind the FeaturePlugin Protocol; its options are `TowerSettings`.

    A value is NaN for an item that is not of the catalogue, for an item of which neither an event of the fit period nor an
    attribute is known, and for a user of whom neither a visible event nor an attribute is known. A user with known
    attributes and no history has a vector.
    """

    def __init__(self, **params: Any) -> None:
        self.settings = TowerSettings(**params)
        self.columns: tuple[str, ...] = _column_names(self.settings)
        self.report: dict[str, Any] = {}
        self._runtime: Runtime | None = None
        self._fitted: tempfile.TemporaryDirectory[str] | None = None  # kept, for it is removed with its object
        self._folder: Path | None = None

    @property
    def runtime(self) -> Runtime:
        """The fitted towers; PairliftError before `fit` or `load`."""
        if self._runtime is None:
            raise PairliftError("TwoTower is not fitted: call fit() or load() first")
        return self._runtime

    def fit(self, data: FitData) -> None:
        """Train, export to ONNX, check against torch, and open what was exported: what is measured is what is served."""
        from neural.export import export_towers
        from neural.train import fit

        trained = fit(data, self.settings)
        self._fitted = tempfile.TemporaryDirectory(prefix="pairlift-towers-")
        self._folder = folder = Path(self._fitted.name)
        export_towers(trained.model, trained.rows, trained.spec, folder)
        items = encode_items(open_session(folder / "item_tower.onnx"), trained.items)
        users, user_row = trained.user_tokens()
        arrays = {
            "items": items,
            "known_items": trained.items.known[:-1],
            "users": users,
            "user_row": user_row,
        }
        save_arrays(folder, trained.spec, arrays)
        self.report = trained.report
        (folder / "two_tower.json").write_text(
            json.dumps({"settings": self.settings.model_dump(), "report": self.report}, indent=1)
        )
        self._runtime = load_runtime(folder, self.settings.lag)

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, len(columns)] in the order of `columns`."""
        runtime = self.runtime
        users = runtime.user_vectors(requests, histories)
        parts = []
        for column in self.settings.columns:
            if column == "dot":
                parts.append(runtime.dot(requests, users)[:, None])
            elif column == "user_vector":
                parts.append(users[requests.row_request()])
            else:
                parts.append(runtime.candidate_vectors(requests.item))
        return np.concatenate(parts, axis=1)

    @property
    def item_vectors(self) -> F32:
        """float32[n_items, d]; a row of NaN is an item without a vector."""
        return self.runtime.item_vectors

    def user_vectors(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d]; a row of NaN is a user without a vector."""
        return self.runtime.user_vectors(requests, histories)

    def save(self, folder: Path) -> None:
        """Copy the fitted files into an empty folder: two ONNX towers, four arrays, two JSON files."""
        if self._folder is None:
            raise PairliftError("TwoTower is not fitted: call fit() or load() first")
        shutil.copytree(self._folder, folder, dirs_exist_ok=True)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        told = json.loads((folder / "two_tower.json").read_text())
        plugin = cls(**told["settings"])
        plugin.report = told["report"]
        plugin._folder = folder
        plugin._runtime = load_runtime(folder, plugin.settings.lag)
        return plugin


def _column_names(settings: TowerSettings) -> tuple[str, ...]:
    names: list[str] = []
    for column in settings.columns:
        names += [column] if column == "dot" else [f"{column}_{k}" for k in range(settings.width)]
    return tuple(names)
