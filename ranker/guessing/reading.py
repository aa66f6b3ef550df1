"""A stranger's file as a table: what DuckDB reads it by, its columns as expressions, and a sample of its rows.

Objects within objects become columns `user.id`; a list of objects (what one request showed) becomes rows. Text that
holds numbers, times, or yes and no gets the expression that reads it so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb

from features.errors import PairliftError
from features.log.sources import explained, relation, source_files
from ranker.guessing.texts import readings
from ranker.guessing.words import speaks_of

Kind = Literal["integer", "number", "boolean", "text", "time", "date", "clock", "list", "other"]

#: rows that are looked at; of a longer log blocks of rows are drawn, so that a request's rows stay beside each other
MOST_ROWS = 300_000
#: of a text file that may hold any delimiter: what its name ends in when DuckDB takes it as it is
_PLAIN = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".ndjson")
_PACKED = (".gz", ".zst")
#: words for "unknown" that spreadsheets and exports write
_NULLS = ("", "NULL", "null", "NA", "N/A", "None", "nan", "NaN", "\\N")
_KINDS: dict[str, Kind] = {
    "BOOLEAN": "boolean",
    "VARCHAR": "text",
    "UUID": "text",
    "DATE": "date",
    "TIME": "clock",
    "FLOAT": "number",
    "DOUBLE": "number",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the log."""

    name: str  # in the file; of an object's member `object.member`
    sql: str  # an expression over the source
    kind: Kind  # of the expression's values
    type: str  # DuckDB's, of the column in the file
    note: str = ""  # what the expression does to the file's values; "" for nothing


@dataclass(frozen=True, slots=True)
class Opened:
    """A log whose sample is the temporary table `sample`, with a column for each of `columns`, by its name."""

    source: str  # for the TOML: a path, or a table expression with paths from the root
    columns: list[Column]
    rows: int  # of the whole log
    sampled: int  # rows of `sample`
    notes: list[str]  # what had to be done to read it: sentences


def quoted(name: str) -> str:
    """Return a name as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as a SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def open_log(con: duckdb.DuckDBPyConnection, path: str, root: Path, table: str = "sample") -> Opened:
    """Read a file or glob below `root` and draw its sample into the temporary table `table`.

    Raises PairliftError where it is not there, is empty, or is none of Parquet, CSV and JSON.
    """
    source, notes = _source(con, path, root)
    with explained(f"--from {path}", "a Parquet, CSV or JSON file, or a glob of them, was expected"):
        source, more = _unnested(con, source, root)
        columns = _columns(con, source, root)
        rows = int(con.execute(f"SELECT count(*) FROM {relation(source, root)}").fetchall()[0][0])
        if not rows:
            raise PairliftError(f"--from {path}: it has no rows")
        columns = _draw(con, columns, source, root, rows, table)
    sampled = int(con.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])
    return Opened(source, columns, rows, sampled, [*notes, *more])


def _source(con: duckdb.DuckDBPyConnection, path: str, root: Path) -> tuple[str, list[str]]:
    """Return what reads a path, and what was done for it."""
    files = source_files(path, root)
    if not files:
        raise PairliftError(f"--from {root / path}: no file is there")
    name = files[0].name.lower()
    for ending in _PACKED:
        name = name.removesuffix(ending)
    with files[0].open("rb") as file:
        start = file.read(4096)
    if name.endswith(".parquet") or start[:4] == b"PAR1":
        return (path if name.endswith(".parquet") else f"read_parquet({literal(path)})"), []
    if name.endswith(_PLAIN[3:]) or start.lstrip()[:1] in (b"{", b"["):
        return (path if name.endswith(_PLAIN) else f"read_json({literal(path)})"), []
    _refuse_svmlight(path, start)
    return _csv(con, path, root, plain=name.endswith(_PLAIN))


def _refuse_svmlight(path: str, start: bytes) -> None:
    words = start.split(b"\n")[0].split()
    pairs = [word for word in words[1:] if word.split(b":")[0].isdigit() or word.startswith(b"qid:")]
    if len(words) > 2 and len(pairs) == len(words) - 1:
        raise PairliftError(
            f"--from {path}: these are lines of svmlight (label, qid:…, number:value), not columns with names; "
            "`pairlift import-letor` reads them"
        )


def _csv(con: duckdb.DuckDBPyConnection, path: str, root: Path, *, plain: bool) -> tuple[str, list[str]]:
    """Return how to read a CSV: with the words for NULL and the decimal comma that its text columns show."""
    source, notes = (path if plain else f"read_csv({literal(path)})"), []
    options = list[str]()
    with explained(f"--from {path}", "a Parquet, CSV or JSON file was expected; read_csv(…) has options for the rest"):
        for option, note in (
            (_null_words, "its words for unknown values are read as NULL"),
            (_decimal_comma, "its numbers have a decimal comma"),
        ):
            found = option(con, source, root)
            if found:
                options.append(found)
                notes.append(note)
                source = f"read_csv({literal(path)}, {', '.join(options)})"
    return source, notes


def _texts(con: duckdb.DuckDBPyConnection, source: str, root: Path) -> list[str]:
    rows = con.execute(f"DESCRIBE SELECT * FROM {relation(source, root)}").fetchall()
    return [row[0] for row in rows if row[1] == "VARCHAR"]


def _share(con: duckdb.DuckDBPyConnection, source: str, root: Path, condition: str, columns: list[str]) -> list[float]:
    """Return the share of a source's first known values, of each column of text, of which a condition on {0} holds."""
    if not columns:
        return []
    asked = ", ".join(
        f"coalesce(avg(({condition.format(quoted(c))})::INT) FILTER ({quoted(c)} IS NOT NULL), 0)" for c in columns
    )
    head = f"(SELECT * FROM {relation(source, root)} LIMIT {MOST_ROWS // 10})"
    return list(con.execute(f"SELECT {asked} FROM {head}").fetchall()[0])


