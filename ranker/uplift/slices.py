"""Where an uplift comes from: labels of the test's pairs, by what was known of user and item as of the group."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from features.pairing.groups import Groups
from features.pairing.pairs import Pairs
from features.schema import DAY, I64, SAMPLED, Bool
from ranker.metrics.simple import events_before
from ranker.training.prepared import Prepared
from ranker.uplift.measured import Fits, Judged, uplift_of

#: the borders between the labels of item ages, in days
AGES = (1, 7, 30)


def slices(
    prepared: Prepared, without: Fits, with_: Fits, judged: Judged, of_rows: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the uplift for each value of each kind of label, over the pairs that have it. of_rows: see `labels`."""
    found = {}
    for kind, label in labels(prepared, judged.groups, judged.pairs, of_rows).items():
        found[kind] = {str(v): uplift_of(without, with_, judged.only(label == v)) for v in np.unique(label)}
    return found


def labels(prepared: Prepared, groups: Groups, pairs: Pairs, of_rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return text[p] by kind: grade pair, activity of the user, popularity and age of the winner, familiarity, surface.

    First seen: whether a plugin can have learned of the winner, which takes an event before t1.
    Familiarity: whether the user had an event with the item before `as_of`, of the winner and of the loser; and
    likewise for each attribute of `[uplift] familiar` with any of the item's values. of_rows: text[n] by kind, of which
    a pair has its winner's (`ranker.uplift.explain.asked.row_labels`).
    """
    owner = groups.requests.row_request()[pairs.winner]
    names = np.array([SAMPLED, *prepared.config.grade_names])
    winner, loser = (names[groups.grade[rows] + 1] for rows in (pairs.winner, pairs.loser))
    start, stop = prepared.state.histories.before(groups.requests.user, groups.requests.as_of)
    found = {
        "grade_pair": np.char.add(np.char.add(winner, " > "), loser),
        "user_activity": _bucket((stop - start)[owner], "events"),
        "winner_popularity": _bucket(
            events_before(prepared.log, prepared.state, groups, ("item",))[pairs.winner].astype(np.int64), "events"
        ),
        "winner_age": _ages(prepared, groups)[pairs.winner],
        "winner_first_seen": _first_seen(prepared, groups)[pairs.winner],
        "familiarity": _both((events_before(prepared.log, prepared.state, groups, ("user", "item")) > 0), pairs),
    }
    for attribute in prepared.config.uplift.familiar:
        found[f"familiarity_{attribute}"] = _both(
            events_before(prepared.log, prepared.state, groups, ("user", attribute)) > 0, pairs
        )
    if prepared.catalog.surfaces:
        surfaces = np.array([*prepared.catalog.surfaces, "none"])
        found["surface"] = surfaces[groups.requests.surface[owner]]
    return found | {kind: label[pairs.winner] for kind, label in of_rows.items()}


def _bucket(count: I64, unit: str) -> Any:
    """Return labels of counts: none, then up to 9, 99, 999 … (they sort as text)."""
    digits = np.where(count > 0, np.floor(np.log10(np.maximum(count, 1))).astype(int) + 1, 0)
    return np.array([f"{d}: 0 {unit}" if d == 0 else f"{d}: {10 ** (d - 1)}-{10**d - 1} {unit}" for d in digits])


def _ages(prepared: Prepared, groups: Groups) -> Any:
    """Return text[n]: how long before `as_of` each candidate had its first event."""
    r = groups.requests
    age = (r.as_of[r.row_request()] - prepared.state.first_seen[r.item]) / DAY
    shown = [
        "under 1 day",
        *(f"{a}-{b} days" for a, b in itertools.pairwise(AGES)),
        f"{AGES[-1]} days and more",
    ]
    names = np.array(["0: not seen before", *(f"{k}: {name}" for k, name in enumerate(shown, 1))])
    return names[np.where(age > 0, 1 + np.searchsorted(AGES, age, side="right"), 0)]


def _first_seen(prepared: Prepared, groups: Groups) -> Any:
    """Return text[n]: whether each candidate had an event in the period that plugins learn from, or before."""
    early = prepared.state.first_seen[groups.requests.item] < prepared.split.t1
    return np.where(early, "before t1", "t1 or later")


def _both(known: Bool, pairs: Pairs) -> Any:
    names = np.array(["neither met", "winner met", "loser met", "both met"])
    return names[known[pairs.winner] + 2 * known[pairs.loser]]
