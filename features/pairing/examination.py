"""How likely each place is to be looked at, relative to the first: estimated from a log, never from its corrections.

Under the examination hypothesis an item at place k gets feedback above the worst grade with the chance e_k · r: its
place is looked at, and it is found good. Lists alone do not tell the two apart, for good items stand first. The same
item at several places does (intervention harvesting: Agarwal, Zaitsev, Wang, Li, Najork and Joachims, "Estimating
Position Bias without Intrusive Interventions", WSDM 2019):

    cell  = the impressions of one item on one surface, within one day unless their place was drawn
    E[feedback at place k of cell c] = r_c · e_k,   e of the first places = 1

which is a Poisson regression with an effect for each cell. Its conditional likelihood needs the mean alone to be right
(Wooldridge, "Distribution-free estimation of some nonlinear panel data models", 1999), and however small the cells are,
their number does no harm. It is solved by alternating r and e (iterative proportional fitting).

Where the log has impressions whose place a policy drew (`[events] propensity` below 1), those alone are read, each
weighed by the inverse of its propensity: then nothing but luck ties an item's place to what it is worth. Otherwise the
estimate is as good as its assumption, that within a cell the order knew nothing of what this user likes: where lists
are personal, it finds the first places looked at more than they are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import t as student

from features.kernels import njit
from features.pairing.exposure import Places
from features.pairing.groups import may_pair
from features.schema import DAY, F32, F64, I64, Bool, EventLog

#: what an estimate was read from
DRAWN, SEVERAL = "drawn places", "items at several places"
#: of feedback that a place needs to stand by itself; else it is one with the next ones
LEAST = 50
#: parts of the users, each left out once, whose estimates give the intervals
PARTS = 10
#: the alternation ends where no chance moves by more than this share, or after so many rounds
TOLERANCE, ROUNDS = 1e-6, 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """The chance that a place is looked at, relative to the first places, for b ranges of places.

    NaN: the range cannot be compared with the first, for no item stood, by way of others, in both.
    """

    first: I64  # [b], ascending: the first place of each range, which ends before that of the next
    chance: F64  # [b], 1 for the first range
    without: F64  # [PARTS, b], the same, each time without a part of the users
    low: F64  # [b], end of the interval of 95 %, about new users
    high: F64  # [b], the other
    drawn: bool  # the places were drawn by a policy whose propensity is known
    impressions: int  # that the estimate read
    power: float  # of place ** -power, which fits the chances best
    power_low: float  # end of the interval of 95 % of that power
    power_high: float  # the other

    def range_of(self, position: F32) -> I64:
        """Return int64[n], the range of each place (1 is first); -1 where the place, or its chance, is not known."""
        known = position >= self.first[0]
        of = np.searchsorted(self.first, np.where(known, position, np.float32(self.first[0])), side="right") - 1
        return np.where(known & np.isfinite(self.chance[of]), of, -1)

    def reported(self) -> dict[str, Any]:
        """Return it as a report has it."""
        names = ("from", "examined", "low", "high")
        rows = zip(self.first.tolist(), self.chance.tolist(), self.low.tolist(), self.high.tolist(), strict=True)
        return {
            "source": DRAWN if self.drawn else SEVERAL,
            "impressions": self.impressions,
            "places": [dict(zip(names, row, strict=True)) for row in rows],
            "power": self.power,
            "power_ci95": [self.power_low, self.power_high],
        }


@dataclass(frozen=True, slots=True)
class _Table:
    """Impressions counted by cell, range of places and part of the users: m entries."""

    cell: I64  # [m], in [0, cells)
    place: I64  # [m], in [0, ranges)
    part: I64  # [m], in [0, PARTS)
    shown: F64  # [m], weight of the impressions
    found: F64  # [m], of those with feedback above the worst grade


def estimate_examination(log: EventLog, places: Places, end: int) -> Examination | None:
    """Return the estimate of the impressions before `end` (µs) that may make pairs; None where there is none.

    There is none where no place is known, or none but the first has enough feedback of items that stand at others too.
    """
    before = int(np.searchsorted(log.ts, end, side="left"))
    log, places = log.select(slice(0, before)), places.until(before)
    usable = may_pair(log) & (places.position >= 1) & (log.item >= 0)
    drawn = usable & (places.propensity < 1)
    for rows, by_policy in ((drawn, True), (usable, False)):
        first = _ranges(places.position[rows], log.grade[rows] > 0)
        if len(first) > 1:
            estimate = _estimate(log, places, rows, first, by_policy)
            if estimate is not None:
                return estimate
    return None


def _ranges(position: F32, found: Bool) -> I64:
    """Return int64[b]: the first place of each range, the ranges as short as `LEAST` admits; empty where none is."""
    places, counts = np.unique(position[found].astype(np.int64), return_counts=True)
    rest, first, start, held = counts[::-1].cumsum()[::-1], [], 1, LEAST
    for place, count, left in zip(places.tolist(), counts.tolist(), rest.tolist(), strict=True):
        if held >= LEAST and left >= LEAST:
            first.append(start)
            held = 0
        held += count
        start = place + 1
    return np.array(first, np.int64)


def _estimate(log: EventLog, places: Places, rows: Bool, first: I64, drawn: bool) -> Examination | None:
    table = _counted(log, places, rows, first, drawn)
    chance = _chances(table, len(first), np.ones(len(table.cell), bool), np.ones(len(first)))
    if not np.isfinite(chance[0]) or np.isfinite(chance).sum() < 2:
        return None
    again = [_chances(table, len(first), table.part != part, chance) for part in range(PARTS)]
    weight: F64 = np.bincount(table.place, table.found, len(first)).astype(np.float64)
    logs, middle = np.log(np.stack([chance, *again])), _middle(places.position[rows], first)
    powers = np.array([_power(middle, of, weight) for of in logs])
    half, power_half = jackknife_half(logs[1:]), jackknife_half(powers[1:])
    return Examination(
        first=first,
        chance=chance,
        without=np.stack(again),
        low=chance * np.exp(-half),
        high=chance * np.exp(half),
        drawn=drawn,
        impressions=int(rows.sum()),
        power=float(powers[0]),
        power_low=float(powers[0] - power_half),
        power_high=float(powers[0] + power_half),
    )


def jackknife_half(without: F64) -> Any:
    """Return the half-width of the interval of 95 %. without: float64[PARTS, …], each without one part (jackknife)."""
    error = np.sqrt((PARTS - 1) * np.mean((without - without.mean(axis=0)) ** 2, axis=0))
    return student.ppf(0.975, PARTS - 1) * error


def _middle(position: F32, first: I64) -> F64:
    """Return float64[b]: the mean log of the places of the impressions of each range, less that of the first range."""
    of = np.searchsorted(first, position, side="right") - 1
    of, place = of[of >= 0], np.log(position[of >= 0])
    middle = np.bincount(of, place, len(first)) / np.bincount(of, minlength=len(first))
    return np.asarray(middle - middle[0])


def _power(middle: F64, log_chance: F64, weight: F64) -> float:
    """Return the p whose -p · middle is nearest to the log chances, least squares weighed by float64[b] feedback.

    NaN where none but the first is known.
    """
    known = np.isfinite(log_chance)
    squares = (weight * middle * middle)[known].sum()
    return -float((weight * middle * log_chance)[known].sum() / squares) if squares else float("nan")


def _counted(log: EventLog, places: Places, rows: Bool, first: I64, drawn: bool) -> _Table:
    """Count the impressions of the mask by cell, range and part, without cells that say nothing."""
    event = np.flatnonzero(rows & (places.position >= first[0]))
    cell = log.item[event].astype(np.int64) * (int(log.surface.max()) + 2) + log.surface[event] + 1
    if not drawn:
        day = log.ts[event] // DAY
        cell = cell * int(day[-1] - day[0] + 1) + day - day[0]
    place = np.searchsorted(first, places.position[event], side="right") - 1
    weight = 1 / places.propensity[event].astype(np.float64) if drawn else np.ones(len(event))
    entry, inverse = np.unique((cell * len(first) + place) * PARTS + log.user[event] % PARTS, return_inverse=True)
    found: F64 = np.bincount(inverse, weight * (log.grade[event] > 0), len(entry)).astype(np.float64)
    shown: F64 = np.bincount(inverse, weight, len(entry)).astype(np.float64)
    cell = np.unique(entry // PARTS // len(first), return_inverse=True)[1]
    place, part, n = entry // PARTS % len(first), entry % PARTS, int(cell[-1]) + 1
    spread = np.full(n, len(first)), np.full(n, -1)  # the first and the last range of each cell
    np.minimum.at(spread[0], cell, place)
    np.maximum.at(spread[1], cell, place)
    keep = ((spread[0] < spread[1]) & (np.bincount(cell, found, n) > 0))[cell]
    return _Table(np.unique(cell[keep], return_inverse=True)[1], place[keep], part[keep], shown[keep], found[keep])


def _chances(table: _Table, ranges: int, keep: Bool, start: F64) -> F64:
    """Return float64[ranges] of the entries of a mask; NaN where a range cannot be compared with the first."""
    if not keep.any():
        return np.full(ranges, np.nan)
    cells = int(table.cell.max()) + 1
    graph = coo_array(
        (np.ones(int(keep.sum())), (table.place[keep], ranges + table.cell[keep])), shape=(ranges + cells,) * 2
    )
    reached = connected_components(graph, directed=False)[1]
    chance = np.where(np.isfinite(start), start, 1.0)
    _alternate(table.cell[keep], table.place[keep], table.shown[keep], table.found[keep], cells, chance)
    return np.where((reached[:ranges] == reached[0]) & (chance > 0), chance, np.nan)


@njit(cache=True, nogil=True)
def _alternate(cell: I64, place: I64, shown: F64, found: F64, cells: int, chance: F64) -> None:
    """Bring float64[ranges] `chance`, its first entry being 1, to where its feedback is what is expected.

    repeat
        r_c ← feedback of cell c / Σ over its entries of shown · e_place
        e_k ← feedback at k / Σ over its entries of shown · r_cell
        divide e by its first entry
    until e stands still
    """
    good, at = np.zeros(cells), np.zeros(len(chance))
    for m in range(len(cell)):
        good[cell[m]] += found[m]
        at[place[m]] += found[m]
    for _ in range(ROUNDS):
        expected, rate = np.zeros(cells), np.zeros(len(chance))
        for m in range(len(cell)):
            expected[cell[m]] += shown[m] * chance[place[m]]
        for m in range(len(cell)):
            if expected[cell[m]] > 0:
                rate[place[m]] += shown[m] * good[cell[m]] / expected[cell[m]]
        moved = 0.0
        new = np.zeros(len(chance))
        for k in range(len(chance)):
            new[k] = at[k] / rate[k] if rate[k] > 0 else 0.0
        scale = new[0] if new[0] > 0 else 1.0
        for k in range(len(chance)):
            moved = max(moved, abs(new[k] / scale - chance[k]))
            chance[k] = new[k] / scale
        if moved < TOLERANCE:
            break
