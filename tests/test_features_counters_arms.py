"""Counters `by_arm`: events of a request's own arm and of no arm, whatever the other arms show."""

import tempfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import COUNTERS, catalog, logs
from pydantic import ValidationError
from world import GRADES, make_world

from features.blocks import training_rows
from features.counters.spec import Counter, Span, make_counters, parse_column
from features.errors import PairliftError
from features.newcomers import Newcomers
from features.rows import assemble, make_spec
from features.schema import BY_ARM, DAY, HOUR, OTHER_ARM, EventLog, Requests, empty_log, one_request
from features.settings import CounterSettings, ItemsSettings
from features.state.histories import Histories
from features.state.read import counter_values
from features.state.snapshot import load_state, save_state
from features.state.store import State

SHARED, NEW, OLD = -1, 0, 1  # codes of logs' arms
BY = tuple(counter for counter in COUNTERS if counter.key[0] == BY_ARM)
#: of keys that a single request reads off a table
TABLED = tuple(
    Counter((BY_ARM, *key), event, Span.parse(span), stat, strength=4.0, prior=0.3)
    for key in (("item",), ("user",), ("surface", "item"), ("genre", "surface", "item"))
    for event, stat in (("impression", "count"), ("like", "rate"), ("stars", "mean"))
    for span in ("all", "h3h_d1h")
)
ITEMS = np.arange(-1, 5, dtype=np.int32)  # the last is new


def asked(arm: int, hours: int, users: tuple[int, ...] = (-1, 0, 1, 2)) -> Requests:
    n = len(users)
    return Requests(
        user=np.array(users, np.int32), as_of=np.full(n, hours * HOUR), surface=np.zeros(n, np.int16),
        offsets=np.arange(n + 1) * len(ITEMS), item=np.tile(ITEMS, n), arm=np.full(n, arm, np.int16),
    )  # fmt: skip


