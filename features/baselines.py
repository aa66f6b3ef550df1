"""Two plugins to compare with: matrix factorisation of the `implicit` library, and a column of noise."""

import json
from copy import copy
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field

from features.dots import row_dots
from features.hashing import mix
from features.plugin import FitData
from features.schema import F32, I8, I32, Requests
from features.settings import Duration, Settings
from features.state.histories import Histories
from features.state.kept import KeptStates, key_of
from features.state.lag import Lag

#: item vectors that are multiplied at a time
GRAM_ROWS = 65_536


class ALSSettings(Settings):
    """Matrix factorisation of Hu, Koren, Volinsky (2008), as `implicit` has it."""

    factors: int = Field(default=64, ge=1, description="Numbers in a vector.")
    regularization: float = Field(default=0.05, gt=0, description="L2 penalty of the vectors.")
    iterations: int = Field(default=20, ge=1, description="Sweeps over users and items.")
    alpha: float = Field(
        default=5.0,
        gt=0,
        description="Confidence in an event is 1 + alpha · grade / best grade, by their ranks; an event without a "
        "grade, or of the worst of several, does not count.",
    )
    lag: Duration = Field(default=0, description="How much later than its ts an event is seen by the user's vector.")


class NoiseSettings(Settings):
    """A column of noise takes no options."""


