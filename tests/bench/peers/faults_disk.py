"""A disk as a power cut may leave it: what was not fsynced is dropped, in part or whole.

The journal of a run is kept in the process that writes: the calls by which it writes, renames, removes and syncs are
watched, and around each of them the tree is looked at. So whatever writes (Python, NumPy, Arrow) is seen, and only what
`fsync` said of a file is taken for durable, and of a folder its names (POSIX promises no more: a new file's name is
durable once its folder is synced, and its bytes once it is).

At a point of the journal, `after_cut` draws a disk. Every file has its durable bytes, and of what it held later, each
sector of 512 bytes or none, a beginning, or a size with zeros behind; every name in a folder is what it durably was, or
anything that it was later.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SECTOR = 512
#: calls of `os` around which the tree is looked at
WATCHED = ("write", "ftruncate", "open", "unlink", "rename", "replace", "mkdir", "rmdir")

#: a file or folder, for as long as it lives
Node = int
Names = dict[str, Node]


class Look(NamedTuple):
    """What stands in the tree at a moment."""

    files: dict[Node, bytes]
    folders: dict[Node, Names]


class Synced(NamedTuple):
    """What an fsync made durable: a file's bytes, or a folder's names."""

    node: Node
    held: bytes | Names


class Noted(NamedTuple):
    """What the run says that happened there, such as an acknowledgement."""

    what: Any


@dataclass
class Journal:
    """What happened below a folder, in order. Its root, and what was there at first, is durable."""

    root: Path
    durable: Look | None = None  # as of the beginning; None: all that is there
    steps: list[Look | Synced | Noted] = field(default_factory=list)
    _read: dict[Node, tuple[tuple[int, int], bytes]] = field(default_factory=dict)  # (mtime, size) and bytes of a file
    lock: threading.RLock = field(default_factory=threading.RLock)

    def note(self, what: Any) -> None:
        """Put something into the journal."""
        with self.lock:
            self.steps.append(Noted(what))

    def look(self) -> Look:
        """Look at the tree, and note it."""
        with self.lock:
            found = Look({}, {})
            self._walk(self.root, found)
            if not self.steps or self.steps[-1] != found:
                self.steps.append(found)
            return found

    def _walk(self, folder: Path, found: Look) -> None:
        names: Names = {}
        for entry in os.scandir(folder):
            try:
                status = entry.stat(follow_symlinks=False)
                names[entry.name] = status.st_ino
                if entry.is_dir(follow_symlinks=False):
                    self._walk(Path(entry), found)
                else:
                    found.files[status.st_ino] = self._bytes(Path(entry), status)
            except FileNotFoundError:  # another thread removed it meanwhile
                names.pop(entry.name, None)
        found.folders[folder.stat().st_ino] = names

    def _bytes(self, path: Path, status: os.stat_result) -> bytes:
        key = status.st_mtime_ns, status.st_size
        known = self._read.get(status.st_ino)
        if known is None or known[0] != key:
            known = self._read[status.st_ino] = key, path.read_bytes()
        return known[1]

    def synced(self, handle: int) -> None:
        """Note that a file or folder of the tree was synced."""
        with self.lock:
            node = os.fstat(handle).st_ino
            self._read.pop(node, None)  # times are coarse: what is durable is read anew
            found = self.look()
            if node in found.files:
                self.steps.append(Synced(node, found.files[node]))
            elif node in found.folders:
                self.steps.append(Synced(node, found.folders[node]))

    def first(self) -> Look:
        """Return what was durable at the beginning."""
        if self.durable is not None:
            return self.durable
        return next((step for step in self.steps if isinstance(step, Look)), Look({}, {}))


@contextmanager
def watched(journal: Journal) -> Iterator[None]:
    """Keep the journal of what this process writes below the journal's root, until the block ends. Nothing is synced.

    The root is to be on a file system in memory: there a node's number is never given again.
    """
    names = (*WATCHED, "fsync")
    real = {name: getattr(os, name) for name in names}

    def around(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with journal.lock:  # what other threads look at stands still meanwhile
                journal.look()
                try:
                    return real[name](*arguments, **options)
                finally:
                    journal.look()

        return call

    try:
        for name in WATCHED:
            setattr(os, name, around(name))
        os.fsync = journal.synced  # type: ignore[assignment]
        journal.look()
        yield
    finally:
        for name, call in real.items():
            setattr(os, name, call)


class Disk(NamedTuple):
    """A tree to begin with: what stands in it, and what of that is durable."""

    there: Look
    durable: Look


@dataclass
class _Past:
    """What is durable at a point of a journal, and what stood there since that was synced."""

    files: dict[Node, list[bytes]] = field(default_factory=dict)  # the durable bytes first
    folders: dict[Node, list[Names]] = field(default_factory=dict)  # the durable names first

    def to(self, journal: Journal, point: int) -> Look:
        """Go through the journal up to a point; return the last look."""
        last = journal.first()
        self.files = {node: [held] for node, held in last.files.items()}
        self.folders = {node: [held] for node, held in last.folders.items()}
        for step in journal.steps[:point]:
            if isinstance(step, Look):
                last = step
                for node, held in step.files.items():
                    _later(self.files.setdefault(node, [b""]), held)
                for folder, names in step.folders.items():
                    _later(self.folders.setdefault(folder, [{}]), names)
            elif isinstance(step, Synced) and isinstance(step.held, bytes):
                self.files[step.node] = [step.held]
            elif isinstance(step, Synced):
                self.folders[step.node] = [step.held]  # type: ignore[list-item]
        return last

    @property
    def durable(self) -> Look:
        """What a cut cannot take away."""
        return Look({n: past[0] for n, past in self.files.items()}, {n: past[0] for n, past in self.folders.items()})


def _later(past: list[Any], held: Any) -> None:
    if past[-1] != held:
        past.append(held)


def after_kill(journal: Journal, point: int) -> Disk:
    """Return the disk behind a kill of the process: all that was written is there, and no more of it is durable."""
    past = _Past()
    return Disk(past.to(journal, point), past.durable)


def after_cut(journal: Journal, point: int, rng: np.random.Generator) -> Disk:
    """Draw a disk as it may be behind a power cut; all of it is durable then."""
    past = _Past()
    past.to(journal, point)
    share = rng.choice([0.0, 0.5, 1.0], p=[0.2, 0.6, 0.2])  # of what was not synced, that is there
    folders = {node: _names(held, share, rng) for node, held in past.folders.items()}
    files = {node: _torn(held, share, rng) for node, held in past.files.items()}
    return Disk(Look(files, folders), Look(files, folders))


def _names(past: list[Names], share: float, rng: np.random.Generator) -> Names:
    """Draw each name of a folder from what it durably was and what it was later."""
    drawn: Names = {}
    for name in sorted({name for names in past for name in names}):
        values = [names.get(name) for names in past]
        later = len(values) > 1 and rng.random() < share
        node = values[rng.integers(1, len(values))] if later else values[0]
        if node is not None:
            drawn[name] = node
    return drawn


def _torn(past: list[bytes], share: float, rng: np.random.Generator) -> bytes:
    """Draw the bytes of a file from its durable ones and what it held later."""
    if len(past) == 1 or rng.random() >= share:
        return past[0]
    old, new = past[0], past[int(rng.integers(1, len(past)))]
    if share == 1:
        return new
    kind = rng.integers(0, 4)
    if kind == 0:
        return new
    if kind == 1:  # a beginning of what was written
        written = int(rng.integers(0, len(new) + 1))
        return new[:written] + old[written:]
    size = max(len(old), len(new)) if rng.random() < 0.5 else len(new)
    torn = bytearray(old[:size].ljust(size, b"\0"))
    if kind == 2:  # its size has grown, and its bytes never came
        return bytes(torn)
    for at in range(0, size, SECTOR):
        if rng.random() < 0.5:
            torn[at : at + SECTOR] = new[at : at + SECTOR].ljust(min(SECTOR, size - at), b"\0")
    return bytes(torn)


def made(disk: Disk, old_root: Node, root: Path) -> Look:
    """Make the tree of a disk in an empty folder; return what of it is durable, by the numbers that it has there."""
    known: dict[Node, Node] = {old_root: root.stat().st_ino}
    _make(disk.there, old_root, root, known)
    durable = disk.durable
    new: Callable[[Node], Node] = lambda node: known.get(node, -node)  # noqa: E731
    return Look(
        {new(node): held for node, held in durable.files.items()},
        {new(node): {name: new(one) for name, one in held.items()} for node, held in durable.folders.items()},
    )


def _make(look: Look, node: Node, folder: Path, known: dict[Node, Node]) -> None:
    for name, one in look.folders.get(node, {}).items():
        path = folder / name
        if one in look.folders:
            if one in known:  # two names of one folder, as of a rename of which half is there: the first has it
                continue
            path.mkdir()
            known[one] = path.stat().st_ino
            _make(look, one, path, known)
        else:
            path.write_bytes(look.files.get(one, b""))
            known[one] = path.stat().st_ino
