"""A stranger's file as a table: what DuckDB reads it by, its columns as expressions, and a sample of its rows.

Objects within objects become columns `user.id`; a list of objects (what one request showed) becomes rows. Text that
holds numbers, times, or yes and no gets the expression that reads it so.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb

from features.errors import PairliftError
from features.log.sources import explained, relation, source_files
from ranker.guessing.names import bare, literal, quoted
from ranker.guessing.texts import readings
from ranker.guessing.words import is_named

Kind = Literal["integer", "number", "boolean", "text", "time", "date", "clock", "list", "other"]

#: rows that are looked at; of a longer log blocks of rows are drawn, so that a request's rows stay beside each other
MOST_ROWS = 300_000
#: of a CSV, the first rows, which show how it writes what is unknown
HEAD_ROWS = 30_000
#: of a text file that may hold any delimiter: what its name ends in when DuckDB takes it as it is
_PLAIN = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".ndjson")
_PACKED = (".gz", ".zst")
#: a text of items that were shown, each with whether it was taken
_TAKEN = r"(\S+-[01])( \S+-[01])*"
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


def open_log(con: duckdb.DuckDBPyConnection, path: str, root: Path, table: str = "sample") -> Opened:
    """Read a file or glob below `root` and draw its sample into the temporary table `table`.

    Raises PairliftError where it is not there, is empty, or is none of Parquet, CSV and JSON.
    """
    source, notes = _source(con, path, root)
    with explained(f"--from {path}", source, "a Parquet, CSV or JSON file, or a glob of them, was expected"):
        columns = _columns(con, source, root)
        source, more = _unnested(con, columns, source, root)
        columns = _columns(con, source, root) if more else columns
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
    """Return how to read a CSV: with the words for NULL and the decimal comma that its first rows show."""
    source = path if plain else f"read_csv({literal(path)})"
    with explained(f"--from {path}", source, "a Parquet, CSV or JSON file was expected"):
        con.execute(f"CREATE OR REPLACE TEMP TABLE head AS SELECT * FROM {relation(source, root)} LIMIT {HEAD_ROWS}")
    texts = [quoted(row[0]) for row in con.execute("DESCRIBE head").fetchall() if row[1] == "VARCHAR"]
    words = ", ".join(literal(word) for word in _NULLS)
    asked = [
        f"list(DISTINCT {x}) FILTER ({x} IN ({words})), "
        f"avg(regexp_full_match({x}, '-?[0-9]+,[0-9]+')::INT) FILTER ({x} NOT IN ({words})), "
        f"avg(regexp_full_match({x}, '-?[0-9]+(,[0-9]+)?')::INT) FILTER ({x} NOT IN ({words}))"
        for x in texts
    ]
    found = list(con.execute(f"SELECT {', '.join(asked)} FROM head").fetchall()[0]) if texts else []
    con.execute("DROP TABLE head")
    options, notes = list[str](), list[str]()
    met = sorted({word for words in found[::3] for word in words or ()} | {""})
    if len(met) > 1:
        options.append(f"nullstr=[{', '.join(map(literal, met))}]")
        notes.append("its words for unknown values are read as NULL")
    if any(some and some > 0.3 and all_ > 0.99 for some, all_ in zip(found[1::3], found[2::3], strict=True)):
        options.append("decimal_separator=','")
        notes.append("its numbers have a decimal comma")
    return (f"read_csv({literal(path)}, {', '.join(options)})" if options else source), notes


def _unnested(con: duckdb.DuckDBPyConnection, columns: list[Column], source: str, root: Path) -> tuple[str, list[str]]:
    """Return the source with a row for each item of the list that its lines have, where they have one.

    That is a list of objects with an item's id, or a text `N12-0 N7-1` of items and whether each was taken.
    """
    lists = [c for c in columns if c.type.startswith("STRUCT") and c.type.endswith("[]") and "." not in c.name]
    chosen = next(
        (c.name for c in lists if any(is_named(m, "item") or m.lower() == "id" for m in _members(c.type))), ""
    )
    names, inner = {c.name.lower() for c in columns}, source if "(" in source else literal(source)
    numbered = f"(SELECT *, row_number() OVER () AS file_row FROM {inner})"
    said = [f"each one in the list '{chosen}' is a row: an impression of the request that the line is"]
    if chosen:
        column = bare(chosen)
        place = "" if "position" in names else f", generate_subscripts({column}, 1) AS position"
        return f"(SELECT * REPLACE (unnest({column}) AS {column}){place} FROM {numbered})", said
    texts = [c.name for c in columns if c.kind == "text" and "." not in c.name]
    tests = [f"coalesce(bool_and(regexp_full_match({bare(name)}, '{_TAKEN}')), false)" for name in texts]
    asked = f"SELECT {', '.join(tests)} FROM (SELECT * FROM {relation(source, root)} LIMIT {HEAD_ROWS})"
    found = con.execute(asked).fetchall()[0] if texts else ()
    chosen = next((name for name, fits in zip(texts, found, strict=True) if fits), "")
    if not chosen:
        return source, []
    one = (
        f"unnest(string_split({bare(chosen)}, ' ')) AS shown, generate_subscripts(string_split({bare(chosen)}, ' '), 1)"
    )
    rows = f"(SELECT * EXCLUDE ({bare(chosen)}), {one} AS position FROM {numbered})"
    parts = "shown[:-3] AS item_id, shown[-1] = '1' AS clicked"
    return f"(SELECT * EXCLUDE (shown), {parts} FROM {rows})", [said[0].replace("list ''", f"list '{chosen}'")]


def _members(kind: str) -> list[str]:
    """Return the names of a list of objects' members, and of theirs."""
    return re.findall(r'[(,] ?"?([^\s",()]+)"? ', kind)


def _columns(con: duckdb.DuckDBPyConnection, source: str, root: Path) -> list[Column]:
    """Return the columns of a source, members of objects among them."""
    described = con.execute(f"DESCRIBE SELECT * FROM {relation(source, root)}").fetchall()
    found = list[Column]()
    todo = [(row[0], bare(row[0]), row[1]) for row in described]
    while todo:
        name, sql, kind = todo.pop(0)
        if kind.startswith("STRUCT(") and kind.endswith(")"):
            members = con.execute(f"DESCRIBE SELECT unnest({sql}) FROM {relation(source, root)}").fetchall()
            todo = [(f"{name}.{m[0]}", f"{sql}.{bare(m[0])}", m[1]) for m in members] + todo
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
    read, selected = [], []
    for column in columns:
        sql, kind, note = readings(con, column.name) if column.kind == "text" else ("{}", column.kind, "")
        read.append(Column(column.name, sql.format(column.sql), kind, column.type, note))
        selected.append(f"{sql.format(quoted(column.name))} AS {quoted(column.name)}")
    select = ", ".join(selected)
    con.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT {select} FROM raw")
    con.execute("DROP TABLE raw")
    return read
