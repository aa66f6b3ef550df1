"""What `pairlift init --from` guesses of logs of other names, and what it says where it cannot."""

import json
import sys
import tomllib
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import pairlift

sys.path.append(str(Path(__file__).parent / "bench" / "peers"))

from init_fields import init_fields, log_row
from init_logs import MADE, SHAPED, StrangeLog, made_logs, schema_logs, shaped_logs

from features.errors import PairliftError
from ranker.config import load_config
from ranker.guessing.facts import constant_within, facts_of, funnel, only_where
from ranker.guessing.guessed import Guessed, guess_log
from ranker.guessing.names import Namer, bare, name_of, toml_text
from ranker.guessing.reading import open_log
from ranker.guessing.texts import readings
from ranker.guessing.words import is_named, speaks_of, words_of
from ranker.guessing.writing import toml_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strangers")


@pytest.fixture(scope="module")
def logs(folder: Path) -> dict[str, StrangeLog]:
    return {log.name: log for log in [*made_logs(folder), *shaped_logs(folder), *schema_logs(folder)]}


def loaded(guessed: Guessed, folder: Path) -> dict[str, object]:
    """Write the TOML and return it as a table; it must be valid."""
    folder.mkdir(exist_ok=True)
    (folder / "pairlift.toml").write_text(toml_of(guessed))
    load_config(folder / "pairlift.toml")
    return tomllib.loads(toml_of(guessed))


@pytest.mark.parametrize(
    "name", [*MADE, *SHAPED, "travel", "adserver", "app", "opaque", "delivery", "loja", "buecherei"]
)
def test_columns_are_taken_for_what_they_are(logs: dict[str, StrangeLog], name: str, tmp_path: Path) -> None:
    row = log_row(logs[name])
    assert row["silent"] == 0, row["wrong"]
    assert row["right"] >= 0.9 * row["columns"], row["wrong"]
    table = loaded(guess_log(str(logs[name].path), tmp_path / "toml"), tmp_path / "toml")
    assert table["grades"]


def test_a_wrong_guess_costs_two_and_a_doubted_one_costs_one(logs: dict[str, StrangeLog]) -> None:
    opaque = logs["opaque"]
    told = StrangeLog(opaque.name, opaque.path, opaque.roles | {"a": frozenset({"ts"}), "c": frozenset({"user_id"})})
    measured = init_fields([told])
    # `a` is doubted, for its name says nothing; `c` has times, which nothing can doubt.
    assert (measured["wrong"], measured["wrong_without_doubt"]) == (2, 1)
    assert measured["init_fields_right"] == round(1 - 3 / 4, 4)


@pytest.mark.parametrize("name", ["hotel", "laden", "musique", "positives"])
def test_the_guessed_log_validates(logs: dict[str, StrangeLog], name: str, tmp_path: Path) -> None:
    code, said = pairlift("init", tmp_path / "out", "--from", logs[name].path)
    assert code == 0, said
    for part in ("grades", "events per grade", "test     ["):
        assert part in said, said
    code, said = pairlift("init", tmp_path / "out", "--from", logs[name].path)
    assert (code, "is there already" in said) == (2, True)


def test_what_came_with_the_answer_is_no_feature(logs: dict[str, StrangeLog], tmp_path: Path) -> None:
    events = loaded(guess_log(str(logs["hotel"].path), tmp_path), tmp_path)["events"]
    assert isinstance(events, dict)
    assert set(events["feedback"]) == {"clicked", "booked", "gross_usd"}
    assert set(events["candidate"]) == {"nightly_rate", "promo_flag", "km_to_centre", "rooms_left"}
    assert not {"rank", "gross_usd", "clicked"} & (set(events["context"]) | set(events["candidate"]))


def test_positives_alone_get_drawn_losers_and_no_candidates(logs: dict[str, StrangeLog], tmp_path: Path) -> None:
    table = loaded(guess_log(str(logs["positives"].path), tmp_path), tmp_path)
    assert isinstance(table["pairing"], dict)
    assert table["pairing"]["negatives"] == 4
    bought = duckdb.sql(f"SELECT *, random() AS price FROM '{logs['positives'].path}'")  # noqa: F841 (read by its name)
    duckdb.sql(f"COPY bought TO '{tmp_path}/priced.parquet'")
    guessed = guess_log(str(tmp_path / "priced.parquet"), tmp_path)
    assert "candidate" not in loaded(guessed, tmp_path)["events"]  # type: ignore[operator]
    assert "# [events.candidate]" in toml_of(guessed)


