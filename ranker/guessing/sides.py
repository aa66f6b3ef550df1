"""Attributes of items and of users: of a file of their own, or constant within the log and taken out of it."""

from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from features.errors import PairliftError
from ranker.guessing.columns import attribute, for_reading, future_of
from ranker.guessing.facts import Facts, facts_of
from ranker.guessing.guess import Guess, Role
from ranker.guessing.keys import Keys, id_expression
from ranker.guessing.names import Namer, bare, literal, name_of, quoted
from ranker.guessing.reading import open_log
from ranker.guessing.rules import choose
from ranker.guessing.words import is_named, speaks_of

#: a text that lists values has so many on the average
FEWEST_PARTS = 1.2


@dataclass(frozen=True, slots=True)
class Side:
    """`[items]` or `[users]`."""

    source: str
    key: str  # SQL of the id
    why: str
    columns: list[tuple[str, str, Guess]]  # name, SQL, what is said of it
    text: list[tuple[str, str, Guess]]  # of attributes for people to read
    left_out: list[Guess]


def side_in_log(
    con: duckdb.DuckDBPyConnection, source: str, keys: Keys, guesses: list[Guess], role: Role
) -> Side | None:
    """Return the attributes that stand in the log itself, by a query of its own; None where there is none."""
    mine = [g for g in guesses if g.role == role]
    if not mine:
        return None
    key: Role = "item_id" if role == "item attribute" else "user_id"
    ids = int(con.execute(f"SELECT count(DISTINCT {keys.sample[key]}) FROM sample").fetchall()[0][0])
    own, ts = keys.guesses[key].expression, keys.guesses["ts"].expression
    named, lines, read = Namer(), list[tuple[str, str, Guess]](), list[tuple[str, str, Guess]]()
    selected = [f"{own} AS {key}"]
    for guess in mine:
        name = named(name_of(guess.name))
        last = f"arg_max({guess.expression}, {ts})" if guess.doubt else f"any_value({guess.expression})"
        selected.append(f"{last} AS {bare(name)}")
        (read if for_reading(guess.facts, ids) else lines).append((name, bare(name), guess))
    origin = source if "(" in source else literal(source)
    sql = f"(SELECT {', '.join(selected)} FROM {origin} WHERE {own} IS NOT NULL GROUP BY 1)"
    return Side(sql, key, "columns of the log with one value for each", lines, read, [])


def side_of_file(con: duckdb.DuckDBPyConnection, path: str, root: Path, role: Role, events: Guess) -> Side:
    """Return the attributes of a file of items or users. events: the log's own id of them.

    Raises PairliftError where no column of the file holds the log's ids.
    """
    opened = open_log(con, path, root, "side")
    facts = facts_of(con, opened.columns, "side")
    key = _key(con, facts, role, events, path)
    named, lines, read, left_out = (
        Namer(),
        list[tuple[str, str, Guess]](),
        list[tuple[str, str, Guess]](),
        list[Guess](),
    )
    for f in facts:
        if f is key:
            continue
        guess = _side_guess(con, f, role)
        if guess.role == "none":
            left_out.append(guess)
        else:
            of_people = not guess.sql and for_reading(f, f.rows)
            (read if of_people else lines).append((named(name_of(f.name)), guess.expression, guess))
    sql = id_expression(key).format(key.column.sql)
    kind = "VARCHAR" if events.facts.column.kind == "text" else key.column.kind
    if events.facts.column.kind == "text" and key.column.kind != "text":
        sql = f"({sql})::{kind}"
    return Side(opened.source, sql, f"'{key.name}' holds the log's ids", lines, read, left_out)


def replaced(in_log: Side | None, of_file: Side) -> Side:
    """Return the side of a file, which says what of the log's own attributes it stands in the place of."""
    own = [guess for _, _, guess in (*in_log.columns, *in_log.text)] if in_log else []
    left = [Guess(guess.facts, "none", "of the log itself: this file stands in its place") for guess in own]
    return replace(of_file, left_out=[*of_file.left_out, *left])


