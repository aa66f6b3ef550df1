"""A TOML's SQL expressions: their types, and the SQL that makes the contract's columns of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb

from features.errors import PairliftError
from features.log.sources import brief, explained, relation
from features.settings import EventsSettings, ItemsSettings, UsersSettings

INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}
NUMBERS = INTEGERS | {"UBIGINT", "HUGEINT", "FLOAT", "DOUBLE", "BOOLEAN"}
#: of lists that are kept as categories without being text
WHOLE = INTEGERS | {"UBIGINT", "HUGEINT", "UHUGEINT"}
#: of event ids, which become text
ID_KINDS = INTEGERS | {"UBIGINT", "HUGEINT", "UHUGEINT", "UUID", "VARCHAR", '"NULL"'}
#: gives the SQL type of an expression, from the name of its place in the TOML and itself
Kind = Callable[[str, str], str]


def columns_of(con: duckdb.DuckDBPyConnection, table: str, source: str, data: Path) -> list[str]:
    """Return the names of a source's columns. table: that names it in the TOML. data: root of relative paths."""
    with explained(f"[{table}] source", source, f"data root is {data}; set [data] root or PAIRLIFT_DATA"):
        return [row[0] for row in con.execute(f"DESCRIBE SELECT * FROM {relation(source, data)}").fetchall()]


def type_of(con: duckdb.DuckDBPyConnection, origin: str, place: str, expression: str, columns: list[str]) -> str:
    """Return the SQL type of an expression. origin: what follows FROM. place: in the TOML. columns: to choose from."""
    hint = f"a SQL expression over these columns was expected: {', '.join(columns)}"
    with explained(place, expression, hint, columns):
        return str(con.execute(f"DESCRIBE SELECT ({expression}) AS x FROM {origin}").fetchall()[0][1])


def id_type(place: str, kind: str) -> str:
    """Return the type that ids of a SQL type are kept in: BIGINT or VARCHAR."""
    if kind in INTEGERS or kind == "VARCHAR":
        return "BIGINT" if kind in INTEGERS else "VARCHAR"
    raise PairliftError(f"{place}: ids are integers or text, found {kind}; write '(…)::BIGINT' or '(…)::VARCHAR'")


def integer_lists(table: str, settings: ItemsSettings | UsersSettings, data: Path) -> list[str]:
    """Return the names of attributes that are lists of whole numbers. table: items or users. data: as `columns_of`."""
    with duckdb.connect() as con:
        columns, origin = columns_of(con, table, settings.source, data), relation(settings.source, data)
        kinds = {
            name: type_of(con, origin, f"[{table}.columns] {name}", expression, columns)
            for name, expression in settings.columns.items()
        }
    return [name for name, kind in kinds.items() if kind.endswith("]") and kind[: kind.rindex("[")] in WHOLE]


def is_number(kind: str) -> bool:
    """Tell whether a SQL type is one of numbers, or of true and false."""
    return kind in NUMBERS or kind.startswith("DECIMAL")


def utc(place: str, expression: str, kind: str, zone: str) -> str:
    """Return the SQL of a TIMESTAMP in UTC for an expression of a time type."""
    if kind.startswith("TIMESTAMP WITH TIME ZONE") or kind == "TIMESTAMPTZ_NS":  # the latter casts to no TIMESTAMP
        return f"make_timestamp(epoch_us(({expression})::TIMESTAMPTZ))"
    if kind.startswith("TIMESTAMP") or kind == "DATE":
        quoted = zone.replace("'", "''")
        return f"make_timestamp(epoch_us(({expression})::TIMESTAMP AT TIME ZONE '{quoted}'))"
    raise PairliftError(
        f"{place} = {expression!r}: a timestamp was expected, found {kind}; "
        "for seconds since 1970 write 'to_timestamp(…)', for microseconds 'make_timestamp(…)'"
    )


@dataclass(frozen=True, slots=True)
class EventColumns:
    """What is selected of `[events]`, and the place in the TOML of the columns of numbers, by the column's name."""

    sql: dict[str, str]  # of every column of the table `mapped`
    feedback: dict[str, str]  # places
    features: dict[str, str]  # places, of `[events.context]` and `[events.candidate]`


