"""What requests said of themselves stays with their events: live, when all is made anew, and in snapshots."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_features_state import COUNTERS, WORLD, known_of, some_log

from features.arrays import load_arrays, save_arrays
from features.schema import DAY, Attribute, EventLog, empty_log, merged
from features.state import live
from features.state.histories import Histories, HistoryBuffer
from features.state.live import Live
from features.state.snapshot import load_state, save_state
from features.state.store import State

CATALOG = replace(
    WORLD.catalog, contexts=(Attribute("device", "categorical", values=("phone", "tv")), Attribute("age", "numeric"))
)
LAST = int(WORLD.log.ts[-1])


def said(rng, log):
    """The log with a context of each event, of which some is unknown."""
    context = np.stack([rng.choice([np.nan, 0, 1], len(log)), rng.choice([np.nan, 0.5, 30.0], len(log))], axis=1)
    return replace(log, context=context.astype(np.float32))


def later(rng, k, n=50):
    """A batch of live events, each third one weeks late."""
    return said(rng, merged([some_log(rng, n, 8, LAST - 20 * DAY if k % 3 == 0 else LAST, LAST + (k + 1) * DAY)]))


def same_as_of(histories, log):
    want = Histories.build(known_of(log), WORLD.catalog.n_users)
    assert want.context.shape == (len(want.ts), 2)
    for name in ("offsets", "item", "ts", "context"):
        np.testing.assert_array_equal(getattr(histories.compact(), name), getattr(want, name))


@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_live_histories_have_the_context_of_each_event(seed, sizes):
    rng = np.random.default_rng(seed)
    log = known_of(said(rng, WORLD.log.select(slice(60))))
    buffer, held = HistoryBuffer(Histories.build(log, WORLD.catalog.n_users)), []
    for k, n in enumerate(sizes):
        new = known_of(later(rng, k, n))
        log = merged([log, new])
        held.append((buffer.extended(new), log))
    for histories, then in held:
        same_as_of(histories, then)


def test_it_is_folded_rebuilt_written_and_gone_on_from(tmp_path, monkeypatch):
    rng, log = np.random.default_rng(4), said(np.random.default_rng(5), WORLD.log)
    for name, value in {"MEMTABLE": 40, "RUNS": 2, "LEAST": 100, "SHARE": 0.0}.items():
        monkeypatch.setattr(live, name, value)
    served = Live(State.build(log, CATALOG, COUNTERS, WORLD.grades), ("play",), every=0.001)
    for k in range(5):
        new = later(rng, k)
        log = merged([log, new])
        served.add(new, k + 1)
        served.drain(20)
    same_as_of(served.state.histories, log)
    frozen = served.freeze().result(20)
    served.close()
    same_as_of(frozen.state.histories, log)
    save_state(tmp_path / "state", frozen.state)
    save_arrays(tmp_path / "unplaced", frozen.unplaced)
    state, unplaced = load_state(tmp_path / "state"), load_arrays(tmp_path / "unplaced", EventLog)
    same_as_of(state.histories, log)
    assert unplaced.context.shape == (len(unplaced), 2)
    assert len(unplaced) > 0
    new = later(rng, 9)
    gone_on = Live(state, ("play",), unplaced, 5, every=0.001)
    gone_on.add(new, 6)
    gone_on.drain(20)
    gone_on.close()
    same_as_of(gone_on.state.histories, merged([log, new]))


def test_a_snapshot_from_before_is_served_without_it(tmp_path):
    rng = np.random.default_rng(6)
    save_state(tmp_path / "state", State.build(said(rng, WORLD.log), CATALOG, COUNTERS, WORLD.grades))
    (tmp_path / "state" / "histories" / "context.npy").unlink()
    state = load_state(tmp_path / "state")
    assert state.histories.context.shape == (len(WORLD.log), 0)
    served = Live(state, ("play",), every=0.001)
    served.add(merged([some_log(rng, 30, 8, LAST, LAST + DAY)]), 1)
    served.drain(20)
    served.close()
    assert served.state.histories.sizes.sum() > len(WORLD.log)


def test_without_events_context_all_files_are_as_before(tmp_path):
    save_state(tmp_path / "state", State.build(WORLD.log, WORLD.catalog, COUNTERS, WORLD.grades))
    save_arrays(tmp_path / "unplaced", empty_log(("play",)))
    files = {path.stem for folder in ("state/histories", "unplaced") for path in (tmp_path / folder).iterdir()}
    histories = {"offsets", "item", "ts", "grade", "surface", "organic", "feedback", "arm", "fields"}
    assert files == histories | {"user", "request", "pairable"}
    assert load_state(tmp_path / "state").histories.context.shape == (len(WORLD.log), 0)


def test_a_context_of_some_events_is_a_mistake():
    with pytest.raises(ValueError, match="the contexts of 3 events were expected, found 2"):
        replace(empty_log((), 3), context=np.zeros((2, 1), np.float32))
