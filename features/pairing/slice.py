"""Rows with their pairs: what the final ranker learns from, and what it is stopped by."""

from dataclasses import dataclass

from features.pairing.pairs import Pairs
from features.schema import F32, F64, I8, I64


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows to learn from or to stop by."""

    matrix: F32  # [n, c]
    group: I64  # [n], never decreasing
    pairs: Pairs  # of these rows
    grade: I8 | None = None  # [n], -1 drawn; `[booster]` margin and ndcg_at need it of rows to learn from
    start: F64 | None = None  # [n], score that the trees are added to; None is 0
