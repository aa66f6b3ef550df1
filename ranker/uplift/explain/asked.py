"""Slices that `[uplift.slices]` asks for in SQL, and the days of the test, by DuckDB over the imported log."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from features.errors import PairliftError
from features.log.sources import explained
from features.pairing.groups import Groups
from features.schema import DAY
from ranker.training.arms import Arms
from ranker.training.prepared import Prepared
from ranker.uplift.explain.steady import unsteady

#: values that a slice may have: more are no table that one reads
MOST_VALUES = 50
#: days of a test that are slices by themselves; of a longer one its weeks are
MOST_DAYS = 14
UNKNOWN = "unknown"


def check_asked(prepared: Prepared) -> None:
    """Raise PairliftError for SQL of `[uplift.slices]` that the log cannot answer."""
    asked_labels(prepared, prepared.groups.of("test"), prepared.config.uplift.slices)


def row_labels(arms: Arms) -> dict[str, Any]:
    """Return text[n] of the test's rows by kind: `day_labels`, and `asked_labels` of the TOML, which raise."""
    prepared, groups = arms.prepared, arms.groups["test"]
    return day_labels(prepared, groups) | asked_labels(prepared, groups, prepared.config.uplift.slices)


def day_labels(prepared: Prepared, groups: Groups) -> dict[str, Any]:
    """Return text[n] of the rows by `day`, or by `week` (its Monday) of a long test, in the zone of `[time]`."""
    kind = "week" if prepared.split.t3 - prepared.split.t2 > MOST_DAYS * DAY else "day"
    requests = pa.table({"as_of": groups.requests.as_of})
    with _connected(prepared) as con:
        con.register("requests", requests)
        days = con.execute(f"SELECT strftime(date_trunc('{kind}', make_timestamptz(as_of)), '%Y-%m-%d') FROM requests")
        labels = np.array([day for (day,) in days.fetchall()], dtype=np.str_)
    return {kind: labels[groups.requests.row_request()]}


def asked_labels(prepared: Prepared, groups: Groups, asked: Mapping[str, str]) -> dict[str, Any]:
    """Return text[n] by name: for each row of the groups the value of a SQL expression; of NULL it is `unknown`.

    The expression sees the item's attributes by their names, and `user` and `context` as structs: the user's
    attributes; `as_of` (with the zone of `[time]`), `surface` and what the row's event has of `[events.context]`.
    Raises PairliftError where DuckDB cannot answer it, and where it has more than 50 values.
    """
    if not asked:
        return {}
    found = {}
    with _rows(prepared, groups) as con:
        for name, sql in asked.items():
            place = f"[uplift.slices] {name}"
            _check_repeatable(con, place, sql)
            with explained(place, sql, _hint(con)):
                values = con.execute(f'SELECT CAST(({sql}) AS VARCHAR) AS x FROM sliced ORDER BY "#row"')
                labels = values.fetchnumpy()["x"]
            found[name] = np.asarray(np.ma.filled(labels, UNKNOWN), dtype=np.str_)
            if (n := len(np.unique(found[name]))) > MOST_VALUES:
                raise PairliftError(
                    f"{place}: at most {MOST_VALUES} different values were expected, found {n:,}; write an expression "
                    "with fewer, such as a CASE or a date_trunc"
                )
    return found


def _check_repeatable(con: duckdb.DuckDBPyConnection, place: str, sql: str) -> None:
    """Refuse what another run answers in another way: a slice by chance, or by the clock, cannot be told again."""
    columns = [name for name, *_ in con.execute("DESCRIBE sliced").fetchall()]
    if found := unsteady(con, sql, columns):
        raise PairliftError(
            f"{place}: an expression that gives the same value in every run was expected, found {found}: make it of "
            "the item's, user's and context's columns"
        )


@contextmanager
def _connected(prepared: Prepared) -> Iterator[duckdb.DuckDBPyConnection]:
    """Give a connection that tells times in the zone of `[time]`."""
    with duckdb.connect() as con:
        con.execute("SET TimeZone = ?", [prepared.config.time.zone])
        yield con


@contextmanager
def _rows(prepared: Prepared, groups: Groups) -> Iterator[duckdb.DuckDBPyConnection]:
    """Give a connection whose table `sliced` has the groups' rows, with what an expression sees."""
    requests, owner = groups.requests, groups.requests.row_request()
    rows = pa.table(
        {
            "row": np.arange(len(owner)),
            "user": requests.user[owner],
            "item": requests.item,
            "event": groups.event,
            "as_of": requests.as_of[owner],
            "surface": pa.array(np.array([*prepared.catalog.surfaces, None], object)[requests.surface[owner]]),
        }
    )
    with _connected(prepared) as con:
        con.execute(f"ATTACH '{str(prepared.database).replace(chr(39), 2 * chr(39))}' AS log (READ_ONLY)")
        con.register("rows", rows)
        context = {name: f'e."context_{name}"' for name in prepared.config.events.context}
        context = {"as_of": "make_timestamptz(r.as_of)", "surface": "r.surface"} | context
        struct = ", ".join(f'"{name}" := {sql}' for name, sql in context.items())
        con.execute(f"""
            CREATE TEMP TABLE sliced AS
            SELECT r."row" AS "#row", i.* EXCLUDE (idx), u AS "user", struct_pack({struct}) AS context
            FROM rows r LEFT JOIN log.items i ON i.idx = r.item LEFT JOIN log.users u ON u.idx = r."user"
            LEFT JOIN (SELECT row_number() OVER () - 1 AS "#event", * FROM log.events) e ON e."#event" = r.event""")
        # An expression sees these columns alone: no feedback, no other event, no file.
        con.unregister("rows")
        con.execute("DETACH log")
        con.execute("SET enable_external_access = false")
        yield con


def _hint(con: duckdb.DuckDBPyConnection) -> str:
    known = [f"{name} ({kind})" for name, kind, *_ in con.execute("DESCRIBE sliced").fetchall() if name != "#row"]
    return f"a SQL expression over these was expected: {', '.join(known)}"
