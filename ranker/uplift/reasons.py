"""Why a report's verdict is what it is: one definition for the terminal and the page."""

from collections.abc import Mapping
from typing import Any

from ranker.uplift.said import Figure, Sentence, found_at, interval
from ranker.uplift.verdict import LEAST_FITS, LEAST_SEEDS, many, not_run

Report = Mapping[str, Any]

#: from this share of ties on there was hardly an order without the plugin
MOSTLY_TIES = 0.5


def why(report: Report) -> Sentence:
    """Return what the verdict rests on, which claims no more than the interval does."""
    low, high = report["ci95"]
    ends: list[str | Figure] = [
        "between ",
        Figure(("ci95", 0), "percent"),
        " and ",
        Figure(("ci95", 1), "percent"),
        " (95 %)",
    ]
    if report["leaks"]:
        return [
            "Values changed when a control took away events that they must not know: those from the request's own time "
            "on (as_of), or from the end of what the plugin learns of (t1)."
        ]
    if report["relative_uplift"] is None or low is None:
        return ["There is no interval: one user has all that is right, or nobody has anything right without it."]
    if high < 0:
        return ["PairAccuracy falls: the relative change is ", *ends, "."]
    if low <= 0:
        most = Figure(("ci95", 1), "percent")
        ruled: Sentence = [": a gain above ", most, " is ruled out, a smaller one is not."]
        return ["The relative change of PairAccuracy is ", *ends, *ruled]
    alike: Sentence = [" Were each user to count alike, it would be ", *interval("macro"), ": not shown."]
    few = bool(report["useful"]) and (report["macro"]["ci95"][0] or 0.0) <= 0
    arms: Sentence = [Figure(("without",), "accuracy"), " to ", Figure(("with",), "accuracy")]
    rises: Sentence = ["PairAccuracy rises from ", *arms, ": the relative uplift is ", *ends]
    more = [*_tied(report), *(alike if few else []), *_measured_on(report)]
    return [*rises, *_but(report), ".", *more]


def _tied(report: Report) -> Sentence:
    """Return that there was hardly an order to begin with, where it was so."""
    share = report["tie_share"]["without"]
    if share is None or share < MOSTLY_TIES:
        return []
    return [" Without it, ", Figure(("tie_share", "without"), "share"), " of the pairs tie."]


def _measured_on(report: Report) -> Sentence:
    """Return on how little a yes rests, where that is less than is advised."""
    fits, seeds = report["fits"], len(report["seeds"])
    if not report["useful"] or (fits >= LEAST_FITS and seeds >= LEAST_SEEDS):
        return []
    on = f" users, {many(fits, 'fit')} and {many(seeds, 'seed')}; at least {LEAST_FITS} fits and {LEAST_SEEDS} seeds"
    return [" That is of ", Figure(("users",), "count"), f"{on} are advised."]


def beyond_decides(report: Report) -> bool:
    """Tell whether a gain is not called useful because to know which values are missing explains it."""
    trusted = bool(report["controls"]) and not report["leaks"] and not not_run(report)
    low, beyond = report["ci95"][0], found_at(report, ("missingness", "beyond", "ci95", 0))
    return trusted and not report["useful"] and (low or 0.0) > 0 and (beyond or 0.0) <= 0


def _but(report: Report) -> Sentence:
    """Return why a gain is not called useful."""
    if report["useful"]:
        return []
    if not report["controls"] or not_run(report):
        return [", but a leak control could not be run, so that a leak may have made it"]
    if (found_at(report, ("missingness", "beyond", "ci95", 0)) or 0.0) > 0 and "family" in report:
        p = Figure(("family", "p_holm"), "number")
        return [
            ", but of ",
            Figure(("family", "plugins"), "count"),
            " plugins tried one may look so by chance (p ",
            p,
            ")",
        ]
    more = interval("missingness", "beyond")
    return [", but over merely knowing which values are missing it is ", *more]
