"""The report of `pairlift offpolicy`: what bundles' lists would have got, by each estimator, or why that is not known.

offpolicy_report   the lists of the log's test whose propensities are known; their own worth
  _bundle          one bundle's chances of all that was shown
    _part          one kind of weights: what they are worth, and each estimator's value, interval and gain
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from features.errors import PairliftError
from features.pairing.split import iso
from features.schema import F64, GIB
from ranker.config import Config, wanted_floor
from ranker.metrics.interval import finite
from ranker.offpolicy.estimators import (
    Kind,
    dr,
    effective_lists,
    ips,
    mean_weight,
    snips,
    value_of,
    weights,
)
from ranker.offpolicy.logged import DrawnLists, drawn_lists
from ranker.offpolicy.rewards import modelled
from ranker.offpolicy.target import Target
from ranker.training.prepared import group_log

#: of `offpolicy.json`
FORMAT = 1
#: what [events] propensity is the chance of
Given = Literal["above", "place"]
#: the kinds of weights, by that
KINDS: dict[Given, tuple[Kind, ...]] = {"above": ("cascade", "list"), "place": ("item_position",)}
#: what each kind reads of the log
USES = {
    "item_position": "the propensity of each item at its place, whatever else was shown",
    "cascade": "the product of the propensities down to each item, each given the items above it",
    "list": "the product of the propensities of the whole list, each given the items above it",
}
#: lists that must say as much as ones of weight 1
LEAST_LISTS = 50
#: of the mean weight: below, the log shows too little of what the bundle would; above, its propensities are others
COVERED, ABOVE_ONE = 0.9, 1.1


def offpolicy_report(
    config: Config,
    bundles: Sequence[Path],
    *,
    given: Given = "above",
    places: int | None = None,
    explored: bool = False,
    memory: int = 2 * GIB,
) -> dict[str, Any]:
    """Return what `offpolicy.json` holds. PairliftError where the log can tell nothing at all.

    given: what [events] propensity is the chance of. places: only so many of each list; None: all. explored: the
    bundles' own draws, in place of their best orders. memory: bytes, of `Cooccurrence.build`.
    """
    if given == "place" and explored:
        raise PairliftError(
            "--explored with --propensity place: a draw's chance of an item at a place, whatever stands above, is not "
            "known; leave one of them out"
        )
    made = group_log(config)
    split, floor = made.split, wanted_floor(config)
    lists = drawn_lists(made, floor, split.t2, split.t3, whole=given == "above")
    if places is not None:
        lists = lists.until_place(places)
    found = []
    for folder in bundles:
        target = Target.of(folder, made, int(lists.requests.as_of[0]), memory)
        found.append(_bundle(folder, target, lists, given, explored))
    report: dict[str, Any] = finite(
        {
            "format": FORMAT,
            "data": config.name,
            "from": iso(split.t2),
            "to": iso(split.t3),
            "wanted": list(config.grade_names[floor:]),
            "propensity": given,
            "policy": "drawn" if explored else "best order",
            "places": places,
            "left_out": lists.left_out,
            "logged": _logged(lists),
            "bundles": found,
        }
    )
    return report


def _logged(lists: DrawnLists) -> dict[str, Any]:
    """Return how many lists there are, and what they got."""
    r = lists.requests
    value, low, high = value_of(lists.reward, r.offsets, r.user)
    return {
        "lists": len(r),
        "users": len(np.unique(r.user)),
        "items": len(lists.place),
        "value": value,
        "ci95": [low, high],
    }


def _bundle(folder: Path, target: Target, lists: DrawnLists, given: Given, explored: bool) -> dict[str, Any]:
    """Return the part of one bundle."""
    late = lists.requests.as_of >= target.since
    early, lists = int((~late).sum()), lists.select(late)
    head = {"bundle": str(folder), "version": target.bundle.version, "before": early}
    if not len(lists.requests):
        return head | {
            "refused": f"all {early:,} lists are from before {iso(target.since)}, up to which it has learned: record "
            "further ones, or name a bundle whose training ended earlier"
        }
    shows = target.shows(lists, explored=explored, above=given == "above")
    user = np.repeat(lists.requests.user, np.diff(lists.requests.offsets))
    model = modelled(shows.scored, lists.reward, lists.place, user)
    parts = {kind: part_of(kind, lists, shows.chance / lists.propensity, model) for kind in KINDS[given]}
    known = float(np.mean(~np.isnan(shows.scored.score)))
    return head | {"logged": _logged(lists), "candidates": known, "degraded": shows.degraded, "estimates": parts}


def part_of(kind: Kind, lists: DrawnLists, ratio: F64, model: tuple[F64, F64]) -> dict[str, Any]:
    """Return what weights of one kind say of float64[n] ratios; why they say nothing, where they do not.

    model: float64[n] each, see `ranker.offpolicy.rewards.modelled`.
    """
    r, reward, of = lists.requests, lists.reward, weights(kind, ratio, lists.requests.offsets)
    mean, low, high = mean_weight(of.weight, r.offsets, r.user)
    effective, total = effective_lists(of.weight, lists.place), of.weight.sum()
    part: dict[str, Any] = {
        "uses": USES[kind],
        "effective_lists": effective,
        "largest_weight": float(of.weight.max()),
        "largest_share": float(of.weight.max() / total) if total > 0 else float("nan"),
        "mean_weight": mean,
        "mean_weight_ci95": [low, high],
        "refused": refusal(effective, mean, low, high),
        "unshown": max(0.0, 1 - mean),
    }
    if part["refused"]:
        return part
    most = part["unshown"] * len(lists.place) / len(r)  # what the rest may have got: from nothing to every item
    values = {
        "ips": ips(of.weight, reward),
        "snips": snips(of.weight, reward, lists.place),
        "dr": dr(of, reward, *model),
    }
    return part | {
        name: _estimate(value, lists, below=0.0 if name == "ips" else most, above=most)
        for name, value in values.items()
    }


def refusal(effective: float, mean: float, low: float, high: float) -> str:
    """Return why weights tell nothing; empty where they do. low, high: ends of the interval of their mean."""
    if mean == 0:
        return (
            "no overlap: nothing that the bundle would show was shown; draw among more candidates ([exploration] top), "
            "or more evenly (temperature)"
        )
    if effective < LEAST_LISTS:
        return (
            f"too few: the lists say as much as {effective:.1f} lists of the bundle's own, and {LEAST_LISTS} were "
            "expected; record more drawn lists, or look at fewer places (--places 1)"
        )
    if high < COVERED:
        return (
            f"no overlap: the log shows only {100 * mean:.0f} % of what the bundle would show, at least "
            f"{100 * COVERED:.0f} % were expected; draw among more candidates ([exploration] top)"
        )
    if low > ABOVE_ONE:
        return (
            f"the mean weight is {mean:.2f} where 1 is due: [events] propensity is not the chance with which these "
            "lists were drawn; see --propensity, and which column is mapped"
        )
    return ""


def _estimate(values: F64, lists: DrawnLists, below: float, above: float) -> dict[str, Any]:
    """Return an estimate with its interval, and how much more it is than what was logged.

    below, above: how far the ends move apart for what the log does not show. IPS counts that as nothing, so no less.
    """
    r = lists.requests
    value, low, high = value_of(values, r.offsets, r.user)
    gain, gain_low, gain_high = value_of(values - lists.reward, r.offsets, r.user)
    ends = {"ci95": [low - below, high + above], "gain_ci95": [gain_low - below, gain_high + above]}
    return {"value": value, "gain": gain} | ends
