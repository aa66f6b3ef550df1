"""The plugin of the towers: user and item vectors of a history transformer, and their scalar product."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.plugin import FitData
from features.schema import F32, Requests
from features.state.histories import Histories
from neural.fitted import FittedPlugin, new_folder
from neural.histories import Lag
from neural.runtime import ITEM_TOWER, Runtime, Vectors, encode_items, load_runtime, open_session
from neural.settings import TowerSettings

if TYPE_CHECKING:
    from neural.train import Trained  # which imports torch

log = logging.getLogger(__name__)

#: version of what `save` writes; in version 1, an item's expected signals were one mean of the whole fit period, and
#: before version 3 there was no head that retrieves, and before version 4 each head had a trunk of its own in its file
FORMAT = 4


class TwoTower(FittedPlugin[Runtime]):
    """ARGUS-like towers (`neural.model`) behind the FeaturePlugin Protocol; its options are `TowerSettings`.

    The product is trained as what is left over the items' mean grade, which the ranker's counters know. It is NaN
    for an item outside the catalogue, for an item of which neither an attribute is known nor an event that was trained
    on (one before the validation slice), and for a user of whom neither a visible event nor an attribute is known. A
    user with attributes and no history has a vector, for the attributes say something.

    What it retrieves by is a head of its own over the same trunk (`neural.retrieval`), which changes no column.
    """

    options = TowerSettings
    about, format = "two_tower.json", FORMAT
    wanted_format = f"towers of format {FORMAT} were"
    settings: TowerSettings

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.columns: tuple[str, ...] = _column_names(self.settings)

    _open = staticmethod(load_runtime)

    def fit(self, data: FitData) -> None:
        """Train, export, check against torch, and open what was exported: what is measured is what is served."""
        from neural.export import export_towers
        from neural.precision import to_int8
        from neural.train import fit, user_tokens

        trained, folder = fit(data, self.settings), new_folder(self)
        inputs = trained.inputs
        log.info("towers to ONNX, and the vectors of %s items", f"{inputs.spec.n_items:,}")
        export_towers(trained.model, inputs.rows, inputs.spec, folder)
        items = encode_items(open_session(folder / ITEM_TOWER), inputs.items)
        users, user_row = user_tokens(trained, self.settings.threads)
        keys, head = self._fit_head(trained, data, folder)
        curve = [*trained.report["curve"], *head["curve"]]
        self.report = trained.report | {"retrieval": head["epochs"], "curve": curve}
        known = inputs.items.known[:-1]
        vectors = Vectors(items=items, known_items=known, users=users, user_row=user_row, keys=keys)
        if self.settings.precision == "int8":
            lag = Lag(self.settings.lag, data.zone)
            self.report["int8"] = to_int8(trained, vectors, data, lag, folder)
        self._finish(trained, vectors, folder, data.zone)

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


def _column_names(settings: TowerSettings) -> tuple[str, ...]:
    names: list[str] = []
    for column in settings.columns:
        names += [column] if column == "dot" else [f"{column}_{k}" for k in range(settings.width)]
    return tuple(names)
