"""What a study found: each arm's uplift with its interval, its gain over the first arm, and the slope over the axis."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from features.schema import F64
from ranker.config import Config
from ranker.metrics.interval import finite, relative_uplift
from ranker.studies.variants import PARAMETERS, Study, Variant

#: of the report
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all arms are compared with."""

    without: F64  # [1, seeds, users], weight of the pairs that are right without a plugin, ties one half
    total: float  # weight of all pairs
    kind: str  # of the pairs, shown or sampled
    best: F64 | None  # [users], as `without`, of the order by the truth, where it is known


@dataclass(frozen=True, slots=True)
class Measured:
    """One arm, measured."""

    variant: Variant
    right: F64  # [fits, seeds, users], as `Shared.without`
    fits: list[dict[str, Any]]  # `seconds`, what the plugin says of its fit: `report`, and `heads`: see below

    def at(self, over: str) -> float | None:
        """Return its place on an axis; None where it has none."""
        if over != PARAMETERS:
            return self.variant.at
        said = [fit["report"].get(PARAMETERS) for fit in self.fits]
        return None if None in said else float(np.mean(said))

    @property
    def validation(self) -> float | None:
        """The mean over fits of the highest `validation` among the epochs that a fit reports, where it reports some."""
        best = [[e["validation"] for e in fit["report"].get("epochs", []) if "validation" in e] for fit in self.fits]
        return float(np.mean([max(of_fit) for of_fit in best])) if all(best) else None

    @property
    def heads(self) -> dict[str, float]:
        """The mean loss over fits of each head on the events of the test (`features.plugin.HeadsPlugin`), by name."""
        found = [fit["heads"] for fit in self.fits]
        return {name: float(np.mean([of[name] for of in found])) for name in found[0]}


def study_report(config: Config, name: str, study: Study, arms: list[Measured], shared: Shared) -> dict[str, Any]:
    """Return the report of a study, as its JSON has it."""
    found: dict[str, Any] = finite(
        {
            "format": FORMAT,
            "study": name,
            "asks": study.asks,
            "data": config.name,
            "pairs_kind": shared.kind,
            "users": shared.without.shape[2],
            "fit_seeds": config.uplift.fit_seeds,
            "seeds": list(config.uplift.seeds),
            "fit_minutes": sum(fit["seconds"] for arm in arms for fit in arm.fits) / 60,
            "without": _accuracy(shared.without, shared),
            "best": None
            if shared.best is None
            else _compared(np.broadcast_to(shared.best, shared.without.shape), shared),
            "arms": [_arm(arm, arms[0], study, shared) for arm in arms],
            "slope": slope(study.over, arms, shared.without) if study.over else None,
        }
    )
    return found


def _arm(arm: Measured, first: Measured, study: Study, shared: Shared) -> dict[str, Any]:
    return {
        "arm": arm.variant.name,
        "plugin": arm.variant.plugin,
        "options": dict(arm.variant.options),
        "period": arm.variant.period,
        "at": arm.at(study.over),
        **_compared(arm.right, shared),
        "over_first": None if arm is first else relative_uplift(first.right, arm.right).reported(),
        "validation": arm.validation,
        "heads": arm.heads,
        # Of the towers thousands of numbers, which `BUNDLE/curves` are for.
        "fits": [{**fit, "report": {k: v for k, v in fit["report"].items() if k != "curve"}} for fit in arm.fits],
    }


def _compared(right: F64, shared: Shared) -> dict[str, Any]:
    return {"pair_accuracy": _accuracy(right, shared), **relative_uplift(shared.without, right).reported()}


def _accuracy(right: F64, shared: Shared) -> float:
    return float(right.mean(axis=(0, 1)).sum()) / shared.total


def slope(over: str, arms: list[Measured], without: F64) -> dict[str, Any]:
    """Return the least-squares slope of the uplift over log10 of the axis, with its interval about users, fits, seeds.

    A slope is a weighted sum of the arms' uplifts whose weights sum to zero, and so the relative uplift of `without`
    with the same sum of the arms' right pairs put on top: its interval is `relative_uplift`'s.
    """
    at = [arm.at(over) for arm in arms]
    if None in at or len(set(at)) < 2:
        return {"over": over, "remark": f"the plugin does not say its {over}, or it is the same in all arms"}
    x = np.log10(np.array(at, np.float64))
    weight = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    top = sum(w * arm.right for w, arm in zip(weight, arms, strict=True))
    return {"over": over, "remark": "", **relative_uplift(without, without + top).reported()}
