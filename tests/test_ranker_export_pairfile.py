"""Pairs go to CatBoost's form and to Parquet and come back; what cannot be learned from is refused by place and row."""

from pathlib import Path

import catboost
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import pairlift
from world import GRADES, groups_of, make_world, write_world

from features.errors import PairliftError
from features.pairing.groups import Groups, make_groups
from features.pairing.pairs import Pairs, make_pairs, weight_table
from features.pairing.split import make_split
from features.settings import PairingSettings, SplitSettings
from ranker.bundle import load_bundle
from ranker.config import load_config
from ranker.export.pairfile import read_pairs, rows_path, write_pairs
from ranker.metrics.pair_accuracy import pair_accuracy
from ranker.training.prepared import prepare

TABLE = weight_table({}, GRADES, negatives=True)
SUFFIXES = (".parquet", ".tsv", ".txt", ".pairs")


@given(
    st.lists(st.lists(st.sampled_from([-1, 0, 1, 2]), max_size=7), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1), st.sampled_from(SUFFIXES),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_what_is_written_comes_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, members: list[list[int]], seed: int, suffix: str
) -> None:
    groups, path = groups_of(*members), tmp_path_factory.mktemp("pairs") / f"a{suffix}"
    made = make_pairs(groups, TABLE)
    weight = np.random.default_rng(seed).lognormal(0, 20, len(made)).clip(1e-38, 1e38).astype(np.float32)
    write_pairs(path, Pairs(made.winner, made.loser, weight, made.sampled))
    if not len(made):
        with pytest.raises(PairliftError, match="nothing to learn from"):
            read_pairs(path, groups)
        return
    read = read_pairs(path, groups)
    for name, want in (("winner", made.winner), ("loser", made.loser), ("weight", weight), ("sampled", made.sampled)):
        np.testing.assert_array_equal(getattr(read, name), want)
        assert getattr(read, name).dtype == want.dtype


def test_catboost_reads_the_file_as_the_pairs_it_was_written_from(tmp_path: Path) -> None:
    log = make_world(5).log
    groups = make_groups(log, PairingSettings(), make_split(SplitSettings(), log, "UTC")).of("test")
    made, rng = make_pairs(groups, TABLE), np.random.default_rng(0)
    weight = made.weight * rng.random(len(made)).astype(np.float32)
    pairs = Pairs(made.winner, made.loser, weight, made.sampled)
    write_pairs(tmp_path / "pairs.tsv", pairs)
    value = rng.integers(0, 9, len(groups.grade)) + groups.grade
    group = groups.requests.row_request()
    lines = [f"{label}\t{g}\t{x}" for label, g, x in zip(groups.grade, group, value, strict=True)]
    (tmp_path / "rows.tsv").write_text("\n".join(lines))
    (tmp_path / "columns").write_text("0\tLabel\n1\tGroupId\n2\tNum\n")
    pool = catboost.Pool(
        str(tmp_path / "rows.tsv"), column_description=str(tmp_path / "columns"), pairs=str(tmp_path / "pairs.tsv")
    )
    assert pool.num_pairs() == len(pairs)
    result = {"loss_function": "PairLogit", "iterations": 3, "allow_writing_files": False, "thread_count": 1}
    model = catboost.CatBoost(result | {"verbose": False}).fit(pool)
    theirs = model.eval_metrics(pool, ["PairAccuracy"])["PairAccuracy"][-1]
    assert pair_accuracy(np.asarray(model.predict(pool)), pairs).catboost == pytest.approx(theirs, rel=1e-6)
    assert pair_accuracy(np.asarray(model.predict(pool)), made).catboost != pytest.approx(theirs, rel=1e-4)


def small() -> Groups:
    """Rows 0 to 3 (the last one drawn) are a group, and so are rows 4 and 5."""
    return groups_of([0, 1, 2, -1], [0, 2])


