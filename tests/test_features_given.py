"""What is said of candidates is the same column in training and serving, and what a list knows is of the whole list."""

from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.blocks import training_rows
from features.counters.spec import Counter, Span
from features.errors import PairliftError
from features.given import check_list, counted, counted_events, given_of_log, with_list
from features.rows import assemble, make_spec
from features.schema import HOUR, Attribute, Catalog, EventLog, Requests, empty_log, one_request
from features.state.store import State
from ranker.config import load_config
from ranker.training.prepared import group_log, prepare

LISTED = ["candidate_price_rank", "candidate_price_less_median", "candidate_match_rank"]
NAN = float("nan")


def catalog() -> Catalog:
    return Catalog(
        user_ids=np.arange(3),
        item_ids=np.arange(5),
        candidates=(
            Attribute("price", "numeric"),
            Attribute("room", "categorical", values=("double", "single")),
            Attribute("match", "numeric"),
        ),
    )


def slow(values: list[float], form: str) -> list[float]:
    """A feature of one list, by its definition."""
    known = sorted(v for v in values if not np.isnan(v))
    if form == "rank":
        mean = {v: np.mean([k + 1 for k, other in enumerate(known) if other == v]) for v in known}
        return [NAN if np.isnan(v) else float(mean[v]) for v in values]
    n = len(known)
    middle = (known[(n - 1) // 2] + known[n // 2]) / 2 if n else NAN
    return [v - middle for v in values]


VALUES = st.sampled_from([NAN, -2.0, 0.0, 0.1, 0.25, 7.0, 1e9])
LISTS = st.lists(st.lists(st.tuples(VALUES, st.sampled_from([NAN, 0.0, 1.0]), VALUES), max_size=7), max_size=5)


@settings(max_examples=60, deadline=None)
@given(LISTS)
def test_features_of_lists_are_those_of_the_definition(lists: list[list[tuple[float, float, float]]]) -> None:
    flat = np.array([row for one in lists for row in one], np.float32).reshape(-1, 3)
    offsets = np.cumsum([0, *map(len, lists)])
    found = with_list(flat, offsets, catalog(), LISTED)
    for k, (place, form) in enumerate([(0, "rank"), (0, "less_median"), (2, "rank")]):
        expected = [v for r in range(len(lists)) for v in slow(flat[offsets[r] : offsets[r + 1], place].tolist(), form)]
        if len(flat):
            np.testing.assert_allclose(found[:, 3 + k], np.array(expected, np.float32), rtol=1e-6)
            np.testing.assert_array_equal(found[:, :3], flat)


@settings(max_examples=40, deadline=None)
@given(LISTS, st.randoms(use_true_random=False))
def test_lists_of_a_log_are_its_requests_wherever_their_rows_stand(lists, random) -> None:
    request = np.array([r for r, one in enumerate(lists) for _ in one], np.int64)
    flat = np.array([row for one in lists for row in one], np.float32).reshape(-1, 3)
    offsets = np.cumsum([0, *map(len, lists)])
    expected = with_list(flat, offsets, catalog(), LISTED)
    order = np.array(random.sample(range(len(flat)), len(flat)), np.int64)
    if len(flat):
        np.testing.assert_array_equal(given_of_log(flat[order], request[order], catalog(), LISTED), expected[order])
        alone = given_of_log(flat[order], np.full(len(flat), -1), catalog(), LISTED)
        assert np.isnan(alone[:, 3:]).all()  # no request: no list


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (["candidate_pric_rank"], "did you mean 'candidate_price_rank'"),
        (["candidate_room_rank"], "candidate_room_rank"),
        (["candidate_price_rank"] * 2, "stands there twice"),
    ],
)
def test_a_list_feature_that_cannot_be_is_told(wanted: list[str], says: str) -> None:
    with pytest.raises(PairliftError, match=says):
        check_list(wanted, catalog())


