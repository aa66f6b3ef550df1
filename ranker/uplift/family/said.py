"""What a report of several plugins says in a sentence: one definition for the terminal and the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from ranker.uplift.said import Figure, Sentence, interval

Report = Mapping[str, Any]


def verdict(report: Report) -> str:
    """Return in words which plugins are useful and which add to the rest, after the correction, and no more."""
    useful, more = (_of(report, question) for question in ("useful", "more"))
    n = len(report["plugins"])
    if not useful and not more:
        return f"none of {n} plugins is shown to be useful"
    alone = f"of {n} plugins {_are(useful)} useful" if useful else f"of {n} plugins none is shown to be useful alone"
    if report["together"] is None:
        return alone
    adds = f"{_named(more)} {'adds' if len(more) == 1 else 'add'}" if more else "none is shown to add"
    return f"{alone}; {adds} to what the others have"


def _of(report: Report, question: str) -> list[str]:
    return [name for name, of in report["each"].items() if of[question]]


def _are(names: Sequence[str]) -> str:
    return f"{_named(names)} {'is' if len(names) == 1 else 'are'}"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]


def why(report: Report) -> Sentence:
    """Return what the verdict rests on."""
    corrected = (
        f"A plugin that knows nothing looks useful now and then, and of {len(report['plugins'])} one sooner: the "
        "verdicts are corrected by Holm, so that any wrong yes has a chance of at most "
    )
    return [*_together(report), corrected, Figure(("correction", "level"), "share"), "."]


def _together(report: Report) -> Sentence:
    if report["together"] is None:
        return ["Fewer than two do not leak, so there is nothing to put together. "]
    names = report["together"]["plugins"]
    every = f"All {len(names)}" if len(names) == len(report["plugins"]) else f"The {len(names)} that do not leak"
    return [f"{every} together: ", *interval("together"), " (95 %). "]


def said_of(report: Report, name: str) -> str:
    """Return what is said of one plugin."""
    of = report["each"][name]
    if of["leaks"]:
        return "LEAKS: its figures say nothing, and it has no part in the sets"
    alone = "useful alone" if of["useful"] else "not shown to be useful alone"
    if of["adds"] is None:
        return alone
    return f"{alone}, {'adds' if of['more'] else 'not shown to add'} to the rest"


def doubts_of(report: Report) -> dict[str, list[str]]:
    """Return what speaks against trusting the numbers, by plugin; first, under `all`, what is said of every one."""
    found: dict[str, list[str]] = {name: of.get("doubts", []) for name, of in report["each"].items()}
    shared = [doubt for doubt in next(iter(found.values())) if all(doubt in of for of in found.values())]
    return {"all": shared} | {name: [of for of in own if of not in shared] for name, own in found.items()}
