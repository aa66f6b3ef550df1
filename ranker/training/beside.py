"""Fits of plugins side by side, each in a process of its own: whoever wants one then finds its stage complete.

A fit of a small network cannot use a second core, and two in one process would share torch's random state.
"""

import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from features.errors import PairliftError
from features.machine import KIB, cores, memory_free
from features.plugin import plugin_class
from ranker.config import Config
from ranker.torchrun.place import place
from ranker.training.abreast import MOST
from ranker.training.plugins import plugin_is_fitted, plugin_stage, refit_stage
from ranker.training.prepared import Prepared, prepare

logger = logging.getLogger(__name__)

#: seconds of a fit from which on a process of its own, which loads the log again, is worth it
WORTH = 15.0
#: sets up a process as this one is, and runs what stdin has. A Ctrl-C is for all processes: this one ends the others
RUN = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import pickle, sys; "
    "sys.path[:] = pickle.load(sys.stdin.buffer); import ranker.training.beside as b; b.run()"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A fit of a plugin of the TOML."""

    config: Config
    name: str
    seed: int
    label: str = ""  # of `plugin_stage`
    cut: bool = False  # on the log cut at t1, as `refit_stage` has it

    @property
    def threads(self) -> int:
        """How many threads the fit takes: the plugin's option of that name, 1 where it has none."""
        settings = self.config.plugins[self.name]
        options = getattr(plugin_class(settings.path), "options", None)
        return int(getattr(options(**settings.params), "threads", 1)) if options else 1

    def fit(self, prepared: Prepared) -> None:
        """Run the stage."""
        if self.cut:
            refit_stage(prepared, self.name, self.seed)
        else:
            plugin_stage(prepared, self.name, self.seed, self.label)


def fit_beside(fits: Sequence[Wanted], seconds: float) -> None:
    """Run the stages of those fits that are not complete, as many at a time as cores, their threads and memory allow.

    seconds: what such a fit takes; where that is little, where there is one alone, and where the processes of a
    `torchrun` share each fit, nothing is done. Nor is anything raised: whoever wants a fit that failed here runs its
    stage, and meets the failure. The log's lines are of all processes, the progress bars of the first. No process
    outlives this one, however it ends.
    """
    missing = [fit for fit in fits if not plugin_is_fitted(fit.config, fit.name, fit.seed, fit.label, cut=fit.cut)]
    threads = max((fit.threads for fit in missing), default=1)
    lanes = min(MOST, cores() // threads, _in_memory(), len(missing))
    if seconds < WORTH or lanes < 2 or place()[1] > 1:
        return
    logger.info("%d fits of plugins, %d at a time; the progress bars are of one of them", len(missing), lanes)
    running = [_started(missing[lane::lanes], shown=lane == 0) for lane in range(lanes)]
    try:
        for process in running:
            process.wait()
    finally:
        for process in running:
            process.terminate()
            process.wait()
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()


def _in_memory() -> int:
    """Return how many further processes of this one's size there is memory for."""
    return memory_free() // (KIB * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _started(fits: Sequence[Wanted], shown: bool) -> "subprocess.Popen[bytes]":
    quiet = {} if shown else {"TQDM_DISABLE": "1"}
    process = subprocess.Popen([sys.executable, "-c", RUN], stdin=subprocess.PIPE, env={**os.environ, **quiet})
    assert process.stdin is not None
    level = logging.getLogger("ranker").getEffectiveLevel()
    with suppress(BrokenPipeError):  # it has failed: see `fit_beside`
        for sent in (sys.path, (level, list(fits))):
            process.stdin.write(pickle.dumps(sent))
        process.stdin.flush()  # and left open: it closes when this process ends
    return process


def run() -> None:
    """Run the fits that stdin has, in their order; what is one process of `fit_beside`."""
    level, fits = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a stage that is ended so removes what it has begun
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    for package in ("features", "neural", "ranker"):
        logging.getLogger(package).setLevel(level)
    last: tuple[Config, Prepared] | None = None
    code = 0
    try:
        for fit in fits:
            if last is None or last[0] != fit.config:
                last = fit.config, prepare(fit.config)
            fit.fit(last[1])
    except (PairliftError, SystemExit):  # told by whoever wants that fit; ended by SIGTERM
        code = 1
    sys.stderr.flush()
    os._exit(code)  # beside the thread that waits, libraries end with pages of what they leaked


def _end_with_parent() -> None:
    """Wait for the end of what started this process, also by `kill -9`, and end with it."""
    while os.read(sys.stdin.fileno(), 1):  # not by the buffer, whose lock would be held when this process ends
        pass
    os._exit(1)
