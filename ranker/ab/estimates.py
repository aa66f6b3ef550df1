"""The relative uplift of one arm over another, from means and covariances of users' figures.

Every metric is a ratio of two sums over users: a mean over users has the denominator 1. A ratio's variance is by the
delta method (Deng, Knoblich, Lu 2018, "Applying the delta method in metric analytics", section 2.2): the ratio moves
as the mean of (num - ratio·den) / mean(den) over users, and so does the quotient of two arms' ratios.

CUPED (Deng, Xu, Kohavi, Walker 2013, "Improving the sensitivity of online controlled experiments by utilizing
pre-experiment data", section 3) takes from each arm what its users' own past tells: ratio - θ·(past - past of both
arms), θ = cov / var. The past is the same metric, made linear in the same way, of before the experiment.

Intervals of the relative uplift are Fieller's (1954, "Some problems in interval estimation"): they hold 0 exactly where
the difference of both values does, by its own error. A quotient's error by the delta method is scaled by the quotient,
so that a control that was lucky makes an arm look surely worse.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from features.schema import F64

#: what moments are of, of each user
PARTS = ("num", "den", "num_before", "den_before")
#: users of an arm from which an interval for every look is given: it is one of many users
LEAST_USERS = 100
#: standard errors that the control's mean must be away from 0, for a relative uplift to mean something
APART = 4.0
#: users of each arm with a value that is not 0, from which means are near enough to normal
LEAST_ACTIVE = 30
#: skewness of the difference of two values, from which its interval covers too little. Kohavi, Deng, Longbotham, Xu
#: 2014, "Seven rules of thumb for web site experimenters", rule 7, ask 355 s^2 users of an arm: a skewness of .05
SKEWED = 0.25
#: why there is no interval of more skewed ones
TOO_SKEWED = "a few users have most of it, and one arm is too small for that: give the experiment more users"


@dataclass(frozen=True, slots=True)
class Moments:
    """Of the users of an arm."""

    n: int
    mean: F64  # [4], of PARTS
    cov: F64  # [4, 4], by n - 1
    third: F64  # [4, 4, 4], third central moments, unbiased
    active: int  # users whose numerator is not 0

    @classmethod
    def of(cls, values: F64) -> "Moments":
        """Return those of float64[n, 4]."""
        n, mean = len(values), values.mean(axis=0)
        apart = values - mean
        third = np.einsum("ni,nj,nk->ijk", apart, apart, apart, optimize=True) / n * unbiased(n)
        return cls(n, mean, np.cov(values, rowvar=False), third, int((values[:, 0] != 0).sum()))

    def along(self, one: F64, other: F64) -> float:
        """Return the covariance of two linear figures of a user, float64[4] each."""
        return float(one @ self.cov @ other)

    def skewness(self, one: F64) -> float:
        """Return the skewness of a linear figure of a user, float64[4], that is no constant."""
        return float(np.einsum("ijk,i,j,k", self.third, one, one, one) / self.along(one, one) ** 1.5)

    def ratio(self) -> float:
        """Return the metric."""
        return float(self.mean[0] / self.mean[1]) if self.mean[1] else float("nan")

    def linear(self) -> F64:
        """Return float64[4], the metric as a linear figure of a user."""
        return np.array([1.0, -self.ratio(), 0.0, 0.0]) / float(self.mean[1])


def unbiased(n: int) -> float:
    """Return by what a mean of cubes is multiplied for the third moment without bias; 0 of too few to tell."""
    return n * n / ((n - 1) * (n - 2)) if n > 2 else 0.0


@dataclass(frozen=True, slots=True)
class Uplift:
    """The relative uplift of an arm over the control."""

    values: tuple[float, float]  # of control and arm
    variances: tuple[float, float]  # of these values
    value: float  # 0.01 is one per cent
    error: float  # standard error
    df: float  # degrees of freedom, by Welch and Satterthwaite
    users: int  # of both arms
    fewest: int  # of the smaller arm
    fell: float  # share of the variance that the past took away; NaN where there is none
    skewness: float  # of the difference of both values

    def interval(self, level: float = 0.05) -> tuple[float, float]:
        """Return the ends of the interval for one look."""
        return self.within(float(student.isf(level / 2, self.df)))

    def within(self, times: float) -> tuple[float, float]:
        """Return the uplifts that are so many errors of the difference away from it (Fieller); NaN without bounds."""
        (base, other), (v0, v1) = self.values, self.variances
        square = base**2 - times**2 * v0
        if square <= 0:
            return float("nan"), float("nan")
        middle, rest = base * other / square, (other**2 - times**2 * v1) / square
        spread = float(np.sqrt(max(middle**2 - rest, 0.0)))
        ends = sorted((ratio - 1) * np.sign(base) for ratio in (middle - spread, middle + spread))
        return float(ends[0]), float(ends[1])

    @property
    def away(self) -> float:
        """How many of its own errors the difference of both values is away from 0."""
        (base, other), of = self.values, self.variances
        return (other - base) * float(np.sign(base)) / float(np.sqrt(sum(of)))

    def p(self) -> float:
        """Return the two-sided p of no uplift, for one look."""
        return float(2 * student.sf(abs(self.away), self.df))


def uplift(control: Moments, arm: Moments, cuped: bool = True) -> Uplift:
    """Return the uplift; `unknown` must have said nothing of them. cuped: with the users' past, where it tells."""
    arms = (control, arm)
    past = _past(arms) if cuped else None
    plain = [of.linear() for of in arms]
    ratios, lines = [of.ratio() for of in arms], plain
    if past is not None:
        theta = _theta(arms, plain, past)
        # Both arms' past has the mean 0 together. That mean is estimated too; a difference of arms does not know it.
        ratios = [ratio - theta * float(past @ of.mean) for ratio, of in zip(ratios, arms, strict=True)]
        lines = [line - theta * past for line in plain]
    variances = [of.along(line, line) / of.n for of, line in zip(arms, lines, strict=True)]
    before = [of.along(line, line) / of.n for of, line in zip(arms, plain, strict=True)]
    base, other = ratios
    parts = [(other / base) ** 2 * variances[0] / base**2, variances[1] / base**2]
    total = sum(parts)
    return Uplift(
        values=(base, other),
        variances=(variances[0], variances[1]),
        value=(other - base) / abs(base),
        error=float(np.sqrt(total)),
        df=sum(variances) ** 2 / sum(part**2 / (of.n - 1) for part, of in zip(variances, arms, strict=True)),
        users=control.n + arm.n,
        fewest=min(control.n, arm.n),
        fell=1 - sum(variances) / sum(before) if past is not None else float("nan"),
        skewness=_skewness(arms, lines) if all(variances) else 0.0,
    )