@given(logs(), logs(), st.integers(0, 26))
@settings(max_examples=40, deadline=None)
def test_what_another_arm_shows_moves_no_bit(log: EventLog, other: EventLog, hours: int) -> None:
    """Whether the old arm has these events, others, or none at all."""
    kept = log.select(log.arm != OLD)
    shown = replace(other, arm=np.full(len(other), OLD, np.int16))
    order = np.argsort(np.concatenate([kept.ts, shown.ts]), kind="stable")
    names = [field.name for field in fields(EventLog) if field.name != "feedback_names"]
    both = {name: np.concatenate([getattr(kept, name), getattr(shown, name)])[order] for name in names}
    states = [
        State.build(one, catalog(), (*TABLED, *BY[: len(BY) // 2]), GRADES) for one in (log, kept, replace(log, **both))
    ]
    for arm in (NEW, SHARED):
        requests = asked(arm, hours)
        many = [counter_values(state, requests) for state in states]
        alone = [counter_values(state, requests.slice(1, 2)) for state in states]
        for values in (many, alone):
            assert values[0].tobytes() == values[1].tobytes() == values[2].tobytes()


def test_a_later_event_of_another_arm_moves_no_rounding() -> None:
    """Tables as of a level's end: that of an arm is of its own end."""
    rng, n = np.random.default_rng(0), 400
    log = replace(
        empty_log(("stars",), n),
        user=rng.integers(0, 3, n).astype(np.int32),
        item=rng.integers(0, 4, n).astype(np.int32),
        surface=rng.integers(0, 2, n).astype(np.int16),
        ts=np.sort(rng.integers(0, 10 * HOUR, n)),
        arm=np.append(rng.integers(-1, 2, n - 1), OLD).astype(np.int16),
    )
    later = replace(log, ts=np.append(log.ts[:-1], 20 * HOUR + 12345))
    states = [State.build(one, catalog(), TABLED, GRADES) for one in (log, later)]
    for arm, same in ((NEW, True), (SHARED, True), (OLD, False)):
        one = asked(arm, 30).slice(1, 2)
        values = [counter_values(state, one) for state in states]
        assert (values[0].tobytes() == values[1].tobytes()) == same
    made = [key for key, table in states[0].levels[0].tables.items() if table is not None]
    assert sorted(made) == [(plan, arm) for plan in range(4) for arm in (SHARED, NEW, OLD)]


@given(logs(), logs(), st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_tables_of_arms_say_what_the_timelines_do(log: EventLog, later: EventLog, hours: int, after: int) -> None:
    """Of a base, with and without a level behind it, and of an arm that no event is of."""
    roomy = replace(catalog(), new_users=Newcomers(room=3), new_items=Newcomers(room=2), new_arms=Newcomers(room=2))
    later = replace(later, ts=later.ts + after * HOUR, arm=later.arm + np.int16(1))
    base = State.build(log, roomy, TABLED, GRADES)
    for state in (base, base.extended(later)):
        for arm in (SHARED, NEW, OLD, 2):
            requests = asked(arm, hours, (-1, 0, 1, 2, 4))
            many = counter_values(state, requests)
            for r in range(len(requests)):
                alone = counter_values(state, requests.slice(r, r + 1))
                np.testing.assert_allclose(alone, many[requests.row_request() == r], rtol=1e-6, atol=1e-6)


def count(*, by_arm: bool, key: tuple[str, ...] = ("item",)) -> Counter:
    return Counter((BY_ARM, *key) if by_arm else key, "impression", Span.parse("all"), "count")


def test_an_arm_counts_its_own_events_and_those_of_no_arm() -> None:
    arm = np.array([SHARED] * 3 + [NEW] * 4 + [OLD] * 6 + [OTHER_ARM] * 5, np.int16)
    log = replace(empty_log(("stars",), 18), user=np.zeros(18, np.int32), item=np.zeros(18, np.int32), arm=arm)
    counters = (count(by_arm=True), count(by_arm=True, key=("user",)), count(by_arm=False))
    state = State.build(log, catalog(), counters, GRADES)
    item = np.zeros(1, np.int32)
    found = {arm: counter_values(state, one_request(0, DAY, 0, item, arm=arm))[0].tolist() for arm in (-1, 0, 1)}
    assert found == {SHARED: [3, 3, 18], NEW: [7, 7, 18], OLD: [9, 9, 18]}


def test_rows_of_training_are_those_that_are_served() -> None:
    """Events and requests of every arm: block by block, all at once, and one by one from a written state."""
    world, rng = make_world(), np.random.default_rng(0)
    log = replace(world.log, arm=rng.integers(-1, 2, len(world.log)).astype(np.int16))
    known = replace(world.catalog, arms=("new", "old"))
    counters = make_counters(
        [
            CounterSettings(key=["item"], event="like", spans=["all", "w7d", "h2d"], stats=["rate"], by_arm=True),
            CounterSettings(key=["user", "tags"], event="play", spans=["all"], stats=["mean", "since"], by_arm=True),
            CounterSettings(key=["user"], event="impression", spans=["all"], stats=["count"], by_arm=True),
        ],
        log,
        known,
        GRADES,
    )
    spec, n = make_spec(counters, known, "UTC", []), 60
    assert spec.columns[0] == "item_by_arm__like__all__rate"
    first = np.sort(rng.choice(len(log), n, replace=False))
    requests = Requests(
        user=log.user[first], as_of=log.ts[first], surface=log.surface[first], arm=log.arm[first],
        offsets=np.arange(n + 1) * 5, item=rng.integers(-1, 80, 5 * n).astype(np.int32),
    )  # fmt: skip
    whole = State.build(log, known, counters, GRADES)
    rows = assemble(whole, spec, requests)
    blocks = training_rows(log, known, counters, GRADES, spec, requests, memory=200_000)
    np.testing.assert_array_equal(rows, blocks)
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder) / "state", whole)
        served = load_state(Path(folder) / "state")
    assert served.catalog.arm_code("old") == 1
    for r in range(n):
        np.testing.assert_allclose(
            assemble(served, spec, requests.slice(r, r + 1)), rows[requests.row_request() == r], rtol=1e-6
        )
    assert (rows != assemble(whole, spec, replace(requests, arm=1 - np.maximum(requests.arm, 0)))).any()


def test_a_state_is_rebuilt_from_its_histories_with_its_arms() -> None:
    world, rng = make_world(n_users=10), np.random.default_rng(1)
    log = replace(world.log, arm=rng.integers(-1, 2, len(world.log)).astype(np.int16))
    known = replace(world.catalog, arms=("new", "old"))
    again = Histories.build(log, 10).log(("play",))
    requests = one_request(3, int(log.ts[-1]) + 1, 0, np.arange(80, dtype=np.int32), arm=1)
    want, found = (
        counter_values(State.build(one, known, (count(by_arm=True),), GRADES), requests) for one in (log, again)
    )
    np.testing.assert_array_equal(want, found)
    assert want.sum() < len(log)


def test_histories_of_before_there_were_arms_have_none(tmp_path: Path) -> None:
    world = make_world(n_users=4)
    save_state(tmp_path / "state", State.build(world.log, world.catalog, (count(by_arm=False),), GRADES))
    (tmp_path / "state" / "histories" / "arm.npy").unlink()
    old = load_state(tmp_path / "state").histories
    assert old.arm.tolist() == [-1] * len(world.log)


def test_names_of_columns_say_it_and_are_read_again() -> None:
    assert parse_column("user_x_tags_by_arm__like__w7d__rate").key == (BY_ARM, "user", "tags")
    for counter in BY:
        assert parse_column(counter.column).key == counter.key
    with pytest.raises(ValidationError, match="another ending than '_by_arm' was expected"):
        ItemsSettings(source="items.parquet", columns={"genre_by_arm": "genre"})


@pytest.mark.parametrize("stat", ["distinct_user", "rank_genre"])
def test_what_cannot_be_added_up_is_refused(stat: str) -> None:
    declared = CounterSettings(key=["item"], event="impression", stats=[stat], by_arm=True)
    with pytest.raises(PairliftError, match=f"stat '{stat}': without by_arm was expected"):
        make_counters([declared], empty_log(()), catalog(), GRADES)


def test_so_many_arms_as_events_are_expected() -> None:
    with pytest.raises(ValueError, match="3 arms were expected, found 2"):
        replace(empty_log((), 3), arm=np.zeros(2, np.int16))
