"""What an experiment's report says in a sentence, and what speaks against it: for the terminal and the page."""

from collections.abc import Mapping
from typing import Any

from ranker.ab.estimates import LEAST_USERS
from ranker.uplift.said import Figure, Sentence, interval
from ranker.uplift.verdict import Doubt

Report = Mapping[str, Any]
Path = tuple[str | int, ...]

#: what is said of an arm, by what is decided
WORDS = {
    "up": "'{arm}' raises {metric}",
    "down": "'{arm}' lowers {metric}",
    "open": "no change of {metric} by '{arm}' is shown",
}
#: a user with a larger share in an arm's sum of the first metric is told
LARGE = 0.05
#: skewness of the difference of two values that is told; see `ranker.ab.estimates.SKEWED`
DOUBTFUL = 0.1
VOID = "Nothing below may be trusted: the users are not split as planned"


def others(report: Report) -> list[str]:
    """Return the arms but the control."""
    return list(report["arms"])[1:]


def primary(report: Report, arm: str) -> Path:
    """Return the place of what the verdict says of an arm."""
    return ("metrics", report["primary"], "against", arm)


def found(report: Report, arm: str) -> dict[str, Any]:
    """Return what the verdict says of an arm."""
    of: dict[str, Any] = report["metrics"][report["primary"]]["against"][arm]
    return of


def verdict(report: Report) -> str:
    """Return in words what the report says, and no more."""
    if report["split"]["failed"]:
        return VOID
    said = []
    for arm in others(report):
        decided = found(report, arm)["decided"]
        yet = " so far" if decided == "open" and not report["final"] else ""
        said.append(WORDS[decided].format(arm=arm, metric=report["primary"]) + yet)
    return "; ".join(said)


def why(report: Report) -> Sentence:
    """Return what the verdict rests on, which claims no more than the intervals do."""
    if report["split"]["failed"]:
        return [
            *_counts(report),
            " (chi-square p = ",
            Figure(("split", "p"), "number"),
            "). ",
            *(_grown(report) or ["Find out why before anything else: users whose events are lost, bots."]),
        ]
    said: list[str | Figure] = []
    for arm in others(report):
        said += [" " if said else "", *_of(report, arm)]
    level = "for this look alone, as --final says" if report["final"] else "however often one looks"
    many = f"; decided with Holm's correction for {len(others(report))} arms" if len(others(report)) > 1 else ""
    return [*said, f" The intervals are of 95 %, {level}{many}."]


def _of(report: Report, arm: str) -> Sentence:
    of = found(report, arm)
    if of["refused"]:
        return [f"Of '{arm}' nothing is known: {of['refused']}."]
    if of["ci95"][0] is None:
        few = f"an interval for every look takes at least {LEAST_USERS} users in each arm"
        return [f"Of '{arm}' nothing is known yet: {few}; go on, or say --final where this is the only look."]
    over = "" if len(others(report)) == 1 else f" of '{arm}'"
    values = [
        Figure(("metrics", report["primary"], "arms", name, "value"), "number") for name in (report["control"], arm)
    ]
    raw = "" if of["variance_fell"] is None else " before CUPED took from the uplift what the users' past explains"
    levels: Sentence = [": ", values[1], " against ", values[0], f"{raw}."]
    return [f"The uplift{over} over '{report['control']}' is ", *interval(*primary(report, arm)), *levels]


def _counts(report: Report) -> Sentence:
    said: list[str | Figure] = []
    for arm in report["arms"]:
        share, planned = (Figure(("arms", arm, key), "share") for key in ("share", "planned"))
        said += [", " if said else "", f"'{arm}' has ", Figure(("arms", arm, "users"), "count"), " users, "]
        said += [share, " where ", planned, " were planned"]
    return said


def doubts(report: Report) -> list[Doubt]:
    """Return what speaks against trusting the figures."""
    return [
        Doubt(name, sentence)
        for name, sentence in (
            ("the split", _split(report)),
            ("an arm that grew", [] if report["split"]["failed"] else _grown(report)),
            ("users in two arms", _two_arms(report)),
            ("rows of no arm", _no_arm(report)),
            ("values that are no numbers", _no_value(report)),
            ("rows without a user or a time", _unplaced(report)),
            ("skewed values", _skewed(report)),
            ("one user carries much", _largest(report)),
            ("an earlier look had shown it", _earlier(report)),
            ("a single look would say otherwise", _peek(report)),
            ("no past of the users", _past(report)),
            ("little is shown", _small(report)),
        )
        if sentence
    ]


def _split(report: Report) -> Sentence:
    if report["split"]["failed"]:
        return [*_counts(report), ": a mismatch (p = ", Figure(("split", "p"), "number"), ")."]
    return [] if report["split"]["stated"] else ["Equal shares are taken for the planned ones: no --share says others."]


