"""The inner loop as it is served: the meta block adapted to the users' events by gradient steps. NumPy and numba."""

from dataclasses import dataclass

import numpy as np

from features.kernels import njit
from features.schema import F32, I64

#: arrays of the meta block, each of which has a rate of its own in each step
N_RATES = 4


@dataclass(frozen=True, slots=True)
class MetaParameters:
    """The meta block as it was meta-learned; d = width, h = hidden."""

    up: F32  # [h, d]
    up_bias: F32  # [h]
    down: F32  # [d + 1, h]; the last row is of the user's bias
    down_bias: F32  # [d + 1]
    rate: F32  # [steps, N_RATES], of these four in this order
    cuts: F32  # [c], in rising order: the grade is above k where the score is above cuts[k]
    shrink: float  # events without a gradient that the mean loss of a support is drawn by
    known: float  # factor of the item's mean grade in a score

    def embeddings(self, user: F32, items: F32, item: I64, rank: I64, offset: F32, bounds: I64) -> F32:
        """Return float32[b, d]: the meta embedding of each user, whatever other users stand beside it.

        user: float32[b, d]. items: float32[n, d], of which item: int64[m] rows are the support, with int64[m] ranks
        (-1 for no part of it) and float32[m] offsets; user k has bounds[k] .. bounds[k + 1] - 1 of the m.
        """
        out = np.empty((len(user), len(self.down)), np.float32)
        _adapt(
            self.up, self.up_bias, self.down, self.down_bias, self.rate, self.cuts, np.float32(self.shrink), user,
            items, item, rank, offset * np.float32(self.known), bounds, out,
        )  # fmt: skip
        return np.ascontiguousarray(out[:, :-1])


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _adapt(
    up_0: F32, up_bias_0: F32, down_0: F32, down_bias_0: F32, rate: F32, cuts: F32, shrink: float, users: F32,
    items: F32, item: I64, rank: I64, known: F32, bounds: I64, out: F32,
) -> None:  # fmt: skip
    """Write float32[b, d + 1]: what each user's adapted block gives. See `limaml.model.MetaBlock`.

    for each user, from a copy of the block
        for each step
            hidden = tanh(up · user + up_bias); out = down · hidden + down_bias
            to_out = Σ over the support of (vector, 1) · Σ over cuts of (sigmoid(score - cut) - [rank > cut's place])
            to_hidden = downᵀ · to_out / (events + shrink) · (1 - hidden²)
            each array less its rate times its gradient
        out once more

    known: float32[m], what is added to a score.
    """
    h, d = up_0.shape
    hidden, to_out, to_hidden = np.empty(h, np.float32), np.empty(d + 1, np.float32), np.empty(h, np.float32)
    for b in range(len(users)):
        up, up_bias, down, down_bias = up_0.copy(), up_bias_0.copy(), down_0.copy(), down_bias_0.copy()
        user, first, last = users[b], bounds[b], bounds[b + 1]
        count = 0
        for m in range(first, last):
            count += rank[m] >= 0
        _forward(up, up_bias, down, down_bias, user, hidden, out[b])
        for step in range(len(rate) if count else 0):
            _slope(items, item, rank, known, first, last, cuts, out[b], to_out)
            to_out /= np.float32(count) + shrink
            for i in range(h):
                total = np.float32(0)
                for j in range(d + 1):
                    total += down[j, i] * to_out[j]
                to_hidden[i] = total * (1 - hidden[i] * hidden[i])
            for i in range(h):
                up_bias[i] -= rate[step, 1] * to_hidden[i]
                for j in range(d):
                    up[i, j] -= rate[step, 0] * to_hidden[i] * user[j]
            for j in range(d + 1):
                down_bias[j] -= rate[step, 3] * to_out[j]
                for i in range(h):
                    down[j, i] -= rate[step, 2] * to_out[j] * hidden[i]
            _forward(up, up_bias, down, down_bias, user, hidden, out[b])


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _forward(up: F32, up_bias: F32, down: F32, down_bias: F32, user: F32, hidden: F32, out: F32) -> None:
    """Write the hidden layer, float32[h], and what the block gives, float32[d + 1]."""
    for i in range(len(hidden)):
        total = up_bias[i]
        for j in range(len(user)):
            total += up[i, j] * user[j]
        hidden[i] = np.tanh(total)
    for j in range(len(out)):
        total = down_bias[j]
        for i in range(len(hidden)):
            total += down[j, i] * hidden[i]
        out[j] = total


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _slope(
    items: F32, item: I64, rank: I64, known: F32, first: int, last: int, cuts: F32, out: F32, to_out: F32
) -> None:  # fmt: skip
    """Write float32[d + 1]: the gradient of the support's summed ordinal loss by what the block gives."""
    d = items.shape[1]
    to_out[:] = 0
    for m in range(first, last):
        if rank[m] < 0:
            continue
        vector, score = items[item[m]], out[d] + known[m]
        for j in range(d):
            score += vector[j] * out[j]
        slope = np.float32(0)
        for k in range(len(cuts)):
            slope += 1 / (1 + np.exp(cuts[k] - score)) - np.float32(rank[m] > k)
        for j in range(d):
            to_out[j] += slope * vector[j]
        to_out[d] += slope
