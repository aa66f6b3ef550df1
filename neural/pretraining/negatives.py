"""Items that the next one is told from: drawn for each batch in training, the same ones for all networks in measuring.

NumPy alone.
"""

from dataclasses import dataclass

import numpy as np

from features.schema import F32, I64

#: items that a measured softmax has at most; of a larger catalogue so many are drawn
MOST = 4096


@dataclass(frozen=True, slots=True)
class Pool:
    """k negatives of all targets of a batch."""

    item: I64  # [k]
    log_expected: F32  # [k], the logarithm of how often the pool is expected to hold that item; 0: uncorrected


#: of a batch without a next item
NO_POOL = Pool(np.empty(0, np.int64), np.empty(0, np.float32))


class Negatives:
    """Draws half of a pool from the batch's own targets and half evenly from the items of the fit."""

    def __init__(self, popularity: I64, in_fit: I64, n: int, log_q: bool) -> None:
        """popularity: int64[n_items], how often each is a target. in_fit: int64[m] items. n: of a pool, about.

        log_q: correct for how often an item is drawn (Yi et al., RecSys 2019; arXiv 2507.15994).
        """
        self.popularity, self.in_fit, self.half, self.log_q = popularity, in_fit, n // 2, log_q

    def draw(self, targets: I64, rng: np.random.Generator) -> Pool:
        """Draw the pool of a batch with these targets."""
        half = self.half
        drawn = np.concatenate([rng.choice(targets, half), rng.choice(self.in_fit, half)])
        if not self.log_q:
            return Pool(drawn, np.zeros(len(drawn), np.float32))
        expected = half * self.popularity[drawn] / self.popularity.sum() + half / len(self.in_fit)
        return Pool(drawn, np.log(expected).astype(np.float32))


def even_pool(n_items: int) -> Pool:
    """Return the whole catalogue; of more than `MOST` items so many, drawn evenly and the same ones each time.

    So the loss is of a softmax over the whole catalogue, or estimates it, and compares networks of one log, however
    they were trained.
    """
    if n_items <= MOST:
        return Pool(np.arange(n_items), np.zeros(n_items, np.float32))
    drawn = np.sort(np.random.default_rng(0).choice(n_items, MOST, replace=False))
    return Pool(drawn, np.full(MOST, np.log(MOST / n_items), np.float32))
