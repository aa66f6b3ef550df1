"""The feedback-weighted (winner, loser) pairs within groups.

The same weights serve the towers, the booster and the metric.
"""

import os
from dataclasses import dataclass

import numpy as np

from features.errors import PairliftError, did_you_mean
from features.pairing.draw import write_pairs
from features.pairing.groups import Groups
from features.schema import F32, F64, I32, I64, SAMPLED, Bool, offsets_of

#: of `Pairs`: two rows, a weight, a mark; and as much again for the copy that the objective sorts
BYTES_OF_A_PAIR = 26


@dataclass(frozen=True, slots=True)
class Pairs:
    """p (winner, loser) pairs of impressions, which are rows of `Groups`."""

    winner: I32  # [p], row
    loser: I32  # [p], row
    weight: F32  # [p], > 0
    sampled: Bool  # [p], the loser was drawn, not shown

    def __len__(self) -> int:
        return len(self.winner)

    def select(self, keep: Bool) -> "Pairs":
        """Return the pairs of the mask bool[p]."""
        return Pairs(self.winner[keep], self.loser[keep], self.weight[keep], self.sampled[keep])


def right_weight(score: F32 | F64, winner: I32 | I64, loser: I32 | I64, weight: F32) -> float:
    """Return Σ w·([winner above loser] + ½·[equal]) of scores [n] and pairs [p] of their rows, summed in float64."""
    return float((weight * (np.sign(score[winner] - score[loser]) + 1) / 2).sum(dtype=np.float64))


def weight_table(weights: dict[str, float], grades: tuple[str, ...], negatives: bool) -> F64:
    """Return float64[k + 1, k + 1]: weight of (winner, loser) by grade rank + 1; row and column 0 are `sampled`.

    Without `weights` a pair weighs the difference of ranks, a drawn loser standing one below the worst grade.
    Raises PairliftError for an unknown grade, a weight that is not positive, or a grade pair that is not there.
    """
    names = (SAMPLED, *grades)
    rank = np.arange(len(names), dtype=np.float64)
    if not weights:
        return np.maximum(rank[:, None] - rank[None, :], 0.0)
    table = np.zeros((len(names), len(names)))
    for key, weight in weights.items():
        winner, loser = _grade_pair(key, names)
        if not (np.isfinite(weight) and weight > 0):
            raise PairliftError(f"[pairing.weights] '{key}' = {weight}: a finite weight above zero was expected")
        table[winner, loser] = weight
    lowest = 0 if negatives else 1
    for loser, winner in ((lo, hi) for lo in range(lowest, len(names)) for hi in range(lo + 1, len(names))):
        if table[winner, loser] == 0:
            raise PairliftError(
                f"[pairing.weights] lacks '{names[winner]} > {names[loser]}': give every pair of grades a weight, "
                "or leave the table out and a pair weighs the difference of its ranks"
            )
    return table


def _grade_pair(key: str, names: tuple[str, ...]) -> tuple[int, int]:
    parts = [part.strip() for part in key.split(">")]
    if len(parts) != 2:
        raise PairliftError(f"[pairing.weights] '{key}': the form 'winner > loser' was expected")
    for part in parts:
        if part not in names:
            raise PairliftError(f"[pairing.weights] '{key}': unknown grade '{part}'{did_you_mean(part, names)}")
    winner, loser = (names.index(part) for part in parts)
    if winner <= loser:
        raise PairliftError(f"[pairing.weights] '{key}': the winner's grade must be the better one of {names}")
    return winner, loser


def _levels(groups: Groups, table: F64) -> I64:
    """Return int64[g, k + 1]: impressions of each group by grade rank + 1, the row of the weight table."""
    code = groups.requests.row_request() * len(table) + groups.grade + 1
    return np.bincount(code, minlength=len(groups.requests) * len(table)).reshape(-1, len(table))


def count_pairs(groups: Groups, table: F64) -> I64:
    """Return int64[g]: how many pairs each group has. Linear in the impressions.

    A group's count is the sum, over its levels w and l of which w beats l, of (impressions of w) · (impressions of l).
    """
    levels = _levels(groups, table)  # [g, k + 1]
    beats = (table > 0).astype(np.int64)  # [k + 1, k + 1]
    return np.asarray((levels @ beats.T * levels).sum(axis=1), np.int64)


def make_pairs(groups: Groups, table: F64, cap: int | None = None, seed: int = 0) -> Pairs:
    """Return every (winner, loser) of a group with the winner's grade above the loser's, weighted by `table`.

    table: of `weight_table`; nothing beats its own level, and level 0 beats nothing. Rows count within `groups`, pairs
    are in the order of (winner, loser). cap: for training only, never for the metric; of a group with more pairs, so
    many are drawn, each as likely as another, the same ones for the same seed, without making the others. A group
    whose impressions are all of one grade has no pairs. An impression that the log has twice is two rows: both make
    pairs with the others, and none with each other unless their grades differ.

    Raises PairliftError where the pairs would not fit the memory.
    """
    count = count_pairs(groups, table)
    kept = count if cap is None else np.minimum(count, cap)
    n = int(kept.sum())
    _refuse_too_many(n, groups)
    winner, loser, weight = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.float32)
    if n:
        write_pairs(groups.requests.offsets, groups.grade, table, offsets_of(kept), seed, winner, loser, weight)
    return Pairs(winner, loser, weight, groups.sampled[loser])


def most_pairs() -> int:
    """Return how many pairs may be made at once: what half of the machine's memory holds, int32 at most."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(2**31 - 1, memory // 2 // BYTES_OF_A_PAIR)


def _refuse_too_many(n: int, groups: Groups) -> None:
    if n > most_pairs():
        largest = int(np.diff(groups.requests.offsets).max())
        raise PairliftError(
            f"[pairing]: {n:,} pairs, where at most {most_pairs():,} fit this machine; the largest of "
            f"{len(groups.requests):,} groups has {largest:,} impressions. For training set train_cap (1000, say); "
            "the metric counts every pair: make groups smaller by window, max_size, where, or a finer request_id"
        )


def count_by_grades(groups: Groups, table: F64, grades: tuple[str, ...]) -> dict[str, int]:
    """Return the number of pairs for each `winner > loser` that has any, in the order of the grades. Makes no pair."""
    names, levels = (SAMPLED, *grades), _levels(groups, table)
    counts = np.where(table > 0, levels.T @ levels, 0)
    return {f"{names[w]} > {names[lo]}": int(counts[w, lo]) for w, lo in np.argwhere(counts).tolist()}
