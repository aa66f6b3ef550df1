"""What the comparison of two reports says, in the terminal and as a page."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ranker.uplift.canvas import Canvas
from ranker.uplift.markup import IN_THE_PAGE, document, figure, keep_page, table, text_table
from ranker.uplift.past.compare import PLAIN
from ranker.uplift.said import Figure, Sentence, as_html, as_text, found_at, interval, pointer

Report = Mapping[str, Any]

#: what the first screen draws of the main uplift
SIDES = {"old": "the old report", "new": "the new report", "difference": "new less old"}
#: text of a setting that is shown of each side
LONG = 60
_SIDES = ("old", "new")


def said(report: Report) -> Sentence:
    """Return whether the main uplift moved, and no more than the interval allows."""
    more = _more(report)
    end = ". " if report["identical"] else ": "
    return [headline(report), *([end, *more] if more else ["."])]


def headline(report: Report) -> str:
    """Return in a few words whether the main uplift moved."""
    move = _main(report)
    if move is None:
        return "One of the two has no uplift, so nothing can be compared"
    if report["old"]["leaks"] or report["new"]["leaks"]:
        return "A leak was found in one of the two, so its figures say nothing and nothing can be compared"
    if move["difference"]["ci95"][0] is None:
        return "One of the two has no interval, so whether the uplift moved cannot be said"
    if report["identical"]:
        return "Identical, the same numbers to the last digit"
    if not move["direction"]:
        return "The uplift is not shown to have moved"
    return f"The uplift has {'risen' if move['direction'] == 'up' else 'fallen'}"


def _more(report: Report) -> Sentence:
    """Return what the headline rests on; nothing where nothing can be compared."""
    move = _main(report)
    leaks = report["old"]["leaks"] or report["new"]["leaks"]
    if move is None or leaks or move["difference"]["ci95"][0] is None:
        return []
    if report["identical"]:
        shown = "the uplift has not moved. What differs below is of lists, or is defined otherwise."
        end = shown if _shown(report) else "nothing has moved and there is nothing to tell."
        if report["same_fits"]:
            return [f"Both are of the same fits and the same pairs, so {end}"]
        return [f"What changed has no part in what the fits read, or one report is a copy of the other, so {end}"]
    return ["new less old is ", *interval("moves", 0, "difference"), " (95 %)", _how(report, move)]


def _main(report: Report) -> Report | None:
    """Return the move of the main uplift, which is the first where both have one."""
    first: Report | None = next(iter(report["moves"]), None)
    return first if first is not None and first["name"] == "PairAccuracy" else None


def _shown(report: Report) -> list[tuple[int, Report]]:
    """Return the place and the move of all that is worth a row: of identical reports, what is not equal."""
    moves = list(enumerate(report["moves"]))
    return [(k, of) for k, of in moves if not report["identical"] or of["old"] != of["new"]]


def _how(report: Report, move: Report) -> str:
    if move["paired"]:
        return f", user by user ({report['shared_users']:,} are in both)."
    return ", as if they had no user in common."


def caution(report: Report) -> str:
    """Return what else changed, which may have moved it."""
    if not report["changed"]:
        return "Data, settings and versions are the same, as far as the reports keep them."
    so = "but not the fits" if report["same_fits"] else "so it need not be the plugin alone"
    so = "but no number" if report["identical"] and not report["same_fits"] else so
    return f"Changed: {counted(report['changed'])}, {so}."


def counted(changed: Sequence[Report]) -> str:
    """Return the groups of what changed, and how much it is."""
    groups, n = dict.fromkeys(of["group"] for of in changed), len(changed)
    return f"{', '.join(groups)} ({n} {'entry' if n == 1 else 'entries'})"


def as_lines(report: Report) -> str:
    """Return it as text: what changed, the sentence, and a line for each figure."""
    lines = [caution(report)]
    lines += [f"  {of['group']}: {of['what']}: {short(of['old'])} -> {short(of['new'])}" for of in report["changed"]]
    lines += ["", as_text(report, said(report)), ""]
    lines += [f"{side:4}{of['data']}: {of['plugin']} {of['verdict']}" for side, of in _both(report).items()]
    lines += ["", f"{'uplift':60}{'old':>10}{'new':>10}  new less old [95 %]"] if _shown(report) else []
    for k, move in _shown(report):
        ends = "".join(
            f"{Figure(('moves', k, side, 'relative_uplift'), 'percent').text(report):>10}" for side in _SIDES
        )
        gap = as_text(report, interval("moves", k, "difference"))
        lines.append(f"{_named(move)[:59]:60}{ends}  {gap:28}{move['direction']}".rstrip())
    lines += [f"({_CHANCE})"] if _shown(report) else []
    lines += ["", *(_line(report, name, kind) for name, (_, kind) in PLAIN.items() if _any(report, name))]
    return "\n".join(lines)


def _both(report: Report) -> dict[str, Report]:
    return {side: report[side] for side in _SIDES}


def _line(report: Report, name: str, kind: str) -> str:
    return f"{name:60}" + "".join(f"{Figure((side, 'plain', name), kind).text(report):>10}" for side in _SIDES)


def _any(report: Report, name: str) -> bool:
    return any(found_at(report, (side, "plain", name)) is not None for side in _SIDES)


def short(text: str) -> str:
    """Return the beginning of a long text."""
    return text if len(text) <= LONG else text[: LONG - 1] + "…"


def as_page(report: Report) -> str:
    """Return the whole page."""
    parts = [_first_screen, _moves, _plain]
    title = f"{report['old']['plugin']} and {report['new']['plugin']}: two uplift reports"
    return document(title, [part(report) for part in parts], report)


def _first_screen(report: Report) -> str:
    names = {side: f"{of['data']}: {of['plugin']}, {_date(of)}" for side, of in _both(report).items()}
    verdicts = "".join(
        f"<p><b>{side}</b>: {escape(of['plugin'])} {escape(of['verdict'])}.</p>" for side, of in _both(report).items()
    )
    move = _main(report)
    leaks = report["old"]["leaks"] or report["new"]["leaks"]
    tone = {"up": "good", "down": "bad"}.get(move["direction"] if move and not leaks else "", "open")
    rows = [[f"{of['group']}: {of['what']}", short(of["old"]), short(of["new"])] for of in report["changed"]]
    changed = text_table(["", *_SIDES], rows) if rows else ""
    drawn = figure(report, _main_figure(report), [_CAPTION]) if move and not report["identical"] else ""
    more = _more(report)
    return f"""<header>
