"""What a report says in a sentence, and what speaks against it: one definition for the terminal and the page."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from features.schema import SAMPLED
from ranker.uplift.said import Figure, Sentence, found_at, interval

Report = Mapping[str, Any]

#: fewer fits of the plugin, or seeds, give an interval that is wide or holds for less than one wants
LEAST_FITS, LEAST_SEEDS = 3, 5
#: fewer effective users are few for an interval about new ones
FEW_EFFECTIVE = 50
#: a larger share of ties, or of pairs that miss the column on a side, is told
MANY_TIES, MANY_MISSING = 0.05, 0.1
#: a column that alone orders so many pairs right may know the label's own event
TOO_GOOD = 0.95
#: one arm that has so many times the other's trees was stopped elsewhere
OTHER_TREES = 2.0
#: a column whose mean moved by so many of its spreads is another one in the test
MOVED = 0.5
#: an interval of a list figure that goes further down than this does not clear the lists
UNTOLD = 0.05
#: doubts of one kind that are told
FIRST_FEW = 3
#: names of the list figures, by their key in `lists`
LISTS = {"recall@10": "Recall@10", "ndcg@10": "NDCG@10"}


@dataclass(frozen=True, slots=True)
class Doubt:
    """What speaks against trusting the number."""

    name: str  # of the guard rail
    sentence: Sentence


def verdict(report: Report) -> str:
    """Return in words what the report says, and no more."""
    if report["leaks"]:
        return "LEAKS: its values know what they must not, so no uplift below says anything"
    if not report["useful"]:
        return "is not shown to be useful"
    uplift, least = report["relative_uplift"], report["minimum_detectable_uplift"]
    small = "; how much is uncertain, for it is less than this test shows reliably" if uplift < least else ""
    return f"is useful{of_one(report)}{small}"


def of_one(report: Report) -> str:
    """Return that a verdict holds for one fit, or one seed, alone; nothing where there are more."""
    one = single(report)
    return f" with this one {one} (others were not tried)" if one else ""


def single(report: Report) -> str:
    """Return which there is one alone of, behind "one": `fit`, `seed` or `fit and one seed`; nothing of neither."""
    one = [*(["fit"] if report["fits"] == 1 else []), *(["seed"] if len(report["seeds"]) == 1 else [])]
    return " and one ".join(one)


def doubts(report: Report) -> list[Doubt]:
    """Return what speaks against trusting the number, leaks first."""
    return [Doubt(name, of) for name, check in CHECKS.items() for of in _first_few(check(report) or [])]


def _first_few(sentences: list[Sentence]) -> list[Sentence]:
    """Return those of a plugin of many columns that one reads."""
    more: list[Sentence] = (
        [[f"and {len(sentences) - FIRST_FEW} more of the kind"]] if len(sentences) > FIRST_FEW else []
    )
    return sentences[:FIRST_FEW] + more


def cleared(report: Report) -> list[str]:
    """Return the names of the checks that found nothing. What the report has no figures of is not among them.

    None is where the plugin leaks: no other figure says anything then.
    """
    if report["leaks"]:
        return []
    quiet = [name for name, check in CHECKS.items() if check(report) == []]
    return [name for name in quiet if not (name == "effective users" and _macro(report))]  # else both seem to be said


def not_run(report: Report) -> list[str]:
    """Return the leak controls that could not be run, by name."""
    return [kind for kind, control in report["controls"].items() if not control["groups"]]


# Each check returns a sentence for each doubt, an empty list where there is none, and None where the report does not
# have what it needs.


def _leaks(report: Report) -> list[Sentence]:
    found: dict[tuple[str, str], list[str | Figure]] = {}
    for kind, control in report["controls"].items():
        for k, leak in enumerate(control["leaks"]):
            groups = Figure(("controls", kind, "leaks", k, "groups"), "count")
            said = found.setdefault((leak["column"], kind), [])
            said += [", " if said else "", groups, f" of {leak['slice']}"]
    return [
        [
            f"{column} differs in the control {kind}, so its values know what came later (groups that differ: ",
            *(*where, "; compared: ", Figure(("controls", kind, "groups"), "count"), ")"),
        ]
        for (column, kind), where in found.items()
    ]


def _controls(report: Report) -> list[Sentence] | None:
    if not report["controls"]:
        return None
    return [[f"the leak control {kind} was not run: {report['controls'][kind]['remark']}"] for kind in not_run(report)]


def _too_good(report: Report) -> list[Sentence]:
    return [
        [f"{name} alone orders ", Figure(path, "accuracy"), " of the pairs right: may it know the label's own event?"]
        for name, path in _alone(report, "pair_accuracy").items()
        if (found_at(report, path) or 0) > TOO_GOOD
    ]


def _missing(report: Report) -> list[Sentence]:
    found: list[Sentence] = []
    for name, path in _alone(report, "comparable").items():
        share = found_at(report, path)
        if not share:
            found.append([f"{name} is missing on a side of every pair of the test: is it computed as it should be?"])
        elif share < 1 - MANY_MISSING:
            found.append([f"{name} is known on both sides of only ", Figure(path, "share"), " of the pairs"])
    if (found_at(report, ("missingness", "ci95", 0)) or 0) > 0:
        gain = interval("missingness")
        found.append(
            ["that values are known, without the values, already brings ", *gain, ": a sign of an item's age?"]
        )
    return found


def _alone(report: Report, what: str) -> dict[str, tuple[str, str, str]]:
    return {name: ("column_alone", name, what) for name in report["column_alone"]}


def _ties(report: Report) -> list[Sentence]:
    without, with_ = (report["tie_share"][arm] for arm in ("without", "with"))
    if without is None or max(without, with_) <= MANY_TIES:
        return []
    shares = [Figure(("tie_share", arm), "share") for arm in ("without", "with")]
    return [[shares[0], " of the pairs are ties without it, ", shares[1], " with it; a tie counts one half"]]


def _few_users(report: Report) -> list[Sentence]:
    if report["effective_users"] is not None and report["effective_users"] >= FEW_EFFECTIVE:
        return []
    users = [Figure((of,), "count") for of in ("users", "effective_users")]
    return [[users[0], " users are worth ", users[1], " equally active ones: the interval rests on few"]]


def _macro(report: Report) -> list[Sentence]:
    """Of the main interval and that of each user weighing one, one alone excludes zero."""
    sides = [_side(report["ci95"]), _side(report["macro"]["ci95"])]
    if sides[0] == sides[1]:
        return []
    return [["were each user to count alike, it is ", *interval("macro"), ": users of many pairs decide the main one"]]


def _side(ends: list[float | None]) -> int:
    """Return 1 or -1 of an interval above or below zero, 0 of one that holds it."""
    low, high = ends
    return 0 if low is None or high is None else int(low > 0) - int(high < 0)


def _trees(report: Report) -> list[Sentence]:
    trees = [Figure(("trees", arm), "count") for arm in ("without", "with")]
    few, many = sorted(tree.value(report) or 0.0 for tree in trees)
    if many <= OTHER_TREES * few:
        return []
    return [["very different numbers of them: ", trees[0], " without it, ", trees[1], " with it"]]


def _at_cap(report: Report) -> list[Sentence]:
    if not any(report["at_cap"][arm] for arm in ("without", "with")):
        return []
    capped = f"{_capped('with', report)} with it, {_capped('without', report)} without it"
    return [[f"{capped} grew to the limit, [booster] trees = {report['most_trees']}: more may be better, so raise it"]]


def _capped(arm: str, report: Report) -> str:
    return f"{report['at_cap'][arm]} of {sum(map(len, report['trees'][arm]))} boosters"


def _fits_differ(report: Report) -> list[Sentence] | None:
    """The fits' part of the variance is the largest."""
    parts = report["variance"]
    if parts["fits"] is None or parts["users"] is None:
        return None
    if parts["fits"] <= parts["users"] + (parts["seeds"] or 0):
        return []
    return [["the uplifts of the fits have a standard deviation of ", Figure(("fit_sd",), "share")]]


