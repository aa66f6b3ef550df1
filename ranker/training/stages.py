"""Stages that are resumed: what a stage made is kept beside the key of its inputs, and reused while that is equal.

The key hashes the code that the stage reads (`code_hash` of its module's `CODE`): a changed help text makes nothing
anew, changed code does.
"""

import fcntl
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from features.errors import PairliftError
from features.files import written, written_folder
from ranker.hashes import hash_file, hash_value

log = logging.getLogger(__name__)


@cache
def code_hash(*names: str) -> str:
    """Return a hash of the source of modules and of whole folders of them by dotted name: new code, a new hash.

    The versions of the libraries whose numbers a stage keeps are in it. Raises ValueError for a name that is neither.
    """
    digest = hashlib.sha256()
    for name in names:
        for label, path in _sources(name):
            digest.update(f"{name}/{label} {hash_file(path)}\n".encode())
    digest.update(json.dumps(_versions()).encode())
    return digest.hexdigest()


def _sources(name: str) -> Iterator[tuple[str, Path]]:
    """Yield the file of a module, or those of a package at any depth, each by its place in the package."""
    found = find_spec(name)
    if found is None:
        raise ValueError(f"code_hash: there is no module or package {name}")
    for folder in map(Path, found.submodule_search_locations or []):
        for path in sorted(folder.rglob("*.py")):
            yield path.relative_to(folder).as_posix(), path
    if found.origin and found.submodule_search_locations is None:  # a module of one file
        yield "", Path(found.origin)


def _versions() -> dict[str, str]:
    """Return the versions of the libraries whose numbers a stage keeps."""
    found = {d.metadata["Name"].lower(): d.version for d in distributions()}
    return {
        name: found.get(name, "")
        for name in ("duckdb", "implicit", "lightgbm", "numba", "numpy", "onnxruntime-gpu", "scipy", "torch")
    }


def run_stage(folder: Path, name: str, inputs: Any, make: Callable[[Path], None], level: int = logging.INFO) -> Path:
    """Return `<folder>/<name>`, made by `make(empty folder)` unless it stands there with the same inputs.

    An interrupted or failed stage leaves nothing behind. level: of the line in the log that says what was done.
    """
    target, key, stamp = folder / name, hash_value(inputs), folder / f"{name}.key"
    with _alone(folder):
        if _stands(target, stamp, key):
            log.log(level, "%-28s unchanged, reused", name)
            return target
        started = time.monotonic()
        with written_folder(target) as partial:
            make(partial)
            files = sorted(str(p.relative_to(partial)) for p in partial.rglob("*"))
            stamp.unlink(missing_ok=True)  # first to go and last to come: with its key, a stage is whole
        with written(stamp) as own:
            own.write_text(json.dumps({"key": key, "files": files}))
    log.log(level, "%-28s %.1f s", name, time.monotonic() - started)
    return target


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of stages; another run in the same folder waits for its turn."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except (FileExistsError, NotADirectoryError) as error:
        raise PairliftError(f"[data] work: {folder} cannot be a folder, for a file is in its way") from error


def _stands(target: Path, stamp: Path, key: str) -> bool:
    """Return whether a stage was made with these inputs and nothing of it was taken away since."""
    try:
        made = json.loads(stamp.read_text())
        return bool(made["key"] == key and all((target / name).exists() for name in made["files"]))
    except (OSError, ValueError, TypeError, KeyError):
        return False
