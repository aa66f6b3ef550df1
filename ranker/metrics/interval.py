"""Intervals. Of a mean over users, or of a difference of two (`mean_interval`, `difference`): Student's t.

Of a relative uplift (`relative_uplift`): about new users, new fits of the plugin and new booster seeds.

A bootstrap of three fits covers too little (.83 of 95 % where the fits' sd is four times the users' error), so the
variance is taken apart instead. Users, fits and seeds are crossed random effects of the linearised statistic
d = with - (1 + uplift)·without, the training log being fixed. Adding up the variances of the three margins would count
twice what users and fits, or users and seeds, share (Owen 2007, "The pigeonhole bootstrap"); most of a noise column's
variance is of that kind. So it is taken from the fits' and the seeds' parts, and stays in the users' part.

Few fits leave few degrees of freedom. Two ways to a quantile are known: one t for the sum (Satterthwaite 1946, "An
approximate distribution of estimates of variance components"), which covers too little where the few fits dominate,
and one t for each part (Banerjee 1960, "Approximate confidence interval for linear functions of means of k
populations"), which covers too much. The half-width is the mean of both; `tests/test_ranker_metrics.py` and
`make bench WHAT=trust` show what it covers. `Interval.p_value` turns the same half-width round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import t as student

from features.schema import F64

NAN = float("nan")
#: no p is told apart from a smaller one
LEAST_P = 1e-30


def finite(value: Any) -> Any:
    """Replace what is not a number by None, at any depth: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the variance that is independent of the others."""

    variance: float  # what it adds to error²
    df: float  # degrees of freedom that it was estimated with


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A relative uplift (0.01 is one per cent), its interval of 95 %, and its standard error.

    The variance of one fit, or of one seed, is NaN: the interval then leaves its spread out.
    """

    uplift: float  # with / without - 1
    low: float  # end of the interval
    high: float  # the other
    error: float  # standard error
    df: float  # Satterthwaite's degrees of freedom
    variance: dict[str, float]  # parts of error²: `users` (with what fits and seeds share with them), `fits`, `seeds`
    detectable: float  # the smallest uplift that is seen with a chance of 80 %
    fits: int  # of the plugin
    parts: tuple[Part, ...] = ()  # of the variance

    def p_value(self) -> float:
        """Return the two-sided p of no uplift: 1 less the level of the widest interval without 0; NaN where unknown."""
        if not self.parts:
            return NAN
        off = abs(self.uplift)
        if not off or not self.error:
            return 0.0 if off else 1.0

        def beyond(log_p: float) -> float:
            return half_width(self.parts, self.df, float(np.exp(log_p))) - off

        low = float(np.log(LEAST_P))
        return float(np.exp(brentq(beyond, low, 0.0))) if beyond(low) > 0 else LEAST_P

    def detectable_at(self, p: float) -> float:
        """Return the smallest uplift that a test of level p finds with a chance of 80 %; NaN where unknown."""
        if not self.parts:
            return NAN
        return half_width(self.parts, self.df, p) + float(student.ppf(0.8, self.df)) * self.error

    def reported(self) -> dict[str, Any]:
        """Return it as the report has it."""
        return {
            "relative_uplift": self.uplift,
            "ci95": [self.low, self.high],
            "standard_error": self.error,
            "variance": dict(self.variance),
            "degrees_of_freedom": self.df,
        }


def mean_interval(x: F64) -> tuple[float, float, float]:
    """Return the mean of float64[n], and the ends of its interval of 95 % by Student's t; NaN where n is too small."""
    n = len(x)
    mean = float(x.mean()) if n else NAN
    half = float(student.ppf(0.975, n - 1) * x.std(ddof=1) / np.sqrt(n)) if n > 1 else NAN
    return mean, mean - half, mean + half


def difference(a: F64, b: F64) -> tuple[float, float, float]:
    """Return the mean of a - b, float64[n] each of the same n users, and the ends of its interval of 95 %: paired."""
    return mean_interval(a - b)


def ratio_interval(right: F64, total: F64) -> tuple[float, float, float]:
    """Return Σ right / Σ total of float64[n] sums by user, and the ends of its interval of 95 %, about new users.

    By the jackknife over users and Student's t; NaN without a positive total, the ends also where one user has it all.
    """
    whole, n = total.sum(), len(total)
    if not whole > 0:
        return NAN, NAN, NAN
    ratio, share = float(right.sum() / whole), total / whole
    if n < 2 or share.max() >= 1:
        return ratio, NAN, NAN
    half = float(student.ppf(0.975, n - 1) * np.sqrt(_squares((right - ratio * total) / whole, share).sum()))
    return ratio, ratio - half, ratio + half


def relative_uplift(without: F64, with_: F64) -> Interval:
    """Return Σ with / Σ without - 1, each the mean over its fits and seeds, and its interval.

    without, with_: float64[fits, seeds, users], weight of the right pairs of each user, ties one half. Every fit is
    crossed with every seed; seeds and users are the same in both. An arm of one fit adds no variance of fits. All is
    NaN where the base is not positive, and all but the uplift where there is one user.
    """
    base, gained = without.mean(axis=(0, 1)), with_.mean(axis=(0, 1))
    total, n = base.sum(), len(base)
    if not total > 0:
        return _unknown(NAN, len(with_))
    uplift = float(gained.sum() / total - 1)
    if n < 2 or base.max() >= total:
        return _unknown(uplift, len(with_))
    share = base / total
    arms = [with_ / total, without * ((1 + uplift) / total)]
    users = _users(arms[0].mean(axis=(0, 1)) - arms[1].mean(axis=(0, 1)), share)
    fits = [_margin(arm.mean(axis=1), share) for arm in arms if len(arm) > 1]
    seeds = []
    if without.shape[1] > 1:
        shared = sum(_shared(arm, share) for arm in arms if len(arm) > 1)
        seeds = [_margin(arms[0].mean(axis=0) - arms[1].mean(axis=0), share, shared)]
    return _interval(uplift, users, fits, seeds, len(with_))


