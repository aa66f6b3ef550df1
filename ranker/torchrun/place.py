"""Which process of a `torchrun` this one is. Of the standard library alone: every command asks it."""

import json
import os
import time
from pathlib import Path

#: seconds that the first process has to say what is wrong before another says it
GRACE = 10.0


def place() -> tuple[int, int]:
    """Return which process of a `torchrun` this one is, from 0, and how many there are; (0, 1) without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def tell(said: str) -> None:
    """Let the report that `torchrun` ends with say why this process fails, where there is a `torchrun`.

    Of a process that fails it prints an error of its own, whatever this one has said; the reason is in its last lines.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        Path(file).write_text(json.dumps({"message": said, "timestamp": int(time.time())}))


def after_the_first() -> None:
    """Leave it to the first process to say what is wrong with all: it ends, and `torchrun` then ends this one."""
    if place()[0]:
        time.sleep(GRACE)
