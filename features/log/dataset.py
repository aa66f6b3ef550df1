"""Any log, through the TOML's SQL expressions, into a DuckDB file.

`import_log` writes the tables `events`, `items`, `users` and `surfaces` in the contract's form (dense indexes,
µs UTC, grades) and `texts`, which `features.log.loading` reads, and `recorded` (`features.log.recorded`). What is bad
is refused with the source, the column, how many rows, and the first few of them (`features.log.refusals`); no row is
dropped but those that repeat an event id.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb

from features.errors import PairliftError
from features.files import written
from features.log.expressions import (
    EventColumns,
    Kind,
    attribute_type,
    columns_of,
    event_columns,
    event_id,
    id_type,
    is_number,
    type_of,
    wide,
)
from features.log.impressions import check_impressions
from features.log.recorded import (
    joined,
    recorded_in,
    recorded_in_files,
    same_files,
    warn_of_a_cut,
    warn_of_lost_columns,
    write_recorded,
)
from features.log.refusals import (
    Rows,
    refuse,
    refuse_beyond_float,
    refuse_large_feedback,
    refuse_numbers,
    refuse_vectors,
)
from features.log.repeats import drop_repeats, refuse_other_kind
from features.log.segments import FRAME, SEGMENT
from features.log.sources import brief, explained, relation, source_files
from features.settings import EventsSettings, Grade, ItemsSettings, UsersSettings

log = logging.getLogger(__name__)

#: different values: codes are int16, and there must be room for new arms
MOST_CODES = {"surface": 32_767, "arm": 32_000}
#: no log ends before: its times are of another unit
FIRST_LOGS = datetime(1972, 1, 1)
BEFORE_FIRST = (
    "a position below 1, which is the first place (write '… + 1' where yours count from 0, 'nullif(…, 0)' where 0 is "
    "unknown)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """What `import_log` needs of the TOML."""

    data: Path  # the folder that `{data}` and relative paths stand for
    zone: str  # of times without one
    events: EventsSettings  # `[events]`
    items: ItemsSettings | None  # `[items]`, None without that table
    users: UsersSettings | None  # `[users]`, None without that table
    grades: tuple[Grade, ...]  # from worst to best
    pairing_where: str | None  # condition of the events that make pairs; None: all


def import_log(mapping: Mapping, database: Path) -> None:
    """Read every source of the mapping and write the contract's tables to the DuckDB file `database`.

    Nothing is left behind where it fails. Raises PairliftError for whatever the user can mend.
    """
    with written(database) as partial, duckdb.connect(str(partial)) as con:
        # A union of files with and without a zone gives the latter the session's.
        con.execute("SET TimeZone = ?", [mapping.zone])
        _map_events(con, mapping)
        for name in ("items", "users"):
            _side_table(con, name, mapping)
        con.execute("SET TimeZone = 'UTC'")  # as where recorded events are graded
        _write_tables(con, mapping)


def cut_log(database: Path, target: Path, end: int) -> None:
    """Copy what `import_log` wrote to the new file `target`, without the events with `ts >= end` (µs UTC)."""
    quoted = str(database).replace("'", "''")
    with duckdb.connect(str(target)) as con:
        con.execute(f"ATTACH '{quoted}' AS whole (READ_ONLY)")
        tables = con.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'whole'").fetchall()
        for (name,) in tables:
            where = f"WHERE ts < {end}" if name == "events" else ""
            con.execute(f'CREATE TABLE "{name}" AS SELECT * FROM whole."{name}" {where}')


def _map_events(con: duckdb.DuckDBPyConnection, mapping: Mapping) -> None:
    """Create the temporary table `mapped`, one row for each event of the source, in its order; and `repeats`."""
    settings, source, origin = mapping.events, mapping.events.source, relation(mapping.events.source, mapping.data)
    names = columns_of(con, "events", source, mapping.data)
    columns = _event_columns(con, mapping, origin, names)
    marked = {SEGMENT, FRAME} <= set(names)
    marks = {name: name for name in (SEGMENT, FRAME) if marked}
    select = ", ".join(f'{sql} AS "{name}"' for name, sql in (columns.sql | marks).items())
    before = recorded_in_files(con, source_files(source, mapping.data), marked=marked)
    with explained("[events]", source, "mend the value, or write try_cast(…) in the expression"):
        con.execute(f"CREATE TEMP TABLE mapped AS SELECT row_number() OVER () AS source_row, {select} FROM {origin}")
    rows = Rows(origin, mapping.data)
    _refuse_nulls(con, source, rows)
    same_files(before, recorded_in_files(con, source_files(source, mapping.data), marked=marked), source)
    if marked:
        warn_of_lost_columns(con, settings, origin, names)
    else:
        warn_of_a_cut(con, source_files(source, mapping.data), source)
    # Before repeats go: what one repeats was read all the same.
    write_recorded(con, joined(before, recorded_in(con, "mapped") if marked else {}))
    _check_numbers(con, settings, columns, rows)
    drop_repeats(con, source, asked=settings.event_id is not None)
    check_impressions(con, settings)
    _write_texts(con, settings)


def _event_columns(con: duckdb.DuckDBPyConnection, mapping: Mapping, origin: str, names: list[str]) -> EventColumns:
    """Return what to select of the events. origin: the source as what follows FROM. names: of its columns."""
    settings = mapping.events

    def kind(name: str, expression: str) -> str:
        return type_of(con, origin, f"[events] {name}", expression, names)

    columns = event_columns(settings, kind, mapping.zone, names)
    read = "event_id" in map(str.lower, names) and "event_id" in event_id(settings, kind, names).lower()
    if read and "event_id" not in settings.source.lower():  # where a SELECT names it, it may cast it
        refuse_other_kind(settings.source, source_files(settings.source, mapping.data), kind("event_id", "event_id"))
    return columns


def _check_numbers(con: duckdb.DuckDBPyConnection, settings: EventsSettings, columns: EventColumns, rows: Rows) -> None:
    """Refuse what is not a number that can be kept."""
    others = {name: f"[events.columns] {name} of {brief(settings.source)}" for name in settings.columns}
    numbers = {"propensity": "[events] propensity"} | columns.feedback | columns.features | others
    refuse_numbers(con, "mapped", numbers, rows)
    refuse_large_feedback(con, "mapped", columns.feedback, rows)
    refuse_beyond_float(con, "mapped", columns.features, rows)
    _narrow(con, "mapped", columns.features)


def _write_texts(con: duckdb.DuckDBPyConnection, settings: EventsSettings) -> None:
    """Write the table `texts`: those of [events.columns] that are not numbers."""
    kinds = {row[0]: row[1] for row in con.execute("DESCRIBE mapped").fetchall()}
    numbers = {name for name, kind in kinds.items() if is_number(kind)}
    con.execute("CREATE TABLE texts (name VARCHAR)")
    for name in settings.columns:
        if name not in numbers:
            con.execute("INSERT INTO texts VALUES (?)", [name])


def _narrow(con: duckdb.DuckDBPyConnection, table: str, columns: Iterable[str]) -> None:
    for column in columns:
        con.execute(f'ALTER TABLE {table} ALTER "{column}" TYPE FLOAT')


def _refuse_nulls(con: duckdb.DuckDBPyConnection, source: str, rows: Rows) -> None:
    if con.execute("SELECT count(*) FROM mapped").fetchall()[0][0] == 0:
        raise PairliftError(f"[events] source = {brief(source)}: it has no rows")
    for column in ("user_id", "item_id", "ts"):
        place = f"[events] {column} of {brief(source)}"
        refuse(con, "mapped", f"{column} IS NULL", place, "NULL where a value was expected", rows)
    odd = "ts < TIMESTAMP '1900-01-01' OR ts >= TIMESTAMP '9999-01-01'"
    problem = "a time outside the years 1900 to 9998 (are its seconds milliseconds?)"
    refuse(con, "mapped", odd, f"[events] ts of {brief(source)}", problem, rows)
    latest = con.execute("SELECT max(ts) FROM mapped").fetchall()[0][0]
    if latest < FIRST_LOGS:
        log.warning(
            "[events] ts: the latest event is of %s; were seconds read as milliseconds, or these as microseconds? "
            "to_timestamp(…) takes seconds, make_timestamp(…) microseconds",
            latest,
        )
    refuse(con, "mapped", "position < 1", f"[events] position of {brief(source)}", BEFORE_FIRST, rows)


def _grade(con: duckdb.DuckDBPyConnection, mapping: Mapping) -> None:
    """Create the temporary table `graded`: `mapped` with the rank of the best true grade, and whether it makes pairs.

    The conditions see the columns of `mapped` alone, so an attribute of an item or user cannot stand in their way.
    """
    columns = [row[0] for row in con.execute("DESCRIBE mapped").fetchall()][1:]
    places = {f"[[grades]] {grade.name}: when": grade.when for grade in mapping.grades}
    if mapping.pairing_where is not None:
        places["[pairing] where"] = mapping.pairing_where
    for place, condition in places.items():
        kind = type_of(con, "mapped", place, condition, columns)
        if kind not in ("BOOLEAN", '"NULL"'):
            raise PairliftError(f"{place} = {condition!r}: true or false was expected, found {kind}; write '… = 1'")
    cases = " ".join(f"WHEN ({g.when}) THEN {rank}" for rank, g in reversed(list(enumerate(mapping.grades))))
    with explained(
        "[[grades]] and [pairing] where", mapping.events.source, f"see {', '.join(places)}; try_cast(…) gives NULL"
    ):
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
    names = columns_of(con, name, settings.source, mapping.data)
    expression = getattr(settings, key)
    cast = id_type(f"[{name}] {key}", type_of(con, origin, f"[{name}] {key}", expression, names))
    _same_kind(con, name, key, cast)

    def kind(place: str, sql: str) -> str:
        return type_of(con, origin, place, sql, names)

    attributes, numbers, vectors = _attributes(name, settings, kind)
    with explained(f"[{name}]", settings.source, "mend the value, or write try_cast(…) in the expression"):
        select = ", ".join(["row_number() OVER () AS source_row", f"({expression})::{cast} AS {key}", *attributes])
        con.execute(f"CREATE TEMP TABLE {name}_mapped AS SELECT {select} FROM {origin}")
    rows = Rows(origin, mapping.data)
    place = f"[{name}] {key} of {brief(settings.source)}"
    refuse(con, f"{name}_mapped", f"{key} IS NULL", place, "NULL where an id was expected", rows)
    repeated = f"{key} IN (SELECT {key} FROM {name}_mapped GROUP BY 1 HAVING count(*) > 1)"
    refuse(con, f"{name}_mapped", repeated, place, "an id that stands more than once", rows)
    refuse_numbers(con, f"{name}_mapped", numbers, rows)
    refuse_beyond_float(con, f"{name}_mapped", numbers, rows)
    refuse_vectors(con, f"{name}_mapped", vectors, rows)
    _narrow(con, f"{name}_mapped", numbers)


def _attributes(
    name: str, settings: ItemsSettings | UsersSettings, kind: Kind
) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Return what to select for the attributes of items or users, and the places in the TOML of numbers and vectors.

    kind: gives the SQL type of an expression at a place of the TOML.
    """
    selected: list[str] = []
    numbers: dict[str, str] = {}
    vectors: dict[str, str] = {}
    for column, sql in settings.columns.items():
        place = f"[{name}.columns] {column}"
        found = attribute_type(place, kind(place, sql))
        selected.append(f'({sql})::{wide(found)} AS "{column}"')
        of = {"FLOAT": numbers, "FLOAT[]": vectors}.get(found)
        if of is not None:
            of[column] = f"{place} of {brief(settings.source)}"
    for column, sql in settings.text.items():
        kind(f"[{name}.text] {column}", sql)
        selected.append(f'struct_pack(text := ({sql})::VARCHAR) AS "{column}"')
    return selected, numbers, vectors


