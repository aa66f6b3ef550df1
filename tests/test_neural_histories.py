"""Histories cut as of a time, against a slow oracle; windows, batches, hashed entities."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from world import make_world

from features.errors import PairliftError
from features.plugin import make_plugin
from features.schema import DAY, HOUR, SECOND, Attribute, EventLog, empty_log
from features.state.histories import Histories
from features.state.lag import DAILY, Lag
from neural.expected import PRIOR_EVENTS, ItemSignals
from neural.histories import (
    TokenSpec,
    Windows,
    length_buckets,
    make_tokens,
    ranges,
    raw_signals,
    visible,
)
from neural.vocabulary.entities import HASHES, encode, table_rows
from neural.vocabulary.feedback import known_scale


def random_log(rng: np.random.Generator, n: int, users: int = 4, items: int = 6) -> EventLog:
    """Events on few distinct times, so that ties are common."""
    feedback = rng.normal(size=(n, 2)).astype(np.float32)
    feedback[rng.random((n, 2)) < 0.3] = np.nan
    return replace(
        empty_log(("play", "watch"), n),
        user=rng.integers(0, users, n).astype(np.int32),
        item=rng.integers(0, items, n).astype(np.int32),
        ts=np.sort(rng.integers(0, 3 * DAY // HOUR, n)) * HOUR,
        grade=rng.integers(-1, 3, n).astype(np.int8),
        surface=rng.integers(-1, 2, n).astype(np.int16),
        organic=rng.integers(-1, 2, n).astype(np.int8),
        feedback=feedback,
    )


def spec_of(length: int, items: int = 6) -> TokenSpec:
    mean, scale = (1.0, 0.0, 0.5), (1.0, 2.0, 1.0)
    return TokenSpec(n_items=items, n_grades=3, n_surfaces=2, signal_mean=mean, signal_scale=scale, length=length)


@settings(deadline=None)  # the first call compiles
@given(st.integers(0, 10_000), st.integers(0, 40), st.sampled_from([0, HOUR, 5 * HOUR + 1, DAILY]), st.integers(1, 9))
def test_a_history_holds_the_last_events_strictly_before(seed: int, n: int, lag: int | str, length: int) -> None:
    rng = np.random.default_rng(seed)
    log = random_log(rng, n)
    histories = Histories.build(log, 4)
    user = rng.integers(-1, 6, 8).astype(np.int32)  # cold ones, and one that came after the catalogue
    as_of = rng.integers(0, 80, 8) * HOUR
    start, stop = visible(histories, user, as_of, Lag(lag), length)
    tokens = make_tokens(histories, user, start, stop, spec_of(length))
    for k in range(8):
        cut = as_of[k] // DAY * DAY if lag == DAILY else as_of[k] - lag
        rows = [r for r in range(n) if log.user[r] == user[k] and log.ts[r] < cut]
        before, rows = rows[:-length], rows[-length:]
        assert tokens.length[k] == len(rows)
        assert tokens.item[k, : len(rows)].tolist() == log.item[rows].tolist()
        assert tokens.ts[k, : len(rows)].tolist() == log.ts[rows].tolist()
        assert (tokens.item[k, len(rows) :] == 6).all()
        for t, r in enumerate(rows):
            previous = rows[t - 1] if t else before[-1] if before else None
            hours = None if previous is None else (log.ts[r] - log.ts[previous]) // SECOND
            gap = 0 if hours is None else 1 if hours == 0 else min(2 + int(np.log2(hours) // 2), 13)
            assert tokens.codes[k, t].tolist() == [log.grade[r] + 1, log.surface[r] + 1, log.organic[r] + 1, gap]
            raw = [log.grade[r] if log.grade[r] >= 0 else np.nan, *log.feedback[r]]
            scaled = (np.array(raw) - [1.0, 0.0, 0.5]) / [1.0, 2.0, 1.0]
            np.testing.assert_allclose(tokens.signals[k, t, :3], np.nan_to_num(scaled), atol=1e-6)
            assert (tokens.signals[k, t, 3:] == np.isfinite(scaled)).all()


def test_an_event_at_as_of_is_not_seen() -> None:
    log = random_log(np.random.default_rng(0), 30, users=1)
    histories = Histories.build(log, 1)
    at = np.array([log.ts[10]])
    start, stop = visible(histories, np.array([0], np.int32), at, Lag(0), 100)
    assert stop - start == (log.ts < at).sum() < 11


def test_codes_out_of_the_vocabulary_become_unknown() -> None:
    log = random_log(np.random.default_rng(1), 20, users=1)
    log.item[3], log.surface[4], log.grade[5] = 99, 40, 7
    histories = Histories.build(log, 1)
    one = np.zeros(1, np.int64)
    tokens = make_tokens(histories, one.astype(np.int32), one, one + 20, spec_of(20))
    assert tokens.item[0, 3] == 6
    assert tokens.codes[0, 4, 1] == tokens.codes[0, 5, 0] == 0
    assert (tokens.codes < np.array(spec_of(20).code_sizes)).all()
    assert spec_of(9).surface_code(np.array([-1, 0, 1, 2, 300], np.int16)).tolist() == [0, 1, 2, 0, 0]


def expected_slowly(log: EventLog, spec: TokenSpec, item: int, cut: int) -> np.ndarray:
    """The item's mean scaled signals over its events strictly before the cut, drawn towards 0."""
    raw = (raw_signals(log.grade, log.feedback) - np.array(spec.signal_mean)) / np.array(spec.signal_scale)
    rows = raw[(log.item == item) & (log.ts < cut)]
    return np.asarray(np.nansum(rows, axis=0) / (np.isfinite(rows).sum(0) + PRIOR_EVENTS))


