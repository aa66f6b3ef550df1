"""The encoder to ONNX, with a check against torch that raises."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from neural.export import check_parity, export
from neural.parallel.device import on_cpu
from neural.sasrec.model import Encoder
from neural.sasrec.runtime import INPUTS


def export_encoder(encoder: Encoder, path: Path) -> None:
    """Write the encoder; PairliftError where ONNX Runtime's answers differ from torch's.

    Dynamic are the number of sequences, and their length up to the longest.
    """
    encoder = on_cpu(encoder).eval()
    most, rng = encoder.position.num_embeddings, np.random.default_rng(0)
    b = torch.export.Dim("b")
    # A sequence of one item leaves no range to a dynamic size.
    t = {1: torch.export.Dim("t", min=1, max=most)} if most > 1 else {}
    export(encoder, random_batch(encoder, 3, min(5, most), rng), INPUTS, ({0: b, **t}, {0: b}), path)
    shapes = ((1, 1), (1, most), (7, most // 2 + 1), (2, 1))
    check_parity(encoder, path, INPUTS, [random_batch(encoder, *shape, rng) for shape in shapes])


def random_batch(encoder: Encoder, b: int, t: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Return inputs of the encoder, as INPUTS, with every length from full to empty."""
    item = rng.normal(size=(b, t, encoder.position.embedding_dim)).astype(np.float32)
    return torch.from_numpy(item), torch.from_numpy(np.linspace(t, 0, b).astype(np.int64))
