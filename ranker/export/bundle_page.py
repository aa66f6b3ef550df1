"""A bundle as one HTML page: what it was trained on, how its towers and boosters learned, how good it and the last are.

It is made from the bundle's own files alone (manifest, model card, importance, curves), so nothing is loaded or served.
"""

import csv
import json
import re
from collections.abc import Mapping
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from features.errors import PairliftError
from features.pairing.split import iso
from ranker.blend.shares import Shares
from ranker.bundle import CARD, CURVES, IMPORTANCE, SHARES, read_manifest
from ranker.export.bundle_lists import OWN, lists_section
from ranker.hashes import MANIFEST
from ranker.metrics.curves import COLOURS, as_svg
from ranker.metrics.interval import finite
from ranker.uplift.canvas import Canvas
from ranker.uplift.markup import IN_THE_PAGE, document, figure, items, table, terms
from ranker.uplift.said import Figure, Sentence, as_html, found_at, pointer

Report = Mapping[str, Any]

FORMAT = 1
#: columns of which the gain is drawn, and earlier bundles that are
COLUMNS, EARLIER = 15, 8
#: what begins the name of a column that is a source's score
SOURCE = "source__"
#: what a bundle is judged by: its name, its place in `measured` and how it is written
MEASURED: dict[str, tuple[tuple[str, ...], str]] = {
    "PairAccuracy of the test": (("pair_accuracy",), "accuracy"),
    "PairAccuracy of popularity": (("popularity",), "accuracy"),
    "PairAccuracy of the validation slice": (("validation_accuracy",), "accuracy"),
    "share of ties": (("tie_share",), "share"),
    "NDCG@10 as shown": (("ndcg@10",), "accuracy"),
    "recall@10 of lists": (("lists", "recall@10", "recommend"), "accuracy"),
    "the same of popular items": (("lists", "recall@10", "popular"), "accuracy"),
    "NDCG@10 of lists": (("lists", "ndcg@10", "recommend"), "accuracy"),
    "weight of the liked part in lists": (("liked_weight", "weight"), "number"),
    "kept by pre-ranking, of the ranker's first 50": (("prerank", "kept_top50"), "accuracy"),
    "trees of the liked part": (("trees",), "count"),
    "pairs of the test": (("pairs", "test"), "count"),
}
#: colours of the curves' own files, and the page's in their place
THEME = {"white": "none", "#bbb": "var(--line)"}
THEME |= {COLOURS["loss"]: "var(--accent)", COLOURS["validation"]: "var(--bad)"}


def bundle_report(folder: Path) -> dict[str, Any]:
    """Return what the page is made of. `bundles`: this one and those beside it in its folder, the latest first."""
    manifest = read_manifest(folder)
    sizes = [(folder / name).stat().st_size for name in manifest["files"] if (folder / name).is_file()]
    found: dict[str, Any] = finite(
        {
            "format": FORMAT,
            "name": folder.resolve().name,
            "version": manifest["version"],
            "bundle_format": manifest["format"],
            "split": {t: iso(manifest["split"][t]) for t in ("t0", "t1", "t2", "t3")},
            "bytes": sum(sizes),
            "files": len(manifest["files"]),
            "columns": len(manifest["columns"]),
            "card": card_sections((folder / CARD).read_text() if (folder / CARD).is_file() else ""),
            "importance": _importance(folder),
            "curves": _curves(folder / CURVES),
            "shares": _shares(folder / SHARES),
            "bundles": _bundles(folder),
        }
    )
    return found


