"""Intervals that hold at every look at once: an asymptotic confidence sequence.

Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas 2021, "Time-uniform central limit theory and asymptotic confidence
sequences", Theorem 2.2: with the mean of t users, their standard deviation s and any ρ > 0 that is fixed beforehand,

    mean_t ± s·√( 2·(tρ² + 1) / (t²ρ²) · log(√(tρ² + 1) / α) )

holds the mean at all t at once with a chance of 1 - α, as users grow many. With the standard error s/√t it is
`widening(t)` standard errors. Which ρ is best differs with t: `rho_squared` makes it narrowest at one t.

The theorem is of users who come one after another. Where those who came go on adding to their figures, it is not
proven; but no interval is ever narrower than 3.03 standard errors, and a user's days resemble each other, so that
neighbouring looks differ less than the theorem allows for: `make bench WHAT=trust` has both kinds of growth.
"""

import numpy as np
from scipy.special import lambertw

LEVEL = 0.05
#: users of both arms at which an interval is narrowest, unless the plan says otherwise
TIGHT_AT = 10_000


def rho_squared(tight_at: float, level: float = LEVEL) -> float:
    """Return the ρ² with which `widening` is least at so many users.

    The zero of the derivative: tρ² = -W(-α²/e) - 1 with the lower branch of Lambert's W (their Appendix B.2).
    """
    return float((-lambertw(-(level**2) / np.e, -1).real - 1) / tight_at)


def widening(users: float, rho2: float, level: float = LEVEL) -> float:
    """Return how many standard errors reach from the estimate to an end, at so many users."""
    grown = users * rho2 + 1
    return float(np.sqrt(2 * grown / (users * rho2) * np.log(np.sqrt(grown) / level)))


def p_always(z: float, users: float, rho2: float) -> float:
    """Return the p of no effect that holds at every look: the level whose interval ends at 0. z: standard errors."""
    grown = users * rho2 + 1
    return float(min(1.0, np.exp(np.log(grown) / 2 - z * z * users * rho2 / (2 * grown))))
