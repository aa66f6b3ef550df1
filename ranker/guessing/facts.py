"""What the values of a sample say: of each column by itself, of columns within the groups of a key, and in time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from ranker.guessing.names import quoted
from ranker.guessing.reading import Column

#: fewer groups of two rows and more than this say nothing of what is constant within a key
FEW_GROUPS = 20
#: where so large a share of the groups of a shuffled column is constant, a constant column shows nothing
BY_CHANCE = 0.98
#: of a rarer act, so much lies within the act that it takes; and an act is done in less than so much of the rows
INSIDE, SELDOM = 0.998, 0.7
_SECONDS = (3e8, 4.2e9)  # of times from 1979 to 2103, since 1970


@dataclass(frozen=True, slots=True)
class Facts:
    """The values of one column of the sample."""

    column: Column
    rows: int
    known: float  # share of rows that are not NULL
    distinct: int  # different values
    low: float  # of numbers and booleans; NaN for others
    high: float
    whole: bool  # numbers are integers
    on: float  # share of the known values that are not 0, or true
    spaced: float  # share of the known texts that have a space
    length: float  # mean characters of a text
    examples: tuple[str, ...]  # the most frequent values

    @property
    def name(self) -> str:
        """Return the column's name."""
        return self.column.name

    @property
    def number(self) -> bool:
        """Return whether the values are numbers, true and false not among them."""
        return self.column.kind in ("integer", "number")

    @property
    def flag(self) -> bool:
        """Return whether the values are true and false, or 0 and 1."""
        of_two = self.number and self.whole and self.low >= 0 and self.high <= 1
        return self.column.kind == "boolean" or of_two

    @property
    def unit(self) -> float:
        """Return how many units a second has, where numbers are times since 1970 (1, 1e3, 1e6, 1e9); 0 where not."""
        if not self.number or math.isnan(self.low):
            return 0.0
        low, high = _SECONDS
        return next((u for u in (1.0, 1e3, 1e6, 1e9) if low * u <= self.low and self.high <= high * u), 0.0)

    @property
    def like_id(self) -> bool:
        """Return whether the values may be ids: integers or words, several of them, not each in a row of its own."""
        text = self.column.kind == "text" and self.spaced < 0.2 and self.length < 100
        return (text or (self.number and self.whole)) and self.distinct > 1


def facts_of(con: duckdb.DuckDBPyConnection, columns: Sequence[Column], table: str = "sample") -> list[Facts]:
    """Return the facts of the columns of a table that `ranker.guessing.reading` made."""
    rows = int(con.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])
    return [_facts(con, column, rows, table) for column in columns]


def _facts(con: duckdb.DuckDBPyConnection, column: Column, rows: int, table: str) -> Facts:
    x = quoted(column.name)
    number = f"{x}::DOUBLE" if column.kind in ("integer", "number", "boolean") else "NULL::DOUBLE"
    text = x if column.kind == "text" else "NULL::VARCHAR"
    found = con.execute(f"""
        SELECT count({x}), count(DISTINCT {x}), min({number}), max({number}),
               coalesce(bool_and({number} = floor({number}) OR isinf({number})), false), avg(({number} <> 0)::INT),
               avg(contains({text}, ' ')::INT), avg(length({text})) FROM {table}""").fetchall()[0]
    known, distinct, low, high, whole, on, spaced, length = found
    most = con.execute(
        f"SELECT {x}::VARCHAR FROM {table} WHERE {x} IS NOT NULL GROUP BY {x} ORDER BY count(*) DESC, 1 LIMIT 6"
    ).fetchall()
    return Facts(
        column,
        rows,
        known / rows,
        distinct,
        math.nan if low is None else low,
        math.nan if high is None else high,
        bool(whole),
        on or 0.0,
        spaced or 0.0,
        length or 0.0,
        tuple(row[0] for row in most),
    )


def constant_within(
    con: duckdb.DuckDBPyConnection, key: str, columns: Sequence[str], table: str = "sample"
) -> dict[str, float]:
    """Return how constant columns are within the groups of a key (a SQL expression), less what chance gives.

    1: each group has one known value. 0: no more of them have than when the keys are shuffled. NaN: the groups are
    too few, or too small, to tell.
    """
    con.execute(f"CREATE OR REPLACE TEMP TABLE shuffled AS SELECT {key} AS k FROM {table} ORDER BY hash(rowid)")
    own = _constant(con, f"(SELECT {key} AS k, * FROM {table})", columns)
    chance = _constant(con, f"(SELECT * FROM shuffled POSITIONAL JOIN {table})", columns)
    con.execute("DROP TABLE shuffled")
    return {name: _beyond(own[name], chance[name]) for name in columns}


def _beyond(own: tuple[float, int], chance: tuple[float, int]) -> float:
    if own[1] < FEW_GROUPS or chance[0] > BY_CHANCE:
        return math.nan
    return (own[0] - chance[0]) / (1 - chance[0])


def _constant(con: duckdb.DuckDBPyConnection, rows: str, columns: Sequence[str]) -> dict[str, tuple[float, int]]:
    """Return for each column the share of constant groups among those with two known values or more, and how many."""
    if not columns:
        return {}
    inner = ", ".join(
        f"min({quoted(c)}) = max({quoted(c)}) AS c{i}, count({quoted(c)}) AS n{i}" for i, c in enumerate(columns)
    )
    outer = ", ".join(
        f"coalesce(avg(c{i}::INT) FILTER (n{i} > 1), 0), count(*) FILTER (n{i} > 1)" for i in range(len(columns))
    )
    found = con.execute(
        f"SELECT {outer} FROM (SELECT k, {inner} FROM {rows} WHERE k IS NOT NULL GROUP BY k)"
    ).fetchall()[0]
    return {c: (float(found[2 * i]), int(found[2 * i + 1])) for i, c in enumerate(columns)}


