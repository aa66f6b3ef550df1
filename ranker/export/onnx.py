"""A booster as an ONNX graph: the operator TreeEnsemble of ai.onnx.ml 5, in float64, so that nothing is rounded.

Input `features`: float32[n, columns], in the order of the part's columns, NaN where missing. Output `score`:
float64[n], LightGBM's raw score, of the wanted part with `ranker.columns.demand` added; sums may differ in the last
bits, for the runtime adds trees in an order of its own.
"""

import json
from collections.abc import Callable
from pathlib import Path

import lightgbm as lgb
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from features.errors import PairliftError
from features.files import written
from features.schema import F32, F64, Bool
from ranker.bundle import BOOSTER, NETWORK, WANTED, config_of, verify_bundle
from ranker.columns import DEMAND, demand
from ranker.forest.bitvectors import TINY
from ranker.forest.scorer import Scorer, probe_rows
from ranker.forest.text import NAN, ZERO, Tree, UnsupportedError, parse

LEQ, MEMBER = 0, 6  # modes of a split: not above a value, or in a set
#: as ONNX Runtime 1.20 and later read them
OPSET, ML_OPSET = 18, 5
#: scores may differ by so much of the largest one of the trees, or of themselves: sums are made in another order
TOLERANCE = 1e-12
#: rows of the proof
PROBE = 4096


class _Ensemble:
    """Collects the arrays of one TreeEnsemble."""

    def __init__(self) -> None:
        self.roots: list[int] = []  # [trees] first node
        self.feature: list[int] = []  # [nodes] column that is compared
        self.mode: list[int] = []  # [nodes] LEQ or MEMBER
        self.split: list[float] = []  # [nodes] threshold
        self.missing_left: list[int] = []  # [nodes] 1: NaN goes left
        self.children: dict[bool, list[tuple[int, int]]] = {True: [], False: []}  # [nodes] by side: (id, 1 of a leaf)
        self.members: list[float] = []  # sets of categories, in the order of their nodes, each ended by NaN
        self.leaf: list[float] = []  # [leaves] value

    def add(self, tree: Tree) -> None:
        """Append a tree; one of a single leaf becomes a split whose sides are that leaf."""
        node, leaf = len(self.feature), len(self.leaf)
        self.roots.append(node)
        self.leaf += tree.leaf.tolist()
        if not len(tree.feature):
            self._split(0, LEQ, 0.0, False, (leaf, 1), (leaf, 1))
        categorical, missing_left = tree.categorical.tolist(), _missing_left(tree).tolist()
        for k in range(len(tree.feature)):
            sides = [(leaf + ~int(c), 1) if c < 0 else (node + int(c), 0) for c in (tree.left[k], tree.right[k])]
            if categorical[k]:
                self.members += [*map(float, tree.categories(k).tolist()), float("nan")]
                self._split(int(tree.feature[k]), MEMBER, 0.0, False, *sides)
            else:
                self._split(int(tree.feature[k]), LEQ, float(tree.threshold[k]), missing_left[k], *sides)

    def _split(
        self, feature: int, mode: int, value: float, missing_left: bool, left: tuple[int, int], right: tuple[int, int]
    ) -> None:
        self.feature.append(feature)
        self.mode.append(mode)
        self.split.append(value)
        self.missing_left.append(int(missing_left))
        self.children[True].append(left)
        self.children[False].append(right)

    def node(self) -> onnx.NodeProto:
        """Return the operator, from `numbers` to `sums`."""
        sides: dict[str, list[int]] = {}
        for side, name in ((True, "true"), (False, "false")):
            ids, leaves = zip(*self.children[side], strict=True)
            sides |= {f"nodes_{name}nodeids": list(ids), f"nodes_{name}leafs": list(leaves)}
        tensors = {
            "nodes_modes": np.array(self.mode, np.uint8),
            "nodes_splits": np.array(self.split),
            "leaf_weights": np.array(self.leaf),
        }
        if self.members:
            tensors["membership_values"] = np.array(self.members)
        return helper.make_node(
            "TreeEnsemble", ["numbers"], ["sums"], domain="ai.onnx.ml", n_targets=1, aggregate_function=1,
            post_transform=0, tree_roots=self.roots, nodes_featureids=self.feature,
            nodes_missing_value_tracks_true=self.missing_left, leaf_targetids=[0] * len(self.leaf),
            **sides, **{name: numpy_helper.from_array(values) for name, values in tensors.items()},
        )  # fmt: skip


def _missing_left(tree: Tree) -> Bool:
    """Return bool[nodes]: NaN goes left, by the default side, or where LightGBM knows no missing values, as a zero."""
    return np.where(np.isin(tree.missing, (ZERO, NAN)), tree.default_left, tree.threshold >= 0)


