"""Files and folders that appear whole or not at all, and are still there after a power cut.

What is written goes to a hidden place beside its own, is synced, and takes its name in one rename; then the folder
that has the name is synced. Where anything before the rename fails, what stood there before stands there still, and
nothing half written is left.

Three writers differ, each for a reason: the segments of a recorded log are only ever appended to
(`features.log.tail`), files of a feature log (`ranker.recording.featurelog`) and snapshots
(`ranker.recording.snapshots`) must not take the place of another. They sync with what is here.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give a place to write a file to, closed when the block ends; the file then replaces the one at `path`."""
    partial = path.with_name(f".{path.name}.partial")
    left = (partial, partial.with_name(f"{partial.name}.wal"))  # DuckDB keeps a log beside its file
    _remove_files(left)  # of a run that was killed
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        _remove_files(left)
    sync(path.parent)


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to write into; it then replaces the one at `path`.

    Between two renames nothing stands at `path`: where a run is killed there, the next one puts the old folder back.
    """
    partial, old = (path.with_name(f".{path.name}.{state}") for state in ("partial", "old"))
    _tidy(path, partial, old)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_tree(partial)
        if path.is_dir():  # what is there and is not a folder is not replaced: the next rename refuses it
            path.rename(old)
        partial.rename(path)
        sync(path.parent)  # before the old one goes
    finally:
        _tidy(path, partial, old)


def sync(path: Path) -> None:
    """Make the bytes of a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # the system's own names no file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make all that a folder holds durable, files before the folders that name them."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def _tidy(path: Path, partial: Path, old: Path) -> None:
    if old.exists() and not path.exists():
        old.rename(path)
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)


def _remove_files(paths: tuple[Path, ...]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