<p class="aside">Pairlift, two uplift reports</p>
<h1>What has moved?</h1>
<p>Asked: is the uplift of the new report ({as_html(report, [names["new"]])}) another one than that of the old report \
({as_html(report, [names["old"]])})? Uplift: how much more of the pairs the ranker orders right with the plugin.</p>
<p class="verdict {tone}"><strong>{escape(headline(report))}.</strong> \
{as_html(report, [*_capital(more), " " if more else "", caution(report)])}</p>
<div class="cards wide">
{drawn}
<section class="card"><h2>What changed</h2>{changed or "<p>Nothing that the reports keep.</p>"}</section>
<section class="card"><h2>What each says</h2>{verdicts}</section></div>
</header>"""


_CHANCE = "of many some move by chance; slices are as they were measured, not shrunk towards the whole"
_CAPTION = (
    "Zero is no move. Below stand all other figures. But for those of users who weigh one, they are compared as if the "
    f"reports shared no user, so their intervals are wider than need be; {_CHANCE}."
)


def _capital(sentence: Sentence) -> Sentence:
    first, *rest = sentence or [""]
    return [first[:1].upper() + first[1:] if isinstance(first, str) else first, *rest]


def _date(of: Report) -> str:
    return str(found_at(of, ("made", "date")) or "of an unknown day")


def _main_figure(report: Report) -> str:
    paths = {label: ("moves", 0, side) for side, label in SIDES.items()}
    return _drawn(report, paths, "Both uplifts, and their difference")


def _named(move: Report) -> str:
    return f"{move['kind']}: {move['name']}" if move["kind"] else str(move["name"])


def _moves(report: Report) -> str:
    if not _shown(report):
        return ""
    by_kind: dict[str, dict[str, Sequence[str | int]]] = {}
    for k, move in _shown(report):
        by_kind.setdefault(move["kind"], {})[move["name"]] = ("moves", k, "difference")
    drawn = "".join(
        f'<figure class="card"><h3>{escape(title)}</h3>{_drawn(report, paths, title)}</figure>'
        for kind, paths in by_kind.items()
        if (title := f"Uplift {kind}" if kind else "By all definitions, and of the controls")
    )
    rows: dict[str, Sentence] = {}
    for k, move in _shown(report):
        sides = [Figure(("moves", k, side, "relative_uplift"), "percent") for side in SIDES]
        rows[_named(move)] = [*sides, *(Figure(("moves", k, "difference", "ci95", end), "percent") for end in (0, 1))]
    heads = ["", "old", "new", "new less old", "low", "high"]
    return f"""<section><h2>What moved, new less old</h2><div class="cards">{drawn}</div>
<details><summary>As a table</summary>{table(report, heads, rows)}</details></section>"""


def _drawn(report: Report, paths: Mapping[str, Sequence[str | int]], title: str) -> str:
    """Return a row with an interval for each place; a filled point where it excludes zero."""
    places = [(*path, *end) for path in paths.values() for end in (("relative_uplift",), ("ci95", 0), ("ci95", 1))]
    ends = [0.0, *(float(end) for place in places if (end := found_at(report, place)) is not None)]
    canvas = Canvas(report, len(paths), min(ends), max(ends))
    canvas.rule(0, "muted")
    for k, (label, path) in enumerate(paths.items()):
        low, high = found_at(report, (*path, "ci95"))
        canvas.label(k, label, interval(*path), strong=label in ("PairAccuracy", SIDES["difference"]))
        if low is not None and high is not None:
            canvas.bar(k, low, high, "accent" if path[-1] == "difference" else "faint", 5, pointer((*path, "ci95")))
        clear = low is not None and high is not None and (low > 0 or high < 0)
        canvas.dot(k, found_at(report, (*path, "relative_uplift")), "ink", hollow=not clear)
    canvas.axis(lambda gap: f"{100 * gap:+.4g} %")
    return canvas.svg(title)


def _plain(report: Report) -> str:
    rows = {
        name: [Figure((side, "plain", name), kind) for side in _SIDES]
        for name, (_, kind) in PLAIN.items()
        if _any(report, name)
    }
    return f"""<section><h2>Numbers without an interval</h2>
{table(report, ["", *_SIDES], rows)}
<p class="aside">{IN_THE_PAGE}</p></section>"""


def write_page(report: Report, folder: Path) -> Path:
    """Write the page into a folder, which is made where there is none; return its path."""
    return keep_page(as_page(report), folder)