def _few_repeats(report: Report) -> list[Sentence]:
    found: list[Sentence] = []
    if report["fits"] < LEAST_FITS:
        found.append([f"only {many(report['fits'], 'fit')} of the plugin; at least {LEAST_FITS} are advised"])
    if len(report["seeds"]) < LEAST_SEEDS:
        found.append([f"only {many(len(report['seeds']), 'seed')}; at least {LEAST_SEEDS} are advised"])
    return found


def many(n: int, what: str) -> str:
    """Return a number of something."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def _shuffled(report: Report) -> list[Sentence]:
    if not report["shuffled"]["above_zero"]:
        return []
    return [["shuffled columns gain as well: a further column is lucky here; more seeds, or more users"]]


def _drift(report: Report) -> list[Sentence] | None:
    if "periods" not in report:
        return None
    return [
        [
            f"{name} has moved by ",
            Figure(("periods", name, "moved"), "number"),
            " of its spread since the training rows",
        ]
        for name, of in report["periods"].items()
        if of["moved"] is not None and abs(of["moved"]) > MOVED
    ]


def _lists(report: Report) -> list[Sentence] | None:
    if found_at(report, ("lists", "remark")) != "":
        return None
    ends = {key: report["lists"][key]["ci95"] for key in LISTS}
    worse: list[Sentence] = [
        [f"the lists of Recommend get worse: {label} ", *interval("lists", key)]
        for key, label in LISTS.items()
        if _side(ends[key]) < 0
    ]
    if not worse and any(low is None or low < -UNTOLD for low, _ in ends.values()):
        return None  # an interval as wide as that clears nothing
    return worse


def _debiased(report: Report) -> list[Sentence] | None:
    """The main uplift is not there by the metric that takes the places' attention out."""
    path = ("shown_order", "debiased", "uplift")
    of = found_at(report, path)
    if of is None or of["ci95"][0] is None:
        return None
    if _side(report["ci95"]) <= 0 or _side(of["ci95"]) > 0:
        return []
    return [["as if all places were looked at as the first is, the uplift is ", *interval(*path)]]


