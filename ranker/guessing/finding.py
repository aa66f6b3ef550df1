"""The columns that a log has once, checked against each other: is a request of one user, is a visit one list?

What `ranker.guessing.rules` chose by names and values is kept where the groups of the sample agree; what no name says
is found by structure (`ranker.guessing.structure`), and doubted.
"""

import duckdb

from ranker.guessing.facts import Facts, constant_within, distinct_within
from ranker.guessing.guess import Guess, Role
from ranker.guessing.keys import Keys, id_expression
from ranker.guessing.names import quoted
from ranker.guessing.rules import Chosen, choose, rivals_of
from ranker.guessing.structure import MOST, batches, is_once, put_item, put_places, put_user
from ranker.guessing.times import put_time
from ranker.guessing.words import speaks_of

#: rows of one user without a request id are lists where so many share their time with two others
TOGETHER = 0.9


def keys_of(con: duckdb.DuckDBPyConnection, facts: list[Facts]) -> Keys:
    """Return the keys of the sample. Raises PairliftError where no column can be the time, or the item."""
    chosen, keys = choose(facts), Keys()
    put_time(con, facts, chosen, keys)
    _ids(con, facts, chosen, keys)
    for role in _NAMED[:1]:
        if role in chosen:
            _put_chosen(keys, role, chosen[role])
    _request(con, facts, chosen, keys)
    if "request_id" in keys.guesses and "position" not in keys.guesses:
        put_places(con, facts, keys)
    for role in _NAMED[1:]:
        if role in chosen and chosen[role].facts.name not in keys.columns:
            _put_chosen(keys, role, chosen[role])
    return keys


#: what is left after the ids; the first tells whether a visit is a list
_NAMED: tuple[Role, ...] = ("position", "event_id", "propensity", "surface", "organic")


def _put_chosen(keys: Keys, role: Role, chosen: Chosen) -> None:
    f, expression, why, doubt = chosen.facts, "{}", chosen.why, rivals_of(chosen)
    if role == "position" and f.low == 0:
        expression, why = "{} + 1", f"{why}; it counts from 0"
    if role == "organic" and speaks_of(f.name, "not_organic"):
        expression = "NOT ({})::BOOLEAN"
    if role == "propensity":
        sure = speaks_of(f.name, "propensity_sure")
        doubt = doubt or ("" if sure else "is it the chance that the logging policy had, or a score of the item?")
    keys.put(role, f, why, expression, doubt)


def _ids(con: duckdb.DuckDBPyConnection, facts: list[Facts], chosen: dict[str, Chosen], keys: Keys) -> None:
    """Put the item and the user into the keys: by name, else by structure, else one that is made of other columns."""
    roles: tuple[Role, ...] = ("item_id", "user_id")
    if {"item_id", "request_id"} <= chosen.keys():
        request, item = chosen["request_id"].facts, chosen["item_id"].facts
        if not _is_visit(request) and not is_once(con, facts, quoted(request.name), item.name):
            del chosen["item_id"]  # a request shows it again and again, whatever its name says: it is somebody
    for role in roles:
        if role in chosen:
            f, why = chosen[role].facts, chosen[role].why
            keys.put(role, f, why, id_expression(f), rivals_of(chosen[role]))
    taken = {c.facts.name for c in chosen.values()}
    left = [f for f in facts if f.name not in taken]
    lists = [quoted(chosen["request_id"].facts.name)] if "request_id" in chosen else []
    lists = lists or [quoted(f.name) for f in batches(con, left, keys)]
    if "item_id" not in keys.guesses:
        visit = "request_id" in chosen and _is_visit(chosen["request_id"].facts)
        put_item(con, facts, left, [] if visit else lists[:1], keys)
    if "user_id" not in keys.guesses:
        put_user(con, facts, left, lists[:1], keys)
    if "user_id" not in keys.guesses:
        _someone(facts, chosen, keys)
    elif "user_id" in chosen and chosen["user_id"].facts.known < 1:
        _guests(chosen["user_id"], chosen.get("request_id"), keys)


def _is_visit(f: Facts) -> bool:
    """Return whether a request's id is named a visit, in which one comes back to an item."""
    return speaks_of(f.name, "session")


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


def _guests(user: Chosen, visit: Chosen | None, keys: Keys) -> None:
    """Give rows without a user's id the visit's, where there is one; else say that the user of the file decides."""
    own = user.facts.column.sql
    unknown = f"{100 * (1 - user.facts.known):.1f} % of the rows have none"
    # In the sample guests stay unknown: what is constant of a user is not what is constant of a visit.
    if visit is None or visit.facts.known < 1:
        doubt = f'{unknown}, and a user is needed: leave them out with source = "(SELECT * FROM … WHERE … IS NOT NULL)"'
        keys.guesses["user_id"] = Guess(user.facts, "user_id", user.why, id_expression(user.facts).format(own), doubt)
        return
    why = f"{user.why}; {unknown}: their {visit.facts.name} stands for one"
    sql = f"coalesce({own}::VARCHAR, 'guest ' || {visit.facts.column.sql})"
    keys.guesses["user_id"] = Guess(user.facts, "user_id", why, sql)


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
    elif _is_visit(f) and not _is_list(con, key, keys):
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
        keys.put("request_id", f, f"{request.why}; {size:.1f} rows each, of one user", doubt=rivals_of(request))


def _is_list(con: duckdb.DuckDBPyConnection, key: str, keys: Keys) -> bool:
    """Return whether the rows of a visit are one list: of one time, or each at a place of its own."""
    if "position" in keys.guesses:
        return distinct_within(con, key, keys.guesses["position"].name)[0] > MOST
    ts = keys.guesses["ts"].name
    return constant_within(con, key, [ts])[ts] > MOST


def _unnamed_request(con: duckdb.DuckDBPyConnection, facts: list[Facts], keys: Keys) -> None:
    """Find lists without a telling name: ids of one user and time, and of different items; else rows of both."""
    user, item = keys.guesses["user_id"].name, keys.guesses["item_id"].name
    left = [f for f in facts if f.name not in keys.columns and f.name not in keys.left_out]
    for f in batches(con, left, keys):
        items, size = distinct_within(con, quoted(f.name), item)
        if items > MOST and constant_within(con, quoted(f.name), [user])[user] > MOST:
            why = f"its groups ({size:.1f} rows) have one user and time, different items"
            keys.put("request_id", f, why, doubt="no name says so: is it the request's id?")
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
