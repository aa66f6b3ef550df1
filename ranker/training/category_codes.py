"""A booster in other codes of its categories: the same trees over the same values.

A code is a place in a sorted vocabulary, so one new value shifts the codes of all values behind it.
"""

from collections.abc import Mapping, Sequence

import lightgbm as lgb
import numpy as np

from features.errors import PairliftError
from features.schema import I64, Catalog
from ranker.forest.text import move_categories


def vocabulary(catalog: Catalog, column: str) -> tuple[str, ...]:
    """Return the values behind the codes of a categorical column of `features.plain`."""
    if column == "surface":
        return catalog.surfaces
    sides = {
        "item": catalog.item_attributes,
        "user": catalog.user_attributes,
        "context": catalog.contexts,
        "candidate": catalog.candidates,
    }
    for side, attributes in sides.items():
        for attribute in attributes:
            if column in (f"{side}_{attribute.name}", f"{side}_{attribute.name}_main"):
                return attribute.values
    raise PairliftError(f"column '{column}': the catalogue has no such category")


def moved_codes(old: Sequence[str], new: Sequence[str]) -> I64:
    """Return int64[len(old)]: the new code of each old value, -1 where it is gone."""
    place = {value: code for code, value in enumerate(new)}
    return np.array([place.get(value, -1) for value in old], np.int64)


def recode(booster: lgb.Booster, moved: Mapping[str, I64]) -> lgb.Booster:
    """Return the booster with the codes of some categorical columns moved (see `moved_codes`).

    A value that it has not seen goes to the right of each split, as any unknown one does.
    """
    if not moved:
        return booster
    names = booster.feature_name()
    by_feature = {names.index(column): codes for column, codes in moved.items()}
    return lgb.Booster(model_str=move_categories(booster.model_to_string(num_iteration=-1), by_feature))
