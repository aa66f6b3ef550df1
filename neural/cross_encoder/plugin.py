"""The plugin of the cross-encoder: one column, the score of each candidate beside its request's history."""

import logging
from collections.abc import Sequence

import numpy as np

from features.plugin import FitData, LaterEvents
from features.schema import F32, Requests
from features.state.histories import Histories
from neural.cross_encoder.runtime import SCORER, CrossRuntime, load_cross
from neural.cross_encoder.settings import CrossSettings
from neural.fitted import FittedPlugin, new_folder
from neural.runtime import Vectors
from neural.vocabulary.context import check_context

log = logging.getLogger(__name__)

#: version of what `save` writes; in version 1, a surface was all of a request's context
FORMAT = 2


class CrossEncoder(FittedPlugin[CrossRuntime]):
    """Early fusion (`cross_encoder.model`) behind the FeaturePlugin Protocol; its options are `CrossSettings`.

    The score is trained as what is left over the items' mean grade, which the ranker's counters know. It is NaN where
    the product of the towers is: see `neural.two_tower.TwoTower`. There are no vectors to retrieve by: every candidate
    costs a look at the history.
    """

    options = CrossSettings
    parallel = True
    about, format = "cross_encoder.json", FORMAT
    wanted_format = f"a cross-encoder of format {FORMAT} was"
    columns: tuple[str, ...] = ("score",)
    settings: CrossSettings

    _opened = staticmethod(load_cross)

    def check(self, feedback: Sequence[str], contexts: Sequence[str]) -> None:
        """Raise PairliftError where `context` names what the log does not have."""
        check_context(self.settings.context, contexts)

    def fit(self, data: FitData) -> None:
        """Train, export, check against torch, and open what was exported: what is measured is what is served."""
        from neural.cross_encoder.export import export_scorer
        from neural.cross_encoder.train import fit_cross, served_items
        from neural.train import user_tokens

        trained = fit_cross(data, self.settings)
        if data.process:  # what follows is the first one's
            return
        folder = new_folder(self)
        inputs, self.report = trained.inputs, trained.report
        log.info("cross-encoder to ONNX, and the vectors of %s items", f"{inputs.spec.n_items:,}")
        export_scorer(trained.model, inputs.spec, folder / SCORER)
        users, user_row = user_tokens(trained, self.settings.threads)
        no_keys = np.empty((inputs.spec.n_items, 0), np.float32)
        items, known = served_items(trained, self.settings.threads), inputs.items.known[:-1]
        vectors = Vectors(items=items, known_items=known, users=users, user_row=user_row, keys=no_keys)
        self._finish(trained, vectors, folder, data.zone)

    def head_losses(self, data: FitData, later: LaterEvents) -> dict[str, float]:
        """Return what the heads of pre-training reach behind the fit: `features.plugin.HeadsPlugin`."""
        from neural.cross_encoder.train import CrossTrainer
        from neural.train import head_losses

        return head_losses(data, later, self.settings, CrossTrainer)

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]."""
        return self.runtime.scores(requests, histories)[:, None]