def _grown(report: Report) -> Sentence:
    """Tell of shares that changed; a report of before this was tested knows nothing of it."""
    halves = report["split"].get("halves") or {"changed": False}
    if not halves["changed"]:
        return []
    # The arm whose share changed most.
    arm = max(others(report), key=lambda name: abs(halves["shares"][name][1] - halves["shares"][name][0]))
    first, last = (Figure(("split", "halves", "shares", arm, k), "share") for k in (0, 1))
    return [
        f"The shares changed during the experiment: '{arm}' has ",
        *(first, " of the users who came in its first half and ", last),
        " of those who came in the second, and early users are others than late ones. Where an arm was made to grow, "
        "compare only what was behind that, by --start; else it may bring users back sooner, or lose events.",
    ]


def _two_arms(report: Report) -> Sentence:
    if not report["in_two_arms"]:
        return []
    return [
        Figure(("in_two_arms",), "count"),
        " users were in more than one arm and are left out; where an arm grew during the experiment, compare those who "
        "came behind that.",
    ]


def _no_arm(report: Report) -> Sentence:
    if not report["rows"]["without_arm"]:
        return []
    return [Figure(("rows", "without_arm"), "count"), " rows of the experiment's time are of no arm and are left out."]


def _no_value(report: Report) -> Sentence:
    name = next((name for name, of in report["metrics"].items() if of["no_value"]), None)
    if name is None:
        return []
    count = Figure(("metrics", name, "no_value"), "count")
    return [f"In {name}, the value of ", count, " users is NaN or infinite; they are left out of it."]


def _largest(report: Report) -> Sentence:
    name = report["primary"]
    for arm, of in report["metrics"][name]["arms"].items():
        # A report of before the share was counted by arm has none.
        if (of.get("largest_share") or 0.0) > LARGE:
            share = Figure(("metrics", name, "arms", arm, "largest_share"), "share")
            return ["One user has ", share, f" of all {name} of '{arm}': the intervals cover less than said."]
    return []


def _peek(report: Report) -> Sentence:
    for arm in others(report):
        of = found(report, arm)
        low, high = of["fixed95"]
        if of["decided"] == "open" and low is not None and not low <= 0 <= high and not report["final"]:
            ends = [Figure((*primary(report, arm), "fixed95", k), "percent") for k in (0, 1)]
            return [
                f"A test of one planned look would have '{arm}' within ",
                *(ends[0], " and ", ends[1]),
                ". It does not count: who looks again and again finds such a thing by chance. --final is for an "
                "experiment that nobody looked at before its planned end.",
            ]
    return []


def _unplaced(report: Report) -> Sentence:
    if not report["rows"]["unplaced"]:
        return []
    return [Figure(("rows", "unplaced"), "count"), " rows have no user, or no time, and are left out."]


def _skewed(report: Report) -> Sentence:
    for arm in others(report):
        if (found(report, arm)["skewness"] or 0.0) > DOUBTFUL:
            return [
                f"The values are skewed and '{arm}' and '{report['control']}' of other sizes: the interval covers less "
                "than it says, the more so the smaller an arm is."
            ]
    return []


def _earlier(report: Report) -> Sentence:
    """Who stopped at that look had an answer, which held; what came since leaves it open."""
    for arm in others(report):
        for look in report["looks"][:-1] if found(report, arm)["decided"] == "open" and not report["final"] else ():
            low, high = look["metrics"][report["primary"]][arm]["always95"]
            if low is not None and not low <= 0 <= high:
                side = "above" if low > 0 else "below"
                until = look["until"][:16].replace("T", " ")
                return [
                    f"At the look until {until} the interval of '{arm}' lay {side} zero: an experiment that stopped "
                    "there had its answer; of all that came since there is none yet."
                ]
    return []


def _past(report: Report) -> Sentence:
    if report["rows"]["armed_before"]:
        return [
            Figure(("rows", "armed_before"), "count"),
            " rows from before --start have an arm: what users did then is no past without an effect, so CUPED is left "
            "out; and an effect may have been carried over.",
        ]
    if any(found(report, arm)["variance_fell"] is not None for arm in others(report)):
        return []
    return ["The log has nothing of these users from before the experiment that tells: CUPED takes no noise away."]


def _small(report: Report) -> Sentence:
    for arm in others(report):
        of = found(report, arm)
        if of["decided"] in ("up", "down") and abs(of["relative_uplift"]) < of["detectable"]:
            least = Figure((*primary(report, arm), "detectable"), "percent")
            return [f"How much '{arm}' changes is uncertain: an uplift is found 4 times in 5 from ", least, "."]
    return []


def cuped(report: Report, arm: str) -> Sentence:
    """Return by how much the users' past made the variance fall."""
    path = primary(report, arm)
    if found(report, arm)["variance_fell"] is None:
        return []
    plain = interval(*path, "plain")
    fell = Figure((*path, "variance_fell"), "share")
    return [f"{arm}: by CUPED, of what the users did before, the variance fell by ", fell, "; without CUPED ", *plain]
