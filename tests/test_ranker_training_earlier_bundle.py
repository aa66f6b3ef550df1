"""Daily retraining from an earlier bundle: the same trees over a log that has grown, and what is refused."""

from pathlib import Path

import duckdb
import lightgbm as lgb
import numpy as np
import pytest
from served import pairlift
from world import write_world

from features.errors import PairliftError
from ranker.bundle import load_bundle, read_manifest
from ranker.config import load_config
from ranker.metrics.pair_accuracy import pair_accuracy
from ranker.training.arms import Arms
from ranker.training.category_codes import vocabulary
from ranker.training.earlier_bundle import StartFrom, load_start
from ranker.training.prepared import prepare
from ranker.training.wanted import rows_of

#: item 3, users 5 and 6, and a kind that sorts first are not in the log of yesterday
ABSENT = "item_id <> 3 AND user_id NOT IN (5, 6)"
KIND = "CASE WHEN item_id = 3 THEN 'a new one' ELSE 'kind ' || item_id % 5 END"
CONTEXT = """[events.context]
hand = "CASE WHEN user_id IN (5, 6) THEN 'a left' ELSE 'hand ' || user_id % 2 END"
"""
ITEMS = '[items]\nsource = "items.parquet"\n[items.columns]\nkind = "kind"\n[booster]'


def write_log(folder: Path, where: str = "true") -> Path:
    """Write a world whose log has the rows of a condition, and a kind for each item; return its TOML."""
    folder.mkdir()
    config = write_world(folder, request=CONTEXT)
    duckdb.sql(f"COPY (SELECT * FROM '{folder}/log.parquet' WHERE {where}) TO '{folder}/part.parquet'")
    items = f"SELECT DISTINCT item_id, {KIND} AS kind FROM '{folder}/part.parquet'"
    duckdb.sql(f"COPY ({items}) TO '{folder}/items.parquet'")
    config.write_text(config.read_text().replace("log.parquet", "part.parquet").replace("[booster]", ITEMS))
    return config


