"""What is bad in a log is refused with its place: file and row where they are known, and the first few of them."""

from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

import duckdb

from features.errors import PairliftError
from features.log.sources import source_files
from features.schema import LARGEST_FEEDBACK

FIRST_FEW = 3
#: SQL that is true of a finite number whose 32-bit float is infinite
BEYOND = 'NOT isinf("{0}") AND "{0}" IS NOT NULL AND try_cast("{0}" AS FLOAT) IS NULL'


class Rows(NamedTuple):
    """The rows of a source, that a column `source_row` counts from 1."""

    sql: str  # the source: what follows FROM
    data: Path  # root of relative paths

    def names(self, con: duckdb.DuckDBPyConnection, rows: list[int]) -> list[str]:
        """Return `row 3 of log.csv` for each row (from 1, in its file), or `row 3` where the files are not known."""
        files = self._files(con)
        if not files:
            return [f"row {row}" for row in rows]
        found = [files[bisect_right(files, row, key=lambda file: file[0]) - 1] for row in rows]
        return [f"row {row - first + 1} of {self._short(name)}" for row, (first, name) in zip(rows, found, strict=True)]

    def _files(self, con: duckdb.DuckDBPyConnection) -> list[tuple[int, str]]:
        """Return (first row, name) of each file; [] where they are not known.

        That is: for a subquery, a column `filename` of the source's own, or a file that is read more than once.
        """
        read = source_files(self.sql, self.data)
        if len(set(read)) < len(read):
            return []
        counted = f"SELECT filename, row_number() OVER () AS row FROM {self.sql}"
        try:
            columns = [row[0].lower() for row in con.execute(f"DESCRIBE SELECT * FROM {self.sql}").fetchall()]
            if "filename" in columns:
                return []
            return con.execute(f"SELECT min(row), filename FROM ({counted}) GROUP BY filename ORDER BY 1").fetchall()
        except duckdb.Error:  # a subquery, or anything else that is not a list of files
            return []

    def _short(self, name: str) -> str:
        path = Path(name)
        return str(path.relative_to(self.data) if path.is_relative_to(self.data) else path)


def refuse(
    con: duckdb.DuckDBPyConnection, table: str, where: str, place: str, problem: str, source: Rows | None = None
) -> None:
    """Raise a PairliftError that shows how many rows of a table (or subquery) `where` is true of, and the first few.

    source: what the first column, `source_row`, counts the rows of.
    """
    count = con.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchall()[0][0]
    if not count:
        return
    # As text, for not every value of DuckDB's is one of Python's.
    rows = con.execute(f"SELECT COLUMNS(*)::VARCHAR FROM {table} WHERE {where} LIMIT {FIRST_FEW}").fetchall()
    shown = [str(row) for row in rows]
    if source is not None:
        names = source.names(con, [int(row[0]) for row in rows])
        shown = [f"{name}: {row[1:]}" for name, row in zip(names, rows, strict=True)]
    lines = "\n".join(f"    {line}" for line in shown)
    raise PairliftError(f"{place}: {problem} in {count:,} rows; the first of them:\n{lines}")


def refuse_numbers(con: duckdb.DuckDBPyConnection, table: str, places: dict[str, str], source: Rows) -> None:
    """Refuse infinite numbers in the FLOAT and DOUBLE columns of a table. places: column to its place in the TOML."""
    for column, kind, *_ in con.execute(f"DESCRIBE {table}").fetchall():
        if kind in ("FLOAT", "DOUBLE") and column in places:
            refuse(con, table, f'isinf("{column}")', places[column], "an infinite number", source)


def refuse_beyond_float(con: duckdb.DuckDBPyConnection, table: str, places: dict[str, str], source: Rows) -> None:
    """Refuse finite numbers that a 32-bit float cannot hold, in the given DOUBLE columns of a table."""
    hint = "(mend it, or let CASE WHEN abs(…) < 3.4e38 THEN … END make it unknown)"
    for column, place in places.items():
        refuse(con, table, BEYOND.format(column), place, f"a number beyond a 32-bit float {hint}", source)


def refuse_vectors(con: duckdb.DuckDBPyConnection, table: str, places: dict[str, str], source: Rows) -> None:
    """Refuse vectors with a number that is not finite, and those of another length than most, in FLOAT[] columns."""
    for column, place in places.items():
        odd = f'len(list_filter("{column}", lambda x: x IS NULL OR NOT isfinite(x))) > 0'
        problem = "a vector with NULL or a number that is not finite (NULL in the vector's place: unknown)"
        refuse(con, table, odd, place, problem, source)
        width = con.execute(f'SELECT mode(len("{column}")) FROM {table}').fetchall()[0][0]
        if width is not None:
            problem = f"a vector that has not {width} numbers, as most of this column have,"
            refuse(con, table, f'len("{column}") <> {width}', place, problem, source)


def refuse_large_feedback(con: duckdb.DuckDBPyConnection, table: str, places: dict[str, str], source: Rows) -> None:
    """Refuse numbers beyond LARGEST_FEEDBACK in the given DOUBLE columns of a table."""
    most = f"{LARGEST_FEEDBACK:g}"
    problem = (
        f"a number beyond {most}, beside which running sums lose other values (scale the column, for example seconds "
        f"in place of microseconds, or let CASE WHEN abs(…) <= {most} THEN … END make it unknown)"
    )
    for column, place in places.items():
        # Not a number says nothing, and stands above all numbers.
        refuse(con, table, f'NOT isnan("{column}") AND abs("{column}") > {LARGEST_FEEDBACK!r}', place, problem, source)
