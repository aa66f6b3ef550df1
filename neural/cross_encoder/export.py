"""The cross-encoder to ONNX, with a check against torch that raises."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from neural.cross_encoder.model import CrossArgus, Scorer
from neural.cross_encoder.runtime import SCORER_INPUTS
from neural.export import check_parity, example_length, export, random_context, random_user_batch
from neural.histories import TokenSpec
from neural.model import Argus
from neural.parallel.device import on_cpu


def export_scorer(model: Argus, spec: TokenSpec, path: Path) -> None:
    """Write the network but for the item tower; PairliftError where ONNX Runtime differs from torch.

    Dynamic are the number of requests, of their candidates, and of the tokens, up to the history's length.
    """
    scorer, width, rng = Scorer(cast(CrossArgus, on_cpu(model))).eval(), model.shape.width, np.random.default_rng(0)
    b, q = torch.export.Dim("b"), torch.export.Dim("q")
    # A history of one event leaves no range to a dynamic size.
    t = {1: torch.export.Dim("t", min=1, max=spec.length)} if spec.length > 1 else {}
    by_token, by_request = {0: b, **t}, {0: b}
    dynamic = (by_token,) * 4 + (by_request,) * 2 + (by_token, by_request, {0: b, 1: q})
    export(scorer, random_batch(spec, width, 3, example_length(spec), 7, rng), SCORER_INPUTS, dynamic, path)
    shapes = ((1, 1, 1), (1, spec.length, 40), (7, spec.length // 2 + 1, 3), (2, 1, 9))
    check_parity(scorer, path, SCORER_INPUTS, [random_batch(spec, width, *shape, rng) for shape in shapes])


def random_batch(spec: TokenSpec, width: int, b: int, t: int, q: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Return inputs as SCORER_INPUTS, with every length from empty to full."""
    age, candidates = rng.exponential(4.0, (b, t)), rng.normal(size=(b, q, width))
    own = (torch.from_numpy(age).float(), random_context(spec, b), torch.from_numpy(candidates).float())
    return *random_user_batch(spec, width, b, t, rng), *own
