"""The loop of a training: epochs of steps, the best of them kept; a killed run goes on where it was, to the same bits.

What a step draws comes from NumPy's generator of the fit and from torch's own; both are part of a checkpoint, beside
the weights, the optimizer's moments and the place in the plan. So are the losses of all steps, for the curve. Of
several processes (`neural.parallel`) the first one writes it, and all of them go on from it.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from features.errors import PairliftError
from features.progress import progress_bar
from features.schema import I64
from neural.checkpoints import Checkpoint
from neural.parallel.ranks import ALONE, Ranks

#: share of a phase's steps over which the rate rises to its peak
WARM_UP = 0.05
#: points of a phase's curve, about
POINTS = 100


def schedule(done: float) -> float:
    """Return the share of the peak rate: up over the first twentieth, then half a cosine down."""
    return min((done + 1e-3) / WARM_UP, 1.0) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One part of a training."""

    name: str  # in the report, on the progress bar and in errors
    epochs: int  # at most
    rate: float  # the peak of the learning rate
    plan: Callable[[np.random.Generator | None], list[Any]]  # the batches of an epoch; about those without a generator
    loss: Callable[[Any], Tensor]  # of a batch
    size: Callable[[Any], int]  # of a batch, in units of the progress bar
    unit: str  # of the progress bar
    describe: Callable[[Any], str]  # what is in a batch, for an error
    remedy: str  # what to do where its loss is not finite
    validate: Callable[
        [], float
    ]  # the figure of the validation slice; NaN where it has nothing: the last epoch is best
    higher_is_better: bool = True  # of that figure
    patience: int | None = None  # epochs without a better figure before it stops
    schedule: Callable[[float], float] = schedule  # share of the peak rate at a share of the steps


@dataclass(slots=True)
class Place:
    """How far a training has come."""

    phase: int = 0  # place in the phases
    epoch: int = 0  # of the phase
    step: int = 0  # batches of the epoch that are done
    not_better: int = 0  # epochs since the best one
    drawn_from: dict[str, Any] = field(default_factory=dict)  # the generator's state before the epoch's plan was drawn
    losses: list[float] = field(default_factory=list)  # of each step of the phase