def card_sections(text: str) -> dict[str, list[str]]:
    """Return the points of each section of a model card, by its title."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:]
    return {
        title: re.findall(r"^- (.+)$", body, re.MULTILINE) for title, body in zip(parts[::2], parts[1::2], strict=True)
    }


def _importance(folder: Path) -> dict[str, dict[str, float]]:
    """Return each column's share of the gain, by part, the largest first.

    A bundle of before there were two parts has the liked one alone.
    """
    if not (folder / IMPORTANCE).is_file():
        return {}
    found = json.loads((folder / IMPORTANCE).read_text())
    parts = {"liked": found} if "columns" in found else found
    gains = {part: {name: own["gain"] for name, own in of["columns"].items()} for part, of in parts.items()}
    return {part: dict(sorted(of.items(), key=lambda item: -item[1])) for part, of in gains.items()}


def _curves(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the points of each plugin's curve, as `ranker.metrics.curves` wrote them."""
    found = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        numbers = {name: [float(row[name]) if row[name] else None for row in rows] for name in ("loss", "validation")}
        found[path.stem] = [
            {"phase": row["phase"], "step": int(row["step"])} | {name: of[k] for name, of in numbers.items()}
            for k, row in enumerate(rows)
        ]
    return found


def _shares(file: Path) -> list[dict[str, Any]]:
    """Return how many candidates each source has, for each kind of request; empty where the TOML's quotas say it."""
    found = Shares.read(file)
    return [] if found is None else found.report()["of"]


def _bundles(folder: Path) -> list[dict[str, Any]]:
    """Return the figures of a bundle and of those in its folder that are not later; a broken one is left out."""
    own, found = folder.resolve(), []
    for path in {own, *(manifest.parent for manifest in own.parent.glob(f"*/{MANIFEST}"))}:
        try:
            manifest = read_manifest(path)
        except PairliftError:
            if path == own:
                raise
            continue
        found.append({"name": path.name, "snapshot": manifest["snapshot_time"], "measured": manifest["measured"]})
        found[-1] |= {"this": path == own, "snapshot_time": iso(manifest["snapshot_time"])}
    latest = next(of["snapshot"] for of in found if of["this"])
    known = [of for of in found if of["snapshot"] <= latest]
    return sorted(known, key=lambda of: (not of["this"], -of["snapshot"], of["name"]))[: EARLIER + 1]


def as_page(report: Report) -> str:
    """Return the whole page."""
    parts = [_first_screen, _towers, _boosters, lists_section, _last, _rest]
    return document(f"Bundle {report['name']}", [part(report) for part in parts], report)


def _first_screen(report: Report) -> str:
    rows: dict[str, Sentence] = {name: [Figure((*OWN, *path), kind)] for name, (path, kind) in MEASURED.items()}
    spans = list(pairwise(report["split"].values()))
    names = ("plugins are fitted on", "the ranker learns on", "the test")
    periods = {name: f"{start} to {stop}" for name, (start, stop) in zip(names, spans, strict=True)}
    said: Sentence = [
        *(Figure(("bytes",), "bytes"), " in ", Figure(("files",), "count"), " files, ", Figure(("columns",), "count")),
        f" columns; it knows the world as of {report['bundles'][0]['snapshot_time']}.",
    ]
    return f"""<header>
<p class="aside">Pairlift, bundle {escape(report["name"])}, version {escape(report["version"])}</p>
<h1>What is in the bundle {escape(report["name"])}, and how good is it?</h1>
<p>{as_html(report, said)}</p>
<p class="verdict open">{as_html(report, _verdict(report))}</p>
<div class="cards wide">
<section class="card"><h2>Measured on the test</h2>{table(report, ["", "this bundle"], rows)}</section>
<section class="card"><h2>Data</h2>{terms(periods)}{_points(report, "Data")}</section>
</div>
</header>"""


def _verdict(report: Report) -> Sentence:
    """Return what it reaches beside popularity; that of lists with its interval, where it has one."""
    ours: Sentence = ["It orders ", Figure((*OWN, "pair_accuracy"), "accuracy"), " of the test's pairs right"]
    if found_at(report, (*OWN, "popularity")) is not None:
        ours = [*ours, ", popularity ", Figure((*OWN, "popularity"), "accuracy")]
    lists = (*OWN, "lists", "recall@10")
    if found_at(report, (*lists, "difference")) is None:
        return [*ours, ". An interval of what a plugin brings is `pairlift uplift`'s to tell."]
    gap, low, high = (Figure((*lists, *of), "gain") for of in (("difference",), ("ci95", 0), ("ci95", 1)))
    interval: Sentence = [" (recall@10 less theirs: ", gap, " [", low, ", ", high, "])."]
    return [*ours, f"; its lists {_said_of_lists(*(of.value(report) for of in (low, high)))}", *interval]


