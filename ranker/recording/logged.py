"""A feature log that is read again: where recomputed values differ from the served ones, and training on the latter."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from features.errors import PairliftError
from features.given import candidate_columns
from features.pairing.groups import Groups
from features.schema import F32, I64, Catalog, EventLog, Ids, Requests, is_text, lookup
from ranker.recording.featurelog import KEYS


@dataclass(frozen=True, slots=True)
class Logged:
    """A feature log that was read: g requests with n items."""

    request_id: Ids  # [g], text
    requests: Requests
    values: F32  # [n, c], as they were served
    columns: tuple[str, ...]  # names of the c


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        first = str(error).split("\n")[0]
        raise PairliftError(
            f"{folder}: {first}\n  a folder that `pairlift serve --feature-log` wrote was expected"
        ) from error


def read_features(folder: Path, catalog: Catalog, listed: Sequence[str], version: str = "") -> Logged:
    """Read a feature log, one request after the other. PairliftError where it is not one.

    listed: features of the list (`FeatureSpec.listed`), which stand in `Requests.given` as they were served.
    version: of the bundle whose answers are read; all are where it is empty.
    """
    with _explained(folder), duckdb.connect() as con:
        files = f"read_parquet('{folder}/part-*{version}.parquet', union_by_name = true)"
        rows: Any = con.sql(f"SELECT * FROM {files} ORDER BY as_of, request_id, rank").to_arrow_table()
    columns = tuple(name for name in rows.column_names if name not in KEYS)
    request_id: Ids = np.array(rows["request_id"].to_pylist(), dtype=np.object_)
    starts = np.flatnonzero(np.append(True, request_id[1:] != request_id[:-1])) if len(rows) else np.empty(0, np.int64)
    user = _index(catalog.user_ids, rows["user_id"])
    surface_code = catalog.surface_codes()
    if "surface_name" not in rows.column_names:
        raise PairliftError(f"{folder}: written by an earlier version, in which a feature took the surface's place")
    surface = np.array([surface_code.get(s, -1) for s in rows["surface_name"].to_pylist()], np.int16)
    requests = Requests(
        user=user[starts],
        as_of=rows["as_of"].to_numpy()[starts].astype(np.int64),
        surface=surface[starts],
        offsets=np.append(starts, len(rows)).astype(np.int64),
        item=_index(catalog.item_ids, rows["item_id"]),
    )
    if "source_item_id" in rows.column_names:  # an earlier version had none
        query: Ids = np.array([text or "" for text in rows["query_text"].to_pylist()], np.object_)
        source = _index(catalog.item_ids, rows["source_item_id"])[starts]
        requests = replace(requests, source_item=source, query=query[starts])
    values = np.stack([rows[name].to_numpy().astype(np.float32) for name in columns], axis=1)
    # What a request says of itself and its candidates is an input: it is taken as it was logged, where the bundle had
    # its column.
    if catalog.contexts:
        names = [f"context_{known.name}" for known in catalog.contexts]
        requests = replace(requests, context=_logged(values, columns, names)[starts])
    if catalog.candidates:
        names = [*candidate_columns(catalog), *listed]
        requests = replace(requests, given=_logged(values, columns, names))
    return Logged(request_id[starts], requests, values, columns)


def _logged(values: F32, columns: Sequence[str], names: Sequence[str]) -> F32:
    """Return float32[n, len(names)] of float32[n, c] values: those columns, NaN where one was not logged."""
    missing = np.full(len(values), np.nan, np.float32)
    return np.stack([values[:, columns.index(name)] if name in columns else missing for name in names], axis=1)


def _index(known: Ids, column: Any) -> Any:
    values = column.to_pylist()
    there = np.array([v is not None for v in values], bool)
    blank = "" if is_text(known) else 0
    wanted = np.array([blank if v is None else v for v in values], dtype=known.dtype)
    return np.where(there, lookup(known, wanted), -1).astype(np.int32)


def drift(logged: Logged, recomputed: F32, of_plugins: Collection[str] = ()) -> list[dict[str, Any]]:
    """Compare float32[n, c] recomputed values with the logged ones, column by column, the most different first.

    A value differs where it is off by more than 1e-6 relative (and 1e-6 absolute), or missing in one of the two.
    of_plugins: columns that may also be off by 1e-5 of their standard deviation, for a tower sums in another order in
    a batch, and its dot may be near 0 where its terms are not.
    """
    found = []
    owner = logged.requests.row_request()
    for k, name in enumerate(logged.columns):
        was, now = logged.values[:, k].astype(np.float64), recomputed[:, k].astype(np.float64)
        one_missing = np.isnan(was) != np.isnan(now)
        with np.errstate(invalid="ignore"):  # of equal infinities
            gap = np.where(np.isnan(was) | np.isnan(now) | (was == now), 0.0, np.abs(was - now))
        known = now[np.isfinite(now)]
        spread = float(known.std()) if name in of_plugins and len(known) else 0.0
        off = one_missing | (gap > 1e-6 + 1e-6 * np.abs(np.nan_to_num(now)) + 1e-5 * spread)
        worst = int(np.argmax(np.where(one_missing, np.inf, gap))) if len(gap) else 0
        found.append(
            {
                "column": name,
                "differs": float(off.mean()) if len(off) else 0.0,
                "mean_gap": float(gap.mean()) if len(gap) else 0.0,
                "largest_gap": float(gap.max(initial=0.0)),
                "missing_in_one": int(one_missing.sum()),
                "example": str(logged.request_id[owner[worst]]) if off.any() else None,
            }
        )
    return sorted(found, key=lambda row: -row["differs"])


def overlay(
    logged: Logged, request_codes: dict[str, int], events: EventLog, groups: Groups, matrix: F32, columns: list[str]
) -> tuple[F32, int]:
    """Return the matrix with the logged values in the rows of logged (request, item), and how many rows those are.

    request_codes: the code in `events.request` of each request id. columns: names of the matrix's; the feature log must
    have them all, else PairliftError.
    """
    lacking = [name for name in columns if name not in logged.columns]
    if lacking:
        raise PairliftError(
            f"the feature log lacks {', '.join(lacking[:5])}: it was written by a bundle with other features"
        )
    owner = logged.requests.row_request()
    code = np.array([request_codes.get(str(name), -1) for name in logged.request_id], np.int64)[owner]
    place = _places(code, logged.requests.item, groups, events)
    order = [logged.columns.index(name) for name in columns]
    out = matrix.copy()
    rows = np.flatnonzero(place >= 0)
    out[rows] = logged.values[place[rows]][:, order]
    return out, len(rows)


def _places(code: I64, item: Any, groups: Groups, events: EventLog) -> I64:
    """Return int64[n]: the logged row of each impression, -1 where it was not logged."""
    known = {(int(c), int(i)): k for k, (c, i) in enumerate(zip(code, item, strict=True)) if c >= 0 and i >= 0}
    shown = groups.event >= 0
    request = np.where(shown, events.request[np.maximum(groups.event, 0)], -1)
    pairs = zip(request.tolist(), groups.requests.item.tolist(), strict=True)
    return np.array([known.get(pair, -1) for pair in pairs], np.int64)
