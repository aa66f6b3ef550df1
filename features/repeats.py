"""Events that a source has more than once: one `event_id`, because a batch was sent to two servers, say."""

import logging

import duckdb

from features.errors import PairliftError

log = logging.getLogger(__name__)

#: of rows with ids; with more repeats than this, a column that was not asked for is none of ids
MOST = 0.9


def drop_repeats(con: duckdb.DuckDBPyConnection, source: str, *, asked: bool) -> None:
    """Delete the rows of the table `mapped` that repeat the `#event_id` (text) of another, and then that column.

    The one with the earliest `ts` stays; of the same `ts`, the first of the source. NULL repeats nothing. How many went
    is in the new table `repeats`, NULL where no event has an id. asked: whether the TOML names the event id. Raises
    PairliftError where it does not, and nearly all rows are repeats.
    """
    twice = 'SELECT "#event_id" FROM mapped WHERE "#event_id" IS NOT NULL GROUP BY 1 HAVING count(*) > 1'
    con.execute(f"""
        CREATE TEMP TABLE repeated AS SELECT source_row FROM mapped WHERE "#event_id" IN ({twice})
        QUALIFY row_number() OVER (PARTITION BY "#event_id" ORDER BY ts, source_row) > 1""")
    counts = 'SELECT (SELECT count(*) FROM repeated), count("#event_id"), count(*) FROM mapped'
    count, ids, rows = con.execute(counts).fetchall()[0]
    told = f"{count:,} of {rows:,} rows of {source!r} repeat the event_id of another"
    if not asked and ids and count > MOST * ids:
        raise PairliftError(
            f'{told}: does it name events? If it does, write event_id = "event_id" into [events]; if not, '
            'event_id = "NULL"'
        )
    if count:
        log.warning("%s: the first of each is kept", told)
        con.execute("DELETE FROM mapped WHERE source_row IN (FROM repeated)")
    con.execute("CREATE TABLE repeats AS SELECT ?::BIGINT AS rows", [count if ids else None])
    con.execute('ALTER TABLE mapped DROP COLUMN "#event_id"')
