"""Grades of recorded events: the TOML's SQL conditions over a batch, by DuckDB, as the import evaluates them.

The same text in the same engine: nothing is compiled anew, so there is no second meaning of a condition. A batch
of 1,000 events takes about a millisecond.
"""

import threading
from collections.abc import Mapping

import duckdb
import numpy as np
import pyarrow as pa

from features.errors import PairliftError
from features.schema import I8
from features.settings import Grade

#: columns of the contract that a condition may read, with their types in the import
CONTRACT = {
    "user_id": None,
    "item_id": None,
    "ts": "TIMESTAMP",
    "surface": "VARCHAR",
    "arm": "VARCHAR",
    "organic": "BOOLEAN",
    "request_id": "VARCHAR",
    "position": "INTEGER",
    "propensity": "DOUBLE",
}


class GradeError(PairliftError):
    """The conditions cannot be evaluated on an event: the text says why."""


class Grading:
    """Ranks events by the grades' conditions; safe to call from several threads.

    A feedback column is a DOUBLE here, where the import may know a BOOLEAN: 1 and 0 stand for true and false, and
    DuckDB takes the one for the other wherever a condition asks.
    """

    def __init__(
        self, grades: tuple[Grade, ...], kinds: Mapping[str, str], columns: Mapping[str, str] | None = None
    ) -> None:
        """kinds: `DOUBLE`, `FLOAT` or `VARCHAR` of the feedback and of what else the conditions read. columns: of the
        recorded events, of those names that are others there.

        PairliftError where a condition does not fit them.
        """
        cases = " ".join(f"WHEN ({g.when}) THEN {rank}" for rank, g in reversed(list(enumerate(grades))))
        self._kinds, self._columns = {**CONTRACT, **kinds}, columns or {}
        self._case = f"coalesce(CASE {cases} END, -1)::TINYINT"
        self._lock = threading.Lock()
        self._con = duckdb.connect(config={"threads": 1})
        self._con.execute("SET TimeZone = 'UTC'")
        try:
            # Values, for a text that is compared with numbers shows only then.
            tried = {self._columns.get(n, n): ["1"] if kind == "VARCHAR" else [1.0] for n, kind in kinds.items()}
            self.ranks(pa.table({"ts": [0], **tried}))
        except GradeError as error:
            raise PairliftError(f"[[grades]]: events cannot be recorded with these conditions: {error}") from error

    def ranks(self, events: pa.Table) -> I8:
        """Return int8[n]: rank of the best grade whose condition is true, -1 for none.

        events: a table of the recorded form; NULL and absent columns are unknown. GradeError where a condition
        cannot be evaluated on an event.
        """
        try:
            with self._lock:
                self._con.register("batch", events)
                query = f"SELECT {self._case} FROM (SELECT {', '.join(self._selected(events))} FROM batch)"
                try:
                    (ranks,) = self._con.execute(query).fetchnumpy().values()
                finally:
                    self._con.unregister("batch")  # else it holds the events, and the segment that they were read from
                return np.asarray(ranks, np.int8)
        except duckdb.Error as error:
            raise GradeError(str(error).split("\n\nLINE")[0].strip()) from error

    def _selected(self, events: pa.Table) -> list[str]:
        given = set(events.column_names)
        selected = []
        for name, kind in self._kinds.items():
            column = self._columns.get(name, name)
            value = f'"{column}"' if column in given else "NULL"
            if name == "ts":
                value = f"make_timestamp({value})"
            selected.append(f'{value}{f"::{kind}" if kind else ""} AS "{name}"')
        return selected