class Engine:
    """Trains a model through its phases, each from the best epoch of those before it."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rng: np.random.Generator,
        checkpoint: Checkpoint,
        largest_gradient: float = math.inf,
        ranks: Ranks = ALONE,
    ) -> None:
        """ranks: that train it together; then a phase's loss is of this one's share, and its validation of all."""
        self.model, self.optimizer, self.rng, self.checkpoint = model, optimizer, rng, checkpoint
        self.ranks, self.loss_of = ranks, ranks.over(model)
        self.largest_gradient = largest_gradient  # norm that a step's gradient is cut to
        self.best, self.best_model = -math.inf, copy.deepcopy(model.state_dict())
        self.progress: list[dict[str, Any]] = []  # of each epoch: phase, number, loss, figure of the validation slice
        self.curve: list[dict[str, Any]] = []  # see `features.plugin.CurvePlugin`
        self.left: list[dict[str, Any]] = []  # the best model as each phase that is done left it

    def train(self, phases: Sequence[Phase]) -> None:
        """Train; the model is then that of the best epoch. PairliftError where a loss or a gradient is not finite."""
        at = self._restore()
        for number in range(at.phase, len(phases)):
            if number > at.phase:
                at = Place(phase=number)
            self._train(phases[number], at)
            self.curve += curve_of(phases[number].name, at.losses, self.progress)
            self.model.load_state_dict(self.best_model)
            self.left.append(self.best_model)

    def _train(self, phase: Phase, at: Place) -> None:
        """Train for the epochs of one phase, or until the validation slice stops improving."""
        likely = phase.plan(None)
        steps, size = phase.epochs * len(likely), sum(map(phase.size, likely))
        if not steps:
            return
        patience = phase.patience or phase.epochs
        with progress_bar(
            total=phase.epochs * size,
            initial=round(size * len(at.losses) / len(likely)),
            desc=phase.name,
            unit=f" {phase.unit}",
            unit_scale=True,
            mininterval=1,
            disable=self.ranks.number > 0,
        ) as bar:
            while at.epoch < phase.epochs and at.not_better < patience:
                bar.set_description(f"{phase.name}, epoch {at.epoch + 1} of {phase.epochs}", refresh=False)
                loss = self._epoch(phase, at, steps, bar)
                figure = phase.validate()
                bar.set_postfix(loss=f"{loss:.4f}", validation=f"{figure:.4f}", refresh=False)
                self._judge(phase, at, loss, figure)

    def _epoch(self, phase: Phase, at: Place, steps: int, bar: Any) -> float:
        """Go on through an epoch, one step for each of its batches; return the mean loss of all of them."""
        self.model.train()
        plan = self._plan(phase, at)
        for chosen in plan[at.step :]:
            rate = phase.rate * phase.schedule(len(at.losses) / steps)
            at.losses.append(self._step(phase, at, chosen, rate, len(plan)))
            at.step += 1
            bar.update(phase.size(chosen))
            if self.checkpoint.due():
                self._save(phase, at)
        return sum(at.losses[-len(plan) :]) / len(plan)

    def _plan(self, phase: Phase, at: Place) -> list[Any]:
        """Draw the batches of an epoch; of one that was begun, the same batches again."""
        if not at.step:
            at.drawn_from = self.rng.bit_generator.state  # type: ignore[assignment]
            return phase.plan(self.rng)
        now, self.rng.bit_generator.state = self.rng.bit_generator.state, at.drawn_from
        plan = phase.plan(self.rng)
        self.rng.bit_generator.state = now
        return plan

    def _step(self, phase: Phase, at: Place, chosen: Any, rate: float, of: int) -> float:
        """Go one step down the gradient; return the loss before it."""
        self.ranks.begin_step(at.phase, len(at.losses))
        loss = self.loss_of(phase.loss, chosen)
        value = self.ranks.total(loss.item() / self.ranks.of)[0]
        self._check("loss", value, phase, at, chosen, rate, of)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.largest_gradient)
        self._check("gradient's norm", norm.item(), phase, at, chosen, rate, of)
        self.optimizer.step()
        return value

    def _check(self, what: str, value: float, phase: Phase, at: Place, chosen: Any, rate: float, of: int) -> None:
        """Raise PairliftError where a value is not finite: no step is made with it."""
        if math.isfinite(value):
            return
        raise PairliftError(
            f"{phase.name}: a finite {what} was expected, found {value} in epoch {at.epoch + 1} of {phase.epochs}, "
            f"step {at.step + 1} of {of} (step {len(at.losses) + 1} of the phase), learning rate {rate:.2g}, in the "
            f"batch of {phase.describe(chosen)}. Last good checkpoint: {self.checkpoint}. The same data and settings "
            f"end here again: {phase.remedy}"
        )

    def _judge(self, phase: Phase, at: Place, loss: float, figure: float) -> None:
        """Close an epoch: note what it reached, and keep the model where it is the best one so far."""
        entry = {"phase": phase.name, "epoch": at.epoch, "step": len(at.losses), "loss": loss, "validation": figure}
        self.progress.append(entry)
        worth = figure if phase.higher_is_better else -figure
        better = worth > self.best or math.isnan(figure) or math.isnan(self.best)
        if better:
            self.best, self.best_model = worth, copy.deepcopy(self.model.state_dict())
        at.not_better = 0 if better else at.not_better + 1
        at.epoch, at.step = at.epoch + 1, 0

    def _save(self, phase: Phase, at: Place) -> None:
        """Write down all that the rest of the training depends on."""
        state = {
            "place": asdict(at),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.bit_generator.state,
            "torch": self.ranks.random_state,
            "best": self.best,
            "best_model": self.best_model,
            "left": self.left,
            "progress": self.progress,
            "curve": self.curve,
        }
        self.checkpoint.save(state, f"step {len(at.losses)} of {phase.name}")

    def _restore(self) -> Place:
        """Take up what was written down, if anything was; return how far that is."""
        saved = self.ranks.from_first(self.checkpoint.load())
        if saved is None:
            return Place()
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.rng.bit_generator.state = saved["rng"]
        self.ranks.random_state = saved["torch"]
        self.best, self.best_model, self.left = saved["best"], saved["best_model"], saved["left"]
        self.progress, self.curve = saved["progress"], saved["curve"]
        return Place(**saved["place"])


def adamw(model: nn.Module, decay: float) -> torch.optim.Optimizer:
    """Return AdamW; biases, norms and single numbers do not decay. The engine sets the rate of each step."""
    parts = [[p for p in model.parameters() if (p.ndim > 1) == is_matrix] for is_matrix in (True, False)]
    groups = [{"params": part, "weight_decay": each} for part, each in zip(parts, (decay, 0.0), strict=True)]
    return torch.optim.AdamW(groups, fused=True)


def in_batches(n: int, size: int, rng: np.random.Generator | None) -> list[I64]:
    """Return n rows by batch, each int64[size] but for the last; mixed with `rng`."""
    order = np.arange(n) if rng is None else rng.permutation(n)
    return [order[first : first + size] for first in range(0, n, size)]


def curve_of(phase: str, losses: Sequence[float], progress: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the points of a phase, by step: the mean loss of about a hundredth of its steps, or an epoch's figure."""
    width = max(len(losses) // POINTS, 1)
    points = [
        {"phase": phase, "step": first + len(part), "loss": sum(part) / len(part), "validation": None}
        for first in range(0, len(losses), width)
        if (part := losses[first : first + width])
    ]
    figures = [
        {"phase": phase, "step": epoch["step"], "loss": None, "validation": epoch["validation"]}
        for epoch in progress
        if epoch["phase"] == phase and math.isfinite(epoch["validation"])
    ]
    return sorted(points + figures, key=lambda point: point["step"])
