"""The lists of a log whose order was drawn with known chances."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from features.errors import PairliftError
from features.pairing.exposure import refuse_no_chance
from features.pairing.split import iso
from features.schema import F64, I64, NO_CONTEXT, NO_SOURCE_ITEMS, Bool, Requests, offsets_of
from ranker.request import with_queries
from ranker.training.prepared import Grouped

#: why lists are left out
SOME_UNKNOWN = "some of their items have no propensity"
GAPS = "a place of theirs is unknown, missing or stands twice"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnLists:
    """g lists in time order, with their n items."""

    requests: Requests  # each with the items of its list, from above
    place: I64  # [n], 0 first
    reward: F64  # [n], 1 where the item was wanted, else 0
    propensity: F64  # [n], in (0, 1]
    left_out: dict[str, int]  # lists, by reason

    def select(self, keep: Bool) -> "DrawnLists":
        """Return the lists of a mask bool[g]."""
        rows = keep[self.requests.row_request()]
        return DrawnLists(
            requests=self.requests.select(keep),
            place=self.place[rows],
            reward=self.reward[rows],
            propensity=self.propensity[rows],
            left_out=self.left_out,
        )

    def until_place(self, most: int) -> "DrawnLists":
        """Return the lists with their first places alone."""
        rows, r = self.place < most, self.requests
        sizes = np.bincount(r.row_request()[rows], minlength=len(r))
        kept = DrawnLists(
            requests=r.with_candidates(rows),
            place=self.place[rows],
            reward=self.reward[rows],
            propensity=self.propensity[rows],
            left_out=self.left_out,
        )
        return kept.select(sizes > 0)


def drawn_lists(made: Grouped, floor: int, start: int, end: int, *, whole: bool) -> DrawnLists:
    """Return the lists of [start, end) (µs) whose propensities are known; PairliftError where they tell nothing.

    An impression without a request is a list of its own. floor: rank of the grade from which on an item was wanted.
    whole: propensities are given the items above, so a list counts only where all its places are known, from 1 on.
    """
    position, propensity = _read(made)
    log = made.log
    rows = np.flatnonzero((log.ts >= start) & (log.ts < end))
    key = np.where(log.request[rows] >= 0, log.request[rows], -1 - rows)
    known = ~np.isnan(propensity[rows])
    rows, key, known = _of_drawn(rows, key, known)
    if not len(rows):
        raise PairliftError(
            f"[events] propensity: no event from {iso(start)} to {iso(end)} has one, and only the test, [t2, t3) of "
            "[split], is read: map the propensities that answers carry ([exploration]), or move t2"
        )
    place = np.where(np.isnan(position[rows]), 0.0, position[rows]).astype(np.int64) - 1
    order = np.lexsort((place, key))
    rows, key, known, place = rows[order], key[order], known[order], place[order]
    offsets = np.flatnonzero(np.append(np.append(True, key[1:] != key[:-1]), True))
    if (np.diff(offsets) == 1).all() and np.isnan(position[rows]).all():  # nothing is above a single item
        place = np.zeros(len(rows), np.int64)
    verdict = _judged(offsets, place, known, whole)
    good = verdict == ""
    keep = np.repeat(good, np.diff(offsets))
    lists = _lists(made, rows[keep], offsets_of(np.diff(offsets)[good]), place[keep], propensity, floor)
    lists.left_out.update(Counter(verdict[~good].tolist()))
    _refuse(lists)
    return lists


def _read(made: Grouped) -> tuple[F64, F64]:
    """Return float64[events] position and propensity of the log, NaN where unknown."""
    events = made.config.events
    if events.propensity is None:
        raise PairliftError(
            "[events] propensity is not mapped, so the log does not tell with which chance anything was shown, and "
            "nothing can be told of other lists: record what answers carry under [exploration], and map it"
        )
    with duckdb.connect(str(made.database), read_only=True) as con:
        refuse_no_chance(con, events)
        arrays = con.execute("SELECT position::DOUBLE AS a, propensity::DOUBLE AS b FROM events").fetchnumpy()
    position, propensity = (np.ma.filled(arrays[name], np.nan) for name in ("a", "b"))
    return position, propensity


def _of_drawn(rows: I64, key: I64, known: Bool) -> tuple[I64, I64, Bool]:
    """Return the rows of lists of which any propensity is known."""
    drawn = np.isin(key, key[known])
    return rows[drawn], key[drawn], known[drawn]


def _judged(offsets: I64, place: I64, known: Bool, whole: bool) -> Any:
    """Return object[g]: why each list is left out, empty where it is not."""
    sizes = np.diff(offsets)
    due = np.arange(len(place)) - np.repeat(offsets[:-1], sizes)
    again = np.zeros(len(place), bool)
    again[1:] = place[1:] == place[:-1]
    again[offsets[:-1]] = False
    bad = (place != due) if whole else again | (place < 0)
    gaps, unknown = (np.add.reduceat(of.astype(np.int64), offsets[:-1]) > 0 for of in (bad, ~known))
    return np.where(unknown, SOME_UNKNOWN, np.where(gaps, GAPS, "")).astype(object)


def _lists(made: Grouped, rows: I64, offsets: I64, place: I64, propensity: F64, floor: int) -> DrawnLists:
    """Return the lists of rows of the log, in time order."""
    log, starts = made.log, offsets[:-1]
    first = np.minimum.reduceat(rows, starts) if len(rows) else rows  # the log is in time order
    requests = Requests(
        user=log.user[first],
        as_of=log.ts[first],
        surface=log.surface[first],
        offsets=offsets,
        item=log.item[rows],
        context=log.context[first] if log.context.shape[1] else NO_CONTEXT,
        arm=log.arm[first],
        source_item=log.source_item[first, 0] if log.source_item.shape[1] else NO_SOURCE_ITEMS,
    )
    order = np.argsort(requests.as_of, kind="stable")
    sizes = np.diff(offsets)[order]
    take = np.repeat(starts[order] - offsets_of(sizes)[:-1], sizes) + np.arange(len(rows))
    return DrawnLists(
        requests=with_queries(requests.select(order), made.catalog),
        place=place[take],
        reward=(log.grade[rows[take]] >= max(floor, 0)).astype(np.float64),
        propensity=propensity[rows[take]],
        left_out={},
    )


def _refuse(lists: DrawnLists) -> None:
    """Raise PairliftError where the lists cannot tell of others."""
    if not len(lists.requests):
        why = "; ".join(f"{count:,}: {reason}" for reason, count in lists.left_out.items())
        raise PairliftError(
            f"[events] propensity: of all lists that have any, none is complete ({why}): map [events] request_id and "
            "position, and record every item that a list showed"
        )
    if (lists.propensity == 1).all():
        raise PairliftError(
            f"[events] propensity: 1 for all of {len(lists.propensity):,} items, so the log shows what one order gives "
            "and nothing of others: let a share of the requests explore ([exploration])"
        )
