"""The controls by the command line: six planted leaks are found, honest columns are not called leaks, nor useful."""

import json
from pathlib import Path
from typing import Any

import leaky
import numpy as np
import pytest
from click.testing import CliRunner, Result
from test_ranker_uplift import write_world

from features.errors import PairliftError
from features.log.loading import load_log
from ranker.cli.main import cli
from ranker.config import load_config
from ranker.training.prepare import _cut, prepare
from ranker.uplift.report import uplift_report
from ranker.uplift.table import as_table


def uplift(folder: Path, kind: type[Any], fits: int = 1, more: str = "", **world: Any) -> tuple[Result, dict[str, Any]]:
    """Run `pairlift uplift` for a plugin class on a small world; return what it said and the report."""
    folder.mkdir(exist_ok=True)
    toml = write_world(folder, **world)
    text = toml.read_text().replace("fits = 2", f"fits = {fits}").replace("seeds = [0, 1, 2]", "seeds = [0, 1]")
    params = "factors = 8\n" if issubclass(kind, leaky.ALS) else ""
    toml.write_text(f'{text}\n{more}\n[plugins.tried]\nclass = "{leaky.plugin_of(kind)}"\n{params}')
    result = CliRunner().invoke(cli, ["uplift", str(toml), "--plugin", "tried", "--out", str(folder / "report")])
    return result, json.loads((folder / "report" / "uplift.json").read_text())


@pytest.mark.parametrize("kind", leaky.LEAKS + leaky.MORE_LEAKS, ids=lambda kind: kind.__name__)
def test_a_planted_leak_is_found(kind: type[Any], tmp_path: Path) -> None:
    equal_times = "SELECT * REPLACE (ts // 3600000000 * 3600000000 AS ts)" if kind is leaky.AtAsOf else ""
    drawn = {"pairing": "negatives = 2", "where": "play >= 0.9"} if kind is leaky.Place else {}
    result, report = uplift(tmp_path, kind, fits=2 if kind is leaky.UnsteadyAhead else 1, rows=equal_times, **drawn)
    assert result.exit_code == 1, result.output
    assert "LEAK: tried__x differs" in result.output
    assert "LEAKS: its values know what they must not" in result.output
    assert not report["useful"]
    control = report["controls"]["refit" if issubclass(kind, leaky.LookedAhead) else "as_of"]
    assert {leak["column"] for leak in control["leaks"]} == {"tried__x"}
    if kind is not leaky.UnsteadyAhead:
        assert all(leak["groups"] > 0 and leak["first"][0].keys() == {"user", "as_of"} for leak in control["leaks"])


def test_a_leak_would_have_been_called_useful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ranker.uplift.report.find_leaks", lambda *_: {})
    result, report = uplift(tmp_path, leaky.NoisyLabel)
    assert (result.exit_code, report["useful"]) == (0, True)
    assert not report["shuffled"]["above_zero"]


def test_what_only_says_that_it_is_known_is_not_useful(tmp_path: Path) -> None:
    result, report = uplift(tmp_path, leaky.OnlyKnown, fits=2)
    assert result.exit_code == 0, result.output
    missing = report["missingness"]
    assert missing["ci95"][0] > 0
    assert report["ci95"][0] > 0  # it gains, and all of it by being known
    assert not report["useful"]
    assert missing["both_sides"]["pairs"] < report["pairs"]
    assert report["column_alone"]["tried__dot"]["comparable"] < 0.9
    assert abs(report["column_alone"]["tried__dot"]["pair_accuracy"] - 0.5) < 0.1


def test_a_fit_that_does_not_repeat_says_so(tmp_path: Path) -> None:
    result, report = uplift(tmp_path / "unsteady", leaky.Unsteady, fits=3)
    assert result.exit_code == 0, result.output
    assert report["controls"]["refit"]["remark"].startswith("its fits do not repeat: tried__dot differs by")
    assert "groups: differ no more than its fits do" in result.output
    result, report = uplift(tmp_path / "steady", leaky.Steady, fits=2)
    assert (result.exit_code, report["leaks"]) == (0, 0)
    result, report = uplift(tmp_path / "one", leaky.Unsteady)
    assert (result.exit_code, report["useful"]) == (0, False)
    assert "[uplift] fits = 2 or more are needed" in result.output
    result, report = uplift(tmp_path / "undeclared", leaky.Undeclared, fits=3)
    assert result.exit_code == 1
    assert report["controls"]["refit"]["leaks"]


def test_one_fit_holds_for_itself_alone(tmp_path: Path) -> None:
    _, report = uplift(tmp_path, leaky.ALS)
    assert report["useful"]
    assert report["variance"]["fits"] is None
    assert "but for this one fit of the plugin alone" in report["holds_for"]
    table = as_table(report)
    assert "tried is useful, with this one fit alone" in table
    assert "WARNING: only 1 fit of the plugin" in table
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
    cut = _cut(prepared)
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


def test_a_column_that_is_missing_everywhere_is_doubted(tmp_path: Path) -> None:
    result, report = uplift(tmp_path, leaky.Nothing, fits=2)
    assert (result.exit_code, report["useful"]) == (0, False)
    assert "WARNING: tried__x is missing on a side of every pair" in result.output


def test_one_seed_and_one_user_are_told(tmp_path: Path) -> None:
    _, report = uplift(tmp_path, leaky.ALS, fits=2)
    assert "is useful, with this one seed alone" in as_table(report | {"seeds": [0]})
    assert "one user has all that is right" in as_table(report | {"ci95": [None, None]})


def test_what_is_no_attribute_is_told_before_anything_is_fitted(tmp_path: Path) -> None:
    toml = write_world(tmp_path)
    toml.write_text(toml.read_text().replace("[uplift]", '[uplift]\nfamiliar = ["genre"]'))
    with pytest.raises(PairliftError, match=r"\[uplift\] familiar: 'genre' is no text or list"):
        uplift_report(load_config(toml), "noise")
