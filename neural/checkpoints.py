"""What a training keeps, so that a run that was killed goes on where it was: one file, replaced whole."""

import logging
import pickle
import time
from pathlib import Path
from typing import Any

import torch

from features.files import written

log = logging.getLogger(__name__)

#: seconds of training that a kill may cost
EVERY = 30.0
#: seconds of training for each second of writing, at least: a large model is written less often
REST = 20.0


class Checkpoint:
    """A file of one training's state, rewritten as it goes on; without a folder nothing is kept.

    Whose folder it is sees to it that the state is that of the same data, settings, seed and code (`FitData.scratch`).
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self.path = None if folder is None else folder / f"{name}.pt"
        self._next = time.monotonic() + EVERY
        self._step = ""  # where the state in the file stood

    def __str__(self) -> str:
        """Return where it is and of which step, for an error."""
        if self.path is None:
            return "none is kept, for the fit was given no folder for it"
        return f"{self.path}, {self._step}" if self._step else f"none yet, the first is written after {EVERY:.0f} s"

    def due(self) -> bool:
        """Return whether the state is to be saved now."""
        return self.path is not None and time.monotonic() >= self._next

    def save(self, state: dict[str, Any], step: str) -> None:
        """Replace the file. state: tensors, numbers, texts, lists and dicts of these. step: where it stands."""
        if self.path is None:
            return
        started = time.monotonic()
        with written(self.path) as partial:
            torch.save({**state, "stands": step}, partial)
        self._step, now = step, time.monotonic()
        self._next = now + max(EVERY, REST * (now - started))

    def load(self) -> dict[str, Any] | None:
        """Return what was saved last; None where nothing was, or nothing that can be read (the log says so)."""
        if self.path is None or not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            self._step = state["stands"]
        except (OSError, EOFError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
            log.warning("%s cannot be read (%s): training begins anew", self.path, type(error).__name__)
            return None
        log.info("training goes on from %s, %s", self.path, self._step)
        return state


#: of a training that is not kept
NOWHERE = Checkpoint(None, "")
