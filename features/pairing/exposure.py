"""Weights of training pairs beside their grades: against what position and the logging policy did to exposure, and age.

    weight' = c · weight · min(max_correction, 1 / (examination(k) · propensity_winner · propensity_loser))
                · 2 ** (-age / half_life)

k is the winner's position: it got its feedback although place k is looked at with the chance examination(k) only, so
it counts for all those who did not look (Joachims, Swaminathan and Schnabel, "Unbiased Learning-to-Rank with Biased
Feedback", WSDM 2017). That is exact for a winner against all others of its list; against those without feedback alone,
which is what a pair is, nearly so, and the more nearly the rarer feedback is. propensity is the chance with which the
policy showed the item at its place, so what it seldom showed counts for what it kept back. age is counted from the
youngest group, and c keeps the mean of the weights, so any other reference, the end of the period say, gives the same.

What is not known (NULL), or not shown (a drawn loser), has a factor of 1. The metric never sees any of this, nor do the
pairs of a validation slice: both keep the weights of the grades.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np

from features.errors import PairliftError
from features.log.refusals import refuse
from features.pairing.groups import Groups
from features.pairing.pairs import Pairs
from features.schema import F32, F64, I64, Bool
from features.settings import EventsSettings, PairingSettings

#: weights stay above zero, however old their pair is
LEAST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Places:
    """Where each of n events stood, and how likely the logging policy was to put it there; NaN is not known."""

    position: F32  # [n], 1 is the first place
    propensity: F32  # [n], in (0, 1]

    def until(self, n: int) -> "Places":
        """Return those of the first n events of the log."""
        return Places(self.position[:n], self.propensity[:n])


@dataclass(frozen=True, slots=True)
class Exposure:
    """How much each of n events counts for, at least 1: the inverse of the chance that it could be observed."""

    won: F64  # [n], as a winner: the item was shown and its place looked at
    lost: F64  # [n], as a loser: the item was shown

    @classmethod
    def of(cls, position: F64, propensity: F64, settings: PairingSettings) -> "Exposure":
        """position: float64[n], 1 is first; propensity: float64[n] in (0, 1]; NaN is not known, in both."""
        shown = 1 / propensity if settings.propensity else np.ones(len(propensity))
        seen = np.ones(len(position))
        if settings.position_power is not None:
            seen = position**settings.position_power
        if settings.examination is not None:
            table = np.array([np.nan, *settings.examination])  # the place of what is not known, then 1, 2, …
            seen = 1 / table[np.nan_to_num(np.minimum(position, len(table) - 1)).astype(np.int64)]
        known = np.where(np.isnan(shown), 1.0, shown)
        return cls(known * np.where(np.isnan(seen), 1.0, seen), known)

    def until(self, n: int) -> "Exposure":
        """Return it for the first n events of the log."""
        return Exposure(self.won[:n], self.lost[:n])

    def correction(self, pairs: Pairs, event: I64) -> F64:
        """Return float64[p], not clipped. event: int64[n] of the rows that the pairs count, -1 drawn."""
        winner, loser = event[pairs.winner], event[pairs.loser]
        return np.where(winner < 0, 1.0, self.won[winner]) * np.where(loser < 0, 1.0, self.lost[loser])


def load_places(database: Path, events: EventsSettings) -> Places | None:
    """Read position and propensity of the log that `import_log` wrote; None where `[events]` names neither.

    Raises PairliftError where a propensity is out of its range; positions are checked by the import.
    """
    if events.position is None and events.propensity is None:
        return None
    with duckdb.connect(str(database), read_only=True) as con:
        refuse_no_chance(con, events)
        arrays = con.execute("SELECT position, propensity FROM events").fetchnumpy()
    return Places(*(np.ma.filled(arrays[name].astype(np.float32), np.nan) for name in ("position", "propensity")))


def refuse_no_chance(con: duckdb.DuckDBPyConnection, events: EventsSettings) -> None:
    """Raise PairliftError where a propensity of the log is out of its range."""
    readable = """(SELECT user_id, item_id, make_timestamp(ts) AS ts, propensity FROM events
        JOIN users ON users.idx = events."user" JOIN items ON items.idx = events.item ORDER BY events.rowid)"""
    wrong, problem = "NOT (propensity > 0 AND propensity <= 1)", "a chance outside (0, 1]"
    refuse(con, readable, wrong, _place(events, "propensity"), problem)


def make_exposure(places: Places | None, events: EventsSettings, settings: PairingSettings) -> Exposure | None:
    """Return what `[pairing]` corrects for; None where it asks for neither position nor propensity.

    Raises PairliftError where `[events]` does not name what is asked for, or it is known of no event.
    """
    asked = {
        "position_power or examination": ("position", settings.by_position),
        "propensity": ("propensity", settings.propensity),
        "explored_only": ("propensity", settings.explored_only),
    }
    for key, name in ((key, name) for key, (name, wanted) in asked.items() if wanted):
        if places is None or getattr(events, name) is None:
            raise PairliftError(
                f"[pairing] {key} needs [events] {name}, which is not there: map it, or leave the key out"
            )
        if np.isnan(getattr(places, name)).all():
            raise PairliftError(
                f"{_place(events, name)}: NULL in every row, so there is nothing for [pairing] {key}: leave it out"
            )
    if places is None or not (settings.by_position or settings.propensity):
        return None
    return Exposure.of(places.position.astype(np.float64), places.propensity.astype(np.float64), settings)


def _place(events: EventsSettings, name: str) -> str:
    return f"[events] {name} = {getattr(events, name)!r}"


def explored(pairs: Pairs, groups: Groups, places: Places) -> Pairs:
    """Return pairs without those that are to be learned from and have an impression whose propensity is not known.

    Those of validation slices stay. A drawn loser was not shown, so that of its pair the winner's decides.
    PairliftError where none is left to learn from.
    """
    known = (groups.event < 0) | ~np.isnan(places.propensity[groups.event])
    learned = ~groups.validation[groups.requests.row_request()[pairs.winner]]
    left = known[pairs.winner] & known[pairs.loser]
    if learned.any() and not (learned & left).any():
        raise PairliftError(
            f"[pairing] explored_only: of {int(learned.sum()):,} pairs to learn from, none has an [events] propensity "
            "for both of its impressions: leave the key out, or wait for lists that were drawn"
        )
    return pairs.select(left | ~learned)


def corrected(pairs: Pairs, groups: Groups, exposure: Exposure | None, settings: PairingSettings) -> Pairs:
    """Return pairs for training with the weights of this module's formula; those of validation slices keep theirs.

    The mean weight stays what it was. Without a correction and a half-life the pairs come back as they are.
    """
    group = groups.requests.row_request()[pairs.winner]
    learned = ~groups.validation[group]
    if (exposure is None and settings.half_life is None) or not learned.any():
        return pairs
    factor = np.ones(len(pairs))
    if exposure is not None:
        factor = np.minimum(exposure.correction(pairs, groups.event), settings.max_correction)
    if settings.half_life is not None:
        as_of = groups.requests.as_of[group]
        age = np.maximum(as_of[learned].max() - as_of, 0)
        factor = factor * 0.5 ** (age / settings.half_life)
    return replace(pairs, weight=_scaled(pairs.weight, factor, learned))


def _scaled(weight: F32, factor: F64, learned: Bool) -> F32:
    new = weight * factor
    new *= weight[learned].sum(dtype=np.float64) / new[learned].sum()
    return np.where(learned, np.maximum(new, LEAST), weight).astype(np.float32)
