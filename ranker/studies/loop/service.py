"""A served bundle as its operator and its users know it: a process with a port, which may be killed."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from features.errors import PairliftError
from features.log.reader import EVENTS
from ranker.administrator import Admin
from ranker.client import Client, Reply
from ranker.recording.batch import Batch
from ranker.studies.loop.arms import LOG

#: seconds: of a call, and until an acknowledged event must be in what requests read
TIMEOUT, VISIBLE = 60.0, 10.0
#: seconds until an ended file of the log must be exported
EXPORTED = 30.0
#: seconds that what was served waits for the feature log, and until it must be there
FEATURES, WRITTEN = 0.5, 30.0
#: seconds between the sending of events and the kill
UNDER_WAY = 0.003


class Received(NamedTuple):
    """What became of events that were sent."""

    recorded: int
    duplicates: int  # that were recorded before: sent again after a crash


class Service:
    """`pairlift serve` with a log, on a free port of this machine, from `start` to `stop`."""

    def __init__(self, folder: Path) -> None:
        """folder: of the log, of what is deployed, of what answers used (`features`), and of what the server says."""
        self._folder, self.features = folder, folder / "features"
        self._process: subprocess.Popen[str] | None = None
        self._client: Client | None = None

    def start(self, bundle: Path) -> None:
        """Serve a bundle, or what is deployed in its place. Raises PairliftError where the server ends at once."""
        words = ["serve", bundle, "--log", self._folder / LOG, "--bundles", self._folder / "deployed"]
        # All requests: what was served is compared with the record of it, and a crash loses those of its last seconds.
        words += ["--feature-log", self.features, "--feature-share", "1", "--feature-seconds", FEATURES]
        command = [sys.executable, "-m", "ranker.cli", *map(str, words), "--clock", "snapshot", "--port", "0"]
        with (self._folder / "serve.err").open("a") as errors:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=_quiet())
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise PairliftError(f"the server ended before it was ready; {self._folder / 'serve.err'} says why")
        self._client = Client(line.split()[-1], timeout=TIMEOUT)

    @property
    def client(self) -> Client:
        """The connection to it."""
        if self._client is None:
            raise PairliftError("the server was not started")
        return self._client

    def deploy(self, bundle: Path) -> None:
        """Put a bundle in the place of the one that answers. Raises PairliftError where the server refuses it."""
        Admin(self.client).deploy(bundle, say=lambda _: None)

    def recommend(self, user: int, k: int, as_of: int, device: str, request_id: str) -> Reply:
        """Return a user's list, explained: what its scores were made of is compared with the record afterwards."""
        return self.client.recommend(
            user, k, as_of=as_of, surface="feed", attributes={"device": device}, request_id=request_id, explain=True
        )

    def by_rank(self, user: int, listed: Reply, as_of: int, device: str) -> Reply:
        """Return the items of a user's list in the order of `Rank`; without an id, so the feature log has the list."""
        items = [one.item for one in listed.items]
        return self.client.rank(user, items, as_of=as_of, surface="feed", attributes={"device": device})

    def record(self, batch: Batch) -> Received:
        """Record events, and wait until requests see them; PairliftError where one is refused or stays out."""
        (outcome,) = self.client.record([batch])
        if outcome.refused:
            raise PairliftError(f"the server refused an event of the simulation: {outcome.refused[0][1]}")
        latest, until = max(batch.events["ts"].to_pylist()), time.monotonic() + VISIBLE
        while self.client.describe().snapshot_time <= latest:
            if time.monotonic() > until:
                raise PairliftError(f"events that were acknowledged were not visible after {VISIBLE:g} s")
            time.sleep(0.02)
        return Received(outcome.recorded, outcome.duplicates)

    def exported(self) -> None:
        """Wait until all ended files of the log are there as Parquet, which a training reads.

        Raises PairliftError where that takes long, and where no file has ended.
        """
        log, until = self._folder / LOG, time.monotonic() + EXPORTED
        while True:
            ended = sorted(log.glob("*.log"))[:-1]
            missing = [path.name for path in ended if not (log / EVENTS / f"{path.stem}.parquet").exists()]
            if ended and not missing:
                return
            if time.monotonic() > until:
                raise PairliftError(
                    f"{log}: {', '.join(missing) or 'events'} had to be there as Parquet after {EXPORTED:g} s; make a "
                    "larger world, or lower [record] segment_mb"
                )
            time.sleep(0.1)

    def written(self, rows: int) -> None:
        """Wait until the feature log has so many rows: a kill loses what waits. PairliftError where they stay out."""
        until = time.monotonic() + WRITTEN
        while (found := sum(pq.read_metadata(path).num_rows for path in self.features.glob("part-*.parquet"))) < rows:
            if time.monotonic() > until:
                raise PairliftError(
                    f"{self.features}: {rows} rows had to be there after {WRITTEN:g} s, found {found}; "
                    f"{self._folder / 'serve.err'} says what failed"
                )
            time.sleep(0.1)

    def crash_while_recording(self, batch: Batch, bundle: Path) -> Received:
        """Kill the server with events under way, start it again, and send them again, as a client would."""
        with Client(self.client.address, timeout=TIMEOUT) as other, ThreadPoolExecutor(1) as thread:
            sending = thread.submit(lambda: list(other.record([batch])))
            time.sleep(UNDER_WAY)
            self._end(signal.SIGKILL)
            sending.exception()  # whether they are on disk is not known, which is what the second sending is for
        self.start(bundle)
        return self.record(batch)

    @property
    def exported_events(self) -> int:
        """Events that are there as Parquet: the first so many that were recorded."""
        return sum(pq.read_metadata(path).num_rows for path in (self._folder / LOG / EVENTS).glob("*.parquet"))

    def stop(self) -> None:
        """End it as an operator does; nothing where it does not run."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._client is not None:
            self._client.close()
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            if self._process.stdout:
                self._process.stdout.close()
        self._client = self._process = None


def _quiet() -> dict[str, str]:
    """Return the environment of a server that shares its cores."""
    return {"OMP_WAIT_POLICY": "passive", **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
