"""Any log comes in through SQL expressions; what is bad is refused with place, count and the first rows."""

from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import mapping_of

from features.errors import PairliftError
from features.log.dataset import Mapping, import_log
from features.log.loading import load_log, load_repeats
from features.log.sources import source_files
from features.pairing.groups import make_groups
from features.pairing.split import Split
from features.schema import SECOND
from features.settings import EventsSettings, Grade, ItemsSettings, PairingSettings, UsersSettings

CSV = """who,what,when,stars,where
bo,x,2024-03-01 10:00:00,5,feed
al,y,2024-03-01 09:00:00,2,
al,x,2024-03-01 10:00:00,,search
bo,z,2024-03-01 11:00:00,3,feed
"""


def mapping(folder: Path, events: str = CSV, **change: object) -> Mapping:
    (folder / "log.csv").write_text(events)
    given = {
        "source": "log.csv", "user_id": "who", "item_id": "what", "ts": '"when"', "surface": '"where"',
        "feedback": {"stars": "stars"},
    } | change  # fmt: skip
    grades = (
        Grade(name="low", when="stars < 3"),
        Grade(name="mid", when="stars >= 3"),
        Grade(name="high", when="stars >= 5"),
    )
    return mapping_of(folder, EventsSettings(**given), grades)


def test_a_log_becomes_arrays_in_time_order(tmp_path: Path) -> None:
    import_log(mapping(tmp_path), tmp_path / "log.duckdb")
    log, catalog = load_log(tmp_path / "log.duckdb")
    assert catalog.user_ids.tolist() == ["al", "bo"]
    assert catalog.item_ids.tolist() == ["x", "y", "z"]
    assert catalog.surfaces == ("feed", "search")
    assert log.user.tolist() == [0, 1, 0, 1]  # events of the same instant keep the order of the source
    assert log.item.tolist() == [1, 0, 0, 2]
    assert log.grade.tolist() == [0, 2, -1, 1]  # the best true grade; NULL is not true
    assert log.surface.tolist() == [-1, 0, 1, 0]
    assert np.isnan(log.feedback[2, 0])
    assert log.ts[0] == 1709283600 * SECOND
    assert (log.request == -1).all()
    assert log.pairable.all()


def test_arms_of_experiments_are_a_vocabulary_and_of_a_group_the_first_one_counts(tmp_path: Path) -> None:
    arm = "CASE WHEN \"where\" = 'feed' THEN 'new' WHEN who = 'bo' THEN '' WHEN stars < 3 THEN 'a' END"
    import_log(mapping(tmp_path, arm=arm), tmp_path / "log.duckdb")
    log, catalog = load_log(tmp_path / "log.duckdb")
    assert catalog.arms == ("a", "new")
    assert log.arm.tolist() == [0, 1, -1, 1]  # the empty text is none
    period = Split(t0=int(log.ts[0]), t1=int(log.ts[0]) + 1, t2=int(log.ts[-1]), t3=int(log.ts[-1]) + 1, validation=0.5)
    requests = make_groups(log, PairingSettings(), period).requests
    assert requests.arm.tolist() == [int(log.arm[log.ts == as_of][0]) for as_of in requests.as_of]
    assert set(requests.arm.tolist()) == {0, 1}


def test_times_without_a_zone_are_of_the_zone_told(tmp_path: Path) -> None:
    result = mapping(tmp_path)
    tokyo = replace(result, zone="Asia/Tokyo")
    import_log(tokyo, tmp_path / "log.duckdb")
    assert load_log(tmp_path / "log.duckdb")[0].ts[0] == (1709283600 - 9 * 3600) * SECOND


