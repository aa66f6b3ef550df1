"""What a server that records may take is logged before it takes it: the plan is measured against what was allocated."""

import gc
import itertools
import re
import tracemalloc
from contextlib import contextmanager
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pytest
from pairlift.v1 import ranking_pb2 as pb
from served import batch, random_batches, recording
from world import with_config

from features.counters.distinct import Distinct
from features.counters.spec import make_counters
from features.counters.timeline import Timeline
from features.errors import PairliftError
from features.log.segments import segment_files, segment_name
from features.log.writer import LogWriter
from features.newcomers import Newcomers, bytes_per_id
from features.schema import DAY, GIB, HOUR, SECOND, Catalog, empty_log
from features.state.store import State
from ranker.recording.memory import KEY, OF_KEYS, plan_memory
from ranker.recording.numbering import with_room
from ranker.server import RecordTo, Server
from ranker.settings import RecordSettings

#: commits of a log that was trained on, and events of each
COMMITS, EACH = 5, 60_000
SMALL = RecordSettings(max_events=1000, new_users=0, new_items=0)


@contextmanager
def traced():
    gc.collect()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def trained(bundle, tmp_path_factory):
    """A bundle that was trained on all that the log has, and the log's folder."""
    folder = tmp_path_factory.mktemp("trained") / "log"
    writer = LogWriter(folder, 7 * DAY, lambda: bundle.state.end)
    writer.learn()
    writer.start()
    users, items = (np.resize(ids, EACH) for ids in (bundle.state.catalog.user_ids, bundle.state.catalog.item_ids))
    for k in range(COMMITS):
        some = batch(list(range(k * EACH, (k + 1) * EACH)), users, items, np.full(EACH, bundle.state.end - HOUR))
        writer.append(some.events.append_column("play", some.feedback["play"])).result()
    writer.close()
    (segment,) = segment_files(folder)
    return with_config(replace(bundle, recorded={segment_name(segment): [(1, COMMITS)]}), record=SMALL), folder


def test_ids_of_trained_events_are_in_the_budget(trained, caplog):
    bundle, folder = trained
    without, with_ids = (plan_memory(bundle.state, 1000, ids=ids).most for ids in (0, COMMITS * EACH))
    assert with_ids - without == COMMITS * EACH * 64
    poor = with_config(bundle, record=SMALL.model_copy(update={"memory": (without + with_ids) / 2 / GIB}))
    with pytest.raises(
        PairliftError, match=r" and the 300,000 event ids that the log has beside them may take .* the "
    ):
        Server(poor, record_to=RecordTo(folder), clock="snapshot")
    rich = with_config(bundle, record=SMALL.model_copy(update={"memory": with_ids / GIB}))
    with caplog.at_level("INFO"), recording(rich, folder) as (server, _):
        assert server.recorder.count == 0
        assert server.recorder._writer.seen.bytes_used < COMMITS * EACH * 64
    assert "memory: 300,000 event ids beside those of recorded events to serve, 64 bytes each" in caplog.text


def test_a_log_that_was_read_again_is_let_go(trained):
    bundle, folder = trained
    with traced(), recording(bundle, folder) as (server, _):
        gc.collect()
        beside = tracemalloc.get_traced_memory()[0] - server.recorder._writer.seen.bytes_used
    (segment,) = segment_files(folder)[:1]
    assert segment.stat().st_size > 12e6
    assert beside < 6e6


