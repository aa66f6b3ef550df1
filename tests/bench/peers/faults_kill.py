"""`kill -9` of what records, at random moments: while it starts, records, ends a file, exports or takes a snapshot.

Most trials are of the real `Recorder` in a child that is forked from this process, in which the bundle is loaded and
the kernels are compiled: a start takes a twentieth of a second. The rest are of `pairlift serve`, through its port.
"""

import contextlib
import gc
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from faults_events import (
    PATIENCE,
    Recording,
    Sender,
    Served,
    Verdict,
    failed,
    on_disk,
    prepared,
    recording,
    settled,
    snapshots_of,
    summed,
    wait,
)

from ranker.client import Client, ServerError
from ranker.recording import exports

ROOT = Path(__file__).parents[3]
WORD = struct.Struct("<i")
#: what the parent asks for, beside numbers of batches
SNAPSHOT = -1
#: threads of the child that record: their batches come to be one frame
THREADS = 3
#: new batches for each start
MORE = 100
#: share of the kills that come within so many seconds of the fork; the others come within so many seconds of a random
#: acknowledgement
EARLY, STARTING, RECORDING = 0.3, 0.2, 0.1
#: share of the starts that are from a snapshot, and that take one
FROM_SNAPSHOT, TAKES_SNAPSHOT = 0.3, 0.5


@lru_cache(maxsize=1)
def warmed(folder: Path) -> Served:
    """Return what is served, with all that a recorder compiles and loads done, and no thread left."""
    exports.EXPORT_EVERY = 0.02
    served = prepared(folder)
    with tempfile.TemporaryDirectory() as scratch, recording(served.bundle, Path(scratch) / "log") as opened:
        opened.recorder.record(Sender(served.bundle, 0, 1).batches[0])
        opened.follower.snapshot()
    wait(5, lambda: threading.active_count() == 1)
    return served


def killed(seed: int, kills: int, folder: str) -> dict[str, Any]:
    """Kill the recorder of one log so often, and compare after each kill and at the end."""
    served = warmed(Path(folder))
    sender = Sender(served.bundle, seed, MORE * kills)
    with tempfile.TemporaryDirectory(prefix="faults") as scratch:
        log, verdicts, midway = Path(scratch) / "log", [], 0
        for _ in range(kills):
            _life(served, sender, log)
            midway += len(sender.acknowledged) < sender.sent
            verdicts.append(on_disk(sender, log))
        verdicts.append(settled(served, sender, log))
    return {"trials": kills, "midway": midway, **summed(verdicts)}


def _life(served: Served, sender: Sender, log: Path) -> None:
    """Fork a recorder, send it batches, and kill it."""
    rng = sender.rng
    wanted = sender.wanted(MORE)
    if rng.random() < TAKES_SNAPSHOT:
        wanted.insert(int(rng.integers(0, len(wanted) + 1)), SNAPSHOT)
    snapshots = snapshots_of(log)
    snapshot = snapshots[rng.integers(0, len(snapshots))] if snapshots and rng.random() < FROM_SNAPSHOT else None
    (commands, asks), (acknowledges, answers) = os.pipe(), os.pipe()
    process = os.fork()
    if not process:
        _child(served, sender, log, snapshot, commands, answers)
    os.close(commands)
    os.close(answers)
    os.write(asks, b"".join(WORD.pack(k) for k in wanted))
    try:
        if rng.random() < EARLY:
            sender.acknowledged |= _acknowledged(acknowledges, len(wanted), rng.uniform(0, STARTING))
        else:
            sender.acknowledged |= _acknowledged(acknowledges, int(rng.integers(0, MORE)), PATIENCE)
            sender.acknowledged |= _acknowledged(acknowledges, len(wanted), rng.uniform(0, RECORDING))
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    sender.acknowledged |= _acknowledged(acknowledges, len(wanted), None)
    os.close(acknowledges)
    os.close(asks)


def _acknowledged(pipe: int, most: int, seconds: float | None) -> set[int]:
    """Return the numbers of batches that come through a pipe: so many at most, and for so long or (None) to its end."""
    found: set[int] = set()
    until = None if seconds is None else time.monotonic() + seconds
    while len(found) < most:
        if until is not None and not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            break
        data = os.read(pipe, WORD.size)
        if not data and until is None:
            break
        if not data:
            raise RuntimeError("the recorder's process ended by itself: its error is above")
        found.add(WORD.unpack(data)[0])
    return found


def _child(served: Served, sender: Sender, log: Path, snapshot: Path | None, commands: int, answers: int) -> None:
    """Record what is asked for, until the process is killed."""
    gc.freeze()  # DuckDB's threads were not forked: to end a connection of the parent's would wait for them
    try:
        opened = Recording(served.bundle, log, snapshot)
        with ThreadPoolExecutor(THREADS + 1) as pool:
            asked = [pool.submit(_done, opened, sender, answers, k) for k in _numbers(commands)]
            for one in asked:
                one.result()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


def _numbers(pipe: int) -> Iterator[int]:
    while data := os.read(pipe, WORD.size):
        yield WORD.unpack(data)[0]


def _done(opened: Recording, sender: Sender, answers: int, number: int) -> None:
    if number == SNAPSHOT:
        opened.follower.snapshot()
        return
    if opened.recorder.record(sender.batches[number]).refused:
        raise RuntimeError("an event was refused")
    os.write(answers, WORD.pack(number))


def killed_servers(seed: int, kills: int, folder: str) -> dict[str, Any]:
    """Kill `pairlift serve` so often, and compare."""
    served = warmed(Path(folder))
    sender = Sender(served.bundle, seed, MORE * kills)
    with tempfile.TemporaryDirectory(prefix="faults") as scratch:
        log, verdicts, midway = Path(scratch) / "log", [], 0
        for _ in range(kills):
            verdicts += _served_life(sender, Path(folder) / "bundle", log)
            midway += len(sender.acknowledged) < sender.sent
        verdicts.append(settled(served, sender, log))
    return {"trials": kills, "midway": midway, **summed(verdicts)}


def _served_life(sender: Sender, bundle: Path, log: Path) -> list[Verdict]:
    """Start a server, send it batches until it is killed, and compare."""
    words = ["serve", str(bundle), "--log", str(log), "--port", "0", "--clock", "snapshot"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
    with subprocess.Popen(
        [sys.executable, "-m", "ranker.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        if not line:
            return [failed(f"the server did not start: {process.stderr.read().strip().splitlines()[-1]}")]
        threading.Thread(target=process.stderr.read, daemon=True).start()
        with Client(line.split()[-1], timeout=PATIENCE) as client, contextlib.suppress(ServerError):
            _sent(client, sender, process.kill)
        process.kill()
    return [on_disk(sender, log)]


def _sent(client: Client, sender: Sender, kill: Callable[[], None]) -> None:
    """Send batches until the server is killed, soon after a random acknowledgement."""
    numbers, fatal = sender.wanted(MORE), int(sender.rng.integers(0, MORE))
    answers = client.record(sender.batches[k] for k in numbers)
    for count, (k, _) in enumerate(zip(numbers, answers, strict=False)):
        sender.acknowledged.add(k)
        if count == fatal:
            threading.Timer(sender.rng.uniform(0, RECORDING), kill).start()
