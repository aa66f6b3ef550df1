"""A report of lists as text."""

from typing import Any

from ranker.blend.shares import Judged

#: of the parts of a report
TITLES = {"first": "as of each user's first request of the test", "cut": "as of the cut"}
KINDS = {"all": "all users", "with_history": "users with history", "without_history": "users without history"}
#: of a report of sources
SECTIONS = {
    "all": "all users",
    "known_users": "known users, of events before",
    "new_users": "new users, of no event before",
    "new_items": "new items, of no event before t2",
}
#: figures whose interval is shown too
FIGURES = ("recall@10", "ndcg@10", "recall@50", "recall@200", "mrr")


def as_table(report: dict[str, Any]) -> str:
    """Return the report's main figures as text."""
    wanted = " or ".join(report["wanted"])
    items = "items that the user has met or not, as served" if report.get("again") else "items new to the user"
    lines = [
        f"{report['data']}: lists of {items}; wanted: {wanted}, from {report['cut']} to {report['end']}",
        "peers, chosen before the cut: " + "; ".join(_peer(name, of) for name, of in report["peers"].items()),
    ]
    for at, part in report["parts"].items():
        for kind, users in KINDS.items():
            if part[kind]["users"]:
                lines += ["", f"{TITLES[at]}, {users}{_drawn(report, part) if kind == 'all' else ''}:"]
                lines += _section(part[kind])
    if "diversity" in report:
        lines += ["", *_diversity(report["diversity"], report["parts"]["first"]["all"])]
    if report["both"]["users"]:
        lines += ["", f"each user's mean of the two times, {report['both']['users']:,} users who are in both:"]
        lines += _both(report["both"])
    return "\n".join(lines)


def as_sources(report: dict[str, Any]) -> str:
    """Return the report of `ranker.lists.found` as text."""
    lines = [
        f"{report['data']}: what the sources find of {' or '.join(report['wanted'])}, from {report['cut']} to "
        f"{report['end']}, as of each user's first request"
    ]
    for name, title in SECTIONS.items():
        section = report["sections"][name]
        if section["users"]:
            lines += ["", f"{title}: {section['users']:,} users, {section['wanted_items']:.1f} items each"]
            lines += _found(section, report["milliseconds"])
    if report["shares"] is not None:
        lines += ["", "places of each source (what the first is worth, in log-odds), by what was told before t2:"]
        lines += [str(Judged.read(of)) for of in report["shares"]["judged"]]
        lines += map(_share, report["shares"]["of"])
    lines += [f"WARNING: source {name} failed {n:,} times" for name, n in report["failed"].items()]
    return "\n".join(lines)


def _found(section: dict[str, Any], took: dict[str, Any]) -> list[str]:
    ks = list(section["blend"])
    last, width = ks[-1], max(map(len, [*section["alone"], "blend"])) + 2
    lines = [f"{'':{width}}" + "".join(f"{k:>12}" for k in ks) + f"{'ms':>9}   adds to the others, {last} [95 %]"]
    for name, of in section["alone"].items():
        adds = section["adds"][name][last]
        figures = "".join(f"{_number(of[k]['mean']):>12}" for k in ks)
        lines.append(f"{name:{width}}{figures}{took['sources'][name]:>9.2f}   {_between(adds)}")
    blend = "".join(f"{_number(section['blend'][k]['mean']):>12}" for k in ks)
    best, within = section["over_best"][last], section["within_quotas"]
    return [
        *lines,
        f"{'blend':{width}}{blend}{took['blend']:>9.2f}   over {best['name']}, the best: {_between(best)}",
        f"within the quotas: {_number(within['recall']['mean'])} of what was wanted, in {within['candidates']:.0f} "
        "candidates",
    ]


def _share(of: dict[str, Any]) -> str:
    """Return the shares of a kind of requests."""
    kind = f"{'with' if of['known'] else 'without'} history{', ' + of['surface'] if of['surface'] else ''}"
    worth = {name: f" ({steps[0][1]:.2f})" for name, steps in (of["worth"] or {}).items()}
    quotas = ", ".join(f"{name} {quota}{worth.get(name, '')}" for name, quota in of["quotas"].items())
    return f"{kind} ({of['users']:,} users, {of['candidates']:.0f} candidates): {quotas}"


def _between(of: dict[str, Any]) -> str:
    low, high = of["ci95"]
    return f"{_signed(of['mean'])} [{_signed(low)}, {_signed(high)}]"


