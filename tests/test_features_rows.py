"""Rows of features: plain columns, times around midnight and leap days, and rows made block by block."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import COUNTERS, catalog, logs
from world import GRADES, make_world

from features.blocks import training_rows
from features.counters.defaults import MAX_VALUES
from features.counters.latest import has_table
from features.counters.spec import make_counters
from features.errors import PairliftError
from features.ids import IdIndex
from features.plain import day_of_week, hour_of_day, left_out
from features.rows import assemble, make_spec
from features.schema import DAY, HOUR, SECOND, Attribute, Catalog, EventLog, Requests, empty_log, one_request
from features.settings import CounterSettings
from features.state.read import counter_values
from features.state.store import State

ZONES = ("Etc/GMT+12", "Etc/GMT-14", "UTC", "Asia/Kolkata", "Asia/Kathmandu", "America/St_Johns", "Europe/Paris")


def micros(text: str, zone: str = "UTC") -> int:
    when = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    return round((when - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


@given(
    st.sampled_from(ZONES),
    st.sampled_from(["2024-02-29", "2023-02-28", "2024-03-31", "2024-10-27", "2000-02-29", "2024-12-31"]),
    st.integers(-2 * DAY, 2 * DAY),
)
@settings(max_examples=150, deadline=None)
def test_the_hour_and_the_day_are_those_of_the_zones_clocks(zone: str, day: str, shift: int) -> None:
    ts = micros(day, zone) + shift
    local = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ts)).astimezone(ZoneInfo(zone))
    hours = local.hour + local.minute / 60 + (local.second + local.microsecond / SECOND) / 3600
    np.testing.assert_allclose(hour_of_day(np.array([ts]), zone), [hours], rtol=1e-6, atol=1e-4)
    assert day_of_week(np.array([ts]), zone)[0] == local.weekday()


@pytest.mark.parametrize("zone", ["Etc/GMT+12", "Etc/GMT-14"])
def test_a_microsecond_before_midnight_is_the_day_before(zone: str) -> None:
    midnight = micros("2024-02-29", zone)
    ts = np.array([midnight - 1, midnight, midnight + DAY - 1, midnight + DAY])
    assert day_of_week(ts, zone).tolist() == [2, 3, 3, 4]
    np.testing.assert_allclose(hour_of_day(ts, zone), [24, 0, 24, 0], atol=1e-4)


def described() -> Catalog:
    """Three items: numbers, categories and lists with all that can be missing."""
    born = Attribute("born", "numeric", numbers=np.array([0, 86400 * 2, np.nan], np.float32))
    genre = Attribute("genre", "categorical", codes=np.array([1, -1, 0], np.int32), values=("a", "b"))
    codes, offsets = np.array([0, 1, 1], np.int32), np.array([0, 2, 3, 3])
    tags = Attribute("tags", "multi", codes=codes, offsets=offsets, values=("x", "y"))
    country = Attribute("country", "categorical", codes=np.array([0, -1], np.int32), values=("fr",))
    return Catalog(
        user_ids=np.arange(2),
        item_ids=np.arange(3),
        surfaces=("feed",),
        item_attributes=(born, genre, tags),
        user_attributes=(country,),
    )


def test_plain_columns_are_what_their_names_say() -> None:
    wanted = [
        "item_born", "item_born_age", "item_genre", "item_tags_count", "item_tags_main", "item_age", "user_country",
        "weekday", "surface",
    ]  # fmt: skip
    spec = make_spec((), described(), "UTC", wanted)
    assert spec.columns == tuple(wanted)
    assert spec.categorical == ("item_genre", "item_tags_main", "user_country", "surface")
    world = make_world(n_users=2, n_items=8, requests_per_user=1)
    log = world.log.select(slice(1))
    log.item[:], log.ts[:] = 1, 3 * DAY
    state = State.build(log, described(), (), GRADES)
    items, nan = np.array([0, 1, 2, -1], np.int32), np.nan
    got = assemble(state, spec, one_request(0, 4 * DAY, 0, items))
    want = [
        [0, 4, 1, 2, 1, nan, 0, 0, 0],
        [86400 * 2, 2, nan, 1, 1, 1, 0, 0, 0],
        [nan, nan, 0, 0, nan, nan, 0, 0, 0],
        [nan, nan, nan, nan, nan, nan, 0, 0, 0],
    ]
    np.testing.assert_allclose(got, np.array(want, np.float32), rtol=1e-6)
    # An item's age is known only after its first event: not at the same instant.
    at_once = assemble(state, spec, one_request(-1, 3 * DAY, -1, items))
    assert np.isnan(at_once[1, [5, 6, 8]]).all()


def test_a_wrong_plain_column_is_told() -> None:
    with pytest.raises(PairliftError, match="did you mean 'item_genre'"):
        make_spec((), described(), "UTC", ["item_genr"])
    with pytest.raises(PairliftError, match="twice"):
        make_spec((), described(), "UTC", ["hour", "hour"])


def test_the_default_columns_and_those_that_are_added() -> None:
    default = ("item_born", "item_genre", "user_country", "item_age", "hour", "surface")
    assert make_spec((), described(), "UTC").columns == default
    spec = make_spec((), described(), "UTC", further=["item_tags_main", "hour", "weekday"])
    assert spec.columns == (*default, "item_tags_main", "weekday")
    assert spec.categorical == ("item_genre", "user_country", "surface", "item_tags_main")
    with pytest.raises(PairliftError, match=r"\[features\] add: 'weekdy' .did you mean 'weekday'"):
        make_spec((), described(), "UTC", further=["weekdy"])
    with pytest.raises(PairliftError, match=r"\[features\] add: 'weekday' stands there twice"):
        make_spec((), described(), "UTC", further=["weekday", "weekday"])


def test_a_category_of_many_values_is_counted_and_named_with_the_key_that_admits_it() -> None:
    many = tuple(f"v{k:04}" for k in range(MAX_VALUES + 1))
    n = len(many) + 500
    codes = (np.arange(n) % len(many)).astype(np.int32)
    author = Attribute("author", "categorical", codes=codes, values=many)
    each = np.arange(n, dtype=np.int32)  # as many words as items, and each word is of two
    both, each_name = np.stack([each, np.roll(each, 1)], axis=1).ravel(), tuple(map(str, range(n)))
    words = Attribute("words", "multi", codes=both, offsets=np.arange(0, 2 * n + 1, 2), values=each_name)
    title = Attribute("title", "categorical", codes=each, values=each_name)
    query = Attribute("query", "categorical", values=many)
    large = replace(described(), item_ids=np.arange(n), item_attributes=(author, words, title), contexts=(query,))
    counters = make_counters(None, empty_log(()), large, GRADES)
    spec = make_spec(counters, large, "UTC")
    keys = {part for counter in counters for part in counter.key}
    assert {"author", "words"} <= keys
    assert "title" not in keys  # a value for each item: its own counters say the same
    assert "item_author" not in spec.columns
    said = left_out(large, spec.columns, keys)
    assert said is not None
    assert "item_author (1,001 values, counted as of the time), item_title (1,501 values), context_query (1,001" in said
    assert '[features] add = ["item_author", "item_title", "context_query"]' in said
    admitted = make_spec(counters, large, "UTC", further=["item_author", "item_title", "context_query"])
    assert left_out(large, admitted.columns, keys) is None


REQUESTS = Requests(
    user=np.array([0, 2, -1, 1], np.int32),
    as_of=np.array([3, 5, 13, 13]) * HOUR,
    surface=np.array([0, 1, -1, 0], np.int16),
    offsets=np.array([0, 3, 3, 5, 6]),
    item=np.array([0, 3, -1, 2, 2, 1], np.int32),
)


@given(logs(), st.sampled_from([10**9, 1000, 200]))
@settings(max_examples=15, deadline=None)
def test_rows_in_blocks_equal_rows_of_the_whole_state(log: EventLog, memory: int) -> None:
    spec = make_spec(COUNTERS, catalog(), "Asia/Kathmandu", ["item_age", "user_country", "hour"])
    whole = assemble(State.build(log, catalog(), COUNTERS, GRADES), spec, REQUESTS)
    got = training_rows(log, catalog(), COUNTERS, GRADES, spec, REQUESTS, memory=memory)
    np.testing.assert_array_equal(got, whole)


def test_training_rows_equal_single_requests_on_a_larger_log() -> None:
    """Keys with many marks, and more reads at once than are read unsorted."""
    world = make_world(n_users=30, n_items=40, requests_per_user=60)
    counters = make_counters(None, world.log, world.catalog, world.grades)
    counters += make_counters(
        [CounterSettings(key=["user"], event="like", spans=["w3d", "all"], stats=["distinct_item", "count"])],
        world.log, world.catalog, world.grades,
    )  # fmt: skip
    spec = make_spec(counters, world.catalog, "UTC")
    rng = np.random.default_rng(1)
    at = np.sort(rng.choice(len(world.log), 1200, replace=False))
    item = rng.integers(-1, world.catalog.n_items, 12000).astype(np.int32)
    requests = Requests(
        user=world.log.user[at],
        as_of=world.log.ts[at],
        surface=world.log.surface[at],
        offsets=np.arange(0, 12001, 10),
        item=item,
    )
    bulk = training_rows(world.log, world.catalog, counters, world.grades, spec, requests, memory=100_000)
    state = State.build(world.log, world.catalog, counters, world.grades)
    for r in range(0, 1200, 40):
        one = assemble(state, spec, requests.slice(r, r + 1))
        np.testing.assert_array_equal(one, bulk[r * 10 : r * 10 + 10])


def test_as_of_the_instant_of_an_event_it_is_not_seen() -> None:
    """Ties: all events of one microsecond are of the future for a request of that microsecond."""
    world = make_world(n_users=4, n_items=8, requests_per_user=5)
    log = world.log
    log.ts[:] = 5 * DAY
    counters = make_counters(
        [CounterSettings(key=["item"], event="impression", spans=["all", "w1d", "h1d"], stats=["count"])],
        log, world.catalog, world.grades,
    )  # fmt: skip
    state = State.build(log, world.catalog, counters, world.grades)
    items = np.arange(8, dtype=np.int32)
    at = [counter_values(state, one_request(0, 5 * DAY + late, -1, items)) for late in (0, 1)]
    assert not at[0][:, 0].any()
    assert at[1][:, 0].sum() == len(log)
    # The window's start is inside it: [as_of - w, as_of).
    window = [c.column for c in counters].index("item__impression__w1d__count")
    inside = counter_values(state, one_request(0, 6 * DAY, -1, items))[:, window]
    outside = counter_values(state, one_request(0, 6 * DAY + 1, -1, items))[:, window]
    assert inside.sum() == len(log)
    assert not outside.any()


def test_a_request_after_the_log_reads_the_same_from_tables_up_to_rounding() -> None:
    """One request takes the tables of `counters.latest`, two at once the timelines; also over further levels.

    Counts and grades are never negative, so the bound of `features.counters.latest` holds: 11 roundings of float32.
    """
    world = make_world(n_users=20, n_items=30, requests_per_user=20, surfaces=("feed", "search"))
    declared = [
        CounterSettings(key=["user"], event="impression", spans=["h1d", "all"], stats=["count", "since"]),
        CounterSettings(key=["item"], event="like", spans=["h1d", "h7d"], stats=["rate", "count"], delay="2h"),
        CounterSettings(key=["item"], event="play", spans=["h1d", "all"], stats=["mean", "sum", "ratio_listen"]),
        CounterSettings(key=["item"], event="listen", stats=["since"]),
        CounterSettings(key=["item"], event="play", spans=["w1d", "w9d"], stats=["mean", "sum"], delay="1h"),
        CounterSettings(key=["user"], event="like", spans=["w3d"], stats=["rate", "count"]),
        CounterSettings(key=["genre"], event="like", spans=["w3d"], stats=["rate"]),
        CounterSettings(key=["item", "surface"], event="like", spans=["h1d", "all"], stats=["rate", "since"]),
        CounterSettings(key=["item", "genre"], event="impression", stats=["count"]),
        CounterSettings(key=["item", "tags"], event="impression", spans=["h1d"], stats=["count"]),
        CounterSettings(key=["user", "genre"], event="grade", spans=["w2d", "all"], stats=["mean"]),
        CounterSettings(key=["user", "tags"], event="like", spans=["h7d"], stats=["rate", "since"]),
        CounterSettings(key=["surface"], event="like", stats=["rate"]),
        CounterSettings(key=["user", "item"], event="impression", stats=["count", "since"]),
    ]
    counters = make_counters(declared, world.log, world.catalog, world.grades)
    spec = make_spec(counters, world.catalog, "Europe/Paris", ["hour", "item_genre", "item_age", "weekday", "surface"])
    third = len(world.log) * 2 // 3
    whole = State.build(world.log, world.catalog, counters, world.grades)
    base = State.build(world.log.select(slice(third)), world.catalog, counters, world.grades)
    states = [whole, base.extended(world.log.select(slice(third, None)))]
    tabled = [("user",), ("item",), ("item", "surface"), ("item", "genre"), ("surface",)]
    assert [plan.key for plan in whole.plans if has_table(plan, world.catalog)] == tabled
    items = np.array([*range(30), -1, 3, 3], np.int32)
    for as_of in (whole.end, whole.end + 2 * HOUR, whole.end + 40 * DAY):
        both = Requests(
            user=np.array([3, -1], np.int32),
            as_of=np.full(2, as_of),
            surface=np.array([1, -1], np.int16),
            offsets=np.array([0, 33, 66]),
            item=np.concatenate([items, items]),
        )
        bulk = assemble(whole, spec, both)
        for state in states:
            for user, surface, rows in ((3, 1, bulk[:33]), (-1, -1, bulk[33:])):
                one = assemble(state, spec, one_request(user, as_of, surface, items))
                np.testing.assert_allclose(one, rows, rtol=11 * 2**-24, atol=1e-30)


ASKED_ITEMS = st.lists(st.integers(-1, 3), max_size=9).map(lambda items: np.array(items, np.int32))


@given(
    logs(),
    st.lists(st.integers(0, 2), min_size=30, max_size=30),
    st.booleans(),
    st.tuples(st.integers(-1, 2), st.integers(0, 80), st.integers(-1, 1)),
    ASKED_ITEMS,
)
@settings(max_examples=60, deadline=None)
def test_one_request_reads_what_many_read(
    log: EventLog, part: list[int], windows: bool, asked: tuple[int, int, int], items: np.ndarray
) -> None:
    """Cold, repeated and no items, ties, NaN, within the log and after it, over one level and three.

    Most keys have tables, which a time after the base reads, by keys with and without later events.
    """
    counters = tuple(c for c in COUNTERS if windows or c.span.kind != "w")
    of, (user, quarter, surface) = np.array(part)[: len(log)], asked
    whole = State.build(log, catalog(), counters, GRADES)
    split = State.build(log.select(of == 0), catalog(), counters, GRADES)
    for number in (1, 2):
        split = split.extended(log.select(of == number))
    one = one_request(user, quarter * HOUR // 4, surface, items)
    both = Requests(
        user=np.array([user, -1], np.int32),
        as_of=np.full(2, quarter * HOUR // 4),
        surface=np.array([surface, 0], np.int16),
        offsets=np.array([0, len(items), len(items) + 1]),
        item=np.append(items, np.int32(0)),
    )
    for state in (whole, split):
        many = counter_values(state, both)[: len(items)]
        np.testing.assert_allclose(counter_values(state, one), many, rtol=1e-6, atol=1e-6)
        # The rest of a row is what the caller says, whether tables or timelines are read.
        out, row = np.empty((len(items), len(counters) + 1), np.float32), np.full(len(counters) + 1, 7, np.float32)
        np.testing.assert_allclose(counter_values(state, one, out, row)[:, :-1], many, rtol=1e-6, atol=1e-6)
        assert (out[:, -1] == 7).all()
        of_windows = [c.span.kind == "w" for c in counters]  # they come of timelines in any case: equal to the last bit
        np.testing.assert_array_equal(counter_values(state, one)[:, of_windows], many[:, of_windows])


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(
    "numbers",
    [[-5, 0, 7, 2**40, 2**62], [-5, -3, 0, 7, 9], [-7, -6, -5, -4, -3]],
    ids=["hashed", "close", "without a gap"],
)
def test_ids_are_found(numbers: list[int], text: bool) -> None:
    ids = np.array([f"é{n}" for n in numbers], object) if text else np.array(numbers)
    index = IdIndex.of(ids)
    strangers = ["none"] if text else [8, -8, 10, -(2**63), 2**63 - 1]
    wanted = [*ids.tolist()[::-1], *strangers]
    assert index.find(wanted).tolist() == [4, 3, 2, 1, 0, *(-1 for _ in strangers)]
    assert IdIndex.of(ids[:0]).find(wanted[:2]).tolist() == [-1, -1]
    with pytest.raises(PairliftError, match="twice"):
        IdIndex.of(np.append(ids, ids[:1]))
