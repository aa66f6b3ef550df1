"""Pairs in files, in and out: CatBoost's pairs description and Parquet, and beside them the rows that they count.

A file whose name ends in `.parquet` has the columns `winner`, `loser`, `weight` and `sampled` (the loser was drawn, not
shown). One that ends in `.tsv`, `.txt` or `.pairs` is CatBoost's: `winner loser weight`, separated by tabs, without a
header. Rows count from 0 in the impressions of a slice, in which the members of a group stand together.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from features.errors import PairliftError
from features.files import written
from features.pairing.groups import Groups
from features.pairing.pairs import Pairs, make_pairs
from features.schema import F32, I64, Bool
from ranker.config import Config
from ranker.export.labels import Labels
from ranker.training.prepared import Prepared, prepare

logger = logging.getLogger(__name__)

PARQUET, TEXT = ".parquet", (".tsv", ".txt", ".pairs")
FIRST_FEW = 3


def rows_path(path: Path) -> Path:
    """Return where the rows of a pairs file stand: `train.tsv` has `train.rows.parquet` beside it."""
    return path.with_name(f"{path.stem}.rows.parquet")


def export_pairs(config: Config, name: str, out: Path) -> tuple[Pairs, Groups]:
    """Write the pairs of the slice `train`, `validation` or `test` to `out`, and their rows beside it.

    Those of `train` are what a booster of the first seed learns from: capped, weighed for exposure and age.
    """
    _kind(out)
    prepared = prepare(config)
    groups = prepared.slices()[name]
    learned = name == "train"
    seed = config.uplift.seeds[0]
    pairs = prepared.training_pairs(groups, seed) if learned else make_pairs(groups, prepared.weights)
    _put(rows_path(out), lambda file: pq.write_table(_rows(prepared, groups), file))
    write_pairs(out, pairs)
    return pairs, groups


def write_pairs(path: Path, pairs: Pairs) -> None:
    """Write pairs as Parquet or as CatBoost's text, by the suffix. Weights read back are the same float32."""
    columns = {"winner": pairs.winner, "loser": pairs.loser, "weight": pairs.weight}
    if _kind(path) == PARQUET:
        _put(path, lambda file: pq.write_table(pa.table(columns | {"sampled": pairs.sampled}), file))
        return
    options = pa.csv.WriteOptions(include_header=False, delimiter="\t")
    _put(path, lambda file: pa.csv.write_csv(pa.table(columns), file, options))


