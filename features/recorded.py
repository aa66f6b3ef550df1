"""Which recorded events an import read, so that a server of its log counts each event once.

The server exports a closed segment of its log as Parquet whose rows say which segment and frame they are from. An
import notes, of each segment, the first and the last frame that it read a row of. What its SQL leaves out between the
two (bots, say) counts as read; what it leaves out at the ends (all from some time on) does not.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import PairliftError
from features.segments import FRAME, SEGMENT, first_number, read_segment, segment_name
from features.sources import relation

log = logging.getLogger(__name__)

#: name of a segment -> first and last frame of it that was read
Recorded = dict[str, tuple[int, int]]
_EXPORTED = re.compile(r"\d{20}")


def recorded_in(con: duckdb.DuckDBPyConnection, table: str) -> Recorded:
    """Return what the rows of a table (or file) with the columns SEGMENT and FRAME say that they are."""
    found = con.execute(
        f"SELECT {SEGMENT}, min({FRAME}), max({FRAME}) FROM {table} WHERE {SEGMENT} IS NOT NULL GROUP BY 1 ORDER BY 1"
    ).fetchall()
    return {segment: (first, last) for segment, first, last in found}


def recorded_in_files(con: duckdb.DuckDBPyConnection, files: Sequence[Path], *, marked: bool) -> Recorded:
    """Return what whole files have of recorded segments, where the rows that were read do not say it.

    marked: the rows say it, so that only files from before exports said it are looked at: a file that is named like an
    export, without the columns, is the whole of the segment `../<same name>.log`.
    """
    found: Recorded = {}
    for file in files:
        columns = _columns(file)
        if SEGMENT in columns and FRAME in columns:
            if not marked:
                found |= recorded_in(con, relation(str(file), file.parent))
        elif _EXPORTED.fullmatch(file.stem) and "event_id" in columns:
            found |= _of_old_export(file)
    return found


def _columns(file: Path) -> list[str]:
    if file.suffix != ".parquet":
        return []
    try:
        return list(pq.read_schema(file).names)
    except pa.ArrowInvalid:  # it is no Parquet, whatever its name
        return []


def _of_old_export(file: Path) -> Recorded:
    segment = file.parent.parent / f"{file.stem}.log"
    if not segment.exists():
        log.warning(
            "%s has recorded events but does not say of which log, and no %s lies above it: if a server has them in "
            "its log, they count twice there. Export it anew: delete it from that log's events/ and start the server",
            *(file, segment.name),
        )
        return {}
    last = first_number(segment) - 1 + sum(1 for _ in read_segment(segment, last=False))
    return {segment_name(segment): (first_number(segment), last)}


def same_files(before: Recorded, after: Recorded, source: str) -> None:
    """Raise PairliftError where a server exported a file while they were read."""
    if before != after:
        raise PairliftError(f"[events] source = {source!r}: files came or went while they were read; run it again")


def write_recorded(con: duckdb.DuckDBPyConnection, recorded: Recorded) -> None:
    """Write the table `recorded` of an import."""
    con.execute("CREATE TABLE recorded (segment VARCHAR, first BIGINT, last BIGINT)")
    if recorded:
        con.executemany("INSERT INTO recorded VALUES (?, ?, ?)", [[s, *ends] for s, ends in recorded.items()])


def load_recorded(database: Path) -> Recorded:
    """Read what `import_log` noted."""
    with duckdb.connect(str(database), read_only=True) as con:
        rows = con.execute("SELECT segment, first, last FROM recorded ORDER BY segment").fetchall()
    return {segment: (first, last) for segment, first, last in rows}
