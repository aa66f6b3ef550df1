"""The trees of an earlier bundle, ready to be boosted on or to be given new leaf values."""

from dataclasses import dataclass, replace
from typing import Literal

import lightgbm as lgb

from features.pairing.slice import Slice
from features.plugin import FeaturePlugin
from ranker.hashes import hash_arrays, hash_value
from ranker.matching.matching import Matches
from ranker.settings import BoosterSettings
from ranker.training.booster import fit_booster
from ranker.training.leaf_refit import refit_booster
from ranker.training.prepared import Prepared

#: `warm-start` boosts on from the old trees, `refit` keeps them and gives their leaves new values
Mode = Literal["warm-start", "refit"]


@dataclass(frozen=True, slots=True)
class Start:
    """An earlier bundle's trees and plugins, in the present log's codes of items, users and categories."""

    mode: Mode  # what becomes of the trees
    version: str  # of the bundle
    booster: lgb.Booster  # the earlier trees
    plugins: dict[str, FeaturePlugin]  # by name, as they were fitted
    matching: Matches | None  # likewise, of the columns of source items and queries; None where there are none
    decay: float  # the share of an old leaf value that a refit keeps

    @property
    def key(self) -> str:
        """A hash of all that a fit takes from it."""
        return hash_value([self.mode, self.booster.model_to_string(num_iteration=-1), self.decay])

    def rows_of(self, prepared: Prepared) -> Prepared:
        """Return the log with the columns of source items and queries as the trees know them."""
        if self.matching is None:
            return prepared
        taken = self.matching.taken
        counted = None if taken is None else hash_arrays({"neighbour": taken.neighbour, "score": taken.score})
        spec = replace(prepared.spec, matching=self.matching)
        return replace(prepared, spec=spec, key=hash_value([prepared.key, counted]))

    def fit(
        self,
        columns: list[str],
        categorical: list[str],
        train: Slice,
        validation: Slice,
        settings: BoosterSettings,
        seed: int,
        *,
        progress: str = "",
    ) -> lgb.Booster:
        """Return the new booster: see `fit_booster` and `refit_booster`."""
        if self.mode == "refit":
            return refit_booster(self.booster, train, validation, settings, self.decay)
        return fit_booster(
            columns, categorical, train, validation, settings, seed, start=self.booster, progress=progress
        )
