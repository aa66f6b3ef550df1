"""The interval of a relative uplift: users, and seeds, drawn with replacement, the same draw for both arms."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from features.schema import F64

_DRAWS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Interval:
    """A relative uplift (0.01 is one per cent). error: standard error; users_only: the interval with fixed seeds."""

    uplift: float
    low: float
    high: float
    error: float
    users_only: tuple[float, float]

    def told(self) -> dict[str, Any]:
        """Return it as the report has it."""
        return {
            "relative_uplift": self.uplift,
            "ci95": [self.low, self.high],
            "ci95_users_only": list(self.users_only),
        }


def relative_uplift(without: F64, with_: F64, draws: int, seed: int = 0) -> Interval:
    """Return Σ with / Σ without - 1 over the mean of the seeds, and its percentile interval (Efron 1979).

    without, with_: float64[seeds, users], weight of the right pairs of each user. Users are drawn, since the
    pairs of a user are not independent; and seeds are, since a booster's luck is no property of the feature: on
    a small log the two matter alike, and an interval over users alone finds a column of noise significant too often.
    """
    base = without.sum()
    if not base > 0:
        nan = float("nan")
        return Interval(nan, nan, nan, nan, (nan, nan))
    parts = [_drawn(without, with_, min(_DRAWS_AT_ONCE, draws - k), seed + k) for k in range(0, draws, _DRAWS_AT_ONCE)]
    both, users = (np.concatenate(part) for part in zip(*parts, strict=True))
    low, high = np.nanpercentile(both, [2.5, 97.5])
    fixed = np.nanpercentile(users, [2.5, 97.5])
    return Interval(
        float(with_.sum() / base - 1),
        float(low),
        float(high),
        float(np.nanstd(both)),
        (float(fixed[0]), float(fixed[1])),
    )


def _drawn(without: F64, with_: F64, draws: int, seed: int) -> tuple[F64, F64]:
    """Return float64[draws] uplifts of drawn users and seeds, and of drawn users alone."""
    seeds, users = without.shape
    rng = np.random.default_rng(seed)
    of_user = _counts(rng, draws, users)
    of_seed = _counts(rng, draws, seeds)
    base, gained = of_user @ without.T, of_user @ with_.T
    every = np.ones_like(of_seed)
    return _ratio(base, gained, of_seed), _ratio(base, gained, every)


def _counts(rng: np.random.Generator, draws: int, n: int) -> F64:
    return np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(draws)]).astype(np.float64)


def _ratio(base: F64, gained: F64, weight: F64) -> F64:
    below = (base * weight).sum(axis=1)
    ratio = np.divide((gained * weight).sum(axis=1), below, out=np.full(len(base), np.nan), where=below > 0)
    return np.asarray(ratio - 1)
