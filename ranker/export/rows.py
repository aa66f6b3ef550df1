"""Training rows in a file: a row for each impression, with its features strictly before its group's `as_of`.

Neither the state of the whole log nor the whole matrix stands in memory: groups go block by block in time order through
`features.blocks.training_rows`, and each block goes through Arrow to DuckDB or Parquet. A block costs about the events
before its end, so fewer and larger blocks (more memory) are faster.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.blocks import training_rows
from features.errors import PairliftError
from features.files import written
from features.log.sources import source_files
from features.pairing.groups import Groups
from features.pairing.heavy import heavy_user_lines
from features.pairing.pairs import weight_table
from features.pairing.split import PERIODS
from features.progress import progress_bar
from features.schema import F32, I64
from ranker.config import Config
from ranker.export.labels import Labels, indexes, moments
from ranker.training.prepared import Grouped, group_log

logger = logging.getLogger(__name__)

DUCKDB, PARQUET, TABLE = ".duckdb", ".parquet", "rows"
#: columns of a row before its features
OWN = (
    "user_id", "item_id", "as_of", "ts", "request_id", "surface_name", "group_number", "period", "validation", "grade",
    "sampled",
)  # fmt: skip
#: what a block needs for each row: a matrix and, while a key is made, a copy of its columns; and what names the row
BYTES_OF_A_VALUE, BYTES_OF_A_ROW = 8, 128
#: rows that are written at once: a row group of DuckDB's
CHUNK = 122_880
#: DuckDB needs about so much to write at all
LEAST_FOR_DUCKDB = 2**28


def write_rows(config: Config, out: Path, period: str, memory: int) -> tuple[int, int, int]:
    """Write the impressions of a period (or of `all`) to `out`; return how many rows, groups and feature columns.

    memory: bytes, beside the log itself. The file is there whole or not at all. Raises PairliftError for a place that
    cannot or must not be written, a feature named as one of the row's own columns, and a period without impressions.
    """
    _check_out(out, config)
    made = group_log(config)
    _refuse_same_names(made.spec.columns)
    wanted = PERIODS if period == "all" else (period,)
    number = np.flatnonzero(np.isin(made.groups.period, [PERIODS.index(name) for name in wanted]))
    sizes = np.diff(made.groups.requests.offsets)[number]
    if not sizes.sum():
        raise PairliftError(f"[split]: {period} has no graded impressions; move t0 to t3, or see [[grades]]")
    grades, negatives = made.config.grade_names, made.config.pairing.negatives > 0
    for line in heavy_user_lines(made.log, made.catalog, made.groups, weight_table({}, grades, negatives)):
        logger.warning(line)
    put = _put_duckdb if out.suffix == DUCKDB else _put_parquet
    with progress_bar(total=int(sizes.sum()), desc="rows", unit="row", unit_scale=True, disable=_quiet()) as bar:
        put(out, _tables(made, number, sizes, memory, bar.update), memory)
    return int(sizes.sum()), len(number), len(made.spec.columns)


def _quiet() -> bool:
    return not logger.isEnabledFor(logging.INFO)


def _check_out(out: Path, config: Config) -> None:
    """Refuse, before any work, a file that is of no known kind, cannot be there, or holds something else."""
    if out.suffix not in (DUCKDB, PARQUET):
        raise PairliftError(f"--out {out}: a name that ends in {DUCKDB} or {PARQUET} was expected")
    if out.is_dir():
        raise PairliftError(f"--out {out} is a folder; name a file in it, such as {out / f'rows{out.suffix}'}")
    if not out.parent.is_dir():
        raise PairliftError(f"--out {out}: there is no folder {out.parent}; make it, or name another")
    for table in (config.events, config.items, config.users):
        if table is not None and out.resolve() in map(Path.resolve, source_files(table.source, config.data_root)):
            raise PairliftError(f"--out {out} is a source of {config.path}; name another file")
    if out.suffix == DUCKDB and out.exists():
        _refuse_other_tables(out)


def _refuse_other_tables(out: Path) -> None:
    with _explained(out), duckdb.connect(str(out), read_only=True) as con:
        names = {row[0] for row in con.execute("SELECT table_name FROM information_schema.tables").fetchall()}
    if names != {TABLE}:
        others = ", ".join(sorted(names - {TABLE})) or "none"
        raise PairliftError(
            f"--out {out} would be replaced, where a database with the table `{TABLE}` alone was expected; its other "
            f"tables: {others}. Name a new file, and ATTACH it to yours"
        )


def _blocks(sizes: I64, most: int) -> Iterator[slice]:
    """Yield slices of consecutive groups that together have at most so many rows, or one group each."""
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        before = ends[start] - sizes[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield slice(start, stop)
        start = stop


def _tables(
    made: Grouped, number: I64, sizes: I64, memory: int, progress: Callable[[int], object]
) -> Iterator[pa.Table]:
    """Yield the rows of the groups `number` as tables of at most CHUNK rows; tell `progress` of each."""
    labels = Labels.of(made.database, made.log, made.catalog, made.config.grade_names)
    # Half of the memory is the block's rows, half is for the counters that they read.
    most = memory // 2 // (BYTES_OF_A_ROW + BYTES_OF_A_VALUE * len(made.spec.columns))
    for block in _blocks(sizes, max(most, 1)):
        keep = np.zeros(len(made.groups.requests), bool)
        keep[number[block]] = True
        groups = made.groups.select(keep)
        values = _values(made, groups, memory // 2)
        for first in range(0, len(values), CHUNK):
            table = _table(made, labels, groups, number[block], values, slice(first, min(first + CHUNK, len(values))))
            yield table
            progress(len(table))


def _values(made: Grouped, groups: Groups, memory: int) -> F32:
    """Return float32[n, c] of groups in time order: events from the last `as_of` on are before none of them."""
    seen = made.log.until(int(groups.requests.as_of[-1]))
    grades, requests = made.config.grade_names, groups.requests
    return training_rows(seen, made.catalog, made.counters, grades, made.spec, requests, memory=memory)


def _table(made: Grouped, labels: Labels, groups: Groups, number: I64, values: F32, rows: slice) -> Any:
    """Return the table of some rows of a block. number: int64[g] of the block's groups in the log. NaN becomes NULL."""
    r = groups.requests
    owner, event, drawn = r.row_request()[rows], groups.event[rows], groups.sampled[rows]
    surfaces, surface = pa.array(made.catalog.surfaces, pa.string()), r.surface[owner]
    columns = labels.columns(groups, rows) | {
        "ts": moments(made.log.ts[np.maximum(event, 0)], drawn),
        "surface_name": surfaces.take(indexes(surface, surface < 0)),
        "group_number": number[owner],
        "period": pa.array(PERIODS).take(indexes(groups.period[owner])),
        "validation": groups.validation[owner],
        "sampled": drawn,
    }
    for k, name in enumerate(made.spec.columns):
        columns[name] = pa.array(np.ascontiguousarray(values[rows, k]), from_pandas=True)
    return pa.table({name: columns[name] for name in (*OWN, *made.spec.columns)})


