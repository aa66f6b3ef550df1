"""What the processes of a `torchrun` say to each other: which plugin is fitted on what, and how that went.

    the first                                          every other
    leading       listens, and says where         <-   follow       connects
    together      sends the plugin and its data   ->                reads them
                  plugin.fit(data)               <->                plugin.fit(data), which meet as torch has it
                  reads how it went               <-                says it, and throws its own fit away
    leading ends  closes the connection           ->   follow ends

The data is sent, so the others need no log, no stages and no settings. A process that ends, however it does, closes its
connections: nobody waits for one that is gone. Who fails says why to the first, which raises it: one sentence of all.
"""

import json
import logging
import os
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, NoReturn

from features.errors import PairliftError
from features.files import made_folder, written
from features.plugin import FitData, make_plugin, plugin_class
from ranker.torchrun.place import GRACE, place

logger = logging.getLogger(__name__)

#: of a process that cannot say why
GONE = "it has ended; the same command resumes what it took part in"
#: seconds between two looks for where the first one listens
LOOK = 0.1
#: seconds until those whose fit failed with the first one's have said so
SAID = 3.0


@dataclass(frozen=True, slots=True)
class Shared:
    """A fit that processes share, as one of the others is sent it."""

    name: str  # of the plugin
    path: str  # of its class
    params: Mapping[str, Any]
    data: FitData


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a fit went in one of the other processes."""

    at: float  # seconds since 1970, when it ended
    problem: str = ""  # a sentence
    trace: str = ""  # of what is no mistake of a user's


class Others:
    """The other processes, as the first one reaches them."""

    def __init__(self, listener: Listener, n: int) -> None:
        self.listener, self.n = listener, n
        self._connected: dict[int, Connection] = {}

    def connected(self) -> dict[int, Connection]:
        """Wait for all, and return their connections by number."""
        while len(self._connected) < self.n:
            with suppress(AuthenticationError, EOFError, OSError):  # it was none of them
                connection = self.listener.accept()
                self._connected[connection.recv()] = connection
        return dict(sorted(self._connected.items()))

    def send(self, shared: Shared) -> None:
        """Let all of them begin with a fit. Raises PairliftError where one is gone."""
        for number, connection in self.connected().items():
            data = replace(shared.data, scratch=None, heads=None, process=number, processes=self.n + 1)
            try:
                connection.send(sys.path)  # by which the class is found
                connection.send(replace(shared, data=data))
            except OSError as error:
                raise PairliftError(_told(number, GONE)) from error

    def outcome(self, number: int, within: float | None) -> Outcome | None:
        """Return how the fit went in one of them; None where it has not said so within so many seconds."""
        connection = self._connected[number]
        try:
            if within is not None and not connection.poll(within):
                return None
            found: Outcome = connection.recv()
        except (EOFError, OSError):
            return Outcome(0.0, GONE)
        return found

    def close(self) -> None:
        """Let them end."""
        for connection in self._connected.values():
            connection.close()


#: those that this process leads
_led: list[Others] = []


def processes(path: str) -> int:
    """Return how many processes fit a plugin of the class at a path together."""
    return _led[0].n + 1 if _led and getattr(plugin_class(path), "parallel", False) else 1


@contextmanager
def together(name: str, path: str, params: Mapping[str, Any], data: FitData) -> Iterator[FitData]:
    """Let the other processes fit a plugin while the block fits it; give the data that it is to fit on here.

    Where there are no others, or the class at the path does not allow for it, it is fitted here alone. Raises
    PairliftError where the fit failed in another process before it failed here.
    """
    if processes(path) == 1:
        yield data
        return
    others = _led[0]
    others.send(Shared(name, path, params, data))
    logger.info("%d processes fit it together", others.n + 1)
    try:
        yield replace(data, processes=others.n + 1)
    except PairliftError:
        raise
    except Exception as error:
        _raise_earlier(others, time.time(), error)
        raise
    for number in others.connected():
        outcome = others.outcome(number, None)
        if outcome and outcome.problem:
            raise PairliftError(_told(number, outcome.problem))


def _raise_earlier(others: Others, failed: float, error: Exception) -> None:
    """Raise what went wrong in another process before it went wrong here, if anything did: that is why."""
    until = time.monotonic() + SAID
    for number in others.connected():
        outcome = others.outcome(number, max(until - time.monotonic(), 0.0))
        if outcome and outcome.problem and outcome.at < failed:
            if outcome.trace:
                logger.error("%s", outcome.trace)
            raise PairliftError(_told(number, outcome.problem)) from error


@contextmanager
def leading(work: Path) -> Iterator[None]:
    """Be the first process while the block runs; the others wait for its fits, and end with it.

    work: a folder that all of them see. A `torchrun` that ends its processes, for one of them has failed, is a
    PairliftError here, so that the block leaves nothing half done.
    """
    made_folder(work)
    at, key = _meeting_point(work), secrets.token_bytes(32)
    with Listener((_host(), 0), authkey=key) as listener:
        with written(at) as partial:
            partial.touch(0o600)
            partial.write_text(json.dumps({"address": listener.address, "key": key.hex()}))
        before = signal.signal(signal.SIGTERM, _ended)
        others = Others(listener, place()[1] - 1)
        _led.append(others)
        try:
            yield
            others.connected()  # one that comes later would look for this one for ever
        finally:
            _led.clear()
            signal.signal(signal.SIGTERM, before)
            at.unlink(missing_ok=True)
            others.close()


def follow(work: Path) -> None:
    """Be another process: take part in the fits of the first one until that ends. work: as in `leading`.

    Raises PairliftError where a fit failed here and the first one has not ended of it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for all processes: the first one ends the others
    number = place()[0]
    with _first(work) as first, suppress(EOFError, OSError):
        first.send(number)
        while True:
            sys.path[:] = first.recv()
            outcome = _took_part(first.recv())
            first.send(outcome)
            if outcome.problem and not first.poll(GRACE):
                raise PairliftError(_told(number, outcome.problem))


def _took_part(shared: Shared) -> Outcome:
    """Fit, and throw the fit away."""
    try:
        make_plugin(shared.name, shared.path, shared.params).fit(shared.data)
    except PairliftError as error:
        return Outcome(time.time(), str(error))
    except Exception as error:
        failed = time.time()
        said = f"[plugins.{shared.name}] fit() raised {type(error).__name__}: {error}"
        return Outcome(failed, said, traceback.format_exc())
    return Outcome(time.time())


def _first(work: Path) -> Connection:
    """Connect to the first process, once it listens."""
    at, parent = _meeting_point(work), os.getppid()
    while os.getppid() == parent:
        with suppress(OSError, ValueError, KeyError, EOFError, AuthenticationError):  # not there yet, or an earlier one
            found = json.loads(at.read_text())
            return Client(tuple(found["address"]), authkey=bytes.fromhex(found["key"]))
        time.sleep(LOOK)
    sys.exit(1)  # the `torchrun` is gone, and the first process may never have been


def _meeting_point(work: Path) -> Path:
    """Return the file that says where the first process listens; each start of a `torchrun` has its own."""
    names = ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    return work / f".torchrun-{'-'.join(os.environ[name] for name in names)}.json"


def _host() -> str:
    """Return where the first process listens: to its own machine alone, where all others are there."""
    here = os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]
    return "127.0.0.1" if here else os.environ["MASTER_ADDR"]


def _told(number: int, problem: str) -> str:
    return f"process {number} of torchrun: {problem}"


def _ended(*_: object) -> NoReturn:
    raise PairliftError("torchrun ends this process: another one of its processes has ended, or it was told to")
