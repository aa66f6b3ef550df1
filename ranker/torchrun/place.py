"""Which process of a `torchrun` this one is. Of the standard library alone: every command asks it."""

import os
import time

#: seconds that the first process has to say what is wrong before another says it
GRACE = 10.0


def place() -> tuple[int, int]:
    """Return which process of a `torchrun` this one is, from 0, and how many there are; (0, 1) without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def after_the_first() -> None:
    """Leave it to the first process to say what is wrong with all: it ends, and `torchrun` then ends this one."""
    if place()[0]:
        time.sleep(GRACE)