def test_integer_ids_stay_integers_and_sides_bring_attributes(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("id,kind,tags,price,title\n7,a,p|q,1.5,Seven\n9,,,,Nine\n")
    (tmp_path / "users.csv").write_text("id,age\n1,30\n2,\n")
    log = "who,what,when,stars,where\n1,7,2024-03-01,5,\n3,8,2024-03-02,1,\n"
    result = mapping(tmp_path, log)
    items = ItemsSettings(
        source="items.csv", item_id="id", text={"title": "title"},
        columns={"kind": "kind", "tags": "string_split(tags, '|')", "price": "price"},
    )  # fmt: skip
    users = UsersSettings(source="users.csv", user_id="id", columns={"age": "age"})
    import_log(replace(result, items=items, users=users, pairing_where="stars > 1"), tmp_path / "log.duckdb")
    log_, catalog = load_log(tmp_path / "log.duckdb")
    assert catalog.item_ids.tolist() == [7, 8, 9]
    assert catalog.user_ids.tolist() == [1, 2, 3]
    assert log_.pairable.tolist() == [True, False]
    kind, tags, price = (catalog.item_attribute(n) for n in ("kind", "tags", "price"))
    assert (kind.kind, kind.codes.tolist()) == ("categorical", [0, -1, -1])
    assert (tags.kind, tags.offsets.tolist(), tags.values) == ("multi", [0, 2, 2, 2], ("p", "q"))
    assert price.kind == "numeric"
    assert price.numbers[0] == 1.5
    assert np.isnan(price.numbers[1:]).all()
    assert catalog.item_attribute("title").values == ("Seven", "", "Nine")


def with_vectors(tmp_path: Path, rows: str, sql: str = "v") -> Mapping:
    source = f"(SELECT * FROM (VALUES {rows}) t (id, v))"
    return replace(mapping(tmp_path), items=ItemsSettings(source=source, item_id="id", columns={"v": sql}))


@pytest.mark.parametrize("sql", ["v", "v::DOUBLE[]", "v::FLOAT[2]", "v::DECIMAL(4, 2)[]"])
def test_a_list_of_fractions_is_a_vector(tmp_path: Path, sql: str) -> None:
    rows = "('x', [0.5, -1.25]), ('z', NULL), ('w', [3, 4])"
    import_log(with_vectors(tmp_path, rows, sql), tmp_path / "log.duckdb")
    _, catalog = load_log(tmp_path / "log.duckdb")
    found = catalog.item_attribute("v")
    by_id = dict(zip(catalog.item_ids.tolist(), found.numbers.tolist(), strict=True))
    assert (found.kind, found.numbers.dtype, found.numbers.shape) == ("vector", np.float32, (len(catalog.item_ids), 2))
    assert (by_id["x"], by_id["w"]) == ([0.5, -1.25], [3, 4])
    assert all(np.isnan(by_id[i]).all() for i in by_id if i not in "xw")


@pytest.mark.parametrize(
    ("rows", "sql", "kind", "shape"),
    [
        ("('x', [1, 2]), ('z', [2])", "v", "multi", (0,)),  # integers are categories
        ("('x', NULL), ('z', NULL)", "v::FLOAT[]", "vector", None),
    ],
)
def test_what_is_no_vector_or_none(tmp_path: Path, rows: str, sql: str, kind: str, shape: tuple[int] | None) -> None:
    import_log(with_vectors(tmp_path, rows, sql), tmp_path / "log.duckdb")
    _, catalog = load_log(tmp_path / "log.duckdb")
    found = catalog.item_attribute("v")
    assert (found.kind, found.numbers.shape) == (kind, shape or (len(catalog.item_ids), 0))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("('x', [0.5, 1]), ('z', [1.5]), ('w', [1, 2.5])", "not 2 numbers"),
        ("('x', [0.5, 1]), ('z', [1.5, NULL])", "not finite"),
        ("('x', [0.5, 1]), ('z', [1.5, 'nan'::FLOAT])", "not finite"),
        ("('x', [0.5, 1]), ('z', [1.5, 1e300])", "items"),
    ],
)
def test_bad_vectors_are_refused(tmp_path: Path, rows: str, says: str) -> None:
    with pytest.raises(PairliftError, match=says) as found:
        import_log(with_vectors(tmp_path, rows, "v::FLOAT[]" if "1e300" in rows else "v"), tmp_path / "log.duckdb")
    assert "[items" in str(found.value)