def event_columns(settings: EventsSettings, kind: Kind, zone: str, columns: list[str]) -> EventColumns:
    """Return what to select of a source that has these columns. zone: of times without one."""
    selected = _contract(settings, kind, zone)
    feedback = _feedback(settings, kind, selected)
    features = _features(settings, "context", kind, selected) | _features(settings, "candidate", kind, selected)
    for name, expression in settings.columns.items():
        if name in selected:
            raise PairliftError(f"[events.columns] {name}: this name is taken by another column; rename it")
        kind(f"columns.{name}", expression)
        selected[name] = f"({expression})"
    if settings.source_item is not None:
        selected["#source_item"] = _source_item(settings, kind)
    selected["#event_id"] = f"nullif(({event_id(settings, kind, columns)})::VARCHAR, '')"
    return EventColumns(selected, feedback, features)


def _contract(settings: EventsSettings, kind: Kind, zone: str) -> dict[str, str]:
    """Return the SQL of each column of the contract."""
    selected = {
        name: f"({expression})::{id_type(f'[events] {name}', kind(name, expression))}"
        for name, expression in (("user_id", settings.user_id), ("item_id", settings.item_id))
    }
    selected["ts"] = utc("[events] ts", settings.ts, kind("ts", settings.ts), zone)
    for name, cast in (
        ("surface", "VARCHAR"),
        ("arm", "VARCHAR"),
        ("organic", "BOOLEAN"),
        ("request_id", "VARCHAR"),
        ("position", "INTEGER"),
        ("propensity", "DOUBLE"),
    ):
        expression = getattr(settings, name)
        if expression is not None:
            kind(name, expression)
        selected[name] = f"({expression or 'NULL'})::{cast}"
    selected["arm"] = f"nullif({selected['arm']}, '')"  # a record of no arm may say so by the empty text
    return selected


def _source_item(settings: EventsSettings, kind: Kind) -> str:
    """Return the SQL of the source item's id, of the kind of the items' ids: a recorded one is text or a fraction."""
    expression = str(settings.source_item)
    found = kind("source_item", expression)
    if not (is_number(found) or found in ("VARCHAR", '"NULL"')):
        raise PairliftError(
            f"[events] source_item = {expression!r}: the id of an item was expected, an integer or text as item_id is, "
            f"found {found}"
        )
    text = f"({expression})::VARCHAR"
    if is_number(found) and found not in INTEGERS:
        text = f"({expression})::BIGINT::VARCHAR"
    items = id_type("[events] item_id", kind("item_id", settings.item_id))
    return f"nullif({text}, '')::{items}"


def event_id(settings: EventsSettings, kind: Kind, columns: list[str]) -> str:
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
        if not is_number(found):
            raise PairliftError(
                f"[events.feedback] {name} = {expression!r}: a number or true/false was expected, found {found}"
            )
        selected[name] = f"({expression})::{'BOOLEAN' if found == 'BOOLEAN' else 'DOUBLE'}"
        if found != "BOOLEAN":
            places[name] = f"[events.feedback] {name} of {brief(settings.source)}"
    return places


def _features(settings: EventsSettings, table: str, kind: Kind, selected: dict[str, str]) -> dict[str, str]:
    """Add the columns `<table>_<name>` to `selected`; return the place in the TOML of each column of numbers.

    table: `context` or `candidate`.
    """
    places = {}
    for name, expression in getattr(settings, table).items():
        place, column = f"[events.{table}] {name}", f"{table}_{name}"
        if column in selected:
            raise PairliftError(f"{place}: its column '{column}' is taken by one of [events.feedback]; rename it")
        found = attribute_type(place, kind(f"{table}.{name}", expression))
        if found.endswith("[]"):
            raise PairliftError(f"{place} = {expression!r}: a number or text was expected, found a list")
        selected[column] = f"({expression})::{wide(found)}"
        if found == "FLOAT":
            places[column] = f"{place} of {brief(settings.source)}"
        elif table == "candidate":  # a request's column says nothing of an item by the empty text
            selected[column] = f"nullif({selected[column]}, '')"
    return places


def wide(kind: str) -> str:
    """Return the type in which a value of a kind is read, so that what a 32-bit float cannot hold is still seen."""
    return "DOUBLE" if kind == "FLOAT" else kind


def attribute_type(place: str, kind: str) -> str:
    """Return the type that an attribute of a SQL type is kept in: FLOAT, VARCHAR, VARCHAR[] or, a vector, FLOAT[]."""
    if kind.endswith("]"):  # a list, or an array of a fixed length: of fractions it is a vector, of integers categories
        element = kind[: kind.rindex("[")]
        return "FLOAT[]" if element in ("FLOAT", "DOUBLE") or element.startswith("DECIMAL") else "VARCHAR[]"
    if is_number(kind):
        return "FLOAT"
    if kind == "VARCHAR" or kind.startswith("ENUM"):
        return "VARCHAR"
    raise PairliftError(f"{place}: a number, text or a list of text was expected, found {kind}; write a cast")