def brief_lines(found: dict[str, Any] | None) -> list[str]:
    """Return `brief_report` as text, a line for each figure; None stands for lists that are not measured."""
    if found is None:
        return ["lists: not measured, for there are none, or nobody in the test wanted anything that they may have"]
    of = " of items met or not, as served" if found.get("again") else ""  # a bundle of before has not the key
    return [f"{figure:10} of lists{of}: {_brief(found[figure])} ({found['users']:,} users)" for figure in FIGURES[:2]]


def _brief(of: dict[str, Any]) -> str:
    if of["popular"] is None:
        return _number(of["recommend"])
    low, high = of["ci95"]
    return (
        f"{_number(of['recommend'])}; the most popular items {_number(of['popular'])}: {_signed(of['difference'])}, "
        f"95 % [{_signed(low)}, {_signed(high)}]"
    )


def _drawn(report: dict[str, Any], part: dict[str, Any]) -> str:
    return f", drawn of {part['eligible_users']:,}" if report["most_users"] < part["eligible_users"] else ""


def _peer(name: str, of: dict[str, Any]) -> str:
    parameter, value = next(iter(of.items()))
    tried = ", ".join(f"{key}: {_number(found)}" for key, found in of["tried"].items())
    given = "all" if value is None else f"{value:g}"
    return f"{name} {parameter} = {given} ({of['chosen_by']} of {tried})" if tried else f"{name} {parameter} = {given}"


def _section(of: dict[str, Any]) -> list[str]:
    """Return the lines of some users."""
    best = of["union"]["best_order"]
    return [
        f"{of['users']:,} users, who wanted {of['wanted_items']:.1f} items each, of {of['candidates']:.0f} candidates",
        f"{_head()}{'coverage':>11}{'novelty':>11}{'empty':>7}",
        *(_line(name, found) for name, found in of["lists"].items()),
        _figures("best of the union", best),
        f"the union has {_percent(of['union']['recall']['mean'])} of what was wanted; the list's recall@10 is "
        f"{_percent(of['union_share'])} of what its best order has",
        *_gains(of["best_peer"]),
        "of the first 10, proposed by: " + ", ".join(_source(name, share) for name, share in of["sources"].items()),
        *(f"WARNING: {n:,} lists are empty: {why}" for why, n in of["empty"].items()),
        *(f"WARNING: {lane} failed in {n:,} requests" for lane, n in of["degraded"].items()),
    ]


def _diversity(cost: dict[str, Any], of: dict[str, Any]) -> list[str]:
    """Return what diversity costs. of: the section of all users."""
    alike = [_number(of["lists"][name]["similarity@10"]["mean"]) for name in ("Recommend", "without diversity")]
    less = of["less"]["without diversity"]
    accuracy, change = cost["pair_accuracy"], {"mean": cost["difference"], "ci95": cost["ci95"]}
    return [
        f"diversity (weight {cost['weight']:g}): mean cosine of the first 10 {alike[0]}, without it {alike[1]}",
        *(f"{figure}: with it less without it: {_between(less[figure])}" for figure in FIGURES[:2]),
        f"PairAccuracy of what was shown together, in such an order: {_number(accuracy['with'])}, in that of scores "
        f"{_number(accuracy['without'])}: {_between(change)}",
    ]


def _both(of: dict[str, Any]) -> list[str]:
    """Return the lines of each user's mean, which has neither coverage nor a union."""
    return [_head(), *(_figures(name, found) for name, found in of["lists"].items()), *_gains(of["best_peer"])]


def _line(name: str, found: dict[str, Any]) -> str:
    bits = found["novelty@10"]["mean"]
    novelty = "-" if bits is None else f"{bits:.1f} bit"
    return f"{_figures(name, found)}{_percent(found['coverage@10']):>11}{novelty:>11}{found['empty']:>7}"


def _head() -> str:
    return f"{'':20}" + "".join(f"{figure:>11}" for figure in FIGURES)


def _figures(name: str, found: dict[str, Any]) -> str:
    return f"{name:20}" + "".join(f"{_number(found[figure]['mean']):>11}" for figure in FIGURES)


def _gains(best_peer: dict[str, Any]) -> list[str]:
    return [_gain(figure, best_peer[figure]) for figure in FIGURES[:2]]


def _gain(figure: str, peer: dict[str, Any]) -> str:
    low, high = peer["ci95"]
    where = "not distinguishable from it"
    if low is not None and low > 0:
        where = "better"
    elif high is not None and high < 0:
        where = "worse"
    return (
        f"{figure}: Recommend less {peer['name']}, the best of the others: {_signed(peer['mean'])} "
        f"95 % [{_signed(low)}, {_signed(high)}], {where}"
    )


def _source(name: str, of: dict[str, Any]) -> str:
    return f"{name} {_percent(of['share'])} (alone {_percent(of['alone'])})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
