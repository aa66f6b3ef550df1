"""The figures of an uplift report's page, each as an SVG: see `ranker.uplift.canvas`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ranker.uplift.canvas import Canvas
from ranker.uplift.explain.ages import AGE
from ranker.uplift.measured import LISTED
from ranker.uplift.reasons import beyond_decides
from ranker.uplift.said import Figure, Sentence, found_at, interval, pointer
from ranker.uplift.verdict import LISTS

Report = Mapping[str, Any]
Path = tuple[str | int, ...]

#: columns of which the gain is drawn, and of which PairAccuracy alone
COLUMNS, ALONE = 12, 4
#: titles of the kinds of slices and what each is for; of another one, its name
TITLES = {
    "grade_pair": ("by the grades of winner and loser", "Which differences in feedback it orders better."),
    "user_activity": ("by the user's events before", "Whether it serves users of few events, or of many."),
    "winner_popularity": ("by the winner's events before", "Whether it serves items of few events, or of many."),
    "winner_age": ("by the winner's age", "Whether it serves new items, or old ones."),
    "winner_first_seen": (
        "by when the winner was first seen",
        "It cannot have learned of items first seen at t1 or later.",
    ),
    "familiarity": (
        "by what the user had met before",
        "Whether it finds again what a user knew, or what is new to them.",
    ),
    "surface": ("by surface", "Where the lists stood that it orders better."),
    "day": ("by day", "Whether it holds as what it learned grows old."),
    "week": ("by week", "Whether it holds as what it learned grows old; each is named by its Monday."),
    AGE: (
        "by the age of the user's vector",
        "Whether it holds as a vector grows old: an age is how long before the request the history ended that the "
        "vector is made of, by the plugin's lag (of a daily one the last midnight, so it is an hour of the day too).",
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """An interval of a forest plot."""

    label: str
    path: Path  # of a part with `relative_uplift` and `ci95`
    raw: Path | None = None  # the same before it was shrunk
    small: bool = False


def interval_figure(report: Report) -> str:
    """Return the uplift with its interval, beside the smallest uplift that the test could have shown.

    Where the uplift over missingness decides, it is drawn below, and the uplift pale. One that leaks is not drawn.
    """
    rows = [Row("uplift, 95 %", ())]
    if beyond_decides(report):
        rows.append(Row("by values alone", ("missingness", "beyond")))
    least = report["minimum_detectable_uplift"] or 0.0
    ends = [0.0] if report["leaks"] else [least, *ends_of(report, rows)]
    canvas = Canvas(report, 1 if report["leaks"] else len(rows) + 1, min(ends), max(ends))
    if report["leaks"]:
        canvas.label(0, "says nothing: it leaks", interval(), struck=True)
        return canvas.svg("No uplift is drawn, for the plugin leaks")
    canvas.rule(0, "muted")
    for k, row in enumerate(rows):
        decides = row is rows[-1]
        canvas.label(k, row.label, interval(*row.path), strong=decides)
        _interval(canvas, k, row.path, "accent" if decides else "faint", 7, pointer((*row.path, "ci95")))
        canvas.dot(k, found_at(report, (*row.path, "relative_uplift")) or 0.0, "ink" if decides else "muted", size=8)
    canvas.label(len(rows), "this test mostly misses gains below", [Figure(("minimum_detectable_uplift",), "percent")])
    canvas.bar(len(rows), 0, least, "muted", 7, pointer(("minimum_detectable_uplift",)))
    canvas.axis(_signed)
    return canvas.svg("The uplift with its interval, beside the smallest that this test finds 4 times in 5")


def _signed(uplift: float) -> str:
    return f"{100 * uplift:+.4g} %"


def uplift_rows() -> list[Row]:
    """Return a row for each definition of the uplift, and each control."""
    missing = ("missingness",)
    return [
        Row("PairAccuracy", ()),
        Row("each user weighs one", ("macro",)),
        Row("ties wrong (CatBoost)", ("pair_accuracy_catboost",)),
        Row("debiased for places", ("shown_order", "debiased", "uplift")),
        Row("over missingness", (*missing, "beyond")),
        Row("control: missingness", missing),
        Row("control: shuffled", ("shuffled",)),
        *(Row(f"lists: {label}", ("lists", key)) for key, label in LISTS.items()),
    ]


def uplifts_figure(report: Report) -> str:
    """Return the uplift by all its definitions and controls, as a forest plot."""
    known = [row for row in uplift_rows() if found_at(report, (*row.path, "relative_uplift")) is not None]
    return forest(report, known, "The uplift by other definitions, and of the controls")


def forest(report: Report, rows: Sequence[Row], title: str, ends: Sequence[float] = ()) -> str:
    """Return a row for each interval, and a dashed line at the main uplift. ends: of the axis, where it is shared."""
    ends = ends or ends_of(report, rows)
    canvas = Canvas(report, len(rows), min(ends), max(ends))
    canvas.rule(0, "muted")
    if report["relative_uplift"] is not None:
        canvas.rule(report["relative_uplift"], "accent", dashed=True)
    for k, row in enumerate(rows):
        canvas.label(k, row.label + (" *" if row.small else ""), interval(*row.path), strong=row.path == ())
        if row.raw is not None:
            _interval(canvas, k, row.raw, "faint", 2, "")
        _interval(canvas, k, row.path, "accent", 5, pointer((*row.path, "ci95")))
        uplift = found_at(report, (*row.path, "relative_uplift"))
        if uplift is not None:
            canvas.dot(k, uplift, "ink", hollow=row.small)
    canvas.axis(_signed)
    return canvas.svg(title)


def _interval(canvas: Canvas, row: int, path: Path, colour: str, width: float, mark: str) -> None:
    low, high = found_at(canvas.report, (*path, "ci95"))
    if low is not None and high is not None:
        canvas.bar(row, low, high, colour, width, mark)


def ends_of(report: Report, rows: Sequence[Row]) -> list[float]:
    """Return all that an axis of these rows must show: zero, their uplifts, and the intervals of those not small."""
    wide = [row for row in rows if not row.small] or rows
    found = [found_at(report, (*row.path, "ci95", end)) for row in wide for end in (0, 1)]
    found += [found_at(report, (*row.path, "relative_uplift")) for row in (*rows, Row("", ()))]
    return [0.0, *(end for end in found if end is not None)]


def slice_figures(report: Report) -> dict[str, str]:
    """Return a forest plot for each kind of slices with several values; all have one axis."""
    by_kind = {kind: slice_rows(report, kind) for kind, values in report["slices"].items() if len(values) > 1}
    ends = ends_of(report, [row for rows in by_kind.values() for row in rows])
    return {kind: forest(report, rows, f"Uplift {title_of(kind)}", ends) for kind, rows in by_kind.items()}


def slice_rows(report: Report, kind: str) -> list[Row]:
    """Return a row for each value of a kind of slices: shrunk, with the raw interval behind it."""
    paths = {name: ("slices", kind, name) for name in report["slices"][kind]}
    small = {name: bool(of["small"]) for name, of in report["slices"][kind].items()}
    return [Row(plain(name), (*path, "shrunk"), path, small[name]) for name, path in paths.items()]


def title_of(kind: str) -> str:
    """Return in words what a kind of slices tells apart."""
    return _told(kind)[0]


def purpose_of(report: Report, kind: str) -> str:
    """Return a sentence that says what a kind of slices is for; of one of the TOML, its SQL."""
    sql = found_at(report, ("settings", "uplift", "slices", kind))
    return f"Of the winners of the pairs: {sql}" if sql else _told(kind)[1]


def _told(kind: str) -> tuple[str, str]:
    attribute = kind.removeprefix("familiarity_")
    if attribute != kind:
        return f"by whether the user had met its {attribute}", f"Whether it knows more than the user's own {attribute}."
    return TITLES.get(kind, (f"by {kind}", "The uplift among the pairs of each value."))


def plain(label: str) -> str:
    """Return a slice's label without the digit that it is sorted by."""
    return re.sub(r"^\d+: ", "", label)


