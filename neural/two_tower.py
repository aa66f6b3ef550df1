"""The plugin of the towers: user and item vectors of a history transformer, and their scalar product."""

import json
import logging
import shutil
import tempfile
import weakref
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from features.arrays import save_arrays
from features.errors import PairliftError
from features.plugin import FitData
from features.schema import F32, I32, Requests
from features.state.histories import Histories
from neural.expected import ItemSignals
from neural.histories import Lag
from neural.runtime import (
    EXPECTED,
    ITEM_TOWER,
    QUERY_HEAD,
    SPEC,
    TRUNK,
    USER_HEAD,
    Runtime,
    Vectors,
    encode_items,
    load_runtime,
    open_session,
    save_spec,
)
from neural.settings import TowerSettings

if TYPE_CHECKING:
    from neural.train import Trained  # which imports torch

log = logging.getLogger(__name__)

ABOUT = "two_tower.json"
ARRAYS = tuple(f"{name}.npy" for name in Vectors.__slots__)
SIGNALS = tuple(f"{EXPECTED}/{name}" for name in ("fields.json", *(f"{f.name}.npy" for f in fields(ItemSignals))))
FILES = (ABOUT, SPEC, TRUNK, USER_HEAD, ITEM_TOWER, *ARRAYS, *SIGNALS)
#: version of what `save` writes; in version 1, an item's expected signals were one mean of the whole fit period, and
#: before version 3 there was no head that retrieves, and before version 4 each head had a trunk of its own in its file
FORMAT = 4


class TwoTower:
    """ARGUS-like towers (`neural.model`) behind the FeaturePlugin Protocol; its options are `TowerSettings`.

    The product is trained as what is left over the items' mean grade, which the ranker's counters know. It is NaN
    for an item outside the catalogue, for an item of which neither an attribute is known nor an event that was trained
    on (one before the validation slice), and for a user of whom neither a visible event nor an attribute is known. A
    user with attributes and no history has a vector, for the attributes say something.

    What it retrieves by is a head of its own over the same trunk (`neural.retrieval`), which changes no column.
    """

    options = TowerSettings

    def __init__(self, **params: Any) -> None:
        self.settings = TowerSettings(**params)
        self.columns: tuple[str, ...] = _column_names(self.settings)
        self.zone = "UTC"
        self.report: dict[str, Any] = {}
        self._runtime: Runtime | None = None
        self._folder: Path | None = None

    @property
    def runtime(self) -> Runtime:
        """The fitted towers; PairliftError before `fit` or `load`."""
        if self._runtime is None:
            raise PairliftError("TwoTower is not fitted: call fit() or load() first")
        return self._runtime

    def fit(self, data: FitData) -> None:
        """Train, export, check against torch, and open what was exported: what is measured is what is served."""
        from neural.export import export_towers
        from neural.train import fit, user_tokens

        trained = fit(data, self.settings)
        inputs, self.zone = trained.inputs, data.zone
        self._folder = folder = Path(tempfile.mkdtemp(prefix="pairlift-towers-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        log.info("towers to ONNX, and the vectors of %s items", f"{inputs.spec.n_items:,}")
        export_towers(trained.model, inputs.rows, inputs.spec, folder)
        items = encode_items(open_session(folder / ITEM_TOWER), inputs.items)
        users, user_row = user_tokens(trained, self.settings.threads)
        keys, head = self._fit_head(trained, data, folder)
        known = inputs.items.known[:-1]
        Vectors(items=items, known_items=known, users=users, user_row=user_row, keys=keys).save(folder)
        save_arrays(folder / EXPECTED, inputs.expected)
        save_spec(folder, inputs.spec)
        curve = [*trained.report["curve"], *head["curve"]]
        self.report = trained.report | {"retrieval": head["epochs"], "curve": curve}
        about = {"format": FORMAT, "settings": self.settings.model_dump(), "zone": self.zone, "report": self.report}
        (folder / ABOUT).write_text(json.dumps(about, indent=1))
        self._runtime = load_runtime(folder, Lag(self.settings.lag, self.zone))

    def _fit_head(self, trained: "Trained", data: FitData, folder: Path) -> tuple[F32, dict[str, Any]]:
        """Train the head that retrieves and export it; return the items' keys, and its report."""
        from neural.export import export_query_head
        from neural.retrieval import fit_head, item_keys

        fitted = fit_head(trained, self.settings, data.seed, data.scratch)
        if fitted is None:
            return np.empty((trained.inputs.spec.n_items, 0), np.float32), {"epochs": [], "curve": []}
        head, report = fitted
        log.info("query head to ONNX, and the keys of the items")
        export_query_head(trained.model, head, trained.inputs.spec, folder)
        return item_keys(trained, head, self.settings.threads), report

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
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    @property
    def curve(self) -> list[dict[str, Any]]:
        """What the training reached: see `features.plugin.CurvePlugin`."""
        return list(self.report.get("curve", ()))

    @property
    def item_vectors(self) -> F32:
        """float32[n_items, d]; a row of NaN is an item without a vector."""
        return self.runtime.item_vectors

    def user_vectors(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d]; a row of NaN is a user without a vector."""
        return self.runtime.user_vectors(requests, histories)

    @property
    def over_demand(self) -> bool:
        """Whether there is a head that retrieves: its product is what is left over the logarithm of demand."""
        return self.runtime.heads.query is not None

    @property
    def item_keys(self) -> F32:
        """float32[n_items, d]; a row of NaN is an item of which nothing is known. Without a head, the item vectors."""
        return self.runtime.vectors.keys if self.over_demand else self.item_vectors

    def queries(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d]; a row of NaN is a user without a query. Without a head, the user vectors."""
        runtime = self.runtime
        return (runtime.queries if self.over_demand else runtime.user_vectors)(requests, histories)

    def recoded(self, items: I32, users: I32) -> Self:
        """Return it for another catalogue: see `features.plugin.RecodedPlugin`."""
        folder = Path(tempfile.mkdtemp(prefix="pairlift-towers-"))
        self.save(folder)
        self.runtime.vectors.recoded(items, users).save(folder)
        save_arrays(folder / EXPECTED, self.runtime.expected.recoded(items))
        save_spec(folder, replace(self.runtime.spec, n_items=len(items)))
        moved = type(self).load(folder)
        weakref.finalize(moved, shutil.rmtree, folder, ignore_errors=True)
        return moved

    def save(self, folder: Path) -> None:
        """Copy the fitted files into an empty folder: the ONNX towers, the arrays, two JSON files."""
        if self._folder is None:
            raise PairliftError("TwoTower is not fitted: call fit() or load() first")
        (folder / EXPECTED).mkdir()
        for name in (*FILES, QUERY_HEAD) if self.over_demand else FILES:
            shutil.copyfile(self._folder / name, folder / name)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote. The folder must stay for as long as the plugin may be saved again."""
        about = json.loads((folder / ABOUT).read_text())
        if about.get("format") != FORMAT:
            raise PairliftError(
                f"{folder / ABOUT}: towers of format {FORMAT} were expected, found {about.get('format', 1)}; train anew"
            )
        plugin = cls(**about["settings"])
        plugin.zone, plugin.report = about["zone"], about["report"]
        plugin._folder = folder
        plugin._runtime = load_runtime(folder, Lag(plugin.settings.lag, plugin.zone))
        return plugin


def _column_names(settings: TowerSettings) -> tuple[str, ...]:
    names: list[str] = []
    for column in settings.columns:
        names += [column] if column == "dot" else [f"{column}_{k}" for k in range(settings.width)]
    return tuple(names)
