"""An experiment's log by DuckDB: a row for each user, and of those counts, means and covariances by arm.

Neither rows of the log nor of users are read into Python; what does not fit into memory, DuckDB writes into a temporary
folder. Each look reads the log up to it anew, for a SQL aggregate of a user cannot be put together from parts.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations_with_replacement, permutations
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from features.errors import PairliftError
from features.log.expressions import is_number, type_of, utc
from features.log.sources import explained, relation
from features.pairing.split import iso
from ranker.ab.estimates import PARTS, Moments, unbiased
from ranker.ab.plan import NO_ARMS, Metric, Plan

#: names of the log's own columns cannot clash with these
USER, ARM, TS = '"#user"', '"#arm"', '"#ts"'
#: pairs of PARTS, of which covariances are asked
PAIRS = list(combinations_with_replacement(range(len(PARTS)), 2))
#: three of PARTS, of which third moments are asked
TRIPLES = list(combinations_with_replacement(range(len(PARTS)), 3))


@dataclass(frozen=True, slots=True)
class Rows:
    """What a log has, before any metric."""

    start: int | None  # µs UTC; None of a log without times
    end: int | None  # behind its last row
    users: dict[str, int]  # of each arm
    came: dict[str, tuple[int, int]]  # of them, those whose first row is in each half of the time; of no times, none
    in_two_arms: int  # users, who are left out
    within: int  # rows of the experiment, of an arm
    without_arm: int  # rows of that time of no arm, which are left out
    before: int  # rows
    armed_before: int  # of them, those of an arm: then they tell of no past without an effect
    unplaced: int  # rows without a user, or without a time where the log has times: left out


@dataclass(frozen=True, slots=True)
class Look:
    """What the users of a metric did up to a time, by arm."""

    moments: dict[str, Moments]
    no_value: int  # users whose value is NaN or infinite: left out
    largest: dict[str, float]  # by arm, the share of one user in the sum of the numerator's absolute values


class Log:
    """An experiment's log, opened."""

    def __init__(self, con: duckdb.DuckDBPyConnection, source: str, plan: Plan) -> None:
        """source: a file, a folder of Parquet, a glob, or what else DuckDB reads. Refuses unknown columns."""
        self.con, self.plan = con, plan
        folder = Path(source)
        if folder.is_dir():
            quoted = str(folder / "**" / "*.parquet").replace("'", "''")
            source = f"read_parquet('{quoted}', union_by_name=true)"
        self.origin = relation(source, Path())
        hint = "a file, a folder of Parquet, a glob, or a table expression of DuckDB was expected"
        with explained("LOG", source, hint):
            self.columns = [row[0] for row in con.execute(f"DESCRIBE SELECT * FROM {self.origin}").fetchall()]
        self.ts = self._time()
        for option, expression in (("--user", plan.user), ("--arm", plan.arm)):
            self._known(option, expression)
            type_of(con, self.origin, option, expression, self.columns)
        for metric in plan.metrics:
            for sql in filter(None, (metric.num, metric.den)):
                self._check(metric, sql)

    def _known(self, option: str, expression: str) -> None:
        """Refuse a plain name that no column has."""
        if expression.isidentifier() and expression.lower() not in [name.lower() for name in self.columns]:
            timeless = ', or --time "" where it has no times' if option == "--time" else ""
            raise PairliftError(
                f"the column '{expression}' was expected, found {', '.join(self.columns)}: name the log's own by "
                f"{option}{timeless}"
            )

    def _time(self) -> str:
        """Return the SQL of a row's time in µs, NULL where the log has none."""
        if not self.plan.time:
            return "NULL::BIGINT"
        self._known("--time", self.plan.time)
        kind = type_of(self.con, self.origin, "--time", self.plan.time, self.columns)
        return f"epoch_us({utc('--time', self.plan.time, kind, 'UTC')})"

    def _check(self, metric: Metric, sql: str) -> None:
        hint = (
            "a SQL aggregate over the rows of a user was expected, such as sum(click), of these columns: "
            f"{', '.join(self.columns)}"
        )
        with explained(f"metric '{metric.name}'", sql, hint, self.columns):
            # Beside an aggregate, DuckDB refuses what is none.
            kind = self.con.execute(f"DESCRIBE SELECT count(*), ({sql}) FROM {self.origin}").fetchall()[1][1]
        if not is_number(kind):
            raise PairliftError(f"metric '{metric.name}': a number was expected of {sql}, found {kind}; {hint}")

    def _run(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        plan = self.plan
        asked = "; ".join([plan.user, plan.arm, plan.time, *(metric.sql for metric in plan.metrics)])
        with explained("LOG", asked, "mend the expression that fails on some rows, as try_cast does", self.columns):
            return self.con.execute(sql, list(parameters)).fetchall()

    def rows(self) -> Rows:
        """Read the period and every user's arm. PairliftError where no row is of an arm."""
        arm = f"nullif(({self.plan.arm})::VARCHAR, '')"
        self._run(
            f"CREATE OR REPLACE TEMP VIEW log AS SELECT *, ({self.plan.user}) AS {USER}, {arm} AS {ARM}, "
            f"{self.ts} AS {TS} FROM {self.origin}"
        )
        [(first, last, known)] = self._run(
            f"SELECT min({TS}) FILTER ({ARM} IS NOT NULL), max({TS}) + 1, count({ARM}) FROM log"
        )
        start = self.plan.start if self.plan.start is not None else first
        end = self.plan.end if self.plan.end is not None else last
        if not known:
            raise PairliftError(f"rows with an arm were expected in {self.plan.arm}, found none: {NO_ARMS}")
        if start is not None and end is not None and start >= (last or start):
            raise PairliftError(
                f"rows from {iso(start)} on were expected (--start), and the last one is before it: name one earlier"
            )
        within = self.between(start, end)
        before = "false" if start is None else f"{TS} < {start}"
        self._run(
            f"CREATE OR REPLACE TEMP TABLE units AS SELECT {USER}, min({ARM}) AS {ARM}, max({ARM}) AS last, "
            f"count(*) FILTER ({within}) AS n, min({TS}) FILTER ({within}) AS came FROM log "
            f"WHERE ({within} OR {before}) AND {ARM} IS NOT NULL AND {USER} IS NOT NULL "
            f"GROUP BY {USER} HAVING count(*) FILTER ({within}) > 0"
        )
        [(several, counted)] = self._run(f"SELECT count(*) FILTER ({ARM} <> last), sum(n) FROM units")
        self._run(f"DELETE FROM units WHERE {ARM} <> last")
        timeless = "false" if start is None else f"{TS} IS NULL"
        [(without, past, armed, unplaced)] = self._run(
            f"SELECT count(*) FILTER ({within} AND {ARM} IS NULL), count(*) FILTER ({before}), "
            f"count(*) FILTER ({before} AND {ARM} IS NOT NULL), count(*) FILTER ({USER} IS NULL OR {timeless}) FROM log"
        )
        early = "NULL" if start is None or end is None else f"came < {(start + end) // 2}"
        counts = self._run(
            f"SELECT {ARM}, count(*), count(*) FILTER ({early}), count(*) FILTER (NOT {early}) FROM units "
            f"GROUP BY {ARM} ORDER BY {ARM}"
        )
        users, came = {arm: n for arm, n, *_ in counts}, {arm: (first, last) for arm, _, first, last in counts}
        return Rows(start, end, users, came, several, int(counted or 0), without, past, armed, unplaced)

    @staticmethod
    def between(start: int | None, end: int | None) -> str:
        """Return the condition of a row's time, [start, end) in µs; every row of a log without times."""
        return "true" if start is None or end is None else f"{TS} >= {start} AND {TS} < {end}"

    def remember(self, rows: Rows) -> None:
        """Make the users' figures of before the experiment; none where an arm was at work then."""
        before = "false" if rows.start is None or rows.armed_before else f"{TS} < {rows.start}"
        self._figures("past", before, "x")

    def look(self, start: int | None, until: int | None) -> dict[str, Look]:
        """Return, by metric, what users did in [start, until) µs; `rows` and `remember` come first."""
        self._figures("present", f"{self.between(start, until)} AND {ARM} IS NOT NULL", "y")
        return {metric.name: self._look(k) for k, metric in enumerate(self.plan.metrics)}

    def _figures(self, table: str, where: str, letter: str) -> None:
        """Make a table of a row for each user that is in one arm."""
        parts = [
            f"coalesce(({sql})::DOUBLE, 0) AS {letter}{k}{part}"
            for k, metric in enumerate(self.plan.metrics)
            for part, sql in (("num", metric.num), ("den", metric.den or "1"))
        ]
        # The semi-join keeps out who is in two arms.
        self._run(
            f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT {USER}, {', '.join(parts)} FROM log "
            f"WHERE {where} AND {USER} IN (SELECT {USER} FROM units) GROUP BY {USER}"
        )

    def _look(self, k: int) -> Look:
        den = "1.0" if self.plan.metrics[k].den is None else f"coalesce(x{k}den, 0)"
        past = [f"coalesce(x{k}num, 0)", den]
        told = " AND ".join(f"isfinite({part})" for part in past)
        # What a user's past cannot say in figures, it does not say.
        past = [f"CASE WHEN {told} THEN {part} ELSE 0 END" for part in past]
        columns = ", ".join(f"{sql} AS v{i}" for i, sql in enumerate([f"y{k}num", f"y{k}den", *past]))
        self._run(
            f"CREATE OR REPLACE TEMP TABLE told AS SELECT *, isfinite(v0) AND isfinite(v1) AS ok FROM (SELECT {ARM}, "
            f"{columns} FROM present JOIN units USING ({USER}) LEFT JOIN past USING ({USER}))"
        )
        # Cubes are of what is away from the arm's mean: of large values they would be lost to rounding.
        means = ", ".join(f"avg(v{i}) AS m{i}" for i in range(len(PARTS)))
        figures = [f"any_value(m{i})" for i in range(len(PARTS))] + [f"covar_samp(v{i}, v{j})" for i, j in PAIRS]
        figures += [f"avg({' * '.join(f'(v{i} - m{i})' for i in of)})" for of in TRIPLES]
        found = self._run(
            f"SELECT {ARM}, count(*), max(abs(v0)), sum(abs(v0)), count(*) FILTER (v0 <> 0), {', '.join(figures)} "
            f"FROM told JOIN (SELECT {ARM}, {means} FROM told WHERE ok GROUP BY {ARM}) USING ({ARM}) WHERE ok "
            f"GROUP BY {ARM} ORDER BY {ARM}"
        )
        [(no_value,)] = self._run("SELECT count(*) FILTER (NOT ok) FROM told")
        largest = {arm: most / total if total else float("nan") for arm, _, most, total, *_ in found}
        return Look({row[0]: _moments(row[1], row[4], row[5:]) for row in found}, no_value, largest)


def _moments(n: int, active: int, figures: Sequence[float | None]) -> Moments:
    """Return the moments of a row of the query: its means, covariances and mean cubes."""
    values = np.array([np.nan if value is None else value for value in figures], np.float64)
    mean, pairs, triples = np.split(values, np.cumsum([len(PARTS), len(PAIRS)]))
    cov, third = np.empty((len(PARTS),) * 2), np.empty((len(PARTS),) * 3)
    for (i, j), value in zip(PAIRS, pairs, strict=True):
        cov[i, j] = cov[j, i] = value
    for of, value in zip(TRIPLES, triples * unbiased(n), strict=True):
        for place in permutations(of):
            third[place] = value
    return Moments(n, mean, cov, third, active)


@contextmanager
def opened(source: str, plan: Plan) -> Iterator[Log]:
    """Open a log; what DuckDB writes for want of memory goes when the block ends."""
    with tempfile.TemporaryDirectory(prefix="pairlift-ab-") as folder, duckdb.connect() as con:
        con.execute(f"SET temp_directory = '{folder}'; SET TimeZone = 'UTC'; SET preserve_insertion_order = false")
        yield Log(con, source, plan)
