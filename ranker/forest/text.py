"""LightGBM's text format, version 4: the trees of a booster as arrays, its sets of categories, the order of leaves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from features.pace import breathe
from features.schema import F64, I64, Bool

#: LightGBM's kinds of missing values (bits 2 and 3 of a decision): none, zeros and NaN, NaN
NONE, ZERO, NAN = 0, 1, 2
#: codes of one word of a set of categories
CODES = 32
_TREE = "\nTree="
#: lines of what a leaf gives: a value, or of a linear tree a constant and a coefficient of each of its features
_GIVES = ("leaf_value", "leaf_const", "leaf_coeff")


class UnsupportedError(Exception):
    """A forest that the compiled scorer does not take; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """One tree of the text format."""

    feature: I64  # [nodes] which column a split compares
    threshold: F64  # [nodes] values up to it go left; of a category, the number of its set
    decision: I64  # [nodes] bits: see the properties
    left: I64  # [nodes] child, below 0 the leaf ~child
    right: I64  # [nodes]
    leaf: F64  # [leaves] value
    shrinkage: float  # what its leaves were multiplied by
    bounds: I64  # [sets + 1] first word of each set of categories
    bits: I64  # [words] of 32 categories each, the lowest first

    @property
    def categorical(self) -> Bool:
        """bool[nodes]: compares a category."""
        return np.asarray(self.decision & 1 > 0)

    @property
    def default_left(self) -> Bool:
        """bool[nodes]: missing values go left."""
        return np.asarray(self.decision & 2 > 0)

    @property
    def missing(self) -> I64:
        """int64[nodes]: NONE, ZERO or NAN."""
        return np.asarray(self.decision >> 2 & 3)

    def words(self, node: int) -> I64:
        """Return the set of a node that compares a category, 32 codes a word."""
        which = int(self.threshold[node])
        return self.bits[self.bounds[which] : self.bounds[which + 1]]

    def categories(self, node: int) -> I64:
        """Return the codes that go left at a node that compares a category, in order."""
        return np.flatnonzero(np.unpackbits(self.words(node).astype("<u4").view(np.uint8), bitorder="little"))


def parse(text: str) -> list[Tree]:
    """Read the trees of a booster's text. Raises UnsupportedError for what the scorer does not take."""
    header, *sections = text.split(_TREE)
    fields = dict(line.partition("=")[::2] for line in header.splitlines())
    if fields.get("num_class", "1") != "1" or fields.get("num_tree_per_iteration", "1") != "1":
        raise UnsupportedError("it has several classes")
    if "average_output" in header.split():
        raise UnsupportedError("it averages its trees (a random forest)")
    if any(_fields(section).get("is_linear", "0") != "0" for section in sections):
        raise UnsupportedError("it has linear trees")
    return [_tree(section) for section in sections]


def read_trees(text: str) -> list[Tree]:
    """Read the trees of any booster's text."""
    return [_tree(section) for section in text.split(_TREE)[1:]]


def move_categories(text: str, moved: Mapping[int, I64]) -> str:
    """Return a booster's text with other codes in the sets of some features: int64 new code of each old, -1 for none.

    A code that `moved` lacks leaves the set. Sets of other features stay as they are.
    """
    return _with_sections(text, lambda section: _moved(section, moved))


def change_leaves(text: str, change: Callable[[float], float]) -> str:
    """Return a booster's text with each number that its leaves give changed: those of linear trees too."""

    def changed(line: str) -> str:
        name, _, values = line.partition("=")
        return f"{name}={' '.join(repr(change(float(v))) for v in values.split())}" if name in _GIVES else line

    return _with_sections(text, lambda section: "\n".join(map(changed, section.split("\n"))))


def _with_sections(text: str, change: Callable[[str], str]) -> str:
    """Return a booster's text with the section of each tree changed."""
    header, *sections = text.split(_TREE)
    # Sizes in bytes, for a parallel parse; without them LightGBM reads on to the next tree.
    header = "\n".join(line for line in header.splitlines() if not line.startswith("tree_sizes="))
    return _TREE.join([header, *map(change, sections)])


def _fields(section: str) -> dict[str, str]:
    """Return what a tree's lines say by name."""
    return dict(line.partition("=")[::2] for line in section.partition("\n\n")[0].splitlines()[1:])


def _tree(section: str) -> Tree:
    breathe()
    fields = _fields(section)

    def array(name: str, kind: type) -> Any:
        return np.array(fields.get(name, "").split(), dtype=kind)

    return Tree(
        feature=array("split_feature", np.int64),
        threshold=array("threshold", np.float64),
        decision=array("decision_type", np.int64),
        left=array("left_child", np.int64),
        right=array("right_child", np.int64),
        leaf=array("leaf_value", np.float64),
        shrinkage=float(fields.get("shrinkage", "1")),
        bounds=array("cat_boundaries", np.int64),
        bits=array("cat_threshold", np.int64),
    )


def _moved(section: str, moved: Mapping[int, I64]) -> str:
    tree = _tree(section)
    if not tree.categorical.any():
        return section
    sets = [tree.bits[a:b] for a, b in pairwise(tree.bounds.tolist())]
    for node in np.flatnonzero(tree.categorical & np.isin(tree.feature, list(moved))).tolist():
        codes, old = moved[int(tree.feature[node])], tree.categories(node)
        new = codes[old[old < len(codes)]]
        sets[int(tree.threshold[node])] = _words(new[new >= 0])
    bounds = np.cumsum([0, *map(len, sets)])
    lines = {"cat_boundaries": bounds, "cat_threshold": np.concatenate(sets)}
    return "\n".join(_line(line, lines) for line in section.split("\n"))


def _line(line: str, values: Mapping[str, I64]) -> str:
    name = line.partition("=")[0]
    return f"{name}={' '.join(map(str, values[name].tolist()))}" if name in values else line


def _words(codes: I64) -> I64:
    """Return the set of some codes as words, at least one."""
    words = np.zeros(int(codes.max(initial=0)) // CODES + 1, np.int64)
    np.bitwise_or.at(words, codes // CODES, 1 << codes % CODES)
    return words


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