def _refuse_same_names(columns: tuple[str, ...]) -> None:
    # DuckDB takes names that differ by case alone for one.
    taken = [name for name in columns if name.lower() in OWN]
    if taken:
        raise PairliftError(
            f"the feature {taken[0]} has the name of one of the row's own columns ({', '.join(OWN)}): rename its "
            "column in [items.columns] or [users.columns], or leave it out of [features] columns"
        )


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, duckdb.Error, pa.ArrowException) as error:
        raise PairliftError(
            f"--out {out}: {str(error).splitlines()[0]}; is the disk full, or the file in use?"
        ) from error


def _put_parquet(out: Path, tables: Iterator[Any], _: int) -> None:
    first = next(tables)
    with _explained(out), written(out) as partial, pq.ParquetWriter(partial, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _put_duckdb(out: Path, tables: Iterator[Any], memory: int) -> None:
    settings: dict[str, Any] = {"memory_limit": f"{max(memory // 4, LEAST_FOR_DUCKDB)}B"}
    with _explained(out), written(out) as partial, duckdb.connect(str(partial), config=settings) as con:
        # In one transaction what is inserted goes to the file itself and not through a log that is replayed.
        con.execute("BEGIN")
        for k, table in enumerate(tables):
            con.register("chunk", table)
            con.execute(f"CREATE TABLE {TABLE} AS FROM chunk" if k == 0 else f"INSERT INTO {TABLE} FROM chunk")
            con.unregister("chunk")
        con.execute("COMMIT")
