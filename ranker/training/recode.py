"""A booster whose categories have other codes: the same trees over the same values.

Codes are places in a sorted vocabulary, so that one new value shifts all that stand behind it.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import lightgbm as lgb
import numpy as np

from features.errors import PairliftError
from features.schema import I64, Catalog

#: codes of one word of a bitset
WORD = 32
_SPLITS = ("split_feature", "decision_type", "threshold")


def vocabulary(catalog: Catalog, column: str) -> tuple[str, ...]:
    """Return the values behind the codes of a categorical column of `features.plain`."""
    if column == "surface":
        return catalog.surfaces
    sides = {"item": catalog.item_attributes, "user": catalog.user_attributes, "context": catalog.contexts}
    for side, attributes in sides.items():
        for attribute in attributes:
            if column in (f"{side}_{attribute.name}", f"{side}_{attribute.name}_main"):
                return attribute.values
    for said in catalog.contexts:
        if column == f"context_{said.name}":
            return said.values
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
    head, *trees = booster.model_to_string(num_iteration=-1).split("\nTree=")
    # Sizes in bytes, for a parallel parse; without them LightGBM reads on to the next tree.
    head = "\n".join(line for line in head.splitlines() if not line.startswith("tree_sizes="))
    return lgb.Booster(model_str="\nTree=".join([head, *(_tree(tree, by_feature) for tree in trees)]))


def _tree(text: str, moved: Mapping[int, I64]) -> str:
    lines = text.split("\n")
    told = {key: (n, value.split()) for n, line in enumerate(lines) for key, _, value in [line.partition("=")] if value}
    if told.get("num_cat", (0, ["0"]))[1] == ["0"]:
        return text
    bounds, words = (np.array(told[name][1], np.int64) for name in ("cat_boundaries", "cat_threshold"))
    sets = [words[a:b] for a, b in pairwise(bounds.tolist())]
    for feature, decision, threshold in zip(*(told[name][1] for name in _SPLITS), strict=True):
        if int(decision) & 1 and int(feature) in moved:
            which = int(float(threshold))
            sets[which] = _moved(sets[which], moved[int(feature)])
    ends = np.cumsum([0, *(len(s) for s in sets)])
    for name, values in (("cat_boundaries", ends), ("cat_threshold", np.concatenate(sets))):
        lines[told[name][0]] = f"{name}={' '.join(map(str, values.tolist()))}"
    return "\n".join(lines)


def _moved(words: I64, moved: I64) -> I64:
    """Return the bitset (32 bits a word) of the new codes of the old codes in a bitset."""
    inside = moved[[c for c in range(min(len(moved), WORD * len(words))) if words[c // WORD] >> c % WORD & 1]]
    out = np.zeros(max(int(inside.max(initial=0)) // WORD + 1, 1), np.int64)
    for code in inside[inside >= 0].tolist():
        out[code // WORD] |= 1 << code % WORD
    return out