@pytest.mark.parametrize(
    ("events", "change", "says"),
    [
        (CSV, {"source": "nolog.csv"}, "No files found"),
        (CSV, {"user_id": "whom"}, "these columns was expected: who, what, when, stars, where"),
        (CSV, {"ts": "stars"}, "to_timestamp"),
        (CSV, {"user_id": "stars::DOUBLE"}, "ids are integers or text, found DOUBLE"),
        (CSV, {"feedback": {"stars": "what"}}, "a number or true/false was expected"),
        (CSV.replace("al,y", ",y"), {}, r"NULL where a value was expected in 1 rows"),
        (CSV, {"user_id": "stars::INTEGER"}, "NULL where a value was expected in 1 rows"),
        (CSV, {"feedback": {"stars": "what::INTEGER"}}, "Could not convert"),
        (
            "who,what,when,stars,where\n",
            {"ts": '"when"::TIMESTAMP', "feedback": {"stars": "stars::INTEGER"}},
            "it has no rows",
        ),
        (CSV, {"feedback": {"ts": "stars"}}, "taken by a column of the contract"),
    ],
)
def test_bad_logs_are_refused_and_nothing_is_left(
    tmp_path: Path, events: str, change: dict[str, object], says: str
) -> None:
    with pytest.raises(PairliftError, match=says):
        import_log(mapping(tmp_path, events, **change), tmp_path / "log.duckdb")
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


def test_bad_conditions_and_repeated_items_are_told(tmp_path: Path) -> None:
    result = mapping(tmp_path)
    bad = replace(result, grades=(Grade(name="low", when="star < 3"),))
    with pytest.raises(PairliftError, match=r"\[\[grades\]\] low"):
        import_log(bad, tmp_path / "log.duckdb")
    (tmp_path / "items.csv").write_text("id\nx\nx\n")
    items = ItemsSettings(source="items.csv", item_id="id")
    with pytest.raises(PairliftError, match="more than once in 2 rows"):
        import_log(replace(result, items=items), tmp_path / "log.duckdb")
    (tmp_path / "items.csv").write_text("id\n1\n")
    with pytest.raises(PairliftError, match="write a cast"):
        import_log(replace(result, items=items), tmp_path / "log.duckdb")


def test_parquet_globs_and_json_come_in_too(tmp_path: Path) -> None:
    result = mapping(tmp_path)
    for part, rows in (("a", "LIMIT 2"), ("b", "OFFSET 2")):
        duckdb.sql(f"COPY (FROM '{tmp_path}/log.csv' {rows}) TO '{tmp_path}/part-{part}.parquet'")
    duckdb.sql(f"COPY (FROM '{tmp_path}/log.csv') TO '{tmp_path}/log.json'")
    for source in ("part-*.parquet", "log.json", "read_csv('{data}/log.csv')"):
        events = result.events.model_copy(update={"source": source})
        import_log(replace(result, data=tmp_path, events=events), tmp_path / "log.duckdb")
        assert load_log(tmp_path / "log.duckdb")[0].item.tolist() == [1, 0, 0, 2]


def test_what_requests_say_becomes_numbers_and_codes(tmp_path: Path) -> None:
    result = mapping(tmp_path, context={"place": '"where"', "stars": "stars"})
    import_log(result, tmp_path / "log.duckdb")
    log, catalog = load_log(tmp_path / "log.duckdb")
    assert [(c.name, c.kind, c.values) for c in catalog.contexts] == [
        ("place", "categorical", ("feed", "search")), ("stars", "numeric", ()),
    ]  # fmt: skip
    nan = np.nan
    np.testing.assert_array_equal(log.context, [[nan, 2], [0, 5], [1, nan], [0, 3]])
    place = replace(catalog.contexts[0], values=("feed", "home", "search"))
    other, _ = load_log(tmp_path / "log.duckdb", replace(catalog, contexts=(place, catalog.contexts[1])))
    np.testing.assert_array_equal(other.context, [[nan, 2], [0, 5], [2, nan], [0, 3]])  # in the codes of another log
    with pytest.raises(PairliftError, match=r"\[events.context\] all = .*a number or text was expected, found a list"):
        import_log(mapping(tmp_path, context={"all": "['a', \"where\"]"}), tmp_path / "log.duckdb")