def accuracies(report: Report) -> dict[str, Path]:
    """Return where PairAccuracy of each arm and control stands, by label, the simplest first."""
    alone = {f"{name} alone": ("column_alone", name, "pair_accuracy") for name in list(report["column_alone"])[:ALONE]}
    return {
        "random": ("random",),
        "popularity": ("popularity",),
        **alone,
        "with, columns shuffled": ("shuffled", "pair_accuracy"),
        "with what is missing alone": ("missingness", "pair_accuracy"),
        "without the plugin": ("without",),
        "with the plugin": ("with",),
    }


def arms_figure(report: Report) -> str:
    """Return PairAccuracy of the arms, the controls and of scores that learn nothing, as points on one axis."""
    values = {label: (path, found_at(report, path)) for label, path in accuracies(report).items()}
    known = {label: (path, value) for label, (path, value) in values.items() if value is not None}
    every = [value for _, value in known.values()] or [0.5]
    canvas = Canvas(report, len(known), min(every), max(every))
    if report["without"] is not None:
        canvas.rule(report["without"], "muted", dashed=True)
    for k, (label, (path, value)) in enumerate(known.items()):
        arm = path in (("with",), ("without",))
        canvas.label(k, label, [Figure(path, "accuracy")], strong=arm)
        canvas.dot(k, value, "accent" if path == ("with",) else "ink" if arm else "muted")
    canvas.axis("{:.4g}".format)
    return canvas.svg("PairAccuracy of the arms and controls")


