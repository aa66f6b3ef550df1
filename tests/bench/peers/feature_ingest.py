"""Recording over gRPC: acknowledged, durable events a second, and how soon they are in the served features.

A part of `make bench WHAT=features`, in a process of its own, which it binds to a core. By itself, from the repository:
PYTHONPATH=tests python -P tests/bench/peers/feature_ingest.py [--seconds 10] [--base 1000000]
A client process sends batches of 1,000 over one stream; the server (handler, log, folding, rebuilding the base) runs
on one core, the client on another where there is one. Two runs: as fast as it goes, for the events acknowledged a
second; and at 50,000 events/s, for the time from a batch's acknowledgement until the served state has it (an observer
in the server's process looks every few milliseconds). Before anything is timed, the events of a small run are checked
against a state that was built from them directly. Loopback only; bounded by --seconds and by [record] max_events.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pyarrow as pa
from world import bundle_of, make_world, train_parts, with_config

from features.schema import SECOND, EventLog, Requests, empty_log
from features.state.histories import Histories
from features.state.read import counter_values
from features.state.store import State
from ranker.bundle import Bundle
from ranker.client import Client
from ranker.recording.batch import Batch
from ranker.recording.recorder import SWITCH
from ranker.recording.wire import batch_message
from ranker.server import RecordTo, Server
from ranker.settings import RecordSettings

SIZE = 1000
USERS, ITEMS = 20_000, 10_000
#: events a second of the paced run: the bar
PACE = 50_000
#: messages that are sent over and over with other ids: made before the clock starts
MADE = 64


def served(base: int) -> Bundle:
    """Return a bundle of many users and items, and a base of that many events of a skewed popularity."""
    world = make_world(n_users=200, n_items=ITEMS, requests_per_user=12)
    parts = train_parts(world)
    catalog = replace(world.catalog, user_ids=np.arange(USERS, dtype=np.int64))
    rng = np.random.default_rng(0)
    log = replace(
        empty_log(world.log.feedback_names, base),
        user=rng.integers(0, USERS, base).astype(np.int32),
        item=skewed(rng, base),
        ts=np.sort(rng.integers(int(world.log.ts[0]), int(world.log.ts[-1]), base)),
        grade=rng.integers(0, 3, base).astype(np.int8),
        feedback=rng.random((base, 1)).astype(np.float32),
    )
    state = State.build(log, catalog, parts.state.counters, world.grades)
    bundle = replace(bundle_of(parts), state=state)
    return with_config(bundle, record=RecordSettings(max_events=6_000_000))


def skewed(rng: np.random.Generator, n: int) -> Any:
    """Return int32[n] items, the first most often."""
    return np.minimum((ITEMS * rng.random(n) ** 3).astype(np.int32), ITEMS - 1)


def events(rng: np.random.Generator, bundle: Bundle, n: int, first: int) -> Batch:
    """Return n events behind the end of the state."""
    table = pa.table(
        {
            "event_id": np.arange(first, first + n),
            "user_id": rng.integers(0, USERS, n),
            "item_id": bundle.state.catalog.item_ids[skewed(rng, n)],
            "ts": bundle.state.end + rng.integers(0, SECOND, n),
            "surface": pa.nulls(n, pa.string()),
            "organic": pa.array(np.zeros(n, bool)),
            "request_id": pa.array([f"request-{k // 10}" for k in range(n)]),
            "position": pa.array(np.arange(n) % 10, pa.int32()),
        }
    )
    return Batch(table, {"play": pa.array(rng.random(n))}, [])


def send(address: str, messages: list[Any], seconds: float, pace: float, core: int | None, tell: Any) -> None:
    """Send batches over one stream for so long, at most `pace` events/s; tell the start, and when each was answered."""
    import grpc
    from pairlift.v1 import ranking_pb2_grpc

    if core is not None:
        os.sched_setaffinity(0, {core})
    stub = ranking_pb2_grpc.RankingServiceStub(grpc.insecure_channel(address))
    begun, acknowledged = time.monotonic(), []

    def stream() -> Any:
        first = 0
        while time.monotonic() < begun + seconds:
            message = messages[(first // SIZE) % len(messages)]
            del message.event_ids.integers.values[:]
            message.event_ids.integers.values.extend(range(first, first + SIZE))
            time.sleep(max(0.0, begun + first / pace - time.monotonic()))
            first += SIZE
            yield message

    for answer in stub.RecordEvents(stream()):
        if answer.recorded != SIZE:
            raise SystemExit(f"a batch was not recorded whole: {answer}")
        acknowledged.append(time.monotonic())
    tell.send((begun, acknowledged))


def check(bundle: Bundle) -> None:
    """Compare the state after recording with one that is built from the same events."""
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(bundle, clock="snapshot", record_to=RecordTo(Path(folder)))
        server.start()
        with Client(server.address) as client:
            if [o.recorded for o in client.record(events(rng, bundle, 500, k * 500) for k in range(4))] != [500] * 4:
                raise SystemExit("not all events were recorded")
        live = server.recorder.live
        live.drain(10)
        everything: EventLog = live.state.histories.log(("play",))
        want = State.build(everything, bundle.state.catalog, bundle.state.counters, bundle.state.grades)
        asked = Requests(
            user=np.arange(20, dtype=np.int32), as_of=np.full(20, live.state.end), surface=np.zeros(20, np.int16),
            offsets=np.arange(21, dtype=np.int64) * 100, item=np.tile(np.arange(100, dtype=np.int32), 20),
        )  # fmt: skip
        np.testing.assert_allclose(counter_values(live.state, asked), counter_values(want, asked), rtol=1e-5, atol=1e-6)
        if len(Histories.build(everything, USERS).ts) != len(bundle.state.histories.ts) + 2000:
            raise SystemExit("the histories have not all events")
        server.stop(0)


def watch(live: Any, seen: list[tuple[float, int]], done: threading.Event) -> None:
    """Note when the served state got which frame."""
    while not done.is_set():
        if not seen or live.frame != seen[-1][1]:
            seen.append((time.monotonic(), live.frame))
        time.sleep(0.005)


class Measured(NamedTuple):
    """events acknowledged, and a second; seconds until each batch was visible; bytes of log; levels at the end."""

    events: int
    rate: float
    visible: Any
    size: int
    levels: int


def pin(core: int) -> None:
    """Bind this process to a core: the threads that there are, and those to come."""
    for task in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(task), {core})


def measure(bundle: Bundle, raw: list[bytes], seconds: float, pace: float, cores: list[int]) -> Measured:
    """Record for so long into a new log."""
    hear, tell = multiprocessing.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        server = Server(bundle, clock="snapshot", record_to=RecordTo(Path(folder)))
        server.start()
        core = cores[1] if len(cores) > 1 else None
        arguments = (server.address, raw, seconds, pace, core, tell)
        client = multiprocessing.get_context("spawn").Process(target=spawned, args=arguments)
        pin(cores[0])
        live, seen, done = server.recorder.live, [], threading.Event()
        observer = threading.Thread(target=watch, args=(live, seen, done))
        observer.start()
        client.start()
        begun, acknowledged = hear.recv()
        client.join()
        levels = len(live.state.levels)
        live.drain(30)
        time.sleep(0.05)
        done.set()
        observer.join()
        server.stop(0)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.log"))
    # One stream, a batch a frame: frame k + 1 is the k-th batch.
    times, frames = np.array([t for t, _ in seen]), np.array([f for _, f in seen])
    shown = times[np.searchsorted(frames, np.arange(1, len(acknowledged) + 1))] - np.array(acknowledged)
    events = len(acknowledged) * SIZE
    return Measured(events, events / (acknowledged[-1] - begun), shown, size, levels)


@click.command()
@click.option("--seconds", default=10.0, show_default=True, help="Of each of the two runs.")
@click.option("--base", default=1_000_000, show_default=True, help="Events of the bundle.")
def main(seconds: float, base: int) -> None:
    """Print a table, and one line of JSON."""
    sys.setswitchinterval(SWITCH)  # as `pairlift serve --log` does
    bundle = served(base)
    check(bundle)
    cores = sorted(os.sched_getaffinity(0))
    rng = np.random.default_rng(2)
    raw = [batch_message(events(rng, bundle, SIZE, 0)).SerializeToString() for _ in range(MADE)]
    full, paced = (measure(bundle, raw, seconds, pace, cores) for pace in (float("inf"), PACE))
    click.echo(f"batches of {SIZE:,}, one stream, a base of {base:,} events, the server on one core")
    click.echo(f"{'':18}{'events':>10}{'events/s':>10}{'visible after s: p50':>22}{'p99':>7}{'max':>7}{'levels':>10}")
    for name, m in (("as fast as it goes", full), (f"at {PACE:,}/s", paced)):
        p50, p99 = np.quantile(m.visible, [0.5, 0.99])
        click.echo(f"{name:18}{m.events:10,}{m.rate:10,.0f}{p50:22.3f}{p99:7.3f}{m.visible.max():7.3f}{m.levels:10}")
    click.echo(f"bytes of log per event: {full.size / full.events:.1f}")
    result = {
        "events_per_second": round(full.rate),
        "visible_seconds": _s(paced.visible.max()),
        "visible_p50": _s(np.median(paced.visible)),
        "visible_at_full_load": _s(full.visible.max()),
        "paced": round(paced.rate),
        "batch": SIZE,
        "base_events": base,
        "recorded": full.events + paced.events,
    }
    click.echo(json.dumps(result))


def _s(value: float) -> float:
    return round(float(value), 3)


def spawned(address: str, raw: list[bytes], seconds: float, pace: float, core: int | None, tell: Any) -> None:
    """Run `send` in a process of its own."""
    from pairlift.v1 import ranking_pb2 as pb

    send(address, [pb.RecordEventsRequest.FromString(m) for m in raw], seconds, pace, core, tell)


if __name__ == "__main__":
    main()
