"""The report of `pairlift ab`: whether the split is the planned one, and what each arm changed, at every look.

ab_report       the log's users and looks
  _split        the sample-ratio check
  _metric       one metric at one look, of every arm against the control
    _against    uplift, both intervals, CUPED beside the plain estimate
  _decide       the first metric's verdicts, by Holm over the arms
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2_contingency, chisquare
from scipy.stats import t as student

from features.pairing.split import iso
from features.progress import progress_bar
from ranker.ab.aggregate import Log, Look, Rows, opened
from ranker.ab.estimates import LEAST_USERS, SKEWED, TOO_SKEWED, Moments, Uplift, unknown, uplift
from ranker.ab.plan import Plan
from ranker.ab.sequence import LEVEL, p_always, rho_squared, widening
from ranker.metrics.holm import SOURCE, holm
from ranker.metrics.interval import finite

#: of `ab.json`
FORMAT = 1
#: a smaller p says that the split is not the planned one. Fabijan et al. 2019, "Diagnosing sample ratio mismatch in
#: online controlled experiments", take as small a level, for a mismatch voids everything else
MISMATCH = 0.001
#: the chance with which an experiment should show an uplift
POWER = 0.8
#: what a comparison has that is not known
NOTHING: dict[str, Any] = {
    "relative_uplift": None,
    "fixed95": [None, None],
    "always95": [None, None],
    "ci95": [None, None],
    "p": None,
    "p_fixed": None,
    "p_always": None,
    "detectable": None,
    "variance_fell": None,
    "skewness": None,
    "plain": {"relative_uplift": None, "ci95": [None, None]},
}


def ab_report(source: str, plan: Plan) -> dict[str, Any]:
    """Return what `ab.json` holds of a log. PairliftError where it can tell nothing.

    source: a file, a folder of Parquet, a glob, or what else DuckDB reads.
    """
    with opened(source, plan) as log:
        reads = 2 + (1 if plan.final or not plan.time else plan.looks)
        with progress_bar(total=reads, desc="reads of the log", unit=" reads") as bar:
            rows = log.rows()
            bar.update()
            control, shares = plan.of_arms(sorted(rows.users))
            log.remember(rows)
            bar.update()
            looks = []
            for until in _times(rows, plan):
                looks.append(_look(log, rows, until, plan, control))
                bar.update()
    report = _head(source, plan, rows, control, shares) | looks[-1] | {"looks": [_short(look) for look in looks]}
    _decide(report)
    found: dict[str, Any] = finite(report)
    return found


def _times(rows: Rows, plan: Plan) -> list[int | None]:
    """Return the ends of the looks, in µs: equal parts of the time, the last one being all of it."""
    if rows.start is None or rows.end is None:
        return [None]
    count = 1 if plan.final else plan.looks
    part = (rows.end - rows.start) / count
    return [*(rows.start + round(k * part) for k in range(1, count)), rows.end]


def _head(source: str, plan: Plan, rows: Rows, control: str, shares: Mapping[str, float]) -> dict[str, Any]:
    """Return what does not depend on a metric."""
    total = sum(rows.users.values())
    arms = [control, *(arm for arm in rows.users if arm != control)]
    return {
        "format": FORMAT,
        "data": Path(source).name if "(" not in source else source,
        "control": control,
        "primary": plan.metrics[0].name,
        "final": plan.final,
        "tight_at": plan.tight_at,
        "start": None if rows.start is None else iso(rows.start),
        "end": None if rows.end is None else iso(rows.end),
        "users": total,
        "arms": {
            arm: {"users": rows.users[arm], "share": rows.users[arm] / total, "planned": shares[arm]} for arm in arms
        },
        "split": _split([rows.users[arm] for arm in arms], [shares[arm] for arm in arms], plan)
        | {"halves": _halves({arm: rows.came[arm] for arm in arms})},
        "rows": {
            "within": rows.within,
            "without_arm": rows.without_arm,
            "before": rows.before,
            "armed_before": rows.armed_before,
            "unplaced": rows.unplaced,
        },
        "in_two_arms": rows.in_two_arms,
        "settings": {
            "metrics": {metric.name: metric.sql for metric in plan.metrics},
            "user": plan.user,
            "arm": plan.arm,
            "time": plan.time,
        },
    }


def _split(users: list[int], shares: list[float], plan: Plan) -> dict[str, Any]:
    """Return Pearson's chi-square test of the users in each arm against the planned shares."""
    expected = np.array(shares) * sum(users)
    found = chisquare(users, expected)
    p = float(found.pvalue)
    return {"chi2": float(found.statistic), "p": p, "failed": p < MISMATCH, "stated": plan.shares is not None}