def a_log(seed: int = 0, n: int = 300) -> tuple[EventLog, np.ndarray]:
    rng = np.random.default_rng(seed)
    log = replace(
        empty_log(("stars",), n),
        user=rng.integers(-1, 3, n).astype(np.int32),
        item=rng.integers(0, 5, n).astype(np.int32),
        ts=np.sort(rng.integers(0, 50, n) * HOUR),
        grade=rng.integers(-1, 2, n).astype(np.int8),
        request=np.repeat(np.arange(n // 6), 6),
    )
    said = np.stack([rng.choice([1, 2, 3, NAN], n), rng.choice([0, 1, NAN], n), rng.random(n)], axis=1)
    return log, said.astype(np.float32)


def test_counters_of_a_number_are_over_the_events_where_it_is_known() -> None:
    log, said = a_log()
    grades = ("skip", "click")
    names = counted_events(["candidate_price", "impression", "candidate_price_of_click"], catalog(), grades)
    assert names == ("candidate_price", "candidate_price_of_click")
    wide = counted(log, said, names, catalog(), grades)
    counters = tuple(Counter(("user",), name, Span("all", 0), "mean", strength=0.0, prior=0.0) for name in names)
    state = State.build(wide, catalog(), counters, grades)
    as_of = 30 * HOUR
    row = assemble(state, make_spec(counters, catalog(), "UTC", []), one_request(1, as_of, -1, np.array([0])))[0]
    mine = (log.user == 1) & (log.ts < as_of) & ~np.isnan(said[:, 0])
    expected = [said[mine, 0].mean(), said[mine & (log.grade >= 1), 0].mean()]
    np.testing.assert_allclose(row[: len(expected)], expected, rtol=1e-6)


def test_a_number_that_sums_cannot_bear_is_told() -> None:
    log, said = a_log()
    said[5, 0] = -2e12
    text = r"event = 'candidate_price': numbers of at most 1e\+12 either way were expected .*, found -2e\+12"
    with pytest.raises(PairliftError, match=text):
        counted(log, said, ("candidate_price",), catalog(), ("skip", "click"))
    assert counted(log, said, (), catalog(), ("skip", "click")) is log


@settings(max_examples=30, deadline=None)
@given(LISTS)
def test_a_request_alone_has_the_columns_of_many_and_of_blocks(lists: list[list[tuple[float, float, float]]]) -> None:
    log, _ = a_log()
    counters = (
        Counter(("user",), "impression", Span("all", 0), "count"),
        Counter(("item",), "impression", Span("all", 0), "count"),
    )
    spec = make_spec(counters, catalog(), "UTC", None, LISTED)
    assert spec.columns[-3:] == tuple(LISTED)
    assert "candidate_room" in spec.categorical
    state = State.build(log, catalog(), counters, ("skip", "click"))
    flat = np.array([row for one in lists for row in one], np.float32).reshape(-1, 3)
    sizes = list(map(len, lists))
    offsets = np.cumsum([0, *sizes])
    whole = Requests(
        user=np.arange(len(lists), dtype=np.int32) % 3,
        as_of=np.full(len(lists), 40 * HOUR, np.int64),
        surface=np.full(len(lists), -1, np.int16),
        offsets=offsets,
        item=(np.arange(len(flat)) % 5).astype(np.int32),
        given=with_list(flat, offsets, catalog(), LISTED),
    )
    at_once = assemble(state, spec, whole)
    in_blocks = training_rows(log, catalog(), counters, ("skip", "click"), spec, whole, memory=1 << 14)
    np.testing.assert_array_equal(in_blocks, at_once)
    for r, one in enumerate(lists):
        own = with_list(np.array(one, np.float32).reshape(-1, 3), np.array([0, len(one)]), catalog(), LISTED)
        request = one_request(r % 3, 40 * HOUR, -1, whole.item[offsets[r] : offsets[r + 1]], given=own)
        np.testing.assert_array_equal(assemble(state, spec, request), at_once[offsets[r] : offsets[r + 1]])
    nothing = assemble(state, spec, replace(whole, given=np.empty((0, 0), np.float32)))
    assert np.isnan(nothing[:, [k for k, name in enumerate(spec.columns) if name.startswith("candidate_")]]).all()


TOML = """
name = "inns"
[data]
root = "."
work = "work"
[events]
source = "log.csv"
user_id = "who"
item_id = "inn"
ts = "day"
request_id = "search"
position = "place"
[events.feedback]
clicked = "clicked"
[events.candidate]
price = "price"
room = "room"
[[grades]]
name = "skip"
when = "clicked = 0"
[[grades]]
name = "click"
when = "clicked = 1"
[pairing]
where = "position > 1"
[[counters]]
key = ["user"]
event = "candidate_price_of_click"
stats = ["mean"]
[features]
list = ["candidate_price_rank", "candidate_price_less_median"]
"""


def searches(folder: Path, toml: str = TOML, n: int = 60) -> Path:
    rng = np.random.default_rng(1)
    rows = []
    for search in range(n):
        price = rng.integers(40, 200, 5)
        for place in range(5):
            clicked = int(price[place] == price.min() or rng.random() < 0.2)
            room = ("single", "double", "")[rng.integers(3)]
            day = f"2024-01-{1 + search // 3:02d} 10:{search % 3:02d}:00"
            rows.append(f"{search % 7},{rng.integers(20)},{day},s{search},{place + 1},{clicked},{price[place]},{room}")
    (folder / "log.csv").write_text("\n".join(["who,inn,day,search,place,clicked,price,room", *rows]))
    (folder / "pairlift.toml").write_text(toml)
    return folder / "pairlift.toml"


def test_the_list_of_a_log_is_all_that_was_shown_before_conditions(tmp_path: Path) -> None:
    path = searches(tmp_path)
    made = group_log(load_config(path))
    requests = made.groups.requests
    assert len(requests.item) == 60 * 4  # the first place makes no pairs, but is in the list
    shown = duckdb.sql(f"""
        SELECT rank_avg, price - med FROM (
            SELECT search, place, price, median(price) OVER (PARTITION BY search) AS med,
                   rank() OVER (PARTITION BY search ORDER BY price)
                   + (count(*) OVER (PARTITION BY search, price) - 1) / 2 AS rank_avg
            FROM '{tmp_path}/log.csv') WHERE place > 1 ORDER BY search[2:]::INT, place""").fetchall()
    np.testing.assert_allclose(requests.given[:, 2:], shown)
    assert [a.values for a in made.catalog.candidates] == [(), ("double", "single")]
    assert {"candidate_price", "candidate_room", "candidate_price_rank"} <= set(made.spec.columns)


def test_the_empty_text_is_unknown_as_it_is_in_a_request(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = TOML.replace('room = "room"', """room = "coalesce(room, '')\"""")
    plain, other = (group_log(load_config(searches(*args))) for args in ((tmp_path,), (tmp_path / "empty", empty)))
    assert other.catalog.candidates[1].values == ("double", "single")
    assert np.isnan(other.groups.requests.given[:, 1]).any()
    np.testing.assert_array_equal(other.groups.requests.given, plain.groups.requests.given)


def test_a_plugin_does_not_take_what_was_shown_for_feedback(tmp_path: Path) -> None:
    prepared = prepare(load_config(searches(tmp_path)))
    assert prepared.log.feedback_names == ("clicked", "candidate_price_of_click")
    assert prepared.fit_data(0).log.feedback_names == ("clicked",)
    assert prepared.fit_data(0).log.feedback.shape[1] == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("[pairing]", "[pairing]\nnegatives = 4"), "drawn losers were not shown"),
        (('request_id = "search"\n', ""), r"\[features\] list needs \[events\] request_id"),
        (('list = ["candidate_price_rank"', 'list = ["candidate_pric_rank"'), "did you mean 'candidate_price_rank'"),
    ],
)
def test_what_candidates_cannot_have_is_told(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    with pytest.raises(PairliftError, match=says):
        group_log(load_config(searches(tmp_path, TOML.replace(*change))))
