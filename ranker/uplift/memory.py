"""The memory that a plugin adds to a process that serves, measured in a fresh process.

import what serves; call a kernel, so that numba is at work
before                                 resident bytes
load the plugin as a bundle does; answer requests, one after the other
after                                  resident bytes
"""

import ctypes
import gc
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from features.machine import KIB
from features.plugin import plugin_class
from features.rows import FeatureSpec
from features.schema import I32, Requests, offsets_of
from features.state.histories import COLUMNS, Histories
from ranker.columns import plugin_values

logger = logging.getLogger(__name__)

#: what serves a request, and then the measurement of what stdin has
RUN = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "import ranker.pipeline, ranker.uplift.memory as m; m.run()"
)
#: seconds that it may take on a busy machine: alone it takes three, and what the plugin's load takes
PATIENCE = 300
#: what the kernel knows of a process, to the page
ROLLUP = Path("/proc/self/smaps_rollup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A plugin, and what it is asked."""

    name: str
    path: str  # of its class, `module:Class`
    saved: Path  # what `save` wrote
    requests: Sequence[Requests]  # one each
    histories: Histories
    spec: FeatureSpec


def memory_of(asked: Asked) -> int | None:
    """Return the resident bytes that the plugin adds: loaded, and after the requests were answered.

    With them the libraries that it alone brings; without what a load needs for a moment only. None, and a warning,
    where that cannot be measured: the kernel does not say, or the process failed.
    """
    histories = _of_users(asked.histories, np.unique(np.array([one.user[0] for one in asked.requests], np.int32)))
    small = replace(asked, histories=histories, spec=replace(asked.spec, matching=None))
    command, sent = [sys.executable, "-c", RUN], pickle.dumps(sys.path) + pickle.dumps(small)
    try:
        done = subprocess.run(
            command,
            input=sent,
            capture_output=True,
            timeout=PATIENCE,
            check=True,
            env=os.environ | {"TQDM_DISABLE": "1"},
        )
        return int(done.stdout.split()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        told = (getattr(error, "stderr", None) or str(error).encode()).decode(errors="replace").strip()
        logger.warning("[plugins.%s]: its memory could not be measured: %s", asked.name, told.splitlines()[-1:])
        return None


def run() -> None:
    """Measure what stdin has, and print the bytes last; what is the process of `memory_of`."""
    asked: Asked = pickle.load(sys.stdin.buffer)
    asked.histories.before(np.zeros(1, np.int32), np.zeros(1, np.int64))
    before = _resident()
    plugin = plugin_class(asked.path).load(asked.saved)
    for one in asked.requests:
        plugin_values(asked.name, plugin, one, asked.histories, asked.spec)
    print(f"\n{max(_resident() - before, 0)}", flush=True)
    os._exit(0)  # whatever threads the plugin has left


def _resident() -> int:
    """Return the resident bytes of this process, without what was freed and is kept for later."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    lines = (line.split() for line in ROLLUP.read_text().splitlines())
    return KIB * next(int(words[1]) for words in lines if words[0] == "Rss:")


def _of_users(histories: Histories, users: I32) -> Histories:
    """Return the events of some users alone, under their numbers. users: int32[u], ascending; -1 is a cold one."""
    known = users[(users >= 0) & (users < len(histories.sizes))]
    sizes = np.zeros_like(histories.sizes)
    sizes[known] = histories.sizes[known]
    kept = [np.arange(begin, end) for begin, end in zip(histories.offsets[known], histories.ends[known], strict=True)]
    rows = np.concatenate([np.arange(0), *kept])
    return Histories(offsets_of(sizes), **{name: getattr(histories, name)[rows] for name in COLUMNS})
