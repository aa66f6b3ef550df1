"""`pairlift rows`: training rows in DuckDB and Parquet equal those that the booster learns from."""

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import pairlift
from world import write_world

from features.blocks import training_rows
from features.errors import PairliftError
from features.pairing.groups import Groups
from features.pairing.split import PERIODS
from features.rows import assemble
from ranker.config import load_config
from ranker.export.rows import OWN, _blocks, write_rows
from ranker.training.prepared import Prepared, prepare

#: so little that groups, and the keys of their counters, come in several blocks
LITTLE = 1_000_000
GIB = 2**30
REQUEST = """request_id = "'r' || request"
surface = "CASE item_id % 3 WHEN 0 THEN NULL WHEN 1 THEN 'feed' ELSE 'search' END\""""
ITEMS = """
[items]
source = "items.parquet"
[items.columns]
taste = "taste"
size = "size"
"""


def world(folder: Path, pairing: str = "", request: str = REQUEST, where: str = "true", **more: Any) -> Path:
    """Write a log with items that have a category and a number, some of them unknown; return the TOML."""
    items = "SELECT range::INTEGER AS item_id, CASE WHEN range % 7 = 0 THEN NULL ELSE 't' || range % 4 END AS taste, "
    items += "CASE WHEN item_id % 5 = 0 THEN NULL ELSE item_id / 3 END::FLOAT AS size FROM range(80)"
    duckdb.sql(f"COPY ({items}) TO '{folder}/items.parquet'")
    path = write_world(folder, pairing, request, where, **more)
    path.write_text(path.read_text() + ITEMS)
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world(tmp_path_factory.mktemp("rows"), request_ids=True)


@pytest.fixture(scope="module")
def prepared(config: Path) -> Prepared:
    return prepare(load_config(config))


def read(path: Path) -> Any:
    """Return the Arrow table of a file of rows, as DuckDB reads it."""
    if path.suffix == ".parquet":
        return duckdb.sql(f"FROM '{path}'").to_arrow_table()
    with duckdb.connect(str(path), read_only=True) as con:
        return con.sql("FROM rows").to_arrow_table()


def matrix(table: Any, columns: tuple[str, ...]) -> Any:
    """Return float32[n, c], NaN for NULL."""
    assert all(table.schema.field(name).type == pa.float32() for name in columns)
    return np.stack([np.asarray(table[name].to_numpy(), np.float32) for name in columns], axis=1)


@pytest.mark.parametrize("suffix", [".duckdb", ".parquet"])
@pytest.mark.parametrize("memory", [GIB, LITTLE])
@pytest.mark.parametrize("period", ["all", "booster"])
def test_rows_are_those_that_are_learned_from(
    config: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, suffix: str, memory: int, period: str
) -> None:
    asked: list[int] = []

    def watched(*given: Any, memory: int) -> Any:
        asked.append(memory)
        return training_rows(*given, memory=memory)

    monkeypatch.setattr("ranker.export.rows.training_rows", watched)
    out = config.parent / f"{period}-{memory}{suffix}"
    groups = prepared.groups if period == "all" else prepared.groups.of(period)
    columns = prepared.spec.columns
    result = write_rows(load_config(config), out, period, memory)
    assert result == (len(groups.event), len(groups.requests), len(columns))
    assert len(asked) >= 3 if memory == LITTLE else len(asked) == 1
    assert sum(asked) <= memory * len(asked) // 2
    table = read(out)
    assert table.column_names == [*OWN, *columns]
    want = assemble(prepared.state, prepared.spec, groups.requests)
    np.testing.assert_allclose(matrix(table, columns), want, rtol=1e-6)
    # What is not known is NULL, which no sum of DuckDB's trips over.
    unknown = np.isnan(want)
    assert unknown.any(axis=0).sum() >= 3
    assert [table[name].null_count for name in columns] == unknown.sum(axis=0).tolist()
    check_own_columns(prepared, groups, table, period)


