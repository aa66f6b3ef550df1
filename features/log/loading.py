"""The tables that `features.log.dataset` writes, as arrays."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from features.schema import F32, NO_CONTEXT, NO_GIVEN, NO_SOURCES_OF_EVENTS, Attribute, Catalog, EventLog, Ids


def load_log(database: Path, coded: Catalog | None = None) -> tuple[EventLog, Catalog]:
    """Read what `import_log` wrote. coded: whose codes of `[events.context]` the events have; None: the log's own."""
    with duckdb.connect(str(database), read_only=True) as con:
        arrays = con.execute("SELECT * FROM events").fetchnumpy()
        names = tuple(name.removeprefix("feedback_") for name in arrays if name.startswith("feedback_"))
        feedback = [np.ma.filled(arrays[f"feedback_{name}"].astype(np.float32), np.nan) for name in names]
        log = EventLog(
            **{
                name: np.ascontiguousarray(arrays[name])
                for name in ("user", "item", "ts", "grade", "surface", "arm", "organic", "request", "pairable")
            },
            feedback=np.stack(feedback, axis=1) if names else np.empty((len(arrays["ts"]), 0), np.float32),
            feedback_names=names,
            source_item=arrays["source_item"][:, None] if "source_item" in arrays else NO_SOURCES_OF_EVENTS,
        )
        surfaces, arms = (_names(con, name) for name in ("surface", "arm"))
        user_ids, user_attributes = _load_side(con, "users")
        item_ids, item_attributes = _load_side(con, "items")
        contexts, candidates = (_vocabularies(con, table) for table in ("context", "candidate"))
    known = contexts if coded is None else coded.contexts
    return replace(log, context=_coded(database, "context", known) if known else NO_CONTEXT), Catalog(
        user_ids=user_ids,
        item_ids=item_ids,
        surfaces=surfaces,
        arms=arms,
        item_attributes=item_attributes,
        user_attributes=user_attributes,
        contexts=contexts,
        candidates=candidates,
    )


def _names(con: duckdb.DuckDBPyConnection, name: str) -> tuple[str, ...]:
    """Return the surfaces, or the arms, in the order of their codes."""
    return tuple(row[0] for row in con.execute(f"SELECT {name} FROM {name}s ORDER BY code").fetchall())


def _vocabularies(con: duckdb.DuckDBPyConnection, table: str) -> tuple[Attribute, ...]:
    """Return the columns of `[events.context]` or `[events.candidate]`, with the values of those that are text."""
    found = [(row[0], row[1]) for row in con.execute("DESCRIBE events").fetchall() if row[0].startswith(f"{table}_")]
    return tuple(_load_vocabulary(con, column, column.removeprefix(f"{table}_"), kind) for column, kind in found)


def _load_vocabulary(con: duckdb.DuckDBPyConnection, column: str, name: str, kind: str) -> Attribute:
    if kind != "VARCHAR":
        return Attribute(name, "numeric")
    asked = f'SELECT DISTINCT "{column}" FROM events WHERE "{column}" IS NOT NULL ORDER BY 1'
    return Attribute(name, "categorical", values=tuple(row[0] for row in con.execute(asked).fetchall()))


def load_given(database: Path, catalog: Catalog) -> F32:
    """Return float32[n, c] of the events of `load_log`: numbers, codes of `Catalog.candidates`, NaN where unknown."""
    return _coded(database, "candidate", catalog.candidates) if catalog.candidates else NO_GIVEN


def _coded(database: Path, table: str, attributes: tuple[Attribute, ...]) -> F32:
    """Return float32[n, c]: of each event the numbers, and the codes of text, of the columns `<table>_<name>`."""
    columns = []
    with duckdb.connect(str(database), read_only=True) as con:
        for known in attributes:
            read = f'"{table}_{known.name}"'
            if known.kind == "categorical":
                con.register("vocabulary", pa.table({"value": list(known.values), "code": range(len(known.values))}))
                joined = f"events LEFT JOIN vocabulary ON value = {read}"
                read, source = "code", f"(SELECT code, events.rowid AS place FROM {joined}) ORDER BY place"
            else:
                source = "events"
            values = con.execute(f"SELECT {read}::FLOAT AS x FROM {source}").fetchnumpy()["x"]
            columns.append(np.ma.filled(values.astype(np.float32), np.nan))
    return np.stack(columns, axis=1)