def test_conditions_may_name_what_items_and_contexts_name_too(tmp_path: Path) -> None:
    result = mapping(tmp_path)
    (tmp_path / "items.csv").write_text("id,stars\nx,1\n")
    items = ItemsSettings(source="items.csv", item_id="id", columns={"stars": "stars"})
    grades = (Grade(name="low", when="surface = 'feed' AND stars > 0"),)
    import_log(replace(result, items=items, grades=grades, pairing_where="surface = 'feed'"), tmp_path / "log.duckdb")
    log, _ = load_log(tmp_path / "log.duckdb")
    assert log.grade.tolist() == [-1, 0, -1, 0]
    assert log.pairable.tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("grade", "where", "says"),
    [
        ("stars", None, "true or false was expected, found DOUBLE"),
        ("stars > 1", "item_id", "true or false was expected, found VARCHAR"),
        ("item_id::INTEGER > 1", None, "Could not convert"),
    ],
)
def test_a_condition_that_is_none_is_told(tmp_path: Path, grade: str, where: str | None, says: str) -> None:
    result = mapping(tmp_path)
    bad = replace(result, grades=(Grade(name="low", when=grade),), pairing_where=where)
    with pytest.raises(PairliftError, match=says):
        import_log(bad, tmp_path / "log.duckdb")


def test_milliseconds_read_as_seconds_and_odd_numbers_are_told(tmp_path: Path) -> None:
    late = CSV.replace("5,feed", "1700000000000,feed")
    with pytest.raises(PairliftError, match="are its seconds milliseconds"):
        import_log(mapping(tmp_path, late, ts="to_timestamp(coalesce(stars, 0))"), tmp_path / "log.duckdb")
    with pytest.raises(PairliftError, match=r"a number beyond 1e\+12, beside which .* in 3 rows"):
        import_log(mapping(tmp_path, feedback={"stars": "stars * 1e300"}), tmp_path / "log.duckdb")
    with pytest.raises(PairliftError, match="an infinite number in 3 rows"):
        import_log(mapping(tmp_path, feedback={"stars": "'inf'::DOUBLE * stars"}), tmp_path / "log.duckdb")


def test_paths_count_from_the_data_root_with_odd_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "it's (mine)"
    data.mkdir()
    result = mapping(data)
    (data / "log.csv").rename(data / "log (1).csv")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log (1).csv").write_text("who,what,when,stars,where\n")
    for source in (
        "log (1).csv",
        "read_csv('log (1).csv')",
        "read_csv('{data}/log (1).csv')",
        '(SELECT * FROM "log (1).csv")',
        f"(SELECT * FROM 'log (1).csv' WHERE 'no {'name ' * 60}' <> '')",  # longer than a file's name can be
        f"SELECT * FROM 'log (1).csv' WHERE 'no {'name ' * 60}' <> ''",
        f"'log (1).csv' AS {'long' * 70}",
    ):
        events = result.events.model_copy(update={"source": source})
        import_log(replace(result, data=data, events=events), tmp_path / "log.duckdb")
        assert len(load_log(tmp_path / "log.duckdb")[0]) == 4, source
        assert source_files(source, data) == [data / "log (1).csv"], source


F32_MAX = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("table", ["events.context", "items.columns", "users.columns"])
def test_a_number_beyond_a_32_bit_float_is_told_with_file_and_row(tmp_path: Path, table: str) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for part, rows in enumerate([["al,1.5", f"bo,{F32_MAX!r}"], ["cy,2", "di,-1e300", "ed,"]]):
        lines = [f"{row},x{k},2024-03-0{1 + k},9" for k, row in enumerate(rows)]
        (folder / f"{part}.csv").write_text("\n".join(["who,x,what,when,y", *lines]))
    odd = {"odd": "x::DOUBLE"}
    change = {table.removeprefix("events."): odd} if table.startswith("events.") else {}
    result = mapping(tmp_path, source="parts/*.csv", surface=None, **({"feedback": {}} | change))
    items = ItemsSettings(source="parts/*.csv", item_id="who", columns=odd) if table == "items.columns" else None
    users = UsersSettings(source="parts/*.csv", user_id="who", columns=odd) if table == "users.columns" else None
    events = result.events if items is None else result.events.model_copy(update={"item_id": "who"})
    grades = (Grade(name="low", when="true"),)
    with pytest.raises(PairliftError) as caught:
        import_log(replace(mapping_of(tmp_path, events, grades), items=items, users=users), tmp_path / "log.duckdb")
    for part in (
        f"[{table}] odd of 'parts/*.csv': a number beyond a 32-bit float",
        "CASE WHEN abs(…) < 3.4e38 THEN … END",
        "row 2 of parts/1.csv: (",
        "-1e+300",
        "in 1 rows",
    ):
        assert part in str(caught.value), str(caught.value)
    assert not (tmp_path / "log.duckdb").exists()