def as_parquet(path: Path, text: str) -> None:
    """Write the same numbers as a text of pairs has."""
    rows = [line.split("\t") for line in text.splitlines()]
    kinds = {"winner": pa.int64(), "loser": pa.int64(), "weight": pa.float64()}
    columns = {
        name: pa.array([float(row[k]) if k == 2 else int(row[k]) for row in rows], kind)
        for k, (name, kind) in enumerate(kinds.items())
        if all(k < len(row) for row in rows)
    }
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize("suffix", [".tsv", ".parquet"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1\t0\t1\n6\t4\t1\n0\t-1\t1", r"rows from 0 to 5.* in 2 pairs; .*\n    pair 2: winner 6, loser 4, weight 1"),
        ("1\t1\t1", r"other than the loser was expected, found otherwise in 1 pairs"),
        ("1\t0\t1\n5\t1\t2", r"of one pairing group.*\n    pair 2: winner 5, loser 1, weight 2"),
        (
            "1\t0\t-0.5\n2\t0\tnan\n2\t1\tinf\n1\t3\t1e39",
            r"a finite weight.* in 4 pairs; .*\n    pair 1: .*weight -0.5",
        ),
        ("1\t0\t0", "no pairs of a weight above zero"),
    ],
)
def test_pairs_that_cannot_be_learned_from_are_told(tmp_path: Path, text: str, says: str, suffix: str) -> None:
    path = tmp_path / f"bad{suffix}"
    as_parquet(path, text) if suffix == ".parquet" else path.write_text(text)
    with pytest.raises(PairliftError, match=f"(?s)bad{suffix}.*{says}"):
        read_pairs(path, small())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no pairs"),
        ("\n\n", "no pairs"),
        ("winner\tloser\n1\t0", "Row #1.*invalid value 'winner'"),
        ("1\t0\n1.5\t0", "Row #2.*invalid value '1.5'"),
        ("1\t0\t1\n2\t0", "Row #2: Expected 3 columns"),
        ("1\t0\t1\t2", "Expected 3 columns, got 4"),
        ("1,0,1", "Expected 2 columns, got 1.*winner<tab>loser<tab>weight"),
        ("1\t0\tmuch", "Row #1.*invalid value 'much'"),
        ("1\t\t1", "Row #1.*invalid value ''"),
    ],
)
def test_a_text_that_is_none_of_pairs_is_told(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.tsv").write_text(text)
    with pytest.raises(PairliftError, match=f"(?s){says}"):
        read_pairs(tmp_path / "bad.tsv", small())


def test_a_parquet_that_is_none_of_pairs_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    for table, says in (
        ({"winner": [1], "loss": [0]}, "lacks the columns loser"),
        ({"winner": [1], "loser": [None]}, "NULL as loser"),
        ({"winner": ["one"], "loser": [0]}, "one"),
        ({"winner": [1.5], "loser": [0]}, "rows as integers"),
        ({"winner": [1], "loser": [0], "weight": [None]}, "weight nan"),
    ):
        pq.write_table(pa.table(table), path)
        with pytest.raises(PairliftError, match=says):
            read_pairs(path, small())
    path.write_bytes(b"none")
    with pytest.raises(PairliftError, match=r"bad\.parquet: "):
        read_pairs(path, small())
    with pytest.raises(PairliftError, match=r"ends in \.parquet, \.tsv"):
        read_pairs(tmp_path / "pairs.csv", small())


def test_repeated_pairs_are_summed_and_those_of_weight_zero_left_out_and_both_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "odd.tsv"
    path.write_text("2\t3\t1\n1\t0\t0\n5\t4\t2\n2\t3\t0.5\n0\t2\t1\n\n2\t0\t4\n")
    pairs = read_pairs(path, small())
    rows = zip(pairs.winner.tolist(), pairs.loser.tolist(), pairs.weight.tolist(), pairs.sampled.tolist(), strict=True)
    assert list(rows) == [(0, 2, 1, False), (2, 0, 4, False), (2, 3, 1.5, True), (5, 4, 2, False)]
    assert "1 pairs of weight 0 left out" in caplog.text
    assert "1 pairs that repeat others summed" in caplog.text


def test_pairs_without_weights_weigh_one(tmp_path: Path) -> None:
    text = "2\t0\n5\t4\n"
    (tmp_path / "a.tsv").write_text(text)
    as_parquet(tmp_path / "a.parquet", text)
    for name in ("a.tsv", "a.parquet"):
        assert read_pairs(tmp_path / name, small()).weight.tolist() == [1, 1]


PAIRING = 'position_power = 0.5\ntrain_cap = 9\nhalf_life = "5d"'


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world's log with requests and positions, pairs capped and corrected, and no plugin."""
    request = 'request_id = "request"\nposition = "1 + item_id % 8"'
    path = write_world(tmp_path_factory.mktemp("pairfile"), pairing=PAIRING, request=request, request_ids=True)
    path.write_text(path.read_text().replace('plugins = ["als"]', "plugins = []"))
    return path


def test_pairs_stand_beside_the_impressions_that_they_count(config: Path) -> None:
    prepared = prepare(load_config(config))
    for name, groups in prepared.slices().items():
        out = config.parent / f"{name}.parquet"
        code, said = pairlift("pairs", config, "--slice", name, "--out", out)
        assert code == 0, said
        assert f"the {len(groups.event):,} impressions" in said
        # The log has events of user, item, time and play; the pairs must agree with it by names alone.
        joined = duckdb.sql(f"""
            WITH log AS (SELECT *, row_number() OVER (ORDER BY ts) - 1 AS event,
                                min(ts) OVER (PARTITION BY request) AS begun
                         FROM '{config.parent}/log.parquet'),
            rows AS (SELECT r.*, log.play, log.user_id = r.user_id AND log.item_id = r.item_id AND
                            log.request::VARCHAR = r.request_id AS right_event,
                            epoch_us(r.as_of) BETWEEN begun AND log.ts AS right_time
                     FROM '{rows_path(out)}' r JOIN log USING (event))
            SELECT count(*), bool_and(w.right_event AND w.right_time), bool_and(w.play > l.play),
                   bool_and(w.request_id = l.request_id), max(p.weight), bool_or(p.sampled)
            FROM '{out}' p JOIN rows w ON w.row = p.winner JOIN rows l ON l.row = p.loser""").fetchall()[0]
        pairs = prepared.training_pairs(groups, 0) if name == "train" else make_pairs(groups, prepared.weights)
        assert joined[:4] == (len(pairs), True, True, True)
        assert joined[5] is False
        if name != "train":  # what is measured has the weights of the grades, and no cap
            assert joined[4] == 2
            assert np.bincount(groups.requests.row_request()[pairs.winner]).max() > 9
        else:
            assert joined[4] > 2.5
            assert np.bincount(groups.requests.row_request()[pairs.winner]).max() == 9


def test_a_training_learns_from_given_pairs(config: Path) -> None:
    folder = config.parent
    path = folder / "given.tsv"
    assert pairlift("pairs", config, "--slice", "train", "--out", path)[0] == 0
    for name, more in (("made", ()), ("given", ("--pairs", path))):
        code, said = pairlift("train", config, "--out", folder / name, *more)
        assert code == 0, said
    made, same = (load_bundle(folder / name).booster.model_to_string() for name in ("made", "given"))
    assert made == same
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[::2]))
    assert pairlift("train", config, "--out", folder / "half", "--pairs", path)[0] == 0
    assert load_bundle(folder / "half").booster.model_to_string() != made


