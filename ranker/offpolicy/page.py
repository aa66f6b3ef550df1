"""A report of off-policy estimates as one HTML page: what would have been got and why one may say so, then all figures.

What decides is the doubly robust estimate of the first kind of weights that the log has enough of: a model of the
reward takes noise away and adds no bias.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ranker.offpolicy.table import ESTIMATORS
from ranker.uplift.canvas import Canvas
from ranker.uplift.markup import IN_THE_PAGE, document, figure, items, keep_page, table, terms
from ranker.uplift.said import Figure, Sentence, as_html, found_at, pointer

Report = Mapping[str, Any]
Place = tuple[str | int, ...]

DECIDES = "dr"
#: a larger share of the weight in one list, or of what was never shown, is told
LARGE, UNSHOWN = 0.05, 0.0005
NAMES = {"ips": "inverse propensity", "snips": "the same, normalised", "dr": "doubly robust"}
WORDS = {
    "more": "would have got more than what was logged",
    "less": "would have got less than what was logged",
    "open": "is not shown to get more or less than what was logged",
    "unknown": "is not known to this log",
}


def write_page(report: Report, folder: Path) -> Path:
    """Write `report.html`; return its path."""
    return keep_page(as_page(report), folder)


def as_page(report: Report) -> str:
    """Return the whole page. report: what `offpolicy.json` holds."""
    sections = [_first_screen(report), *(_bundle(report, k) for k in range(len(report["bundles"]))), _repeat(report)]
    return document(f"{report['data']}: {verdict(report)}", sections, report)


def decided(report: Report, k: int) -> tuple[str, Place]:
    """Return what is said of a bundle, of WORDS, and the place of the estimate that says it; () of none."""
    for kind, part in report["bundles"][k].get("estimates", {}).items():
        low, high = part[DECIDES]["gain_ci95"] if not part["refused"] else (None, None)
        if low is not None and high is not None:
            said = "more" if low > 0 else "less" if high < 0 else "open"
            return said, ("bundles", k, "estimates", kind, DECIDES)
    return "unknown", ()


def verdict(report: Report) -> str:
    """Return in words what the report says, and no more."""
    return "; ".join(f"{_name(report, k)} {WORDS[decided(report, k)[0]]}" for k in range(len(report["bundles"])))


def _name(report: Report, k: int) -> str:
    """Return the name of a bundle's folder; where several bear it, the whole path, and of one path the version too."""
    paths = [str(of["bundle"]) for of in report["bundles"]]
    names = [Path(path).name for path in paths]
    if names.count(names[k]) == 1:
        return names[k]
    return paths[k] if paths.count(paths[k]) == 1 else f"{paths[k]} ({report['bundles'][k]['version']}, {k + 1})"


def _first_screen(report: Report) -> str:
    doubts = [as_html(report, doubt) for k in range(len(report["bundles"])) for doubt in _doubts(report, k)]
    doubts += [f"{count:,} lists are left out, for {escape(reason)}." for reason, count in report["left_out"].items()]
    said = {decided(report, k)[0] for k in range(len(report["bundles"]))}
    tone = "good" if said == {"more"} else "bad" if said == {"less"} else "open"
    names = escape(" and ".join(_name(report, k) for k in range(len(report["bundles"]))))
    return f"""<header>
<p class="aside">Pairlift, off-policy report of {escape(report["data"])}</p>
<h1>What would the lists of {names} have got?</h1>
<p>{as_html(report, _asked(report))}</p>
<p class="verdict {tone}"><strong>{escape(verdict(report))}.</strong> {as_html(report, _why(report))}</p>
<div class="cards wide">{_gains(report)}
<section class="card"><h2>What to doubt</h2>
{items(doubts) or "<p>Nothing that is looked for was found.</p>"}</section>
</div></header>"""


def _asked(report: Report) -> Sentence:
    first = f" (their first {report['places']} places)" if report["places"] else ""
    return [
        *(Figure(("logged", "lists"), "count"), " lists of ", Figure(("logged", "users"), "count")),
        f" users{first}, whose order was drawn, {report['from'][:10]} to {report['to'][:10]}. A list is worth how many "
        f"of its items were wanted ({' or '.join(report['wanted'])}): logged ",
        *_value(("logged",), "value", "ci95", "accuracy"),
        f". Each bundle answers the same requests by its {report['policy']}.",
    ]


def _value(path: Place, value: str, ends: str, kind: str) -> list[str | Figure]:
    low, high = (Figure((*path, ends, k), kind) for k in (0, 1))
    return [Figure((*path, value), kind), " [", low, ", ", high, "]"]


def _why(report: Report) -> Sentence:
    said: list[str | Figure] = []
    for k in range(len(report["bundles"])):
        path = decided(report, k)[1]
        if not path:
            said += [f"{_name(report, k)}: {_refusal(report, k)}. "]
            continue
        said += [f"{_name(report, k)}: ", *_value(path, "gain", "gain_ci95", "gain"), " wanted items a list, by "]
        said += [f"{report['bundles'][k]['estimates'][path[3]]['uses']}. "]
    return said


