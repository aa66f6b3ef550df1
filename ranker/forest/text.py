"""LightGBM's text format as arrays: the trees of a booster, and the order of their leaves."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from features.schema import F64, I64


class UnsupportedError(Exception):
    """A forest that the compiled scorer does not take; the text says why."""


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree of the text format: node arrays, children (< 0: leaf ~child), leaf values, bitsets of categories."""

    feature: I64
    threshold: F64
    decision: I64
    left: I64
    right: I64
    leaf: F64
    bounds: I64
    bits: I64


def parse(text: str) -> list[Tree]:
    """Read the trees of LightGBM's text format, version 4. Raises UnsupportedError as `Scorer.compile`."""
    header, *sections = text.split("\nTree=")
    told = dict(line.partition("=")[::2] for line in header.splitlines())
    if told.get("num_class", "1") != "1" or told.get("num_tree_per_iteration", "1") != "1":
        raise UnsupportedError("it has several classes")
    if "average_output" in header.split():
        raise UnsupportedError("it averages its trees (a random forest)")
    return [_tree(section.partition("\n\n")[0]) for section in sections]


def _tree(section: str) -> Tree:
    told = dict(line.partition("=")[::2] for line in section.splitlines()[1:])
    if told.get("is_linear", "0") != "0":
        raise UnsupportedError("it has linear trees")

    def array(name: str, kind: type) -> Any:
        return np.array(told.get(name, "").split(), dtype=kind)

    return Tree(
        array("split_feature", np.int64),
        array("threshold", np.float64),
        array("decision_type", np.int64),
        array("left_child", np.int64),
        array("right_child", np.int64),
        array("leaf_value", np.float64),
        array("cat_boundaries", np.int64),
        array("cat_threshold", np.int64),
    )


def left_leaves(tree: Tree) -> tuple[I64, I64, I64]:
    """Return first and end of the leaves of each node's left subtree, left to right, and each leaf's place."""
    n = len(tree.feature)
    first, end = np.zeros(n, np.int64), np.zeros(n, np.int64)
    place = np.zeros(len(tree.leaf), np.int64)
    count = 0
    stack = [(0, False)] if n else []
    while stack:
        node, left_done = stack.pop()
        if node < 0:
            place[~node] = count
            count += 1
        elif left_done:
            end[node] = count
            stack.append((int(tree.right[node]), False))
        else:
            first[node] = count
            stack += [(node, True), (int(tree.left[node]), False)]
    return first, end, place