@settings(deadline=None)  # the first call compiles
@given(st.integers(0, 10_000), st.integers(0, 60))
def test_what_is_expected_of_an_item_is_its_mean_strictly_before(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    log, spec = random_log(rng, n), spec_of(9)
    item, cut = rng.integers(-1, 8, (3, 5)), rng.integers(-1, 90, (3, 5)) * HOUR
    found = ItemSignals.build(log, spec).before(item, cut)
    assert found.shape == (3, 5, 3)
    for at in np.ndindex(3, 5):
        slow = expected_slowly(log, spec, item[at], cut[at]) if 0 <= item[at] < 6 else np.zeros(3)
        np.testing.assert_allclose(found[at], slow, atol=1e-6)


def test_surprise_is_what_the_item_did_not_explain_by_then() -> None:
    log = random_log(np.random.default_rng(2), 25, users=1)
    mean, scale = known_scale(raw_signals(log.grade, log.feedback))
    spec = TokenSpec(n_items=6, n_grades=3, n_surfaces=2, signal_mean=mean, signal_scale=scale, length=25)
    one = np.zeros(1, np.int64)
    tokens = make_tokens(Histories.build(log, 1), one.astype(np.int32), one, one + 25, spec)
    surprise = ItemSignals.build(log, spec).surprise(tokens)[0]
    raw = (raw_signals(log.grade, log.feedback) - np.array(spec.signal_mean)) / np.array(spec.signal_scale)
    for r in range(25):
        slow = expected_slowly(log, spec, log.item[r], log.ts[r])
        np.testing.assert_allclose(surprise[r], np.nan_to_num(raw[r] - slow), atol=1e-5)


@settings(deadline=None)  # the first call compiles
@given(st.integers(0, 10_000), st.integers(0, 60), st.integers(1, 12))
def test_surprise_of_a_batch_is_its_known_signals_less_the_expected_ones_to_the_bit(seed: int, n: int, b: int) -> None:
    rng = np.random.default_rng(seed)
    log, spec = random_log(rng, n), spec_of(9)
    histories, user = Histories.build(log, 4), rng.integers(-1, 6, b).astype(np.int32)
    window = visible(histories, user, rng.integers(0, 80, b) * HOUR, Lag(0), 9)
    tokens = make_tokens(histories, user, *window, replace(spec, n_items=4))  # items 4 and 5 are unknown: n_items
    known = ItemSignals.build(random_log(rng, n), spec)
    want = tokens.signals[..., :3] - known.before(tokens.item, tokens.ts) * tokens.signals[..., 3:]
    assert known.surprise(tokens).tobytes() == want.tobytes()


def test_an_items_signals_move_with_it_to_another_catalogue() -> None:
    log = random_log(np.random.default_rng(4), 60)
    known = ItemSignals.build(log, spec_of(9))
    items = np.array([-1, 5, 0, -1, 2, 2], np.int32)
    moved, cut = known.recoded(items), np.full(6, 2 * DAY)
    np.testing.assert_array_equal(moved.before(np.arange(6), cut), known.before(items, cut))
    assert moved.before(np.arange(6), cut)[[0, 3]].any() == np.False_


def test_the_cut_of_each_lag() -> None:
    as_of = np.array([3 * DAY, 3 * DAY + 1, 4 * DAY - 1])
    assert Lag(DAILY).cut(as_of).tolist() == [3 * DAY] * 3
    assert Lag(10 * SECOND, "Europe/Paris").cut(as_of).tolist() == (as_of - 10 * SECOND).tolist()


def at(text: str) -> int:
    """µs since 1970 of a time UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND


@settings(deadline=None)
@given(
    st.integers(at("2015-01-01"), at("2030-01-01")),
    st.sampled_from(["UTC", "Europe/Paris", "America/New_York", "Asia/Kathmandu", "America/Havana", "Pacific/Apia"]),
)
@example(at("2026-03-29T20:00"), "Europe/Paris")  # a day of 23 hours
@example(at("2026-10-25T21:00"), "Europe/Paris")  # a day of 25 hours
@example(at("2025-11-02T04:30"), "America/Havana")  # 00:30 for the first time; clocks go back from 01:00 to 00:00
@example(at("2025-11-02T05:30"), "America/Havana")  # 00:30 for the second time
@example(at("2018-11-04T12:00"), "America/Sao_Paulo")  # no 00:00: the day began at 01:00
def test_a_daily_lag_cuts_where_the_day_began_on_the_clocks(as_of: int, zone: str) -> None:
    def day(ts: int) -> object:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ts)).astimezone(ZoneInfo(zone)).date()

    cut = int(Lag(DAILY, zone).cut(np.array([as_of]))[0])
    assert cut <= as_of
    assert day(cut) == day(as_of) != day(cut - 1)
    assert all(day(ts) == day(as_of) for ts in range(cut, as_of, HOUR // 4))


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_everything_once_within_the_budget(lengths: list[int], budget: int) -> None:
    length = np.array(lengths, np.int64)
    parts = list(length_buckets(length, budget))
    assert sorted(np.concatenate(parts).tolist() if parts else []) == list(range(len(lengths)))
    assert all(len(p) == 1 or len(p) * (length[p].max() + 1) <= budget for p in parts)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(1, 9))
def test_a_state_has_seen_all_or_at_least_half_a_window(sizes: list[int], length: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    empty = np.zeros(int(offsets[-1]))
    columns = dict.fromkeys(("item", "ts", "grade", "surface", "organic", "feedback"), empty)
    windows = Windows.build(Histories(offsets, **columns), length)  # type: ignore[arg-type]
    assert (windows.stop - windows.start <= length).all()
    for user, size in enumerate(sizes):
        seen = np.arange(size + 1)
        window, state = windows.locate(np.full(size + 1, user, np.int32), seen)
        assert (windows.user[window] == user).all()
        assert (windows.start[window] + state == offsets[user] + seen).all()
        assert (state <= windows.stop[window] - windows.start[window]).all()
        assert (state >= np.minimum(seen, length - max(length // 2, 1) + 1)).all()


def test_ranges_are_concatenated() -> None:
    assert ranges(np.array([3, 7, 0]), np.array([5, 7, 2])).tolist() == [3, 4, 0, 1]
    assert ranges(np.empty(0, np.int64), np.empty(0, np.int64)).tolist() == []


def test_what_the_fit_never_saw_weighs_nothing() -> None:
    genre = Attribute("genre", "categorical", codes=np.array([0, 1, 2, -1], np.int32), values=("a", "b", "c"))
    tags = Attribute(
        "tags",
        "multi",
        codes=np.array([0, 1, 1, 2], np.int32),
        offsets=np.array([0, 2, 3, 4, 4]),
        values=("x", "y", "z"),
    )
    length = Attribute("length", "numeric", numbers=np.array([1, np.nan, 9, 3], np.float32))
    entities = encode(np.array([20, 5, 0, 0]), (genre, tags, length), table_rows(10), 20.0, salt=1)
    assert entities.layout.slots == (1, 1, 2)
    assert entities.slots.shape == (5, 4, HASHES)
    np.testing.assert_allclose(entities.weight[:, 0], [0.5, 0.2, 0, 0, 0])  # the id
    np.testing.assert_allclose(entities.weight[:, 1], [1, 1, 0, 0, 0])  # `c` has no event, the third item is new
    np.testing.assert_allclose(entities.weight[:, 2:].sum(1), [1, 1, 0, 0, 0])
    assert entities.known.tolist() == [True, True, True, True, False]  # the third and fourth have a length
    rows, place = entities.distinct()
    assert rows[-1] == 4
    np.testing.assert_array_equal(entities.weight[rows][place], entities.weight[:-1])
    np.testing.assert_array_equal(entities.numbers[rows][place], entities.numbers[:-1])


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"colums": ["dot"]}, "colums"),
        ({"lag": "10"}, "a duration"),
        ({"columns": ["dot", "dot"]}, "each name once"),
        ({"columns": []}, "columns"),
        ({"heads": 3}, "must divide"),
    ],
)
def test_a_wrong_option_is_told(params: dict[str, object], says: str) -> None:
    with pytest.raises(PairliftError, match=says):
        make_plugin("two_tower", "neural.two_tower:TwoTower", params)


def test_columns_and_lag_of_the_options() -> None:
    plugin = make_plugin("t", "neural.two_tower:TwoTower", {"columns": ["dot", "item_vector"], "width": 8, "heads": 2})
    assert plugin.columns == ("dot", *(f"item_vector_{k}" for k in range(8)))
    for lag, expected in (("daily", DAILY), ("10s", 10 * SECOND)):
        assert make_plugin("t", "neural.two_tower:TwoTower", {"lag": lag}).settings.lag == expected  # type: ignore[attr-defined]
    world = make_world(0)
    with pytest.raises(PairliftError, match="fit"):
        plugin.values(None, Histories.build(world.log, 40))  # type: ignore[arg-type]
