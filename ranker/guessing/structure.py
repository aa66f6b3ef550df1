"""Ids, lists and places without a name that says so: by what follows from what within the groups of the sample.

An item is in a list once, and what it is follows from it; a user is one for a list, has several, and comes in bursts.
What is found so is doubted in the TOML, but for places: who counts a list's rows from 1 has its places.
"""

from collections.abc import Sequence

import duckdb

from features.errors import PairliftError
from ranker.guessing.facts import Facts, burst, constant_within, distinct_within
from ranker.guessing.feedback import act_of
from ranker.guessing.keys import Keys, id_expression
from ranker.guessing.names import quoted
from ranker.guessing.words import is_named, speaks_of

#: what of the groups must be so for a rule to hold
MOST = 0.95
#: a request has so many rows at most
LARGEST = 500
#: fewer values than this are no ids; more of the rows than this know their item, and their user
FEWEST, ITEM_KNOWN, USER_KNOWN = 10, 0.95, 0.5
#: points of an id: its name speaks of one, others follow from it (each, and at most), its name speaks of other things
NAMED, FOLLOW, OTHER = 2, 3, -3
#: a user's rows are so close to each other in time, against rows that are spread evenly
CLOSE = 0.3
#: of names that speak of something else than an id
_OTHER = (
    "asked",
    "shown",
    "amount",
    "act",
    "refusal",
    "calendar",
    "rating",
    "category",
    "request",
    "position",
    "surface",
)


def batches(con: duckdb.DuckDBPyConnection, left: list[Facts], keys: Keys) -> list[Facts]:
    """Return the columns whose values have several rows of one time each: what may be a request's id."""
    ts = keys.guesses["ts"].name
    found = []
    for f in left:
        if not _may_be_id(f) or f.known < 0.5 or f.distinct < max(2 * FEWEST, f.rows / LARGEST):
            continue
        size = f.known * f.rows / f.distinct
        if size > 1.5 and constant_within(con, quoted(f.name), [ts])[ts] > MOST:
            found.append(f)
    return found


def is_once(con: duckdb.DuckDBPyConnection, facts: Sequence[Facts], key: str, column: str) -> bool:
    """Return whether a list has each value of a column once: for each act, where every act is a row. key: SQL."""
    acts = [f.name for f in facts if f.name != column and (act := act_of(f)) and act.kind == "type"]
    return distinct_within(con, key, column, acts)[0] > MOST


def _may_be_id(f: Facts) -> bool:
    unique = f.distinct >= f.known * f.rows
    return f.like_id and not f.flag and not f.unit and not unique and f.distinct >= FEWEST


def put_item(
    con: duckdb.DuckDBPyConnection, facts: list[Facts], left: list[Facts], lists: Sequence[str], keys: Keys
) -> None:
    """Put the item into the keys: it is in a list once. lists: at most one key of lists, as SQL.

    Raises PairliftError where no column can be it.
    """
    able = [f for f in left if _may_be_id(f) and f.known > ITEM_KNOWN]
    able = [f for f in able if all(is_once(con, facts, key, f.name) for key in lists)]
    able = _roots(con, [f for f in able if not _one_time(con, f, keys)])
    if "user_id" not in keys.guesses and len(able) > 1:
        able = [f for f in able if f is not _most_bursts(con, able, keys)]
    points = {f.name: _points(con, facts, f, "user") + (f.column.kind == "text") for f in able}
    best = max(able, key=lambda f: (points[f.name], f.distinct), default=None)
    if best is None:
        names = ", ".join(f.name for f in left) or "none"
        once = f", though not within a value of {' or '.join(lists)}," if lists else ""
        raise PairliftError(
            f"no column has the item's ids: integers or words that repeat{once} were expected, found {names}; write "
            "pairlift.toml by hand (`pairlift init DIR`)"
        )
    why = f"no name says so; {'each list has it once' if lists else 'it has the values of an id'}"
    keys.put("item_id", best, why, id_expression(best), _others(able, best))


