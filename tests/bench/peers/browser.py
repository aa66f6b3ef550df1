"""Headless Chromium by its DevTools protocol over a pipe (`--remote-debugging-pipe`): no port, no further library."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

#: names that it goes by
NAMES = ("chromium", "chromium-browser", "google-chrome")
#: seconds that one answer may take, on a busy machine
PATIENCE = 60
#: fds of the pipe, as the protocol has them: what Chromium reads, and what it writes
READS, WRITES = 3, 4


def chromium() -> str | None:
    """Return the path of the first Chromium on PATH; None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One page of a running Chromium, and all that happened to it: console, network."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive, self._left = send, receive, b""
        self._number, self._session = 0, ""
        self.console: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    @classmethod
    @contextmanager
    def started(cls) -> Iterator[Self]:
        """Run Chromium while the block runs."""
        path = chromium()
        if path is None:
            raise FileNotFoundError(f"none of {', '.join(NAMES)} is on PATH: `apt-get install chromium`")
        (reads, send), (receive, writes) = _pipe(), _pipe()

        def named() -> None:
            os.dup2(reads, READS)
            os.dup2(writes, WRITES)

        with tempfile.TemporaryDirectory(prefix="page-", ignore_cleanup_errors=True) as profile:
            # As root there is no sandbox; the page is our own. No host is resolved, so nothing leaves the machine.
            options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
            options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}"]
            command = [path, *options, "--remote-debugging-pipe"]
            fds, quiet = (READS, WRITES), subprocess.DEVNULL
            with subprocess.Popen(command, pass_fds=fds, preexec_fn=named, stdout=quiet, stderr=quiet) as process:  # noqa: PLW1509
                os.close(reads)
                os.close(writes)
                try:
                    yield cls(send, receive)
                finally:
                    os.close(send)  # it ends with its pipe, and takes its children along
                    os.close(receive)
                    try:
                        process.wait(PATIENCE)
                    except subprocess.TimeoutExpired:
                        process.kill()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the answer of a command of the protocol; what happens meanwhile is noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return dict(found["result"])

    def open(self, path: Path, width: int = 1100, height: int = 800) -> None:
        """Open a file as a page of that width, in px, and wait until it is loaded."""
        self.resize(width, height)
        self.console.clear()
        self.requests.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        until = time.monotonic() + PATIENCE
        while self.run("document.readyState") != "complete" or self.run("location.href") == "about:blank":
            if time.monotonic() > until:
                raise TimeoutError(f"{path} was not loaded in {PATIENCE} s")

    def resize(self, width: int, height: int) -> None:
        """Show the page as on a screen of that size, in px."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=True)

    def media(self, scheme: str = "light", kind: str = "screen") -> None:
        """Show it in `light` or `dark`, on the `screen` or in `print`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=kind, features=features)

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["text"])
        return found["result"].get("value")

    def picture(self, path: Path, whole: bool = False) -> None:
        """Write what is seen as PNG. whole: to the page's foot."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def _next(self) -> dict[str, Any]:
        """Return the next message."""
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._receive], [], [], max(until - time.monotonic(), 0))
            if not ready:
                raise TimeoutError(f"Chromium did not answer in {PATIENCE} s")
            read = os.read(self._receive, 1 << 20)
            if not read:
                raise ConnectionError("Chromium has ended")
            self._left += read
        text, _, self._left = self._left.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        of, params = message.get("method", ""), message.get("params", {})
        if of == "Runtime.exceptionThrown":
            self.console.append(str(params["exceptionDetails"]["text"]))
        elif of == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.console.append(str(params["args"]))
        elif of == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.console.append(str(params["entry"]["text"]))
        elif of == "Network.requestWillBeSent":
            self.requests.append(str(params["request"]["url"]))


def _pipe() -> tuple[int, int]:
    """Return the two ends of a pipe, above what the child's are to be called."""
    ends = os.pipe()
    reads, writes = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return reads, writes