@pytest.fixture(scope="module")
def yesterday(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("days") / "yesterday"
    early = "ts < (SELECT quantile_cont(ts, 0.85) FROM 'LOG')".replace("LOG", f"{folder}/log.parquet")
    code, said = pairlift("train", write_log(folder, f"{ABSENT} AND {early}"), "--out", folder / "bundle")
    assert code == 0, said
    return folder / "bundle"


@pytest.fixture(scope="module")
def today(yesterday: Path) -> Path:
    return write_log(yesterday.parent.parent / "today")


def test_the_trees_mean_the_same_in_the_codes_of_today(yesterday: Path, today: Path) -> None:
    prepared, old = prepare(load_config(today)), load_bundle(yesterday)
    start = load_start(StartFrom("refit", yesterday, 0.9), prepared)
    was, now = old.state.catalog, prepared.catalog
    assert vocabulary(now, "item_kind") == ("a new one", *vocabulary(was, "item_kind"))
    assert vocabulary(now, "context_hand") == ("a left", *vocabulary(was, "context_hand"))
    arms = Arms.of(prepared)
    columns = arms.served_columns(start.plugins)
    rows, groups = arms.rows("test", columns), arms.groups["test"].requests
    known = (now.item_ids != 3)[groups.item] & ~np.isin(now.user_ids[groups.user], (5, 6))[groups.row_request()]
    assert (~known).any()
    dot = old.columns.index("als__dot")
    assert np.isnan(rows[groups.item == np.flatnonzero(now.item_ids == 3)[0], dot]).all()
    assert np.isfinite(rows[known, dot]).mean() > 0.9
    before = rows.copy()
    for column in ("item_kind", "context_hand"):
        before[:, old.columns.index(column)] -= 1  # what yesterday's codes were
    want = old.booster.predict(before[known], raw_score=True)
    np.testing.assert_array_equal(start.booster.predict(rows[known], raw_score=True), want)
    assert any(t["num_cat"] for t in old.booster.dump_model()["tree_info"])  # a category is split on


def test_a_plugin_that_knows_old_codes_of_context_is_refused(
    yesterday: Path, today: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.baselines.ALS.contexts", ("hand",), raising=False)
    with pytest.raises(PairliftError, match=r"the values of \[events.context\] hand are others now"):
        load_start(StartFrom("refit", yesterday), prepare(load_config(today)))
    load_start(StartFrom("refit", yesterday), prepare(load_config(yesterday.parent / "pairlift.toml")))


@pytest.mark.parametrize("how", ["--warm-start", "--refit"])
def test_a_bundle_goes_on_from_yesterdays(how: str, yesterday: Path, today: Path, tmp_path: Path) -> None:
    code, said = pairlift("train", today, "--out", tmp_path / "bundle", how, yesterday)
    assert code == 0, said
    assert "the old trees" in said
    old, new = load_bundle(yesterday), load_bundle(tmp_path / "bundle")
    measured = read_manifest(tmp_path / "bundle")["measured"]
    assert measured[how[2:]] == old.version
    assert measured["pair_accuracy"] > measured["old_pair_accuracy"] - 0.005
    trees = old.booster.num_trees(), new.booster.num_trees()
    assert trees[0] == trees[1] if how == "--refit" else trees[0] < trees[1]
    # What is measured is what the bundle gives, with the kept plugin as it was saved again.
    prepared = prepare(load_config(today))
    arms = Arms.of(prepared)
    columns = arms.served_columns(new.plugins)
    score = new.score(arms.rows("test", columns))
    assert pair_accuracy(score, arms.pairs("test")).value == pytest.approx(measured["pair_accuracy"], abs=1e-12)
    assert pairlift("bundle", "show", tmp_path / "bundle")[0] == 0
    # The wanted part is learned anew, with the kept plugin in the codes of today, and adds the new liked part.
    assert old.wanted is not None
    assert new.wanted is not None
    rows = rows_of(prepared, new.plugins)
    fitted, _ = rows.with_liked(rows.fit(prepared.config, 0), new.booster, None)
    assert fitted.dump_model()["tree_info"] == new.wanted.dump_model()["tree_info"]
    assert measured["lists"]["users"] > 50


def test_a_refit_that_keeps_everything_is_the_old_forest(yesterday: Path, today: Path, tmp_path: Path) -> None:
    code, said = pairlift(
        "train", today, "--out", tmp_path / "bundle", "--refit", yesterday, "--refit-decay", 1
    )  # fmt: skip
    assert code == 0, said
    prepared = prepare(load_config(today))
    want = load_start(StartFrom("refit", yesterday, 1.0), prepared).booster
    got = lgb.Booster(model_file=str(tmp_path / "bundle" / "booster.txt"))
    rows = np.random.default_rng(0).uniform(0, 4, (200, got.num_feature()))
    np.testing.assert_allclose(got.predict(rows, raw_score=True), want.predict(rows, raw_score=True), rtol=1e-12)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("factors = 16", "factors = 8", "[plugins.als] of"),
        ('plugins = ["als"]', 'plugins = ["als", "noise"]', "its plugins are als"),
        ('plugins = ["als"]', "plugins = []", "are none"),
        ("[booster]", "[features]\ncolumns = ['item_kind']\n[booster]", "the columns of"),
        ('when = "play >= 0.9"', 'when = "play >= 0.8"', "[[grades]] of"),
        ("[booster]", "[booster.monotone]\nals__dot = 1\n[booster]", "[booster.monotone]"),
        ("[booster]", "[split]\nt1 = 0.1\n[booster]", "its t1 is"),
        ("[booster]", "[split]\nt1 = 0.45\nt2 = 0.5\n[booster]", "it learned from this test"),
        ('source = "part.parquet"', 'source = "part.parquet"\nitem_id = "item_id::VARCHAR"', "another kind"),
    ],
)  # fmt: skip
def test_what_would_change_the_meaning_is_refused(
    yesterday: Path, today: Path, tmp_path: Path, old: str, new: str, says: str
) -> None:
    text = today.read_text()
    assert old in text
    other = today.with_name("other.toml")
    other.write_text(text.replace(old, new).replace('source = "items.parquet"', _item_source(new)))
    code, said = pairlift("train", other, "--out", tmp_path / "bundle", "--refit", yesterday)
    assert (code, says in said) == (2, True), said
    assert not (tmp_path / "bundle").exists()