@pytest.mark.parametrize(
    ("key", "item"), [("user_session", "product_id"), ("request_id", "product_id"), ("visit", "c2")]
)
def test_an_item_is_one_though_each_view_and_purchase_of_it_is_a_row(key: str, item: str, tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), list[tuple[str, str, str, str, int]]()
    for visit in range(600):
        for k, one in enumerate(rng.choice(150, 5, replace=False)):
            acts = ("view", "cart", "purchase")[: 1 + int(rng.integers(3))]
            at = 1_700_000_000 + 4_000 * visit + 60 * k
            rows += [(f"s{visit}", f"c/{visit % 70}", f"SKU-{one}", act, at + j) for j, act in enumerate(acts)]
    names = (key, "customer_id", item, "event_type", "event_time")
    pq.write_table(
        pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), tmp_path / "log.parquet"
    )
    found = guess_log(str(tmp_path / "log.parquet"), tmp_path).keys
    assert (found["item_id"].name, found["user_id"].name) == (item, "customer_id")


def test_what_a_request_led_to_is_no_context(logs: dict[str, StrangeLog], tmp_path: Path) -> None:
    path = tmp_path / "led.parquet"
    duckdb.sql(f"""COPY (SELECT *, max(booked) OVER (PARTITION BY srch_ref) AS search_converted,
        count(*) OVER (PARTITION BY prop_key) AS total_views FROM '{logs["hotel"].path}') TO '{path}'""")
    guesses = {guess.name: guess for guess in guess_log(str(path), tmp_path).columns}
    assert guesses["search_converted"].role == "none"
    assert "tells the future" in guesses["total_views"].doubt


def test_guests_get_their_visit_and_a_refusal_is_the_worst_grade(logs: dict[str, StrangeLog], tmp_path: Path) -> None:
    events = loaded(guess_log(str(logs["musique"].path), tmp_path), tmp_path)["events"]
    assert isinstance(events, dict)
    assert events["user_id"] == "coalesce(auditeur.id::VARCHAR, 'guest ' || seance)"
    grades = guess_log(str(logs["sessions"].path), tmp_path).grades.lines
    assert [grades[0].name, grades[0].when] == ["refused", "hidden"]
    assert "hidden IS NOT TRUE" in grades[1].when
    assert grades[-1].name == "liked"


