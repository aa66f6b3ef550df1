"""The plugin of the cross-encoder: one column, the score of each candidate beside its request's history."""

import json
import logging
import shutil
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from features.arrays import save_arrays
from features.errors import PairliftError
from features.plugin import FitData
from features.schema import F32, I32, Requests
from features.state.histories import Histories
from neural.cross_encoder.runtime import SCORER, CrossRuntime, load_cross
from neural.cross_encoder.settings import CrossSettings
from neural.histories import Lag
from neural.runtime import EXPECTED, Vectors, save_spec

if TYPE_CHECKING:
    from neural.train import Trained  # which imports torch

log = logging.getLogger(__name__)

ABOUT = "cross_encoder.json"
#: version of what `save` writes
FORMAT = 1


class CrossEncoder:
    """Early fusion (`cross_encoder.model`) behind the FeaturePlugin Protocol; its options are `CrossSettings`.

    The score is trained as what is left over the items' mean grade, which the ranker's counters know. It is NaN where
    the product of the towers is: see `neural.two_tower.TwoTower`. There are no vectors to retrieve by: every candidate
    costs a look at the history.
    """

    options = CrossSettings
    columns: tuple[str, ...] = ("score",)

    def __init__(self, **params: Any) -> None:
        self.settings = CrossSettings(**params)
        self.zone = "UTC"
        self.report: dict[str, Any] = {}
        self._runtime: CrossRuntime | None = None
        self._folder: Path | None = None

    @property
    def runtime(self) -> CrossRuntime:
        """The fitted network; PairliftError before `fit` or `load`."""
        if self._runtime is None:
            raise PairliftError("CrossEncoder is not fitted: call fit() or load() first")
        return self._runtime

    def fit(self, data: FitData) -> None:
        """Train, export, check against torch, and open what was exported: what is measured is what is served."""
        from neural.cross_encoder.train import fit_cross

        trained = fit_cross(data, self.settings)
        self.zone, self.report = data.zone, trained.report
        self._folder = folder = Path(tempfile.mkdtemp(prefix="pairlift-cross-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._write(trained, folder)
        self._runtime = load_cross(folder, Lag(self.settings.lag, self.zone))

    def _write(self, trained: "Trained", folder: Path) -> None:
        """Write all that is served into a folder."""
        from neural.cross_encoder.export import export_scorer
        from neural.cross_encoder.train import served_items
        from neural.train import user_tokens

        inputs = trained.inputs
        log.info("cross-encoder to ONNX, and the vectors of %s items", f"{inputs.spec.n_items:,}")
        export_scorer(trained.model, inputs.spec, folder / SCORER)
        users, user_row = user_tokens(trained, self.settings.threads)
        no_keys = np.empty((inputs.spec.n_items, 0), np.float32)
        items = served_items(trained, self.settings.threads)
        known = inputs.items.known[:-1]
        Vectors(items=items, known_items=known, users=users, user_row=user_row, keys=no_keys).save(folder)
        save_arrays(folder / EXPECTED, inputs.expected)
        save_spec(folder, inputs.spec)
        about = {"format": FORMAT, "settings": self.settings.model_dump(), "zone": self.zone, "report": self.report}
        (folder / ABOUT).write_text(json.dumps(about, indent=1))

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]."""
        return self.runtime.scores(requests, histories)[:, None]

    @property
    def curve(self) -> list[dict[str, Any]]:
        """What the training reached: see `features.plugin.CurvePlugin`."""
        return list(self.report.get("curve", ()))

    def recoded(self, items: I32, users: I32) -> Self:
        """Return it for another catalogue: see `features.plugin.RecodedPlugin`."""
        folder = Path(tempfile.mkdtemp(prefix="pairlift-cross-"))
        self.save(folder)
        runtime = self.runtime
        runtime.vectors.recoded(items, users).save(folder)
        save_arrays(folder / EXPECTED, runtime.expected.recoded(items))
        save_spec(folder, replace(runtime.spec, n_items=len(items)))
        moved = type(self).load(folder)
        weakref.finalize(moved, shutil.rmtree, folder, ignore_errors=True)
        return moved

    def save(self, folder: Path) -> None:
        """Copy the fitted files into an empty folder: the ONNX network, the arrays, two JSON files."""
        if self._folder is None:
            raise PairliftError("CrossEncoder is not fitted: call fit() or load() first")
        shutil.copytree(self._folder, folder, dirs_exist_ok=True)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote. The folder must stay for as long as the plugin may be saved again."""
        about = json.loads((folder / ABOUT).read_text())
        if about.get("format") != FORMAT:
            raise PairliftError(
                f"{folder / ABOUT}: a cross-encoder of format {FORMAT} was expected, found {about.get('format')}; "
                "train anew"
            )
        plugin = cls(**about["settings"])
        plugin.zone, plugin.report = about["zone"], about["report"]
        plugin._folder = folder
        plugin._runtime = load_cross(folder, Lag(plugin.settings.lag, plugin.zone))
        return plugin
