"""An uplift report as one HTML page: what was decided and why on the first screen, all figures below.

The page asks for nothing else: its style, its drawings (SVG) and the report as JSON are in it. It is made from the
report alone. Every number of it names its place in the report: see `ranker.uplift.said`.
"""

from collections.abc import Mapping
from html import escape
from itertools import pairwise
from typing import Any

from ranker.uplift import figures
from ranker.uplift.markup import IN_THE_PAGE, document, ends, figure, fragment, items, settings, table, terms
from ranker.uplift.reasons import beyond_decides, why
from ranker.uplift.said import Figure, Sentence, as_html, costs, found_at, interval, lag_said
from ranker.uplift.shrunk import FEW_USERS
from ranker.uplift.verdict import CLEARED, cleared, doubts, verdict

Report = Mapping[str, Any]

#: columns of a plugin that are named in a sentence, and that have a row in a table
NAMED, ROWS = 4, 12
#: what the two leak controls compare the plugin's values with
CONTROLS = {"as_of": "from histories cut at as_of", "refit": "of a fit on the log cut at t1"}
#: names of the log's slices, of the periods of the split, and of the parts of the variance
SLICES = {"train": "training", "validation": "validation", "test": "test"}
PERIODS = ("towers learn on", "boosters learn on", "the test")
PARTS = {"users": "new users", "fits": "new fits of the plugin", "seeds": "new seeds of the boosters"}


def as_page(report: Report) -> str:
    """Return the whole page. report: of `UpliftReport.figures`."""
    parts = [first_screen, _arms, _slices, _columns, _calibration, _parts, _repeat]
    return document(f"{report['data']}: {report['plugin']} {verdict(report)}", [part(report) for part in parts], report)


def as_fragment(report: Report) -> str:
    """Return the first screen for a notebook's cell."""
    return fragment(first_screen(report))


def first_screen(report: Report) -> str:
    """Return what was asked, the verdict, the interval, the cost and the doubts."""
    plugin, date = escape(report["plugin"]), found_at(report, ("made", "date"))
    return f"""<header>
<p class="aside">Pairlift, uplift report of {escape(report["data"])}{f", {escape(date)}" if date else ""}</p>
<h1>Is {plugin} useful to the ranker?</h1>
<p>{as_html(report, _asked(report))}</p>
<p class="verdict {_tone(report)}"><strong>{plugin} {escape(verdict(report))}.</strong> \
{as_html(report, why(report))}</p>
<div class="cards wide first">
{figure(report, figures.interval_figure(report), _read_interval(report))}
<section class="card doubts"><h2>What to doubt</h2>{_doubts(report)}</section>
<section class="card"><h2>What it costs</h2>{_cost(report)}</section>
</div>
</header>"""


def _asked(report: Report) -> Sentence:
    split, columns = report.get("split"), report["columns"]
    named = ", ".join(columns) if len(columns) <= NAMED else f"{len(columns)} of them"
    days = f", {split['t2'][:10]} to {split['t3'][:10]}" if split else ""
    return [
        f"Asked: does the ranker order the test's pairs better with its columns ({named}) than "
        "without, all else equal? Measured by PairAccuracy, the share of pairs in the right order, on ",
        *(Figure(("pairs",), "count"), f" {report['pairs_kind']} pairs of ", Figure(("users",), "count"), " users"),
        *(" (worth ", Figure(("effective_users",), "count"), f" equally active ones){days}."),
        f" {late[0].upper()}{late[1:]}." if (late := lag_said(report)) else "",
    ]


def _tone(report: Report) -> str:
    high = report["ci95"][1]
    if report["useful"]:
        return "good"
    return "bad" if report["leaks"] or (high is not None and high < 0) else "open"


def _read_interval(report: Report) -> Sentence:
    if report["leaks"]:
        return ["No bar is drawn, for what leaks looks as if it gained."]
    values = " By values alone: over knowing only which of them are missing." if beyond_decides(report) else ""
    without, with_ = (Figure((arm,), "accuracy") for arm in ("without", "with"))
    arms: Sentence = ["PairAccuracy is ", without, " without it, ", with_, " with it. "]
    arms = [] if (report["ci95"][0] or 0.0) > 0 else arms  # which the verdict then has
    said = f"The interval is of the relative uplift, about {report['holds_for']}.{values}"
    return [
        *arms,
        f"{said} A gain of the grey bar's length is found 4 times in 5; a smaller one may be real, and missed.",
    ]


