"""The default counters as an engineer writes them in DuckDB, Polars and pandas, and as sums over masks in NumPy.

Each takes (counters, log, catalog, grades, requests) and gives float32[n, counters]. A key's running sums stand
beside its events; a decayed sum is the running sum of value · 2 ** ((ts - t0) / h), faded at the request's time.
"""

import os
from typing import Any

import duckdb
import numpy as np
import pandas as pd

from features.counters.spec import Counter
from features.schema import SECOND, Catalog, EventLog, Requests

os.environ.setdefault("POLARS_SKIP_CPU_CHECK", "1")


def columns_of(log: EventLog, catalog: Catalog) -> dict[str, Any]:
    """Return the columns of the events that keys and counters are made of."""
    category = catalog.item_attribute("category").codes
    return {
        "user": log.user, "item": log.item, "surface": log.surface, "category": category[log.item],
        "ts": log.ts, "grade": log.grade,
    }  # fmt: skip


def asked(catalog: Catalog, requests: Requests) -> dict[str, Any]:
    """Return the columns of the candidates."""
    owner = requests.row_request()
    category = catalog.item_attribute("category").codes
    return {
        "user": requests.user[owner], "item": requests.item, "surface": requests.surface[owner],
        "category": category[requests.item], "ts": requests.as_of[owner], "row": np.arange(len(owner)),
    }  # fmt: skip


def parts(counter: Counter, grades: tuple[str, ...]) -> tuple[str, str]:
    """Return the names of the numerator's and denominator's series."""
    value = {"impression": "one", "grade": "grade"}.get(counter.event, f"is{counter.event}")
    return value, "graded" if counter.kind in ("rate", "mean") else ""


def series(name: str, grade: Any, grades: tuple[str, ...]) -> Any:
    """Return the float64 values of a series from the grades (NumPy, pandas)."""
    if name == "one":
        return np.ones(len(grade))
    if name == "graded":
        return (grade >= 0).astype(np.float64)
    if name == "grade":
        return np.maximum(grade, 0).astype(np.float64)
    return (grade == grades.index(name[2:])).astype(np.float64)


def series_sql(name: str, grades: tuple[str, ...]) -> str:
    """Return the same in SQL."""
    fixed = {"one": "1.0", "graded": "(grade >= 0)::DOUBLE", "grade": "greatest(grade, 0)::DOUBLE"}
    return fixed.get(name) or f"(grade = {grades.index(name[2:])})::DOUBLE"


def plan(counters: tuple[Counter, ...], grades: tuple[str, ...]) -> dict[tuple[str, ...], list[tuple[str, int]]]:
    """Return the running columns (series, half-life in µs or 0) that each key needs."""
    found: dict[tuple[str, ...], dict[tuple[str, int], None]] = {}
    for c in counters:
        of_key = found.setdefault(c.key, {})
        for name in parts(c, grades):
            if name and c.kind != "since":
                of_key[name, c.span.size] = None
    return {key: list(columns) for key, columns in found.items()}


def finish(
    out: Any, mine: list[tuple[int, Counter]], read: Any, as_of: Any, last: Any, t0: int, grades: tuple[str, ...]
) -> None:
    """Fill the columns of one key from its running columns: read(series, size) is float64[n], last float64[n] µs."""

    def total(name: str, size: int) -> Any:
        value = np.nan_to_num(read(name, size))
        return value * np.exp2(-(as_of - t0) / size) if size else value

    for place, c in mine:
        above, below = parts(c, grades)
        if c.kind == "since":
            out[:, place] = (as_of - last) / SECOND
        elif below:
            trials = total(below, c.span.size)
            out[:, place] = (total(above, c.span.size) + c.strength * c.prior) / (trials + c.strength)
        else:
            out[:, place] = total(above, c.span.size)


def of_key(counters: tuple[Counter, ...], key: tuple[str, ...]) -> list[tuple[int, Counter]]:
    """Return (place, counter) of one key's counters."""
    return [(k, c) for k, c in enumerate(counters) if c.key == key]


def duckdb_rows(
    counters: tuple[Counter, ...], log: EventLog, catalog: Catalog, grades: tuple[str, ...], requests: Requests
) -> Any:
    """Window functions and an ASOF join for each key."""
    out = np.empty((len(requests.item), len(counters)), np.float32)
    wanted = asked(catalog, requests)
    t0 = int(log.ts[0])
    with duckdb.connect() as con:
        con.execute("SET preserve_insertion_order = false; SET enable_progress_bar = false")
        con.register("e_in", columns_of(log, catalog))
        con.register("q_in", wanted)
        con.execute("CREATE TABLE e AS SELECT * FROM e_in; CREATE TABLE q AS SELECT * FROM q_in")
        for key, columns in plan(counters, grades).items():
            sums = []
            for n, (name, size) in enumerate(columns):
                scaled = f" * exp2_({size})" if size else ""
                value = series_sql(name, grades) + scaled.replace(f"exp2_({size})", f"pow(2.0, (ts - {t0}) / {size}.0)")
                sums.append(f"sum({value}) OVER w AS c{n}")
            names = ", ".join(f'"{part}"' for part in key)
            known = " AND ".join(f'"{part}" >= 0' for part in key)
            equal = " AND ".join(f'q."{part}" = r."{part}"' for part in key)
            read = con.execute(
                f"WITH r AS (SELECT {names}, ts, {', '.join(sums)} FROM e WHERE {known} "
                f"WINDOW w AS (PARTITION BY {names} ORDER BY ts)) "
                f"SELECT q.row, r.ts AS last, {', '.join(f'r.c{n}' for n in range(len(columns)))} "
                f"FROM q ASOF LEFT JOIN r ON {equal} AND q.ts > r.ts"
            ).fetchnumpy()
            order = np.argsort(read["row"])
            filled = {n: np.ma.filled(np.ma.asarray(v).astype(float), np.nan)[order] for n, v in read.items()}

            def value_of(name: str, size: int, filled: Any = filled, columns: Any = columns) -> Any:
                return filled[f"c{columns.index((name, size))}"]

            finish(out, of_key(counters, key), value_of, wanted["ts"], filled["last"], t0, grades)
    return out