class ALS:
    """Implicit-feedback ALS; a user is folded in from the history before `as_of - lag`, so a new user has a vector.

    Confidence of an event: 1 + alpha · grade / best grade (an event without a grade, or of the worst one, says
    nothing; in a log of one grade every event counts in full). Events of the same item add up. Values: the dot
    product, NaN for a cold item and for a user without such events.
    """

    columns: tuple[str, ...] = ("dot",)
    options = ALSSettings
    over_demand = False  # its product is high for what many want

    def __init__(self, **params: Any) -> None:
        self.settings = ALSSettings(**params)
        self.best_grade = 0
        self._take(np.empty((0, self.settings.factors), np.float32))

    def _take(self, item_vectors: F32) -> None:
        """Set float32[n_items, factors], and once for all requests what takes a pass over all items.

        gram: float32[factors, factors], the sum of v·vᵀ over the items with a vector, plus the regularisation.
        """
        factors = item_vectors.shape[1]
        gram = self.settings.regularization * np.eye(factors)
        for start in range(0, len(item_vectors), GRAM_ROWS):  # in parts: of all at once a whole copy would be made
            part = np.nan_to_num(item_vectors[start : start + GRAM_ROWS])
            gram += part.T @ part
        self.item_vectors, self.gram = item_vectors, gram.astype(np.float32)
        self.kept = KeptStates()

    def fit(self, data: FitData) -> None:
        """Factorise the users' graded events of the towers' period. The same data and seed give the same bits."""
        # Here and not above: a server reads ALS, and is installed without what fits it.
        from implicit.cpu.als import AlternatingLeastSquares
        from scipy.sparse import csr_matrix
        from threadpoolctl import threadpool_limits

        s = self.settings
        self.best_grade = int(data.log.grade.max(initial=0))
        confidence = self._confidence(data.log.grade)
        keep = confidence > 0
        shape = (data.catalog.n_users, data.catalog.n_items)
        matrix = csr_matrix((confidence[keep], (data.log.user[keep], data.log.item[keep])), shape=shape)
        with threadpool_limits(1, "blas"):  # as implicit asks for: its own threads are faster
            model = AlternatingLeastSquares(
                factors=s.factors, regularization=s.regularization, iterations=s.iterations, random_state=data.seed
            )
            model.fit(matrix, show_progress=False)
        seen = np.bincount(data.log.item[keep], minlength=data.catalog.n_items) > 0
        self._take(np.where(seen[:, None], model.item_factors, np.nan).astype(np.float32))

    def _confidence(self, grade: I8) -> F32:
        """Return float32[n]: c of the paper's equation 3, 0 for an event that says nothing."""
        if self.best_grade == 0:
            return np.where(grade >= 0, 1 + self.settings.alpha, 0).astype(np.float32)
        return np.where(grade > 0, 1 + self.settings.alpha * grade / self.best_grade, 0).astype(np.float32)

    def user_vectors(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, factors]: the least-squares vector of each visible history (paper, equation 4)."""
        start, stop = histories.before(requests.user, Lag(self.settings.lag).cut(requests.as_of))
        if len(requests) == 1:
            return self._one_vector(histories, int(requests.user[0]), int(start[0]), int(stop[0]))
        states, place = np.unique(np.stack([start, stop], 1), axis=0, return_inverse=True)
        vectors = [self._fold_in(histories, slice(int(a), int(b))) for a, b in states]
        return np.asarray(np.stack(vectors)[place.ravel()] if vectors else self.item_vectors[:0])

    def _one_vector(self, histories: Histories, user: int, start: int, stop: int) -> F32:
        """Return float32[1, factors] of a user's rows: the kept one, where there is one."""
        key = key_of(histories, user, start, stop)
        vector = self.kept.find(histories, key)
        if vector is None:
            vector = self._fold_in(histories, slice(start, stop))[None]
            self.kept.keep(histories, key, vector)
        return vector

    @property
    def item_keys(self) -> F32:
        """float32[n_items, factors]: the item vectors."""
        return self.item_vectors

    def queries(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, factors]: the user vectors."""
        return self.user_vectors(requests, histories)

    def _fold_in(self, histories: Histories, rows: slice) -> F32:
        """Return float32[factors], the vector of one history; NaN where none of its events says anything.

        It solves (YᵀY + λI + Σ (c_i - 1) · y_i y_iᵀ) x = Σ c_i · y_i over the history's items i: y_i is the item's
        vector, c_i the sum of its events' confidence, and YᵀY + λI, over all items, is `gram`.
        """
        confidence = self._confidence(histories.grade[rows])
        item = histories.item[rows]
        use = (confidence > 0) & (item < len(self.item_vectors))  # items behind these came after the fit
        use[use] = ~np.isnan(self.item_vectors[item[use], 0])
        if not use.any():
            return np.full(len(self.gram), np.nan, np.float32)
        items, place = np.unique(item[use], return_inverse=True)
        c = np.bincount(place, confidence[use]).astype(np.float32)
        vectors = self.item_vectors[items]
        left = self.gram + (vectors * (c - 1)[:, None]).T @ vectors
        return np.linalg.solve(left, vectors.T @ c).astype(np.float32)

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]: user vector · item vector."""
        users = self.user_vectors(requests, histories)
        return row_dots(self.item_vectors, requests.item, requests.offsets, users)[:, None]

    def recoded(self, items: I32, users: I32) -> Self:
        """Return it for another catalogue: see `features.plugin.RecodedPlugin`."""
        moved = copy(self)
        moved._take(np.where((items >= 0)[:, None], self.item_vectors[items], np.float32(np.nan)))
        return moved

    def save(self, folder: Path) -> None:
        """Write settings and item vectors."""
        about = {"settings": self.settings.model_dump(), "best_grade": self.best_grade}
        (folder / "als.json").write_text(json.dumps(about))
        np.save(folder / "item_vectors.npy", self.item_vectors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        about = json.loads((folder / "als.json").read_text())
        plugin = cls.__new__(cls)
        plugin.settings = ALSSettings.model_construct(**about["settings"])
        plugin.best_grade = about["best_grade"]
        plugin._take(np.load(folder / "item_vectors.npy"))
        return plugin


class Noise:
    """A column that knows nothing: a hash of (user, item, as_of) as a number in [0, 1). Its uplift must be none."""

    columns: tuple[str, ...] = ("noise",)
    options = NoiseSettings

    def __init__(self, **params: Any) -> None:
        NoiseSettings(**params)  # refuses any
        self.seed = 0

    def fit(self, data: FitData) -> None:
        """Take the seed."""
        self.seed = data.seed

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]."""
        owner = requests.row_request()
        mixed = requests.as_of[owner].astype(np.uint64) + np.uint64(self.seed)
        for part in (requests.user[owner], requests.item):
            mixed = mix(mixed ^ mix(part.astype(np.int64).astype(np.uint64)))
        return ((mixed >> np.uint64(40)).astype(np.float32) / np.float32(2**24))[:, None]

    def save(self, folder: Path) -> None:
        """Write the seed."""
        (folder / "noise.json").write_text(json.dumps({"seed": self.seed}))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the seed."""
        plugin = cls()
        plugin.seed = json.loads((folder / "noise.json").read_text())["seed"]
        return plugin
