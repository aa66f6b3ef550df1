"""The networks to ONNX, with a check against torch that raises."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from neural.export import check_parity, export
from neural.final.inputs import INPUTS, Inputs
from neural.final.model import Mean
from neural.parallel.device import on_cpu


def export_ranker(mean: Mean, inputs: Inputs, path: Path) -> None:
    """Write the mean of the networks; PairliftError where ONNX Runtime differs from torch. Dynamic are the rows."""
    mean = on_cpu(mean).eval()
    rng, n = np.random.default_rng(0), torch.export.Dim("n")
    export(mean, random_batch(inputs, 5, rng), INPUTS, ({0: n}, {0: n}), path)
    check_parity(mean, path, INPUTS, [random_batch(inputs, rows, rng) for rows in (1, 2, 500)])


def random_batch(inputs: Inputs, n: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Return inputs as INPUTS."""
    numbers = rng.normal(size=(n, inputs.n_numbers)).astype(np.float32)
    codes = rng.integers(0, inputs.n_slots, (n, len(inputs.code)))
    return torch.from_numpy(numbers), torch.from_numpy(codes)
