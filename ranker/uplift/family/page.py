"""Several plugins as one HTML page: which are worth serving on the first screen; numbers, costs, settings below."""

from collections.abc import Mapping
from html import escape
from itertools import pairwise
from typing import Any

from ranker.uplift.family.figures import COSTS, by_cost, family_figure, frontier, frontier_figure
from ranker.uplift.family.said import P_SAID, doubts_of, said_of, verdict, why
from ranker.uplift.markup import IN_THE_PAGE, document, ends, figure, items, settings, table, terms
from ranker.uplift.page import PERIODS
from ranker.uplift.said import Figure, Sentence, as_html, found_at

Report = Mapping[str, Any]

#: doubts of a plugin that the first screen tells
TOLD = 2


def as_page(report: Report) -> str:
    """Return the whole page. report: of `family_report`."""
    parts = [first_screen, _numbers, _frontiers, _repeat]
    return document(f"{report['data']}: {verdict(report)}", [part(report) for part in parts], report)


def first_screen(report: Report) -> str:
    """Return what was asked, the verdict, all intervals in one picture, and what to doubt."""
    date, said = found_at(report, ("made", "date")), escape(verdict(report))
    each = items(_of_each(report, name) for name in report["each"])
    each += '<p class="aside">Each has its own report: <code>NAME/report.html</code>.</p>' if "made" in report else ""
    return f"""<header>
<p class="aside">Pairlift, uplift report of {escape(report["data"])}{f", {escape(date)}" if date else ""}</p>
<h1>Which of {len(report["plugins"])} plugins are useful to the ranker?</h1>
<p>{as_html(report, _asked(report))}</p>
<p class="verdict {_tone(report)}"><strong>{said[0].upper() + said[1:]}.</strong> {as_html(report, why(report))}</p>
<div class="cards wide"><div>
{figure(report, family_figure(report), [_CAPTION])}</div>
<div><section class="card"><h2>What is said of each</h2>{each}</section>
<section class="card"><h2>What to doubt</h2>{_doubts(report)}</section></div>
</div>
</header>"""


_CAPTION = (
    "Each bar is a 95 % interval by itself: of a plugin alone over the counters (blue), of all over all without it "
    "(pale). Filled: shown to lie above zero after the correction, which asks more than the bar does. Hollow: not "
    "shown; a gain at its grey tick is found 4 times in 5, smaller ones are mostly missed."
)


def _asked(report: Report) -> Sentence:
    split = report.get("split")
    days = f", {split['t2'][:10]} to {split['t3'][:10]}" if split else ""
    return [
        "Asked: does the ranker order the test's pairs better with each plugin than without, and does each add to what "
        "the others have? Measured by PairAccuracy, the share of pairs in the right order, on ",
        *(Figure(("pairs",), "count"), f" {report.get('pairs_kind', '')} pairs of ", Figure(("users",), "count")),
        *(" users (worth ", Figure(("effective_users",), "count"), f" equally active ones){days}."),
    ]


def _tone(report: Report) -> str:
    each = report["each"].values()
    if any(of["useful"] or of["more"] for of in each):
        return "good"
    return "bad" if all(of["leaks"] for of in each) else "open"


def _of_each(report: Report, name: str) -> str:
    return f"<b>{escape(name)}</b>: {as_html(report, said_of(report, name))}"


def _doubts(report: Report) -> str:
    found = doubts_of(report)
    lines = [f"<b>{escape(name)}</b>: {escape(doubt)}" for name, of in found.items() for doubt in of[:TOLD]]
    hidden = sum(max(len(of) - TOLD, 0) for of in found.values())
    more = f'<p class="aside">{hidden} more stand in the plugins\' own reports.</p>' if hidden else ""
    return (items(lines) or "<p>Nothing that is looked for was found.</p>") + more


def _numbers(report: Report) -> str:
    questions = {"alone": "over the counters alone", "adds": "over the rest"}
    rows: dict[str, Sentence] = {}
    for name in report["each"]:
        for question, label in questions.items():
            path = ("each", name, question)
            arms = [Figure((*path, arm), "accuracy") for arm in ("without", "with")]
            rows[f"{name}, {label}"] = [*arms, *ends(*path), *(Figure((*path, p), "number") for p in ("p", "p_holm"))]
    arms = [Figure(("together", arm), "accuracy") for arm in ("without", "with")]
    together: Sentence = [*arms, *ends("together"), "", ""]  # which has no p
    every = table(report, _HEADS, {"all together": together} | rows)
    correction = report["correction"]
    return f"""<section><h2>All numbers</h2>
{every}
<p class="aside">PairAccuracy, ties as one half. {escape(P_SAID)} Corrected over \
the {as_html(report, [Figure(("correction", "plugins"), "count")])} plugins, for each of the two questions: \
{escape(correction["source"])}. The intervals are about {escape(report["holds_for"])}; what a plugin adds is paired by \
user, seed and fit.</p></section>"""


_HEADS = ["", "without", "with", "uplift", "low", "high", "p", "p, corrected"]


def _frontiers(report: Report) -> str:
    if not all("cost" in of for of in report["each"].values()):
        return ""
    drawn = "\n".join(
        f'<figure class="card"><h3>Gain by {cost}</h3>{frontier_figure(report, cost)}'
        f"<figcaption>{escape(_best(frontier(report, cost)))}</figcaption></figure>"
        for cost in COSTS
        if by_cost(report, cost)
    )
    return f"""<section><h2>Gain and cost</h2>
<p class="aside">The uplift of each plugin alone, the cheapest first. Filled: useful, and no other useful one gains as \
much for less.</p>
<div class="cards">
{drawn}
</div></section>"""


def _best(names: list[str]) -> str:
    if not names:
        return "None is shown to be useful, whatever it costs."
    return f"The frontier, cheapest first: {', '.join(names)}."


def _repeat(report: Report) -> str:
    said, split = {"data": report["data"], "metric": report["metric"]}, report.get("split")
    if split:
        spans = list(pairwise(split.values()))
        said |= {name: f"{start} to {stop}" for name, (start, stop) in zip(PERIODS, spans, strict=True)}
    said |= {"fits of each plugin, by seed": ", ".join(map(str, report["fit_seeds"]))}
    said |= {"seeds of the boosters": ", ".join(map(str, report["seeds"]))}
    said |= {name: str(of) for name, of in report.get("made", {}).items()}
    return f"""<section><h2>To measure it again</h2>
{terms(said)}{settings(report)}
<p class="aside">{IN_THE_PAGE}</p>
</section>"""
