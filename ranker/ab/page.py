"""An experiment's report as one HTML page: what was decided and why on the first screen, all figures below."""

from collections.abc import Mapping
from html import escape
from typing import Any

from ranker.ab import figures
from ranker.ab.verdict import cuped, doubts, found, others, verdict, why
from ranker.uplift.markup import IN_THE_PAGE, document, figure, fragment, items, settings, table, terms
from ranker.uplift.said import Figure, Sentence, as_html, found_at

Report = Mapping[str, Any]

EVERY, ONE = "the interval of 95 % that holds however often one looks", "that of a single planned look"


def as_page(report: Report) -> str:
    """Return the whole page. report: of `AbReport.figures`."""
    parts = [_looks, _metrics, _arms, _repeat]
    sections = [first_screen(report), *(part(report) for part in parts)]
    return document(f"{report['data']}: {verdict(report)}", sections, report)


def as_fragment(report: Report) -> str:
    """Return the first screen for a notebook's cell."""
    return fragment(first_screen(report))


def first_screen(report: Report) -> str:
    """Return what was asked, the verdict, the intervals and the doubts."""
    date = found_at(report, ("made", "date"))
    said = escape(verdict(report))
    arms, name = escape(" and ".join(f"'{arm}'" for arm in others(report))), escape(report["primary"])
    return f"""<header>
<p class="aside">Pairlift, experiment of {escape(report["data"])}{f", {escape(date)}" if date else ""}</p>
<h1>What did {arms} change in {name}?</h1>
<p>{as_html(report, _asked(report))}</p>
<p class="verdict {_tone(report)}"><strong>{said[0].upper() + said[1:]}.</strong> {as_html(report, why(report))}</p>
<div class="cards wide"><div>
{figure(report, figures.interval_figure(report), [f"{_both(report)} {_GREY}"])}</div>
<section class="card"><h2>What to doubt</h2>{_doubts(report)}</section>
</div>
</header>"""


def _asked(report: Report) -> Sentence:
    period = f", {report['start'][:10]} to {report['end'][:10]}" if report["start"] else ""
    metric = report["metrics"][report["primary"]]
    return [
        f"Asked: do users have more {report['primary']} ({metric['sql']}, {metric['kind']}) than with "
        f"'{report['control']}'? Measured on ",
        *_users(report),
        f"{period}; the split is {'not ' if report['split']['failed'] else ''}as planned (p = ",
        Figure(("split", "p"), "number"),
        ").",
    ]


def _users(report: Report) -> Sentence:
    said: list[str | Figure] = []
    for arm in report["arms"]:
        said += [" and " if said else "", Figure(("arms", arm, "users"), "count"), f" users of '{arm}'"]
    return said


def _both(report: Report) -> str:
    """Return what the two bars of a row are."""
    first, second = (ONE, EVERY) if report["final"] else (EVERY, ONE)
    return f"Blue, and what decides: {first}. Pale: {second}."


_GREY = "Grey: a true uplift of its length is found 4 times in 5."


def _tone(report: Report) -> str:
    decided = {found(report, arm)["decided"] for arm in others(report)}
    if report["split"]["failed"] or decided == {"down"}:
        return "bad"
    return "good" if "up" in decided and "down" not in decided else "open"


def _doubts(report: Report) -> str:
    lines = [f"<b>{escape(doubt.name)}</b>: {as_html(report, doubt.sentence)}" for doubt in doubts(report)]
    return items(lines) or "<p>Nothing that is looked for was found.</p>"


def _looks(report: Report) -> str:
    if len(report["looks"]) < 2:
        return ""
    told = f"{_both(report)} Each row counts all from the start; where a bar ends in a point, it goes on."
    drawn = "\n".join(figure(report, figures.looks_figure(report, arm), [f"'{arm}'. {told}"]) for arm in others(report))
    return f'<section><h2>Looks over time</h2>\n<div class="cards">\n{drawn}\n</div></section>'


def _metrics(report: Report) -> str:
    told = "The first metric alone decides; the others are for understanding, and nothing corrects for their number."
    drawn = "\n".join(figure(report, figures.metrics_figure(report, arm), [f"{arm}: {told}"]) for arm in others(report))
    refused = [
        f"{escape(name)}, {escape(arm)}: not known, for {escape(of['refused'])}."
        for name, metric in report["metrics"].items()
        for arm, of in metric["against"].items()
        if of["refused"]
    ]
    return f"""<section><h2>Every metric</h2>
<div class="cards">
{drawn}
<section class="card"><h3>Values</h3>{table(report, ["", *report["arms"]], _values(report))}
<h3>Uplift</h3>{_uplifts(report)}{items(refused)}</section>
<section class="card"><h3>What the users' past takes away (CUPED)</h3>{_cuped(report)}</section>
</div></section>"""


def _values(report: Report) -> dict[str, Sentence]:
    return {
        name: [Figure(("metrics", name, "arms", arm, "value"), "number") for arm in report["arms"]]
        for name in report["metrics"]
    }


def _uplifts(report: Report) -> str:
    rows: dict[str, Sentence] = {}
    for name in report["metrics"]:
        for arm in others(report):
            path = ("metrics", name, "against", arm)
            ends = [Figure((*path, key, end), "ends") for key in ("always95", "fixed95") for end in (0, 1)]
            rows[f"{name}, {arm}"] = [
                Figure((*path, "relative_uplift"), "percent"), *ends, Figure((*path, "p_holm"), "number")
            ]  # fmt: skip
    return table(report, ["", "uplift", "every look", "", "one look", "", "p (Holm)"], rows)


def _cuped(report: Report) -> str:
    lines = [as_html(report, said) for arm in others(report) if (said := cuped(report, arm))]
    return items(lines) or "<p>The log has nothing of these users from before the experiment that tells.</p>"


def _arms(report: Report) -> str:
    rows: dict[str, Sentence] = {
        arm: [Figure(("arms", arm, "users"), "count"), *(Figure(("arms", arm, of), "share") for of in _SHARES)]
        for arm in report["arms"]
    }
    return f"""<section><h2>The split</h2>
{table(report, ["", "users", "share", "planned"], rows)}
<p>{as_html(report, ["Chi-square ", Figure(("split", "chi2"), "number"), ", p = ", Figure(("split", "p"), "number")])}.
Below p = 0.001 no figure of this page may be trusted.</p></section>"""


_SHARES = ("share", "planned")


def _repeat(report: Report) -> str:
    """Return what one needs to measure it again."""
    said = {"data": report["data"], "control": report["control"]}
    if report["start"]:
        said["time"] = f"{report['start']} to {report['end']}"
    said["every-look intervals are narrowest at"] = f"{report['tight_at']:,} users"
    said |= {name: str(of) for name, of in report.get("made", {}).items()}
    return f"""<section><h2>To measure it again</h2>
{terms(said)}{settings(report)}
<p class="aside">{IN_THE_PAGE}</p>
</section>"""