def load_request_codes(database: Path) -> dict[str, int]:
    """Return the code in `EventLog.request` of each request id of the log."""
    with duckdb.connect(str(database), read_only=True) as con:
        return {name: code for code, name in con.execute("SELECT code, request_id FROM requests").fetchall()}


def load_texts(database: Path) -> tuple[str, ...]:
    """Return the names of those of [events.columns] that are text."""
    with duckdb.connect(str(database), read_only=True) as con:
        return tuple(row[0] for row in con.execute("SELECT name FROM texts").fetchall())


def load_repeats(database: Path) -> int | None:
    """Return how many rows the import dropped, for they repeated an event id; None where the log has no event ids."""
    with duckdb.connect(str(database), read_only=True) as con:
        found = con.execute("SELECT rows FROM repeats").fetchall()[0][0]
        return None if found is None else int(found)


def _load_side(con: duckdb.DuckDBPyConnection, table: str) -> tuple[Ids, tuple[Attribute, ...]]:
    described = con.execute(f"DESCRIBE {table}").fetchall()
    key, *columns = [(row[0], row[1]) for row in described][1:]
    ids = con.execute(f"SELECT {key[0]} FROM {table} ORDER BY idx").fetchnumpy()[key[0]]
    attributes = tuple(_load_attribute(con, table, name, kind) for name, kind in columns)
    return np.asarray(ids), attributes


def _load_attribute(con: duckdb.DuckDBPyConnection, table: str, name: str, kind: str) -> Attribute:
    if kind == "FLOAT[]":
        return Attribute(name, "vector", numbers=_vectors(con, table, name))
    expression = f'"{name}".text' if kind.startswith("STRUCT") else f'"{name}"'
    raw = [row[0] for row in con.execute(f"SELECT {expression} FROM {table} ORDER BY idx").fetchall()]
    if kind.startswith("STRUCT"):
        return Attribute(name, "text", values=tuple("" if v is None else v for v in raw))
    if kind == "FLOAT":
        numbers = np.array([np.nan if v is None else v for v in raw], np.float32)
        return Attribute(name, "numeric", numbers=numbers)
    if kind == "VARCHAR":
        values = sorted({v for v in raw if v is not None})
        code = {v: k for k, v in enumerate(values)}
        codes = np.array([-1 if v is None else code[v] for v in raw], np.int32)
        return Attribute(name, "categorical", codes=codes, values=tuple(values))
    return _multi(name, raw)


def _vectors(con: duckdb.DuckDBPyConnection, table: str, name: str) -> F32:
    """Return float32[n, d], of NaN where there is no vector; the import saw to it that all have one length."""
    column = con.sql(f'SELECT "{name}" AS v FROM {table} ORDER BY idx').to_arrow_table()["v"].combine_chunks()
    there = np.asarray(column.is_valid())
    flat = column.flatten().to_numpy(zero_copy_only=False)
    vectors = np.full((len(column), len(flat) // max(int(there.sum()), 1)), np.nan, np.float32)
    vectors[there] = flat.reshape(int(there.sum()), vectors.shape[1])
    return vectors


def _multi(name: str, raw: list[Any]) -> Attribute:
    # A value that one item lists twice counts once.
    lists = [sorted({v for v in row or () if v}) for row in raw]
    values = sorted({v for row in lists for v in row})
    code = {v: k for k, v in enumerate(values)}
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(np.int64)
    codes = np.array([code[v] for row in lists for v in row], np.int32)
    return Attribute(name, "multi", codes=codes, offsets=offsets, values=tuple(values))
