"""Stages that are resumed: what a stage made is kept beside the key of its inputs, and reused while that is equal."""

import hashlib
import logging
import shutil
import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ranker.hashes import hash_file, hash_value

log = logging.getLogger(__name__)


@cache
def code_hash(*packages: str) -> str:
    """Return a hash of the source of top-level packages, so that new code makes a stage anew."""
    digest = hashlib.sha256()
    for package in packages:
        found = find_spec(package)
        for folder in (found.submodule_search_locations or []) if found else []:
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(f"{path.relative_to(folder)} {hash_file(path)}\n".encode())
    return digest.hexdigest()


def run_stage(folder: Path, name: str, inputs: Any, make: Callable[[Path], None], level: int = logging.INFO) -> Path:
    """Return `<folder>/<name>`, made by `make(empty folder)` unless it stands there with the same inputs.

    An interrupted or failed stage leaves nothing behind. level: of the line in the log that says what was done.
    """
    target, key = folder / name, hash_value(inputs)
    stamp = folder / f"{name}.key"
    if target.is_dir() and stamp.is_file() and stamp.read_text() == key:
        log.log(level, "%-28s unchanged, reused", name)
        return target
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    started = time.monotonic()
    try:
        make(partial)
        stamp.unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        stamp.write_text(key)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.log(level, "%-28s %.1f s", name, time.monotonic() - started)
    return target
