"""A model of the reward of an item at a place, for the doubly robust estimator: it need not be right."""

from typing import NamedTuple

import numpy as np

from features.schema import F64, I32, I64

#: folds of the users: each is modelled by what the others did
FOLDS = 5
#: places from here on are one to the model
PLACES = 20
#: of the least squares, so that what does not vary has no coefficient
RIDGE = 1e-3


class Scored(NamedTuple):
    """What the other policy says of n rows."""

    score: F64  # [n], of the row's item; NaN where it is none of the candidates
    mean: F64  # [n], of what the policy shows at that place: the expected score
    square: F64  # [n], likewise the expected square
    shows: F64  # [n], the chance that it shows anything there


def modelled(scored: Scored, reward: F64, place: I64, user: I32 | I64) -> tuple[F64, F64]:
    """Return float64[n] of each row's item, and of what the policy shows there: each by a fit on other users.

    Least squares on the place, the score, its square, and whether it is known. user: int64[n]; place: 0 first.
    """
    known = np.isfinite(scored.score)
    middle = float(scored.score[known].mean()) if known.any() else 0.0
    spread = (float(scored.score[known].std()) if known.any() else 0.0) or 1.0
    z = np.where(known, (scored.score - middle) / spread, 0.0)
    mean = (scored.mean - middle * scored.shows) / spread
    square = (scored.square - 2 * middle * scored.mean + middle**2 * scored.shows) / spread**2
    at = np.minimum(place, PLACES)[:, None] == np.arange(PLACES + 1)
    own = np.column_stack([at, z, z**2, ~known]).astype(np.float64)
    other = np.column_stack([at * scored.shows[:, None], mean, square, np.zeros(len(z))])
    _, code = np.unique(user, return_inverse=True)
    fold, found, expected = code % FOLDS, np.zeros(len(z)), np.zeros(len(z))
    for k in range(FOLDS):
        x, y = own[fold != k], reward[fold != k]
        beta = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)
        found[fold == k], expected[fold == k] = own[fold == k] @ beta, other[fold == k] @ beta
    return found, expected
