"""The truth of a generated log: the expected grade of each event, as of its list."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import PairliftError
from features.schema import F64, I64

#: columns of the file
TS, EXPECTED = "ts", "expected"


def read_truth(path: Path, ts: I64, shown: bool) -> F64:
    """Return float64[n]: the expected grades of events, by their ts in µs.

    path: Parquet with `ts` (a timestamp, or µs; no two are equal) and `expected`. shown: whether every candidate was
    shown. Raises PairliftError where the file has not all of the events, or losers were drawn.
    """
    if not shown:
        raise PairliftError("--truth: the truth is of events; drawn losers have none. Leave out [pairing] negatives")
    known, expected = _columns(path)
    order = np.argsort(known, kind="stable")
    known, expected = known[order], expected[order]
    place = np.minimum(np.searchsorted(known, ts), max(len(known) - 1, 0))
    unknown = len(ts) if not len(known) else int(np.sum(known[place] != ts))
    if unknown or np.any(known[1:] == known[:-1]):
        raise PairliftError(
            f"{path}: one expected grade was expected for each ts of the log, found none for {unknown:,} of "
            f"{len(ts):,} events of the test, or a ts twice; is it the truth of this log, as `pairlift world` wrote it?"
        )
    return np.asarray(expected[place])


def _columns(path: Path) -> tuple[I64, F64]:
    if not path.is_file():
        raise PairliftError(f"--truth: there is no file {path}; `pairlift world DIR` writes DIR/truth.parquet")
    try:
        table = pq.read_table(path, columns=[TS, EXPECTED])
        ts, expected = table[TS], table[EXPECTED]
        micros = ts.cast(pa.timestamp("us", "UTC")).cast(pa.int64()) if pa.types.is_timestamp(ts.type) else ts
        return micros.to_numpy().astype(np.int64), expected.to_numpy().astype(np.float64)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise PairliftError(f"{path}: Parquet with the columns ts and expected was expected: {what}") from error