def test_the_largest_32_bit_floats_come_in(tmp_path: Path) -> None:
    events = CSV.replace(",5,", f",{F32_MAX!r},").replace(",2,", ",3.4028235677973306e+38,")  # rounds to the largest
    import_log(
        mapping(tmp_path, events, feedback={}, context={"stars": "stars"}, columns={"stars": "stars"}),
        tmp_path / "log.duckdb",
    )
    log, _ = load_log(tmp_path / "log.duckdb")
    assert log.context[[0, 1], 0].tolist() == [F32_MAX, F32_MAX]


def test_feedback_that_sums_cannot_bear_is_told_with_file_and_row(tmp_path: Path) -> None:
    import_log(mapping(tmp_path, CSV.replace(",5,", ",1e12,").replace(",2,", ",-1e12,")), tmp_path / "log.duckdb")
    assert np.abs(load_log(tmp_path / "log.duckdb")[0].feedback[[0, 1], 0]).tolist() == [np.float32(1e12)] * 2
    import_log(mapping(tmp_path, CSV.replace(",5,", ",nan,")), tmp_path / "log.duckdb")
    assert np.isnan(load_log(tmp_path / "log.duckdb")[0].feedback[:, 0]).any()
    for worse in ("1.0000001e12", "-3.3e38", "1e300"):
        with pytest.raises(PairliftError) as caught:
            import_log(mapping(tmp_path, CSV.replace(",5,", f",{worse},")), tmp_path / "log.duckdb")
        for part in (
            "[events.feedback] stars of 'log.csv': a number beyond 1e+12, beside which running sums lose other values",
            "scale the column, for example seconds in place of microseconds",
            "in 1 rows",
            " of log.csv: (",
        ):
            assert part in str(caught.value), str(caught.value)


REPEATS = """event_id,who,what,when,stars
7,bo,x,2024-03-01 10:00:00,5
8,al,y,2024-03-01 09:00:00,2
,al,x,2024-03-01 08:00:00,4
,al,x,2024-03-01 08:00:00,4
7,bo,z,2024-03-01 09:30:00,3
7,bo,w,2024-03-01 09:30:00,3
8,al,y,2024-03-01 09:00:00,2
"""


def test_rows_that_repeat_an_event_id_are_dropped_the_first_kept_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = mapping(tmp_path, REPEATS, surface=None)
    with caplog.at_level("INFO", "features"):
        import_log(result, tmp_path / "log.duckdb")
    log, catalog = load_log(tmp_path / "log.duckdb")
    kept = [(catalog.user_ids[u], catalog.item_ids[i]) for u, i in zip(log.user, log.item, strict=True)]
    assert kept == [("al", "x"), ("al", "x"), ("al", "y"), ("bo", "z")]  # the earliest; then the source's order
    assert load_repeats(tmp_path / "log.duckdb") == 3
    assert "3 of 7 rows of 'log.csv' repeat the event_id of another: the first of each is kept" in caplog.text
    for event_id, rows, repeats in (("NULL", 7, None), ("event_id % 1", 3, 4), ("who || what", 5, 2)):
        changed = mapping(tmp_path, REPEATS, surface=None, event_id=event_id)
        import_log(changed, tmp_path / "log.duckdb")
        assert len(load_log(tmp_path / "log.duckdb")[0]) == rows
        assert load_repeats(tmp_path / "log.duckdb") == repeats
    import_log(mapping(tmp_path), tmp_path / "log.duckdb")
    assert load_repeats(tmp_path / "log.duckdb") is None