def test_pairs_of_other_rows_are_refused_before_anything_is_fitted(config: Path) -> None:
    folder = config.parent
    code, said = pairlift("pairs", config, "--slice", "test", "--out", folder / "other.parquet")
    assert code == 0, said
    code, said = pairlift("train", config, "--out", folder / "none", "--pairs", folder / "other.parquet")
    assert code == 2
    assert "other.rows.parquet lists other rows" in said or "rows from 0 to" in said or "of one pairing group" in said
    path = folder / "other.tsv"
    assert pairlift("pairs", config, "--slice", "train", "--out", path)[0] == 0
    changed = folder / "changed.toml"
    changed.write_text(config.read_text().replace("[booster]", "[split]\nvalidation = 0.1\n[booster]"))
    code, said = pairlift("train", changed, "--out", folder / "none", "--pairs", path)
    assert (code, "other.rows.parquet lists other rows" in said) == (2, True), said
    code, said = pairlift("train", config, "--out", folder / "none", "--pairs", folder / "absent.tsv")
    assert (code, "absent.tsv: No such file" in said) == (2, True), said
    code, said = pairlift("pairs", config, "--slice", "train", "--out", folder / "pairs.csv")
    assert (code, "ends in .parquet" in said) == (2, True), said
    code, said = pairlift("pairs", config, "--slice", "train", "--out", folder / "no" / "pairs.tsv")
    assert (code, "pairs.rows.parquet: there is no folder" in said) == (2, True), said
    assert not (folder / "none").exists()
    assert not list(folder.glob(".*partial"))