def distinct_within(
    con: duckdb.DuckDBPyConnection, key: str, column: str, beside: Sequence[str] = (), table: str = "sample"
) -> tuple[float, float]:
    """Return (different values over known values of a column within the groups of a key, mean known values a group).

    Of groups with two known values or more; (0, 0) where there is none. beside: columns that make a value another one.
    """
    x = quoted(column)
    if beside:
        x = f"CASE WHEN {x} IS NOT NULL THEN concat_ws('|', {x}, {', '.join(map(quoted, beside))}) END"
    found = con.execute(f"""
        SELECT sum(d) / sum(n), avg(n) FROM (
            SELECT count(DISTINCT {x}) AS d, count({x}) AS n FROM {table} WHERE {key} IS NOT NULL GROUP BY {key})
        WHERE n > 1""").fetchall()[0]
    return (float(found[0] or 0), float(found[1] or 0))


def changes_in_time(con: duckdb.DuckDBPyConnection, ts: str, column: str, table: str = "sample") -> float:
    """Return how often a column changes from row to row in the order of time, over how often it would by chance.

    Near 0: its values follow each other in time, as versions of software do. ts: a SQL expression.
    """
    x = quoted(column)
    found = con.execute(f"""
        WITH o AS (SELECT {x} AS x, lag({x}) OVER (ORDER BY {ts}, {x}) AS p FROM {table} WHERE {x} IS NOT NULL),
             s AS (SELECT count(*) AS n FROM o GROUP BY x)
        SELECT (SELECT avg((x <> p)::INT) FROM o WHERE p IS NOT NULL),
               (SELECT 1 - sum(n * n) / (sum(n) * sum(n)) FROM s)""").fetchall()[0]
    return float(found[0]) / float(found[1]) if found[0] is not None and found[1] else math.nan


def only_where(con: duckdb.DuckDBPyConnection, column: str, acts: Sequence[str], table: str = "sample") -> bool:
    """Return whether a column is known, or not 0, (almost) only where one of the acts was done.

    acts: SQL conditions. Then its values came with the answer.
    """
    x, done = quoted(column), " OR ".join(f"coalesce({act}, false)" for act in acts)
    on = f"({x} IS NOT NULL AND {x}::VARCHAR NOT IN ('0', '0.0', 'false', ''))"
    found = con.execute(f"""
        SELECT count(*) FILTER (NOT done), avg(y::INT) FILTER (NOT done), count(*) FILTER (done AND y),
               avg(y::INT) FILTER (done) FROM (SELECT ({done}) AS done, {on} AS y FROM {table})""").fetchall()[0]
    without, seldom, times, often = found
    return bool(without) and times >= FEW_GROUPS and seldom < 0.002 and often > 20 * seldom + 0.02


def burst(con: duckdb.DuckDBPyConnection, ts: str, column: str, table: str = "sample") -> float:
    """Return the median gap between neighbouring rows of one value, over that of rows spread evenly in time.

    Users come in bursts, so theirs is near 0; items are taken by many at any time.
    """
    x = quoted(column)
    found = con.execute(f"""
        WITH g AS (SELECT t - lag(t) OVER (PARTITION BY x ORDER BY t) AS gap, t
                   FROM (SELECT {x} AS x, epoch({ts}) AS t FROM {table} WHERE {x} IS NOT NULL))
        SELECT median(gap), max(t) - min(t), count(*) FILTER (gap IS NOT NULL) FROM g""").fetchall()[0]
    if not found[1] or not found[2]:
        return math.nan
    return float(found[0]) * float(found[2]) / (float(found[1]) * len_of(con, column, table))


def len_of(con: duckdb.DuckDBPyConnection, column: str, table: str = "sample") -> int:
    """Return how many different values a column has."""
    return int(con.execute(f"SELECT count(DISTINCT {quoted(column)}) FROM {table}").fetchall()[0][0])


def funnel(
    con: duckdb.DuckDBPyConnection, wide: dict[str, str], rare: dict[str, str], table: str = "sample"
) -> dict[str, str]:
    """Return the conditions that hold wherever a rarer one does, with that one: a click for an order.

    wide, rare: SQL conditions by their names; one that holds in most of the rows is none of a funnel.
    """
    pairs = [(a, b) for a in wide for b in rare if a != b]
    if not pairs:
        return {}
    asked = [f"count(*) FILTER (({wide[a]}) AND ({rare[b]}))" for a, b in pairs]
    alone = {name: f"count(*) FILTER ({condition})" for name, condition in (wide | rare).items()}
    found = con.execute(f"SELECT count(*), {', '.join([*alone.values(), *asked])} FROM {table}").fetchall()[0]
    rows, count = int(found[0]), dict(zip(alone, found[1:], strict=False))
    return {
        a: b
        for (a, b), both in reversed(list(zip(pairs, found[1 + len(alone) :], strict=True)))
        if both >= INSIDE * count[b] and FEW_GROUPS <= count[b] < count[a] < SELDOM * rows
    }