def _item_source(new: str) -> str:
    return 'source = "items.parquet"' + ('\nitem_id = "item_id::VARCHAR"' if "VARCHAR" in new else "")


def test_a_plugin_that_cannot_be_moved_is_named(yesterday: Path, today: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("features.baselines.ALS.recoded")
    with pytest.raises(PairliftError, match=r"plugin 'als' has no `recoded`"):
        load_start(StartFrom("warm-start", yesterday), prepare(load_config(today)))


def test_only_one_start_is_taken(yesterday: Path, today: Path, tmp_path: Path) -> None:
    code, said = pairlift(
        "train", today, "--out", tmp_path / "b", "--refit", yesterday, "--warm-start", yesterday
    )  # fmt: skip
    assert (code, "choose one" in said) == (2, True)
    code, said = pairlift("train", today, "--out", tmp_path / "b", "--warm-start", yesterday, "--refit-decay", 0.5)
    assert (code, "goes with --refit" in said) == (2, True)
    code, said = pairlift("train", today, "--out", tmp_path / "b", "--refit", tmp_path)
    assert (code, "is not a bundle" in said) == (2, True)


#: counts how often its fits went on, and what it was given
GOING_ON = """
import json
from features.baselines import Noise

class Days(Noise):
    warm = True

    def fit(self, data):
        super().fit(data)
        earlier = 0 if data.earlier is None else json.loads((data.earlier / "days.json").read_text())
        self.days = earlier + 1

    def save(self, folder):
        super().save(folder)
        (folder / "days.json").write_text(json.dumps(self.days))

    @classmethod
    def load(cls, folder):
        plugin = super().load(folder)
        plugin.days = json.loads((folder / "days.json").read_text())
        return plugin
"""


def test_plugins_that_can_go_on_from_an_earlier_bundle(tmp_path: Path) -> None:
    toml = write_log(tmp_path / "log")
    (toml.parent / "days.py").write_text(GOING_ON)
    text = toml.read_text().replace('plugins = ["als"]', 'plugins = ["days"]').replace("trees = 60", "trees = 5")
    off = "[sources]\npopular = false\ncooccurrence = false\nnearest = false\n"
    toml.write_text(f'{text}{off}[plugins.days]\nclass = "days:Days"\n')
    words, warm = ("train", toml, "--out", tmp_path / "bundle"), ("--warm-plugins", tmp_path / "bundle")
    for day, how in enumerate(((), warm), 1):
        before = read_manifest(tmp_path / "bundle")["version"] if how else None
        code, said = pairlift(*words, *how)
        assert code == 0, said
        assert load_bundle(tmp_path / "bundle").plugins["days"].days == day  # type: ignore[attr-defined]
        assert read_manifest(tmp_path / "bundle")["measured"].get("warm_plugins") == before
    code, said = pairlift(*words, *warm)  # the second run of one day
    assert (code, f"it went on from bundle {before} to this very t1" in said) == (2, True)
    code, said = pairlift(*words, *warm, "--refit", tmp_path / "bundle")
    assert (code, "choose one" in said) == (2, True)
    toml.write_text(toml.read_text().replace("[booster]", "[split]\nt1 = 0.1\n[booster]"))
    code, said = pairlift(*words, *warm)
    assert (code, "its t1 is" in said, "its plugins saw what the booster learns from now" in said) == (2, True, True)


def test_a_bundle_from_which_no_plugin_goes_on_is_refused(
    yesterday: Path, today: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, said = pairlift("train", today, "--out", tmp_path / "bundle", "--warm-plugins", yesterday)
    assert (code, "none of the plugins of" in said) == (2, True)
    assert "plugin 'als' is fitted anew: its class cannot go on" in caplog.text
