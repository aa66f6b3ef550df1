"""Where networks are trained: on a GPU where torch finds one, else on the CPU.

A network is drawn on the CPU, so it begins alike everywhere, and moved; what a batch needs is moved as it is read. What
leaves a fit (ONNX, vectors, weights) comes back to the CPU.
"""

import copy
import logging
import os
from functools import cache
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)


@cache
def device() -> torch.device:
    """Return where this process trains; the log says it once.

    Of the processes of a `torchrun` on this machine each has a GPU of its own (by LOCAL_RANK), or none has one: NCCL
    takes no two of them on one GPU.
    """
    found, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if found < here:
        why = f"{here} processes have {found} GPUs, and each would need its own" if found else "torch finds no GPU"
        log.info("networks are trained on the CPU: %s", why)
        return torch.device("cpu")
    # Without a workspace of its own, which it reads before its first call, cuBLAS does not repeat its sums.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    gpu = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(gpu)
    log.info("networks are trained on the GPU %s (%s)", gpu, torch.cuda.get_device_name(gpu))
    return gpu


def tensor(values: NDArray[Any]) -> Tensor:
    """Return an array as a tensor where training is; on the CPU they share their memory."""
    return torch.from_numpy(values).to(device())


def array(values: Tensor) -> Any:
    """Return a tensor as an array, without its gradient; of one on the CPU they share their memory."""
    return values.detach().cpu().numpy()


def moved(network: M) -> M:
    """Move a network to where training is, and return it; before its optimizer is made."""
    return network.to(device())


def on_cpu(network: M) -> M:
    """Return a network to be exported: itself where it is on the CPU, else a copy there."""
    return copy.deepcopy(network).cpu() if device().type == "cuda" else network


def gpu_states() -> tuple[Tensor, ...]:
    """Return the state of the GPU's random generator, on the CPU; nothing where training is on the CPU."""
    at = device()
    return (torch.cuda.get_rng_state(at),) if at.type == "cuda" else ()
