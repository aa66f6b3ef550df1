"""One network trained by several processes: each reads a share of every batch, and all take the same step.

DistributedDataParallel takes the mean of the processes' gradients, bucket by bucket while the backward pass goes on (Li
et al., VLDB 2020, arXiv 2006.15704). That mean is the gradient of the whole batch's loss where each process gives the
sum over its share, over the total of the whole batch, times the number of processes: so the losses divide by `whole`
and take `mean`. What is drawn for a batch, all processes draw alike; dropout alone is each one's own. A training is
so that of one process within rounding, as far as nothing is dropped out.
"""

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from features.schema import I64
from neural.parallel.device import device, gpu_states, moved

T = TypeVar("T")


class _Now:
    """The loss that is being computed."""

    shares = 1  # of how many processes, of its batch


def whole(total: Tensor, least: float = 0.0) -> Tensor:
    """Return what a sum over a share of a batch is divided by for a mean: the whole batch's total, at least `least`.

    total: [...], of the share, without a gradient. Of several shares: their sum over the number of processes.
    """
    if _Now.shares == 1:
        return total.clamp(min=least)
    total = total.detach().clone()
    dist.all_reduce(total)
    return total.clamp(min=least) / _Now.shares


def mean(values: Tensor) -> Tensor:
    """Return what a share of a batch adds to the mean of the whole batch's values; of a whole batch, the mean."""
    if _Now.shares == 1:
        return values.mean()
    return values.sum() / whole(torch.tensor(values.numel(), device=values.device), 1.0)


class Ranks:
    """The processes that train one network together, as one of them sees them."""

    def __init__(self, number: int = 0, of: int = 1) -> None:
        """number: of this one, 0 to of - 1, as in `FitData.process`."""
        self.number, self.of = number, of
        self.drawn: torch.Generator | None = None  # of what all draw alike; None: torch's own
        self._seed = 0  # of the draws that are each one's own, with the numbers of step and process

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Meet the others, by the environment that `torchrun` sets: over gloo, tensors of GPUs over NCCL.

        They stay connected for the next fit. Where the block fails they are left at once, for they wait for this one.
        """
        if self.of == 1:
            yield
            return
        if not dist.is_initialized():
            dist.init_process_group(rank=self.number, world_size=self.of)
            atexit.register(_leave)
        try:
            yield
        except BaseException:
            _leave()
            raise

    def share(self, chosen: I64) -> I64:
        """Return this process's windows of a batch, int64[b]; of one with less windows than processes, all of them.

        All processes then compute the same, and the mean of that is it.
        """
        return chosen if self.of == 1 or len(chosen) < self.of else chosen[self.number :: self.of]

    def over(self, model: nn.Module) -> Callable[[Callable[[Any], Tensor], Any], Tensor]:
        """Return what computes a loss of a model for a batch, so that `backward` gives it the whole batch's gradient.

        From now on all processes draw alike what `drawn` is for, from where the first one's generator of torch is.
        """
        if self.of == 1:
            return lambda loss, chosen: loss(chosen)
        self.drawn = torch.Generator()
        self.drawn.set_state(self.from_first(torch.get_rng_state()))
        self._seed = torch.initial_seed()
        share = moved(_Share(model, self.of))
        return DistributedDataParallel(share, forward_sync_buffers=False, find_unused_parameters=True)

    def begin_step(self, *step: int) -> None:
        """Let dropout draw what only the numbers of step and process decide: so a killed run draws it again."""
        if self.of > 1:
            seed = np.random.SeedSequence([self._seed, *step, self.number]).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(seed >> np.uint64(1)))

    @property
    def random_state(self) -> tuple[Tensor, ...]:
        """The states of the generators that decide what comes, as the first process keeps them."""
        return (torch.get_rng_state(), *gpu_states()) if self.drawn is None else (self.drawn.get_state(),)

    @random_state.setter
    def random_state(self, states: tuple[Tensor, ...]) -> None:
        state, *of_gpu = states
        if self.drawn is not None:
            self.drawn.set_state(state)
            return
        torch.set_rng_state(state)
        if of_gpu and device().type == "cuda":
            torch.cuda.set_rng_state(of_gpu[0], device())

    def total(self, *values: float) -> tuple[float, ...]:
        """Return the sums of numbers over the processes, the same in all of them."""
        if self.of == 1:
            return values
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    def from_first(self, value: T) -> T:
        """Return what the first process has; the others' value is of no use."""
        if self.of == 1:
            return value
        held: list[Any] = [value]
        dist.broadcast_object_list(held, device=torch.device("cpu"))
        found: T = held[0]
        return found


#: of a training by one process
ALONE = Ranks()


class _Share(nn.Module):
    """A model's loss as DistributedDataParallel takes it: the forward pass of a module."""

    def __init__(self, model: nn.Module, of: int) -> None:
        super().__init__()
        self.model, self.of = model, of
        # A phase trains a part of the model, so what is unused is looked for; torch warns where that is nothing.
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, loss: Callable[[Any], Tensor], chosen: Any) -> Tensor:
        """Return what this process adds to the loss of the chosen batch, times the number of processes."""
        _Now.shares = self.of
        try:
            return loss(chosen)
        finally:
            _Now.shares = 1


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
