"""The columns that a log has once, checked against each other: is a request of one user, a place one of a request?

What `ranker.guessing.rules` chose by names and values is kept where the groups of the sample agree; what has no name
that says so is found by structure alone, and doubted.
"""

from dataclasses import dataclass, field

import duckdb

from features.errors import PairliftError
from ranker.guessing.facts import Facts, burst, constant_within, distinct_within
from ranker.guessing.guess import Guess, Role
from ranker.guessing.names import quoted
from ranker.guessing.rules import Chosen, choose
from ranker.guessing.words import VOCABULARY, is_named, speaks_of

#: what of the groups must be so for a rule to hold
MOST = 0.95
#: a request has so many rows at most, and a user's rows without a request id are lists where so many share their time
LARGEST, TOGETHER = 500, 0.9
#: names tell where so many of them have a known word
TELLING = 0.5


@dataclass(slots=True)
class Keys:
    """The keys of a log: their guesses, and each as an expression over the sample."""

    guesses: dict[Role, Guess] = field(default_factory=dict)
    sample: dict[Role, str] = field(default_factory=dict)
    left_out: dict[str, Guess] = field(default_factory=dict)  # columns that a rule chose and the groups did not
    made: set[Role] = field(default_factory=set)  # keys that no column is, but what is made of some

    @property
    def columns(self) -> dict[str, Guess]:
        """Return the guesses of the columns that are keys, by the column's name."""
        return {guess.name: guess for role, guess in self.guesses.items() if role not in self.made}

    def put(self, role: Role, facts: Facts, why: str, expression: str = "{}", doubt: str = "") -> None:
        """Take a column for a key. expression: has {} in the place of the column."""
        own = "" if expression == "{}" else expression.format(facts.column.sql)
        self.guesses[role] = Guess(facts, role, why, own, doubt)
        self.sample[role] = expression.format(quoted(facts.name))


def keys_of(con: duckdb.DuckDBPyConnection, facts: list[Facts]) -> Keys:
    """Return the keys of the sample. Raises PairliftError where no column can be the time, or the item."""
    chosen, keys = choose(facts), Keys()
    _time(facts, chosen, keys)
    _ids(con, facts, chosen, keys)
    for role in ("event_id", "propensity", "surface", "position", "organic"):
        if role in chosen:
            _put_chosen(keys, role, chosen[role])
    _request(con, facts, chosen, keys)
    return keys


def _rivals(chosen: Chosen) -> str:
    return f"or is it {' or '.join(map(repr, chosen.rivals))}?" if chosen.rivals else ""


def _put_chosen(keys: Keys, role: Role, chosen: Chosen) -> None:
    f, expression, why, doubt = chosen.facts, "{}", chosen.why, _rivals(chosen)
    if role == "position" and f.low == 0:
        expression, why = "{} + 1", f"{why}; it counts from 0"
    if role == "organic" and speaks_of(f.name, "not_organic"):
        expression = "NOT ({})::BOOLEAN"
    if role == "propensity":
        sure = speaks_of(f.name, "propensity_sure")
        doubt = doubt or ("" if sure else "is it the chance that the logging policy had, or a score of the item?")
    keys.put(role, f, why, expression, doubt)


def _time(facts: list[Facts], chosen: dict[str, Chosen], keys: Keys) -> None:
    times = [f for f in facts if f.column.kind == "time" and f.known > 0]
    if "ts" not in chosen and not times:
        _counted_time(facts, keys)
        return
    if "ts" not in chosen:
        best = max(times, key=lambda f: f.known)
        chosen["ts"] = Chosen(best, "no other column has times", tuple(f.name for f in times if f is not best))
    f = chosen["ts"].facts
    doubt = _rivals(chosen["ts"])
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


def id_expression(f: Facts) -> str:
    """Return the expression of a column's ids, with {} for the column: integers or text."""
    if f.number and (f.column.kind == "number" or f.column.type.startswith("DECIMAL")):
        return "({})::BIGINT"
    plain = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "VARCHAR"}
    return "{}" if f.column.type in plain else "({})::VARCHAR"


