"""The towers to ONNX, with a check against torch that raises."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from features.errors import PairliftError
from neural.answers import Answers
from neural.histories import TokenSpec
from neural.model import Argus, QueryHead, Retrieval, Trunk, UserHead, part_count
from neural.parallel.device import on_cpu
from neural.runtime import (
    ANSWERS,
    ANSWERS_INPUTS,
    HEAD_INPUTS,
    ITEM_INPUTS,
    ITEM_TOWER,
    QUERY_HEAD,
    TRUNK,
    TRUNK_INPUTS,
    USER_HEAD,
)
from neural.vocabulary.entities import HASHES, Layout

#: has Attention as one operator, which ONNX Runtime fuses
OPSET = 23
#: the largest difference from torch that is let through, for vectors of about unit size
TOLERANCE = 1e-4


def export_towers(model: Argus, rows: int, spec: TokenSpec, folder: Path) -> None:
    """Write the user tower (trunk and head) and the item tower; PairliftError where they differ from torch.

    Dynamic are the number of histories and of items, and the tokens of a batch, up to the history's length.
    """
    model = on_cpu(model).eval()
    rng = np.random.default_rng(0)
    layout = Layout(model.item.slots, model.item.numbers.in_features)
    _export_trunk(Trunk(model.user).eval(), model.shape.width, spec, folder / TRUNK)
    _export_head(UserHead(model.user).eval(), model.shape.width, spec, folder / USER_HEAD)
    item_path = folder / ITEM_TOWER
    by_item = {0: torch.export.Dim("n")}
    export(model.item, random_item_batch(layout, rows, 5, rng), ITEM_INPUTS, (by_item,) * 3, item_path)
    check_parity(model.item, item_path, ITEM_INPUTS, [random_item_batch(layout, rows, k, rng) for k in (1, 64)])


def export_query_head(model: Argus, head: Retrieval, spec: TokenSpec, folder: Path) -> None:
    """Write the head that retrieves, over the trunk of `export_towers`; PairliftError where it differs from torch."""
    _export_head(QueryHead(on_cpu(head)).eval(), model.shape.width, spec, folder / QUERY_HEAD)


def export_answers(answers: Answers, width: int, folder: Path) -> None:
    """Write the heads of grade and feedback; PairliftError where they differ from torch.

    Dynamic are the number of requests and of all their candidates.
    """
    answers, rng = on_cpu(answers), np.random.default_rng(0)
    g, n = torch.export.Dim("g"), torch.export.Dim("n")
    dynamic, path = ({0: g}, {0: g}, {0: n}, {0: n}, {0: n}), folder / ANSWERS
    export(answers, random_answers_batch(width, 3, 7, rng), ANSWERS_INPUTS, dynamic, path)
    shapes = ((1, 1), (1, 40), (5, 2), (6, 30))
    check_parity(answers, path, ANSWERS_INPUTS, [random_answers_batch(width, *shape, rng) for shape in shapes])


def _export_trunk(module: nn.Module, width: int, spec: TokenSpec, path: Path) -> None:
    rng, b = np.random.default_rng(0), torch.export.Dim("b")
    # A history of one event leaves no range to a dynamic size.
    t = {1: torch.export.Dim("t", min=1, max=spec.length)} if spec.length > 1 else {}
    by_token, by_history = {0: b, **t}, {0: b}
    example = random_user_batch(spec, width, 3, example_length(spec), rng)
    export(module, example, TRUNK_INPUTS, (by_token,) * 4 + (by_history,) * 2, path)
    shapes = ((1, 1), (1, spec.length), (7, spec.length // 2 + 1), (2, 1))
    check_parity(module, path, TRUNK_INPUTS, [random_user_batch(spec, width, size, n, rng) for size, n in shapes])


def _export_head(module: nn.Module, width: int, spec: TokenSpec, path: Path) -> None:
    rng, b = np.random.default_rng(0), torch.export.Dim("b")
    export(module, random_head_batch(spec, width, 3, rng), HEAD_INPUTS, ({0: b}, {0: b}), path)
    check_parity(module, path, HEAD_INPUTS, [random_head_batch(spec, width, size, rng) for size in (1, 40)])


def export(
    module: nn.Module, example: tuple[Tensor, ...], names: tuple[str, ...], dynamic: tuple[object, ...], path: Path
) -> None:
    """Write a module with these inputs, of which `dynamic` names the dynamic sizes; its one output is `vector`."""
    with _quiet():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(names),
            output_names=["vector"],
            dynamic_shapes=dynamic,
            external_data=False,
            verbose=False,
        )
        if program is None:
            raise PairliftError(f"torch gave no ONNX program for {path.name}; torch {torch.__version__} does not suit")
        program.save(str(path), external_data=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporter prints about its passes, packages that we do not use, and names that it merges."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_parity(module: nn.Module, path: Path, names: tuple[str, ...], batches: list[tuple[Tensor, ...]]) -> None:
    """Raise PairliftError where ONNX Runtime's answers differ from torch's."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in batches:
        with torch.no_grad():
            expected = module(*batch).numpy()
        found = session.run(None, dict(zip(names, (x.numpy() for x in batch), strict=True)))[0]
        worst = float(np.abs(found - expected).max(initial=0.0))
        allowed = TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0.0)))
        if not worst <= allowed:  # NaN fails too
            raise PairliftError(
                f"{path.name}: ONNX Runtime differs from torch by {worst:.2e}, more than {allowed:.0e}, on a batch "
                f"of shape {tuple(batch[0].shape)}; it is not fit to serve: try another onnxruntime or torch"
            )