def _said_of_lists(low: float | None, high: float | None) -> str:
    """Return what the interval of their difference to the popular items' allows to say."""
    if low is not None and low > 0:
        return "find more of what was wanted than the popular items do"
    if high is not None and high < 0:
        return "find less of what was wanted than the popular items do"
    return "are not shown to find more of what was wanted than the popular items do, or less"


def _points(report: Report, section: str) -> str:
    """Return a section of the card, but for the periods, which the page has anyway."""
    points = [point for point in report["card"].get(section, []) if not point.startswith("Period ")]
    return items(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(point)) for point in points)


def _towers(report: Report) -> str:
    drawn = "".join(
        figure(report, _curve(name, phase, points), [_READ])
        for name, of in report["curves"].items()
        for phase, points in _phases(of).items()
    )
    plugins = _points(report, "Plugins")
    if not drawn and not plugins:
        return ""
    return f'<section><h2>Plugins</h2>{plugins}<div class="cards">{drawn}</div></section>'


_READ = "Blue: the loss of training, on the left; red: the figure of its validation slice, on the right."


def _phases(points: list[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        found.setdefault(point["phase"], []).append(point)
    return found


def _curve(name: str, phase: str, points: list[Mapping[str, Any]]) -> str:
    """Return a phase of a curve in the page's colours; dark paper has a light ink."""
    svg = as_svg(name, points)
    for colour, own in THEME.items():
        svg = svg.replace(f'"{colour}"', f'"{own}"')
    label = escape(f"{name}, {phase}")
    return svg.replace("<svg ", f'<svg fill="var(--ink)" role="img" aria-label="{label}" ', 1)


def _boosters(report: Report) -> str:
    drawn = "".join(
        figure(report, _gains(report, part, list(gains)[:COLUMNS]), [f"The {part} part: {len(gains)} columns."])
        for part, gains in report["importance"].items()
    )
    sources = [name for name in report["importance"].get("wanted", {}) if name.startswith(SOURCE)]
    if sources:
        said = "Which sources decide what Recommend ranks high: the share of the gain of each one's score."
        drawn += figure(report, _gains(report, "wanted", sources), [said])
    if not drawn:
        return ""
    return f"""<section><h2>Boosters and sources</h2>
<p class="aside">The share of the loss that each column's splits took away, the largest first.</p>
<div class="cards">{drawn}</div></section>"""


def _gains(report: Report, part: str, names: list[str]) -> str:
    """Return shares of the gain as bars, in the order of the names."""
    gains = report["importance"][part]
    canvas = Canvas(report, len(names), 0.0, max((gains[name] for name in names), default=1.0))
    for k, name in enumerate(names):
        place = ("importance", part, name)
        canvas.label(k, name.removeprefix(SOURCE), [Figure(place, "share")])
        canvas.bar(k, 0, gains[name], "accent", 6, pointer(place))
    canvas.axis(lambda share: f"{100 * share:.4g} %")
    return canvas.svg(f"Shares of the gain of the {part} part")


def _last(report: Report) -> str:
    """Return this bundle beside the earlier ones of its folder."""
    bundles = report["bundles"]
    if len(bundles) < 2:
        return ""
    rows: dict[str, Sentence] = {
        name: [Figure(("bundles", k, "measured", *path), kind) for k in range(len(bundles))]
        for name, (path, kind) in MEASURED.items()
    }
    heads = ["", *(f"{of['name']} ({of['snapshot_time'][:10]})" for of in bundles)]
    return f"""<section><h2>The last bundles</h2>
<p class="aside">Each was measured on the test of its own day: a figure that moves may be the days', not the bundle's. \
Which of two is better on the same days, <code>pairlift train --warm-start</code> and <code>retune</code> say.</p>
{table(report, heads, rows)}</section>"""


def _rest(report: Report) -> str:
    limits = _points(report, "Limits")
    return f"""<section><h2>Limits</h2>{limits or "<p>The bundle has no model card.</p>"}
<p class="aside">{IN_THE_PAGE}</p></section>"""