def _same_kind(con: duckdb.DuckDBPyConnection, table: str, key: str, cast: str) -> None:
    found = con.execute(f"SELECT typeof({key}) FROM mapped LIMIT 1").fetchall()[0][0]
    if found != cast:
        raise PairliftError(
            f"[{table}] {key} is {cast} but [events] {key} is {found}: write a cast in one of the two expressions"
        )


def _write_tables(con: duckdb.DuckDBPyConnection, mapping: Mapping) -> None:
    for name, key in (("items", "item_id"), ("users", "user_id")):
        con.execute(f"""
            CREATE TABLE {name} AS
            SELECT (row_number() OVER (ORDER BY {key}) - 1)::INTEGER AS idx, {key}, * EXCLUDE ({key}, source_row)
            FROM (SELECT DISTINCT {key} FROM mapped UNION SELECT {key} FROM {name}_mapped)
            LEFT JOIN {name}_mapped USING ({key}) ORDER BY idx""")
    for name in MOST_CODES:
        _write_codes(con, name)
    further = [f'm."{name}"::FLOAT AS "feedback_{name}"' for name in mapping.events.feedback]
    further += [f'm."context_{name}"' for name in mapping.events.context]
    further += [f'm."candidate_{name}"' for name in mapping.events.candidate]
    from_item = ""
    if mapping.events.source_item is not None:
        further.append("coalesce(f.idx, -1)::INTEGER AS source_item")
        from_item = 'LEFT JOIN items f ON f.item_id = m."#source_item"'
    _grade(con, mapping)
    con.execute("""
        CREATE TABLE requests AS
        SELECT dense_rank() OVER (ORDER BY request_id) AS code, request_id
        FROM (SELECT DISTINCT request_id FROM mapped WHERE request_id IS NOT NULL)""")
    con.execute(f"""
        CREATE TABLE events AS
        SELECT u.idx AS user, i.idx AS item, epoch_us(m.ts) AS ts, m."#grade" AS grade,
               coalesce(s.code, -1)::SMALLINT AS surface,
               coalesce(a.code, -1)::SMALLINT AS arm,
               coalesce(m.organic::INTEGER, -1)::TINYINT AS organic,
               coalesce(r.code, -1) AS request,
               m.position, m.propensity, m."#pairable" AS pairable{"".join(f", {column}" for column in further)}
        FROM graded m JOIN users u USING (user_id) JOIN items i USING (item_id)
        LEFT JOIN surfaces s ON s.surface = m.surface LEFT JOIN arms a ON a.arm = m.arm
        LEFT JOIN requests r ON r.request_id = m.request_id {from_item}
        ORDER BY m.ts, m.source_row""")


def _write_codes(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Write the table `<name>s`: a code for each value of a column of `mapped`, in their order."""
    con.execute(f"""
        CREATE TABLE {name}s AS SELECT (row_number() OVER (ORDER BY {name}) - 1) AS code, {name}
        FROM (SELECT DISTINCT {name} FROM mapped WHERE {name} IS NOT NULL)""")
    count = con.execute(f"SELECT count(*) FROM {name}s").fetchall()[0][0]
    if count > MOST_CODES[name]:
        raise PairliftError(
            f"[events] {name}: at most {MOST_CODES[name]:,} different ones were expected, found {count:,}"
        )