def _cost(report: Report) -> str:
    trees = [Figure(("trees", arm), "count") for arm in ("without", "with")]
    ranker: Sentence = ["the ranker itself: ", trees[0], " trees without it, ", trees[1], " with it, on average"]
    return items(as_html(report, line) for line in [*costs(report), ranker])


def _doubts(report: Report) -> str:
    found = [f"<b>{escape(doubt.name)}</b>: {as_html(report, doubt.sentence)}" for doubt in doubts(report)]
    looked = escape("; ".join(CLEARED[name] for name in cleared(report) if name in CLEARED))
    nothing = "" if found else "<p>Nothing that is looked for was found.</p>"
    return nothing + items(found) + (f'<p class="aside">Not to doubt: {looked}.</p>' if looked else "")


def _arms(report: Report) -> str:
    uplifts = "Each bar is the 95 % interval of one definition of the uplift, the dashed line the main uplift: what a "
    uplifts += "control gains, the plugin's knowledge does not explain."
    arms = (
        "PairAccuracy is the share of the pairs' weight in the right order, a tie being one half; the dashed line is "
    )
    arms += "the ranker without the plugin."
    lists = {label: list(of) for label, of in figures.listed().items()}
    return f"""<section><h2>Arms and controls</h2>
<div class="cards">
{figure(report, figures.uplifts_figure(report), [uplifts])}
{figure(report, figures.arms_figure(report), [arms])}
<section class="card"><h3>Leak controls</h3>{items(_control(report, kind) for kind in report["controls"])}
<h3>Lists as they were shown</h3>{table(report, ["", "without", "with"], lists)}</section>
</div></section>"""


def _control(report: Report, kind: str) -> str:
    control, what = report["controls"][kind], CONTROLS.get(kind, kind)
    if control["leaks"]:
        said = f"differ in {', '.join(sorted({leak['column'] for leak in control['leaks']}))}: a leak"
    elif not control["groups"]:
        said = "could not be compared"
    else:
        said = "differ no more than its fits do" if control["remark"] else "agree"
    groups: Sentence = [" (", Figure(("controls", kind, "groups"), "count"), " groups)"]
    remark = f": {escape(control['remark'])}" if control["remark"] else ""
    return f"Values {escape(what)}{as_html(report, groups)} {escape(said)}{remark}."


def _slices(report: Report) -> str:
    if not report["slices"]:
        return ""
    drawn = "\n".join(
        f'<figure class="card"><h3>Uplift {escape(figures.title_of(kind))}</h3>{svg}'
        f"<figcaption>{escape(figures.purpose_of(report, kind))}</figcaption></figure>"
        for kind, svg in figures.slice_figures(report).items()
    )
    one = [figures.title_of(kind) for kind, values in report["slices"].items() if len(values) == 1]
    alone = f'<p class="aside">All pairs are alike {escape(", ".join(one))}.</p>' if one else ""
    return f"""<section><h2>Where the uplift comes from</h2>
<p class="aside">Each point is the uplift of a slice, drawn towards the others by how little is known of it, with its \
95 % interval; the thin line behind it is the slice's own interval; what leaves the drawing is cut. The dashed line is \
the uplift of all pairs; * has fewer than {FEW_USERS} users. Of many slices some lie far out by chance.</p>
<div class="cards">
{drawn}
</div>{alone}
<details><summary>All slices, with what was measured of each alone</summary>{_slice_table(report)}</details>
</section>"""


def _slice_table(report: Report) -> str:
    rows: dict[str, Sentence] = {}
    for kind, values in report["slices"].items():
        for name in values:
            path = ("slices", kind, name)
            cells = [Figure((*path, of), "count") for of in ("pairs", "users")]
            own = Figure((*path, "shrunk", "own"), "share")
            label = f"{figures.title_of(kind)}: {figures.plain(name)}"
            rows[label] = [*cells, *ends(*path), *ends(*path, "shrunk"), own]
    heads = ["", "pairs", "users", "uplift", "low", "high", "shrunk", "low", "high", "its own share"]
    return table(report, heads, rows)