rows_of = st.lists(st.tuples(st.integers(-2, 6) | st.none() | st.sampled_from(["a", "1", "01"]), st.integers(0, 3)))


@given(parts=st.lists(rows_of, min_size=1, max_size=3), distinct=st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_of_repeats_the_earliest_then_first_one_stays(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[tuple[int | str | None, int]]], distinct: int
) -> None:
    folder = tmp_path_factory.mktemp("repeats")
    parts[0] += [(f"other {k}", 0) for k in range(distinct)]
    rows = [(k, part, one, ts) for part, found in enumerate(parts) for k, (one, ts) in enumerate(found)]
    for part in range(len(parts)):
        lines = [f"{'' if one is None else one},u{part},i{k},{ts}" for k, p, one, ts in rows if p == part]
        (folder / f"{part}.csv").write_text("\n".join(["event_id,who,what,sec", *lines]))
    files = [
        f"read_csv('{part}.csv', types = {{'event_id': 'VARCHAR', 'sec': 'DOUBLE'}})" for part in range(len(parts))
    ]
    source = "(" + " UNION ALL BY NAME ".join(f"FROM {file}" for file in files) + ")"
    given = {"ts": "to_timestamp(sec)", "surface": None, "feedback": {}, "event_id": "event_id"}
    events = mapping(folder, source=source, **given).events
    import_log(mapping_of(folder, events, (Grade(name="any", when="true"),)), folder / "db")
    log, catalog = load_log(folder / "db")
    kept: dict[str, int] = {}
    for place, (_, _, one, ts) in enumerate(rows):
        first = kept.setdefault(str(one), place)
        if ts < rows[first][3]:
            kept[str(one)] = place
    left = [(ts, place) for place, (_, _, one, ts) in enumerate(rows) if one is None or kept[str(one)] == place]
    wanted = [(f"u{rows[place][1]}", f"i{rows[place][0]}") for _, place in sorted(left)]
    users, items = catalog.user_ids[log.user].tolist(), catalog.item_ids[log.item].tolist()
    assert list(zip(users, items, strict=True)) == wanted
    assert load_repeats(folder / "db") == len(rows) - len(left)