def importance_figure(report: Report) -> str:
    """Return the columns with the largest shares of the gain, the plugin's in colour."""
    shares = report["importance"]
    own = set(report["columns"])
    named = list(dict.fromkeys([*list(shares)[:COLUMNS], *(name for name in shares if name in own)]))[: 2 * COLUMNS]
    canvas = Canvas(report, len(named), 0.0, max([shares[name] for name in named], default=1.0))
    for k, name in enumerate(named):
        canvas.label(k, name, [Figure(("importance", name), "share")], strong=name in own)
        path = pointer(("importance", name))
        canvas.bar(k, 0, shares[name], "accent" if name in own else "faint", 6, path)
    canvas.axis(lambda share: f"{100 * share:.4g} %")
    return canvas.svg("Shares of the gain by column")


def contributions_figure(report: Report) -> str:
    """Return how far the columns move a pair's margin, the plugin's in colour, and how far to the right side."""
    of, own = report["contributions"], set(report["columns"])
    named = list(dict.fromkeys([*list(of)[:COLUMNS], *(name for name in of if name in own)]))[: 2 * COLUMNS]
    ends = [value for name in named for value in of[name].values()]
    canvas = Canvas(report, len(named), min([0.0, *ends]), max([0.0, *ends]))
    canvas.rule(0, "muted")
    for k, name in enumerate(named):
        size = ("contributions", name, "size")
        canvas.label(k, name, [Figure(size, "number")], strong=name in own)
        canvas.bar(k, 0, of[name]["size"], "accent" if name in own else "faint", 6, pointer(size))
        canvas.dot(k, of[name]["towards"], "ink", size=5)
    canvas.axis("{:.3g}".format)
    return canvas.svg("How far each column moves the margin of a pair")


def calibration_figure(report: Report, arm: str) -> str:
    """Return a row for each part of the pairs: how often the preferred side wins, beside how often it was said to."""
    bins = report["calibration"][arm]["bins"]
    both = (of for arms in report["calibration"].values() for of in arms["bins"])  # so that both arms have one axis
    every = [of[what] for of in both for what in ("predicted", "observed")]
    canvas = Canvas(report, len(bins), min([0.5, *every]), max(every))
    for k, of in enumerate(bins):
        said, held = (("calibration", arm, "bins", k, what) for what in ("predicted", "observed"))
        canvas.label(k, f"part {k + 1}", ["said ", Figure(said, "share"), ", was ", Figure(held, "share")])
        canvas.bar(k, of["predicted"], of["observed"], "faint", 4)
        canvas.dot(k, of["predicted"], "muted", hollow=True)
        canvas.dot(k, of["observed"], "accent" if arm == "with" else "ink")
    canvas.axis(lambda share: f"{100 * share:.4g} %")
    return canvas.svg(f"What was said and what was so, {arm} the plugin")


def listed() -> dict[str, Sentence]:
    """Return the figures of shown lists, without and with the plugin, by label."""
    return {label: [Figure((name, arm), "accuracy") for arm in ("without", "with")] for name, label in LISTED.items()}
