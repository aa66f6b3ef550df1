"""Which recorded events an import read, so that a server of its log counts each event once.

The server exports a closed segment of its log as Parquet whose rows say which segment and frame they are from. An
import notes the frames of each segment that it read a row of. What its SQL leaves out of such a frame (bots, say)
counts as read; a frame that it leaves out as a whole does not, and a server adds it.
"""

import logging
import re
import sys
from bisect import bisect_right
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import PairliftError
from features.log.segments import FRAME, SEGMENT, first_number, read_segment, segment_files, segment_name
from features.log.sources import brief, parquet_columns, relation
from features.settings import EventsSettings

log = logging.getLogger(__name__)

#: name of a segment -> the frames of it that were read, as ranges (first, last) in their order, with gaps between them
Recorded = dict[str, list[tuple[int, int]]]
_EXPORTED = re.compile(r"\d{20}")


def recorded_in(con: duckdb.DuckDBPyConnection, table: str) -> Recorded:
    """Return the segments and frames of the rows of a table (or file) with the columns SEGMENT and FRAME."""
    ranges = con.execute(f"""
        SELECT segment, min(frame), max(frame) FROM (
            SELECT segment, frame, frame - row_number() OVER (PARTITION BY segment ORDER BY frame) AS run
            FROM (SELECT DISTINCT {SEGMENT} AS segment, {FRAME} AS frame FROM {table} WHERE {SEGMENT} IS NOT NULL))
        GROUP BY segment, run ORDER BY 1, 2""").fetchall()
    return _by_segment(ranges)


def _by_segment(ranges: Sequence[tuple[str, int, int]]) -> Recorded:
    found: Recorded = {}
    for segment, first, last in ranges:
        found.setdefault(segment, []).append((first, last))
    return found


def joined(one: Recorded, other: Recorded) -> Recorded:
    """Return what was read in either: a copy of a log may have less of a segment than the log."""
    return {name: _union(one.get(name, []) + other.get(name, [])) for name in sorted(one.keys() | other.keys())}