def _drawn(report: Report) -> list[Sentence]:
    if report["pairs_kind"] != SAMPLED:
        return []
    return [[f"the losers of all pairs were drawn (sampler = '{report['sampler']}'), not shown and passed over"]]


def _nothing(report: Report) -> list[Sentence]:
    if report["relative_uplift"] is None:
        return [["the arm without the column orders no pair right: there is nothing to compare with"]]
    if report["ci95"][0] is None:
        return [["one user has all that is right: there is no interval without others"]]
    return []


#: what is looked at, by name
CHECKS: dict[str, Callable[[Report], list[Sentence] | None]] = {
    "leaks": _leaks,
    "leak controls": _controls,
    "columns that know the label's event": _too_good,
    "enough for an interval": _nothing,
    "missing values": _missing,
    "shuffled columns": _shuffled,
    "effective users": _few_users,
    "each user alike": _macro,
    "debiased for places": _debiased,
    "lists": _lists,
    "agreement of fits": _fits_differ,
    "fits and seeds": _few_repeats,
    "trees": _trees,
    "the most trees": _at_cap,
    "ties": _ties,
    "drift": _drift,
    "drawn pairs": _drawn,
}

#: what is so where a check found nothing; what goes without saying has no phrase
CLEARED = {
    "leak controls": "both leak controls ran and found none",
    "columns that know the label's event": "no column alone orders nearly all pairs right",
    "missing values": "few values are missing",
    "shuffled columns": "shuffled columns show no gain",
    "effective users": "not a few users alone decide",
    "each user alike": "counting each user alike says the same",
    "debiased for places": "debiasing for places takes nothing away",
    "lists": "lists are not shown to get worse",
    "agreement of fits": "the fits agree",
    "trees": "both arms have about as many trees",
    "ties": "few pairs tie",
    "drift": "its values have not drifted",
}
