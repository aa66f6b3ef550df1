"""How an answer came about: what its request left behind on its way, and what each column did to a score."""

from collections.abc import Sequence

import numpy as np

from features.schema import F32, I64
from ranker.bundle import Bundle
from ranker.columns import DEMAND, demand
from ranker.lanes import source_lane
from ranker.request import ABSENT, Candidates, Detail, RuleReport, SourceReport, Trace


def detail_of(
    bundle: Bundle, rows: F32, top: I64, candidates: Candidates, trace: Trace, sources: Sequence[str], wanted: bool
) -> Detail:
    """Explain an answer, by the part that scored it.

    rows: float32[r, c], the values that its first r items were scored by. top: int64[k], its items' places among the
    candidates. sources: the names of those that were asked.
    wanted: whether the wanted part scored; else the liked part.
    """
    booster = bundle.wanted if wanted and bundle.wanted is not None else bundle.booster
    by_network = booster is bundle.booster and bundle.network is not None  # which has no parts by column
    columns = bundle.wanted_columns if wanted else bundle.columns
    parts = np.zeros((0, len(columns) + 1))
    if len(rows) and not by_network:
        parts = np.asarray(booster.predict(rows, num_threads=1, pred_contrib=True))
        if DEMAND in columns:  # the trees are added to it
            parts[:, columns.index(DEMAND)] += demand(rows, columns)
    scored = (candidates.place < ABSENT).sum(axis=0).tolist()
    reports = tuple(
        SourceReport(name, count, kept, trace.problems.get(source_lane(name), ""))
        # Not strict: a Rank has the caller's place, and asks no source.
        for name, count, kept in zip(sources, trace.proposed, scored, strict=False)
    )
    trace.mark("explain")
    return Detail(
        columns=columns,
        values=rows,
        liked=bundle.score(rows[:, : len(bundle.columns)]),
        wanted=bundle.score_wanted(rows) if wanted else None,
        contributions=None if by_network else parts[:, :-1].astype(np.float32),
        base=float(parts[0, -1]) if len(parts) else 0.0,
        sources=reports,
        removed=tuple(trace.removed),
        rules=tuple(
            RuleReport(name, len(changed), tuple(np.flatnonzero(np.isin(top, changed)).tolist()))
            for name, changed in trace.ruled
        ),
        stages=tuple(trace.stages),
    )