def _ids(con: duckdb.DuckDBPyConnection, facts: list[Facts], chosen: dict[str, Chosen], keys: Keys) -> None:
    for role in ("item_id", "user_id"):
        if role in chosen:
            keys.put(
                role, chosen[role].facts, chosen[role].why, id_expression(chosen[role].facts), _rivals(chosen[role])
            )
    missing = [role for role in ("item_id", "user_id") if role not in keys.guesses]
    taken = {c.facts.name for c in chosen.values()}
    left = [f for f in facts if f.like_id and not f.flag and f.name not in taken and f.distinct >= 10 and not f.unit]
    left = [f for f in left if f.distinct < f.known * f.rows]
    if missing:
        _by_structure(con, facts, left, chosen, keys)
    if "user_id" not in keys.guesses:
        _someone(facts, chosen, keys)
    user = keys.guesses["user_id"].facts
    if user.known < 1 and "user_id" in chosen:
        _guests(facts, user, chosen, keys)


def _by_structure(
    con: duckdb.DuckDBPyConnection, facts: list[Facts], left: list[Facts], chosen: dict[str, Chosen], keys: Keys
) -> None:
    """Take ids without a telling name: those that others do not follow from; users come in bursts, items do not."""
    ts = keys.guesses["ts"].name
    # What has one time is a request, of which a user follows.
    roots = _roots(con, [f for f in left if not constant_within(con, quoted(f.name), [ts])[ts] > MOST])
    bursts = {f.name: burst(con, keys.sample["ts"], f.name) for f in roots}
    roots.sort(key=lambda f: bursts[f.name])
    why = "no name says so; it has the values of an id"
    # Where names tell, a user that none of them speaks of is not there.
    telling = sum(any(speaks_of(f.name, tag) for tag in VOCABULARY) for f in facts) > TELLING * len(facts)
    if "user_id" not in keys.guesses and roots and not telling and ("item_id" in keys.guesses or len(roots) > 1):
        user = roots.pop(0)
        keys.put("user_id", user, f"{why}, and comes in bursts", id_expression(user), _others(roots, user) or "is it?")
    if "item_id" not in keys.guesses and roots:
        item = max(roots, key=lambda f: f.distinct)
        keys.put(
            "item_id", item, f"{why}, and comes at any time", id_expression(item), _others(roots, item) or "is it?"
        )
    if "item_id" not in keys.guesses:
        names = ", ".join(f.name for f in left) or "none"
        raise PairliftError(
            f"no column has the item's ids: integers or words that repeat were expected, found {names}; write "
            "pairlift.toml by hand (`pairlift init DIR`)"
        )


def _roots(con: duckdb.DuckDBPyConnection, left: list[Facts]) -> list[Facts]:
    """Return the columns that do not follow from one with more values, as an artist does from a song."""
    found = list[Facts]()
    for f in sorted(left, key=lambda f: -f.distinct):
        if not any(constant_within(con, quoted(root.name), [f.name])[f.name] > MOST for root in found):
            found.append(f)
    return found


def _others(candidates: list[Facts], chosen: Facts) -> str:
    names = [repr(f.name) for f in candidates if f is not chosen]
    return f"or is it {' or '.join(names[:3])}?" if names else ""


def _someone(facts: list[Facts], chosen: dict[str, Chosen], keys: Keys) -> None:
    """Make a user where the log has none: of its visit, else of what it says of users, else one for all."""
    visit = chosen.get("request_id")
    if visit:
        why = f"the log has no user's id: each {visit.facts.name} stands for one"
        doubt = "is there an id of the user? Without one nobody has a history"
        keys.put("user_id", visit.facts, why, id_expression(visit.facts), doubt)
        keys.made.add("user_id")
        return
    about = [f for f in facts if speaks_of(f.name, "user") and f.column.kind == "text" and f.distinct > 1]
    anchor = about[0] if about else keys.guesses["item_id"].facts
    kinds = ", ".join(f.column.sql for f in about)
    sql = f"concat_ws('|', {kinds})" if about else "'anonymous'"
    why = "the log has no user's id: users of equal attributes stand for one" if about else "the log has no user's id"
    keys.guesses["user_id"] = Guess(
        anchor, "user_id", why, sql, "is there an id of the user? Histories and counters are those of a group"
    )
    keys.sample["user_id"] = f"concat_ws('|', {', '.join(quoted(f.name) for f in about)})" if about else "'anonymous'"
    keys.made.add("user_id")


