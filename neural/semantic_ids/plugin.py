"""The plugin of semantic ids: of each item the codes of its levels, as categories."""

import json
import logging
from copy import copy
from pathlib import Path
from typing import Any, Self

import numpy as np

from features.arrays import load_array
from features.errors import PairliftError
from features.plugin import FitData
from features.schema import F32, I32, Requests
from features.state.histories import Histories
from neural.semantic_ids.settings import SemanticIdsSettings

log = logging.getLogger(__name__)

#: files of a fit
ABOUT, CODES = "semantic_ids.json", "codes.npy"


class SemanticIds:
    """Semantic ids (Singh et al., "Better Generalization with Semantic IDs", arXiv 2306.08121), by RQ-KMeans.

    The column code_L is the code of an item's level L, as a category: code_1 is coarse, and a later one says in which
    way the item differs from what the ones before it say. Items are quantised by how users took them up and by their
    attributes, those without events by attributes alone: so what was learned of like items holds for new ones. NaN for
    an item outside the catalogue or of which nothing is known.
    """

    options = SemanticIdsSettings
    blocks = False

    def __init__(self, **params: Any) -> None:
        self.settings = SemanticIdsSettings(**params)
        self.columns: tuple[str, ...] = tuple(f"code_{level + 1}" for level in range(self.settings.levels))
        self.categorical = self.columns
        self._codes: F32 | None = None  # [n_items + 1, levels], NaN unknown, the last row that of any other item

    @property
    def codes(self) -> F32:
        """float32[n_items + 1, levels]; PairliftError before `fit` or `load`."""
        if self._codes is None:
            raise PairliftError("SemanticIds is not fitted: call fit() or load() first")
        return self._codes

    def fit(self, data: FitData) -> None:
        """Quantise the items of the catalogue; what is learned is of items with events alone."""
        from neural.semantic_ids.quantise import fit_codebooks, quantised
        from neural.semantic_ids.vectors import item_vectors

        s = self.settings
        vectors, known, fitted = item_vectors(data, s)
        books = fit_codebooks(vectors[fitted], s.levels, s.codes, np.random.default_rng(data.seed))
        codes = np.full((len(known) + 1, s.levels), np.nan, np.float32)
        if books:
            codes[:-1][known] = quantised(vectors[known], books)
        self._codes = codes
        log.info("semantic ids: %s items have codes", f"{int(np.isfinite(codes[:, 0]).sum()):,}")

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, levels]."""
        codes = self.codes
        known = (requests.item >= 0) & (requests.item < len(codes) - 1)
        return codes[np.where(known, requests.item, len(codes) - 1)]

    def recoded(self, items: I32, users: I32) -> Self:
        """Return it for another catalogue: see `features.plugin.RecodedPlugin`."""
        moved = copy(self)
        moved._codes = self.codes[np.append(items, -1)]  # -1: the last row
        return moved

    def save(self, folder: Path) -> None:
        """Write the codes and the settings."""
        np.save(folder / CODES, self.codes)
        (folder / ABOUT).write_text(json.dumps({"settings": self.settings.model_dump()}, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        plugin = cls(**json.loads((folder / ABOUT).read_text())["settings"])
        plugin._codes = load_array(folder / CODES)
        return plugin
