"""Several processes behind one port: forked from one that holds all they share, and started again when they die.

    supervisor      loads, verifies and warms; then it forks, waits, and answers nothing
      ├─ process 0  records, where the server does: the one that writes the log (answers the others over a socket)
      ├─ process 1  answers requests
      └─ process …

What the supervisor made before it forks is shared copy-on-write: bundle, tables, histories, compiled kernels. For this
it has no thread then: those of gRPC, of lanes and of followers begin in the processes. A process that dies is forked
anew and reads on in the log; its callers get UNAVAILABLE from gRPC. One that dies again at once is started later and
later. Processes end with the supervisor, also where that is killed: they read from a pipe that only it can write to.
"""

import contextlib
import gc
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

from features.errors import PairliftError
from ranker.serving.processes.signals import TOLD, told

log = logging.getLogger(__name__)

Work = Callable[[int, Callable[[], None]], None]
#: seconds that a process lives for its death to be no sign of a fault that comes back
HEALTHY = 10.0
#: seconds until a process that died at once is started again, doubled with each time up to the most
PAUSE, LONGEST = 0.1, 10.0
#: seconds that processes have to end, beyond what was asked for; then they are killed
GRACE = 15.0


class _Process:
    """A process of the server, or its place while it is started again."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid = 0  # 0: it does not run
        self.told = False  # to end, by the supervisor
        self.born = 0.0  # when it was forked, in seconds (monotonic)
        self.due = 0.0  # when it is to be forked
        self.deaths = 0  # in a row, soon after its birth


class Supervisor:
    """Forks processes and keeps them alive until it is told to stop."""

    def __init__(self, work: Work, numbers: Sequence[int], patience: float = 0.0) -> None:
        """work: what a process does, given its number and what to call once it is ready, until SIGTERM or SIGINT.

        numbers: of the processes; 0 ends when all others have. patience: seconds that it may take to end.
        """
        self._work, self._patience = work, patience + GRACE
        self._processes = [_Process(number) for number in numbers]
        self._lives, self._holds = os.pipe()
        self._reports, self._report = os.pipe()
        self._starting = {process.number for process in self._processes}  # those that have never been ready
        self._failed = ""  # why the server did not start
        self._stopping = 0.0  # when it was told to stop, in seconds (monotonic)

    @property
    def pids(self) -> list[int]:
        """The ids of the processes that run, in the order of their numbers."""
        return [process.pid for process in self._processes if process.pid]

    def run(self, on_ready: Callable[[], None]) -> None:
        """Fork, and return when all processes have ended after SIGTERM or SIGINT. on_ready: called once, when all are
        ready.

        PairliftError where one ends before.
        """
        gc.collect()
        gc.freeze()  # else a collection in a process would write to each object, and so copy all
        with told((*TOLD, signal.SIGCHLD)) as signals:
            for process in self._processes:
                self._fork(process, signals)
            while self._starting and not self._stopping:
                self._turn(signals)
            if not self._stopping:
                on_ready()
            while not self._stopping or any(process.pid for process in self._processes):
                self._turn(signals)
        gc.unfreeze()
        if self._failed:
            raise PairliftError(self._failed)

    def _turn(self, signals: int) -> None:
        """Wait for a signal, a report or the time of a restart, and do what is due."""
        now = time.monotonic()
        waits = [max(process.due - now, 0.0) for process in self._processes if not process.pid and not self._stopping]
        readable, _, _ = select.select([signals, self._reports], [], [], min([*waits, 1.0]))
        for number in os.read(self._reports, 64) if self._reports in readable else b"":
            self._starting.discard(number)
        numbers = set(os.read(signals, 64)) if signals in readable else set()
        self._reap()
        for number in TOLD:
            if number in numbers:
                self._stop(number)
        if self._stopping:
            self._end()
        else:
            for process in self._processes:
                if not process.pid and process.due <= time.monotonic():
                    self._fork(process, signals)

    def _reap(self) -> None:
        for process in self._processes:
            if not process.pid:
                continue
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid:
                self._died(process, os.waitstatus_to_exitcode(status))

    def _died(self, process: _Process, code: int) -> None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
        pid, process.pid = process.pid, 0
        if self._stopping:
            return
        if self._starting:
            self._failed = f"process {process.number} of the server {how} before it was ready; see its log above"
            self._stop(signal.SIGTERM)
            return
        now = time.monotonic()
        process.deaths = process.deaths + 1 if now - process.born < HEALTHY else 0
        pause = min(PAUSE * 2**process.deaths, LONGEST) if process.deaths else 0.0
        process.due = now + pause
        again = f", for the {process.deaths}th time at once" if process.deaths > 1 else ""
        log.error("process %d (pid %d) %s%s; it is started again in %.1f s", process.number, pid, how, again, pause)

    def _stop(self, number: int) -> None:
        """Tell those that answer to end, by the signal that told us."""
        self._stopping = self._stopping or time.monotonic()
        for process in self._processes:
            if process.pid and process.number:
                os.kill(process.pid, number)

    def _end(self) -> None:
        """Once those that answer have ended, tell the one that records; kill what takes too long."""
        running = [process for process in self._processes if process.pid]
        if all(not process.number and not process.told for process in running):
            for process in running:
                process.told = True
                os.kill(process.pid, signal.SIGTERM)
        if time.monotonic() > self._stopping + self._patience:
            self._stopping = time.monotonic()
            for process in [process for process in running if process.number] or running:
                log.error("process %d does not end, and is killed", process.number)
                os.kill(process.pid, signal.SIGKILL)

    def _fork(self, process: _Process, signals: int) -> None:
        process.born = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            process.pid = pid
            return
        code = 1
        try:
            self._become_a_process(signals)
            self._work(process.number, lambda: self._tell_ready(process.number))
            code = 0
        except PairliftError as error:
            log.error("process %d: %s", process.number, error)
        except BaseException:
            log.exception("process %d failed", process.number)
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)  # and nothing that the supervisor has to do at its end

    def _become_a_process(self, signals: int) -> None:
        signal.set_wakeup_fd(-1)
        for number in (*TOLD, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)  # Ctrl-C is for the supervisor, which passes it on
        for handle in (self._holds, self._reports, signals):
            os.close(handle)
        threading.Thread(target=self._end_with_the_supervisor, name="orphan", daemon=True).start()

    def _end_with_the_supervisor(self) -> None:
        os.read(self._lives, 1)  # nothing is ever written: this returns when no process can
        log.error("the supervisor is gone: this process ends too")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self._patience)
        os._exit(1)

    def _tell_ready(self, number: int) -> None:
        os.write(self._report, bytes([number]))
