"""Counters as of any time equal the plain-Python oracle, on random logs with ties, nulls and cold keys."""

import tempfile
from pathlib import Path

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import PairliftError
from features.rows import assemble, make_spec
from features.schema import HOUR, Attribute, Catalog, EventLog, Requests, one_request
from features.settings import CounterSettings
from features.snapshot import load_state, save_state
from features.spec import Counter, Span, default_settings, make_counters, parse_column
from features.store import State

GRADES = ("skip", "listen", "like")
NONE_I, NONE_O, NONE_F = np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.float32)


def catalog() -> Catalog:
    genre = Attribute("genre", "categorical", np.array([0, 1, -1, 1], np.int32), NONE_O, NONE_F, ("a", "b"))
    tags = Attribute("tags", "multi", np.array([0, 1, 1, 0], np.int32), np.array([0, 2, 2, 3, 4]), NONE_F, ("x", "y"))
    size = Attribute("size", "numeric", NONE_I, NONE_O, np.array([1, np.nan, 3, 4], np.float32), ())
    return Catalog(np.arange(3), np.arange(4), ("feed", "search"), (genre, tags, size), ())


@st.composite
def logs(draw: st.DrawFn) -> EventLog:
    n = draw(st.integers(0, 30))
    ints = lambda lo, hi: np.array(draw(st.lists(st.integers(lo, hi), min_size=n, max_size=n)))  # noqa: E731
    # Few distinct times, an hour apart: ties everywhere.
    ts = np.sort(ints(0, 12)) * HOUR
    feedback = ints(-1, 3).astype(np.float32)[:, None]
    feedback[feedback < 0] = np.nan
    return EventLog(
        ints(0, 2).astype(np.int32), ints(0, 3).astype(np.int32), ts.astype(np.int64), ints(-1, 2).astype(np.int8),
        ints(-1, 1).astype(np.int16), np.full(n, -1, np.int8), np.full(n, -1, np.int64), np.ones(n, bool),
        feedback.reshape(n, 1), ("stars",),
    )  # fmt: skip


KEYS = (("user",), ("item",), ("genre",), ("user", "genre"), ("user", "tags"), ("item", "surface"), ("user", "item"))
SPANS = ("all", "w3h", "w1d", "h2h")
COUNTERS = tuple(
    Counter(key, event, Span.parse(span), stat, strength=4.0, prior=0.3)
    for key in KEYS
    for event in ("impression", "grade", "like", "stars")
    for span in SPANS
    for stat in ("count", "sum", "rate", "mean")
) + tuple(Counter(key, event, Span("all", 0), "since") for key in KEYS for event in ("impression", "like"))


@given(
    logs(),
    st.lists(st.tuples(st.integers(-1, 2), st.integers(-1, 3), st.integers(-1, 1), st.integers(0, 13)), max_size=4),
)
@settings(max_examples=40, deadline=None)
def test_counters_equal_the_oracle(log: EventLog, asked: list[tuple[int, int, int, int]]) -> None:
    state = State.build(log, catalog(), COUNTERS, GRADES)
    user, item, surface, hour = (np.array([a[k] for a in asked], np.int64) for k in range(4))
    requests = Requests(
        user.astype(np.int32), hour * HOUR, surface.astype(np.int16), np.arange(len(asked) + 1), item.astype(np.int32)
    )
    got = state.counter_values(requests)
    for row, (u, i, s, h) in enumerate(asked):
        want = [oracles.counter_value(c, log, catalog(), GRADES, u, i, s, h * HOUR) for c in COUNTERS]
        np.testing.assert_allclose(got[row], np.array(want), rtol=1e-6, atol=1e-6)


@given(logs(), st.integers(0, 13))
@settings(max_examples=30, deadline=None)
def test_cutting_the_future_out_of_the_log_changes_nothing(log: EventLog, hour: int) -> None:
    as_of = hour * HOUR
    requests = Requests(
        np.array([0, 1], np.int32), np.array([as_of, as_of]), np.array([0, -1], np.int16), np.array([0, 4, 4]),
        np.arange(4, dtype=np.int32),
    )  # fmt: skip
    whole = State.build(log, catalog(), COUNTERS, GRADES).counter_values(requests)
    cut = State.build(log.until(as_of), catalog(), COUNTERS, GRADES).counter_values(requests)
    np.testing.assert_array_equal(whole, cut)


@given(logs())
@settings(max_examples=15, deadline=None)
def test_rows_in_bulk_equal_one_request_at_a_time_and_a_snapshot(log: EventLog) -> None:
    state = State.build(log, catalog(), COUNTERS, GRADES)
    spec = make_spec(COUNTERS, catalog(), "Asia/Kolkata")
    requests = Requests(
        np.array([0, 2, -1], np.int32), np.array([3, 5, 13]) * HOUR, np.array([0, 1, -1], np.int16),
        np.array([0, 3, 3, 5]), np.array([0, 3, -1, 2, 2], np.int32),
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
            np.testing.assert_array_equal(assemble(mapped, spec, one), bulk[rows])


def test_features_of_the_user_and_context_are_equal_within_a_request() -> None:
    counters = make_counters([], _small_log(), catalog(), GRADES)
    spec = make_spec(counters, catalog(), "UTC")
    state = State.build(_small_log(), catalog(), counters, GRADES)
    items = np.arange(4, dtype=np.int32)
    matrix = assemble(state, spec, one_request(user=1, as_of=2 * HOUR, surface=1, item=items))
    of_user = [k for k, c in enumerate(spec.columns) if c.startswith(("user__", "user_")) and "_x_" not in c]
    of_user += [spec.columns.index("hour"), spec.columns.index("surface")]
    assert len(of_user) > 5
    assert (matrix[:, of_user] == matrix[0, of_user]).all()


def _small_log() -> EventLog:
    n = 6
    return EventLog(
        np.array([0, 1, 1, 2, 1, 0], np.int32), np.array([0, 1, 2, 3, 0, 1], np.int32),
        np.arange(n, dtype=np.int64) * HOUR // 2, np.array([0, 1, 2, 0, 1, 2], np.int8), np.zeros(n, np.int16),
        np.full(n, -1, np.int8), np.full(n, -1, np.int64), np.ones(n, bool), np.empty((n, 0), np.float32), (),
    )  # fmt: skip


def test_column_names_parse_back() -> None:
    for counter in make_counters(default_settings(catalog(), GRADES), _small_log(), catalog(), GRADES):
        parsed = parse_column(counter.column)
        assert (parsed.key, parsed.event, parsed.span, parsed.stat) == (
            counter.key, counter.event, counter.span, counter.stat,
        )  # fmt: skip


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
