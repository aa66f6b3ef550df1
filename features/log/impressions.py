"""What holds within a request: context says one thing, and what is said of candidates was known before the answer."""

import logging
import math

import duckdb

from features.errors import PairliftError
from features.settings import EventsSettings

log = logging.getLogger(__name__)

#: rows of each value, on average, from which on it is no chance that each stands for one of another column
LEAST_OF_VALUE = 20
#: how likely chance alone may make a column known only where there is feedback
BY_CHANCE = 1e-6
#: requests with at least so many known places and values are looked at for a column that orders them
LEAST_LIST = 3
#: a column that orders so large a share of them as `position` does is warned of
MOST_ORDERED = 0.5


def check_impressions(con: duckdb.DuckDBPyConnection, settings: EventsSettings) -> None:
    """Refuse columns of `mapped` that a request cannot have; warn of those that may be known only after it.

    PairliftError for a column of `[events.context]` with two values in one request, and for one of
    `[events.candidate]` that is a feedback column or the position.
    """
    if settings.request_id is not None:
        for name in settings.context:
            _refuse_two_values(con, name)
    for name in settings.candidate:
        text, few = _kind_of(con, name)
        _refuse_answer(con, settings, name, text, few)
        if not text and settings.request_id is not None and settings.position is not None:
            _warn_of_places(con, name)


def _refuse_two_values(con: duckdb.DuckDBPyConnection, name: str) -> None:
    column = f'"context_{name}"'
    found = con.execute(f"""
        SELECT request_id, min({column})::VARCHAR, max({column})::VARCHAR, count(*) OVER () FROM mapped
        WHERE request_id IS NOT NULL GROUP BY request_id HAVING min({column}) <> max({column}) LIMIT 1""").fetchone()
    if found:
        request, one, other, count = found
        raise PairliftError(
            f"[events.context] {name}: one value for a request was expected, but {count:,} requests have several "
            f"(request {request!r} has {one} and {other}). What differs from candidate to candidate belongs into "
            "[events.candidate]; else mend the log"
        )


def _kind_of(con: duckdb.DuckDBPyConnection, name: str) -> tuple[bool, bool]:
    """Return whether a column of `[events.candidate]` is text, and whether it has few values, each in many rows."""
    kind, values, rows = con.execute(f"""
        SELECT any_value(typeof("candidate_{name}")), approx_count_distinct("candidate_{name}"),
               count("candidate_{name}") FROM mapped""").fetchall()[0]
    return kind == "VARCHAR", values * LEAST_OF_VALUE <= rows


def _refuse_answer(con: duckdb.DuckDBPyConnection, settings: EventsSettings, name: str, text: bool, few: bool) -> None:
    """Refuse a column that says what feedback or the place says wherever both are known, and is not constant there.

    It does where it equals it; where it has few values and each of them stands for one of those (yes for 1); and where
    it is known of what has feedback alone (the price paid). text, few: of `_kind_of`.
    """
    answers = {f"[events.feedback] {feedback}": f'"{feedback}"' for feedback in settings.feedback}
    if settings.position is not None:
        answers["[events] position"] = "position"
    own = f'"candidate_{name}"'
    for answer, other in answers.items():
        found = "" if text else _equal(con, own, other)
        if not found and few:
            found = _named_anew(con, own, other)
        if not found and other != "position":
            found = _known_after(con, own, other)
        if found:
            raise PairliftError(
                f"[events.candidate] {name}: it {found.format(answer)}, so it is known only after the answer; no "
                "request can say it: leave it out"
            )


def _equal(con: duckdb.DuckDBPyConnection, own: str, other: str) -> str:
    """Return how a number says what another column says: by being equal to it; empty where it does not."""
    equal = con.execute(f"""
        SELECT bool_and({own} = {other}::FLOAT) AND count(DISTINCT CASE WHEN {other} IS NOT NULL THEN {own} END) > 1
        FROM mapped""").fetchall()[0][0]
    return "equals {} in every row" if equal else ""


def _named_anew(con: duckdb.DuckDBPyConnection, own: str, other: str) -> str:
    """Return how a column of few values says what another one says: each value for one; empty where it does not."""
    met = f"FROM mapped WHERE {own} IS NOT NULL AND {other} IS NOT NULL GROUP BY ALL"
    pairs, values, others, rows, one, stands_for = con.execute(f"""
        SELECT count(*), count(DISTINCT own), count(DISTINCT other), sum(n), min(own), arg_min(other, own)
        FROM (SELECT {own} AS own, {other} AS other, count(*) AS n {met})""").fetchall()[0]
    if not pairs == values == others or pairs < 2 or rows < LEAST_OF_VALUE * pairs:
        return ""
    return f"has a value of its own for each of {{}} ({one!r} for {stands_for!r} …) in every row"


def _known_after(con: duckdb.DuckDBPyConnection, own: str, other: str) -> str:
    """Return how a column says by being NULL where feedback is 0; empty where it does not, or it may be chance."""
    of_none, of_some, share = con.execute(f"""
        SELECT count({own}) FILTER ({other}::DOUBLE = 0), count({own}) FILTER ({other}::DOUBLE <> 0),
               avg(({other}::DOUBLE <> 0)::INTEGER) FROM mapped WHERE {other} IS NOT NULL""").fetchall()[0]
    if of_none or not of_some or of_some * math.log(share) > math.log(BY_CHANCE):
        return ""
    return "is known only where {} is not 0"


def _warn_of_places(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Warn where a number is in the order of `position`, or the reverse, in most requests that show several values."""
    own = f'"candidate_{name}"'
    # lead() over the list: a list is in order where no step goes the other way.
    lists, ordered = con.execute(f"""
        SELECT count(*), count(*) FILTER (falls = 0 OR rises = 0) FROM (
            SELECT count(*) FILTER (step > 0) AS rises, count(*) FILTER (step < 0) AS falls FROM (
                SELECT request_id, lead({own}) OVER (PARTITION BY request_id ORDER BY position) - {own} AS step
                FROM mapped WHERE request_id IS NOT NULL AND position IS NOT NULL AND {own} IS NOT NULL)
            GROUP BY request_id HAVING count(*) >= {LEAST_LIST} AND rises + falls >= {LEAST_LIST - 1})""").fetchall()[0]
    if lists and ordered > MOST_ORDERED * lists:
        log.warning(
            "[events.candidate] %s orders %.0f %% of the requests just as position does. The score that made the list "
            "may stay, if every request will carry it; what is made of the place, or after the answer, must go",
            *(name, 100 * ordered / lists),
        )