def test_event_ids_of_old_and_new_files_are_one_as_integer_and_text(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(REPEATS)
    duckdb.sql(f"COPY (SELECT * FROM '{tmp_path}/log.csv' LIMIT 2) TO '{tmp_path}/old.parquet'")
    text = "SELECT * REPLACE (event_id::VARCHAR AS event_id)"
    duckdb.sql(f"COPY ({text} FROM '{tmp_path}/log.csv' UNION ALL SELECT 'seven', * EXCLUDE (event_id) FROM "
               f"'{tmp_path}/log.csv' LIMIT 9) TO '{tmp_path}/new.parquet'")  # fmt: skip
    for source in (
        "read_parquet(['old.parquet', 'new.parquet'], union_by_name=true)",
        "(SELECT * FROM 'old.parquet' UNION ALL BY NAME FROM 'new.parquet')",
    ):
        result = mapping(tmp_path, REPEATS, surface=None, source=source)
        import_log(result, tmp_path / "log.duckdb")
        assert load_repeats(tmp_path / "log.duckdb") == 6  # of 7: 3; of 8: 2; of seven: 1


@pytest.mark.parametrize(
    ("event_id", "says"),
    [
        ("stars / 2", r"\[events\] event_id = 'stars / 2': ids are integers or text, found DOUBLE"),
        ("nothing", "a SQL expression over these columns was expected"),
    ],
)
def test_an_event_id_that_is_none_is_told(tmp_path: Path, event_id: str, says: str) -> None:
    with pytest.raises(PairliftError, match=says):
        import_log(mapping(tmp_path, REPEATS, surface=None, event_id=event_id), tmp_path / "log.duckdb")


def test_a_column_of_that_name_that_names_kinds_of_events_does_not_empty_the_log(tmp_path: Path) -> None:
    kinds = "event_id,who,what,when,stars\n" + "".join(f"{k % 2},u{k},x,2024-03-01,5\n" for k in range(30))
    result = r"28 of 30 rows of .* repeat .* event_id = \"event_id\" .* event_id = \"NULL\"$"
    with pytest.raises(PairliftError, match=result):
        import_log(mapping(tmp_path, kinds, surface=None), tmp_path / "log.duckdb")
    import_log(mapping(tmp_path, kinds, surface=None, event_id="event_id"), tmp_path / "log.duckdb")
    assert len(load_log(tmp_path / "log.duckdb")[0]) == 2


def test_an_empty_event_id_repeats_nothing(tmp_path: Path) -> None:
    import_log(mapping(tmp_path, REPEATS, surface=None, event_id="coalesce(event_id::VARCHAR, '')"), tmp_path / "db")
    assert load_repeats(tmp_path / "db") == 3
    (tmp_path / "my.csv").write_text(REPEATS.replace("event_id", "my_event_id"))
    import_log(mapping(tmp_path, surface=None, source="my.csv", event_id="my_event_id"), tmp_path / "db")
    assert load_repeats(tmp_path / "db") == 3
    for at in ("''", "NULL"):
        import_log(mapping(tmp_path, REPEATS, surface=None, event_id=f"{at}::VARCHAR"), tmp_path / "db")
        assert load_repeats(tmp_path / "db") is None


@pytest.mark.parametrize(("each", "refused"), [(1, False), (3, False), (4, True), (5, True)])
def test_a_column_that_nobody_asked_for_drops_at_most_two_of_three_rows(
    tmp_path: Path, each: int, refused: bool
) -> None:
    rows = [f"{k // each},u{k},x,2024-03-01,5\n" for k in range(60)]
    result = mapping(tmp_path, "event_id,who,what,when,stars\n" + "".join(rows), surface=None)
    if refused:
        with pytest.raises(PairliftError, match=f"{60 - 60 // each} of 60 rows of .* repeat the event_id of another"):
            import_log(result, tmp_path / "db")
    else:
        import_log(result, tmp_path / "db")
        assert len(load_log(tmp_path / "db")[0]) == 60 // each


@pytest.mark.parametrize("text", ["lpad(event_id::VARCHAR, 9, '0')", "'x' || event_id"])
def test_files_with_integer_then_text_event_ids_are_told_to_be_united(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "ev"
    folder.mkdir()
    (tmp_path / "log.csv").write_text(REPEATS)
    rows = f"FROM '{tmp_path}/log.csv' WHERE event_id IS NOT NULL"
    duckdb.sql(f"COPY (SELECT DISTINCT ON (event_id) * {rows}) TO '{folder}/1.parquet'")
    duckdb.sql(f"COPY (SELECT DISTINCT ON (event_id) * REPLACE ({text} AS event_id) {rows}) TO '{folder}/2.parquet'")
    for source in (
        "ev/*.parquet",
        "read_parquet('ev/*.parquet')",
        "read_parquet(['ev/1.parquet', 'ev/2.parquet'])",
        "(SELECT * FROM 'ev/*.parquet')",
    ):
        for more in ({}, {"event_id": "event_id"}):
            with pytest.raises(PairliftError) as caught:
                import_log(mapping(tmp_path, REPEATS, surface=None, source=source, **more), tmp_path / "db")
            for part in (
                f"[events] source = {source!r}: event_id is text in 2.parquet but BIGINT as the files are read",
                "union_by_name=true",
            ):
                assert part in str(caught.value), str(caught.value)
    for source, event_id in (
        ("read_parquet('ev/*.parquet', union_by_name=true)", None),
        ("(FROM 'ev/1.parquet' UNION ALL BY NAME FROM 'ev/2.parquet')", None),
        ("(SELECT * EXCLUDE (event_id) FROM 'ev/*.parquet')", None),
        ("read_parquet('ev/*.parquet', union_by_name=true)", "NULL"),
    ):
        import_log(mapping(tmp_path, REPEATS, surface=None, source=source, event_id=event_id), tmp_path / "db")
        assert len(load_log(tmp_path / "db")[0]) == 4, source


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("ev/*.csv", "row 2 of ev/b.csv: ("),
        ("read_csv(['ev/b.csv', 'ev/a.csv'])", "row 2 of ev/b.csv: ("),
        ("read_csv(['ev/b.csv', 'ev/a.csv', 'ev/b.csv'])", "    row 2: ("),
        ("read_csv(['ev/a.csv', 'ev/a.csv', 'ev/b.csv'])", "    row 8: ("),
        ("read_csv(['ev/a.csv', 'ev/*.csv'])", "    row 8: ("),
        ("(SELECT * FROM 'ev/b.csv')", "    row 2: ("),
        ("own.csv", "    row 2: ("),
        ("(SELECT *, 'clip' AS filename FROM 'ev/b.csv')", "    row 2: ("),
    ],
)
def test_the_place_of_a_bad_row_is_right_or_only_its_number(tmp_path: Path, source: str, place: str) -> None:
    head, *rows = CSV.splitlines()
    (tmp_path / "ev").mkdir()
    (tmp_path / "ev" / "a.csv").write_text("\n".join([head, *rows[:3]]))
    (tmp_path / "ev" / "b.csv").write_text("\n".join([head, rows[0], rows[1].replace(",2,", ",1e300,")]))
    own = [f"{row},clip{k}.mp4" for k, row in enumerate((tmp_path / "ev" / "b.csv").read_text().splitlines()[1:])]
    (tmp_path / "own.csv").write_text("\n".join([f"{head},FileName", *own]))
    with pytest.raises(PairliftError) as caught:
        import_log(mapping(tmp_path, source=source), tmp_path / "log.duckdb")
    assert place in str(caught.value), str(caught.value)


