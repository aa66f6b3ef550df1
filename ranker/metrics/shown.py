"""What the places say that the items of a log stood at: the shown order as a baseline, and the debiased metric."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from features.pairing.examination import DRAWN, SEVERAL, Examination, estimate_examination
from features.pairing.exposure import Places
from features.pairing.groups import Groups
from features.pairing.pairs import Pairs
from features.schema import F64, SAMPLED, EventLog
from features.settings import PairingSettings
from ranker.metrics.debiased import LEAST, Debiasing
from ranker.metrics.interval import finite
from ranker.metrics.pair_accuracy import pair_accuracy

#: why the shown order is not to be beaten as others are
UNFAIR = (
    "the shown order is no fair rival: users look at the first places first, so feedback follows the order that was "
    "shown, whatever the items are worth; and who made it may have known what this log does not have"
)
#: what an estimate of each source is worth
SOURCES = {
    DRAWN: "impressions whose place was drawn ([events] propensity)",
    SEVERAL: "impressions of items that stood at several places within a day, for no propensity is known: where the "
    "order knew what each user likes, lower places are looked at, and the shown order is worth, more than this says",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """The pairs of a slice of both of whose items the place is known, and what is known of places."""

    pairs: Pairs  # over the rows of the slice
    comparable: float  # their share of the weight of all shown pairs of the slice
    order: F64  # [n] of the slice's rows: minus the place; NaN where it is not known
    asked: PairingSettings  # what training corrects for, which is no part of the figures
    examination: Examination | None  # None: it cannot be told
    debiasing: Debiasing | None  # None without examination

    @classmethod
    def of(
        cls, groups: Groups, pairs: Pairs, table: F64, places: Places | None, log: EventLog, end: int,
        asked: PairingSettings,
    ) -> "Shown | None":  # fmt: skip
        """Return what the places of a slice say; None where no pair has two.

        pairs: all of the slice. table: of `weight_table`. log, end: examination is estimated of its events before `end`
        (µs). Drawn losers were shown nowhere, so their pairs are left out.
        """
        if places is None:
            return None
        position = np.where(groups.event >= 0, places.position[groups.event], np.float32(np.nan))
        known = ~np.isnan(position)
        shown = pairs.select(~pairs.sampled)
        both = shown.select(known[shown.winner] & known[shown.loser])
        if not len(both):
            return None
        share = float(both.weight.sum(dtype=np.float64) / shown.weight.sum(dtype=np.float64))
        examination = estimate_examination(log, places, end)
        debiasing = None if examination is None else Debiasing.of(groups, table, examination, position)
        return cls(both, share, -position.astype(np.float64), asked, examination, debiasing)

    def reported(self, scores: dict[str, F64]) -> dict[str, Any]:
        """Return the figures of float64[n] scores by name, and of the shown order; what is not known is None."""
        scores = {"shown_order": self.order} | scores
        found: dict[str, Any] = {
            "comparable": self.comparable,
            "pair_accuracy": {name: pair_accuracy(score, self.pairs).value for name, score in scores.items()},
            "debiased": None,
            "examination": self.examination and self.examination.reported(),
            "position_power": self.asked.position_power,
            "set_examination": self.asked.examination,
        }
        if self.debiasing is not None:
            measured = {name: self.debiasing.measure(score).reported() for name, score in scores.items()}
            found["debiased"] = measured | {"least": LEAST, "left_out": self.debiasing.left_out}
        reported: dict[str, Any] = finite(found)
        return reported


def figure_lines(measured: dict[str, Any]) -> list[str]:
    """Return the simple orders of what `train` measured as text."""
    if "sampler" in measured:
        of = f"{SAMPLED} pairs (losers by sampler = '{measured['sampler']}')"
        return [f"PairAccuracy of {of}: ours {measured['pair_accuracy']:.4f}, popularity {measured['popularity']:.4f}"]
    if measured["shown_order"] is None:
        return [f"PairAccuracy: ours {measured['pair_accuracy']:.4f}, popularity {measured['popularity']:.4f}"]
    return shown_lines(measured["shown_order"], {"ours": "ours", "popularity": "popularity"})


def shown_lines(found: dict[str, Any] | None, names: dict[str, str]) -> list[str]:
    """Return what `Shown.reported` found as text; names: how each score but the shown order is called."""
    if found is None:
        return []
    names = {"shown_order": "shown order"} | names
    plain = ", ".join(f"{label} {found['pair_accuracy'][name]:.4f}" for name, label in names.items())
    share = "" if found["comparable"] == 1 else f" (of the {100 * found['comparable']:.1f} % with both places known)"
    lines = [f"PairAccuracy of shown pairs{share}: {plain}", f"  {UNFAIR}"]
    debiased = found["debiased"]
    if debiased is None:
        return [*lines, "  no debiased figures: too little feedback, or no item stood at several places"]
    remarks = dict.fromkeys(debiased[name].get("remark", "") for name in names)
    why = [f"  no debiased figure where - stands: {remark}" for remark in remarks if remark]
    figures = ", ".join(f"{label} {_interval(debiased[name])}" for name, label in names.items())
    seldom = ""
    if debiased["left_out"]:
        share, least = 100 * debiased["left_out"], debiased["least"]
        seldom = (
            f" (without {share:.1f} % of the impressions: looked at less than {least:g} as often as the first place, "
        )
        seldom += "or how often is not known)"
    return [*lines, f"debiased, as if all places were looked at{seldom}: {figures}", *why, *_examined(found)]


def _interval(of: dict[str, Any]) -> str:
    low, high = of["ci95"]
    return "-" if low is None else f"{of['pair_accuracy']:.4f} [{low:.4f}, {high:.4f}]"


def _examined(found: dict[str, Any]) -> list[str]:
    """Return the chance that each place is looked at, and how the TOML's correction compares with it."""
    of, (low, high) = found["examination"], found["examination"]["power_ci95"]
    places = [f"{row['from']}: {row['examined']:.2f}" for row in of["places"] if row["examined"] is not None]
    asked = "no correction is set"
    if found["position_power"] is not None:
        asked = f"position_power = {found['position_power']:g} is set"
    if found["set_examination"] is not None:
        asked = f"examination = {found['set_examination']} is set"
    return [
        f"  examination, the chance that places from … on are looked at, of the first one's: {', '.join(places)}",
        f"  estimated of {of['impressions']:,} {SOURCES[of['source']]}",
        f"  the position_power nearest to it is {of['power']:.2f} [{low:.2f}, {high:.2f}]; {asked} ([pairing])",
    ]
