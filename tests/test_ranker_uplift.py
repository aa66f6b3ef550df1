"""The report on worlds with a known answer: what is useful, what leaks, which slices; and the figures add up."""

import json
import re
from pathlib import Path
from typing import Any

import duckdb
import leaky
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from world import write_world

from features.errors import PairliftError
from features.log.loading import load_log
from features.pairing.groups import Groups
from features.pairing.pairs import make_pairs
from features.schema import DAY, SECOND, Requests
from ranker.cli.main import cli
from ranker.config import load_config
from ranker.metrics.simple import events_before, freshness
from ranker.training.plugins import cut_at_t1
from ranker.training.prepared import Prepared, prepare
from ranker.training.validate import validation
from ranker.uplift.explain import asked
from ranker.uplift.explain.asked import check_asked
from ranker.uplift.leaks import BATCHED, ROUNDING, _beyond_rounding, _gap
from ranker.uplift.report import _shuffle, uplift_report
from ranker.uplift.slices import labels
from ranker.uplift.table import as_table

#: the world's users meet the same items again and again, so the default counters of both together know their taste
ONE_SIDED = "".join(
    f'[[counters]]\nkey = ["{side}"]\nevent = "{event}"\nspans = ["h7d", "all"]\nstats = ["{stat}"]\n'
    for side in ("user", "item")
    for event, stat in (("impression", "count"), ("grade", "mean"), ("listen", "rate"), ("like", "rate"))
)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    toml = write_world(tmp_path_factory.mktemp("world"))
    toml.write_text(toml.read_text() + ONE_SIDED)
    config = load_config(toml)
    return {name: uplift_report(config, name) for name in ("als", "noise")}