def test_drawn_negatives_are_rows_without_an_event_and_pairs_that_say_so(tmp_path: Path) -> None:
    out = tmp_path / "drawn.parquet"
    config = write_world(tmp_path, pairing="negatives = 2", where="play >= 0.9")
    assert pairlift("pairs", config, "--slice", "train", "--out", out)[0] == 0
    pairs, rows = pq.read_table(out).to_pydict(), pq.read_table(rows_path(out)).to_pydict()
    assert all(pairs["sampled"])
    assert all(rows["event"][k] is None and rows["grade"][k] is None for k in pairs["loser"])
    assert all(rows["grade"][k] == "like" for k in pairs["winner"])
    assert all(rows["user_id"][a] == rows["user_id"][b] for a, b in zip(pairs["winner"], pairs["loser"], strict=True))
    assert rows["request_id"] == [None] * len(rows["row"])
    read = read_pairs(out, prepare(load_config(config)).slices()["train"])
    assert read.winner.tolist() == pairs["winner"]
    assert read.sampled.all()


def test_plugins_learn_from_weighed_pairs_and_stop_by_the_grades_weights(config: Path) -> None:
    prepared = prepare(load_config(config))
    data = prepared.fit_data(0)
    held = data.groups.validation[data.groups.requests.row_request()[data.pairs.winner]]
    by_grade = prepared.weights[data.groups.grade[data.pairs.winner] + 1, data.groups.grade[data.pairs.loser] + 1]
    np.testing.assert_array_equal(data.pairs.weight[held], by_grade[held])
    assert (data.pairs.weight[~held] != by_grade[~held]).mean() > 0.9
    assert data.pairs.weight[~held].mean() == pytest.approx(by_grade[~held].mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("pairing", "request_", "says"),
    [
        ("position_power = 1.0", "", "position_power or examination needs [events] position"),
        ("propensity = true", "", "[pairing] propensity needs [events] propensity"),
        ("propensity = true", "propensity = '2.0'", "propensity = '2.0': a chance outside (0, 1] in 9,600 rows"),
        ("examination = [1.0]", "position = '0'", "position of 'log.parquet': a position below 1, which is"),
        ("position_power = 1.0\nexamination = [1.0]", "position = '1'", "keep one of them"),
    ],
)
def test_a_correction_that_the_log_cannot_give_is_told_by_validate(
    tmp_path: Path, pairing: str, request_: str, says: str
) -> None:
    code, said = pairlift("validate", write_world(tmp_path, pairing=pairing, request=request_))
    assert (code, says in said) == (2, True), said


def test_a_log_that_stands_twice_is_told_and_trained_on(tmp_path: Path) -> None:
    config = write_world(tmp_path)
    once = sum(len(make_pairs(g, TABLE)) for g in prepare(load_config(config)).slices().values())
    source = "(SELECT * FROM '{data}/log.parquet' UNION ALL SELECT * FROM '{data}/log.parquet')"
    config.write_text(config.read_text().replace('source = "log.parquet"', f'source = "{source}"'))
    twice = sum(len(make_pairs(g, TABLE)) for g in prepare(load_config(config)).slices().values())
    assert 3.5 * once < twice < 4.5 * once  # each of the two winners against each of the two losers
    code, said = pairlift("validate", config)
    assert code == 0, said
    assert "is the log doubled?" in said
