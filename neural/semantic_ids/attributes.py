"""Semantic ids as attributes of items: what the towers embed beside ids and the user's own attributes."""

import numpy as np

from features.plugin import FitData
from features.schema import Attribute
from neural.semantic_ids.plugin import SemanticIds


def code_attributes(data: FitData, levels: int) -> tuple[Attribute, ...]:
    """Return the codes of each level as a category of all items, learned from the events of `data.log` alone.

    The options are the plugin's defaults. -1 for an item of which nothing is known.
    """
    ids = SemanticIds(levels=levels)
    ids.fit(data)
    values = tuple(map(str, range(ids.settings.codes)))
    codes = np.nan_to_num(ids.codes[:-1], nan=-1).astype(np.int32)  # [n_items, levels]
    names = (f"semantic_id_{level + 1}" for level in range(levels))
    return tuple(Attribute(name, "categorical", codes=codes[:, k], values=values) for k, name in enumerate(names))
