"""Servers in processes of their own: on which cores they run, what CPU time and memory they take."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
#: what a server must set for itself
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "NUMBA_NUM_THREADS")


class Process:
    """A server under way, with the workers that it has."""

    def __init__(self, process: "subprocess.Popen[str]", address: str) -> None:
        self._process, self.address = process, address

    @property
    def pids(self) -> list[int]:
        """The process and those below it."""
        found = [self._process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += map(int, (task / "children").read_text().split())
        return found

    @property
    def cpu(self) -> float:
        """Seconds of CPU time so far, of all threads and workers (that have not ended)."""
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.pids)  # clock_getcpuclockid(3)

    def memory(self, pid: int | None = None) -> dict[str, int]:
        """Return the bytes of the process (or of one of its workers) by the names of smaps_rollup."""
        lines = Path(f"/proc/{pid or self._process.pid}/smaps_rollup").read_text().splitlines()[1:]
        return {name.rstrip(":"): int(size) * 1024 for name, size, *_ in map(str.split, lines)}

    def move(self, cores: set[int]) -> None:
        """Let all its threads run on these cores alone."""
        for pid in self.pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(task.name), cores)


@contextlib.contextmanager
def started(command: list[str], cores: set[int], said: str = "", log: Path | None = None) -> Iterator[Process]:
    """Start a server on some cores and wait for its line that begins with `said`, whose last word is its address.

    log: where what it writes to stderr goes. At the end it is told to stop, and has 20 s for it.
    """
    environment = {name: value for name, value in os.environ.items() if name not in THREADS}
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("a")) if log else subprocess.DEVNULL
        pinned = ["taskset", "-c", ",".join(map(str, sorted(cores))), *command]
        process = subprocess.Popen(pinned, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        try:
            yield Process(process, _address(process, said, command))
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: "subprocess.Popen[str]", said: str, command: list[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(said) and line.strip():
            return line.split()[-1]
    raise SystemExit(f"{' '.join(command)} ended with status {process.wait()} before it answered")


def bare(kind: str, cores: set[int], threads: int = 4) -> "contextlib.AbstractContextManager[Process]":
    """Start a server of `serving_bare.py`: echo or refuse."""
    return started([sys.executable, "-P", str(HERE / "serving_bare.py"), kind, str(threads)], cores)


def pairlift(
    bundle: Path, cores: set[int], *options: str, log: Path | None = None
) -> "contextlib.AbstractContextManager[Process]":
    """Start `pairlift serve` on a free port; it is ready when it has said where."""
    command = [sys.executable, "-P", "-m", "ranker.cli", "serve", str(bundle), "--port", "0", *options]
    return started(command, cores, "pairlift serves", log)


def stages(
    folder: Path, candidates: int, cores: set[int], *, kept: bool = False
) -> "contextlib.AbstractContextManager[Process]":
    """Start the server of `serving_stages.py`; kept: without the tower."""
    command = [sys.executable, "-P", str(HERE / "serving_stages.py"), str(folder), str(candidates)]
    return started([*command, *(["kept"] if kept else [])], cores, "stages at")
