"""Peak memory of one training step of a history of so many events, in a process of its own: the whole process's.

Run as `python neural_memory.py LENGTH`; prints one line of JSON.
"""

import json
import resource
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from neural_world import fit_data

from neural.checkpoints import NOWHERE
from neural.data import TowerData
from neural.settings import TowerSettings
from neural.train import Trainer, repeatable

GIB = 2**20  # of ru_maxrss, which counts KiB


def main(length: int) -> None:
    """Take two steps of pre-training and two of fine-tuning over one user of so many events."""
    settings = TowerSettings(history=length, threads=1)
    with repeatable(1, 0):
        data = fit_data(np.array([length]), 10_000, np.arange(1, length + 1)[None, :: max(length // 64, 1)])
        trainer = Trainer(TowerData.build(data, settings), settings, 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = {"length": length, "before_gib": before / GIB}
        for phase in trainer.phases():
            (chosen,) = phase.plan(None)
            assert (len(chosen), phase.size(chosen)) == (1, length)
            trainer.engine(NOWHERE).train([replace(phase, epochs=2, validate=lambda: float("nan"))])
        found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
