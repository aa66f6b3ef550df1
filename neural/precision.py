"""The trunk in int8: ONNX Runtime's dynamic quantisation of its products with weights, and what that changes.

Weights are rounded once, by the channel; activations at each call, by one scale for all that the call has. So a call
has one history alone (`neural.runtime`): else a user's vector would depend on whose are computed beside it.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from features.pairing.pairs import right_weight
from features.plugin import FitData
from features.schema import F32, F64, I64, Requests
from features.state.histories import Histories
from features.state.lag import Lag
from neural.runtime import INT8_TRUNK, TRUNK, USER_HEAD, Heads, Runtime, Vectors, open_session

if TYPE_CHECKING:
    from neural.train import Trained  # which imports torch

log = logging.getLogger(__name__)


def to_int8(trained: "Trained", vectors: Vectors, data: FitData, lag: Lag, folder: Path) -> dict[str, float]:
    """Put the trunk in int8 in the place of that in float32; return what that changes on the validation slice.

    pair_accuracy_float32 and pair_accuracy_int8: of the training score, NaN without pairs. value_change: root mean
    square of what the product moves by, in standard deviations of the product in float32.
    """
    slice_ = Slice.of(trained, data)
    before = slice_.products(_runtime(trained, vectors, lag, folder, TRUNK))
    quantize(folder / TRUNK, folder / INT8_TRUNK)
    (folder / TRUNK).unlink()
    after = slice_.products(_runtime(trained, vectors, lag, folder, INT8_TRUNK))
    known = ~np.isnan(before)
    spread = float(before[known].std()) if known.any() else 0.0
    moved = float(np.sqrt(np.mean((after - before)[known] ** 2))) / spread if spread else float("nan")
    found = {
        "pair_accuracy_float32": slice_.accuracy(before),
        "pair_accuracy_int8": slice_.accuracy(after),
        "value_change": moved,
    }
    log.info(
        "int8: PairAccuracy %.4f on the validation slice, float32 %.4f; products move by %.4f of their deviation",
        *(found["pair_accuracy_int8"], found["pair_accuracy_float32"], moved),
    )
    return found


def quantize(source: Path, target: Path) -> None:
    """Write a graph with its products with constant weights in int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it warns of each graph that was not prepared for static quantisation
    try:
        # Unsigned: products of signed weights overflow 16 bits on processors without VNNI.
        quantize_dynamic(
            source, target, op_types_to_quantize=["MatMul"], weight_type=QuantType.QUInt8, per_channel=True
        )
    finally:
        root.setLevel(level)


@dataclass(frozen=True, slots=True)
class Slice:
    """The groups of the validation slice, with their pairs and what is known of their items without the towers."""

    requests: Requests  # with n impressions
    histories: Histories  # of the fit's events
    known: F64  # [n], the part of the training score beside the product
    winner: I64  # [p], row of n
    loser: I64  # [p]
    weight: F32  # [p]

    @classmethod
    def of(cls, trained: "Trained", data: FitData) -> Self:
        """Return the slice of a fit."""
        groups, pairs, batches = data.groups, data.pairs, trained.inputs.batches
        inside = groups.validation[groups.requests.row_request()]  # [impressions]
        row, keep = np.cumsum(inside) - 1, inside[pairs.winner]
        return cls(
            requests=groups.select(groups.validation).requests,
            histories=batches.histories,
            known=trained.model.known.detach().item() * batches.impression_offset[inside].astype(np.float64),
            winner=row[pairs.winner[keep]],
            loser=row[pairs.loser[keep]],
            weight=pairs.weight[keep],
        )

    def products(self, runtime: Runtime) -> F64:
        """Return float64[n]: what the plugin's column `dot` would be."""
        users = runtime.user_vectors(self.requests, self.histories)
        return runtime.dot(self.requests, users).astype(np.float64)

    def accuracy(self, product: F64) -> float:
        """Return the PairAccuracy of the training score, ties one half; NaN without pairs."""
        score = np.nan_to_num(product) + self.known
        total = float(self.weight.sum(dtype=np.float64))
        return right_weight(score, self.winner, self.loser, self.weight) / total if total else float("nan")


def _runtime(trained: "Trained", vectors: Vectors, lag: Lag, folder: Path, trunk: str) -> Any:
    """Return a runtime of the user vectors alone."""
    heads = Heads(open_session(folder / USER_HEAD), None)
    inputs = trained.inputs
    return Runtime(
        open_session(folder / trunk), heads, inputs.spec, vectors, inputs.expected, lag, alone=trunk == INT8_TRUNK
    )
