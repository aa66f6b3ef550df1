"""What a TOML's `source` stands for: a path or glob, or a DuckDB table expression; and errors that say where."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import PairliftError

_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*\"""")


@contextmanager
def explained(what: str, hint: str) -> Iterator[None]:
    """Turn DuckDB's error into ours, with the place in the TOML and the next step."""
    try:
        yield
    except duckdb.Error as error:
        first = str(error).split("\n\nLINE")[0].strip()
        raise PairliftError(f"{what}: {first}\n  {hint}") from error


def relation(source: str, data: Path) -> str:
    """Return the SQL that follows FROM for a source: a path or glob (quoted), or a DuckDB table expression.

    Relative paths of either kind count from the data root, wherever the command runs.
    """
    path = _as_path(source, data)
    if path is not None:
        return _quoted(str(path))

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
    """Return the path or glob that a source is, None for a table expression such as `read_csv('log.csv')`."""
    path = data / source.replace("{data}", str(data))
    # An expression may be longer than a file's name can be, which os.path takes for a file that is not there.
    return path if os.path.exists(path) or "(" not in source else None


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
