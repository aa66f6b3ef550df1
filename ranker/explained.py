"""How an answer came about: what a request leaves behind on its way, and what each column did to a score."""

import time
from collections.abc import Callable

import numpy as np

from features.schema import F32, SECOND
from ranker.bundle import Bundle
from ranker.columns import DEMAND, demand
from ranker.request import ABSENT, Candidates, Detail, SourceReport, awaited


class Trace:
    """What one request leaves behind beside its items: for `Answer.degraded` and `Detail`."""

    def __init__(self, check: Callable[[], None] = awaited) -> None:
        """check: of the request, asked at the end of each stage."""
        self._check = check
        self.degraded: list[str] = []
        self.proposed: list[tuple[str, int, str]] = []  # (source, items, problem), in the order of the bits
        self.removed: list[tuple[str, int]] = []  # (filter, items)
        self.stages: list[tuple[str, int]] = []  # (stage, µs)
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """End a stage; GoneError where nobody waits for the rest."""
        self._check()
        now = time.perf_counter()
        self.stages.append((stage, round((now - self._last) * SECOND)))
        self._last = now


def detail_of(bundle: Bundle, rows: F32, candidates: Candidates, trace: Trace, wanted: bool) -> Detail:
    """Explain an answer, by the part that scored it.

    rows: float32[r, c], the values that its first r items were scored by. wanted: whether the wanted part did; else the
    liked part.
    """
    booster = bundle.wanted if wanted and bundle.wanted is not None else bundle.booster
    columns = bundle.wanted_columns if wanted else bundle.columns
    parts = np.zeros((0, len(columns) + 1))
    if len(rows):
        parts = np.asarray(booster.predict(rows, num_threads=1, pred_contrib=True))
        if DEMAND in columns:  # the trees are added to it
            parts[:, columns.index(DEMAND)] += demand(rows, columns)
    scored = (candidates.place < ABSENT).sum(axis=0).tolist()
    reports = tuple(
        SourceReport(name, count, kept, problem)
        # Not strict: a Rank has the caller's place, and asks no source.
        for (name, count, problem), kept in zip(trace.proposed, scored, strict=False)
    )
    trace.mark("explain")
    return Detail(
        columns=columns,
        values=rows,
        liked=bundle.score(rows[:, : len(bundle.columns)]),
        wanted=bundle.score_wanted(rows) if wanted else None,
        contributions=parts[:, :-1].astype(np.float32),
        base=float(parts[0, -1]) if len(parts) else 0.0,
        sources=reports,
        removed=tuple(trace.removed),
        stages=tuple(trace.stages),
    )