def _halves(came: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Return the arms' shares of who came in each half of the time, and the chi-square test that they are the same."""
    counts = np.array(list(came.values()), np.float64)  # [arms, 2]
    if not (counts.sum(axis=0).all() and counts.sum(axis=1).all()):
        return {"p": None, "changed": False, "shares": None}
    p = float(chi2_contingency(counts, correction=False).pvalue)
    shares = dict(zip(came, (counts / counts.sum(axis=0)).tolist(), strict=True))
    return {"p": p, "changed": p < MISMATCH, "shares": shares}


def _look(log: Log, rows: Rows, until: int | None, plan: Plan, control: str) -> dict[str, Any]:
    """Return every metric of the users until a time."""
    found = log.look(rows.start, until)
    arms = [arm for arm in rows.users if arm != control]
    metrics = {
        metric.name: {"kind": metric.kind, "sql": metric.sql} | _metric(found[metric.name], control, arms, plan)
        for metric in plan.metrics
    }
    return {"until": None if until is None else iso(until), "metrics": metrics}


def _metric(look: Look, control: str, arms: list[str], plan: Plan) -> dict[str, Any]:
    empty = Moments(0, np.full(4, np.nan), np.full((4, 4), np.nan), np.zeros((4, 4, 4)), 0)
    moments = {arm: look.moments.get(arm, empty) for arm in (control, *arms)}
    return {
        "arms": {
            arm: {"users": of.n, "value": of.ratio(), "largest_share": look.largest.get(arm, float("nan"))}
            for arm, of in moments.items()
        },
        "against": {arm: against(moments[control], moments[arm], plan) for arm in arms},
        "no_value": look.no_value,
    }


def against(control: Moments, arm: Moments, plan: Plan) -> dict[str, Any]:
    """Return an arm's uplift over the control, or why there is none (`refused`).

    `fixed95` is for one look, `always95` for every look; `ci95` and `p` are those that the verdict goes by.
    """
    if refused := unknown(control, arm):
        return NOTHING | {"refused": refused}
    plain, best = uplift(control, arm, cuped=False), uplift(control, arm)
    if not best.error:
        return NOTHING | {"refused": "the users' past tells it fully, so no interval can be given"}
    if best.skewness > SKEWED:
        return NOTHING | {"refused": TOO_SKEWED}
    fixed, always = best.interval(), _always(best, plan)
    decides, p = (fixed, best.p()) if plan.final else (always, _p_always(best, plan))
    if np.isnan(decides[0]) and (plan.final or best.fewest >= LEAST_USERS):
        return NOTHING | {"refused": "the control's value cannot be told from 0 by the interval that decides"}
    half = (decides[1] - decides[0]) / 2
    return {
        "refused": "",
        "relative_uplift": best.value,
        "ci95": list(decides),
        "fixed95": list(fixed),
        "always95": list(always),
        "p": p,
        "p_fixed": best.p(),
        "p_always": _p_always(best, plan),
        "detectable": half + float(student.ppf(POWER, best.df)) * best.error,
        "variance_fell": best.fell,
        "skewness": best.skewness,
        "plain": {"relative_uplift": plain.value, "ci95": list(_ends(plain, plan))},
    }


def _always(of: Uplift, plan: Plan) -> tuple[float, float]:
    """Return the ends of the interval for every look; NaN of few users, for it is one of many."""
    if of.fewest < LEAST_USERS:
        return float("nan"), float("nan")
    return of.within(widening(of.users, rho_squared(plan.tight_at)))


def _p_always(of: Uplift, plan: Plan) -> float:
    if of.fewest < LEAST_USERS:
        return float("nan")
    return p_always(of.away, of.users, rho_squared(plan.tight_at))


def _ends(of: Uplift, plan: Plan) -> tuple[float, float]:
    if of.skewness > SKEWED:
        return float("nan"), float("nan")
    return of.interval() if plan.final else _always(of, plan)


def _short(look: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a look: the uplifts with their intervals."""
    kept = ("relative_uplift", "ci95", "fixed95", "always95")
    metrics = {
        name: {arm: {key: of[key] for key in kept} for arm, of in metric["against"].items()}
        for name, metric in look["metrics"].items()
    }
    return {"until": look["until"], "metrics": metrics}


def _decide(report: dict[str, Any]) -> None:
    """Write Holm's p over the arms beside every metric's, and what is said of each arm: up, down, open, or void."""
    for metric in report["metrics"].values():
        found = metric["against"]
        adjusted = holm([float("nan") if of["p"] is None else of["p"] for of in found.values()])
        for of, p in zip(found.values(), adjusted, strict=True):
            shown = of["p"] is not None and p <= LEVEL
            of["p_holm"] = None if of["p"] is None else p
            of["decided"] = ("up" if of["relative_uplift"] > 0 else "down") if shown else "open"
            if report["split"]["failed"]:
                of["decided"] = "void"
    report["correction"] = {"method": "Holm", "source": SOURCE, "level": LEVEL, "arms": len(report["arms"]) - 1}
