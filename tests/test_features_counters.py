"""Counters as of any time equal the plain-Python oracle, on random logs with ties, nulls and cold keys."""

import tempfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import COUNTERS, catalog, logs
from world import GRADES

from features.counters.defaults import default_settings
from features.counters.spec import ambiguous_events, make_counters, parse_column
from features.errors import PairliftError
from features.rows import assemble, make_spec
from features.schema import HOUR, EventLog, Requests, empty_log, one_request
from features.settings import CounterSettings
from features.state.read import counter_values
from features.state.snapshot import load_state, save_state
from features.state.store import State


def asked_at(asked: list[tuple[int, int, int, int]]) -> Requests:
    """Requests of one candidate: (user, item, surface, quarter of an hour), in the arm that the quarter says."""
    user, item, surface, quarter = (np.array([a[k] for a in asked], np.int64) for k in range(4))
    return Requests(
        user=user.astype(np.int32),
        as_of=quarter * HOUR // 4,
        surface=surface.astype(np.int16),
        offsets=np.arange(len(asked) + 1),
        item=item.astype(np.int32),
        arm=(quarter % 3 - 1).astype(np.int16),
    )


ASKED = st.lists(st.tuples(st.integers(-1, 2), st.integers(-1, 3), st.integers(-1, 1), st.integers(0, 56)), max_size=4)


@given(logs(), ASKED)
@settings(max_examples=40, deadline=None)
def test_counters_equal_the_oracle(log: EventLog, asked: list[tuple[int, int, int, int]]) -> None:
    state = State.build(log, catalog(), COUNTERS, GRADES)
    requests = asked_at(asked)
    got = counter_values(state, requests)
    for row, (u, i, s, _) in enumerate(asked):
        as_of, arm = int(requests.as_of[row]), int(requests.arm[row])
        want = [oracles.counter_value(c, log, catalog(), GRADES, u, i, s, as_of, arm) for c in COUNTERS]
        np.testing.assert_allclose(got[row], np.array(want), rtol=1e-6, atol=1e-6)


@given(logs(), ASKED, st.lists(st.integers(0, 3), min_size=30, max_size=30))
@settings(max_examples=40, deadline=None)
def test_a_base_and_its_extensions_equal_the_whole(
    log: EventLog, asked: list[tuple[int, int, int, int]], part: list[int]
) -> None:
    """Each event falls into any of four parts: later parts hold older events, and repeat what a part before has."""
    of = np.array(part)[: len(log)]
    state = State.build(select(log, of == 0), catalog(), COUNTERS, GRADES)
    requests = asked_at(asked)
    for number in range(1, 4):
        counter_values(state, requests)  # what a state remembers must not outlive it
        state = state.extended(select(log, of == number))
    whole = State.build(log, catalog(), COUNTERS, GRADES)
    np.testing.assert_allclose(
        counter_values(state, requests), counter_values(whole, requests), rtol=1e-6, atol=1e-6
    )  # fmt: skip
    np.testing.assert_array_equal(state.first_seen, whole.first_seen)
    assert state.end == whole.end


def select(log: EventLog, keep: np.ndarray) -> EventLog:
    arrays = {f.name: getattr(log, f.name)[keep] for f in fields(log) if f.name != "feedback_names"}
    return replace(log, **arrays)


def test_an_event_of_unknown_ids_counts_only_where_they_are_not_named() -> None:
    counters = tuple(c for c in COUNTERS if "stars" not in (c.event, c.argument))
    state = State.build(_small_log(), catalog(), counters, GRADES)
    unknown = replace(select(_small_log(), np.arange(6) == 0), user=np.array([-1], np.int32))
    request = asked_at([(0, 0, 0, 20)])
    before, after = (counter_values(s, request)[0] for s in (state, state.extended(unknown)))
    changed = {counters[k].column for k in np.flatnonzero(~np.isclose(before, after, equal_nan=True))}
    assert "item__impression__all__count" in changed
    assert not any("user" in column for column in changed)


@given(logs(), st.integers(0, 13))
@settings(max_examples=30, deadline=None)
def test_cutting_the_future_out_of_the_log_changes_nothing(log: EventLog, hour: int) -> None:
    as_of = hour * HOUR
    requests = Requests(
        user=np.array([0, 1], np.int32),
        as_of=np.array([as_of, as_of]),
        surface=np.array([0, -1], np.int16),
        offsets=np.array([0, 4, 4]),
        item=np.arange(4, dtype=np.int32),
    )
    whole = counter_values(State.build(log, catalog(), COUNTERS, GRADES), requests)
    cut = counter_values(State.build(log.until(as_of), catalog(), COUNTERS, GRADES), requests)
    np.testing.assert_array_equal(whole, cut)


@given(logs())
@settings(max_examples=15, deadline=None)
def test_rows_in_bulk_equal_one_request_at_a_time_and_a_snapshot(log: EventLog) -> None:
    state = State.build(log, catalog(), COUNTERS, GRADES)
    spec = make_spec(COUNTERS, catalog(), "Asia/Kolkata")
    requests = Requests(
        user=np.array([0, 2, -1], np.int32), as_of=np.array([3, 5, 13]) * HOUR, surface=np.array([0, 1, -1], np.int16),
        offsets=np.array([0, 3, 3, 5]), item=np.array([0, 3, -1, 2, 2], np.int32), arm=np.array([1, 0, -1], np.int16),
    )  # fmt: skip
    bulk = assemble(state, spec, requests)
    assert bulk.shape == (5, len(spec.columns))
    assert bulk.dtype == np.float32
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder) / "s", state)
        mapped = load_state(Path(folder) / "s")
        for r in range(3):
            one = requests.slice(r, r + 1)
            rows = slice(int(requests.offsets[r]), int(requests.offsets[r + 1]))
            # Behind the log's end one request reads tables, whose values are 32-bit floats.
            after = int(one.as_of[0]) >= mapped.end
            np.testing.assert_allclose(assemble(mapped, spec, one), bulk[rows], rtol=6.6e-7 if after else 0)


