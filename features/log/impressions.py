"""What holds within a request: context says one thing, and what is said of candidates was known before the answer."""

import logging

import duckdb

from features.errors import PairliftError
from features.settings import EventsSettings

log = logging.getLogger(__name__)

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
        _refuse_answer(con, settings, name)
        if settings.request_id is not None and settings.position is not None:
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


def _refuse_answer(con: duckdb.DuckDBPyConnection, settings: EventsSettings, name: str) -> None:
    """Refuse a column that equals feedback or the place wherever both are known, and is not constant there."""
    answers = [f"[events.feedback] {feedback}" for feedback in settings.feedback]
    columns = [f'"{feedback}"' for feedback in settings.feedback]
    if settings.position is not None:
        answers, columns = [*answers, "[events] position"], [*columns, "position"]
    own = f'"candidate_{name}"'
    if not columns or con.execute(f"SELECT typeof({own}) FROM mapped LIMIT 1").fetchall()[0][0] == "VARCHAR":
        return
    compared = ", ".join(
        f"bool_and({own} = {other}::FLOAT) AND count(DISTINCT CASE WHEN {other} IS NOT NULL THEN {own} END) > 1"
        for other in columns
    )
    for answer, equal in zip(answers, con.execute(f"SELECT {compared} FROM mapped").fetchall()[0], strict=True):
        if equal:
            raise PairliftError(
                f"[events.candidate] {name}: it equals {answer} in every row, so it is known only after the answer; no "
                "request can say it: leave it out"
            )


def _warn_of_places(con: duckdb.DuckDBPyConnection, name: str) -> None:
    """Warn where a number is in the order of `position`, or the reverse, in most requests that show several values."""
    own = f'"candidate_{name}"'
    if con.execute(f"SELECT typeof({own}) FROM mapped LIMIT 1").fetchall()[0][0] == "VARCHAR":
        return
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
