"""Tables of latest totals: how long the windows in them hold."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import catalog, logs
from world import GRADES

from features.counters.latest import Latest
from features.counters.spec import Counter, Span
from features.schema import HOUR, EventLog, Requests, one_request
from features.state.read import counter_values
from features.state.store import State

WINDOWS = (3 * HOUR, 24 * HOUR)
COUNTERS = (
    *(Counter(("item",), "like", Span.parse(span), "rate", strength=4.0, prior=0.3) for span in ("w3h", "w1d", "all")),
    Counter(("item",), "impression", Span.parse("w3h"), "count"),
)


@given(
    logs(),
    st.sampled_from([0, *WINDOWS]),
    st.one_of(st.integers(0, 40 * HOUR), st.integers(-12, 12).map(lambda hours: hours * HOUR)),
    st.integers(-1, 1),
)
@settings(max_examples=200, deadline=None)
def test_windows_are_read_anew_once_an_event_has_left_them(log: EventLog, window: int, later: int, by: int) -> None:
    """At the very microsecond at which an event leaves a window, just before and just after it, and at any time.

    The oracle counts the events that a window has lost, one by one.
    """
    state, items = State.build(log, catalog(), COUNTERS, GRADES), np.array([0, 1, 2, 3, -1, 2], np.int32)
    (plan,), (timeline,) = state.plans, state.levels[0].timelines
    table = Latest.of(plan, timeline)
    as_of = max(table.end + later, 12 * HOUR + window + later + by, table.end)
    changed = table.gather(items, as_of, np.empty(0, np.float32), np.empty((6, len(COUNTERS)), np.float32))

    def lost(item: int, size: int) -> bool:
        ts = log.ts[log.item == item]
        return bool(((ts >= table.end - size) & (ts < as_of - size)).any())

    must = {row for row, item in enumerate(items.tolist()) if item >= 0 and any(lost(item, size) for size in WINDOWS)}
    assert must <= set(changed.tolist())  # a number of µs is rounded down, by 6e-8 of it
    for row in set(changed.tolist()) - must:
        soon = as_of + (as_of - table.end) // 2**23 + 1
        of = log.ts[log.item == items[row]]
        assert any(((of >= table.end - size) & (of < soon - size)).any() for size in WINDOWS)

    windows = [c.span.kind == "w" for c in COUNTERS]
    both = Requests(
        user=np.array([0, 0], np.int32),
        as_of=np.full(2, as_of),
        surface=np.zeros(2, np.int16),
        offsets=np.array([0, 6, 12]),
        item=np.concatenate([items, items]),
    )
    one = counter_values(state, one_request(0, as_of, 0, items))
    np.testing.assert_array_equal(one[:, windows], counter_values(state, both)[:6, windows])