def example_length(spec: TokenSpec) -> int:
    """Return a history's length to trace a graph with: each of its parts has several states.

    Of one state torch would take a size to be 1 in every call.
    """
    return min(max(5, 2 * part_count(spec.length + 1)), spec.length)


def random_user_batch(spec: TokenSpec, width: int, b: int, t: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Return inputs of the trunk, as TRUNK_INPUTS, with every length from empty to full."""
    arrays = (
        rng.normal(size=(b, t, width)).astype(np.float32),  # item
        np.stack([rng.integers(0, size, (b, t)) for size in spec.code_sizes], axis=-1),  # codes
        rng.normal(size=(b, t, 2 * spec.n_signals)).astype(np.float32),  # signals
        rng.normal(size=(b, t, spec.n_signals)).astype(np.float32),  # surprise
        rng.normal(size=(b, width)).astype(np.float32),  # user
        np.linspace(t, 0, b).astype(np.int64),  # length
    )
    return tuple(torch.from_numpy(a) for a in arrays)


def random_head_batch(spec: TokenSpec, width: int, b: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Return inputs of a head, as HEAD_INPUTS, of every code."""
    state = rng.normal(size=(b, 2 * width)).astype(np.float32)
    return torch.from_numpy(state), random_context(spec, b)


def random_context(spec: TokenSpec, b: int) -> Tensor:
    """Return int64[b, c] codes of contexts, every one of them in turn."""
    return torch.from_numpy(np.stack([np.arange(b) % size for size in spec.context_sizes], axis=1))


def random_answers_batch(width: int, g: int, n: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Return inputs of the heads of grade and feedback, as ANSWERS_INPUTS."""
    sizes = ((g, 2 * width), (g, width), (n, width))
    state, user, items = (torch.from_numpy(rng.normal(size=size).astype(np.float32)) for size in sizes)
    known = rng.normal(size=n).astype(np.float32)
    return state, user, items, torch.from_numpy(rng.integers(0, g, n)), torch.from_numpy(known)


def random_item_batch(layout: Layout, rows: int, n: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Return inputs of the item tower, as ITEM_INPUTS."""
    slots = sum(layout.slots)
    arrays = (
        rng.integers(0, rows, (n, slots, HASHES)),  # slots
        rng.random((n, slots)).astype(np.float32),  # weight
        rng.normal(size=(n, layout.n_numbers)).astype(np.float32),  # numbers
    )
    return tuple(torch.from_numpy(a) for a in arrays)
