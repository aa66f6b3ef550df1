"""The time of the events: timestamps, numbers since 1970 or since a day of their own, a date and a clock."""

import duckdb

from features.errors import PairliftError
from ranker.guessing.facts import Facts
from ranker.guessing.guess import Guess
from ranker.guessing.keys import Keys
from ranker.guessing.names import quoted
from ranker.guessing.rules import Chosen, rivals_of
from ranker.guessing.words import is_named, speaks_of


def put_time(con: duckdb.DuckDBPyConnection, facts: list[Facts], chosen: dict[str, Chosen], keys: Keys) -> None:
    """Put the time of the events into the keys. Raises PairliftError where no column has times."""
    times = [f for f in facts if f.column.kind in ("time", "date") and f.known > 0]
    if "ts" not in chosen and not times:
        _counted_time(facts, keys)
        return
    if "ts" not in chosen:
        best = max(times, key=lambda f: f.known)
        chosen["ts"] = Chosen(best, "no other column has times", tuple(f.name for f in times if f is not best))
    f = _first(con, chosen["ts"], facts)
    doubt = rivals_of(
        chosen["ts"]._replace(rivals=tuple(n for n in (chosen["ts"].facts.name, *chosen["ts"].rivals) if n != f.name))
    )
    if f.unit:
        names = {1.0: "seconds", 1e3: "milliseconds", 1e6: "microseconds", 1e9: "nanoseconds"}
        sql = {1.0: "to_timestamp({})", 1e3: "epoch_ms({})", 1e6: "make_timestamp({})"}
        expression = sql.get(f.unit, "make_timestamp({} // 1000)")
        if f.column.type != "BIGINT" and f.unit > 1:
            expression = expression.replace("{}", "({})::BIGINT")
        keys.put("ts", f, f"{chosen['ts'].why}: {names[f.unit]}", expression, doubt)
        return
    clock = next((c for c in facts if c.column.kind == "clock"), None)
    keys.put("ts", f, chosen["ts"].why, doubt=doubt)
    if f.column.kind == "date" and clock:
        keys.guesses["ts"] = Guess(f, "ts", "a date, and the clock beside it", f"{f.column.sql} + {clock.column.sql}")
        keys.sample["ts"] = f"({quoted(f.name)} + {quoted(clock.name)})"
        keys.left_out[clock.name] = Guess(clock, "ts", f"the clock of '{f.name}'")


def _first(con: duckdb.DuckDBPyConnection, chosen: Chosen, facts: list[Facts]) -> Facts:
    """Return the earliest of the chosen time and those that may as well be it: the others came with the answer."""
    able = [f for f in facts if f.name in chosen.rivals and f.column.kind == chosen.facts.column.kind and f.known == 1]
    if chosen.facts.column.kind not in ("time", "date") or not able:
        return chosen.facts
    means = [f"avg(epoch({quoted(f.name)}))" for f in (chosen.facts, *able)]
    found = con.execute(f"SELECT {', '.join(means)} FROM sample").fetchall()[0]
    return min(zip(found, range(len(found)), (chosen.facts, *able), strict=True))[2]


def _counted_time(facts: list[Facts], keys: Keys) -> None:
    """Take a number that is named a time, and is none since 1970, for one that counts from a start of its own."""
    named = [f for f in facts if f.number and speaks_of(f.name, "time") and f.distinct > 1]
    if not named:
        names = ", ".join(f.name for f in facts)
        raise PairliftError(
            "no column has times: a timestamp, seconds since 1970, or text such as 2024-03-01 10:00 was expected, "
            f"found {names}; write pairlift.toml by hand (`pairlift init DIR`), with [events] ts of these"
        )
    f = max(named, key=lambda f: (is_named(f.name, "time"), f.distinct))
    if f.low >= 19_000_101 and f.high <= 21_001_231 and f.whole:
        keys.put("ts", f, "dates written as numbers", "strptime(({})::BIGINT::VARCHAR, '%Y%m%d')")
        return
    keys.put(
        "ts",
        f,
        "its name speaks of time; its numbers are none since 1970",
        "TIMESTAMP '2000-01-01' + to_seconds({})",
        "are these seconds, from which day on? hour and weekday are features",
    )
