"""An uplift report as text: the verdict, the figures, and what speaks against trusting them."""

from typing import Any

import numpy as np

from features.schema import SAMPLED
from ranker.metrics.shown import shown_lines
from ranker.uplift.explain.ages import AGE
from ranker.uplift.figures import plain, purpose_of, title_of
from ranker.uplift.lists import LIST_FIGURES
from ranker.uplift.measured import LISTED
from ranker.uplift.reasons import why
from ranker.uplift.said import KINDS, as_text, costs, interval, lag_said
from ranker.uplift.verdict import doubts, verdict

#: guard rails that have lines of their own
SHOWN_ABOVE = ("leaks", "leak controls that could not be run", "drawn pairs")


def as_table(report: dict[str, Any]) -> str:
    """Return the report's main figures as text."""
    macro, catboost, missing = report["macro"], report["pair_accuracy_catboost"], report["missingness"]
    alone = ", ".join(
        f"{name} {_number(of['pair_accuracy'])} ({100 * (of['comparable'] or 0):.0f} % of the pairs)"
        for name, of in list(report["column_alone"].items())[:4]
    )
    lines = [
        f"{report['data']}: {report['plugin']} {verdict(report)}",
        as_text(report, why(report)),
        f"({report['pairs']:,} {_kind(report)} pairs, {report['users']:,} users, "
        f"{report['effective_users']:.0f} effective)",
        "",
        f"{'':26}{'without':>9}{'with':>9}   uplift",
        _line("PairAccuracy", report),
        _line("  macro: users weigh one", macro),
        _line("  ties wrong (CatBoost)", catboost),
        _line("  missingness", missing | {"with": missing["pair_accuracy"]}, without=False),
        _line("  columns shuffled", report["shuffled"] | {"with": report["shuffled"]["pair_accuracy"]}, without=False),
        *_debiased(report),
        *(_line(label, report[name], uplift=False) for name, label in LISTED.items()),
        _line("share of ties", report["tie_share"], uplift=False),
        _trees(report["trees"]),
        *_lists(report["lists"]),
        "",
        *_lag(report),
        f"the interval is about {report['holds_for']}; its parts: {_parts(report)}",
        f"over missingness (known or not, without the values): {_interval(missing['beyond'])}; {_sides(missing)}",
        f"random {_number(report['random'])}   popularity {_number(report['popularity'])}   alone: {alone}",
        *_cost(report),
        *_heads(report["heads"]),
        *shown_lines(report["shown_order"], {"without": "without", "with": "with", "popularity": "popularity"}),
        f"this test mostly misses gains below {_percent(report['minimum_detectable_uplift'])}, the minimum detectable "
        "uplift (found 4 times in 5); smaller ones may be real",
        *_controls(report),
        *_doubts(report),
    ]
    return "\n".join(lines)


def _cost(report: dict[str, Any]) -> list[str]:
    """Return the line of what the plugin costs, where the report kept it."""
    found = [as_text(report, of) for of in costs(report)]
    return [f"it costs {'; '.join(found)}"] if found else []


def _heads(heads: dict[str, list[float | None]]) -> list[str]:
    """Return the line of the losses of heads that only training has, where the plugin has some."""
    means = [f"{head} {_number(None if None in of else float(np.mean(of)))}" for head, of in heads.items()]  # type: ignore[arg-type]
    return [f"losses on the test's events, of heads that are not served: {', '.join(means)}"] if means else []


def _kind(report: dict[str, Any]) -> str:
    """Return what kind of pairs is reported, and how the losers of drawn ones were."""
    drawn = report["pairs_kind"] == SAMPLED
    return f"{SAMPLED} (losers by sampler = '{report['sampler']}')" if drawn else str(report["pairs_kind"])


def _debiased(report: dict[str, Any]) -> list[str]:
    """Return the line of the arms by the debiased metric, where the log has places."""
    of = report["shown_order"] and report["shown_order"]["debiased"]
    if not of:
        return []
    arms = {arm: of[arm]["pair_accuracy"] for arm in ("without", "with")}
    return [_line("  debiased (examination)", of["uplift"] | arms)]


def _lag(report: dict[str, Any]) -> list[str]:
    """Return the lines of a plugin whose values lag: how far, and the uplift by the age of the user's vector."""
    if not (late := lag_said(report)):
        return []
    study = f"pairlift study CONFIG --study lag --plugin {report['plugin']}"
    return [
        f'{late}; what a day of lag costs a plugin that takes lag = "daily", `{study}` says',
        *_by_age(report),
    ]


