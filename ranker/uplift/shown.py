"""The arms of a report beside the order that was shown, and by the debiased metric."""

from typing import Any

import numpy as np

from features.schema import F64
from ranker.metrics.debiased import Debiased, Debiasing, widened
from ranker.metrics.interval import finite, relative_uplift
from ranker.metrics.pair_accuracy import pair_accuracy
from ranker.metrics.shown import Shown
from ranker.uplift.measured import Fits


def shown_figures(shown: Shown | None, boosters: dict[str, Fits], simple: dict[str, F64]) -> dict[str, Any] | None:
    """Return `Shown.reported` of simple scores by name and of the arms `without` and `with`; None without places.

    An arm's figures are means over its fits and seeds, and `debiased` has the uplift too.
    """
    if shown is None:
        return None
    found, arms = shown.reported(simple), {arm: boosters[arm] for arm in ("without", "with")}
    for arm, fits in arms.items():
        each = [pair_accuracy(of.scores, shown.pairs).value for of_seeds in fits for of in of_seeds]
        found["pair_accuracy"][arm] = float(np.mean(each))
    if shown.debiasing is not None:
        found["debiased"] |= finite(_debiased(shown.debiasing, arms))
    return found


def _debiased(debiasing: Debiasing, arms: dict[str, Fits]) -> dict[str, Any]:
    """Return the figure of each arm, the mean over its fits and seeds, and the uplift of one over the other."""
    sums = {arm: [[debiasing.measure(of.scores) for of in of_seeds] for of_seeds in fits] for arm, fits in arms.items()}
    right = {arm: np.array([[of.right for of in of_seeds] for of_seeds in fits]) for arm, fits in sums.items()}
    mean = {arm: np.mean([of.without for of_seeds in fits for of in of_seeds], axis=0) for arm, fits in sums.items()}
    found: dict[str, Any] = {
        arm: Debiased(right[arm].mean(axis=(0, 1)), fits[0][0].total, mean[arm]).reported()
        for arm, fits in sums.items()
    }
    uplift = relative_uplift(right["without"], right["with"])
    base = np.where(mean["without"][:, 0] > 0, mean["without"][:, 0], np.nan)
    ends = widened(uplift.low, uplift.high, mean["with"][:, 0] / base - 1)
    known = np.isfinite(ends).all()
    return found | {"uplift": {"relative_uplift": uplift.uplift if known else None, "ci95": ends}}
