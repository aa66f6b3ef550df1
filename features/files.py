"""Files and folders that appear whole or not at all, and are still there after a power cut.

What is written goes to a hidden place beside its own, is synced, and takes its name in one rename; then the folder
that has the name is synced. Where anything before the rename fails, what stood there before stands there still, and
nothing half written is left. A link is followed: what it names is replaced, and the link stays.

Three writers differ, each for a reason: the segments of a recorded log are only ever appended to
(`features.log.tail`), files of a feature log (`ranker.recording.featurelog`) and snapshots
(`ranker.recording.snapshots`) must not take the place of another. They sync with what is here.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give a place to write a file to, closed when the block ends; the file then replaces the one at `path`.

    Raises OSError, with the name of `path`, where its folder is missing or something that is not a file is there.
    """
    path = path.resolve()
    _refuse_other_than_a_file(path)
    partial = _partial(path)
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except OSError as error:
        if error.filename != str(partial):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # the name that the user knows
    finally:
        _remove(partial)
    sync(path.parent)


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to write into; it then replaces the one at `path`.

    Between two renames nothing stands at `path`: where a run is killed there, the next one puts the old folder back.
    """
    path = path.resolve()
    _refuse_other_than_a_folder(path)
    old = path.with_name(f".{path.name}.old")
    _put_back(path, old)
    if not path.parent.is_dir():
        made_folder(path.parent)
    partial = _partial(path)
    partial.mkdir()
    try:
        yield partial
        sync_tree(partial)
        if path.is_dir():  # what is not a folder, and has come meanwhile, is not replaced: the next rename refuses it
            path.rename(old)
        partial.rename(path)
        sync(path.parent)  # before the old one goes
    finally:
        _remove(partial)
        _put_back(path, old)


def made_folder(path: Path) -> None:
    """Make a folder, with those above it that are missing; their names are durable then.

    It may be there and its name not be durable: a process made it, and was killed before it could sync. Raises OSError,
    with the name of `path`, where something that is not a folder is there or above it.
    """
    _refuse_other_than_a_folder(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing or [path]):
        try:
            sync(folder.resolve().parent)
        except PermissionError:
            if missing:
                raise


def check_folder(path: Path) -> None:
    """Raise OSError, with the name of `path`, where no folder is that can be written into, and none can be made.

    For what is written into it after long work; nothing is made.
    """
    above = _refuse_other_than_a_folder(path)
    if not os.access(above, os.W_OK | os.X_OK):
        where = "" if above == path else f"{above} "
        raise PermissionError(errno.EACCES, f"{where}cannot be written into; name another folder", str(path))


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


def _refuse_other_than_a_folder(path: Path) -> Path:
    """Return the nearest of a path and the folders above it that is there."""
    above = next(place for place in (path, *path.parents) if place.exists())
    if not above.is_dir():
        where = "is" if above == path else f"{above} is"
        raise NotADirectoryError(errno.ENOTDIR, f"{where} not a folder; name another place", str(path))
    return above


def _refuse_other_than_a_file(path: Path) -> None:
    _refuse_other_than_a_folder(path.parent)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {path.parent}", str(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file", str(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "is not a regular file, and would be replaced; name another", str(path))


def _partial(path: Path) -> Path:
    """Return this process's own place beside `path`, and remove those of processes that were killed."""
    for left in path.parent.glob(f".{path.name}.*.partial"):
        process = left.name.removesuffix(".partial").rpartition(".")[2]
        if process.isdigit() and not _runs(int(process)):
            _remove(left)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _remove(partial)
    return partial


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _put_back(path: Path, old: Path) -> None:
    """Give the old folder its name again, where nothing has it; else remove it."""
    if old.is_dir() and not old.is_symlink() and not path.exists():
        old.rename(path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.wal").unlink(missing_ok=True)  # DuckDB keeps a log beside its file
