"""The ids of a bundle's users or items as requests and events name them, and the dense index of each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from features.ids import IdIndex
from features.newcomers import Newcomers
from features.schema import I32, I64, NO_NEWCOMERS, Ids, is_text
from ranker.request import RequestError


class IdTable:
    """The ids of the users or of the items of a bundle: one kind, and the dense index of each."""

    def __init__(self, ids: Ids) -> None:
        self.ids = ids
        self.text = is_text(ids)
        self._index = IdIndex.of(ids)

    @property
    def kind(self) -> str:
        """`text` or `integer`."""
        return "text" if self.text else "integer"

    def find(self, wanted: Sequence[Any] | I64, new: Newcomers = NO_NEWCOMERS) -> I32:
        """Return int32[n]: the index of each id, -1 where it is not known. new: those that the bundle does not know."""
        found = self._index.find(wanted)
        if new.count and (unknown := np.flatnonzero(found < 0)).size:
            number = new.find([wanted[k] for k in unknown.tolist()])
            found[unknown] = np.where(number < 0, -1, len(self.ids) + number)
        return found

    def refuse(self, place: str) -> RequestError:
        """Return the error of ids of the other kind."""
        found = "an integer" if self.text else "text"
        return RequestError(f"{place}: {self.kind} ids were expected, as this bundle has them; found {found}")