def check_own_columns(prepared: Prepared, groups: Groups, table: Any, period: str) -> None:
    """Compare what stands before the features with the groups and the log that they were made of."""
    own = {name: table[name].to_numpy() for name in ("user_id", "item_id", "group_number", "validation", "sampled")}
    r, log, catalog = groups.requests, prepared.log, prepared.catalog
    owner = r.row_request()
    assert own["user_id"].tolist() == catalog.user_ids[log.user[groups.event]].tolist()
    assert own["item_id"].tolist() == catalog.item_ids[log.item[groups.event]].tolist()
    numbers = np.arange(len(prepared.groups.requests))
    if period != "all":
        numbers = np.flatnonzero(prepared.groups.period == PERIODS.index(period))
    assert own["group_number"].tolist() == numbers[owner].tolist()
    assert own["validation"].tolist() == groups.validation[owner].tolist()
    assert not own["sampled"].any()
    assert table["period"].to_pylist() == [PERIODS[p] for p in groups.period[owner]]
    assert table["as_of"].cast(pa.int64()).to_pylist() == r.as_of[owner].tolist()
    assert table["ts"].cast(pa.int64()).to_pylist() == log.ts[groups.event].tolist()
    assert table["grade"].to_pylist() == [("skip", "listen", "like")[g] for g in groups.grade]


def test_rows_join_the_log_by_the_users_own_ids(
    config: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("features.progress.EVERY", 0)
    out = config.parent / "joined.duckdb"
    code, said = pairlift("-q", "rows", config, "--out", out, "--period", "test")
    assert (code, "rows: " in caplog.text) == (0, False), said
    with duckdb.connect(str(out)) as con:
        # Each row is one event, its as_of the time of its request's first, and its place the first event's.
        found = con.execute(f"""
            WITH log AS (SELECT *, first_value(item_id) OVER (PARTITION BY request ORDER BY ts) AS shown_first,
                                min(ts) OVER (PARTITION BY request) AS begun FROM '{config.parent}/log.parquet')
            SELECT count(*), (SELECT count(*) FROM rows),
                   bool_and(r.grade = CASE WHEN play < 0.3 THEN 'skip' WHEN play < 0.9 THEN 'listen' ELSE 'like' END),
                   bool_and(request_id = 'r' || request), bool_and(epoch_us(as_of) >= begun AND as_of <= r.ts),
                   bool_and(surface_name IS NOT DISTINCT FROM CASE shown_first % 3 WHEN 1 THEN 'feed'
                            WHEN 2 THEN 'search' END) FILTER (epoch_us(as_of) = begun),
                   bool_and((surface_name IS NULL) = (surface IS NULL)), count(DISTINCT surface_name)
            FROM rows r JOIN log ON log.user_id = r.user_id AND log.item_id = r.item_id AND log.ts = epoch_us(r.ts)
        """).fetchall()[0]
    assert found[0] == found[1] > 1000
    assert found[2:] == (True, True, True, True, True, 2)


def test_drawn_negatives_have_no_event_and_text_ids_and_no_request_are_well(tmp_path: Path) -> None:
    path = world(tmp_path, pairing="negatives = 2", request="", where="play >= 0.9")
    named = "user_id = \"'u' || user_id\"\nitem_id = \"'i' || item_id\""
    text = path.read_text().replace("[events]", f"[events]\n{named}")
    path.write_text(text.replace("[items]", "[items]\nitem_id = \"'i' || item_id\""))
    code, said = pairlift("rows", path, "--out", tmp_path / "rows.duckdb", "--memory", 0.001)
    assert code == 0, said
    made = prepare(load_config(path))
    table = read(tmp_path / "rows.duckdb")
    drawn = table["sampled"].to_numpy()
    assert drawn.tolist() == made.groups.sampled.tolist()
    assert 0.5 < drawn.mean() < 0.7
    for name in ("ts", "grade"):
        assert np.array_equal(np.asarray(table[name].is_null()), drawn)
    assert table["request_id"].null_count == table["surface_name"].null_count == len(table)
    assert table["item_id"].to_pylist() == made.catalog.item_ids[made.groups.requests.item].tolist()
    want = assemble(made.state, made.spec, made.groups.requests)
    np.testing.assert_allclose(matrix(table, made.spec.columns), want, rtol=1e-6)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 30))