def put_user(
    con: duckdb.DuckDBPyConnection, facts: list[Facts], left: list[Facts], lists: Sequence[str], keys: Keys
) -> None:
    """Put the user into the keys, where a column has the groups of one: it is one for a list, and has several."""
    item = keys.guesses["item_id"].name
    of_item = constant_within(con, quoted(item), [f.name for f in left])
    able = [f for f in left if _may_be_id(f) and f.known > USER_KNOWN and f.name != item]
    able = [f for f in able if not of_item[f.name] > MOST and not _one_time(con, f, keys)]
    able = [f for f in able if all(constant_within(con, key, [f.name])[f.name] > MOST for key in lists)]
    points = {f.name: _points(con, facts, f, "item") for f in able}
    for f in able:
        points[f.name] += burst(con, keys.sample["ts"], f.name) < CLOSE
    best = max(able, key=lambda f: (points[f.name], f.distinct), default=None)
    if best is None or points[best.name] < 1:
        return
    why = f"no name says so; {'each list has one, and it has several' if lists else 'it comes in bursts, as users do'}"
    keys.put("user_id", best, why, id_expression(best), _others([f for f in able if points[f.name] > 0], best))


def _points(con: duckdb.DuckDBPyConnection, facts: list[Facts], f: Facts, other: str) -> int:
    """Return how much a column is an id: by its name, and by how many columns follow from it. other: a contrary tag."""
    names = [g.name for g in facts if g is not f and g.distinct > 1]
    follow = sum(value > MOST for value in constant_within(con, quoted(f.name), names).values())
    strange = any(speaks_of(f.name, tag) for tag in (*_OTHER, other))
    return NAMED * speaks_of(f.name, "id") + min(FOLLOW, follow) + OTHER * strange


def _one_time(con: duckdb.DuckDBPyConnection, f: Facts, keys: Keys) -> bool:
    """Return whether the rows of each value have one time, as those of a request have."""
    ts = keys.guesses["ts"].name
    return constant_within(con, quoted(f.name), [ts])[ts] > MOST


def _roots(con: duckdb.DuckDBPyConnection, able: list[Facts]) -> list[Facts]:
    """Return the columns that do not follow from one with more values, as an artist does from a song."""
    found = list[Facts]()
    for f in sorted(able, key=lambda f: -f.distinct):
        if not any(constant_within(con, quoted(root.name), [f.name])[f.name] > MOST for root in found):
            found.append(f)
    return found


def _most_bursts(con: duckdb.DuckDBPyConnection, able: list[Facts], keys: Keys) -> Facts | None:
    """Return the column whose values come in bursts, as users do; None where none does."""
    bursts = {f.name: burst(con, keys.sample["ts"], f.name) for f in able}
    best = min(able, key=lambda f: bursts[f.name])
    return best if bursts[best.name] < CLOSE else None


def _others(able: list[Facts], chosen: Facts) -> str:
    names = [repr(f.name) for f in able if f is not chosen]
    return f"or is it {' or '.join(names[:3])}?" if names else "is it?"


def put_places(con: duckdb.DuckDBPyConnection, facts: list[Facts], keys: Keys) -> None:
    """Put the position into the keys, where a column counts the rows of each list from 0 or 1."""
    key = keys.sample["request_id"]
    for f in facts:
        if (
            f.name in keys.columns
            or not (f.number and f.whole and 0 <= f.low <= 1 < f.high)
            or is_named(f.name, "index")
        ):
            continue
        x = quoted(f.name)
        dense = con.execute(f"""
            SELECT avg((n = d AND low IN (0, 1) AND high - low + 1 = n)::INT) FROM (
                SELECT count({x}) AS n, count(DISTINCT {x}) AS d, min({x}) AS low, max({x}) AS high
                FROM sample WHERE {key} IS NOT NULL GROUP BY {key}) WHERE n > 1""").fetchall()[0][0]
        if float(dense or 0) > MOST:
            why = "it counts the rows of each request"
            keys.put("position", f, f"{why} from 0" if f.low == 0 else why, "{} + 1" if f.low == 0 else "{}")
            return