def _by_age(report: dict[str, Any]) -> list[str]:
    """Return the slices by age as the page draws them, where there are several."""
    ages = report["slices"].get(AGE, {})
    lines = [f"  {plain(age):24}{as_text(report, interval('slices', AGE, age, 'shrunk'))}" for age in ages]
    said = f"uplift {title_of(AGE)}, each drawn towards the others. {purpose_of(report, AGE)}"
    return [said, *lines] if len(lines) > 1 else []


def _trees(trees: dict[str, Any]) -> str:
    return f"{'trees (mean)':26}{np.mean(trees['without']):9.0f}{np.mean(trees['with']):9.0f}"


def _lists(lists: dict[str, Any]) -> list[str]:
    """Return the lines of the lists of `Recommend`, or why there are none."""
    if lists["remark"]:
        return ["", f"lists of Recommend: {lists['remark']}"]
    return [
        "",
        f"lists of Recommend, of {lists['users']:,} users, {lists['fits']} fits, {len(lists['seeds'])} seeds:",
        *(_line(f"  list {label}", lists[name]) for name, label in LIST_FIGURES.items()),
        _line("  proposed of the wanted", lists["reached"], uplift=False),
        _trees(lists["trees"]),
    ]


def _sides(missing: dict[str, Any]) -> str:
    """Return how many pairs have the column on both sides, on one and on none, and the uplift of the first."""
    both, one, none = missing["both_sides"], missing["one_side"], missing["no_side"]
    return (
        f"pairs with the column on both sides {both['pairs']:,} ({_percent(both['relative_uplift'])}), "
        f"on one {one['pairs']:,}, on none {none['pairs']:,}"
    )


def _doubts(report: dict[str, Any]) -> list[str]:
    return [f"WARNING: {as_text(report, of.sentence)}" for of in doubts(report) if of.name not in SHOWN_ABOVE]


def _controls(report: dict[str, Any]) -> list[str]:
    """Return what the leak controls found."""
    lines = []
    for kind, what in (("as_of", "from histories cut at as_of"), ("refit", "of a fit on the log cut at t1")):
        control = report["controls"].get(kind)
        if control is None:
            continue
        lines += [_leak(leak, what, control["remark"]) for leak in control["leaks"]]
        if not control["groups"]:
            lines.append(f"WARNING: values {what} could not be compared: {control['remark']}")
        elif not control["leaks"]:
            agree = f"differ no more than its fits do: {control['remark']}" if control["remark"] else "agree"
            lines.append(f"values {what}, {control['groups']:,} groups: {agree}")
    return lines


def _leak(leak: dict[str, Any], what: str, remark: str) -> str:
    if not leak["first"]:
        return f"LEAK: {leak['column']} differs {what} more than its fits do: {remark}"
    gaps = ["a constant that is another"] if leak["largest"] is None else []
    gaps += [f"by up to {leak['largest']:.3g} of its spread"] if leak["largest"] else []
    gaps += ["missing in one of the two"] if leak["missing"] else []
    first = ", ".join(f"user {group['user']} at {group['as_of']}" for group in leak["first"])
    groups = f"{leak['groups']:,} groups of the slice '{leak['slice']}'"
    return f"LEAK: {leak['column']} differs {what} in {groups} ({', '.join(gaps)}): {first}"


def _parts(report: dict[str, Any]) -> str:
    """Return the standard errors that users, fits and seeds bring."""
    parts = [(name, of) for name, of in report["variance"].items() if of is not None]
    return ", ".join(f"{name} {100 * np.sqrt(of):.2f} %" for name, of in parts) or "-"


def _line(name: str, of: dict[str, Any], *, without: bool = True, uplift: bool = True) -> str:
    first = f"{_number(of['without']):>9}" if without else f"{'':9}"
    return f"{name:26}{first}{_number(of['with']):>9}" + (f"   {_interval(of)}" if uplift else "")


def _interval(part: dict[str, Any]) -> str:
    low, high = part["ci95"]
    return f"{_percent(part['relative_uplift'])}   95 % [{_percent(low)}, {_percent(high)}]"


def _percent(value: float | None) -> str:
    return "-" if value is None else KINDS["percent"](value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