def test_an_error_of_sql_is_told_before_the_sql(tmp_path: Path) -> None:
    source = f"SELECT *, nonsense FROM 'log.csv' WHERE 'no {'name ' * 60}' <> ''"
    with pytest.raises(PairliftError) as caught:
        import_log(mapping(tmp_path, source=source), tmp_path / "log.duckdb")
    first, *_, last = str(caught.value).splitlines()
    assert first.startswith('[events] source: Binder Error: Referenced column "nonsense" not found')
    assert last == f"  in {source!r}"
    for wrong, place in (({"user_id": "nullif(who, 'al')"}, "user_id"), ({"position": "stars - 2"}, "position")):
        good = source.replace("nonsense", "1 AS one")
        with pytest.raises(PairliftError, match=rf"^\[events\] {place} of \"SELECT .{{1,60}}…\": "):
            import_log(mapping(tmp_path, source=good, **wrong), tmp_path / "log.duckdb")


def test_a_column_of_a_name_that_sql_has_is_to_be_quoted(tmp_path: Path) -> None:
    given = mapping(tmp_path, CSV.replace("when", "at"), ts="at")
    with pytest.raises(
        PairliftError, match=r"\[events\] ts: Parser Error.*\n  'at' is a word of SQL: .* as '\"at\"', in double"
    ):
        import_log(given, tmp_path / "log.duckdb")
    events = given.events.model_copy(update={"ts": '"at"'})
    import_log(replace(given, events=events), tmp_path / "log.duckdb")


def test_positions_start_at_one(tmp_path: Path) -> None:
    import_log(mapping(tmp_path, position="stars - 1"), tmp_path / "log.duckdb")
    with pytest.raises(
        PairliftError, match=r"position of 'log.csv': a position below 1, .* in 1 rows.*\n +row 2 of log"
    ):
        import_log(mapping(tmp_path, position="stars - 2"), tmp_path / "log.duckdb")


def test_times_that_end_before_any_log_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import_log(mapping(tmp_path), tmp_path / "log.duckdb")
    assert not caplog.records
    import_log(mapping(tmp_path, ts='make_timestamp(epoch_ms("when"))'), tmp_path / "log.duckdb")  # ms taken for µs
    assert "were seconds read as milliseconds" in caplog.text