def _columns(report: Report) -> str:
    what = {"pair_accuracy": "accuracy", "comparable": "share"}
    alone: dict[str, Sentence] = {
        name: [Figure(("column_alone", name, of), kind) for of, kind in what.items()]
        for name in list(report["column_alone"])[:ROWS]
    }
    share = "The share of the loss that each column's splits took away; the plugin's in colour."
    drawn = figure(report, figures.importance_figure(report), [share]) if report["importance"] else ""
    moved = "How far each column moves the difference of two scores, on average (Shapley values of 500 pairs, one "
    moved += "booster); the point, how far towards the right order."
    if report["contributions"]:
        drawn += "\n" + figure(report, figures.contributions_figure(report), [moved])
    hidden = len(report["column_alone"]) - ROWS
    more = f'<p class="aside">{hidden} more columns are in the JSON.</p>' if hidden > 0 else ""
    return f"""<section><h2>What its columns do</h2>
<div class="cards">
{drawn}
<section class="card"><h3>Each column alone</h3>{table(report, ["", "PairAccuracy", "pairs that have it"], alone)}
{_periods(report)}{more}</section>
</div></section>"""


def _periods(report: Report) -> str:
    if "periods" not in report:
        return ""
    what = {"known": "share", "mean": "number", "sd": "number"}
    rows: dict[str, Sentence] = {
        f"{name}, {shown}": [Figure(("periods", name, part, of), kind) for of, kind in what.items()]
        for name in list(report["periods"])[:ROWS]
        for part, shown in SLICES.items()
    }
    return "<h3>Its values over time</h3>" + table(report, ["", "known", "mean", "spread"], rows)


def _calibration(report: Report) -> str:
    if not any(of["bins"] for of in report["calibration"].values()):
        return ""
    drawn = [
        figure(
            report,
            figures.calibration_figure(report, arm),
            [f"{arm.capitalize()} the plugin; the mean distance is ", Figure(("calibration", arm, "error"), "share")],
        )
        for arm in report["calibration"]
    ]
    return f"""<section><h2>Whether its probabilities hold</h2>
<p class="aside">The pairs in ten parts of one weight, from those that the ranker was least sure of to those that it \
was most: the hollow point is how often the side that it prefers was said to win, the full one how often it did. \
An order needs no probabilities; what adds scores up or compares them with a cost does.</p>
<div class="cards">
{"".join(drawn)}
</div></section>"""


def _parts(report: Report) -> str:
    errors: dict[str, Sentence] = {
        PARTS.get(name, name): [Figure(("variance", name), "error")] for name in report["variance"]
    }
    sides = [side for side in ("both_sides", "one_side", "no_side") if found_at(report, ("missingness", side, "pairs"))]
    missing: dict[str, Sentence] = {
        side.replace("_", " "): [Figure(("missingness", side, "pairs"), "count"), *ends("missingness", side)]
        for side in sides
    }
    return f"""<section><h2>What the interval is made of</h2>
<div class="cards">
<section class="card"><h3>Standard errors</h3><p class="aside">The interval is about {escape(report["holds_for"])}.</p>
{table(report, ["", "of the uplift"], errors)}</section>
<section class="card"><h3>Pairs by where its values are known</h3>
{table(report, ["on", "pairs", "uplift", "low", "high"], missing)}
<p>Over knowing alone which values are missing: {as_html(report, interval("missingness", "beyond"))}.</p></section>
</div></section>"""


def _repeat(report: Report) -> str:
    """Return what one needs to measure it again."""
    made, split = report.get("made", {}), report.get("split")
    said = {"data": report["data"], "metric": report["metric"]}
    if split:
        ends = list(pairwise(split.values()))
        said |= {name: f"{start} to {stop}" for name, (start, stop) in zip(PERIODS, ends, strict=True)}
    said |= {"fits of the plugin": _seeds(report["fit_seeds"]), "seeds of the boosters": _seeds(report["seeds"])}
    said |= {name: str(of) for name, of in made.items()} | {"format of the report": str(report["format"])}
    return f"""<section><h2>To measure it again</h2>
{terms(said)}{settings(report)}
<p class="aside">{IN_THE_PAGE}</p>
</section>"""


def _seeds(seeds: list[int]) -> str:
    return f"{len(seeds)}, with seeds {', '.join(map(str, seeds))}"