def test_features_of_the_user_and_context_are_equal_within_a_request() -> None:
    counters = make_counters(None, _small_log(), catalog(), GRADES)
    spec = make_spec(counters, catalog(), "UTC")
    state = State.build(_small_log(), catalog(), counters, GRADES)
    items = np.arange(4, dtype=np.int32)
    matrix = assemble(state, spec, one_request(user=1, as_of=2 * HOUR, surface=1, item=items))
    of_user = [k for k, c in enumerate(spec.columns) if c.startswith(("user__", "user_")) and "_x_" not in c]
    of_user += [spec.columns.index("hour"), spec.columns.index("surface")]
    assert len(of_user) > 5
    np.testing.assert_array_equal(matrix[:, of_user], np.tile(matrix[0, of_user], (len(matrix), 1)))


def _small_log() -> EventLog:
    n = 6
    return replace(
        empty_log((), n),
        user=np.array([0, 1, 1, 2, 1, 0], np.int32),
        item=np.array([0, 1, 2, 3, 0, 1], np.int32),
        ts=np.arange(n, dtype=np.int64) * HOUR // 2,
        grade=np.array([0, 1, 2, 0, 1, 2], np.int8),
        surface=np.zeros(n, np.int16),
    )


def test_column_names_parse_back() -> None:
    for counter in make_counters(default_settings(catalog(), GRADES), _small_log(), catalog(), GRADES):
        parsed = parse_column(counter.column)
        assert (parsed.key, parsed.event, parsed.span, parsed.stat) == (
            counter.key, counter.event, counter.span, counter.stat,
        )  # fmt: skip


def test_declared_counters_stand_for_the_default_ones_or_beside_them() -> None:
    def columns(settings: list[CounterSettings] | None, add: bool = False) -> dict[str, float]:
        counters = make_counters(settings, _small_log(), catalog(), GRADES, add=add)
        return {counter.column: counter.strength for counter in counters}

    default = columns(None)
    same = CounterSettings(key=["item"], event="like", spans=["all"], stats=["rate"], strength=3)
    further = CounterSettings(key=["item"], event="like", spans=["w2d"], stats=["count"])
    assert default["item__like__all__rate"] == 10
    assert columns([]) == {}
    assert columns([same, further]) == {"item__like__all__rate": 3, "item__like__w2d__count": 10}
    assert columns([same, further], add=True) == default | columns([same, further])


@pytest.mark.parametrize("grades", [("bought",), ("skip", "like"), GRADES])
def test_default_counters_say_nothing_twice(grades: tuple[str, ...]) -> None:
    log = replace(_small_log(), grade=np.minimum(_small_log().grade, len(grades) - 1).astype(np.int8))
    counters = make_counters(None, log, catalog(), grades)
    events = {counter.event for counter in counters}
    assert events == {"impression", *grades[1:], *(["grade"] if len(grades) > 2 else [])}
    assert ("user", "item") in {counter.key for counter in counters}
    state = State.build(log, catalog(), counters, grades)
    items = np.arange(4, dtype=np.int32)
    values = np.nan_to_num(counter_values(state, one_request(user=1, as_of=3 * HOUR, surface=0, item=items)), nan=-1)
    same = [(a.column, b.column) for k, a in enumerate(counters) for b in counters[:k] if a.event != b.event
            and a.span == b.span and a.stat in ("rate", "mean") and b.stat in ("rate", "mean") and a.key == b.key
            and np.array_equal(values[:, counters.index(a)], values[:, counters.index(b)])]  # fmt: skip
    assert not same


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"key": ["genr"]}, "did you mean 'genre'"),
        ({"event": "likes"}, "did you mean 'like'"),
        ({"spans": ["7d"]}, "'w7d' (window)"),
        ({"stats": ["counts"]}, "did you mean 'count'"),
        ({"spans": ["all", "all"]}, "declared twice"),
    ],
)
def test_a_wrong_counter_is_told(change: dict[str, list[str]], says: str) -> None:
    declared = CounterSettings(**({"key": ["user"], "event": "like", "stats": ["count"]} | change))
    with pytest.raises(PairliftError, match=says.replace("(", r"\(").replace(")", r"\)")):
        make_counters([declared], _small_log(), catalog(), GRADES)


def test_a_name_of_a_grade_and_a_column_is_told_only_where_their_events_differ() -> None:
    grades, log = ("view", "cart", "purchase"), empty_log(("cart", "view"), 5)
    log.feedback[:] = np.array([[0, 1, 1, np.nan, 0], [1, 0, 0, 0, 0]]).T
    same = replace(log, grade=np.array([0, 1, 1, -1, -1], np.int8))
    wide = replace(log, grade=np.array([0, 1, 2, -1, -1], np.int8))  # what was purchased was in the cart too
    counted, rest = [CounterSettings(key=["item"], event="cart", stats=["count"])], ["ratio_cart", "count"]
    against = [CounterSettings(key=["item"], event="impression", stats=rest)]
    for declared in (counted, against):
        counters = make_counters(declared, log, catalog(), grades)
        assert ambiguous_events(counters, same, grades) == []
        (said,) = ambiguous_events(counters, wide, grades)
        assert said.startswith("counters of event = 'cart' count the 1 events of the grade 'cart', not the 2 whose ")
    other = make_counters([CounterSettings(key=["item"], event="purchase", stats=["count"])], log, catalog(), grades)
    assert ambiguous_events(other, wide, grades) == []