def _guests(facts: list[Facts], user: Facts, chosen: dict[str, Chosen], keys: Keys) -> None:
    """Give rows without a user's id the visit's, where there is one; else leave them to the user of the file."""
    visit = chosen.get("request_id")
    unknown = f"{100 * (1 - user.known):.1f} % of the rows have none"
    if visit is None or visit.facts.known < 1:
        doubt = f'{unknown}, and a user is needed: leave them out with source = "(SELECT * FROM … WHERE … IS NOT NULL)"'
        keys.guesses["user_id"] = Guess(
            user, "user_id", chosen["user_id"].why, id_expression(user).format(user.column.sql), doubt
        )
        return
    own, guest = user.column.sql, visit.facts.column.sql
    why = f"{chosen['user_id'].why}; {unknown}: their {visit.facts.name} stands for one"
    keys.guesses["user_id"] = Guess(user, "user_id", why, f"coalesce({own}::VARCHAR, 'guest ' || {guest})")
    # In the sample guests stay unknown: what is constant of a user is not what is constant of a visit.


def _request(con: duckdb.DuckDBPyConnection, facts: list[Facts], chosen: dict[str, Chosen], keys: Keys) -> None:
    request = chosen.get("request_id")
    if request is None:
        _unnamed_request(con, facts, keys)
        return
    f, key = request.facts, quoted(request.facts.name)
    users = constant_within(con, key, [keys.guesses["user_id"].name])[keys.guesses["user_id"].name]
    _, size = distinct_within(con, key, keys.guesses["item_id"].name)
    if not size:
        keys.left_out[f.name] = Guess(f, "none", "each value has one row: no list", doubt="is it the request's id?")
    elif speaks_of(f.name, "session") and not _is_list(con, key, keys):
        keys.left_out[f.name] = Guess(
            f,
            "none",
            "a visit of several times, no one list; groups are made from time ([pairing] window)",
            doubt=f"request_id = '{f.column.sql}' makes the visit one pairing group with one as_of, its start",
        )
    elif users < MOST:
        sql = f"concat_ws('|', {keys.guesses['user_id'].expression}, {f.column.sql})"
        doubt = "an id is of several users, so the user's is put before it: is it a request's?"
        keys.guesses["request_id"] = Guess(f, "request_id", request.why, sql, doubt)
        keys.sample["request_id"] = f"concat_ws('|', {keys.sample['user_id']}, {key})"
    else:
        keys.put("request_id", f, f"{request.why}; {size:.1f} rows each, of one user", doubt=_rivals(request))


def _is_list(con: duckdb.DuckDBPyConnection, key: str, keys: Keys) -> bool:
    """Return whether the rows of a visit are one list: of one time, or each at a place of its own."""
    if "position" in keys.guesses:
        return distinct_within(con, key, keys.guesses["position"].name)[0] > MOST
    ts = keys.guesses["ts"].name
    return constant_within(con, key, [ts])[ts] > MOST


def _unnamed_request(con: duckdb.DuckDBPyConnection, facts: list[Facts], keys: Keys) -> None:
    """Find lists without a telling name: ids of one user and different items; else rows of one user and time."""
    user, item = keys.guesses["user_id"].name, keys.guesses["item_id"].name
    taken = {*keys.columns, *keys.left_out}
    for f in facts:
        if f.name in taken or not f.like_id or f.flag or f.known < 0.5 or f.distinct < max(20, f.rows / LARGEST):
            continue
        key = quoted(f.name)
        items, size = distinct_within(con, key, item)
        same = constant_within(con, key, [user, keys.guesses["ts"].name])
        if items > MOST and 1.5 < size <= LARGEST and same[user] > MOST and same[keys.guesses["ts"].name] > MOST:
            keys.put("request_id", f, f"its groups ({size:.1f} rows) have one user and time, different items",
                     doubt="no name says so: is it the request's id?")  # fmt: skip
            return
    _by_time(con, keys)


def _by_time(con: duckdb.DuckDBPyConnection, keys: Keys) -> None:
    both = f"concat_ws('|', {keys.sample['user_id']}, {keys.sample['ts']})"
    found = con.execute(f"""
        SELECT sum(n) FILTER (n > 2) / sum(n) FROM (SELECT count(*) AS n FROM sample GROUP BY {both})""").fetchall()
    if float(found[0][0] or 0) < TOGETHER or "position" not in keys.guesses:
        return
    user, ts = keys.guesses["user_id"], keys.guesses["ts"]
    sql = f"concat_ws('|', {user.expression}, {ts.expression})"
    keys.guesses["request_id"] = Guess(ts.facts, "request_id", "rows of one user and time are a list", sql, "are they?")
    keys.sample["request_id"] = both
    keys.made.add("request_id")