def test_side_files_are_mapped_by_the_ids_that_they_hold(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 3_000
    log = {"who": rng.integers(0, 80, n), "sku": rng.integers(0, 90, n) + 500, "bought_at": rng.integers(0, 10**6, n)}
    log["colour"] = log["sku"] % 7
    pq.write_table(pa.table(log | {"bought_at": log["bought_at"] + 1_700_000_000}), tmp_path / "log.parquet")
    kinds = [" ".join(sorted({f"tag{k % 5}", f"tag{k % 7}"})) for k in range(90)]
    titles = [f"{('Red', 'Old', 'Low')[k % 3]} House of Number {k // 3}" for k in range(90)]  # of far fewer words
    items = {
        "code": np.arange(90) + 500,
        "kinds": kinds,
        "title": titles,
        "embedding": [f"[{k}.5, {-k}, 1e-3]" for k in range(90)],
        "empty": [None] * 90,
        "sales_total": range(9_000, 9_090),
    }
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    guessed = guess_log(str(tmp_path / "log.parquet"), tmp_path, items=str(tmp_path / "items.parquet"))
    assert guessed.items is not None
    assert guessed.items.key == "code"
    assert [(name, sql) for name, sql, _ in guessed.items.columns] == [
        ("kinds", "string_split(kinds, ' ')"),
        ("embedding", "embedding::FLOAT[]"),
        ("sales_total", "sales_total"),
    ]
    assert "tells the future" in guessed.items.columns[2][2].doubt
    assert [name for name, _, _ in guessed.items.text] == ["title"]
    assert [guess.name for guess in guessed.items.left_out] == ["empty", "colour"]
    loaded(guessed, tmp_path)
    with pytest.raises(PairliftError, match="no column holds the ids of 'who'"):
        guess_log(str(tmp_path / "log.parquet"), tmp_path, users=str(tmp_path / "items.parquet"))


def test_a_text_of_what_was_shown_becomes_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    lines = []
    for k in range(400):
        shown = rng.choice(200, 6, replace=False)
        took = " ".join(f"N{n}-{int(rng.random() < 0.3)}" for n in shown)
        lines.append(f"{k}\tU{rng.integers(60)}\t11/{1 + k // 20:02d}/2019 08:{k % 60:02d}:00 AM\t{took}")
    (tmp_path / "lists.tsv").write_text("\n".join(lines) + "\n")
    guessed = guess_log(str(tmp_path / "lists.tsv"), tmp_path)
    assert guessed.keys["request_id"].name == "column0"
    assert guessed.keys["user_id"].name == "column1"
    assert {"item_id", "position"} <= set(guessed.keys)
    con = duckdb.connect()
    assert open_log(con, "lists.tsv", tmp_path).rows == 2_400


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("train.txt", "2 qid:1 1:0.5 2:3\n0 qid:1 1:0.1 2:7\n", "import-letor"),
        ("train.svm", "2 1:0.5 2:3\n0 1:0.1 2:7\n", "import-letor"),
        ("log.csv", "", "no rows"),
        ("log.csv", "who,sku\n" + "1,2\n" * 30, "no column has times"),
        ("log.csv", "when,liked\n" + "2024-03-01 10:00:00,1\n2024-03-01 10:00:01,0\n" * 30, "the item's ids"),
        ("log.parquet", "this is none", "Parquet"),
    ],
)
def test_what_is_no_log_is_refused_in_a_sentence(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    code, said = pairlift("init", tmp_path / "out", "--from", tmp_path / name)
    assert (code, says in said) == (2, True), said
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    for words, says in (
        (("--from", "x.csv"), "no file is there"),
        (("--from", "x.csv", "--example", "movielens"), "choose one"),
        (("--items", "x.csv"), "go with --from"),
    ):
        code, said = pairlift("init", tmp_path / "out", *words)
        assert (code, says in said) == (2, True), said


def test_words_of_names() -> None:
    assert words_of("userID") == ["user", "id"]
    assert words_of("Gerät") == ["geraet"]
    assert words_of("user_id:token") == ["user", "id"]
    assert is_named("KundenNr", "user")
    assert is_named("payload.item.id", "item")
    assert not is_named("user_country", "user")
    assert speaks_of("Ausleihdatum", "time")
    assert not speaks_of("country", "total")  # no ending of `count`
    assert speaks_of("page_view", "request")


@given(st.text())
def test_texts_of_the_toml_are_read_as_they_were_written(text: str) -> None:
    assert tomllib.loads(f"x = {toml_text(text)}")["x"] == text


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_names_are_valid_and_different(columns: list[str]) -> None:
    namer = Namer()
    names = [namer(name_of(column)) for column in columns]
    assert len(set(names)) == len(names)
    lines = "".join(f'{name} = "x"\n' for name in names)
    text = f'name = "n"\n[events]\nsource = "s"\n[events.feedback]\n{lines}[[grades]]\nname = "g"\nwhen = "true"\n'
    assert set(tomllib.loads(text)["events"]["feedback"]) == set(names)
    assert all(bare(name).strip('"') == name for name in names)


def test_constant_is_more_than_chance() -> None:
    """A flag that is hardly ever set is constant in most groups, and shows nothing."""
    con = duckdb.connect()
    con.execute("""
        CREATE TABLE sample AS SELECT range // 4 AS k, hash(range // 4) % 5 AS own, hash(range) % 5 AS any,
        (range % 1000 = 0)::INT AS rare FROM range(4000)""")
    found = constant_within(con, "k", ["own", "any", "rare"])
    assert found["own"] == 1.0
    assert abs(found["any"]) < 0.05
    assert np.isnan(found["rare"])


def test_steps_of_an_answer_are_seen() -> None:
    con = duckdb.connect()
    con.execute("""
        CREATE TABLE sample AS SELECT range % 4 = 0 AS a, range % 12 = 0 AS b, range % 5 = 0 AS c,
        CASE WHEN range % 4 = 0 THEN range END AS paid FROM range(3000)""")
    conditions = {name: name for name in "abc"}
    assert funnel(con, conditions, conditions) == {"a": "b"}
    assert funnel(con, {"c": "c"}, conditions) == {}
    assert only_where(con, "paid", ["a"])
    assert not only_where(con, "c", ["a"])


def test_a_csv_is_read_with_its_nulls_and_commas(tmp_path: Path) -> None:
    rows = "".join(f"{k};NULL;{k},5;{'ja' if k % 3 else 'nein'};{k % 28 + 1:02d}.03.2024 10:00\n" for k in range(60))
    (tmp_path / "log.csv").write_text("a;b;c;d;e\n" + rows)
    con = duckdb.connect()
    opened = open_log(con, "log.csv", tmp_path)
    assert "nullstr=['', 'NULL'], decimal_separator=','" in opened.source
    facts = {f.name: f for f in facts_of(con, opened.columns)}
    assert facts["b"].known == 0
    assert (facts["c"].column.kind, facts["c"].high) == ("number", 59.5)
    assert facts["d"].column.sql == "d = 'ja'"
    assert facts["e"].column.kind == "time"


@pytest.mark.parametrize(
    ("written", "amounts", "sign"),
    [
        (["8,50 €", "1.299,00 €", "12 €"], [8.5, 1299, 12], "€"),
        (["1 299,90\u202f€", "-3\u00a0€"], [1299.9, -3], "€"),
        (["$8.50", "-$1,299.00", "$7"], [8.5, -1299, 7], "$"),
        (["$1,299"], [1299], "$"),
        (["EUR 8.50", "EUR 12"], [8.5, 12], "EUR"),
        (["CHF 1'299.50"], [1299.5], "CHF"),
        (["12,5 %", "3 %"], [12.5, 3], "%"),
        (["8,50 €", "$8.50"], None, ""),
        (["8,50 €", "on request"], None, ""),
        (["SKU12", "SKU13"], None, ""),
        (["1,2", "3,14"], None, ""),
    ],
)
def test_amounts_of_one_currency_are_numbers(written: list[str], amounts: list[float] | None, sign: str) -> None:
    con = duckdb.connect()
    con.execute("CREATE TABLE raw AS SELECT unnest($1) AS price", [[*written, None]])
    sql, kind, note = readings(con, "price")
    if amounts is None:
        assert (sql, kind, note) == ("{}", "text", "")
        return
    assert (kind, note) == ("number", f"an amount ({sign}) that stands there as text")
    found = con.execute(f"SELECT {sql.format('price')} FROM raw").fetchall()
    assert [row[0] for row in found] == [*amounts, None]


def test_the_reason_of_each_line_is_said(logs: dict[str, StrangeLog], tmp_path: Path) -> None:
    text = toml_of(guess_log(str(logs["empleos"].path), tmp_path))
    assert "distancia_km" in text
    assert "# it varies within a request" in text
    listed = json.dumps(tomllib.loads(text))
    assert "unsure" not in listed  # doubts are comments


def test_what_a_request_repeats_is_no_item_whatever_its_name_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["when,search_guid,candidate_no,job_ad_id,slot,opened"]
    for search in range(480):
        jobs = rng.choice(60, 6, replace=False)
        day = f"2024-01-{1 + search // 20:02d} 10:{search % 20:02d}:00"
        lines += [f"{day},s{search},{700 + search % 150},{job},{k + 1},{rng.integers(2)}" for k, job in enumerate(jobs)]
    (tmp_path / "jobs.csv").write_text("\n".join(lines))
    assert guess_log(str(tmp_path / "jobs.csv"), tmp_path).keys["item_id"].name == "job_ad_id"
