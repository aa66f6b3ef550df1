"""What a report of several plugins says in a sentence: one definition for the terminal and the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from ranker.uplift.said import Figure, Sentence, found_at, interval, lag_said
from ranker.uplift.verdict import LEAST_SEEDS, of_one, single

Report = Mapping[str, Any]

#: what p is, which no heading has room for
P_SAID = (
    "p is that of no gain: two-sided where there is a gain, else 1; of a plugin alone the larger one of its uplift and "
    "of its uplift over missingness, for both must lie above zero."
)


def verdict(report: Report) -> str:
    """Return in words which plugins are useful, which add to the rest, which leak; corrected, and no more."""
    each = report["each"]
    useful, more, leaking = (_of(report, question) for question in ("useful", "more", "leaks"))
    n, leaks = len(report["plugins"]), [f"{_named(leaking)} {_verb(leaking, 'leak')}"] if leaking else []
    if not useful and not more:
        return "; ".join([f"none of {n} plugins is shown to be useful", *leaks])
    one, said, asked = of_one(report), list[str](), report["together"] is not None
    more = more if asked else []
    if both := [name for name in useful if name in more]:
        said.append(f"{_are(both)} useful{one} and {_verb(both, 'add')} to what the others have")
    if alone := [name for name in useful if name not in more]:
        yes = f"useful{one} but not shown to add to the others" if asked else f"useful{one}"
        said.append(f"{_are(alone)} {yes}")
    if only := [name for name in more if name not in useful]:
        said.append(f"{_named(only)} {_verb(only, 'add')} to the others, not shown to be useful alone")
    if rest := [name for name in each if name not in (*useful, *more, *leaking)]:
        said.append(f"{_are(rest)} not shown to be useful")
    return f"of {n} plugins, {'; '.join([*said, *leaks])}"


def _verb(names: Sequence[str], verb: str) -> str:
    return verb if len(names) > 1 else f"{verb}s"


def _of(report: Report, question: str) -> list[str]:
    return [name for name, of in report["each"].items() if of[question]]


def _are(names: Sequence[str]) -> str:
    return f"{_named(names)} {'is' if len(names) == 1 else 'are'}"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]


def why(report: Report) -> Sentence:
    """Return what the verdict rests on."""
    level = Figure(("correction", "level"), "share")
    corrected = "The verdicts on each are corrected for their number (Holm): the chance of any wrong yes is at most "
    each = "" if report["together"] is None else " for each of the two questions, alone and beside the rest"
    one = single(report)
    aside = f", the luck of one {one} aside" if one else ""
    return [*_together(report), corrected, level, f"{each}{aside}."]


def _together(report: Report) -> Sentence:
    if report["together"] is None:
        return ["Fewer than two do not leak, so there is nothing to put together. "]
    names = report["together"]["plugins"]
    every = f"All {len(names)}" if len(names) == len(report["plugins"]) else _named(names)
    return [
        f"{every} together bring a relative uplift of ",
        *interval("together"),
        " (95 %; no part of the correction). ",
    ]


def said_of(report: Report, name: str) -> Sentence:
    """Return what is said of one plugin, and why of each no."""
    of = report["each"][name]
    if of["leaks"]:
        return ["LEAKS: its figures say nothing, and it has no part in the sets"]
    said: list[str | Figure] = ["useful alone"]
    if not of["useful"]:
        said = ["not shown to be useful alone", *_not_shown(report, name, "alone")]
    if of["adds"] is not None:
        said += [", adds to the rest"] if of["more"] else ["; not shown to add", *_not_shown(report, name, "adds")]
    return [*said, *(f"; {late}" for late in filter(None, [lag_said(of)]))]


def _not_shown(report: Report, name: str, question: str) -> Sentence:
    """Return whether that is so for want of a gain, or because the test cannot tell. question: alone or adds."""
    path, of = ("each", name, question), report["each"][name]
    low, high = of[question]["ci95"]
    if low is None:
        return [" (there is no interval)"]
    if high < 0:
        return [" (it loses)"]
    if low <= 0:
        least = Figure((*path, "minimum_detectable_uplift"), "percent")
        most = Figure((*path, "ci95", 1), "percent")
        return [" (any gain is below ", most, "; this test finds those from ", least, " on)"]
    if question == "alone" and (of["beyond"]["ci95"][0] or 0.0) <= 0:
        return [" (over knowing only which values are missing: ", *interval("each", name, "beyond"), ")"]
    if of[question]["p_holm"] <= len(report["plugins"]) * of[question]["p"] + 1e-12:  # else it was set to 1
        before, after = (Figure((*path, key), "number") for key in ("p", "p_holm"))
        return [
            " (above zero by itself, p ",
            before,
            ", but p is ",
            after,
            f" after the correction{_few(report, path)})",
        ]
    return [" (a leak control could not be run)"]


def _few(report: Report, path: tuple[str, ...]) -> str:
    """Return that the seeds are too few, where more of them would make the p smaller."""
    seeds = len(report["seeds"])
    few = (found_at(report, (*path, "variance", "seeds")) or 0.0) > 0 and seeds < LEAST_SEEDS
    return f"; of more than {seeds} seeds it may be smaller" if few else ""


def doubts_of(report: Report) -> dict[str, list[str]]:
    """Return what speaks against trusting the numbers, by plugin; first, under `all`, what is said of every one."""
    found: dict[str, list[str]] = {name: of.get("doubts", []) for name, of in report["each"].items()}
    shared = [doubt for doubt in next(iter(found.values())) if all(doubt in of for of in found.values())]
    return {"all": shared} | {name: [of for of in own if of not in shared] for name, own in found.items()}
