"""Servers as tests run them, what is sent to them, and the same events by another way; and the commands."""

import contextlib
import time
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc
from logs import mapping_of
from world import with_config

from features.log.dataset import import_log
from features.log.loading import load_log
from features.log.segments import segment_files
from features.schema import DAY, HOUR, MINUTE, Requests, merged
from features.state.read import counter_values
from features.state.store import State
from ranker.cli.main import cli
from ranker.client import Client
from ranker.ids import IdTable
from ranker.recording.batch import Batch
from ranker.recording.events import EventReader
from ranker.server import RecordTo, Server
from ranker.settings import RecordSettings


def pairlift(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [str(w) for w in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@contextlib.contextmanager
def serving(bundle, **options):
    server = Server(bundle, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop(grace=0)


ROOT = Path(__file__).parent.parent
#: users and items that no bundle of this file was trained on
NEW = (1, 2, 5)


@contextlib.contextmanager
def recording(bundle, folder, origin=None, **options):
    server = Server(bundle, record_to=RecordTo(folder, origin), **{"clock": "snapshot", **options})
    server.start()
    try:
        with Client(server.address, timeout=20) as client:
            yield server, client
    finally:
        server.stop(grace=0)


def batch(ids, users, items, ts, play=None, **columns):
    n = len(ids)
    table = {
        "event_id": ids,
        "user_id": users,
        "item_id": items,
        "ts": pa.array(np.asarray(ts, np.int64)),
        "surface": pa.array(columns.get("surface", [None] * n), pa.string()),
        "organic": pa.array(columns.get("organic", [None] * n), pa.bool_()),
        "request_id": pa.array(columns.get("request_id", [None] * n), pa.string()),
        "position": pa.array(columns.get("position", [None] * n), pa.int32()),
    }
    feedback = {"play": pa.array(play if play is not None else [0.5] * n, pa.float64())}
    return Batch(pa.table(table), {**feedback, **columns.get("feedback", {})}, columns.get("grades", []))


def random_batches(rng, bundle, sizes, first=0, low=-2 * DAY, high=3 * HOUR):
    """Batches in any order of time, with unknown users and items, ties and nulls; ids count on from `first`."""
    catalog, end = bundle.state.catalog, bundle.state.end
    users, items = np.append(catalog.user_ids, NEW), np.append(catalog.item_ids, NEW)
    for n in sizes:
        ts = end + rng.integers(low // MINUTE, high // MINUTE, n) * MINUTE
        play = [None if rng.random() < 0.1 else float(v) for v in rng.choice([0.1, 0.5, 1.0], n)]
        surface = [("feed", "search", None, "elsewhere")[k] for k in rng.integers(0, 4, n)]
        yield batch(
            list(range(first, first + n)), rng.choice(users, n), rng.choice(items, n), ts, play, surface=surface
        )
        first += n


def log_of(bundle, batches, catalog=None):
    """The same events by another way: straight into an EventLog."""
    catalog = catalog or bundle.state.catalog
    reader = EventReader(bundle, IdTable(catalog.user_ids).find, IdTable(catalog.item_ids).find)
    return merged([reader.read(pa.table({**_columns(b.events), "play": b.feedback["play"]})) for b in batches])


def _columns(table):
    return {name: table[name] for name in table.column_names}


def padded(attribute, n):
    """The attribute with n more users or items, of which nothing is known."""
    return replace(
        attribute,
        codes=attribute.codes if attribute.kind == "multi" else np.append(attribute.codes, np.full(n, -1, np.int32)),
        offsets=np.append(attribute.offsets, np.repeat(attribute.offsets[-1:], n)),
        numbers=np.append(attribute.numbers, np.full(n, np.nan, np.float32)),
    )


def knowing(catalog, batches):
    """The catalogue with the new users and items of batches, in their order, behind its own."""
    users, items = (
        [one for b in batches for one in dict.fromkeys(b.events[name].to_pylist()) if one not in known]
        for name, known in (("user_id", catalog.user_ids), ("item_id", catalog.item_ids))
    )
    users, items = list(dict.fromkeys(users)), list(dict.fromkeys(items))
    return replace(
        catalog,
        user_ids=np.append(catalog.user_ids, np.array(users, np.int64)),
        item_ids=np.append(catalog.item_ids, np.array(items, np.int64)),
        item_attributes=tuple(padded(a, len(items)) for a in catalog.item_attributes),
    )


def expected_state(bundle, world, batches):
    catalog = knowing(world.catalog, batches)
    log = merged([world.log, log_of(bundle, batches, catalog)])
    return State.build(log, catalog, bundle.state.counters, world.grades)


def same(state, want):
    n_users, n_items = want.catalog.n_users, want.catalog.n_items
    for as_of in (want.end - 2 * DAY, want.end - 1, want.end, want.end + DAY):
        requests = Requests(
            user=np.arange(n_users, dtype=np.int32),
            as_of=np.full(n_users, as_of, np.int64),
            surface=np.zeros(n_users, np.int16),
            offsets=np.arange(n_users + 1, dtype=np.int64) * n_items,
            item=np.tile(np.arange(n_items, dtype=np.int32), n_users),
        )
        np.testing.assert_allclose(
            counter_values(state, requests), counter_values(want, requests), rtol=1e-6, atol=1e-6
        )
        (a, b), (c, d) = (
            state.histories.before(requests.user, requests.as_of),
            want.histories.before(requests.user, requests.as_of),
        )
        assert n_users <= state.catalog.all_users or not (d - c)[state.catalog.all_users :].any()
        for user in range(n_users):
            assert sorted(state.histories.item[a[user] : b[user]]) == sorted(want.histories.item[c[user] : d[user]])


def shown(client, user, item, surface="feed"):
    """The features of one item for one user, by name, as `rank --explain` shows them."""
    answer = client.rank(user, [item], surface=surface, explain=True)
    return {name: value for name, value, _ in answer.items[0].features}


def health_of(server, name):
    with grpc.insecure_channel(server.address) as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def within(seconds, true):
    until = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def record_and_export(bundle, folder, batches):
    """Record in small segments, and start again: what was open is closed, and all are written as Parquet."""
    small = with_config(bundle, record=RecordSettings(segment_mb=0.001))
    with recording(small, folder) as (_, client):
        list(client.record(batches))
    with recording(small, folder):
        until = time.monotonic() + 5
        while len(list((folder / "events").glob("*.parquet"))) < len(batches) and time.monotonic() < until:
            time.sleep(0.05)


def exported(bundle, folder):
    """Start a server on a log, and return its Parquet files once every segment that was closed has one."""
    with recording(bundle, folder):
        closed = {path.stem for path in segment_files(folder)[:-1]}
        until = time.monotonic() + 5
        while {p.stem for p in (folder / "events").glob("*.parquet")} != closed and time.monotonic() < until:
            time.sleep(0.05)
    return sorted((folder / "events").glob("*.parquet"))


def imported_from(bundle, folder, source, zone="UTC"):
    """The events of a source as a training reads them."""
    events = bundle.config.events.model_copy(update={"source": source, "surface": "surface"})
    import_log(mapping_of(folder, events, tuple(bundle.config.grades), zone), folder / "log.duckdb")
    return load_log(folder / "log.duckdb")


def user_id(world, k):
    return int(world.catalog.user_ids[k])
