"""Power cuts of the real `Recorder`, on a simulated disk that keeps what was fsynced, and of the rest what it likes.

A trial is a life of the recorder on the disk that the one before left: it starts, reads its log again, records, ends
files, exports and takes snapshots, under the watch of `faults_disk`; then it ends at a random point of what it did, in
a power cut, or (one in three) in a kill, behind which what was written is read again and is not yet durable.
"""

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults_disk import Disk, Journal, Noted, after_cut, after_kill, made, watched
from faults_events import (
    Recording,
    Sender,
    Served,
    Verdict,
    failed,
    on_disk,
    recording,
    settled,
    snapshots_of,
    summed,
)
from faults_kill import warmed

from features.errors import PairliftError

#: threads that record: their batches come to be one frame
THREADS = 3
#: new batches of each life
MORE = 12
#: share of the lives that end in a kill, that start from a snapshot, and that take one
KILLED, FROM_SNAPSHOT, TAKES_SNAPSHOT = 0.33, 0.5, 0.15
MEMORY = Path("/dev/shm")


def cut(seed: int, cuts: int, folder: str) -> dict[str, Any]:
    """Cut the power of one log's recorder so often, and compare after each cut and at the end."""
    served = warmed(Path(folder))
    sender = Sender(served.bundle, seed, 10 * MORE * cuts)
    with tempfile.TemporaryDirectory(prefix="faults", dir=MEMORY if MEMORY.is_dir() else None) as scratch:
        trial = _Trial(served, sender, Path(scratch))
        while trial.cuts < cuts and trial.life():
            pass
        verdicts = [*trial.verdicts, settled(served, sender, trial.log)]
    return {"trials": cuts, "kills": trial.kills, **summed(verdicts)}


class _Trial:
    """The lives of one log, each in a folder of its own."""

    def __init__(self, served: Served, sender: Sender, scratch: Path) -> None:
        self.served, self.sender = served, sender
        self.cuts = self.kills = 0
        self.verdicts: list[Verdict] = []
        self._kept: set[str] = set()  # names of the snapshots that were acknowledged
        self._scratch = scratch
        self._journal = Journal(self._new_root())

    @property
    def log(self) -> Path:
        """The folder of the log; its parent is durable."""
        return self._journal.root / "log"

    def _new_root(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._scratch))

    def life(self) -> bool:
        """Start, record, end; then go on with the disk that is left. Tell whether it could start."""
        with watched(self._journal):
            try:
                with self._opened() as opened:
                    self._record(opened)
            except (PairliftError, OSError) as error:
                self.verdicts.append(failed(f"{type(error).__name__}: {error}"))
                return False
        self._end()
        self.verdicts.append(on_disk(self.sender, self.log))
        lost = self._kept - {path.name for path in snapshots_of(self.log)}
        self.verdicts += [failed(f"the snapshot {name} is not there") for name in lost]
        return True

    @contextmanager
    def _opened(self) -> Iterator[Recording]:
        rng, snapshots = self.sender.rng, snapshots_of(self.log)
        snapshot = snapshots[rng.integers(0, len(snapshots))] if snapshots and rng.random() < FROM_SNAPSHOT else None
        with recording(self.served.bundle, self.log, snapshot) as opened:
            yield opened

    def _record(self, opened: Recording) -> None:
        with ThreadPoolExecutor(THREADS + 1) as pool:
            asked = [pool.submit(self._one, opened, k) for k in self.sender.wanted(MORE)]
            if self.sender.rng.random() < TAKES_SNAPSHOT:
                asked.append(pool.submit(self._snapshot, opened))
            for one in asked:
                one.result()

    def _one(self, opened: Recording, number: int) -> None:
        opened.recorder.record(self.sender.batches[number])
        self._journal.note(number)

    def _snapshot(self, opened: Recording) -> None:
        self._journal.note(opened.follower.snapshot()[0].name)

    def _end(self) -> None:
        """End the life at a random point of it, as far as the disk and the client know."""
        rng, journal = self.sender.rng, self._journal
        point = int(rng.integers(0, len(journal.steps) + 1))
        said = [step.what for step in journal.steps[:point] if isinstance(step, Noted)]
        self.sender.acknowledged |= {one for one in said if isinstance(one, int)}
        self._kept |= {one for one in said if isinstance(one, str)}
        killed = rng.random() < KILLED
        disk = after_kill(journal, point) if killed else after_cut(journal, point, rng)
        self.kills, self.cuts = self.kills + killed, self.cuts + (not killed)
        self._go_on(disk)

    def _go_on(self, disk: Disk) -> None:
        old, root = self._journal.root, self._new_root()
        durable = made(disk, old.stat().st_ino, root)
        shutil.rmtree(old)
        self._journal = Journal(root, durable)