def _past(arms: Sequence[Moments]) -> F64 | None:
    """Return float64[4], the metric before the experiment as a linear figure; None where it tells nothing."""
    n = sum(of.n for of in arms)
    mean = sum((of.n * of.mean for of in arms), np.zeros(len(PARTS))) / n
    if not mean[3]:
        return None
    past = np.array([0.0, 0.0, 1.0, -mean[2] / mean[3]]) / mean[3]
    return None if _is_nothing(sum(of.along(past, past) for of in arms), mean[2] / mean[3]) else past


def _is_nothing(spread: float, value: float) -> bool:
    """Tell whether a figure of this mean varies only by rounding: a constant's variance is not 0 to the last bit."""
    return bool(spread <= 1e-18 * value**2)


def _theta(arms: Sequence[Moments], lines: Sequence[F64], past: F64) -> float:
    """Return cov / var of a user's figure and past, within arms."""
    both = sum(of.n * of.along(line, past) for of, line in zip(arms, lines, strict=True))
    return both / sum(of.n * of.along(past, past) for of in arms)


def unknown(control: Moments, arm: Moments) -> str:
    """Return why there is no uplift of these users; empty where there is one."""
    return _few("the control", control) or _few("this arm", arm) or _unclear(control, arm)


def _few(name: str, of: Moments) -> str:
    if of.n < 2:
        return f"{name} has {of.n} user{'' if of.n == 1 else 's'} with a value, and at least 2 were expected"
    if not of.mean[1]:
        return f"the ratio's denominator is 0 for all users of {name}"
    if of.active < LEAST_ACTIVE:
        return f"only {of.active} users of {name} have a value that is not 0, and at least {LEAST_ACTIVE} were expected"
    return ""


def _unclear(control: Moments, arm: Moments) -> str:
    spreads = [of.along(of.linear(), of.linear()) for of in (control, arm)]
    if any(_is_nothing(own, of.ratio()) for own, of in zip(spreads, (control, arm), strict=True)):
        return "it is constant within an arm, so no interval can be given"
    if abs(control.ratio()) <= APART * float(np.sqrt(spreads[0] / control.n)):
        return (
            "the control's value cannot be told from 0, so there is no relative uplift; give the experiment more "
            "users, or choose a metric that happens more often"
        )
    return ""


def _skewness(arms: Sequence[Moments], lines: Sequence[F64]) -> float:
    """Return the skewness of the difference of both means of linear figures, both as skewed as the more skewed one.

    Of a ratio these are what the delta method sums, not its numerator: who sees much clicks much, and moves it little.
    A small arm that happens to have no large user has a small skewness, and a low mean: by its own it would pass.
    """
    each = max(abs(of.skewness(line)) for of, line in zip(arms, lines, strict=True))
    control, arm = (of.n for of in arms)
    return float(each * abs(arm**-2 - control**-2) / (1 / arm + 1 / control) ** 1.5)
