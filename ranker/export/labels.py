"""The user's own names of what groups have as numbers, for files that other tools read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from features.pairing.groups import Groups
from features.schema import I64, Bool, Catalog, EventLog


@dataclass(frozen=True, slots=True)
class Labels:
    """The user's own names."""

    users: Any  # Arrow array of ids, by user
    items: Any  # Arrow array of ids, by item
    requests: Any  # Arrow array of ids, by code - 1
    grades: Any  # Arrow array of names, by rank
    request_of: I64  # [n] code of each event's request, below 1 for none

    @classmethod
    def of(cls, database: Path, log: EventLog, catalog: Catalog, grades: tuple[str, ...]) -> "Labels":
        """Return the labels of an imported log, whose request ids stand in the DuckDB file `database`."""
        with duckdb.connect(str(database), read_only=True) as con:
            # Codes count from 1.
            requests = con.sql("SELECT request_id FROM requests ORDER BY code").to_arrow_table()["request_id"]
        names = pa.array(grades, pa.string())
        return cls(pa.array(catalog.user_ids), pa.array(catalog.item_ids), requests, names, log.request)

    def columns(self, groups: Groups, rows: slice) -> dict[str, Any]:
        """Return what names the impressions `rows` of groups: NULL is a request without an id, and a drawn grade."""
        r = groups.requests
        owner = r.row_request()[rows]
        # The first of a group is an impression, and those of a request share it.
        request = self.request_of[groups.event[r.offsets[owner]]]
        grade = groups.grade[rows].astype(np.int64)
        return {
            "request_id": self.requests.take(indexes(request - 1, request < 1)),
            "user_id": self.users.take(indexes(r.user[owner])),
            "item_id": self.items.take(indexes(r.item[rows])),
            "as_of": moments(r.as_of[owner]),
            "grade": self.grades.take(indexes(grade, grade < 0)),
        }


def indexes(codes: Any, missing: Bool | None = None) -> Any:
    """Return codes as an Arrow array to `take` by; NULL where the mask bool[n] is true."""
    return pa.array(codes, mask=missing)


def moments(ts: I64, missing: Bool | None = None) -> Any:
    """Return µs UTC as Arrow timestamps; NULL where the mask bool[n] is true."""
    return pa.array(ts, pa.timestamp("us", "UTC"), mask=missing)