def read_pairs(path: Path, groups: Groups) -> Pairs:
    """Read pairs over the rows of `groups`, in the order of (winner, loser), and refuse what cannot be learned from.

    Without a third column every pair weighs 1, as in CatBoost. A pair of weight 0 is left out, and one that stands
    several times weighs the sum, which is what the loss would make of it; both are said in the log. Two rows may be a
    pair both ways. Whether a loser was drawn is known from its row, not from the file.

    Raises PairliftError for a row that is not there, a row against itself or against another group's, a weight that
    is negative or no finite number, rows beside the file that are not those of `groups`, and for a file without pairs.
    """
    winner, loser, weight = _read(path)
    n, group = len(groups.event), groups.requests.row_request()
    given = (winner, loser, weight)
    inside = (np.minimum(winner, loser) >= 0) & (np.maximum(winner, loser) < n)
    _refuse(path, ~inside, given, f"rows from 0 to {n - 1:,}, the impressions of the slice, were expected")
    _refuse(path, winner == loser, given, "a winner other than the loser was expected")
    _refuse(path, group[winner] != group[loser], given, "winner and loser of one pairing group were expected")
    _refuse(path, ~(np.isfinite(weight) & (weight >= 0)), given, "a finite weight, not below zero, was expected")
    _check_rows(path, groups)
    kept = weight > 0
    if not kept.any():
        raise PairliftError(f"{path} has no pairs of a weight above zero: there is nothing to learn from")
    key, place = np.unique(winner[kept] * n + loser[kept], return_inverse=True)
    total = np.bincount(place, weight[kept]).astype(np.float32)
    for count, what in ((np.sum(~kept), "of weight 0 left out"), (kept.sum() - len(key), "that repeat others summed")):
        if count:
            logger.warning("%s: %d pairs %s", path, count, what)
    rows = (key // n).astype(np.int32), (key % n).astype(np.int32)
    return Pairs(*rows, total, groups.sampled[rows[1]])


def _kind(path: Path) -> str:
    if path.suffix not in (PARQUET, *TEXT):
        raise PairliftError(f"{path}: a name that ends in {PARQUET}, {', '.join(TEXT)} (as CatBoost's) was expected")
    return path.suffix


def _put(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file whole or not at all."""
    with written(path) as partial, partial.open("wb") as file:  # whose errors name the file
        write(file)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        problem = str(error).split("\n")[0]
        raise PairliftError(
            f"{path}: {problem}; lines 'winner<tab>loser<tab>weight' or Parquet with these columns were expected, rows "
            "as integers; `pairlift pairs` writes both"
        ) from error


def _read(path: Path) -> tuple[I64, I64, F32]:
    """Return int64[p] winner and loser and float32[p] weight of a file; what is not a number has the weight NaN."""
    table = _parquet(path) if _kind(path) == PARQUET else _text(path)
    with _explained(path), np.errstate(over="ignore"):
        winner, loser = (table[name].cast(pa.int64()).combine_chunks() for name in ("winner", "loser"))
        weight = table["weight"].cast(pa.float64()) if "weight" in table.column_names else pa.nulls(0)
        empty = [name for name, column in (("winner", winner), ("loser", loser)) if column.null_count]
        if empty:
            raise PairliftError(f"{path}: NULL as {' and '.join(empty)}; every pair names two rows")
        weights = np.asarray(pc.fill_null(weight, np.nan), np.float64) if len(weight) else np.ones(len(winner))
        return winner.to_numpy(), loser.to_numpy(), weights.astype(np.float32)


def _parquet(path: Path) -> Any:
    with path.open("rb") as file, _explained(path):
        table = pq.read_table(file)
    lacking = {"winner", "loser"} - set(table.column_names)
    if lacking:
        raise PairliftError(f"{path} lacks the columns {', '.join(sorted(lacking))}; it has {table.column_names}")
    return table


def _text(path: Path) -> Any:
    with path.open("rb") as file, _explained(path):
        first = next((line for line in file if line.strip()), b"")
        if not first:
            return pa.table({"winner": pa.array([], pa.int64()), "loser": pa.array([], pa.int64())})
        names = ["winner", "loser", "weight"][: max(2, first.count(b"\t") + 1)]
        file.seek(0)
        kinds = {"winner": pa.int64(), "loser": pa.int64(), "weight": pa.float64()}
        return pa.csv.read_csv(
            file,
            pa.csv.ReadOptions(column_names=names, use_threads=False),  # one thread knows the row of a mistake
            pa.csv.ParseOptions(delimiter="\t", quote_char=False),
            pa.csv.ConvertOptions(column_types={name: kinds[name] for name in names}, null_values=[]),
        )


def _refuse(path: Path, bad: Bool, given: tuple[I64, I64, F32], expected: str) -> None:
    if not bad.any():
        return
    shown = "\n".join(
        f"    pair {k + 1}: winner {given[0][k]}, loser {given[1][k]}, weight {given[2][k]:g}"
        for k in np.flatnonzero(bad)[:FIRST_FEW].tolist()
    )
    raise PairliftError(f"{path}: {expected}, found otherwise in {int(bad.sum()):,} pairs; the first of them:\n{shown}")


def _rows(prepared: Prepared, groups: Groups) -> Any:
    """Return the table of a slice's rows: what another tool needs to join features or to make a CatBoost pool."""
    config = prepared.config
    labels = Labels.of(config.work / "import" / "log.duckdb", prepared.log, prepared.catalog, config.grade_names)
    owner, drawn = groups.requests.row_request(), groups.sampled
    columns = {"row": np.arange(len(owner)), "group": owner} | labels.columns(groups, slice(None))
    return pa.table(columns | {"event": pa.array(groups.event, pa.int64(), mask=drawn)})


def _check_rows(path: Path, groups: Groups) -> None:
    """Raise where rows stand beside a pairs file and are others than those of `groups`."""
    beside = rows_path(path)
    if not beside.exists():
        return
    with beside.open("rb") as file, _explained(beside):
        rows = pq.read_table(file, columns=["as_of", "event"])
    as_of = rows["as_of"].cast(pa.int64()).to_numpy()
    event = pc.fill_null(rows["event"], -1).to_numpy()
    now = groups.requests.as_of[groups.requests.row_request()]
    if not (np.array_equal(as_of, now) and np.array_equal(event, groups.event)):
        raise PairliftError(
            f"{beside} lists other rows than the slice has now: the log, [split] or [pairing] changed, or the pairs "
            "are of another slice. Write them anew with `pairlift pairs`, or remove it if the pairs count these rows"
        )
