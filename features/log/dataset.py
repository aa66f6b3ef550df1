"""Any log, through the TOML's SQL expressions, into a DuckDB file.

`import_log` writes the tables `events`, `items`, `users` and `surfaces` in the contract's form (dense indexes,
µs UTC, grades), which `features.log.loading` reads, and `recorded` (`features.log.recorded`). What is bad is refused
with the source, the column, how many rows, and the first few of them (`features.log.refusals`); no row is dropped but
those that repeat an event id.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import duckdb

from features.errors import PairliftError
from features.log.recorded import joined, recorded_in, recorded_in_files, same_files, warn_of_a_cut, write_recorded
from features.log.refusals import Rows, refuse, refuse_beyond_float, refuse_large_feedback, refuse_numbers
from features.log.repeats import drop_repeats, refuse_other_kind
from features.log.segments import FRAME, SEGMENT
from features.log.sources import explained, relation, source_files
from features.settings import EventsSettings, Grade, ItemsSettings, UsersSettings

INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}
NUMBERS = INTEGERS | {"UBIGINT", "HUGEINT", "FLOAT", "DOUBLE", "BOOLEAN"}
#: of event ids, which become text
ID_KINDS = INTEGERS | {"UBIGINT", "HUGEINT", "UHUGEINT", "UUID", "VARCHAR", '"NULL"'}
MOST_SURFACES = 32_767  # codes are int16

#: gives the SQL type of an expression of [events], by the key that has it
Kind = Callable[[str, str], str]


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
    """Create the temporary table `mapped`, one row for each event of the source, in its order; and `repeats`."""
    settings, origin = mapping.events, relation(mapping.events.source, mapping.data)
    columns = _columns_of(con, "events", settings.source, mapping.data)

    def kind(name: str, expression: str) -> str:
        return _type_of(con, origin, f"[events] {name}", expression, columns)

    selected = _contract(settings, kind, mapping.zone)
    feedback, context = _feedback(settings, kind, selected), _context(settings, kind, selected)
    for name, expression in settings.columns.items():
        if name in selected:
            raise PairliftError(f"[events.columns] {name}: this name is taken by another column; rename it")
        kind(f"columns.{name}", expression)
        selected[name] = f"({expression})"
    event_id = _event_id(settings, kind, columns)
    selected["#event_id"] = f"nullif(({event_id})::VARCHAR, '')"
    read = "event_id" in map(str.lower, columns) and "event_id" in event_id.lower()
    if read and "event_id" not in settings.source.lower():  # where a SELECT names it, it may cast it
        refuse_other_kind(settings.source, source_files(settings.source, mapping.data), kind("event_id", "event_id"))
    marked = {SEGMENT, FRAME} <= set(columns)
    selected |= {name: name for name in (SEGMENT, FRAME) if marked}
    select = ", ".join(f'{sql} AS "{name}"' for name, sql in selected.items())
    told = recorded_in_files(con, source_files(settings.source, mapping.data), marked=marked)
    with explained(f"[events] of {settings.source!r}", "mend the value, or write try_cast(…) in the expression"):
        con.execute(f"CREATE TEMP TABLE mapped AS SELECT row_number() OVER () AS source_row, {select} FROM {origin}")
    rows = Rows(origin, mapping.data)
    _refuse_nulls(con, settings.source, rows)
    same_files(
        told, recorded_in_files(con, source_files(settings.source, mapping.data), marked=marked), settings.source
    )
    if not marked:
        warn_of_a_cut(con, source_files(settings.source, mapping.data), settings.source)
    # Before repeats go: what one repeats was read all the same.
    write_recorded(con, joined(told, recorded_in(con, "mapped") if marked else {}))
    _check_numbers(con, settings, feedback, context, rows)
    drop_repeats(con, settings.source, asked=settings.event_id is not None)


def _check_numbers(
    con: duckdb.DuckDBPyConnection,
    settings: EventsSettings,
    feedback: dict[str, str],
    context: dict[str, str],
    rows: Rows,
) -> None:
    """Refuse what is no number that can be kept. feedback, context: the place in the TOML of each column."""
    others = {name: f"[events.columns] {name} of {settings.source!r}" for name in settings.columns}
    refuse_numbers(con, "mapped", {"propensity": "[events] propensity"} | feedback | context | others, rows)
    refuse_large_feedback(con, "mapped", feedback, rows)
    refuse_beyond_float(con, "mapped", context, rows)
    _narrow(con, "mapped", context)


def _contract(settings: EventsSettings, kind: Kind, zone: str) -> dict[str, str]:
    """Return the SQL of each column of the contract."""
    selected = {
        name: f"({expression})::{_check_id(f'[events] {name}', kind(name, expression))}"
        for name, expression in (("user_id", settings.user_id), ("item_id", settings.item_id))
    }
    selected["ts"] = _utc("[events] ts", settings.ts, kind("ts", settings.ts), zone)
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
    return selected


def _event_id(settings: EventsSettings, kind: Kind, columns: list[str]) -> str:
    """Return the expression of the event id, `NULL` for none."""
    named = next((column for column in columns if column.lower() == "event_id"), None)
    expression = settings.event_id or named or "NULL"
    found = kind("event_id", expression)
    if found not in ID_KINDS:
        raise PairliftError(
            f"[events] event_id = {expression!r}: ids are integers or text, found {found}; write '(…)::BIGINT' or "
            "'(…)::VARCHAR', or 'NULL' where nothing names the events"
        )
    return expression


def _feedback(settings: EventsSettings, kind: Kind, selected: dict[str, str]) -> dict[str, str]:
    """Add the columns of feedback to `selected`; return the place in the TOML of each column of numbers."""
    places = {}
    for name, expression in settings.feedback.items():
        if name in selected:
            raise PairliftError(f"[events.feedback] {name}: this name is taken by a column of the contract; rename it")
        found = kind(f"feedback.{name}", expression)
        if found not in NUMBERS and not found.startswith("DECIMAL"):
            raise PairliftError(
                f"[events.feedback] {name} = {expression!r}: a number or true/false was expected, found {found}"
            )
        selected[name] = f"({expression})::{'BOOLEAN' if found == 'BOOLEAN' else 'DOUBLE'}"
        if found != "BOOLEAN":
            places[name] = f"[events.feedback] {name} of {settings.source!r}"
    return places


def _context(settings: EventsSettings, kind: Kind, selected: dict[str, str]) -> dict[str, str]:
    """Add the columns `context_<name>` to `selected`; return the place in the TOML of each column of numbers."""
    places = {}
    for name, expression in settings.context.items():
        found = _attribute_type(f"[events.context] {name}", kind(f"context.{name}", expression))
        if found.endswith("[]"):
            raise PairliftError(
                f"[events.context] {name} = {expression!r}: a number or text was expected, found a list"
            )
        selected[f"context_{name}"] = f"({expression})::{_wide(found)}"
        if found == "FLOAT":
            places[f"context_{name}"] = f"[events.context] {name} of {settings.source!r}"
    return places


def _wide(kind: str) -> str:
    """Return the type in which a value of a kind is read, so that what a 32-bit float cannot hold is still seen."""
    return "DOUBLE" if kind == "FLOAT" else kind


def _narrow(con: duckdb.DuckDBPyConnection, table: str, columns: Iterable[str]) -> None:
    for column in columns:
        con.execute(f'ALTER TABLE {table} ALTER "{column}" TYPE FLOAT')


def _refuse_nulls(con: duckdb.DuckDBPyConnection, source: str, rows: Rows) -> None:
    if con.execute("SELECT count(*) FROM mapped").fetchall()[0][0] == 0:
        raise PairliftError(f"[events] source = {source!r}: it has no rows")
    for column in ("user_id", "item_id", "ts"):
        place = f"[events] {column} of {source!r}"
        refuse(con, "mapped", f"{column} IS NULL", place, "NULL where a value was expected", rows)
    odd = "ts < TIMESTAMP '1900-01-01' OR ts >= TIMESTAMP '9999-01-01'"
    problem = "a time outside the years 1900 to 9998 (are its seconds milliseconds?)"
    refuse(con, "mapped", odd, f"[events] ts of {source!r}", problem, rows)


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
        con.execute(f"CREATE TEMP TABLE {name}_mapped AS SELECT source_row, {key} FROM mapped WHERE false")
        return
    origin = relation(settings.source, mapping.data)
    columns = _columns_of(con, name, settings.source, mapping.data)
    expression = getattr(settings, key)
    cast = _check_id(f"[{name}] {key}", _type_of(con, origin, f"[{name}] {key}", expression, columns))
    _same_kind(con, name, key, cast)
    selected, narrow = [f"({expression})::{cast} AS {key}"], {}
    for column, sql in settings.columns.items():
        kind = _type_of(con, origin, f"[{name}.columns] {column}", sql, columns)
        kind = _attribute_type(f"[{name}.columns] {column}", kind)
        selected.append(f'({sql})::{_wide(kind)} AS "{column}"')
        if kind == "FLOAT":
            narrow[column] = f"[{name}.columns] {column} of {settings.source!r}"
    for column, sql in settings.text.items():
        _type_of(con, origin, f"[{name}.text] {column}", sql, columns)
        selected.append(f'struct_pack(text := ({sql})::VARCHAR) AS "{column}"')
    with explained(f"[{name}] of {settings.source!r}", "mend the value, or write try_cast(…) in the expression"):
        select = f"SELECT row_number() OVER () AS source_row, {', '.join(selected)} FROM {origin}"
        con.execute(f"CREATE TEMP TABLE {name}_mapped AS {select}")
    rows = Rows(origin, mapping.data)
    place = f"[{name}] {key} of {settings.source!r}"
    refuse(con, f"{name}_mapped", f"{key} IS NULL", place, "NULL where an id was expected", rows)
    repeated = f"{key} IN (SELECT {key} FROM {name}_mapped GROUP BY 1 HAVING count(*) > 1)"
    refuse(con, f"{name}_mapped", repeated, place, "an id that stands more than once", rows)
    refuse_numbers(con, f"{name}_mapped", narrow, rows)
    refuse_beyond_float(con, f"{name}_mapped", narrow, rows)
    _narrow(con, f"{name}_mapped", narrow)


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


def cut_log(database: Path, target: Path, end: int) -> None:
    """Copy what `import_log` wrote to the new file `target`, without the events with `ts >= end` (µs UTC)."""
    quoted = str(database).replace("'", "''")
    with duckdb.connect(str(target)) as con:
        con.execute(f"ATTACH '{quoted}' AS whole (READ_ONLY)")
        tables = con.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'whole'").fetchall()
        for (name,) in tables:
            where = f"WHERE ts < {end}" if name == "events" else ""
            con.execute(f'CREATE TABLE "{name}" AS SELECT * FROM whole."{name}" {where}')


def _write_tables(con: duckdb.DuckDBPyConnection, mapping: Mapping) -> None:
    for name, key in (("items", "item_id"), ("users", "user_id")):
        con.execute(f"""
            CREATE TABLE {name} AS
            SELECT (row_number() OVER (ORDER BY {key}) - 1)::INTEGER AS idx, {key}, * EXCLUDE ({key}, source_row)
            FROM (SELECT DISTINCT {key} FROM mapped UNION SELECT {key} FROM {name}_mapped)
            LEFT JOIN {name}_mapped USING ({key}) ORDER BY idx""")
    con.execute("""
        CREATE TABLE surfaces AS
        SELECT (row_number() OVER (ORDER BY surface) - 1) AS code, surface
        FROM (SELECT DISTINCT surface FROM mapped WHERE surface IS NOT NULL)""")
    count = con.execute("SELECT count(*) FROM surfaces").fetchall()[0][0]
    if count > MOST_SURFACES:
        raise PairliftError(
            f"[events] surface: at most {MOST_SURFACES:,} different ones were expected, found {count:,}"
        )
    further = [f'm."{name}"::FLOAT AS "feedback_{name}"' for name in mapping.events.feedback]
    further += [f'm."context_{name}"' for name in mapping.events.context]
    _grade(con, mapping)
    con.execute("""
        CREATE TABLE requests AS
        SELECT dense_rank() OVER (ORDER BY request_id) AS code, request_id
        FROM (SELECT DISTINCT request_id FROM mapped WHERE request_id IS NOT NULL)""")
    con.execute(f"""
        CREATE TABLE events AS
        SELECT u.idx AS user, i.idx AS item, epoch_us(m.ts) AS ts, m."#grade" AS grade,
               coalesce(s.code, -1)::SMALLINT AS surface,
               coalesce(m.organic::INTEGER, -1)::TINYINT AS organic,
               coalesce(r.code, -1) AS request,
               m.position, m.propensity, m."#pairable" AS pairable{"".join(f", {column}" for column in further)}
        FROM graded m JOIN users u USING (user_id) JOIN items i USING (item_id)
        LEFT JOIN surfaces s ON s.surface = m.surface LEFT JOIN requests r ON r.request_id = m.request_id
        ORDER BY m.ts, m.source_row""")
