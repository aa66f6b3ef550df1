"""Slices in SQL and by day, whether probabilities hold, what moves a pair's margin: against plain definitions."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import duckdb
import lightgbm as lgb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from features.baselines import ALS
from features.errors import PairliftError
from features.pairing.pairs import Pairs
from features.plugin import lag_of
from features.schema import DAY, F32, F64, HOUR, Bool, Requests
from features.state.histories import Histories
from features.state.lag import DAILY
from ranker.cli.main import cli
from ranker.columns import Columns
from ranker.config import load_config
from ranker.training.arms import Arm, Arms
from ranker.training.prepared import Prepared, prepare
from ranker.uplift.explain.ages import age_labels
from ranker.uplift.explain.asked import MOST_VALUES, UNKNOWN, asked_labels, check_asked, day_labels
from ranker.uplift.explain.margins import BINS, EXPLAINED, calibration, contributions
from ranker.uplift.explain.steady import unsteady

ZONE = "America/New_York"
TOML = f"""
name = "asked"
[time]
zone = "{ZONE}"
[events]
source = "events.parquet"
surface = "surface"
[events.context]
device = "device"
[items]
source = "items.parquet"
[items.columns]
year = "year"
tags = "tags"
[users]
source = "users.parquet"
[users.columns]
region = "region"
[[grades]]
name = "no"
when = "NOT yes"
[[grades]]
name = "yes"
when = "yes"
[events.feedback]
yes = "yes"
[pairing]
window = "1h"
[ranker]
plugins = []
[plugins.noise]
class = "features.baselines:Noise"
"""
START = datetime(2024, 3, 1)


def _write(folder: Path, days: int) -> Path:
    """Write a log of so many days, in which some users, items and devices are not known."""
    rng, n = np.random.default_rng(0), 1500
    at = np.sort(rng.integers(0, days * 86_400, n)).tolist()
    events = {
        "user_id": rng.integers(0, 12, n),
        "item_id": rng.integers(0, 40, n),
        "ts": [START + timedelta(seconds=second) for second in at],
        "surface": rng.choice(["feed", "search"], n),
        "device": pa.array(rng.choice(["tv", "phone", ""], n).tolist()),
        "yes": rng.random(n) < 0.5,
    }
    table = pa.table(events)
    empty = [None if device == "" else device for device in table["device"].to_pylist()]
    pq.write_table(table.set_column(4, "device", pa.array(empty)), folder / "events.parquet")
    years = [None if k % 5 == 0 else 1990 + k for k in range(35)]
    pq.write_table(
        pa.table({"item_id": range(35), "year": years, "tags": [["a"] * (k % 2) + ["b"] for k in range(35)]}),
        folder / "items.parquet",
    )
    pq.write_table(pa.table({"user_id": range(10), "region": ["north", "south"] * 5}), folder / "users.parquet")
    (folder / "pairlift.toml").write_text(TOML)
    return folder / "pairlift.toml"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(load_config(_write(tmp_path_factory.mktemp("asked"), 30)))


def test_a_slice_in_sql_is_what_the_log_says_of_item_user_and_request(prepared: Prepared) -> None:
    groups = prepared.slices()["test"]
    asked = {
        "old": "year < 2010",
        "a": "list_contains(tags, 'a')",
        "where": "user.region",
        "device": "context.device",
        "place": "context.surface",
        "hour": "hour(context.as_of) // 6",
    }
    found = asked_labels(prepared, groups, asked)
    r, device = groups.requests, pq.read_table(prepared.config.path.parent / "events.parquet")["device"].to_pylist()
    surfaces = (*prepared.catalog.surfaces, UNKNOWN)
    for row, owner in enumerate(r.row_request().tolist()):
        user, item = (
            int(ids[k])
            for ids, k in ((prepared.catalog.user_ids, r.user[owner]), (prepared.catalog.item_ids, r.item[row]))
        )
        known = item < 35
        at = datetime.fromtimestamp(r.as_of[owner] / 1e6, ZoneInfo(ZONE))
        expected = {
            "old": str(1990 + item < 2010).lower() if known and item % 5 else UNKNOWN,
            "a": str(bool(item % 2)).lower() if known else UNKNOWN,
            "where": ("north", "south")[user % 2] if user < 10 else UNKNOWN,
            "device": device[groups.event[row]] or UNKNOWN,
            "place": surfaces[r.surface[owner]],
            "hour": str(at.hour // 6),
        }
        assert {name: labels[row] for name, labels in found.items()} == expected


@pytest.mark.parametrize(("days", "kind"), [(20, "day"), (100, "week")])
def test_days_are_those_of_the_zone_and_weeks_begin_on_mondays(tmp_path: Path, days: int, kind: str) -> None:
    prepared = prepare(load_config(_write(tmp_path, days)))
    groups = prepared.slices()["test"]
    found = day_labels(prepared, groups)
    assert list(found) == [kind]
    r = groups.requests
    at = [datetime.fromtimestamp(r.as_of[owner] / 1e6, ZoneInfo(ZONE)).date() for owner in r.row_request()]
    back = [day.weekday() * (kind == "week") for day in at]
    assert found[kind].tolist() == [str(day - timedelta(days=k)) for day, k in zip(at, back, strict=True)]
    assert len(set(found[kind])) > 1


class Late:
    """A plugin that says how far it lags, and of which users it has a vector."""

    def __init__(self, lag: int | str, known: Bool) -> None:
        self.settings, self.known = SimpleNamespace(lag=lag), known


class LateVectors(Late):
    item_vectors = np.zeros((1, 2), np.float32)

    def user_vectors(self, requests: Requests, histories: Histories) -> F32:
        return np.where(self.known[requests.user][:, None], np.ones((1, 2)), np.nan).astype(np.float32)


@pytest.mark.parametrize("lag", [0, HOUR, DAY, 3 * DAY, 30 * DAY, DAILY])
@pytest.mark.parametrize("kind", [Late, LateVectors])
def test_an_age_is_the_time_since_the_history_of_a_vector_ended(
    prepared: Prepared, kind: type[Late], lag: int | str
) -> None:
    groups, rng = prepared.slices()["test"], np.random.default_rng(0)
    r, known = groups.requests, rng.random(prepared.catalog.n_users) < 0.7
    owner = r.row_request()
    values = np.where(known[r.user[owner]] & (rng.random(len(owner)) < 0.9), 1, np.nan)
    values[r.offsets[:-1][known[r.user]]] = 1
    columns = Columns(("x",), {"test": values[:, None].astype(np.float32)})
    arms = Arms(prepared, {"test": groups}, Columns())
    found = age_labels(arms, "late", kind(lag, known), columns)  # type: ignore[arg-type]
    if not lag:
        assert found == {}
        return
    bounds = {"1: under 6 hours": (0, 6), "2: 6 to 12 hours": (6, 12), "3: 12 to 24 hours": (12, 24)}
    bounds |= {"4: 1 to 2 days": (24, 48), "5: 2 to 7 days": (48, 168), "6: 7 days and more": (168, np.inf)}
    for row, g in enumerate(owner.tolist()):
        at = datetime.fromtimestamp(r.as_of[g] / 1e6, ZoneInfo(ZONE))
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
        hours = (at.timestamp() - midnight.timestamp()) / 3600 if lag == DAILY else int(lag) / HOUR
        label = found["vector_age"][row]
        if not known[r.user[g]]:
            assert label == "0: no vector"
        else:
            low, high = bounds[label]
            assert low <= hours < high
            assert lag == DAILY or high * HOUR > int(lag)
    assert list(found) == ["vector_age"]
    assert len(set(found["vector_age"])) == (4 if lag == DAILY else 2)


def test_als_sees_the_events_before_the_age_of_its_vectors_and_no_later_one(prepared: Prepared) -> None:
    plugin, histories = ALS(factors=4, lag="1d"), prepared.state.histories
    plugin.fit(prepared.fit_data(0))
    requests, other = prepared.slices()["test"].requests, 0
    cut = requests.as_of - lag_of(plugin).age(requests.as_of)
    assert (requests.as_of - cut == DAY).all()
    for g in range(0, len(requests), 5):
        one = requests.slice(g, g + 1)
        vector = plugin.user_vectors(one, histories)
        np.testing.assert_array_equal(vector, plugin.user_vectors(one, histories.until(int(cut[g]))))
        other += not np.array_equal(vector, plugin.user_vectors(one, histories.until(int(cut[g] - DAY))))
    assert other > 3


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("yeer", r"\[uplift.slices\] mine: .*yeer.*year \(FLOAT\)"),
        ("user.reg", r"\[uplift.slices\] mine: .*region"),
        ("(SELECT max(grade) FROM log.events)", r"\[uplift.slices\] mine: .*events.*not exist"),
        ("(SELECT count(*) FROM 'events.parquet')", r"\[uplift.slices\] mine: .*disabled"),
        ("year +", r"\[uplift.slices\] mine: Parser Error"),
        ("CASE WHEN Random() < 0.5 THEN 1 END", r"\[uplift.slices\] mine: .*same value in every run.*found random:"),
        ("year < year(now())", r"\[uplift.slices\] mine: .*found now:"),
        ("context.as_of < current_date", r"\[uplift.slices\] mine: .*found current_date:"),
        ("context.as_of", rf"\[uplift.slices\] mine: at most {MOST_VALUES} different values were expected, found \d+"),
    ],
)
def test_sql_that_the_log_cannot_answer_is_told_before_anything_is_fitted(
    prepared: Prepared, sql: str, said: str
) -> None:
    config = prepared.config
    asked = config.model_copy(update={"uplift": config.uplift.model_copy(update={"slices": {"mine": sql}})})
    with pytest.raises(PairliftError, match=f"(?s){said}"):
        check_asked(replace(prepared, config=asked))


def test_validate_refuses_a_slice_as_a_report_does(tmp_path: Path) -> None:
    toml = _write(tmp_path, 20)
    toml.write_text(TOML + "[uplift.slices]\nmine = 'year < random()'\n")
    done = CliRunner().invoke(cli, ["validate", str(toml)])
    assert done.exit_code == 2
    assert "[uplift.slices] mine: an expression that gives the same value in every run" in done.output


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("CASE WHEN year > 3 THEN uuid() END", "uuid"),
        ("list_transform(tags, lambda x: RANDOM())", "random"),
        ("date_diff('day', context.as_of, today()) > 3", "today"),
        ("context.as_of < ago(INTERVAL 1 DAY)", "ago"),
        ("age(context.as_of)", "age"),
        ("context.as_of.age()", "age"),
        ("Current_Date - 1", "current_date"),
        ("(SELECT count(*) FROM sliced USING SAMPLE 10)", "USING SAMPLE"),
        ("year < (SELECT avg(random()) FROM sliced)", "random"),
        ("age(context.as_of, context.as_of)", ""),
        ("context.as_of.age(context.as_of)", ""),
        ("hash(user.region) % 2", ""),
        ("today", ""),  # an attribute, or an error that DuckDB tells
        ("'random()' || tags[1]", ""),
        ("year +", ""),
    ],
)
def test_what_luck_or_the_clock_decides_is_found(sql: str, found: str) -> None:
    with duckdb.connect() as con:
        assert unsteady(con, sql, ["year", "tags", "user", "context"]) == found


def test_a_column_of_the_name_of_a_clock_is_a_column() -> None:
    with duckdb.connect() as con:
        assert unsteady(con, "current_date > 3", ["Current_Date"]) == ""


def test_every_function_whose_value_moves_between_two_connections_is_found() -> None:
    named = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE len(parameters) = 0 AND function_type = $kind"
    with duckdb.connect() as con:
        names = [n for kind in ("scalar", "macro") for (n,) in con.execute(named, {"kind": kind}).fetchall()]

    def value(con: duckdb.DuckDBPyConnection, name: str) -> str | None:
        try:
            return str(con.execute(f'SELECT "{name}"()::VARCHAR').fetchall())
        except duckdb.Error:  # some take more than they say
            return None

    with duckdb.connect() as one, duckdb.connect() as other:
        moved = {name for name in names if value(one, name) != value(other, name)}
    assert {"random", "uuid", "now", "current_localtimestamp"} <= moved
    with duckdb.connect() as con:
        assert {name for name in moved if not unsteady(con, f"{name}()", [])} == set()


def test_a_slice_may_not_take_the_name_of_another(tmp_path: Path) -> None:
    toml = _write(tmp_path, 20)
    toml.write_text(TOML + "[uplift.slices]\nwinner_age = 'context.surface'\n")
    with pytest.raises(PairliftError, match="slices of the name winner_age"):
        load_config(toml)


def _pairs(weight: F64) -> Pairs:
    n = len(weight)
    return Pairs(
        np.arange(n, dtype=np.int32), np.arange(n, 2 * n, dtype=np.int32), weight.astype(np.float32), np.zeros(n, bool)
    )


def _arm(margin: F64) -> Arm:
    return Arm(None, np.concatenate([margin, np.zeros(len(margin))]))  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-40, 40), st.integers(1, 9)), max_size=60), st.integers(1, 3))
def test_what_was_said_and_what_was_so_is_counted_as_by_hand(drawn: list[tuple[int, int]], seeds: int) -> None:
    margin = np.array([m / 10 for m, _ in drawn], np.float64)
    pairs = _pairs(np.array([w for _, w in drawn], np.float64))
    found = calibration([[_arm(margin) for _ in range(seeds)]], pairs)
    every = sorted(
        [(abs(m), (m > 0) + (m == 0) / 2, w) for m, w in zip(margin, pairs.weight, strict=True)] * seeds,
        key=lambda one: one[0],
    )
    if not every:
        assert found["bins"] == []
        return
    whole = sum(float(w) for *_, w in every)
    assert sum(of["share"] for of in found["bins"]) == pytest.approx(1)
    said = sum(w / (1 + np.exp(-m)) for m, _, w in every) / whole
    held = sum(w * h for _, h, w in every) / whole
    assert sum(of["share"] * of["predicted"] for of in found["bins"]) == pytest.approx(said)
    assert sum(of["share"] * of["observed"] for of in found["bins"]) == pytest.approx(held)
    assert len(found["bins"]) <= BINS
    assert all(np.diff([of["predicted"] for of in found["bins"]]) > -1e-12)
    distance = sum(of["share"] * abs(of["predicted"] - of["observed"]) for of in found["bins"])
    assert found["error"] == pytest.approx(distance)


def test_a_ranker_that_is_too_sure_is_told_from_one_that_is_right() -> None:
    rng = np.random.default_rng(0)
    size = rng.exponential(1, 40_000)
    margin = np.where(rng.random(len(size)) < 1 / (1 + np.exp(-size)), size, -size)
    pairs = _pairs(rng.integers(1, 4, len(size)).astype(np.float64))
    honest, sure = (calibration([[_arm(times * margin)]], pairs) for times in (1.0, 3.0))
    assert honest["error"] < 0.01
    assert sure["error"] > 0.1
    assert all(abs(of["predicted"] - of["observed"]) < 0.03 for of in honest["bins"])


def test_contributions_sum_to_the_mean_margin_and_a_column_that_tells_nothing_has_none() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2 * EXPLAINED, 3)).astype(np.float32)
    rows[:, 2] = 1
    label = rows[:, 0] + 0.2 * rows[:, 1] + rng.normal(size=len(rows))
    data = lgb.Dataset(rows, label, feature_name=["much", "little", "nothing"])
    booster = lgb.train({"verbose": -1, "num_leaves": 7, "seed": 0}, data, 20)
    winner, loser = np.where(label[::2] > label[1::2], 0, 1), np.where(label[::2] > label[1::2], 1, 0)
    at = 2 * np.arange(EXPLAINED)
    pairs = Pairs(
        (at + winner).astype(np.int32),
        (at + loser).astype(np.int32),
        np.ones(EXPLAINED, np.float32),
        np.zeros(EXPLAINED, bool),
    )
    scores = np.asarray(booster.predict(rows))
    found = contributions(Arm(booster, scores), rows, pairs)
    assert list(found) == ["much", "little", "nothing"]
    assert found["nothing"] == {"size": 0, "towards": 0}
    assert found["much"]["towards"] > 0
    margin = float((scores[pairs.winner] - scores[pairs.loser]).mean())
    assert sum(of["towards"] for of in found.values()) == pytest.approx(margin)
    assert contributions(Arm(booster, scores), rows, pairs.select(np.zeros(EXPLAINED, bool))) == {}
