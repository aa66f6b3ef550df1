"""Events that a source has more than once: one `event_id`, because a batch was sent to two servers, say."""

import logging
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from features.errors import PairliftError
from features.log.sources import brief, parquet_columns

log = logging.getLogger(__name__)

#: rows of one id on average, at most, of a column that was not asked for: a log of which all was sent to three servers
TIMES = 3


def drop_repeats(con: duckdb.DuckDBPyConnection, source: str, *, asked: bool) -> None:
    """Delete the rows of the table `mapped` that repeat the `#event_id` (text) of another, and then that column.

    The one with the earliest `ts` stays; of the same `ts`, the first of the source. NULL repeats nothing. How many went
    is in the new table `repeats`, NULL where no event has an id. asked: whether the TOML names the event id. Raises
    PairliftError where it does not, and an id stands more than TIMES times on average.
    """
    twice = 'SELECT "#event_id" FROM mapped WHERE "#event_id" IS NOT NULL GROUP BY 1 HAVING count(*) > 1'
    con.execute(f"""
        CREATE TEMP TABLE repeated AS SELECT source_row FROM mapped WHERE "#event_id" IN ({twice})
        QUALIFY row_number() OVER (PARTITION BY "#event_id" ORDER BY ts, source_row) > 1""")
    counts = 'SELECT (SELECT count(*) FROM repeated), count("#event_id"), count(*) FROM mapped'
    count, ids, rows = con.execute(counts).fetchall()[0]
    found = f"{count:,} of {rows:,} rows of {brief(source)} repeat the event_id of another"
    if not asked and ids and ids > TIMES * (ids - count):
        raise PairliftError(
            f'{found}: does it name events? If it does, write event_id = "event_id" into [events]; if not, '
            'event_id = "NULL"'
        )
    if count:
        log.warning("%s: the first of each is kept", found)
        con.execute("DELETE FROM mapped WHERE source_row IN (FROM repeated)")
    con.execute("CREATE TABLE repeats AS SELECT ?::BIGINT AS rows", [count if ids else None])
    con.execute('ALTER TABLE mapped DROP COLUMN "#event_id"')


def refuse_other_kind(source: str, files: Sequence[Path], kind: str) -> None:
    """Raise PairliftError where a Parquet file has text event ids and DuckDB reads them as another kind.

    Without union_by_name it takes the kind of the first file for all, so "007" and "7" would be one. kind: of the
    source's column `event_id`.
    """
    odd = next((file for file in files if kind != "VARCHAR" and _has_text_ids(file)), None)
    if odd is not None:
        raise PairliftError(
            f"[events] source = {brief(source)}: event_id is text in {odd.name} but {kind} as the files are read, so "
            "that '007' and '7' would be one: write read_parquet('…', union_by_name=true), which reads all as text"
        )


def _has_text_ids(file: Path) -> bool:
    kind = {name.lower(): kind for name, kind in parquet_columns(file).items()}.get("event_id")
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))