def _null_words(con: duckdb.DuckDBPyConnection, source: str, root: Path) -> str:
    words = ", ".join(literal(word) for word in _NULLS)
    shares = _share(con, source, root, f"{{0}} IN ({words})", _texts(con, source, root))
    return f"nullstr=[{words}]" if any(share > 0 for share in shares) else ""


def _decimal_comma(con: duckdb.DuckDBPyConnection, source: str, root: Path) -> str:
    pattern = "regexp_full_match({0}, '-?[0-9]+,[0-9]+')"
    whole = "regexp_full_match({0}, '-?[0-9]+(,[0-9]+)?')"
    texts = _texts(con, source, root)
    shares = zip(_share(con, source, root, pattern, texts), _share(con, source, root, whole, texts), strict=True)
    return "decimal_separator=','" if any(comma > 0.3 and all_ > 0.99 for comma, all_ in shares) else ""


def _unnested(con: duckdb.DuckDBPyConnection, source: str, root: Path) -> tuple[str, list[str]]:
    """Return the source with a row for each object of its list of objects, where it has one that speaks of items."""
    rows = con.execute(f"DESCRIBE SELECT * FROM {relation(source, root)}").fetchall()
    lists = [row[0] for row in rows if row[1].startswith("STRUCT") and row[1].endswith("[]")]
    if not lists:
        return source, []
    chosen = next((name for name in lists if speaks_of(name, "item")), lists[0])
    names = {row[0].lower() for row in rows}
    inner = relation(source, root) if "(" in source else literal(source)
    inner = source if "(" in source else inner
    column, known = quoted(chosen), "position" in names
    place = "" if known else f", generate_subscripts({column}, 1) AS position"
    number = ", row_number() OVER () AS file_row"
    text = f"(SELECT * REPLACE (unnest({column}) AS {column}){place} FROM (SELECT *{number} FROM {inner}))"
    return text, [f"each object of the list '{chosen}' is a row: an impression of the request that the line is"]


def _columns(con: duckdb.DuckDBPyConnection, source: str, root: Path) -> list[Column]:
    """Return the columns of a source, members of objects among them."""
    described = con.execute(f"DESCRIBE SELECT * FROM {relation(source, root)}").fetchall()
    found = list[Column]()
    todo = [(row[0], quoted(row[0]), row[1]) for row in described]
    while todo:
        name, sql, kind = todo.pop(0)
        if kind.startswith("STRUCT(") and kind.endswith(")"):
            members = con.execute(f"DESCRIBE SELECT unnest({sql}) FROM {relation(source, root)}").fetchall()
            todo = [(f"{name}.{m[0]}", f"{sql}.{quoted(m[0])}", m[1]) for m in members] + todo
        else:
            found.append(Column(name, sql, _kind(kind), kind))
    return found


def _kind(kind: str) -> Kind:
    if kind in _KINDS:
        return _KINDS[kind]
    if kind.endswith("[]"):
        return "other" if kind.startswith("STRUCT") else "list"
    if kind.startswith("DECIMAL"):
        return "number"
    if kind.startswith("TIMESTAMP"):
        return "time"
    if kind.startswith("ENUM"):
        return "text"
    return "integer" if kind.endswith(("INT", "INTEGER")) else "other"


def _draw(
    con: duckdb.DuckDBPyConnection, columns: list[Column], source: str, root: Path, rows: int, table: str
) -> list[Column]:
    """Draw the sample into a temporary table, and return the columns with the expressions that read their text."""
    origin = relation(source, root)
    drawn = "" if rows <= MOST_ROWS else f" TABLESAMPLE {100 * MOST_ROWS / rows} % (system, 1)"
    # A subquery of a sample: of several files, each would be sampled otherwise.
    select = ", ".join(f"{c.sql} AS {quoted(c.name)}" for c in columns)
    con.execute(f"CREATE OR REPLACE TEMP TABLE raw AS SELECT {select} FROM (SELECT * FROM {origin}){drawn}")
    read = []
    for column in columns:
        sql, kind, note = readings(con, column.name, column.sql) if column.kind == "text" else ("", column.kind, "")
        read.append(Column(column.name, sql, kind, column.type, note) if sql else column)
    own = {c.name: quoted(c.name) for c in columns}
    select = ", ".join(
        f"{r.sql.replace(c.sql, own[c.name])} AS {own[c.name]}" for r, c in zip(read, columns, strict=True)
    )
    con.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT {select} FROM raw")
    con.execute("DROP TABLE raw")
    return read