def pandas_rows(
    counters: tuple[Counter, ...], log: EventLog, catalog: Catalog, grades: tuple[str, ...], requests: Requests
) -> Any:
    """Grouped cumulative sums and merge_asof for each key."""
    out = np.empty((len(requests.item), len(counters)), np.float32)
    events, wanted = pd.DataFrame(columns_of(log, catalog)), pd.DataFrame(asked(catalog, requests))
    t0 = int(log.ts[0])
    for key, columns in plan(counters, grades).items():
        names = list(key)
        frame = events[(events[names] >= 0).all(axis=1)]
        since = frame["ts"].to_numpy() - t0
        grade = frame["grade"].to_numpy()
        values = {
            f"c{n}": series(name, grade, grades) * (np.exp2(since / size) if size else 1.0)
            for n, (name, size) in enumerate(columns)
        }
        running = pd.DataFrame(values, index=frame.index).groupby([frame[p] for p in names]).cumsum()
        right = pd.concat([frame[[*names, "ts"]], running], axis=1).assign(last=frame["ts"])
        read = pd.merge_asof(
            wanted.sort_values("ts", kind="stable"), right, on="ts", by=names, allow_exact_matches=False
        ).sort_values("row")  # fmt: skip

        def value_of(name: str, size: int, read: Any = read, columns: Any = columns) -> Any:
            return read[f"c{columns.index((name, size))}"].to_numpy()

        finish(out, of_key(counters, key), value_of, read["ts"].to_numpy(), read["last"].to_numpy(), t0, grades)
    return out


def polars_rows(
    counters: tuple[Counter, ...], log: EventLog, catalog: Catalog, grades: tuple[str, ...], requests: Requests
) -> Any:
    """Cumulative sums over each key and join_asof."""
    import polars as pl

    out = np.empty((len(requests.item), len(counters)), np.float32)
    t0 = int(log.ts[0])
    events = pl.DataFrame(columns_of(log, catalog)).with_columns(last=pl.col("ts"))
    wanted = pl.DataFrame(asked(catalog, requests)).sort("ts", maintain_order=True)
    fixed = {
        "one": (pl.col("grade") >= -1).cast(pl.Float64), "graded": (pl.col("grade") >= 0).cast(pl.Float64),
        "grade": pl.col("grade").clip(0).cast(pl.Float64),
    }  # fmt: skip
    for key, columns in plan(counters, grades).items():
        names = list(key)
        sums = []
        for n, (name, size) in enumerate(columns):
            value = fixed[name] if name in fixed else (pl.col("grade") == grades.index(name[2:])).cast(pl.Float64)
            scaled = value * ((pl.col("ts") - t0) / size * np.log(2)).exp() if size else value
            sums.append(scaled.cum_sum().over(names).alias(f"c{n}"))
        known = pl.all_horizontal([pl.col(p) >= 0 for p in names])
        right = events.lazy().filter(known).select(*names, "ts", "last", *sums).sort("ts", maintain_order=True)
        read = (
            wanted.lazy()
            .join_asof(right, on="ts", by=names, strategy="backward", allow_exact_matches=False, check_sortedness=False)
            .collect().sort("row")
        )  # fmt: skip

        def value_of(name: str, size: int, read: Any = read, columns: Any = columns) -> Any:
            return read[f"c{columns.index((name, size))}"].cast(pl.Float64).fill_null(0).to_numpy()

        last = read["last"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        finish(out, of_key(counters, key), value_of, read["ts"].to_numpy(), last, t0, grades)
    return out


def numpy_rows(
    counters: tuple[Counter, ...], log: EventLog, catalog: Catalog, grades: tuple[str, ...], requests: Requests
) -> Any:
    """A mask over the whole log for each candidate and counter: slow, and plain to see."""
    events, wanted = columns_of(log, catalog), asked(catalog, requests)
    out = np.empty((len(requests.item), len(counters)), np.float32)
    for row in range(len(out)):
        as_of = int(wanted["ts"][row])
        for place, c in enumerate(counters):
            seen = log.ts < as_of
            for part in c.key:
                seen = seen & (events[part] == wanted[part][row]) & (events[part] >= 0)
            weight = np.exp2(-(as_of - log.ts[seen]) / c.span.size) if c.span.size else 1.0
            above, below = parts(c, grades)
            value = (series(above, log.grade[seen], grades) * weight).sum()
            if c.kind == "since":
                out[row, place] = (as_of - log.ts[seen].max()) / SECOND if seen.any() else np.nan
            elif below:
                trials = (series(below, log.grade[seen], grades) * weight).sum()
                out[row, place] = (value + c.strength * c.prior) / (trials + c.strength)
            else:
                out[row, place] = value
    return out