def _union(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if out and first <= out[-1][1] + 1:
            out[-1] = out[-1][0], max(out[-1][1], last)
        else:
            out.append((first, last))
    return out


def recorded_in_files(con: duckdb.DuckDBPyConnection, files: Sequence[Path], *, marked: bool) -> Recorded:
    """Return what whole files have of recorded segments, where the rows that were read do not say it.

    marked: the rows say it, so that only files from before exports said it are looked at: a file that is named like an
    export, without the columns, is the whole of the segment `../<same name>.log`.
    """
    found: Recorded = {}
    for file in files:
        columns = parquet_columns(file)
        if SEGMENT in columns and FRAME in columns:
            if not marked:
                found = joined(found, recorded_in(con, relation(str(file), file.parent)))
        elif _EXPORTED.fullmatch(file.stem) and "event_id" in columns:
            found = joined(found, _of_old_export(file))
    return found


def warn_of_a_cut(con: duckdb.DuckDBPyConnection, files: Sequence[Path], source: str) -> None:
    """Warn where the table `mapped`, whose rows do not say where they are from, lacks rows of exported files."""
    whole = sum(pq.read_metadata(file).num_rows for file in files if SEGMENT in parquet_columns(file))
    read = con.execute("SELECT count(*) FROM mapped").fetchall()[0][0]
    if read < whole:
        log.warning(
            "%s: %s rows were read, but the exported files have %s, and count as read whole: the others are neither "
            "trained on nor served. Select the columns %s and %s too, and a server adds them",
            *(brief(source), f"{read:,}", f"{whole:,}", SEGMENT, FRAME),
        )


def warn_of_lost_columns(
    con: duckdb.DuckDBPyConnection, settings: EventsSettings, origin: str, names: Sequence[str]
) -> None:
    """Warn where the rows of recorded events in `mapped` lack what the source has of them under the TOML's name.

    The export has the TOML's names, and an expression that reads the old log's column finds none of it there. origin:
    the source as what follows FROM, with the column SEGMENT; names: of its columns.
    """
    lost = []
    for table in ("feedback", "columns", "context", "candidate"):
        for name, sql in getattr(settings, table).items():
            column = f"{table}_{name}" if table in ("context", "candidate") else name
            if name in names and not _known(con, "mapped", column) and _known(con, origin, name):
                lost.append(f"[events.{table}] {name} = {sql!r}")
    if lost:
        log.warning(
            "%s: no recorded event has a value of %s, though the source has them under that name, as a server exports "
            "them. Give the old log's column the same name in a SELECT (see the README), or write coalesce(…)",
            *(brief(settings.source), ", ".join(lost)),
        )


def _known(con: duckdb.DuckDBPyConnection, table: str, column: str) -> bool:
    """Tell whether a column is known of any recorded event of a table."""
    found = con.execute(f'SELECT 1 FROM {table} WHERE {SEGMENT} IS NOT NULL AND "{column}" IS NOT NULL LIMIT 1')
    return found.fetchone() is not None


def _of_old_export(file: Path) -> Recorded:
    segment = file.parent.parent / f"{file.stem}.log"
    if not segment.exists():
        if not _begins_behind(segment):
            log.warning(
                "%s has recorded events but does not say of which log, and no %s lies above it: if a server has them "
                "in its log, they count twice there. Name the file where it lies in that log's own events/",
                *(file, segment.name),
            )
        return {}
    last = first_number(segment) - 1 + sum(1 for _ in read_segment(segment, last=False))
    return {segment_name(segment): [(first_number(segment), last)]}


def _begins_behind(segment: Path) -> bool:
    """Tell whether a log has deleted its oldest segments, with this one: its server cannot have those events."""
    rest = segment_files(segment.parent)
    return first_number(rest[0]) > first_number(segment) if rest else (segment.parent / "lock").exists()


def same_files(before: Recorded, after: Recorded, source: str) -> None:
    """Raise PairliftError where a server exported a file while they were read."""
    if before != after:
        raise PairliftError(f"[events] source = {brief(source)}: files came or went while they were read; run it again")


def write_recorded(con: duckdb.DuckDBPyConnection, recorded: Recorded) -> None:
    """Write the table `recorded` of an import."""
    con.execute("CREATE TABLE recorded (segment VARCHAR, first BIGINT, last BIGINT)")
    rows = [[segment, *ends] for segment, ranges in recorded.items() for ends in ranges]
    if rows:
        columns = {name: [row[k] for row in rows] for k, name in enumerate(("segment", "first", "last"))}
        con.register("ranges", pa.table(columns))
        con.execute("INSERT INTO recorded FROM ranges")
        con.unregister("ranges")


def load_recorded(database: Path) -> Recorded:
    """Read what `import_log` noted."""
    with duckdb.connect(str(database), read_only=True) as con:
        rows = con.execute("SELECT segment, first, last FROM recorded ORDER BY segment, first").fetchall()
    return _by_segment(rows)


class Frames:
    """Numbers of frames, as ranges (first, last) that do not overlap."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self._ranges = sorted(ranges)
        self._firsts = [first for first, _ in self._ranges]

    def __len__(self) -> int:
        return len(self._ranges)

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._firsts, number) - 1
        return place >= 0 and number <= self._ranges[place][1]


def frames_of(folder: Path, recorded: Recorded) -> Frames:
    """Return the frames of a log that were read: those that a segment of the very name has.

    The same segment of another copy may have more, and this log other frames of these numbers, in its next segment.
    """
    firsts = {name.partition("-")[0] for name in recorded}
    ranges: list[tuple[int, int]] = []
    for path, behind in zip_longest(files := segment_files(folder), files[1:]):
        if path.stem in firsts:
            end = first_number(behind) - 1 if behind is not None else sys.maxsize
            ranges += [(first, min(last, end)) for first, last in recorded.get(segment_name(path), []) if first <= end]
    return Frames(ranges)
