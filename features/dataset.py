"""Any log, through the TOML's SQL expressions, into a DuckDB file; and from there into arrays.

`import_log` writes the tables `events`, `items`, `users` and `surfaces` in the contract's form (dense indexes,
µs UTC, grades); `load_log` reads them. What is bad is refused with the source, the column, how many rows, and
the first few of them; no row is dropped.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from features.errors import PairliftError
from features.schema import Attribute, Catalog, EventLog, Ids
from features.settings import EventsSettings, Grade, ItemsSettings, UsersSettings
from features.sources import explained, relation

INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}
NUMBERS = INTEGERS | {"UBIGINT", "HUGEINT", "FLOAT", "DOUBLE", "BOOLEAN"}
FIRST_FEW = 3
MOST_SURFACES = 32_767  # codes are int16


@dataclass(frozen=True, slots=True)
class Mapping:
    """What `import_log` needs of the TOML. data: the folder that `{data}` and relative paths stand for."""

    data: Path
    zone: str
    events: EventsSettings
    items: ItemsSettings | None
    users: UsersSettings | None
    grades: tuple[Grade, ...]
    pairing_where: str | None


def _columns_of(con: duckdb.DuckDBPyConnection, table: str, source: str, data: Path) -> list[str]:
    with explained(f"[{table}] source = {source!r}", f"data root is {data}; set [data] root or PAIRLIFT_DATA"):
        return [row[0] for row in con.execute(f"DESCRIBE SELECT * FROM {relation(source, data)}").fetchall()]


def _type_of(con: duckdb.DuckDBPyConnection, origin: str, place: str, expression: str, columns: list[str]) -> str:
    hint = f"a SQL expression over these columns was expected: {', '.join(columns)}"
    with explained(f"{place} = {expression!r}", hint):
        return str(con.execute(f"DESCRIBE SELECT ({expression}) AS x FROM {origin}").fetchall()[0][1])


def _check_id(place: str, kind: str) -> str:
    if kind in INTEGERS or kind == "VARCHAR":
        return "BIGINT" if kind in INTEGERS else "VARCHAR"
    raise PairliftError(f"{place}: ids are integers or text, found {kind}; write '(…)::BIGINT' or '(…)::VARCHAR'")


def _utc(place: str, expression: str, kind: str, zone: str) -> str:
    """Return the SQL of a TIMESTAMP in UTC for an expression of a time type."""
    if kind.startswith("TIMESTAMP WITH TIME ZONE"):
        return f"make_timestamp(epoch_us({expression}))"
    if kind.startswith("TIMESTAMP") or kind == "DATE":
        quoted = zone.replace("'", "''")
        return f"make_timestamp(epoch_us(({expression})::TIMESTAMP AT TIME ZONE '{quoted}'))"
    raise PairliftError(
        f"{place} = {expression!r}: a timestamp was expected, found {kind}; "
        "for seconds since 1970 write 'to_timestamp(…)', for microseconds 'make_timestamp(…)'"
    )


def _map_events(con: duckdb.DuckDBPyConnection, mapping: Mapping) -> None:
    """Create the temporary table `mapped`: one row for each row of the source, in its order."""
    settings, data = mapping.events, mapping.data
    origin = relation(settings.source, data)
    columns = _columns_of(con, "events", settings.source, data)

    def kind(name: str, expression: str) -> str:
        return _type_of(con, origin, f"[events] {name}", expression, columns)

    selected = {
        name: f"({expression})::{_check_id(f'[events] {name}', kind(name, expression))}"
        for name, expression in (("user_id", settings.user_id), ("item_id", settings.item_id))
    }
    selected["ts"] = _utc("[events] ts", settings.ts, kind("ts", settings.ts), mapping.zone)
    for name, cast in (
        ("surface", "VARCHAR"),
        ("organic", "BOOLEAN"),
        ("request_id", "VARCHAR"),
        ("position", "INTEGER"),
        ("propensity", "DOUBLE"),
    ):
        expression = getattr(settings, name)
        if expression is not None:
            kind(name, expression)
        selected[name] = f"({expression or 'NULL'})::{cast}"
    for name, expression in settings.feedback.items():
        if name in selected:
            raise PairliftError(f"[events.feedback] {name}: this name is taken by a column of the contract; rename it")
        found = kind(f"feedback.{name}", expression)
        if found not in NUMBERS and not found.startswith("DECIMAL"):
            raise PairliftError(
                f"[events.feedback] {name} = {expression!r}: a number or true/false was expected, found {found}"
            )
        selected[name] = f"({expression})::{'BOOLEAN' if found == 'BOOLEAN' else 'DOUBLE'}"
    for name, expression in settings.columns.items():
        if name in selected:
            raise PairliftError(f"[events.columns] {name}: this name is taken by another column; rename it")
        kind(f"columns.{name}", expression)
        selected[name] = f"({expression})"
    select = ", ".join(f'{sql} AS "{name}"' for name, sql in selected.items())
    with explained(f"[events] of {settings.source!r}", "mend the value, or write try_cast(…) in the expression"):
        con.execute(f"CREATE TEMP TABLE mapped AS SELECT row_number() OVER () AS source_row, {select} FROM {origin}")
    _refuse_nulls(con, settings.source)


def refuse(con: duckdb.DuckDBPyConnection, table: str, where: str, place: str, problem: str) -> None:
    """Raise a PairliftError that shows how many rows of a table (or subquery) `where` is true of, and the first few."""
    count = con.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchall()[0][0]
    if not count:
        return
    # As text, for not every value of DuckDB's is one of Python's.
    rows = con.execute(f"SELECT COLUMNS(*)::VARCHAR FROM {table} WHERE {where} LIMIT {FIRST_FEW}").fetchall()
    shown = "\n".join(f"    {row}" for row in rows)
    raise PairliftError(f"{place}: {problem} in {count:,} rows; the first of them:\n{shown}")


def _refuse_nulls(con: duckdb.DuckDBPyConnection, source: str) -> None:
    if con.execute("SELECT count(*) FROM mapped").fetchall()[0][0] == 0:
        raise PairliftError(f"[events] source = {source!r}: it has no rows")
    for column in ("user_id", "item_id", "ts"):
        place = f"[events] {column} of {source!r}"
        refuse(con, "mapped", f"{column} IS NULL", place, "NULL where a value was expected")
    odd = "ts < TIMESTAMP '1900-01-01' OR ts >= TIMESTAMP '9999-01-01'"
    problem = "a time outside the years 1900 to 9998 (are its seconds milliseconds?)"
    refuse(con, "mapped", odd, f"[events] ts of {source!r}", problem)


def _grade(con: duckdb.DuckDBPyConnection, mapping: Mapping) -> None:
    """Create the temporary table `graded`: `mapped` with the rank of the best true grade, and whether it makes pairs.

    The conditions see the columns of `mapped` alone, so an attribute of an item or user cannot stand in their way.
    """
    columns = [row[0] for row in con.execute("DESCRIBE mapped").fetchall()][1:]
    places = {f"[[grades]] {grade.name}: when": grade.when for grade in mapping.grades}
    if mapping.pairing_where is not None:
        places["[pairing] where"] = mapping.pairing_where
    for place, condition in places.items():
        kind = _type_of(con, "mapped", place, condition, columns)
        if kind not in ("BOOLEAN", '"NULL"'):
            raise PairliftError(f"{place} = {condition!r}: true or false was expected, found {kind}; write '… = 1'")
    cases = " ".join(f"WHEN ({g.when}) THEN {rank}" for rank, g in reversed(list(enumerate(mapping.grades))))
    with explained(f"conditions on {mapping.events.source!r}", f"see {', '.join(places)}; try_cast(…) gives NULL"):
        con.execute(f"""
            CREATE TEMP TABLE graded AS
            SELECT *, coalesce(CASE {cases} END, -1)::TINYINT AS "#grade",
                   coalesce(({mapping.pairing_where or "true"}), false) AS "#pairable" FROM mapped""")


def _side_table(con: duckdb.DuckDBPyConnection, name: str, mapping: Mapping) -> None:
    """Create the temporary table `<name>_mapped` of items or users: id and attributes (none without a source)."""
    settings = mapping.items if name == "items" else mapping.users
    key = "item_id" if name == "items" else "user_id"
    if settings is None:
        con.execute(f"CREATE TEMP TABLE {name}_mapped AS SELECT {key} FROM mapped WHERE false")
        return
    origin = relation(settings.source, mapping.data)
    columns = _columns_of(con, name, settings.source, mapping.data)
    expression = getattr(settings, key)
    cast = _check_id(f"[{name}] {key}", _type_of(con, origin, f"[{name}] {key}", expression, columns))
    _same_kind(con, name, key, cast)
    selected = [f"({expression})::{cast} AS {key}"]
    for column, sql in settings.columns.items():
        kind = _type_of(con, origin, f"[{name}.columns] {column}", sql, columns)
        selected.append(f'({sql})::{_attribute_type(f"[{name}.columns] {column}", kind)} AS "{column}"')
    for column, sql in settings.text.items():
        _type_of(con, origin, f"[{name}.text] {column}", sql, columns)
        selected.append(f'struct_pack(text := ({sql})::VARCHAR) AS "{column}"')
    with explained(f"[{name}] of {settings.source!r}", "mend the value, or write try_cast(…) in the expression"):
        con.execute(f"CREATE TEMP TABLE {name}_mapped AS SELECT {', '.join(selected)} FROM {origin}")
    place = f"[{name}] {key} of {settings.source!r}"
    refuse(con, f"{name}_mapped", f"{key} IS NULL", place, "NULL where an id was expected")
    repeated = f"{key} IN (SELECT {key} FROM {name}_mapped GROUP BY 1 HAVING count(*) > 1)"
    refuse(con, f"{name}_mapped", repeated, place, "an id that stands more than once")


def _same_kind(con: duckdb.DuckDBPyConnection, table: str, key: str, cast: str) -> None:
    found = con.execute(f"SELECT typeof({key}) FROM mapped LIMIT 1").fetchall()[0][0]
    if found != cast:
        raise PairliftError(
            f"[{table}] {key} is {cast} but [events] {key} is {found}: write a cast in one of the two expressions"
        )


def _attribute_type(place: str, kind: str) -> str:
    if kind.endswith("[]"):
        return "VARCHAR[]"
    if kind in NUMBERS or kind.startswith("DECIMAL"):
        return "FLOAT"
    if kind == "VARCHAR" or kind.startswith("ENUM"):
        return "VARCHAR"
    raise PairliftError(f"{place}: a number, text or a list of text was expected, found {kind}; write a cast")


def import_log(mapping: Mapping, database: Path) -> None:
    """Read every source of the mapping and write the contract's tables to the DuckDB file `database`.

    Nothing is left behind where it fails. Raises PairliftError for whatever the user can mend.
    """
    partial = database.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        with duckdb.connect(str(partial)) as con:
            # A union of files with and without a zone gives the latter the session's.
            con.execute("SET TimeZone = ?", [mapping.zone])
            _map_events(con, mapping)
            for name in ("items", "users"):
                _side_table(con, name, mapping)
            con.execute("SET TimeZone = 'UTC'")  # as where recorded events are graded
            _write_tables(con, mapping)
        partial.replace(database)
    finally:
        partial.unlink(missing_ok=True)
        Path(f"{partial}.wal").unlink(missing_ok=True)


def _write_tables(con: duckdb.DuckDBPyConnection, mapping: Mapping) -> None:
    for name, key in (("items", "item_id"), ("users", "user_id")):
        con.execute(f"""
            CREATE TABLE {name} AS
            SELECT (row_number() OVER (ORDER BY {key}) - 1)::INTEGER AS idx, {key}, * EXCLUDE ({key})
            FROM (SELECT DISTINCT {key} FROM mapped UNION SELECT {key} FROM {name}_mapped)
            LEFT JOIN {name}_mapped USING ({key}) ORDER BY idx""")
        _refuse_infinite(con, name, f"[{name}.columns]")
    _refuse_infinite(con, "mapped", "[events]")
    con.execute("""
        CREATE TABLE surfaces AS
        SELECT (row_number() OVER (ORDER BY surface) - 1) AS code, surface
        FROM (SELECT DISTINCT surface FROM mapped WHERE surface IS NOT NULL)""")
    count = con.execute("SELECT count(*) FROM surfaces").fetchall()[0][0]
    if count > MOST_SURFACES:
        raise PairliftError(
            f"[events] surface: at most {MOST_SURFACES:,} different ones were expected, found {count:,}"
        )
    feedback = "".join(f', m."{name}"::FLOAT AS "feedback_{name}"' for name in mapping.events.feedback)
    _grade(con, mapping)
    con.execute("""
        CREATE TABLE requests AS
        SELECT dense_rank() OVER (ORDER BY request_id) AS code, request_id
        FROM (SELECT DISTINCT request_id FROM mapped WHERE request_id IS NOT NULL)""")
    with explained(f"[events] of {mapping.events.source!r}", "is a feedback value out of the range of a 32-bit float?"):
        con.execute(f"""
            CREATE TABLE events AS
            SELECT u.idx AS user, i.idx AS item, epoch_us(m.ts) AS ts, m."#grade" AS grade,
                   coalesce(s.code, -1)::SMALLINT AS surface,
                   coalesce(m.organic::INTEGER, -1)::TINYINT AS organic,
                   coalesce(r.code, -1) AS request,
                   m.position, m.propensity, m."#pairable" AS pairable{feedback}
            FROM graded m JOIN users u USING (user_id) JOIN items i USING (item_id)
            LEFT JOIN surfaces s ON s.surface = m.surface LEFT JOIN requests r ON r.request_id = m.request_id
            ORDER BY m.ts, m.source_row""")


def _refuse_infinite(con: duckdb.DuckDBPyConnection, table: str, place: str) -> None:
    for column, kind, *_ in con.execute(f"DESCRIBE {table}").fetchall():
        if kind in ("FLOAT", "DOUBLE"):
            refuse(con, table, f'isinf("{column}")', f"{place} {column}", "an infinite number")


def load_log(database: Path) -> tuple[EventLog, Catalog]:
    """Read what `import_log` wrote."""
    with duckdb.connect(str(database), read_only=True) as con:
        arrays = con.execute("SELECT * FROM events").fetchnumpy()
        names = tuple(name.removeprefix("feedback_") for name in arrays if name.startswith("feedback_"))
        feedback = [np.ma.filled(arrays[f"feedback_{name}"].astype(np.float32), np.nan) for name in names]
        log = EventLog(
            **{
                name: np.ascontiguousarray(arrays[name])
                for name in ("user", "item", "ts", "grade", "surface", "organic", "request", "pairable")
            },
            feedback=np.stack(feedback, axis=1) if names else np.empty((len(arrays["ts"]), 0), np.float32),
            feedback_names=names,
        )
        surfaces = tuple(row[0] for row in con.execute("SELECT surface FROM surfaces ORDER BY code").fetchall())
        user_ids, user_attributes = _load_side(con, "users")
        item_ids, item_attributes = _load_side(con, "items")
    return log, Catalog(user_ids, item_ids, surfaces, item_attributes, user_attributes)


def load_request_codes(database: Path) -> dict[str, int]:
    """Return the code in `EventLog.request` of each request id of the log."""
    with duckdb.connect(str(database), read_only=True) as con:
        return {name: code for code, name in con.execute("SELECT code, request_id FROM requests").fetchall()}


def _load_side(con: duckdb.DuckDBPyConnection, table: str) -> tuple[Ids, tuple[Attribute, ...]]:
    described = con.execute(f"DESCRIBE {table}").fetchall()
    key, *columns = [(row[0], row[1]) for row in described][1:]
    ids = con.execute(f"SELECT {key[0]} FROM {table} ORDER BY idx").fetchnumpy()[key[0]]
    attributes = tuple(_load_attribute(con, table, name, kind) for name, kind in columns)
    return np.asarray(ids), attributes


def _load_attribute(con: duckdb.DuckDBPyConnection, table: str, name: str, kind: str) -> Attribute:
    expression = f'"{name}".text' if kind.startswith("STRUCT") else f'"{name}"'
    raw = [row[0] for row in con.execute(f"SELECT {expression} FROM {table} ORDER BY idx").fetchall()]
    no_codes, no_offsets, no_numbers = np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.float32)
    if kind.startswith("STRUCT"):
        return Attribute(name, "text", no_codes, no_offsets, no_numbers, tuple("" if v is None else v for v in raw))
    if kind == "FLOAT":
        numbers = np.array([np.nan if v is None else v for v in raw], np.float32)
        return Attribute(name, "numeric", no_codes, no_offsets, numbers, ())
    if kind == "VARCHAR":
        values = sorted({v for v in raw if v is not None})
        code = {v: k for k, v in enumerate(values)}
        codes = np.array([-1 if v is None else code[v] for v in raw], np.int32)
        return Attribute(name, "categorical", codes, no_offsets, no_numbers, tuple(values))
    return _multi(name, raw)


def _multi(name: str, raw: list[Any]) -> Attribute:
    # A value that one item lists twice counts once.
    lists = [sorted({v for v in row or () if v}) for row in raw]
    values = sorted({v for row in lists for v in row})
    code = {v: k for k, v in enumerate(values)}
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(np.int64)
    codes = np.array([code[v] for row in lists for v in row], np.int32)
    return Attribute(name, "multi", codes, offsets, np.empty(0, np.float32), tuple(values))
