"""Stages that are resumed: what a stage made is kept beside the key of its inputs, and reused while that is equal.

Part of the inputs is the code that the stage runs: `code_hash` of its module's `CODE`.
"""

import fcntl
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from features.errors import PairliftError
from features.files import written, written_folder
from ranker.hashes import hash_value

log = logging.getLogger(__name__)


def run_stage(folder: Path, name: str, inputs: Any, make: Callable[[Path], None], level: int = logging.INFO) -> Path:
    """Return `<folder>/<name>`, made by `make(empty folder)` unless it was made with the same inputs before.

    An interrupted or failed stage leaves nothing behind. level: of the line in the log that says what was done.
    """
    target, stamp = folder / name, folder / f"{name}.key"
    shown = f"{folder.name}/{name}"  # a plugin and the parts that it is in have stages of one name
    with _locked(folder, name):
        if is_complete(folder, name, inputs):
            log.log(level, "%-28s unchanged, reused", shown)
            return target
        started = time.monotonic()
        with written_folder(target) as partial:
            make(partial)
            files = sorted(str(p.relative_to(partial)) for p in partial.rglob("*"))
            stamp.unlink(missing_ok=True)  # removed first, written last: a stage with a key is complete
        with written(stamp) as own:
            seconds = time.monotonic() - started
            own.write_text(json.dumps({"key": hash_value(inputs), "files": files, "seconds": seconds}))
    log.log(level, "%-28s %.1f s", shown, seconds)
    return target


def stage_seconds(folder: Path, name: str) -> float:
    """Return how long a complete stage took when it was made: no part of its key."""
    return float(json.loads((folder / f"{name}.key").read_text())["seconds"])


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of a stage; another run that wants the same one waits for its turn."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except (FileExistsError, NotADirectoryError) as error:
        raise PairliftError(f"[data] work: {folder} cannot be a folder, for a file is in its way") from error


def is_complete(folder: Path, name: str, inputs: Any) -> bool:
    """Return whether a stage was made with these inputs and nothing of it was taken away since."""
    try:
        made = json.loads((folder / f"{name}.key").read_text())
        key = hash_value(inputs)
        return bool(made["key"] == key and all((folder / name / file).exists() for file in made["files"]))
    except (OSError, ValueError, TypeError, KeyError):
        return False
