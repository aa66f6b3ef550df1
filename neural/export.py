"""Both towers to ONNX, with a check against torch that raises."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from features.errors import PairliftError
from neural.entities import HASHES, Layout
from neural.histories import TokenSpec
from neural.model import Argus

OPSET = 23
#: the largest difference from torch that is let through, for vectors of about unit size
TOLERANCE = 1e-4
USER_INPUTS = ("item", "codes", "feedback", "user", "length", "surface")
ITEM_INPUTS = ("slots", "weight", "numbers")


def random_user_batch(
    spec: TokenSpec, width: int, b: int, t: int, rng: np.random.Generator
) -> tuple[Tensor, ...]:
    """Return inputs of the user tower with every length from empty to full."""
    codes = np.stack([rng.integers(0, size, (b, t)) for size in spec.code_sizes], axis=-1)
    arrays = (
        rng.normal(size=(b, t, width)).astype(np.float32),
        codes,
        rng.normal(size=(b, t, spec.n_numbers)).astype(np.float32),
        rng.normal(size=(b, width)).astype(np.float32),
        np.linspace(0, t, b).astype(np.int64),
        rng.integers(0, spec.n_surfaces + 1, b),
    )
    return tuple(torch.from_numpy(a) for a in arrays)


def random_item_batch(layout: Layout, rows: int, n: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Return inputs of the item tower."""
    slots = sum(layout.slots)
    arrays = (
        rng.integers(0, rows, (n, slots, HASHES)),
        rng.random((n, slots)).astype(np.float32),
        rng.normal(size=(n, layout.n_numbers)).astype(np.float32),
    )
    return tuple(torch.from_numpy(a) for a in arrays)


def _export(module: nn.Module, example: tuple[Tensor, ...], names: tuple[str, ...],
            dynamic: tuple[dict[int, object], ...], path: Path) -> None:  # fmt: skip
    program = torch.onnx.export(
        module, example, dynamo=True, opset_version=OPSET, input_names=list(names), output_names=["vector"],
        dynamic_shapes=dynamic, external_data=False, verbose=False,
    )  # fmt: skip
    assert program is not None
    program.save(str(path), external_data=False)


def _check(module: nn.Module, path: Path, names: tuple[str, ...], batches: list[tuple[Tensor, ...]]) -> None:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in batches:
        with torch.no_grad():
            expected = module(*batch).numpy()
        found = session.run(None, dict(zip(names, (x.numpy() for x in batch), strict=True)))[0]
        worst = float(np.abs(found - expected).max(initial=0.0))
        allowed = TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0.0)))
        if not worst <= allowed:  # NaN fails too
            raise PairliftError(
                f"{path.name}: ONNX Runtime differs from torch by {worst:.2e}, more than {allowed:.0e}, on a batch of "
                f"shape {tuple(batch[0].shape)}; the towers are not fit to serve: try another onnxruntime or torch"
            )


def export_towers(model: Argus, rows: int, spec: TokenSpec, folder: Path) -> None:
    """Write `user_tower.onnx` and `item_tower.onnx` into the folder; PairliftError where they differ from torch.

    All of b, t and n are dynamic, t up to the history's length.
    """
    model.eval()
    rng = np.random.default_rng(0)
    width = model.next_key.in_features
    layout = Layout(model.item.slots, model.item.numbers.in_features)
    b, t, n = torch.export.Dim("b"), torch.export.Dim("t", min=1, max=spec.length), torch.export.Dim("n")
    by_token: dict[int, object] = {0: b, 1: t}
    by_history: dict[int, object] = {0: b}
    _export(model.user, random_user_batch(spec, width, 3, min(5, spec.length), rng), USER_INPUTS,
            (by_token, by_token, by_token, by_history, by_history, by_history), folder / "user_tower.onnx")  # fmt: skip
    _export(model.item, random_item_batch(layout, rows, 5, rng), ITEM_INPUTS, ({0: n}, {0: n}, {0: n}),
            folder / "item_tower.onnx")  # fmt: skip
    shapes = ((1, 1), (1, spec.length), (7, spec.length // 2 + 1), (2, 1))
    _check(model.user, folder / "user_tower.onnx", USER_INPUTS,
           [random_user_batch(spec, width, *shape, rng) for shape in shapes])  # fmt: skip
    _check(model.item, folder / "item_tower.onnx", ITEM_INPUTS,
           [random_item_batch(layout, rows, k, rng) for k in (1, 64)])  # fmt: skip
