"""What the columns beside the keys are: feedback, or of the user, of the item, of the request, of a candidate.

The order of the questions matters. What has one value for each user, request or item is an attribute of it, whatever
its name. What comes with the answer is feedback, and never a feature. The rest was shown, or says what was asked.
"""

import math
from dataclasses import dataclass

import duckdb

from ranker.guessing.facts import Facts, changes_in_time, constant_within, funnel, only_where
from ranker.guessing.feedback import Act, act_of, is_scale, yes_or_no
from ranker.guessing.guess import Guess, Role
from ranker.guessing.keys import Keys
from ranker.guessing.names import quoted
from ranker.guessing.rules import KNOWN, is_session, values_are
from ranker.guessing.words import is_named, speaks_of

#: so constant, beyond chance, is an attribute; from SURE on without a doubt
CONSTANT, SURE = 0.97, 0.999
#: a column that changes so seldom in the order of time, of what chance gives, follows the time
SELDOM = 0.02
#: yes and no of which steps of an answer are looked for
MOST_FLAGS = 40
#: different values of a text that is for people to read, over those of its key
READ = 0.5
_ALMOST = "it changes in some of them: the last value known is taken, which may lie after the event"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the groups of the sample say of the columns that are no keys: beyond chance (NaN: cannot be told)."""

    user: dict[str, float]
    item: dict[str, float]
    request: dict[str, float]
    hour: dict[str, float]
    requests: str  # what a request is: its column, or what stands for it; "" for nothing


def roles_of(con: duckdb.DuckDBPyConnection, facts: list[Facts], keys: Keys) -> list[Guess]:
    """Return a guess for each column that is no key."""
    taken = keys.columns
    found = [keys.left_out[f.name] for f in facts if f.name in keys.left_out]
    rest = [f for f in facts if f.name not in taken and f.name not in keys.left_out]
    useless = {f.name: guess for f in rest if (guess := _useless(con, f, keys))}
    rest = [f for f in rest if f.name not in useless]
    seen = _seen(con, [f.name for f in rest], keys)
    acts = {f.name: act for f in rest if (act := act_of(f)) and not _attribute(f, seen)}
    acts |= _funnel(con, [f for f in rest if not _attribute(f, seen)], acts)
    done = [act.done.format(quoted(name)) for name, act in acts.items() if act.kind in ("act", "refusal", "type")]
    found += [*useless.values()]
    found += [_guess(con, f, seen, acts.get(f.name), done, bool(acts), keys) for f in rest]
    order = {f.name: place for place, f in enumerate(facts)}
    return sorted(found, key=lambda guess: order[guess.name])


def _seen(con: duckdb.DuckDBPyConnection, names: list[str], keys: Keys) -> Seen:
    nothing = dict.fromkeys(names, math.nan)
    user, item, ts = (keys.sample[role] for role in ("user_id", "item_id", "ts"))
    request = keys.sample.get("request_id", "")
    at_once = f"concat_ws('|', {user}, {ts})"
    within = constant_within(con, request or at_once, names)
    return Seen(
        # Of a user that is made of other columns, these are constant by construction.
        nothing if "user_id" in keys.made else constant_within(con, user, names),
        constant_within(con, item, names),
        within,
        constant_within(con, f"date_trunc('hour', {ts})", names),
        "request" if request else "user at a time",
    )


def _useless(con: duckdb.DuckDBPyConnection, f: Facts, keys: Keys) -> Guess | None:
    """Return the guess of a column that says nothing by itself, None for others."""
    if f.column.kind == "other":
        return Guess(f, "none", f"{f.column.type} is neither a number nor a text nor a list of texts")
    if f.distinct <= 1:
        return Guess(f, "none", "one value" if f.distinct else "never known")
    if f.distinct >= f.known * f.rows and f.column.kind in ("integer", "text") and f.distinct > 50 and f.spaced < 0.5:
        return Guess(f, "none", "each row has a value of its own")
    if f.distinct <= 50 and f.column.kind != "list":
        changes = changes_in_time(con, keys.sample["ts"], f.name)
        if changes < SELDOM:
            return Guess(f, "none", "its values follow each other in time: a version, which a test of later days lacks")
    return None


def _funnel(con: duckdb.DuckDBPyConnection, varying: list[Facts], acts: dict[str, Act]) -> dict[str, Act]:
    """Return the acts that no name speaks of: yes or no, where a rarer yes never comes without this one.

    acts: those that names speak of. Where there are any, the rarer one must be one of them.
    """
    flags = {f.name: f for f in varying if f.flag}
    on = {name: f"coalesce({quoted(name)}::INT = 1, false)" for name in flags}
    known = {f.name: f"{quoted(f.name)} IS NOT NULL" for f in varying if not f.flag and f.known < KNOWN}
    wide = {name: sql for name, sql in list(on.items())[:MOST_FLAGS] if name not in acts}
    rare = {name: sql for name, sql in on.items() if name in acts} if acts else wide | known
    found = dict[str, Act]()
    for name, rarer in funnel(con, wide, rare).items():
        for one in (name, rarer):
            if one in flags and one not in acts:
                why = f"'{rarer}' never comes without '{name}', as steps of an answer do"
                found[one] = yes_or_no(flags[one], why, doubt="" if acts else "is it what the user did?")
    return found


def _attribute(f: Facts, seen: Seen) -> bool:
    """Return whether a column has one value for each item, user or request."""
    return any(values[f.name] >= CONSTANT for values in (seen.item, seen.user, seen.request))


def _guess(
    con: duckdb.DuckDBPyConnection, f: Facts, seen: Seen, act: Act | None, done: list[str], acted: bool, keys: Keys
) -> Guess:
    if act:
        return Guess(f, "feedback", act.why, act.sql.format(f.column.sql), act.doubt, act)
    constant = _constant(f, seen)
    if constant:
        return constant
    if f.column.kind in ("time", "date", "clock"):
        return Guess(f, "none", "another time than the event's")
    if done and only_where(con, f.name, done):
        why = "known, or not 0, only where the user acted: it came with the answer"
        if f.flag:
            act = yes_or_no(f, why)
            return Guess(f, "feedback", why, act.sql.format(f.column.sql), "", act)
        role: Role = "feedback" if f.number and not speaks_of(f.name, "naming") else "none"
        return Guess(f, role, why)
    return _shown_or_asked(f, seen, acted, keys)


def _constant(f: Facts, seen: Seen) -> Guess | None:
    """Return the guess of a column with one value for each user, request or item; None for others."""
    if speaks_of(f.name, "calendar") and seen.hour[f.name] >= CONSTANT:
        return Guess(f, "none", "it follows from the time: hour and weekday are features already")
    user, item, request = seen.user[f.name], seen.item[f.name], seen.request[f.name]
    if f.column.kind in ("date", "clock") or (f.column.kind == "time" and not item >= CONSTANT):
        return None
    if user >= CONSTANT:
        doubt = "" if user >= SURE else _ALMOST
        return Guess(f, "user attribute", "one value for each user", attribute(f), future_of(f) or doubt)
    if request >= CONSTANT and not item >= SURE:
        return _asked(f, f"one value for each {seen.requests}", "" if request >= SURE else "it varies in some of them")
    if item >= CONSTANT:
        doubt = "" if item >= SURE else _ALMOST
        return Guess(f, "item attribute", "one value for each item", attribute(f), future_of(f) or doubt)
    return None


def future_of(f: Facts) -> str:
    """Return the doubt about an attribute that may be made of the events themselves; "" for others."""
    counts = speaks_of(f.name, "total") or speaks_of(f.name, "act")
    return "does it count the whole log? Then it tells the future: leave it out" if counts and f.number else ""


def _asked(f: Facts, why: str, doubt: str = "") -> Guess:
    """Return the guess of a column that a request says of itself."""
    if speaks_of(f.name, "version") and not speaks_of(f.name, "asked") and not f.number:
        return Guess(f, "none", f"{why}; an arm or a version, no taste", doubt="it may be context")
    if is_named(f.name, "session") or is_named(f.name, "request") or is_session(f) or speaks_of(f.name, "index"):
        return Guess(f, "none", f"{why}; an id, which says nothing of the next one")
    if speaks_of(f.name, "private"):
        return Guess(f, "none", f"{why}; it names a person or a machine")
    if f.column.kind == "list":
        return Guess(f, "none", f"{why}, but a list, which no context is")
    if f.flag and act_of(f):
        said = "its name speaks of what the user did in it"
        return Guess(f, "none", f"{why}, and {said}", doubt="where it is known before the answer, it is context")
    return Guess(f, "context", why, category(f), doubt)


def _shown_or_asked(f: Facts, seen: Seen, acted: bool, keys: Keys) -> Guess:
    """Return the guess of a column that varies: a candidate's, the request's, or what nothing tells."""
    useless = _no_feature(f)
    if useless:
        return Guess(f, "none", useless)
    if "request_id" in keys.sample and seen.request[f.name] < CONSTANT:
        return _candidate(f, acted)
    if speaks_of(f.name, "shown") and not speaks_of(f.name, "asked"):
        return Guess(f, "candidate", "its name speaks of what is shown of an item, whose values vary", category(f))
    if speaks_of(f.name, "asked") or values_are("device")(f) or speaks_of(f.name, "user"):
        return _asked(f, "its name or values speak of the user's side")
    if not acted and (f.flag or is_scale(f)):
        what = "yes or no" if f.flag else "a scale of few steps"
        act = yes_or_no(f, what) if f.flag else Act("rating", what)
        sql = act.sql.format(f.column.sql)
        return Guess(f, "feedback", f"{what}, and nothing else is feedback", sql, "is it what the user said?", act)
    return _asked(f, "it varies with user and item", "of the request, of what was shown, or said after the answer?")


def _no_feature(f: Facts) -> str:
    """Return why a column that varies is no feature; "" where it may be one."""
    if is_named(f.name, "index") or (f.column.kind == "text" and f.distinct > 0.9 * f.known * f.rows):
        return "an index, or a value for nearly each row"
    if f.column.kind == "list":
        return "a list that varies: neither context nor candidate"
    return "it names a person or a machine" if speaks_of(f.name, "private") else ""


def _candidate(f: Facts, acted: bool) -> Guess:
    if f.flag and not acted and not speaks_of(f.name, "shown"):
        act = yes_or_no(f, "yes or no within a request, and nothing else is feedback")
        doubt = "is it what the user did, or was it shown (then [events.candidate])?"
        return Guess(f, "feedback", act.why, act.sql.format(f.column.sql), doubt, act)
    known = speaks_of(f.name, "shown") or not (f.flag or speaks_of(f.name, "amount"))
    doubt = "" if known else "known before the answer? If not, it is feedback, and never a feature"
    return Guess(f, "candidate", "it varies within a request", category(f), doubt)


def category(f: Facts) -> str:
    """Return the expression of an attribute: a number that only names something becomes text; "" for it as it is."""
    names = speaks_of(f.name, "naming") or speaks_of(f.name, "category")
    if f.number and f.whole and not f.flag and names:
        return f"({f.column.sql})::VARCHAR"
    return f"({f.column.sql})::VARCHAR" if f.column.type == "UUID" else ""


def attribute(f: Facts) -> str:
    """Return the expression of an item's or user's attribute; "" for the column as it is."""
    if f.column.kind == "time":
        return f"epoch({f.column.sql})"
    return category(f)


def for_reading(f: Facts, keys: int) -> bool:
    """Return whether an attribute is text for people, such as a title. keys: how many items or users there are."""
    return f.column.kind == "text" and f.distinct > max(50, READ * keys)
