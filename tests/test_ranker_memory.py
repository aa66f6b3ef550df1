"""What a server that records may take is told before it takes it: the plan is measured against what was allocated."""

import gc
import time
import tracemalloc
import weakref
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from test_ranker_record import batch, random_batches, recording
from world import bundle_of, make_world, train_parts, with_config

from features.errors import PairliftError
from features.log.segments import segment_files, segment_name
from features.log.writer import LogWriter
from features.schema import DAY, HOUR, SECOND
from features.state.live import empty_log
from features.state.store import State
from ranker.candidates.popular import Popular
from ranker.config import RecordSettings
from ranker.lanes import Lane
from ranker.recording.memory import GIB, plan_memory
from ranker.server import Server

#: commits of a log that was trained on, and events of each
COMMITS, EACH = 5, 60_000
SMALL = RecordSettings(max_events=1000, new_users=0, new_items=0)


@pytest.fixture(scope="module")
def bundle():
    return bundle_of(train_parts(make_world(surfaces=("feed", "search"), n_users=20, n_items=40)))


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
    list(writer.replay(0))
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
        Server(poor, record_to=folder, clock="snapshot")
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


class Thing:
    """What a call returns."""


def test_an_idle_lane_holds_nothing_of_its_last_call():
    lane, thing = Lane("some", 1), Thing()
    known, future = weakref.ref(thing), lane.start(lambda one=thing: one)
    assert future.result(10) is thing
    del thing, future
    until = time.monotonic() + 10
    while known() is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert known() is None
    lane.close()


def test_popular_items_hold_no_histories_and_one_timeline(bundle):
    held = Popular(bundle.state)._state
    assert len(bundle.state.histories.ts)
    assert len(held.histories.ts) == 0
    assert [len(segment.timelines) for segment in held.segments] == [1]
