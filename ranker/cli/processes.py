"""How `serve` runs a server: in this process, or in several that share a port and what was loaded.

And how a command that writes a file ends where it is told to.
"""

import contextlib
import os
import select
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from ranker.serving.processes.signals import TOLD, told

if TYPE_CHECKING:  # the kernels take a second to import, and `serve --help` needs none
    from ranker.server import Prepared, Server
    from ranker.serving.listener import Listener

#: the process that records, in a server of several that does, and the one that looks for bundles to deploy
RECORDS, FOLLOWS = 0, 1


def until_told(make: Callable[[], "Server"], drain: float, on_ready: Callable[["Server"], None]) -> None:
    """Make a server and answer until SIGTERM, and `drain` seconds longer, or Ctrl-C; a second signal ends it at once.

    on_ready: called with the server once it answers.
    """
    with told(TOLD) as signals:
        server = make()
        server.start()
        on_ready(server)
        if _next(signals) == signal.SIGTERM and drain:
            click.echo(f"pairlift is draining: health says NOT_SERVING, and requests are answered for {drain:g} s more")
            server.drain()
            _next(signals, drain)
        click.echo("pairlift is stopping: calls under way are finished")
        server.stop()
    for number in TOLD:  # it has stopped: a further one changes nothing
        signal.signal(number, signal.SIG_IGN)


def _next(signals: int, seconds: float | None = None) -> int | None:
    """Return the number of the next signal; None where so many seconds pass without one. signals: of `told`."""
    ready, _, _ = select.select([signals], [], [], seconds)
    return os.read(signals, 1)[0] if ready else None


@contextlib.contextmanager
def ended_in_order(left: str) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the block by an exception, so that it puts away what is half done.

    left: what the sentence says of what is there then.
    """

    def end(number: int, _: object) -> None:
        ended_by.append(number)
        raise SystemExit(128 + number)  # as a shell has it

    ended_by: list[int] = []
    before = {number: signal.signal(number, end) for number in TOLD}
    try:
        yield
    except SystemExit:
        if ended_by:
            click.echo(f"stopped by {signal.Signals(ended_by[0]).name}: {left}", err=True)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Place(NamedTuple):
    """Where a server of several processes answers."""

    processes: int  # that answer
    host: str
    port: int  # 0: any free one
    metrics_port: int | None  # of the first process, those of the others follow; 0: any free ones, None: none
    bundles: Path | None  # the folder that keeps what is deployed; None: one for as long as the server runs
    drain: float  # seconds, as for `until_told`


def run_processes(
    prepared: "Prepared",
    make: Callable[..., "Server"],
    listen: Callable[..., "Listener"],
    place: Place,
    on_ready: Callable[[str, str], None],
) -> None:
    """Answer from several processes, and one more that records where the server does, until SIGTERM or Ctrl-C.

    make, listen: return the server of a process (of a `listener` and what it has `forked`), and what listens on a port
    and answers metrics on another, in that process. on_ready: called with the addresses of both, of metrics empty where
    there are none, once all answer. PairliftError where the port is taken, or a process ends before it is ready.
    """
    from ranker.server import Forked
    from ranker.serving.listener import Listener
    from ranker.serving.port import UNIX, address_of, reserve
    from ranker.serving.processes.supervisor import Supervisor

    held, port = reserve(place.host, place.port)
    folder = Path(tempfile.mkdtemp(prefix="pairlift-"))  # nobody else may enter it
    records = prepared.recorder is not None
    socket = folder / "recorder.sock" if records else None
    # Of the process that records, the others are the callers, and they have counted theirs.
    alone = prepared.served.bundle.config.serve.model_copy(update={"calls_per_caller": 0})

    def work(number: int, on_ready: Callable[[], None]) -> None:
        if number == RECORDS:  # told last, when those that others ask are gone
            (folder / "recorder.sock").unlink(missing_ok=True)
            listener, forked = Listener(f"{UNIX}{socket}", 0, alone), Forked(prepared, answers=False)
        else:
            metrics = place.metrics_port + number - 1 if place.metrics_port else place.metrics_port
            listener, forked = listen(port, metrics_port=metrics), Forked(prepared, socket)
        drain = 0.0 if number == RECORDS else place.drain
        # What one process deploys the others follow by this folder.
        bundles = place.bundles or folder / "bundles"
        begin = partial(make, listener=listener, forked=forked, bundles=bundles)
        # One looks for a bundle to deploy; else each would try the same.
        until_told(begin if number == FOLLOWS else partial(begin, follow=None), drain, lambda _: on_ready())

    prepared.served.warm()
    prepared.pause()
    try:
        numbers = range(RECORDS if records else RECORDS + 1, place.processes + 1)
        metrics = address_of(place.host, place.metrics_port) if place.metrics_port else ""
        Supervisor(work, numbers, place.drain).run(lambda: on_ready(address_of(place.host, port), metrics))
    finally:
        held.close()
        shutil.rmtree(folder, ignore_errors=True)