def test_a_column_that_knows_is_useful(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["als"]
    assert report["useful"]
    assert report["ci95"][0] > 0.1
    assert report["with"] > report["without"] + 0.1
    assert report["importance"]["als__dot"] > 0.1


def test_noise_and_shuffled_columns_are_not(reports: dict[str, dict[str, Any]]) -> None:
    noise = reports["noise"]
    assert not noise["useful"]
    assert noise["ci95"][0] <= 0 <= noise["ci95"][1]
    for report in reports.values():
        assert not report["shuffled"]["above_zero"]
        assert abs(report["random"] - 0.5) < 0.05


def test_the_figures_agree_with_each_other(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["als"]
    assert report["relative_uplift"] == pytest.approx(report["with"] / report["without"] - 1)
    catboost, ties = report["pair_accuracy_catboost"], report["tie_share"]
    assert report["with"] == pytest.approx(catboost["with"] + ties["with"] / 2)
    assert report["effective_users"] <= report["users"]
    assert np.shape(report["trees"]["with"]) == (report["fits"], len(report["seeds"])) == (2, 3)
    assert np.shape(report["trees"]["without"]) == (1, 3)
    sides = [report["missingness"][name]["pairs"] for name in ("both_sides", "one_side", "no_side")]
    assert sum(sides) == report["pairs"]
    for name in ("ndcg@10", "map", "mrr", "auc"):
        assert 0.3 < report[name]["without"] < report[name]["with"] <= 1
    for kind in report["slices"].values():
        assert sum(part["pairs"] for part in kind.values()) == report["pairs"]
    json.dumps(report, allow_nan=False)
    assert "als is useful" in as_table(report)
    for name in ("NDCG@10", "MAP", "MRR", "AUC within groups"):
        assert re.search(rf"^{name} +0\.\d{{4}} +0\.\d{{4}}$", as_table(report), re.MULTILINE)


def test_both_arms_are_resumed_and_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(write_world(tmp_path))
    first = uplift_report(config, "noise")
    monkeypatch.setattr("ranker.training.arms.fit_booster", None)  # a second run must not fit
    again = uplift_report(config, "noise")
    assert again.pop("cost").keys() == first.pop("cost").keys()  # milliseconds are never the same
    assert again == first


def test_what_it_was_measured_on_and_what_it_costs_stand_in_the_report(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["als"]
    assert list(report["split"]) == ["t0", "t1", "t2", "t3"] == sorted(report["split"], key=report["split"].get)
    assert report["settings"]["plugin"] == {"class": "features.baselines:ALS", "factors": 16}
    assert report["settings"]["uplift"]["fits"] == len(report["cost"]["fit_seconds"]) == 2
    assert 0 < report["cost"]["request_ms"]["p50"] <= report["cost"]["request_ms"]["p99"]
    assert report["cost"]["saved_bytes"] > 80 * 16 * 4  # 80 items, 16 factors
    assert report["cost"]["memory_bytes"] == 3 << 20  # of `memory_unmeasured`
    assert " candidates on average, one request at a time, where the report was made; 3 MiB more " in as_table(report)
    of = report["periods"]["als__dot"]
    assert all(0 < of[part]["known"] <= 1 for part in report["groups"])
    assert of["moved"] == pytest.approx((of["test"]["mean"] - of["train"]["mean"]) / of["train"]["sd"])
    assert all("shrunk" in part for kind in report["slices"].values() for part in kind.values())


def test_drawn_pairs_are_never_mixed_with_shown_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, connected = [], asked._connected
    monkeypatch.setattr(asked, "_connected", lambda prepared: opened.append(prepared) or connected(prepared))
    toml = write_world(tmp_path, pairing="negatives = 2")
    toml.write_text(toml.read_text() + "[uplift.slices]\nevening = 'hour(context.as_of) >= 18'\n")
    report = uplift_report(load_config(toml), "noise")
    assert report["pairs_kind"] == "shown"
    assert report["sampled"]["pairs"] > 0
    for kind in ("day", "evening"):
        assert sum(of["pairs"] for of in report["slices"][kind].values()) == report["pairs"]
        assert sum(of["pairs"] for of in report["sampled"]["slices"][kind].values()) == report["sampled"]["pairs"]
    assert len(opened) == 2  # days and SQL once each, for the pairs of both kinds have the same rows
    positives = tmp_path / "positives"
    positives.mkdir()
    config = load_config(write_world(positives, pairing="negatives = 4", where="play >= 0.9"))
    report = uplift_report(config, "als")
    assert report["pairs_kind"] == "sampled"
    assert "sampled" not in report
    assert "sampled (losers by sampler = 'popularity') pairs" in as_table(report)
    assert report["shown_order"] is None
    assert report["ndcg@10"]["with"] > 0  # drawn losers are worse than the log's only grade


def test_columns_that_are_equal_within_a_group_are_shuffled_between_groups() -> None:
    offsets = np.array([0, 2, 4, 6])
    requests = Requests(
        user=np.zeros(3, np.int32),
        as_of=np.zeros(3, np.int64),
        surface=np.zeros(3, np.int16),
        offsets=offsets,
        item=np.zeros(6, np.int32),
    )
    grade, event = np.zeros(6, np.int8), np.zeros(6, np.int64)
    groups = Groups(
        requests=requests, period=np.zeros(3, np.int8), validation=np.zeros(3, bool), grade=grade, event=event
    )
    values = np.stack([np.repeat([1.0, np.nan, 3.0], 2), np.arange(6.0)], axis=1).astype(np.float32)
    seen = set()
    for seed in range(20):
        shuffled = _shuffle(values, groups, seed)
        np.testing.assert_array_equal(np.sort(shuffled[:, 0]), np.sort(values[:, 0]))
        np.testing.assert_array_equal(shuffled[::2, 0], shuffled[1::2, 0])
        assert (shuffled[:, 1] // 2 == values[:, 1] // 2).all()
        seen.add(str(shuffled[:, 0]))
    assert len(seen) > 3


def test_a_plugin_whose_values_lag_says_so(reports: dict[str, dict[str, Any]]) -> None:
    assert reports["als"]["lag"] == ""
    assert "study" not in as_table(reports["als"])
    for lag, said in (("daily", "its values are those of the last midnight"), ("1d", "its values lag 1d behind")):
        text = as_table(reports["als"] | {"lag": lag})
        assert said in text
        assert "`pairlift study CONFIG --study lag --plugin als` says" in text


def test_a_plugin_of_offline_vectors_is_sliced_by_their_age(plain: Path) -> None:
    result, report = uplift(plain, leaky.Daily)
    assert (result.exit_code, report["lag"], report["leaks"]) == (0, "daily", 0), result.output
    ages = report["slices"]["vector_age"]
    day = {"0: no vector", "1: under 6 hours", "2: 6 to 12 hours", "3: 12 to 24 hours"}
    assert len(ages) > 2
    assert set(ages) <= day
    assert sum(of["pairs"] for of in ages.values()) == report["pairs"]
    assert "uplift by the age of the user's vector, each drawn towards the others." in result.output
    page = (plain / "report" / "report.html").read_text()
    for age, of in ages.items():
        shown = f"{100 * of['shrunk']['relative_uplift']:+.2f} %"
        assert re.search(rf"^  {age[3:]} +{re.escape(shown)} \[", result.output, re.MULTILINE)
    for said in ("its values are those of the last midnight, in training as in serving", "Its values are those of"):
        assert said in (result.output if said[0] == "i" else page)
    assert "<h3>Uplift by the age of the user&#x27;s vector</h3>" in page
    assert "Whether it holds as a vector grows old: an age is how long before the request" in page


def test_a_small_log_is_trained_and_told_to_be_small(tmp_path: Path) -> None:
    config = write_world(tmp_path, where="user_id < 3")
    report = uplift_report(load_config(config), "noise")
    json.dumps(report, allow_nan=False)
    assert report["pairs"] < 300
    assert "WARNING: only 3 seeds" in as_table(report)
    assert "WARNING: only 2 fits of the plugin" in as_table(report)
    assert "will hardly be shown" in "\n".join(validation(load_config(config), check_asked))


def uplift(
    folder: Path, kind: type[Any], fits: int = 1, more: str = ONE_SIDED, **world: Any
) -> tuple[Result, dict[str, Any]]:
    """Run `pairlift uplift` for a plugin class on a small world; return what it said and the report.

    A world that the folder has already stays, and so do the booster's fits without the plugin.
    """
    toml = folder / "pairlift.toml"
    if not toml.exists():
        write_world(folder, **world)
    text = toml.read_text().replace("fits = 2", f"fits = {fits}").replace("seeds = [0, 1, 2]", "seeds = [0, 1]")
    toml = folder / "tried.toml"
    params = "factors = 8\n" if issubclass(kind, leaky.ALS) else ""
    toml.write_text(f'{text}\n{more}\n[plugins.tried]\nclass = "{leaky.plugin_of(kind)}"\n{params}')
    result = CliRunner().invoke(cli, ["uplift", str(toml), "--plugin", "tried", "--out", str(folder / "report")])
    return result, json.loads((folder / "report" / "uplift.json").read_text())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a world that several plugins are tried on, one after the other."""
    return tmp_path_factory.mktemp("plain")


#: worlds of their own, where a leak shows
SHOWN_BY = {
    leaky.AtAsOf: {"rows": "SELECT * REPLACE (ts // 3600000000 * 3600000000 AS ts)"},
    leaky.Place: {"pairing": "negatives = 2", "where": "play >= 0.9"},
}


@pytest.mark.parametrize("kind", leaky.LEAKS + leaky.MORE_LEAKS, ids=lambda kind: kind.__name__)
def test_a_planted_leak_is_found(kind: type[Any], plain: Path, tmp_path: Path) -> None:
    folder, fits = tmp_path if kind in SHOWN_BY else plain, 2 if kind is leaky.UnsteadyAhead else 1
    result, report = uplift(folder, kind, fits=fits, **SHOWN_BY.get(kind, {}))
    assert result.exit_code == 1, result.output
    assert "LEAK: tried__x differs" in result.output
    assert "LEAKS: its values know what they must not" in result.output
    assert not report["useful"]
    control = report["controls"]["refit" if issubclass(kind, leaky.LookedAhead) else "as_of"]
    assert {leak["column"] for leak in control["leaks"]} == {"tried__x"}
    if kind is not leaky.UnsteadyAhead:
        assert all(leak["groups"] > 0 and leak["first"][0].keys() == {"user", "as_of"} for leak in control["leaks"])


ANY = st.floats(-4, 4, width=32) | st.sampled_from([0.0, 0.1, np.nan, np.inf, -np.inf])


@given(st.lists(st.tuples(ANY, ANY) | ANY.map(lambda x: (x, x)), min_size=1, max_size=20), st.sampled_from([0.0, 2.0]))
def test_a_gap_is_whatever_is_not_the_same_on_both_sides(pairs: list[tuple[float, float]], scale: float) -> None:
    was, now = (np.array([pair[k] for pair in pairs], np.float32)[:, None] for k in (0, 1))
    gap, apart = _gap(was, now, np.array([scale]))[:, 0], _beyond_rounding(was, now, np.array([scale]))[:, 0]
    for a, b, far, told in zip(was[:, 0].tolist(), now[:, 0].tolist(), gap.tolist(), apart.tolist(), strict=True):
        if a == b or (np.isnan(a) and np.isnan(b)):
            assert (far, told) == (0, False)
        elif np.isnan(a) or np.isnan(b):
            assert (np.isnan(far), told) == (True, True)
        elif np.isinf(a) or np.isinf(b) or not scale:
            assert far == np.inf
            assert told == (np.isinf(a) or np.isinf(b) or abs(a - b) > ROUNDING * abs(a))
        else:
            assert far == abs(a - b) / scale
            assert told == (abs(a - b) > BATCHED * scale + ROUNDING * abs(a))


def test_a_leak_would_have_been_called_useful(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ranker.uplift.report.find_leaks", lambda *_: {})
    result, report = uplift(plain, leaky.NoisyLabel)
    assert (result.exit_code, report["useful"]) == (0, True)
    assert not report["shuffled"]["above_zero"]


def test_what_only_says_that_it_is_known_is_not_useful(plain: Path) -> None:
    result, report = uplift(plain, leaky.OnlyKnown, fits=2)
    assert result.exit_code == 0, result.output
    missing = report["missingness"]
    assert missing["ci95"][0] > 0
    assert report["ci95"][0] > 0  # it gains, and all of it by being known
    assert not report["useful"]
    assert missing["both_sides"]["pairs"] < report["pairs"]
    assert report["column_alone"]["tried__dot"]["comparable"] < 0.9
    assert abs(report["column_alone"]["tried__dot"]["pair_accuracy"] - 0.5) < 0.1


def test_a_fit_that_does_not_repeat_says_so(plain: Path) -> None:
    result, report = uplift(plain, leaky.Unsteady, fits=3)
    assert result.exit_code == 0, result.output
    assert report["controls"]["refit"]["remark"].startswith("its fits do not repeat: tried__dot differs by")
    assert "groups: differ no more than its fits do" in result.output
    result, report = uplift(plain, leaky.Steady, fits=2)
    assert (result.exit_code, report["leaks"]) == (0, 0)
    result, report = uplift(plain, leaky.Unsteady)
    assert (result.exit_code, report["useful"]) == (0, False)
    assert "[uplift] fits = 2 or more are needed" in result.output
    result, report = uplift(plain, leaky.Undeclared, fits=3)
    assert result.exit_code == 1
    assert report["controls"]["refit"]["leaks"]


def test_one_fit_holds_for_itself_alone(plain: Path) -> None:
    _, report = uplift(plain, leaky.ALS)
    assert report["useful"]
    assert report["variance"]["fits"] is None
    assert "but for this one fit of the plugin alone" in report["holds_for"]
    assert "vector_age" not in report["slices"]
    made = report["made"]
    assert made["command"].startswith("pairlift uplift ")
    assert "tried is useful with this one fit (others were not tried)" in (plain / "report" / "report.html").read_text()
    assert {path.suffix for path in (plain / "report").iterdir()} == {".html", ".json", ".parquet"}
    table = as_table(report)
    assert "tried is useful with this one fit (others were not tried)" in table
    assert "WARNING: only 1 fit of the plugin" in table
    full = report | {"at_cap": {"without": 0, "with": 2}, "most_trees": 60}
    assert "2 of 2 boosters with it, 0 of 2 boosters without it grew to the limit, [booster] trees = 60" in as_table(
        full
    )
    assert "grew to the limit" not in as_table(full | {"at_cap": {"without": 0, "with": 0}})
    assert report["at_cap"]["with"] == sum(trees + 10 > 60 for trees in report["trees"]["with"][0])
    small = report | {"relative_uplift": 0.01, "minimum_detectable_uplift": 0.02}
    assert "how much is uncertain" in as_table(small)
    assert "how much is uncertain" not in table


def test_noise_gains_nothing_from_ties(tmp_path: Path) -> None:
    """The base knows the user alone, so it ties on every pair: with ties wrong, noise gains without end."""
    counters = '[[counters]]\nkey = ["user"]\nevent = "impression"\nstats = ["count"]\n[features]\ncolumns = ["hour"]'
    _, report = uplift(tmp_path, leaky.Noise, fits=2, more=counters)
    assert report["without"] == 0.5
    assert abs(report["with"] - 0.5) < 0.05
    assert not report["useful"]
    assert report["pair_accuracy_catboost"]["without"] == 0
    assert report["pair_accuracy_catboost"]["with"] > 0.4


def test_the_cut_log_gives_a_plugin_what_the_whole_log_does(tmp_path: Path) -> None:
    """An honest fit is the same: equal events, groups, pairs and numbering; and nothing of t1 or later is there."""
    config = load_config(
        write_world(tmp_path, pairing="negatives = 2", request='request_id = "concat(user_id, ts // 3600000000)"')
    )
    prepared = prepare(config)
    cut = cut_at_t1(prepared)
    assert load_log(cut.database)[0].ts.max() < prepared.split.t1
    assert cut.log.item.base is None or len(cut.log.item.base) < len(prepared.log)
    one, other = prepared.fit_data(3), cut.fit_data(3)
    for name in ("user", "item", "ts", "grade", "request", "feedback"):
        np.testing.assert_array_equal(getattr(one.log, name), getattr(other.log, name))
    for name in ("user", "as_of", "offsets", "item", "surface"):
        np.testing.assert_array_equal(getattr(one.groups.requests, name), getattr(other.groups.requests, name))
    np.testing.assert_array_equal(one.groups.validation, other.groups.validation)
    for name in ("winner", "loser", "weight"):
        np.testing.assert_array_equal(getattr(one.pairs, name), getattr(other.pairs, name))
    assert one.catalog is other.catalog


def test_a_position_that_is_known_later_on_alone_is_no_fault_of_the_cut_log(tmp_path: Path) -> None:
    columns = (
        "request_id = \"concat(user_id, ts // 3600000000)\"\nposition = 'CASE WHEN ts > middle THEN item_id + 1 END'"
    )
    rows = "SELECT *, (max(ts) OVER () + min(ts) OVER ()) // 2 + 1 AS middle"
    result, _ = uplift(tmp_path, leaky.Noise, request=columns, pairing="position_power = 1.0", rows=rows)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (leaky.Raises, "[plugins.tried] values() raised KeyError: 'price_cents'"),
        (leaky.Flat, "[plugins.tried] values(): an array of shape ("),
    ],
)
def test_a_plugin_with_a_mistake_is_told_by_its_name_and_is_no_leak(kind: type[Any], says: str, tmp_path: Path) -> None:
    toml = write_world(tmp_path)
    toml.write_text(f'{toml.read_text()}\n[plugins.tried]\nclass = "{leaky.plugin_of(kind)}"\n')
    result = CliRunner().invoke(cli, ["uplift", str(toml), "--plugin", "tried", "--out", str(tmp_path / "report")])
    assert result.exit_code == 2
    assert says in result.output


def test_a_plugin_that_the_toml_lacks_is_told_before_the_log_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ranker.uplift.report.prepare", lambda _: pytest.fail("the log was read"))
    toml = write_world(tmp_path)
    toml.write_text(f'{toml.read_text()}\n[plugins.tried]\nclass = "features.baselines:Noise"\n')
    result = CliRunner().invoke(cli, ["uplift", str(toml), "--plugin", "tired", "--out", str(tmp_path / "report")])
    assert (result.exit_code, "did you mean 'tried'?" in result.output) == (2, True)


def test_a_column_that_is_missing_everywhere_is_doubted(tmp_path: Path) -> None:
    result, report = uplift(tmp_path, leaky.Nothing, fits=2)
    assert (result.exit_code, report["useful"]) == (0, False)
    assert "WARNING: tried__x is missing on a side of every pair" in result.output


def test_one_seed_and_one_user_are_told(tmp_path: Path) -> None:
    _, report = uplift(tmp_path, leaky.ALS, fits=2)
    assert "is useful with this one seed (others were not tried)" in as_table(report | {"seeds": [0]})
    assert "one user has all that is right" in as_table(report | {"ci95": [None, None]})


def test_what_is_no_attribute_is_told_before_anything_is_fitted(tmp_path: Path) -> None:
    toml = write_world(tmp_path)
    toml.write_text(toml.read_text().replace("[uplift]", '[uplift]\nfamiliar = ["genre"]'))
    with pytest.raises(PairliftError, match=r"\[uplift\] familiar: 'genre' is not a text or a list"):
        uplift_report(load_config(toml), "noise")


SLICED = """
name = "known"
[events]
source = "events.parquet"
ts = "make_timestamp(ts)"
surface = "surface"
[items]
source = "items.parquet"
[items.columns]
author = "author"
tags = "tags"
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
[uplift]
familiar = ["author", "tags"]
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """40 days of 12 users and 60 items, most of which come late; equal times among them."""
    folder = tmp_path_factory.mktemp("slices")
    rng = np.random.default_rng(0)
    n = 3000
    day = np.sort(rng.integers(0, 40, n))
    item = (rng.random(n) * (8 + 1.3 * day)).astype(int)
    events = {"user_id": rng.integers(0, 12, n), "item_id": item, "ts": day * DAY + rng.integers(0, 40, n) * 60_000_000}
    yes, surface = rng.random(n) < 0.4, np.where(rng.random(n) < 0.5, "feed", "search")
    con = duckdb.connect()
    columns = {**events, "yes": yes, "surface": surface}
    shown = pa.table(columns)  # noqa: F841  (DuckDB reads it by its name)
    con.execute(f"COPY (SELECT * FROM shown) TO '{folder}/events.parquet'")
    con.execute(
        f"COPY (SELECT range AS item_id, CASE WHEN range % 7 THEN 'a' || range % 5 END AS author, "
        f"['t' || range % 3, 't' || range % 4] AS tags FROM range(60)) TO '{folder}/items.parquet'"
    )
    (folder / "pairlift.toml").write_text(SLICED)
    return prepare(load_config(folder / "pairlift.toml"))


def test_labels_are_what_the_log_says(prepared: Prepared) -> None:
    groups = prepared.slices()["test"]
    pairs = make_pairs(groups, prepared.weights)
    found, log, r = labels(prepared, groups, pairs, {}), prepared.log, groups.requests
    author = prepared.catalog.item_attribute("author").codes
    tags = prepared.catalog.item_attribute("tags")
    of_item = [set(tags.codes[tags.offsets[i] : tags.offsets[i + 1]].tolist()) for i in range(60)]
    owner = r.row_request()

    def met(row: int, kind: str) -> bool:
        item, before = int(r.item[row]), log.ts < r.as_of[owner[row]]
        mine = log.item[before & (log.user == r.user[owner[row]])].tolist()
        if kind == "familiarity":
            return item in mine
        if kind == "familiarity_author":
            return author[item] >= 0 and any(author[i] == author[item] for i in mine)
        return any(of_item[i] & of_item[item] for i in mine)

    names = {
        (False, False): "neither met",
        (True, False): "winner met",
        (False, True): "loser met",
        (True, True): "both met",
    }
    sample = np.random.default_rng(1).permutation(len(pairs))[:400].tolist()
    for kind in ("familiarity", "familiarity_author", "familiarity_tags"):
        for k in sample:
            assert found[kind][k] == names[met(pairs.winner[k], kind), met(pairs.loser[k], kind)]
        assert len(np.unique(found[kind])) > 1 or kind == "familiarity_tags"
    bounds = {"0: not seen before": (-np.inf, 0), "1: under 1 day": (0, 1), "2: 1-7 days": (1, 7)}
    bounds |= {"3: 7-30 days": (7, 30), "4: 30 days and more": (30, np.inf)}
    for k in sample:
        row = pairs.winner[k]
        age = (r.as_of[owner[row]] - log.ts[log.item == r.item[row]].min()) / DAY
        low, high = bounds[found["winner_age"][k]]
        assert low <= age < high or (age == 0 and high == 0)
        early = log.ts[log.item == r.item[row]].min() < prepared.split.t1
        assert found["winner_first_seen"][k] == ("before t1" if early else "t1 or later")
    assert len(np.unique(found["winner_age"])) >= 3
    assert len(np.unique(found["winner_first_seen"])) == 2


def test_events_before_an_as_of_do_not_count_those_of_its_instant(prepared: Prepared) -> None:
    groups = prepared.slices()["test"]
    r, log = groups.requests, prepared.log
    owner = r.row_request()
    rows = zip(r.item, r.as_of[owner], strict=True)
    seen = [log.ts[(log.item == item) & (log.ts < as_of)] for item, as_of in rows]
    np.testing.assert_array_equal(events_before(log, prepared.state, groups), [len(ts) for ts in seen])
    since = [(ts.max() - as_of) / SECOND if len(ts) else np.nan for ts, as_of in zip(seen, r.as_of[owner], strict=True)]
    np.testing.assert_allclose(freshness(log, prepared.state, groups), since, rtol=1e-6)