def test_blocks_hold_every_group_once_and_no_more_rows_than_asked(sizes: list[int], most: int) -> None:
    blocks = list(_blocks(np.array(sizes), most))
    assert [k for b in blocks for k in range(b.start, b.stop)] == list(range(len(sizes)))
    for b, after in zip(blocks, [*blocks[1:], None], strict=True):
        rows = sum(sizes[b])
        assert rows <= most or b.stop == b.start + 1
        assert after is None or rows + sizes[after.start] > most


def test_a_place_that_cannot_or_must_not_be_written_is_told(config: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "odd.duckdb").write_bytes(b"none of DuckDB's" * 1000)
    with duckdb.connect(str(tmp_path / "mine.duckdb")) as con:
        con.execute("CREATE TABLE rows AS SELECT 1 AS x; CREATE TABLE precious AS SELECT 2 AS x")
    for out, says in (
        (tmp_path / "rows.csv", "ends in .duckdb or .parquet"),
        (tmp_path / "folder.parquet", "is a folder"),
        (tmp_path / "none" / "rows.parquet", "there is no folder"),
        (config.parent / "log.parquet", "is a source of"),
        (tmp_path / "mine.duckdb", "tables: precious"),
        (tmp_path / "odd.duckdb", "odd.duckdb"),
    ):
        code, said = pairlift("rows", config, "--out", out)
        assert (code, says in said) == (2, True), said
    assert {p.name for p in tmp_path.iterdir()} == {"folder.parquet", "odd.duckdb", "mine.duckdb"}
    for memory in ("0", "-1", "much"):
        assert pairlift("rows", config, "--out", tmp_path / "rows.parquet", "--memory", memory)[0] == 2


def test_an_older_file_is_replaced(
    config: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("features.progress.EVERY", 0)
    caplog.set_level("INFO")
    for suffix in (".duckdb", ".parquet"):
        out = config.parent / f"again{suffix}"
        sizes = []
        for period in ("all", "test"):
            code, said = pairlift("rows", config, "--out", out, "--period", period)
            assert code == 0, said
            assert "rows: 100 %" in caplog.text
            caplog.clear()
            assert f"wrote {out}: {len(read(out)):,} impressions" in said
            sizes.append(len(read(out)))
        assert sizes[0] > sizes[1]
    assert not list(config.parent.glob(".*partial*"))


def test_a_feature_of_the_name_of_a_rows_own_column_is_told(config: Path) -> None:
    path = config.parent / "same.toml"
    path.write_text(config.read_text().replace('size = "size"', 'ID = "size"'))
    code, said = pairlift("rows", path, "--out", config.parent / "same.duckdb")
    assert (code, "the feature item_ID has the name" in said) == (2, True), said
    assert not (config.parent / "same.duckdb").exists()


def test_a_period_without_impressions_is_told(config: Path) -> None:
    path = config.parent / "empty.toml"
    path.write_text(config.read_text() + "\n[split]\nt2 = 2030-01-01\nt3 = 2031-01-01\n")
    code, said = pairlift("rows", path, "--out", config.parent / "empty.parquet", "--period", "test")
    assert (code, "test has no graded impressions" in said) == (2, True), said


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 200 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", [".duckdb", ".parquet"])
def test_a_full_disk_leaves_the_old_file_alone(config: Path, prepared: Prepared, small_disk: None, suffix: str) -> None:
    assert len(prepared.log)  # the import stands already
    out = config.parent / f"full{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"x": [1]}), out)
    with pytest.raises(PairliftError, match=rf"--out .*full{suffix}: .*is the disk full"):
        write_rows(load_config(config), out, "all", GIB)
    assert out.exists() == (suffix == ".parquet")
    assert not list(config.parent.glob(".*partial*"))


def test_a_user_who_is_a_third_of_the_log_is_told_by_rows_and_by_validate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [tmp_path / name for name in ("plain", "heavy")]
    for folder, user in zip(folders, ("user_id", "CASE WHEN user_id < 20 THEN 7 ELSE user_id END"), strict=True):
        folder.mkdir()
        config = load_config(write_world(folder, rows=f"SELECT * REPLACE ({user} AS user_id)"))
        caplog.clear()
        write_rows(config, tmp_path / f"{folder.name}.parquet", "test", GIB)
        told, (_, said) = "user 7 has 33.3 % of the events and ", pairlift("validate", config.path)
        assert (told in caplog.text, told in said) == (folder.name == "heavy", folder.name == "heavy")
