"""Malformed and hostile messages through the port of a real `pairlift serve`.

A call is bytes: what a message says is drawn, broken, and sent as it is, without our own client in between. Each must
end with a status that says whose fault it was: never INTERNAL or UNKNOWN, for what the caller must change is
INVALID_ARGUMENT. After every so many, the server must be there, report SERVING, answer a good request as at first, and
not have grown.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from faults_messages import Asked, Drawer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pairlift.v1 import ranking_pb2 as pb

ROOT = Path(__file__).parents[3]
SERVICE = "/pairlift.v1.RankingService/"
#: calls under way at once: so few that the server's gate lets them in
AT_ONCE, STREAMS_AT_ONCE = 6, 3
#: messages between two looks at the server
EACH = 2000
#: connections of bare bytes in so many messages
CONNECTIONS = 20
#: seconds after which a call hangs, and in which a good request must be answered
PATIENCE, PROMPT = 30.0, 5.0
#: MiB that the server may grow by, once it has answered the first messages
GROWTH = 300
#: what a server ends a call with that it did not see
ABRUPT = ("Socket closed", "Connection reset", "recvmsg", "Stream removed", "GOAWAY")


def fuzzed(seed: int, messages: int, folder: str) -> dict[str, Any]:
    """Send so many messages to a server of its own; return what became of them, by name."""
    with (
        tempfile.TemporaryDirectory(prefix="faults") as scratch,
        _server(Path(folder) / "bundle", Path(scratch)) as (process, address),
    ):
        return _Fuzz(seed, process, address, Path(scratch) / "errors").run(messages)


@contextmanager
def _server(bundle: Path, scratch: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `pairlift serve` on a log; give its process and its address."""
    words = ["serve", str(bundle), "--log", str(scratch / "log"), "--port", "0", "--clock", "snapshot"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
    with (
        (scratch / "errors").open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "ranker.cli", *words],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.kill()


class _Fuzz:
    """Sends messages to a server, and looks at it."""

    def __init__(self, seed: int, process: "subprocess.Popen[str]", address: str, errors: Path) -> None:
        self._drawer = Drawer(np.random.default_rng(seed))
        self._process, self._address, self._errors = process, address, errors
        self._codes: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self._streams = threading.BoundedSemaphore(STREAMS_AT_ONCE)
        self._under_way: set[Any] = set()
        self._crashes = self._hangs = self._without = 0
        self._problems: dict[str, None] = {}

    def run(self, messages: int) -> dict[str, Any]:
        """Send, look, and say what was found."""
        first, sent, size = b"", 0, 0
        with grpc.insecure_channel(self._address, [("grpc.max_receive_message_length", -1)]) as channel:
            first = self._good(channel)
            while sent < messages and not self._crashes:
                for _ in range(min(EACH, messages - sent)):
                    self._send(channel)
                    sent += 1
                self._settle()
                for _ in range(EACH // CONNECTIONS if messages >= EACH else 2):
                    self._connect()
                    sent += 1
                self._look(channel, first)
                size = size or self._size()
            grown = self._size() - size
        if grown > GROWTH:
            self._problems[f"the server grew by {grown:.0f} MiB"] = None
        return self._result(sent, grown)

    def _result(self, sent: int, grown: float) -> dict[str, Any]:
        internal = self._codes["INTERNAL"] + self._codes["UNKNOWN"]
        if internal:
            lines = [line for line in self._errors.read_text().splitlines() if line[:1].isalpha() and "Error" in line]
            self._problems |= dict.fromkeys(f"INTERNAL: {line[:200]}" for line in lines[:5])
        return {
            "messages": sent,
            "crashes": self._crashes,
            "hangs": self._hangs,
            "without_status": self._without,
            "internal": internal,
            "grown_mib": round(grown, 1),
            "codes": dict(self._codes),
            "problems": list(self._problems),
        }

    def _send(self, channel: grpc.Channel) -> None:
        """Send one call, once there is a place for it."""
        asked = self._drawer.call()
        places = self._streams if asked.streams else self._places
        if not places.acquire(timeout=PATIENCE):
            self._hangs += 1
            return
        how = channel.stream_stream if asked.streams else channel.stream_unary if asked.several else channel.unary_unary
        method = how(asked.method)
        request = iter(asked.messages) if asked.streams or asked.several else asked.messages[0]
        call: Any = method(request, timeout=asked.deadline) if asked.streams else method.future(request, asked.deadline)
        with self._counting:
            self._under_way.add(call)
        if asked.streams:
            threading.Thread(target=self._read, args=(call, asked, places), daemon=True).start()
        else:
            call.add_done_callback(lambda done: self._done(done, places))
            if asked.cancelled:
                call.cancel()

    def _read(self, call: Any, asked: Asked, places: threading.BoundedSemaphore) -> None:
        with contextlib.suppress(grpc.RpcError):
            for _ in call:
                if asked.cancelled:
                    call.cancel()
        self._done(call, places)

    def _done(self, call: Any, places: threading.BoundedSemaphore) -> None:
        places.release()
        code, said = call.code(), call.details() or ""
        with self._counting:
            self._under_way.discard(call)
            self._codes[code.name if isinstance(code, grpc.StatusCode) else "none"] += 1
            # A deadline, or a cancelled call, ends with a status of the caller's own.
            own = code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
            if not isinstance(code, grpc.StatusCode) or (not own and any(word in said for word in ABRUPT)):
                self._without += 1
                self._problems[f"a call ended without the server's status: {code} {said[:80]}"] = None

    def _settle(self) -> None:
        """Wait until no call is under way; count those that do not end."""
        until = time.monotonic() + PATIENCE
        while self._under_way and time.monotonic() < until:
            time.sleep(0.01)
        with self._counting:
            self._hangs += len(self._under_way)
            self._under_way.clear()

    def _connect(self) -> None:
        """Send bare bytes to the port."""
        host, _, port = self._address.rpartition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=PROMPT) as connection:
            connection.sendall(self._drawer.bytes_of_a_connection())
            connection.settimeout(0.01)
            connection.recv(1 << 12)

    def _look(self, channel: grpc.Channel, first: bytes) -> None:
        """See that the server is there and well."""
        if self._process.poll() is not None:
            self._crashes += 1
            self._problems[f"the server ended with {self._process.returncode}"] = None
            return
        begun = time.monotonic()
        try:
            request = health_pb2.HealthCheckRequest(service="pairlift.v1.RankingService")
            status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PROMPT).status
            if status != health_pb2.HealthCheckResponse.SERVING:
                self._problems[f"health: {status}"] = None
            if self._good(channel) != first:
                self._problems["a good request has another answer than at first"] = None
        except grpc.RpcError as error:
            self._hangs += 1
            self._problems[f"a good request was not answered: {error.code()}"] = None
        if time.monotonic() - begun > PROMPT:
            self._hangs += 1

    def _good(self, channel: grpc.Channel) -> bytes:
        """Return the answer to a good request, as of a time that no recorded event is before."""
        answer = channel.unary_unary(f"{SERVICE}Rank")(self._drawer.good, timeout=PROMPT)
        found = pb.RankResponse.FromString(answer)
        if not found.scores:
            self._problems["a good request has no answer"] = None
        return pb.RankResponse(items=found.items, scores=found.scores, degraded=found.degraded).SerializeToString()

    def _size(self) -> float:
        """Return the MiB that the server has in memory."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0