def _key(con: duckdb.DuckDBPyConnection, facts: list[Facts], role: Role, events: Guess, path: str) -> Facts:
    """Return the column of a side file in which most ids of the log stand."""
    wanted = "item_id" if role == "item attribute" else "user_id"
    by_name = choose(facts).get(wanted)
    candidates = [f for f in facts if f.distinct >= 0.99 * f.rows]
    shares = {f.name: _held(con, f, events) for f in candidates}
    names = [f.name for f in facts if f.name == events.name] + ([by_name.facts.name] if by_name else [])
    best = max(candidates, key=lambda f: (shares[f.name], f.name in names), default=None)
    if best is None or shares[best.name] < 0.5:
        raise PairliftError(
            f"{path}: no column holds the ids of '{events.name}' of the log, each once; found "
            f"{', '.join(f.name for f in facts)}"
        )
    return best


def _held(con: duckdb.DuckDBPyConnection, f: Facts, events: Guess) -> float:
    """Return the share of the log's ids that a column has."""
    found = con.execute(f"""
        SELECT avg((x IN (SELECT {quoted(f.name)}::VARCHAR FROM side))::INT)
        FROM (SELECT DISTINCT {quoted(events.name)}::VARCHAR AS x FROM sample WHERE {quoted(events.name)} IS NOT NULL)
        """).fetchall()
    return float(found[0][0] or 0)


def _side_guess(con: duckdb.DuckDBPyConnection, f: Facts, role: Role) -> Guess:
    if f.column.kind in ("other", "clock"):
        return Guess(f, "none", f"{f.column.type} is neither a number nor a text nor a list of texts")
    if f.distinct <= 1:
        return Guess(f, "none", "one value" if f.distinct else "never known")
    if (speaks_of(f.name, "private") and role == "user attribute") or is_named(f.name, "index"):
        return Guess(f, "none", "it names a person, a machine or a row")
    if f.column.kind == "text" and f.distinct > 0.95 * f.rows and f.spaced < 0.2 and speaks_of(f.name, "id"):
        return Guess(f, "none", "another id: each has its own")
    sql = f"epoch({f.column.sql})" if f.column.kind in ("time", "date") else attribute(f)
    listed = _vector(con, f) or _split(con, f) if f.column.kind == "text" else ""
    return Guess(f, role, "an attribute", sql or listed, future_of(f))


def _vector(con: duckdb.DuckDBPyConnection, f: Facts) -> str:
    """Return the expression of a text that spells a vector, as a CSV has it: `[0.25, -1.5]`, as many in each row."""
    found = con.execute(f"""
        WITH s AS (SELECT {quoted(f.name)} AS x, try_cast(x AS FLOAT[]) AS v FROM side WHERE x IS NOT NULL)
        SELECT count(*) = count(v) AND min(len(v)) = max(len(v)) AND min(len(v)) > 1 AND bool_or(contains(x, '.'))
        FROM s
        """).fetchall()[0][0]
    return f"{f.column.sql}::FLOAT[]" if found else ""


def _split(con: duckdb.DuckDBPyConnection, f: Facts) -> str:
    """Return the expression of a text that lists values: it is made of far fewer parts than there are of it.

    So are the titles of many items, whose words come again: what its name calls prose is left whole.
    """
    if speaks_of(f.name, "prose") and for_reading(f, f.rows):
        return ""
    x = quoted(f.name)
    for mark in ("|", ";", ",", " "):
        found = con.execute(f"""
            WITH s AS (SELECT DISTINCT string_split({x}, {literal(mark)}) AS v FROM side WHERE {x} IS NOT NULL)
            SELECT (SELECT avg(len(v)) FROM s), (SELECT count(DISTINCT p) FROM (SELECT unnest(v) AS p FROM s))
            """).fetchall()[0]
        if (found[0] or 0) > FEWEST_PARTS and found[1] < f.distinct / 2:
            return f"string_split({f.column.sql}, {literal(mark)})"
    return ""