def _refusal(report: Report, k: int) -> str:
    of = report["bundles"][k]
    reasons = [part["refused"] for part in of.get("estimates", {}).values() if part["refused"]]
    return str(of.get("refused") or (reasons[0] if reasons else "its interval cannot be given"))


def _doubts(report: Report, k: int) -> list[Sentence]:
    """Return what speaks against trusting the estimates of a bundle."""
    of, name = report["bundles"][k], _name(report, k)
    said: list[Sentence] = []
    if of["before"]:
        count = Figure(("bundles", k, "before"), "count")
        said.append([f"{name}: ", count, " lists are from before its training ended, and left out."])
    if of.get("degraded"):
        count = Figure(("bundles", k, "degraded"), "count")
        said.append([f"{name}: in ", count, " lists a source or plugin of it failed."])
    for kind, part in of.get("estimates", {}).items():
        path = ("bundles", k, "estimates", kind)
        if part["refused"]:
            said.append([f"{name}, {kind}: not known, {part['refused']}."])
            continue
        if part["largest_share"] > LARGE:
            share = Figure((*path, "largest_share"), "share")
            said.append([f"{name}, {kind}: one item of a list has ", share, " of all weight."])
        if part["unshown"] >= UNSHOWN:
            share = Figure((*path, "unshown"), "share")
            said.append(
                [
                    f"{name}, {kind}: ",
                    share,
                    " of what it would show was never shown: its worth is unknown, and the interval is wider for it.",
                ]
            )
    return said


def _gains(report: Report) -> str:
    """Return the figure of the estimates that decide; nothing where none is known."""
    rows = {
        f"{_name(report, k)}, {kind}": ("bundles", k, "estimates", kind, DECIDES)
        for k, of in enumerate(report["bundles"])
        for kind, part in of.get("estimates", {}).items()
        if not part["refused"]
    }
    if not rows:
        return ""
    told = "Wanted items of a list, over what was logged: the doubly robust estimate, with 95 % about other users."
    drawn = _forest(report, rows, ("gain", "gain_ci95", "gain"), 0.0, "What is got more than what was logged")
    return f"<div>{figure(report, drawn, [told])}</div>"


def _forest(report: Report, rows: Mapping[str, Place], of: tuple[str, str, str], rule: float, title: str) -> str:
    """Return a row for each interval. of: keys of a value and its interval, and the kind of figure. rule: a line."""
    value, interval, kind = of
    ends = [rule, *(x for path in rows.values() for x in _known(report, path, value, interval))]
    canvas = Canvas(report, len(rows), min(ends), max(ends))
    canvas.rule(rule, "muted")
    for k, (label, path) in enumerate(rows.items()):
        canvas.label(k, label, _value(path, value, interval, kind))
        low, high = found_at(report, (*path, interval))
        if low is not None and high is not None:
            canvas.bar(k, low, high, "accent", 5, pointer((*path, interval)))
        canvas.dot(k, found_at(report, (*path, value)), "ink")
    canvas.axis((lambda x: f"{x:+.4g}") if kind == "gain" else "{:.4g}".format)
    return canvas.svg(title)


def _known(report: Report, path: Place, value: str, interval: str) -> Sequence[float]:
    found = [found_at(report, (*path, value)), *found_at(report, (*path, interval))]
    return [x for x in found if x is not None]


def _bundle(report: Report, k: int) -> str:
    of = report["bundles"][k]
    head = f"<section><h2>{escape(of['bundle'])} ({escape(of['version'])})</h2>"
    if of.get("refused"):
        return f"{head}<p>Not known: {escape(of['refused'])}.</p></section>"
    parts = {kind: part for kind, part in of["estimates"].items() if not part["refused"]}
    logged = of["logged"]["value"] or 0.0
    drawn = "\n".join(
        figure(
            report,
            _forest(
                report,
                {NAMES[name]: ("bundles", k, "estimates", kind, name) for name in ESTIMATORS},
                ("value", "ci95", "accuracy"),
                logged,
                f"Wanted items of a list, {kind}",
            ),
            [f"{kind}: wanted items of a list, by {part['uses']}; the line is what was logged."],
        )
        for kind, part in parts.items()
    )
    rows: dict[str, Sentence] = {
        kind: [Figure(("bundles", k, "estimates", kind, key), how) for key, how in _WEIGHTS.items()]
        for kind in of["estimates"]
    }
    heads = ["", "lists of its own", "mean weight", "largest weight", "its share", "never shown"]
    return f"""{head}<div class="cards">
{drawn}
<section class="card"><h3>Weights</h3>{table(report, heads, rows)}
<p class="aside">The log says as much of it as so many lists of its own; weights of the right chances have the mean 1.
</p></section></div></section>"""


_WEIGHTS = {
    "effective_lists": "count",
    "mean_weight": "number",
    "largest_weight": "number",
    "largest_share": "share",
    "unshown": "share",
}


def _repeat(report: Report) -> str:
    said = {"data": report["data"], "lists": f"{report['from']} to {report['to']}"}
    said |= {"propensity": report["propensity"], "policy": report["policy"]}
    said |= {name: str(of) for name, of in report.get("made", {}).items()}
    return f"""<section><h2>To measure it again</h2>
{terms(said)}
<p class="aside">{IN_THE_PAGE}</p></section>"""
