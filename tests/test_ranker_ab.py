"""`pairlift ab`: DuckDB's figures against plain ones, the estimates against simulation-free definitions, bad input."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import skew

sys.path.append(str(Path(__file__).parent / "bench" / "peers"))

from page_numbers import Page, unequal

from features.errors import PairliftError
from features.log.segments import export_segment, segment_files
from features.log.writer import LogWriter
from features.schema import DAY
from ranker.ab.aggregate import opened
from ranker.ab.estimates import TOO_SKEWED, Moments, unknown, uplift
from ranker.ab.plan import Metric, Plan, led_by, metric_of, ratio_of, shares_of, time_of
from ranker.ab.report import ab_report, against
from ranker.ab.result import AbReport
from ranker.ab.sequence import p_always, rho_squared, widening
from ranker.ab.table import as_table
from ranker.ab.verdict import VOID, doubts, verdict, why
from ranker.cli.main import cli
from ranker.recording.columns import ARM
from ranker.uplift.said import KINDS, as_text

START = 1_760_000_000_000_000
CLICKS, RATIO = Metric("clicks", "sum(click)"), Metric("ctr", "sum(click)", "count(*)")
TWO = Plan(metrics=[CLICKS, RATIO], looks=3)
Columns = dict[str, list[Any]]


def made(seed: int = 0, users: int = 600, arms: tuple[str, ...] = ("control", "new"), effect: float = 0.0) -> Columns:
    """Return a log: users of a heavy-tailed rate, a week before the experiment and two in it."""
    rng = np.random.default_rng(seed)
    rate, code = rng.lognormal(1.5, 0.8, users), rng.integers(0, len(arms), users)
    log: Columns = {"user_id": [], "ts": [], "arm": [], "click": []}
    for user in range(users):
        for begin, days, arm in ((START - 7 * DAY, 7, None), (START, 14, arms[code[user]])):
            n = rng.poisson(rate[user]) if arm is None else 1 + rng.poisson(2 * rate[user])
            log["user_id"] += [user] * n
            log["ts"] += (begin + rng.integers(0, days * DAY, n)).tolist()
            log["arm"] += [arm] * n
            chance = 0.3 * (1 + effect * (arm not in (None, arms[0])))
            log["click"] += (rng.random(n) < chance).astype(float).tolist()
    return log


def written(folder: Path, log: Columns) -> str:
    table = pa.table(log | {"ts": pa.array(log["ts"], pa.timestamp("us", "UTC"))} if "ts" in log else log)
    pq.write_table(table, folder / "log.parquet")
    return str(folder / "log.parquet")


def plain(log: Columns, until: int, click: Callable[[Any], float] = float) -> dict[str, np.ndarray]:
    """Return float64[n, 4] clicks, rows, and both before, of each arm: by a loop over rows."""
    arms: dict[int, set[str]] = {}
    for user, ts, arm in zip(log["user_id"], log["ts"], log["arm"], strict=True):
        arms.setdefault(user, set()).update([arm] if arm and ts < until else [])
    of = {user: np.zeros(4) for user, found in arms.items() if len(found) == 1}
    for user, ts, arm, value in zip(*(log[name] for name in ("user_id", "ts", "arm", "click")), strict=True):
        if user in of and (arm is None or ts < until):
            of[user][[2, 3] if arm is None else [0, 1]] += [click(value), 1]
    return {
        name: np.array([row for user, row in of.items() if arms[user] == {name} and row[1]])
        for name in sorted({arm for arm in log["arm"] if arm})
    }


@pytest.mark.parametrize("seed", range(3))
def test_duckdb_gives_the_moments_of_a_loop_over_rows(seed: int, tmp_path: Path) -> None:
    log = made(seed, users=80, arms=("a", "b", "control"))
    log["arm"][log["arm"].index("a")] = "b"  # a user in two arms, unless this was all they had
    until = START + 5 * DAY
    with opened(written(tmp_path, log), replace(TWO, end=until)) as read:
        rows = read.rows()
        read.remember(rows)
        found = read.look(rows.start, until)
    for name, of in plain(log, until).items():
        one = np.ones(len(of))
        for metric, values in (
            ("ctr", of),
            ("clicks", np.column_stack([of[:, 0], one, of[:, 2], one])),
        ):
            expected = Moments.of(values)
            moments = found[metric].moments[name]
            assert moments.n == expected.n
            np.testing.assert_allclose(moments.mean, expected.mean, rtol=1e-12)
            np.testing.assert_allclose(moments.cov, expected.cov, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(moments.third, expected.third, rtol=1e-9, atol=1e-9)
            assert moments.active == expected.active


def jackknife(control: np.ndarray, arm: np.ndarray, value: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """Return the standard error of a figure of two arms by leaving out each user."""
    parts = []
    for which in (0, 1):
        arms = [control, arm]
        out = []
        for k in range(len(arms[which])):
            less = list(arms)
            less[which] = np.delete(arms[which], k, axis=0)
            out.append(value(*less))
        parts.append((len(out) - 1) * np.var(out))
    return float(np.sqrt(sum(parts)))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), ratio=st.booleans(), past=st.booleans())
def test_the_error_is_that_of_the_jackknife(seed: int, ratio: bool, past: bool) -> None:
    rng = np.random.default_rng(seed)

    def users(n: int, chance: float) -> np.ndarray:
        rate = rng.lognormal(1, 0.5, n)
        seen, before = 1 + rng.poisson(5 * rate), rng.poisson(5 * rate)
        values = np.column_stack([rng.binomial(seen, chance), seen, rng.binomial(before, 0.3), before]).astype(float)
        if not ratio:
            values[:, [1, 3]] = 1
        return values

    control, arm = users(150, 0.3), users(120, 0.33)
    found = uplift(Moments.of(control), Moments.of(arm), cuped=past)

    def value(a: np.ndarray, b: np.ndarray) -> float:
        return uplift(Moments.of(a), Moments.of(b), cuped=past).value

    assert found.value == value(control, arm)
    # That θ is estimated too, the delta method leaves out: of so few users the jackknife knows it.
    assert found.error == pytest.approx(jackknife(control, arm, value), rel=0.2 if past else 0.06)
    if not past:
        of = [part[:, 0].sum() / part[:, 1].sum() for part in (control, arm)]
        assert found.value == pytest.approx(of[1] / of[0] - 1)
        assert np.isnan(found.fell)


def test_cuped_takes_away_what_the_past_tells_and_no_more() -> None:
    rng = np.random.default_rng(1)
    past = rng.normal(10, 3, (2, 4000))
    one = np.ones(4000)
    values = [np.column_stack([of + rng.normal(0, 1, 4000), one, of, one]) for of in past]
    found = uplift(*map(Moments.of, values))
    assert found.fell == pytest.approx(0.9, abs=0.02)  # 9 of 10
    assert abs(found.value) < 4 * np.sqrt(2 / 4000) / 10
    none = [np.column_stack([of[:, :2], np.zeros((4000, 2))]) for of in values]
    assert np.isnan(uplift(*map(Moments.of, none)).fell)
    constant = [np.column_stack([of[:, :2], 3.3 * one, one]) for of in values]
    assert np.isnan(uplift(*map(Moments.of, constant)).fell)


@pytest.mark.parametrize("tight", [100, 10_000])
def test_the_sequence_is_narrowest_where_it_was_told_and_its_p_is_its_level(tight: int) -> None:
    rho2 = rho_squared(tight)
    at = np.geomspace(tight / 30, tight * 30, 2001)
    widths = [widening(float(t), rho2) for t in at]
    assert at[int(np.argmin(widths))] == pytest.approx(tight, rel=0.02)
    assert min(widths) == pytest.approx(3.03, abs=0.01)
    for t in at[::400]:
        for level in (0.2, 0.05, 0.001):
            assert p_always(widening(float(t), rho2, level), float(t), rho2) == pytest.approx(level)
    assert p_always(0.0, 50.0, rho2) == 1


def test_a_look_that_never_ends_is_seldom_wrong() -> None:
    rng = np.random.default_rng(5)
    rho2 = rho_squared(500)
    steps = rng.normal(size=(1000, 3000)).cumsum(axis=1)
    t = np.arange(1, 3001)
    wide = np.array([widening(float(of), rho2) for of in t]) * np.sqrt(t)
    wrong = (np.abs(steps) > wide).any(axis=1).mean()
    assert 0.005 < wrong < 0.05
    assert (np.abs(steps[:, 100:]) > 1.96 * np.sqrt(t[100:])).any(axis=1).mean() > 0.3


def test_an_effect_is_said_by_every_place(tmp_path: Path) -> None:
    source = written(tmp_path, made(3, users=3000, effect=0.3))
    report = ab_report(source, TWO)
    of = report["metrics"]["clicks"]["against"]["new"]
    assert verdict(report) == "'new' raises clicks"
    assert of["ci95"] == of["always95"]
    assert of["always95"][0] < of["fixed95"][0] < of["relative_uplift"] < of["fixed95"][1] < of["always95"][1]
    assert of["ci95"][0] < 0.3 < of["ci95"][1]
    assert 0.2 < of["variance_fell"] < 0.95
    assert [look["metrics"]["clicks"]["new"]["ci95"] for look in report["looks"]][-1] == of["ci95"]
    assert report["rows"]["before"] > 1000
    final = ab_report(source, replace(TWO, final=True))
    assert final["metrics"]["clicks"]["against"]["new"]["ci95"] == of["fixed95"]
    assert len(final["looks"]) == 1
    swapped = ab_report(source, replace(TWO, control="new"))
    assert verdict(swapped) == "'control' lowers clicks"
    assert "'new' raises clicks" in as_table(report)


def test_arms_without_an_effect_are_corrected_by_holm(tmp_path: Path) -> None:
    report = ab_report(written(tmp_path, made(4, users=900, arms=("control", "b", "c"))), TWO)
    against = report["metrics"]["clicks"]["against"]
    assert verdict(report) == "no change of clicks by 'b' is shown so far; no change of clicks by 'c' is shown so far"
    low, high = sorted(against.values(), key=lambda of: of["p"])
    assert low["p_holm"] == pytest.approx(min(1, 2 * low["p"]))
    assert high["p_holm"] >= max(high["p"], low["p_holm"])
    assert "Holm" in as_table(report)


def test_another_split_than_the_planned_one_voids_all(tmp_path: Path) -> None:
    source = written(tmp_path, made(5, effect=1.0))
    arguments = ["ab", source, "--metric", "clicks=sum(click)", "--share", "control=0.6", "--share", "new=0.4"]
    done = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert VOID in done.output
    report = AbReport.read(tmp_path / "out")
    assert report.figures["split"]["failed"]
    assert report.figures["metrics"]["clicks"]["against"]["new"]["decided"] == "void"
    assert VOID in report.page()
    fair = CliRunner().invoke(cli, ["ab", source, "--metric", "clicks=sum(click)"])
    assert fair.exit_code == 0, fair.output
    assert "no --share says others" in fair.output


def test_an_arm_that_grew_is_said(tmp_path: Path) -> None:
    log = made(5, users=900)
    kept = {user: k for k, user in enumerate(sorted(set(log["user_id"])))}
    grown = {user: user % 10 < 1 if k < 450 else user % 10 < 9 for user, k in kept.items()}
    late = [7 * DAY * (user >= 450) for user in log["user_id"]]
    log["arm"] = [
        arm and ("new" if grown[user] else "control") for arm, user in zip(log["arm"], log["user_id"], strict=True)
    ]
    log["ts"] = [
        ts if arm is None else START + (ts - START) // 2 + add
        for ts, add, arm in zip(log["ts"], late, log["arm"], strict=True)
    ]
    fair = ab_report(written(tmp_path, log), TWO)
    assert not fair["split"]["failed"]  # half of all, by chance of how it grew
    shares = fair["split"]["halves"]["shares"]["new"]
    assert shares == pytest.approx([0.1, 0.9], abs=0.02)
    first, last = map(KINDS["share"], shares)
    assert f"'new' has {first} of the users who came in its first half and {last} of those" in said(fair)
    failed = ab_report(written(tmp_path, log), replace(TWO, shares={"control": 0.8, "new": 0.2}))
    assert "The shares changed during the experiment" in as_text(failed, why(failed))
    even = ab_report(written(tmp_path, made(5)), TWO)
    assert not even["split"]["halves"]["changed"]
    old = fair | {"split": {key: of for key, of in fair["split"].items() if key != "halves"}}
    assert "The shares changed" not in said(old)


@pytest.mark.parametrize("final", [False, True])
def test_the_page_says_what_the_json_says(final: bool, tmp_path: Path) -> None:
    plan = replace(TWO, metrics=[*TWO.metrics, Metric("a/b <i>", "max(1)")], final=final)
    report = AbReport.measured(written(tmp_path, made(6, arms=("control", "b", "c"))), plan)
    path = report.write_page(tmp_path / "out")
    page = Page(path)
    assert not page.wrong
    assert not page.open
    assert not [link for link in page.links if link and not link.startswith("#")]
    assert json.loads(page.json) == report.figures
    assert len(page.numbers) > 60
    assert not unequal(page.numbers, report.figures)
    assert "it is constant within an arm" in path.read_text()
    assert report.table().num_rows == 6
    assert escape(report.verdict)[1:] in report._repr_html_()


def said(report: dict[str, Any]) -> str:
    return "\n".join(as_text(report, doubt.sentence) for doubt in doubts(report))


def test_what_is_left_out_is_counted_and_said(tmp_path: Path) -> None:
    log = made(7)
    late = max(log["ts"])
    for user, arm, click in ((1, "control", 1.0), (1, "new", 1.0), (2, None, 1.0), (3, "", 1.0)):
        for name, value in (("user_id", user), ("ts", late), ("arm", arm), ("click", click)):
            log[name].append(value)
    inside = next(k for k, (user, arm) in enumerate(zip(log["user_id"], log["arm"], strict=True)) if arm and user == 9)
    log["click"][inside] = float("nan")
    past = next(k for k, (user, arm) in enumerate(zip(log["user_id"], log["arm"], strict=True)) if not arm and user > 9)
    log["click"][past] = float("inf")
    report = ab_report(written(tmp_path, log), TWO)
    assert report["in_two_arms"] == 1
    assert report["rows"]["without_arm"] == 2
    assert report["metrics"]["clicks"]["no_value"] == 1
    assert report["users"] == 599
    for sentence in ("1 users were in more than one arm", "2 rows", "the value of 1 users is NaN"):
        assert sentence in said(report)
    assert report["metrics"]["clicks"]["against"]["new"]["variance_fell"] > 0


def test_few_users_and_one_large_one_are_said(tmp_path: Path) -> None:
    log = made(8, users=150)
    few = ab_report(written(tmp_path, log), TWO)
    of = few["metrics"]["clicks"]["against"]["new"]
    assert of["fixed95"][0] is not None
    assert (of["always95"], of["p"], of["decided"]) == ([None, None], None, "open")
    assert "at least 100 users in each arm" in as_table(few)
    AbReport(few).page()
    log["click"][-1] = 1e4
    found = ab_report(written(tmp_path, log), TWO)
    carried = found["metrics"]["clicks"]["arms"][str(log["arm"][-1])]["largest_share"]
    assert carried > 0.5
    assert f"One user has {carried:.1%}".replace("%", " %") in said(found)


def test_a_ratio_is_as_skewed_as_what_the_delta_method_sums() -> None:
    """Who sees much clicks much: the numerator is skewed, and the ratio is not."""
    rng = np.random.default_rng(0)
    seen = 1 + rng.poisson(20 * rng.lognormal(0, 1.2, 4000))
    values = np.column_stack([rng.binomial(seen, 0.3), seen, np.zeros((4000, 2))]).astype(float)
    ratio, mean = values, np.column_stack([values[:, 0], np.ones(4000), values[:, 2:]])
    known = [against(Moments.of(of[200:]), Moments.of(of[:200]), TWO) for of in (ratio, mean)]
    assert (known[0]["refused"], known[1]["refused"]) == ("", TOO_SKEWED)
    arms = [Moments.of(ratio[200:]), Moments.of(ratio[:200])]
    each = []
    for of, rows in zip(arms, (ratio[200:], ratio[:200]), strict=True):
        each.append(of.skewness(of.linear()))
        assert each[-1] == pytest.approx(skew(rows[:, 0] - of.ratio() * rows[:, 1], bias=False))
    few, many = 1 / 200, 1 / 3800
    expected = max(map(abs, each)) * (few**2 - many**2) / (few + many) ** 1.5
    assert known[0]["skewness"] == pytest.approx(expected)


def test_a_log_without_times_has_one_look_and_no_past(tmp_path: Path) -> None:
    log = made(9)
    del log["ts"]
    plan = replace(TWO, time="")
    report = ab_report(written(tmp_path, log), plan)
    assert len(report["looks"]) == 1
    assert report["start"] is None
    assert report["metrics"]["clicks"]["against"]["new"]["variance_fell"] is None
    assert "CUPED takes no noise away" in said(report)
    AbReport(report).page()


def test_exported_events_of_a_recorder_are_read_from_their_folder(tmp_path: Path) -> None:
    assert Plan(metrics=[CLICKS]).arm == ARM
    log = made(10)
    writer = LogWriter(tmp_path / "recorded", 7 * DAY, lambda: START + 14 * DAY)
    writer.learn()
    writer.start()
    half = len(log["ts"]) // 2
    for part in (slice(None, half), slice(half, None)):
        events = pa.table({name: values[part] for name, values in log.items()})
        ids = pa.array([f"{part.start}-{k}" for k in range(events.num_rows)])
        writer.append(events.append_column("event_id", ids)).result()
    writer.close()
    for segment in segment_files(tmp_path / "recorded"):
        export_segment(segment, tmp_path / "events")
    whole = ab_report(written(tmp_path, log), TWO)
    exported = ab_report(str(tmp_path / "events"), TWO)
    assert exported["arms"] == whole["arms"]
    for name, of in whole["metrics"]["clicks"]["arms"].items():
        assert exported["metrics"]["clicks"]["arms"][name] == pytest.approx(of)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no metric": ({"metrics": []}, "a metric was expected"),
    "twice": ({"metrics": [CLICKS, CLICKS]}, "different names"),
    "no user": ({"user": "person"}, "the column 'person' was expected, found user_id, ts, arm, click"),
    "no time": ({"time": "at"}, "name the log's own by --time, or --time"),
    "time": ({"time": "click"}, "a timestamp was expected, found DOUBLE"),
    "arm": ({"arm": "NULL::VARCHAR"}, "rows with an arm were expected"),
    "one arm": ({"arm": "nullif(arm, 'new')"}, "at least two arms were expected in nullif(arm, 'new'), found only"),
    "control": ({"control": "cntrol"}, "found 'cntrol' (did you mean 'control'?)"),
    "an empty arm": ({"shares": {"control": 0.5, "new": 0.3, "c": 0.2}}, "users of the arm 'c' were expected"),
    "an arm more": ({"shares": {"control": 1.0}}, "found none of 'new'"),
    "no aggregate": ({"metrics": [Metric("x", "click")]}, "a SQL aggregate over the rows of a user was expected"),
    "a column": ({"metrics": [Metric("x", "sum(clicks)")]}, "metric 'x'"),
    "text": ({"metrics": [Metric("x", "max(arm)")]}, "a number was expected of max(arm), found VARCHAR"),
    "backwards": ({"start": 2, "end": 1}, "an --end after the --start"),
    "after all": ({"start": START + 99 * DAY}, "(--start), and the last one is before it"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_sentence(name: str, tmp_path: Path) -> None:
    changed, sentence = MISTAKES[name]
    source = written(tmp_path, made(11, users=30))
    with pytest.raises(PairliftError) as caught:
        ab_report(source, replace(TWO, **changed))
    assert sentence in str(caught.value)


def test_a_log_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "no.parquet", tmp_path / "empty"):
        done = CliRunner().invoke(cli, ["ab", str(source), "--metric", "clicks=sum(click)"])
        assert done.exit_code == 2
        assert "a folder of Parquet" in done.output
    log = written(tmp_path, made(12, users=30))
    done = CliRunner().invoke(cli, ["ab", log, "--metric", "x=sum(arm::INTEGER)"])
    assert done.exit_code == 2
    assert "as try_cast does" in done.output
    assert len(done.output) < 400
    with pytest.raises(PairliftError, match="there is no report"):
        AbReport.read(tmp_path)
    (tmp_path / "ab.json").write_text("{}")
    with pytest.raises(PairliftError, match="found other JSON"):
        AbReport.read(tmp_path)


def test_one_user_and_what_cannot_be_known_is_said() -> None:
    rng = np.random.default_rng(0)
    many = np.column_stack([rng.poisson(3, 500), np.ones(500), np.zeros((500, 2))]).astype(float)
    cov = np.full((4, 4), np.nan)
    one = Moments(1, many[0], cov, np.zeros((4, 4, 4)), 1)
    assert unknown(one, Moments.of(many)).startswith("the control has 1 user with a value")
    assert unknown(Moments.of(many), one).startswith("this arm has 1 user with")
    rare = many * 0
    rare[:, 1], rare[0, 0] = 1, 1
    assert "only 1 users of the control" in unknown(Moments.of(rare), Moments.of(many))
    assert "only 1 users of this arm" in unknown(Moments.of(many), Moments.of(rare))
    rare[:40, 0] = [1, -1] * 20
    assert "cannot be told from 0" in unknown(Moments.of(rare), Moments.of(many))
    heavy = many[:60].copy()
    heavy[0, 0] = 500
    of = against(Moments.of(many), Moments.of(heavy), TWO)
    assert "one arm is too small" in of["refused"]
    none = many * [1, 0, 1, 1]
    assert "denominator is 0" in unknown(Moments.of(none), Moments.of(many))
    assert unknown(Moments.of(many), Moments.of(many)) == ""


def test_metrics_shares_and_times_as_they_are_stated() -> None:
    assert metric_of("x = sum(a) / 2") == Metric("x", "sum(a) / 2")
    assert ratio_of("x=sum(a / 2)/count('/')") == Metric("x", "sum(a / 2)", "count('/')")
    assert ratio_of('x=(sum(a) / 3) / sum("b/c")').den == 'sum("b/c")'
    assert shares_of(["a=0.25", "b=c=0.75"]) == {"a": 0.25, "b=c": 0.75}
    assert shares_of([]) is None
    assert time_of("2025-10-09T10:53:20+02:00", "--start") == time_of("2025-10-09T08:53:20", "--start") == START
    assert time_of(None, "--start") is None
    assert [m.name for m in led_by("ctr", [CLICKS, RATIO])] == ["ctr", "clicks"]
    assert led_by("", [CLICKS, RATIO]) == [CLICKS, RATIO]
    wrong: list[tuple[Callable[[Any], Any], Any]] = [
        *((metric_of, text) for text in ("x", "=sum(a)", "x=")),
        *((ratio_of, text) for text in ("x=sum(a)", "x=a/b/c", "x=/b", "x=a/")),
        *((shares_of, [text]) for text in ("a", "a=2", "=0.5", "a=b", "a=0.5")),
        (lambda text: time_of(text, "--end"), "soon"),
        (lambda name: led_by(name, [CLICKS]), "click"),
    ]
    for call, text in wrong:
        with pytest.raises(PairliftError, match="expected"):
            call(text)


def test_rows_of_an_arm_before_the_start_are_no_past(tmp_path: Path) -> None:
    """Where the effect was at work before --start, to correct for that time would take the effect away."""
    log = made(21, users=400)
    late = replace(TWO, start=START + 3 * DAY)
    report = ab_report(written(tmp_path, log), late)
    assert report["rows"]["armed_before"] > 0
    assert report["metrics"]["clicks"]["against"]["new"]["variance_fell"] is None
    assert "CUPED is left out" in said(report)
    moved = [
        k for k, (arm, ts) in enumerate(zip(log["arm"], log["ts"], strict=True)) if arm == "new" and ts < late.start
    ]
    user = log["user_id"][moved[0]]
    log["arm"][moved[0]] = "control"
    assert ab_report(written(tmp_path, log), late)["in_two_arms"] == (
        user
        in {
            u
            for u, arm, ts in zip(log["user_id"], log["arm"], log["ts"], strict=True)
            if arm == "new" and ts >= late.start
        }
    )


def test_rows_without_a_user_or_a_time_are_said(tmp_path: Path) -> None:
    log = made(22)
    log["user_id"][0], log["ts"][5] = None, None
    assert "2 rows have no user, or no time" in said(ab_report(written(tmp_path, log), TWO))


@pytest.mark.parametrize("seed", range(20))
def test_the_interval_holds_zero_exactly_where_the_difference_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arms = [
        np.column_stack([rng.poisson(m, 400), np.ones(400), np.zeros((400, 2))]) for m in (1, rng.uniform(0.8, 1.2))
    ]
    of = uplift(*(Moments.of(values.astype(float)) for values in arms))
    for level in (0.01, 0.05, 0.3):
        low, high = of.interval(level)
        assert low <= of.value <= high
        assert (low <= 0 <= high) == (of.p() >= level)


def test_shares_that_miss_one_by_rounding_are_shares() -> None:
    found = shares_of(["a=0.3333333", "b=0.3333333", "c=0.3333333"])
    assert found is not None
    assert sum(found.values()) == pytest.approx(1, abs=1e-15)


def test_a_start_behind_the_log_is_said(tmp_path: Path) -> None:
    with pytest.raises(PairliftError, match=r"rows from 2026-.* were expected \(--start\)"):
        ab_report(written(tmp_path, made()), replace(TWO, start=START + 365 * DAY))


def test_an_earlier_look_that_had_shown_it_is_said(tmp_path: Path) -> None:
    report = ab_report(written(tmp_path, made(3)), TWO)
    report["metrics"]["clicks"]["against"]["new"]["decided"] = "open"
    assert "had its answer" not in said(report)
    report["looks"][0]["metrics"]["clicks"]["new"]["always95"] = [0.01, 0.2]
    assert "lay above zero" in said(report)


def test_nanoseconds_with_a_zone_are_times(tmp_path: Path) -> None:
    log = made(4)
    usual = ab_report(written(tmp_path, log), TWO)
    table = pa.table(log | {"ts": pa.array(log["ts"], pa.timestamp("us", "UTC"))})
    nano = table.set_column(1, "ts", table["ts"].cast(pa.timestamp("ns", "Europe/Paris")))
    pq.write_table(nano, tmp_path / "log.parquet")
    assert ab_report(str(tmp_path / "log.parquet"), TWO)["metrics"] == usual["metrics"]


def test_a_control_near_zero_and_a_constant_ratio_are_not_known() -> None:
    rng = np.random.default_rng(1)
    one, none = np.ones(300), np.zeros((300, 2))
    near = np.column_stack([rng.normal(0, 1, 150), one[:150], none[:150]])
    near[:, 0] += 4.3 / 150**0.5 - near[:, 0].mean()  # about 4.3 errors away from 0
    far = np.column_stack([rng.normal(5, 1, 150), one[:150], none[:150]])
    of = against(Moments.of(near), Moments.of(far), TWO)
    assert "cannot be told from 0 by the interval" in of["refused"]
    den = rng.integers(1, 9, 300).astype(float)
    constant = np.column_stack([den / 3, den, none])
    varied = np.column_stack([den * rng.uniform(0.2, 0.4, 300), den, none])
    assert "constant within an arm" in unknown(Moments.of(varied), Moments.of(constant))
