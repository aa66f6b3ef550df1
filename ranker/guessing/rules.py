"""The rules by which a column is taken for one that the log has once: the user's id, the time, the place in the list.

Each rule gives points to a role, by the name and the values of a column alone, with its reason in words. The role goes
to the column of most points, where these are THRESHOLD or more. To teach another sign, write a line.
"""

from collections.abc import Callable
from typing import NamedTuple

from ranker.guessing.facts import Facts
from ranker.guessing.words import VALUES, is_named, speaks_of, words_of

THRESHOLD = 3
#: a column with so few points less than the chosen one may as well be it
CLOSE = 1
#: more places of a list than anybody looks at, and more surfaces than a product has
MOST_PLACES, MOST_SURFACES = 2_000, 100
#: fewer values are no users, but kinds of them
FEWEST_USERS = 5
#: a column that is unknown in so many of the rows is no time of theirs
KNOWN = 0.999


class Rule(NamedTuple):
    """Points for a role, where a condition holds."""

    role: str
    points: int
    why: str
    holds: Callable[[Facts], bool]


def named(tag: str) -> Callable[[Facts], bool]:
    """Return whether the name says the tag and nothing else."""
    return lambda f: is_named(f.name, tag)


def speaks(*tags: str) -> Callable[[Facts], bool]:
    """Return whether the name has a word of each tag."""
    return lambda f: all(speaks_of(f.name, tag) for tag in tags)


def values_are(tag: str) -> Callable[[Facts], bool]:
    """Return whether half of a text's frequent values or more are made of the tag's words."""
    words = set(VALUES[tag].split())
    return lambda f: bool(f.examples) and sum(bool(words & set(words_of(x))) for x in f.examples) * 2 >= len(f.examples)


def is_session(f: Facts) -> bool:
    """Return whether a text is named a visit, of a user perhaps: `user_session`."""
    return f.column.kind == "text" and speaks_of(f.name, "session") and not speaks_of(f.name, "amount")


def _is_id(f: Facts) -> bool:
    return f.like_id and not f.flag


def _unique(f: Facts) -> bool:
    return f.distinct >= f.known * f.rows > 1


def _is_place(f: Facts) -> bool:
    return f.number and f.whole and f.low >= 0 and 1 < f.high <= MOST_PLACES


RULES = (
    Rule("ts", 3, "its values are times", lambda f: f.column.kind == "time"),
    Rule("ts", 3, "its values are numbers since 1970", lambda f: f.unit > 0),
    Rule("ts", -3, "its name speaks of an id", lambda f: f.unit > 0 and speaks("id")(f)),
    Rule("ts", 1, "its values are dates", lambda f: f.column.kind == "date"),
    Rule("ts", -9, "its values are no times", lambda f: f.column.kind not in ("time", "date") and not f.unit),
    Rule("ts", 2, "its name says so", named("time")),
    Rule("ts", 1, "its name speaks of time", speaks("time")),
    Rule("ts", -3, "it is unknown in some rows", lambda f: f.known < KNOWN),
    Rule("ts", -1, "its name speaks of another time", speaks("elsewhen")),
    Rule("user_id", 4, "its name says so", named("user")),
    Rule("user_id", 2, "its name speaks of a user and an id", speaks("user", "id")),
    Rule("user_id", -9, "its values are no ids", lambda f: not _is_id(f)),
    Rule("user_id", -4, "each row has another", _unique),
    Rule("user_id", -4, "it has hardly any values", lambda f: f.distinct < FEWEST_USERS),
    Rule("item_id", 4, "its name says so", named("item")),
    Rule("item_id", 2, "its name speaks of an item and an id", speaks("item", "id")),
    Rule("item_id", -9, "its values are no ids", lambda f: not _is_id(f)),
    Rule("item_id", -4, "each row has another", _unique),
    Rule("request_id", 4, "its name says so", named("request")),
    Rule("request_id", 2, "its name speaks of a request and an id", speaks("request", "id")),
    Rule("request_id", 3, "its name speaks of a visit", lambda f: named("session")(f) or is_session(f)),
    Rule("request_id", -9, "its values are no ids", lambda f: not _is_id(f)),
    Rule("request_id", -9, "each row has another", _unique),
    Rule("event_id", 3, "its name says so, and each row has another", lambda f: named("event")(f) and _unique(f)),
    Rule("event_id", 3, "its name speaks of an impression, and each row has another",
         lambda f: named("request")(f) and _unique(f)),
    Rule("position", 4, "its name says so", named("position")),
    Rule("position", 3, "its name speaks of a place in a list", speaks("position")),
    Rule("position", -9, "its values are no places", lambda f: not _is_place(f)),
    Rule("propensity", 4, "its name speaks of a chance, its values lie in 0 to 1", speaks("propensity")),
    Rule("propensity", -9, "its values are no chances", lambda f: not (f.number and 0 < f.low <= f.high <= 1)),
    Rule("organic", 4, "its name says so", speaks("organic")),
    Rule("organic", 3, "its name says the contrary", speaks("not_organic")),
    Rule("organic", -9, "its values are not true and false", lambda f: not f.flag),
    Rule("surface", 4, "its name says so", named("surface")),
    Rule("surface", 3, "its name speaks of a place where lists are shown", speaks("surface")),
    Rule("surface", 1, "its values are such places", values_are("surface")),
    Rule("surface", -9, "its values are devices", values_are("device")),
    Rule("surface", -9, "its values are no names of places", lambda f: not 1 < f.distinct <= MOST_SURFACES
         or f.column.kind not in ("text", "integer") or (f.column.kind == "text" and f.spaced > 0.5)),
)  # fmt: skip


class Chosen(NamedTuple):
    """The column of a role."""

    facts: Facts
    why: str
    rivals: tuple[str, ...]  # columns that may as well be it


def choose(facts: list[Facts]) -> dict[str, Chosen]:
    """Return the column of each role that one has points enough for; a column has one role."""
    points = {
        (role, f.name): sum(r.points for r in RULES if r.role == role and r.holds(f))
        for role in dict.fromkeys(rule.role for rule in RULES)
        for f in facts
    }
    by_name = {f.name: f for f in facts}
    chosen: dict[str, Chosen] = {}
    taken = set[str]()
    # Of equal points, that with more values: an item's own id rather than that of its group.
    for (role, name), got in sorted(points.items(), key=lambda p: (-p[1], -by_name[p[0][1]].distinct)):
        if got < THRESHOLD or role in chosen or name in taken:
            continue
        why = max((r for r in RULES if r.role == role and r.holds(by_name[name])), key=lambda r: r.points).why
        taken.add(name)
        near = (n for (r, n), p in points.items() if r == role and n != name and p >= max(THRESHOLD, got - CLOSE))
        chosen[role] = Chosen(by_name[name], why, tuple(near))
    return {role: c._replace(rivals=tuple(n for n in c.rivals if n not in taken)) for role, c in chosen.items()}


def rivals_of(chosen: Chosen) -> str:
    """Return the doubt about a choice: the columns that may as well be it; "" where there are none."""
    return f"or is it {' or '.join(map(repr, chosen.rivals))}?" if chosen.rivals else ""
