"""Slices of few users, drawn towards the whole: empirical Bayes over the slices of one kind.

The true uplifts of the slices of a kind are taken to lie around a common one with a variance τ², and each measured one
around its own truth with its own error. A slice is then worth its own figure and the common one (the slices' mean, each
by how well it is known: where they do not differ, that is the whole's), weighed likewise. τ² comes from how far apart
the slices are; as few slices say little of it, all its values have their part, weighed by how likely they make what was
measured. One value would make intervals of few slices too short. Morris 1983, "Parametric empirical Bayes inference";
the prior of τ² is that of uniform shrinkage (Christiansen and Morris 1997, "Hierarchical Poisson regression modeling")
of the slice that is known least: with that of a typical slice, slices that do differ were drawn too far.
`tests/test_ranker_uplift_shrunk.py` shows what the intervals cover.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import norm

from features.schema import F64

#: values of τ² that are weighed: they lie close where τ² is large, so that slices far apart keep their own figures
GRID = 200
#: a slice of fewer users is marked as small
FEW_USERS = 30
NORMAL = float(norm.ppf(0.975))


def with_shrunk(slices: Mapping[str, Mapping[str, Mapping[str, Any]]], whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return the slices of a report, each with `shrunk` and `small`; what they had stays as it was.

    whole: a part of a report with `relative_uplift` and `ci95`. `shrunk` has the same two, and `own`, the share of the
    slice's own figure in it: all None of a slice without an interval, or where the whole has none.
    """
    return {kind: _with_shrunk(values, whole) for kind, values in slices.items()}


def _with_shrunk(values: Mapping[str, Mapping[str, Any]], whole: Mapping[str, Any]) -> dict[str, Any]:
    known = [name for name, of in values.items() if _is_known(of)] if _is_known(whole) else []
    found: dict[str, dict[str, Any]] = {}
    if known:
        ends = np.array([values[name]["ci95"] for name in known])
        uplift = np.array([values[name]["relative_uplift"] for name in known])
        mean, error, own = shrink(uplift, _error(ends), float(_error(np.array(whole["ci95"]))))
        for name, m, e, o in zip(known, mean.tolist(), error.tolist(), own.tolist(), strict=True):
            found[name] = {"relative_uplift": m, "ci95": [m - NORMAL * e, m + NORMAL * e], "own": o}
    nothing = {"relative_uplift": None, "ci95": [None, None], "own": None}
    return {
        name: {**of, "shrunk": found.get(name, nothing), "small": of["users"] < FEW_USERS}
        for name, of in values.items()
    }


def _is_known(of: Mapping[str, Any]) -> bool:
    return of["relative_uplift"] is not None and None not in of["ci95"]


def _error(ends: F64) -> F64:
    """Return the standard error of the normal that has the interval float64[..., 2]: few degrees of freedom count."""
    return np.asarray((ends[..., 1] - ends[..., 0]) / (2 * NORMAL))


def shrink(uplift: F64, error: F64, least: float) -> tuple[F64, F64, F64]:
    """Return float64[k] posterior means, standard errors, and shares of a slice's own figure.

    uplift, error: float64[k] of the slices of one kind. least: no smaller is the standard error of what they have in
    common, for slices share fits and seeds. A single slice, or one without an error, leaves all as they are.
    """
    if len(uplift) < 2 or not (error > 0).all():
        return uplift, error, np.ones(len(uplift))
    variance, place = error**2, (np.arange(GRID) + 0.5) / GRID
    at = place**4  # uniform where each value weighs place³
    tau2 = (variance.max() * (1 - at) / at)[:, None]
    known = 1 / (variance + tau2)  # [GRID, k]
    all_known = known.sum(axis=1)
    apart = uplift - ((known * uplift).sum(axis=1) / all_known)[:, None]
    likely = (np.log(known).sum(axis=1) - np.log(all_known) - (known * apart**2).sum(axis=1)) / 2
    weight = place**3 * np.exp(likely - likely.max())
    weight /= weight.sum()
    others = variance * known
    means = uplift - others * apart
    mean = weight @ means
    variances = (1 - others) * variance + others**2 * np.maximum(1 / all_known, least**2)[:, None]
    return mean, np.sqrt(weight @ (variances + (means - mean) ** 2)), 1 - weight @ others
