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


@dataclass(frozen=True, slots=True)
class Measured:
    """One arm, measured."""

    variant: Variant
    right: F64  # [fits, seeds, users], weight of the pairs that are right, ties one half
    fits: list[dict[str, Any]]  # `seconds`, and what the plugin says of its fit: `report`

    def at(self, over: str) -> float | None:
        """Return its place on an axis; None where it has none."""
        if over != PARAMETERS:
            return self.variant.at
        said = [fit["report"].get(PARAMETERS) for fit in self.fits]
        return None if None in said else float(np.mean(said))

    @property
    def validation(self) -> float | None:
        """The mean over fits of the best PairAccuracy on the validation slice of the towers' period, where known."""
        best = [[e["validation"] for e in fit["report"].get("epochs", []) if "validation" in e] for fit in self.fits]
        return float(np.mean([max(of_fit) for of_fit in best])) if all(best) else None


def study_report(
    config: Config,
    name: str,
    study: Study,
    arms: list[Measured],
    without: F64,
    best: F64 | None,
    total: float,
    kind: str,
) -> dict[str, Any]:
    """Return the report of a study.

    without: float64[1, seeds, users], as `Measured.right`. best: float64[users], of the order by the truth. total: the
    weight of all pairs, which are of a kind, `shown` or `sampled`.
    """
    report = {
        "format": FORMAT,
        "study": name,
        "asks": study.asks,
        "data": config.name,
        "pairs_kind": kind,
        "users": without.shape[2],
        "fit_seeds": config.uplift.fit_seeds,
        "seeds": list(config.uplift.seeds),
        "fit_minutes": sum(fit["seconds"] for arm in arms for fit in arm.fits) / 60,
        "without": float(without.mean(axis=(0, 1)).sum()) / total,
        "best": None if best is None else _best(without, best, total),
        "arms": [_arm(arm, arms[0], study, without, total) for arm in arms],
        "slope": slope(study.over, arms, without) if study.over else None,
    }
    found: dict[str, Any] = finite(report)
    return found


def _arm(arm: Measured, first: Measured, study: Study, without: F64, total: float) -> dict[str, Any]:
    gain = None if arm is first else relative_uplift(first.right, arm.right).reported()
    return {
        "arm": arm.variant.name,
        "plugin": arm.variant.plugin,
        "options": dict(arm.variant.options),
        "period": arm.variant.period,
        "at": arm.at(study.over),
        "pair_accuracy": float(arm.right.mean(axis=(0, 1)).sum()) / total,
        **relative_uplift(without, arm.right).reported(),
        "over_first": gain,
        "validation": arm.validation,
        "fits": arm.fits,
    }


def _best(without: F64, best: F64, total: float) -> dict[str, Any]:
    with_ = np.broadcast_to(best, without.shape)
    return {"pair_accuracy": float(best.sum()) / total, **relative_uplift(without, with_).reported()}


def slope(over: str, arms: list[Measured], without: F64) -> dict[str, Any]:
    """Return the least-squares slope of the uplift over log10 of the axis, with its interval about users, fits, seeds.

    A slope is a weighted sum of the arms' uplifts whose weights sum to zero, and so the relative uplift of `without`
    with the same sum of the arms' right pairs put on top: its interval is `relative_uplift`'s.
    """
    at = [arm.at(over) for arm in arms]
    if None in at or len(set(at)) < 2:
        return {"over": over, "remark": f"the plugin does not say its {over}, or it is the same in all arms"}
    x = np.log10(np.array(at, np.float64))
    share = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    top = sum(c * arm.right for c, arm in zip(share, arms, strict=True))
    return {
        "over": over,
        "per": f"factor of 10 of {over}",
        "remark": "",
        **relative_uplift(without, without + top).reported(),
    }