def large_state(bundle, n):
    """A state of n events of the bundle's catalogue."""
    rng, catalog = np.random.default_rng(0), bundle.state.catalog
    ts = np.sort(bundle.state.end - rng.integers(0, 30 * DAY // SECOND, n) * SECOND - SECOND)
    log = replace(
        empty_log(("play",), n),
        user=rng.integers(0, catalog.n_users, n).astype(np.int32),
        item=rng.integers(0, catalog.n_items, n).astype(np.int32),
        ts=ts,
        grade=rng.integers(-1, 3, n).astype(np.int8),
        surface=rng.integers(-1, 2, n).astype(np.int16),
        feedback=rng.random((n, 1), np.float32),
    )
    return State.build(log, catalog, bundle.state.counters, bundle.state.grades)


@pytest.mark.parametrize("n", [100_000, 300_000])
def test_the_peak_of_a_rebuild_is_planned_and_no_guess(bundle, tmp_path, n):
    small = with_config(bundle, record=SMALL)
    with recording(small, tmp_path / "warm") as (_, client):  # what is loaded once is no part of the state
        list(client.record(list(random_batches(np.random.default_rng(1), bundle, [20], low=0))))
        client.snapshot()
    with traced():
        large = with_config(replace(bundle, state=large_state(bundle, n)), record=SMALL)
        plan = plan_memory(large.state, 1000)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] == pytest.approx(plan.now, rel=0.1)
        peaks = []
        with recording(large, tmp_path / "log") as (_, client):
            for k in range(3):
                sent = list(random_batches(np.random.default_rng(k), large, [200], first=200 * k, low=0))
                list(client.record(sent))
                tracemalloc.reset_peak()
                assert client.snapshot().frame == k + 1
                peaks.append(tracemalloc.get_traced_memory()[1])
                gc.collect()
    assert max(peaks) <= plan.most, (peaks, plan)
    assert max(peaks) > plan.most / 2, (peaks, plan)


@pytest.mark.parametrize("part", [Timeline, Distinct])
def test_arrays_that_are_counted_by_key_are_there(part):
    assert set(OF_KEYS) <= {field.name for field in fields(part)}


def random_state(rng, catalog, n):
    """A state of n random events, whose users and items hardly ever meet twice."""
    log = replace(
        empty_log((), n),
        user=rng.integers(0, catalog.n_users, n).astype(np.int32),
        item=rng.integers(0, catalog.n_items, n).astype(np.int32),
        ts=np.sort(rng.integers(0, 30 * DAY, n)),
        grade=rng.integers(0, 2, n).astype(np.int8),
    )
    return State.build(log, catalog, make_counters(None, log, catalog, ("skip", "click")), ("skip", "click"))


def test_keys_of_a_user_and_an_item_are_in_the_budget():
    """Every recorded event can be the first of its user with its item, so what is there tells nothing of them."""
    rng, further = np.random.default_rng(0), 60_000
    catalog = Catalog(user_ids=np.arange(3000), item_ids=np.arange(4000))
    before = plan_memory(random_state(rng, catalog, 20_000), further)
    after = plan_memory(random_state(rng, catalog, 20_000 + further), 0)
    met = [next(key.keys for key in plan.keys if key.name == "user_x_item") for plan in (before, after)]
    assert 0.9 * before.further < met[1] - met[0] <= before.further == further
    taken = after.now - before.now
    assert further * before.event < taken <= further * before.event + before.further * KEY
    few = Catalog(user_ids=np.arange(30), item_ids=np.arange(40))
    assert plan_memory(random_state(rng, few, 20_000), further).further == 0  # all of them have met


def test_the_memory_is_printed(bundle, tmp_path, caplog):
    with caplog.at_level("INFO"), recording(bundle, tmp_path / "log"):
        pass
    assert re.search(r"memory: user: 40 keys, \d+ bytes per key", caplog.text)
    assert re.search(r"memory: new users: room for 1,000,000, \d+ bytes each", caplog.text)
    assert re.search(r"memory: new items: room for 100,000, \d+ bytes each", caplog.text)
    without, roomy = (
        plan_memory(with_room(bundle.state, empty_log(("play",)), *room), 10_000_000).most
        for room in ((0, 0), (3_000_000, 10_000))
    )
    assert roomy - without > 3_000_000 * 200 + 10_000 * 200
    assert re.search(r"memory: table of item: \d+ keys, \d+ bytes per key", caplog.text)
    assert re.search(r"\d+ bytes per event; the state takes .* at most .* GiB with 10,000,000 recorded", caplog.text)


#: the id of so many bytes of UTF-8 that takes the most memory: one character makes all of them four bytes wide
WIDEST = "\N{GRINNING FACE}"


@pytest.mark.parametrize("limit", [16, 36, 256])
@pytest.mark.parametrize("text", [True, False])
def test_the_budget_of_new_ids_is_what_they_take_at_the_limit(bundle, text_bundle, text, limit):
    state = (text_bundle if text else bundle).state
    state = with_room(state, empty_log(("play",)), 10**6, 10**6)
    (_, _, budget), *_ = plan_memory(state, 10_000_000, limit).new
    # The dict is largest, beside its entries, when it has just grown.
    sizes = [87_382, 174_763]
    measured = max(bytes_each(ids_at(limit, n) if text else range(2**40, 2**40 + n), text) for n in sizes)
    assert measured <= bytes_per_id(text, limit) <= budget
    assert bytes_per_id(text, limit) < 2 * measured  # a budget, and no guess


def test_a_server_full_of_ids_at_the_limit_stays_within_its_budget(text_bundle, tmp_path):
    n, limit = 20_000, 256
    full = with_config(text_bundle, record=RecordSettings(max_id_bytes=limit, max_events=n, new_users=n, new_items=n))
    state = with_room(text_bundle.state, empty_log(("play",)), n, n)
    plan = plan_memory(state, n, limit)
    gc.collect()
    tracemalloc.start()
    try:
        with recording(full, tmp_path / "log") as (server, client):
            before = tracemalloc.get_traced_memory()[0]
            for k in range(0, n, 5000):
                ids = list(itertools.islice(ids_at(limit, k + 5000), k, None))
                (outcome,) = client.record([batch(ids, ids, ids, [text_bundle.state.end] * 5000)])
                assert outcome.recorded == 5000
            server.follower.drain(60)
            assert server.pipeline.state.catalog.new_items.count == n
            assert len(client.rank(ids[0], ids[:200]).items) == 200
            del ids, outcome
            gc.collect()
            taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken < plan.most - plan.now
    assert taken > 2 * n * 4 * limit  # it is the ids that were measured


def ids_at(limit, n):
    """n different ids of so many bytes in UTF-8, as wide in memory as can be."""
    return (WIDEST + str(k).rjust(limit - len(WIDEST.encode()), "0") for k in range(n))


def bytes_each(ids, text):
    """Measured bytes of an id in Newcomers, after it was in an answer too (which keeps its UTF-8 beside it)."""
    array = pa.array(ids, pa.string() if text else pa.int64())
    gc.collect()
    tracemalloc.start()
    try:
        _, new = Newcomers(room=len(array)).extended(array.to_pylist())
        if text:
            pb.Ids(texts=pb.TextIds(values=new.known))
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / len(new.known)
    finally:
        tracemalloc.stop()