def paired_uplift(without: F64, with_: F64) -> Interval:
    """Return `relative_uplift` of two arms that share the fits of what both have: fit k of one is fit k of the other.

    without, with_: float64[fits, seeds, users]. What the shared fits do to both alike is no part of the variance: the
    fits' part is that of with - (1 + uplift)·without, as the users' and the seeds' are.
    """
    base = without.mean(axis=0, keepdims=True)
    total = base.mean(axis=1).sum()
    ratio = with_.mean(axis=(0, 1)).sum() / total if total > 0 else NAN
    return relative_uplift(base, with_ - ratio * (without - base))


def _unknown(uplift: float, fits: int) -> Interval:
    return Interval(
        uplift=uplift,
        low=NAN,
        high=NAN,
        error=NAN,
        df=NAN,
        variance=dict.fromkeys(("users", "fits", "seeds"), NAN),
        detectable=NAN,
        fits=fits,
    )


def _interval(uplift: float, users: Part, fits: list[Part], seeds: list[Part], n_fits: int) -> Interval:
    parts = [users, *fits, *seeds]
    error2 = sum(p.variance for p in parts)
    df = satterthwaite(parts) if error2 > 0 else users.df
    half, error = half_width(parts, df, 0.05), float(np.sqrt(error2))
    variance = {
        "users": users.variance,
        "fits": sum(p.variance for p in fits) if fits else NAN,
        "seeds": sum(p.variance for p in seeds) if seeds else NAN,
    }
    return Interval(
        uplift=uplift,
        low=uplift - half,
        high=uplift + half,
        error=error,
        df=float(df),
        variance=variance,
        detectable=half + float(student.ppf(0.8, df)) * error,
        fits=n_fits,
        parts=tuple(parts),
    )


def satterthwaite(parts: Sequence[Part]) -> float:
    """Return the degrees of freedom of the sum of the parts, infinite where nothing varies."""
    spread = sum(part.variance**2 / part.df for part in parts)
    return float(sum(part.variance for part in parts) ** 2 / spread) if spread > 0 else float("inf")


def half_width(parts: Sequence[Part], df: float, p: float) -> float:
    """Return the half-width of the interval of level 1 - p: the mean of those by one t, and by one for each part."""
    one_t = student.isf(p / 2, df) * np.sqrt(sum(part.variance for part in parts))
    own_t = np.sqrt(sum(student.isf(p / 2, part.df) ** 2 * part.variance for part in parts))
    return float(one_t + own_t) / 2


def _users(d: F64, share: F64) -> Part:
    """Return the users' part by the jackknife; its degrees of freedom are few where few users carry it.

    d: float64[users], sums to zero. The variance of a sum of squares follows from their own spread.
    """
    return part_of_squares(_squares(d, share))


def part_of_squares(squares: F64) -> Part:
    """Return the part of which float64[users] is what each user adds to it."""
    total, n = squares.sum(), len(squares)
    if not total > 0:
        return Part(0.0, n - 1)
    unequal = ((squares / total) ** 2).sum() - 1 / n
    return Part(float(total), float(min(n - 1, 2 / max(unequal, 1e-12))))


def _squares(d: F64, share: F64) -> F64:
    """Return what each user adds to the jackknife variance of Σ d over users, where Σ d is scaled out of d."""
    n = len(share)
    return np.asarray((d / (1 - share)) ** 2 * ((n - 1) / n))


def _margin(x: F64, share: F64, shared: float = 0.0) -> Part:
    """Return the part of k fits (or seeds): the mean square between them, less what the users' part has of it.

    x: float64[k, users]; shared: what another margin has of it.
    """
    k = len(x)
    between, within = _mean_squares(x - x.mean(axis=0), share, k - 1, k)
    return Part(max(between - within - shared, 0.0), k - 1)


def _shared(arm: F64, share: F64) -> float:
    """Return the variance of the mean that fits and seeds share without users. arm: float64[fits, seeds, users]."""
    fits, seeds, users = arm.shape
    if seeds < 2:
        return 0.0
    rest = arm - arm.mean(axis=1, keepdims=True) - arm.mean(axis=0) + arm.mean(axis=(0, 1))
    between, within = _mean_squares(rest.reshape(-1, users), share, (fits - 1) * (seeds - 1), fits * seeds)
    return max(between - within, 0.0)


def _mean_squares(rest: F64, share: F64, df: int, n: int) -> tuple[float, float]:
    """Return the variance of a mean of n between the rows of `rest`, and the share of it that is of their users."""
    sums = rest.sum(axis=1)
    own = rest - sums[:, None] * share
    return float((sums**2).sum() / df / n), float(_squares(own, share).sum() / df / n)
