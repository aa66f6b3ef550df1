"""What a TOML's `source` stands for: a path or glob, or a DuckDB table expression; and errors that say where."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import PairliftError

_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*\"""")
#: how a query begins; what follows FROM is in parentheses then
_QUERY = re.compile(r"\s*(SELECT|WITH|FROM|VALUES)\s", re.IGNORECASE)
#: characters of SQL that a sentence shows
_SHOWN = 60


@contextmanager
def explained(place: str, sql: str, hint: str, columns: Iterable[str] = ()) -> Iterator[None]:
    """Turn DuckDB's error into ours: the place in the TOML, what is wrong, the next step, and last the SQL.

    columns: that the SQL may name; of those that need quotes, the error says so.
    """
    try:
        yield
    except duckdb.Error as error:
        first = str(error).split("\n\nLINE")[0].strip()
        words = words_of_sql(sql, columns) if isinstance(error, duckdb.ParserException) else []
        lines = [f"'{word}' is a word of SQL: write the column as '\"{word}\"', in double quotes" for word in words]
        raise PairliftError("\n  ".join([f"{place}: {first}", *lines, hint, f"in {sql!r}"])) from error


def brief(sql: str) -> str:
    """Return SQL for the middle of a sentence: quoted, and no longer than a short path."""
    return repr(sql if len(sql) <= _SHOWN else f"{sql[:_SHOWN]}…")


def words_of_sql(sql: str, columns: Iterable[str]) -> list[str]:
    """Return the columns that SQL names without quotes although they are words of its own, such as `at`."""
    found = {word.lower() for word in re.findall(r"\w+", _QUOTED.sub("", sql))}
    asked = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category IN ('reserved', 'type_function')"
    with duckdb.connect() as con:
        words = {row[0] for row in con.execute(asked).fetchall()}
    return [column for column in columns if column.lower() in found & words]


def relation(source: str, data: Path) -> str:
    """Return the SQL that follows FROM for a source: a path or glob (quoted), a DuckDB table expression, or a query.

    Relative paths of either kind count from the data root, wherever the command runs.
    """
    path = _as_path(source, data)
    if path is not None:
        return _quoted(str(path))
    if _QUERY.match(source):
        source = f"({source})"

    def absolute(match: re.Match[str]) -> str:
        name = _unquoted(match[0])
        return _quoted(str(data / name)) if _files(name, data) else match[0]

    return _QUOTED.sub(absolute, source.replace("{data}", str(data).replace("'", "''")))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _unquoted(literal: str) -> str:
    mark = literal[0]
    return literal[1:-1].replace(mark * 2, mark)


def _as_path(source: str, data: Path) -> Path | None:
    """Return the path or glob that a source is, None for SQL: a table expression such as `read_csv('log.csv')`."""
    path = data / source.replace("{data}", str(data))
    # SQL may be longer than a file's name can be, which os.path takes for a file that is not there.
    sql = "(" in source or _QUERY.match(source) or source.lstrip().startswith(("'", '"'))
    return path if os.path.exists(path) or not sql else None


def _files(name: str, data: Path) -> list[Path]:
    full = data / name
    found = [full] if os.path.isfile(full) else [Path(p) for p in glob(str(full), recursive=True)]
    return sorted(p for p in found if p.is_file())


def source_files(source: str, data: Path) -> list[Path]:
    """Return the files behind a source that exist now: a path, a glob, or the quoted paths of a table expression."""
    path = _as_path(source, data)
    if path is not None:
        return _files(str(path), data)
    literals = _QUOTED.findall(source.replace("{data}", str(data).replace("'", "''")))
    return [file for literal in literals for file in _files(_unquoted(literal), data)]


def parquet_columns(file: Path) -> dict[str, pa.DataType]:
    """Return the columns of a Parquet file and their types; none where it is not Parquet, whatever its name."""
    if file.suffix != ".parquet":
        return {}
    try:
        return {column.name: column.type for column in pq.read_schema(file)}
    except pa.ArrowInvalid:
        return {}