def make_onnx(booster: lgb.Booster, added: int | None = None) -> onnx.ModelProto:
    """Return the graph of a booster. Raises PairliftError for what it cannot say (linear trees, several classes).

    added: a column that is added to the score, 0 where it is not finite.
    """
    ensemble = _Ensemble()
    try:
        trees = parse(booster.model_to_string(num_iteration=-1))
    except UnsupportedError as error:
        raise PairliftError(f"this booster has no ONNX form: {error}") from error
    for tree in trees:
        ensemble.add(tree)
    zeros = _features(trees, lambda tree: ~tree.categorical & (tree.missing == ZERO))
    categorical = _features(trees, lambda tree: tree.categorical)
    width = booster.num_feature()
    constants, nodes = _clean(width, zeros, categorical)
    constants.append(numpy_helper.from_array(np.array([1]), "last"))
    nodes += [ensemble.node(), helper.make_node("Squeeze", ["sums", "last"], ["score" if added is None else "trees"])]
    if added is not None:
        constants += [
            numpy_helper.from_array(np.array(value), name) for name, value in (("added", added), ("nought", 0.0))
        ]
        nodes += _plus()
    graph = helper.make_graph(
        nodes,
        "forest",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("score", TensorProto.DOUBLE, ["n"])],
        constants,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="pairlift")


def _features(trees: list[Tree], which: Callable[[Tree], Bool]) -> set[int]:
    """Return the features of the splits of a mask bool[nodes]."""
    return {feature for tree in trees for feature in tree.feature[which(tree)].tolist()}


def _clean(width: int, zeros: set[int], categorical: set[int]) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    """Return constants and nodes from `features` to `numbers`, as LightGBM reads a row.

    In float64; what is almost 0 is 0, or missing where the forest was fitted so; a category is cut to an integer.
    """
    column = np.arange(width)
    constants = {
        "almost_zero": np.array(np.float64(TINY)),
        "zero": np.where(np.isin(column, list(zeros)), np.nan, 0.0)[None, :],
        "is_category": np.isin(column, list(categorical))[None, :],
    }
    nodes = [
        helper.make_node("Cast", ["features"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Abs", ["wide"], ["size"]),
        helper.make_node("LessOrEqual", ["size", "almost_zero"], ["is_zero"]),
        helper.make_node("Where", ["is_zero", "zero", "wide"], ["number"]),
        helper.make_node("Floor", ["size"], ["whole"]),
        helper.make_node("Sign", ["wide"], ["sign"]),
        helper.make_node("Mul", ["whole", "sign"], ["category"]),
        helper.make_node("Where", ["is_category", "category", "number"], ["numbers"]),
    ]
    return [numpy_helper.from_array(value, name) for name, value in constants.items()], nodes


def _plus() -> list[onnx.NodeProto]:
    """Return the nodes from `trees` to `score`: they add the column `added` of `features`, 0 where it is not finite."""
    return [
        helper.make_node("Gather", ["wide", "added"], ["start"], axis=1),
        helper.make_node("Sub", ["start", "start"], ["odd"]),  # NaN of NaN and of infinities
        helper.make_node("IsNaN", ["odd"], ["none"]),
        helper.make_node("Where", ["none", "nought", "start"], ["known"]),
        helper.make_node("Add", ["trees", "known"], ["score"]),
    ]


def export_forest(bundle: Path, out: Path, part: str = "liked") -> int:
    """Write a part of a bundle, proved equal on rows at its thresholds; return the number of its trees.

    part: `liked` or `wanted`. The file's metadata has the part, its columns in their order, the categorical ones among
    them, and the bundle's version. Raises PairliftError for a part that the bundle lacks.
    """
    manifest = verify_bundle(bundle)
    path = bundle / {"liked": BOOSTER, "wanted": WANTED}[part]
    if not path.exists():
        raise PairliftError(f"{bundle} has no part {part}: {path.name} is not there; train it again, or take another")
    if part == "liked" and config_of(bundle).ranker.model == "network":
        raise PairliftError(f"{bundle}: a network orders Rank, no forest does; its own files are in {bundle / NETWORK}")
    booster = lgb.Booster(model_file=str(path))
    columns = booster.feature_name()
    model = make_onnx(booster, columns.index(DEMAND) if part == "wanted" and DEMAND in columns else None)
    # In a bundle from before plugins could have any, all categories are of its spec.
    names = {"columns": columns, "categorical": manifest.get("categorical", manifest["spec"]["categorical"])}
    plain = {"bundle": manifest["version"], "part": part}
    helper.set_model_props(model, {k: json.dumps(v) for k, v in names.items()} | plain)
    content = model.SerializeToString()
    rows = probe_rows(Scorer.compile(booster), PROBE)
    want = np.asarray(booster.predict(rows, raw_score=True))
    size = np.full(len(rows), max(np.abs(want).max(initial=0), 1))
    if part == "wanted":
        want += demand(rows, columns)
    gap = np.abs(run_onnx(content, rows) - want)
    if not (gap <= TOLERANCE * np.maximum(size, np.abs(want))).all():  # NaN fails too
        raise PairliftError(f"{out}: not written: ONNX Runtime gives other scores than LightGBM; please report this")
    with written(out) as partial:
        partial.write_bytes(content)
    return int(booster.num_trees())


def run_onnx(content: bytes, rows: F32) -> F64:
    """Return float64[n] scores of ONNX Runtime on the CPU."""
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["score"], {"features": rows})[0])
