"""The plugin of LiMAML: meta embeddings as user vectors, item vectors, and their scalar product."""

import logging

from features.arrays import save_arrays
from features.plugin import FitData
from features.schema import F32, Requests
from features.state.histories import Histories
from features.state.refreshed import Ahead, RefreshedStates
from neural.fitted import FittedPlugin, new_folder
from neural.limaml.runtime import META, MetaRuntime, load_meta
from neural.limaml.settings import LiMAMLSettings

log = logging.getLogger(__name__)

#: version of what `save` writes
FORMAT = 1


class LiMAML(FittedPlugin[MetaRuntime]):
    """LiMAML (Wang et al., arXiv 2403.00803) behind the FeaturePlugin Protocol; its options are `LiMAMLSettings`.

    Each user has a copy of a small network (the meta block), adapted by a few gradient steps to the grades that the
    user gave, as of the request; what it gives is the meta embedding, and its product with the item's vector the
    column. A new event changes the user's meta embedding at once, and nothing else is trained. With `lag = "daily"`
    meta embeddings are those of the last 00:00, as where a batch job writes them out.

    The product is trained as what is left over the items' mean grade, which the ranker's counters know. It is NaN where
    that of the towers is: see `neural.two_tower.TwoTower`. A user without a visible event has the meta embedding that
    all start from, of the user's attributes, if any is known.
    """

    options = LiMAMLSettings
    about, format = "limaml.json", FORMAT
    wanted_format = f"LiMAML of format {FORMAT} was"
    columns: tuple[str, ...] = ("dot",)
    settings: LiMAMLSettings

    _opened = staticmethod(load_meta)

    def fit(self, data: FitData) -> None:
        """Meta-train, and open what is served: what is measured is what is served."""
        from neural.limaml.train import fit, served_block, served_vectors

        trained, folder = fit(data, self.settings), new_folder(self)
        self.report = trained.report
        log.info("LiMAML: the vectors of %s items", f"{trained.inputs.spec.n_items:,}")
        save_arrays(folder / META, served_block(trained.model))
        self._finish(trained, served_vectors(trained, self.settings.threads), folder, data.zone)

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]: meta embedding · item vector."""
        return self.runtime.dot(requests, self.user_vectors(requests, histories))[:, None]

    @property
    def item_vectors(self) -> F32:
        """float32[n_items, d]; a row of NaN is an item without a vector."""
        return self.runtime.item_vectors

    def user_vectors(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d], the meta embeddings; a row of NaN is a user of whom nothing is known."""
        return self.runtime.embeddings(requests, histories)

    def refresh(self, ahead: Ahead) -> RefreshedStates:
        """Compute users' meta embeddings ahead: see `features.plugin.AheadPlugin`."""
        return self.runtime.refresh(ahead)
