"""Two reports side by side: what changed in data, settings and versions; then what moved, and whether one may say so.

The main uplift, and that of users who weigh one each, are compared user by user where both reports kept their users
(`ranker.uplift.users`) and share some: a user of both is counted once, with what moved for them. All else is compared
as if the reports were independent, which gives wider intervals than need be where they share users. Fits and seeds are
always taken to be independent, but where all main figures are equal to the last digit (`identical`), as they are of the
very same fits (`same_fits`): what is equal then has not moved, by anything.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

import numpy as np

from features.schema import F64
from ranker.metrics.interval import Part, finite, half_width, part_of_squares, satterthwaite
from ranker.uplift.figures import plain, title_of, uplift_rows
from ranker.uplift.result import UpliftReport
from ranker.uplift.said import found_at
from ranker.uplift.verdict import verdict

Report = Mapping[str, Any]

#: 2: `same_fits`. 3: `identical`
FORMAT = 3
#: what is said to have changed, by group: names and places in a report
CHANGES: dict[str, dict[str, tuple[str | int, ...]]] = {
    "plugin": {name: (name,) for name in ("plugin", "columns")},
    "data": {
        **{name: (name,) for name in ("data", "pairs_kind", "sampler", "pairs", "users")},
        **{f"split {t}": ("split", t) for t in ("t0", "t1", "t2", "t3")},
    },
    "settings": {
        **{"fits": ("fit_seeds",), "seeds": ("seeds",), "metric": ("metric",), "lag": ("lag",), "[…]": ("settings",)},
    },
    "versions": {"Pairlift": ("made", "version"), "format of the report": ("format",)},
}
#: what stands for a value that a report does not have, and for a setting that one has not
UNKNOWN, NOT_SET = "not known", "not set"
#: what two reports of fits that order all pairs alike have alike, to the last digit; and those of the same fits
ALIKE = ("data", "pairs", "users", "without", "with", "relative_uplift", "ci95", "trees")
OF_FITS = (*ALIKE, "fit_seeds", "seeds")
#: numbers without an interval that stand side by side: place and how each is written
PLAIN: dict[str, tuple[tuple[str | int, ...], str]] = {
    "PairAccuracy without": (("without",), "accuracy"),
    "PairAccuracy with": (("with",), "accuracy"),
    "smallest uplift that the test could show": (("minimum_detectable_uplift",), "percent"),
    "effective users": (("effective_users",), "count"),
    "trees without": (("trees", "without"), "count"),
    "trees with": (("trees", "with"), "count"),
    "ms in a request, p50": (("cost", "request_ms", "p50"), "ms"),
    "ms in a request, p99": (("cost", "request_ms", "p99"), "ms"),
    "memory in a process that serves": (("cost", "memory_bytes"), "bytes"),
    "a fit": (("cost", "fit_seconds"), "seconds"),
    "size in a bundle": (("cost", "saved_bytes"), "bytes"),
}


def compare(old: UpliftReport, new: UpliftReport) -> dict[str, Any]:
    """Return what changed (`changed`), what both say (`old`, `new`), and what moved (`moves`, the main uplift first).

    A move has both uplifts, their `difference` with its interval, and `direction`: up, down, or nothing where the
    interval holds zero or is not known. Of identical ones, what is equal has moved by 0, and of a figure of pairs that
    is not the interval is not known: it is defined otherwise. Lists depend on sources too, so theirs are compared.
    """
    both = (old.figures, new.figures)
    pairs, same = _paired(old, new), _are_alike(both, ALIKE)
    by_user: dict[tuple[str | int, ...], Any] = {(): pairs, ("macro",): _paired(old, new, each_one=True)}
    moves = [_move(kind, name, path, both, by_user.get(path), same) for kind, name, path in _places(both)]
    found: dict[str, Any] = finite(
        {
            "format": FORMAT,
            "changed": [{"group": group, **of} for group in CHANGES for of in _changed(group, both)],
            "identical": same,
            "same_fits": _are_alike(both, OF_FITS),
            "shared_users": None if pairs is None else pairs[1],
            "old": _said(old),
            "new": _said(new),
            "moves": [move for move in moves if move is not None],
        }
    )
    return found


def _are_alike(both: tuple[Report, Report], keys: tuple[str, ...]) -> bool:
    """Tell whether both have the same values. keys: ALIKE or OF_FITS."""
    one, other = ([found_at(report, (key,)) for key in keys] for report in both)
    return one == other


def _said(report: UpliftReport) -> dict[str, Any]:
    """Return who a report is of, its verdict, and its numbers without an interval."""
    figures = report.figures
    kept = {key: figures.get(key) for key in ("data", "plugin", "made", "useful", "leaks", "users")}
    values = {key: found_at(figures, path) for key, (path, _) in PLAIN.items()}
    return {**kept, "verdict": verdict(figures), "plain": values}


def _changed(group: str, both: tuple[Report, Report]) -> Iterator[dict[str, str]]:
    """Yield the name and both values of all that differs."""
    for name, path in CHANGES[group].items():
        one, other = (found_at(report, path) for report in both)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from differences(one, other, NOT_SET if name == "[…]" else UNKNOWN)
        elif one != other:
            known = [_text(of) if not isinstance(of, dict) else "kept" for of in (one, other)]
            yield {"what": name, "old": known[0], "new": known[1]}


def differences(one: Report, other: Report, missing: str = UNKNOWN) -> Iterator[dict[str, str]]:
    """Yield the dotted name and both values, as text, of what differs between two nested tables.

    missing: what stands for a value that one does not have.
    """
    flat = [dict(_flat(of)) for of in (one, other)]
    for key in sorted({*flat[0], *flat[1]}):
        if flat[0].get(key) != flat[1].get(key):
            yield {"what": key, "old": _text(flat[0].get(key), missing), "new": _text(flat[1].get(key), missing)}


def _flat(settings: Report, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value that is no table, with its dotted name."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any, missing: str = UNKNOWN) -> str:
    if value is None:
        return missing
    return str(value) if isinstance(value, str | date) else json.dumps(value, default=str)  # TOML has dates


def _places(both: tuple[Report, Report]) -> Iterator[tuple[str, str, tuple[str | int, ...]]]:
    """Yield kind of slices, name and place of each uplift that both have; what is no slice has no kind.

    A kind with one value is all pairs, and left out.
    """
    for row in uplift_rows():
        yield "", row.label, row.path
    for kind, values in both[0]["slices"].items():
        for name in values if len(values) > 1 else ():
            if found_at(both[1], ("slices", kind, name)) is not None:
                yield title_of(kind), plain(name), ("slices", kind, name)


def _move(
    kind: str,
    name: str,
    path: tuple[str | int, ...],
    both: tuple[Report, Report],
    pairs: tuple[F64, int] | None,
    same: bool,
) -> dict[str, Any] | None:
    """Return what moved; None where one of the two has no such figure. pairs: of `_paired`; same: all main figures."""
    parts = [found_at(report, path) for report in both] if path else list(both)
    uplifts = [found_at(part, ("relative_uplift",)) if part else None for part in parts]
    if uplifts[0] is None or uplifts[1] is None:
        return None
    named = dict(zip(("old", "new"), parts, strict=True))
    found: dict[str, Any] = {side: {key: of[key] for key in ("relative_uplift", "ci95")} for side, of in named.items()}
    gap = uplifts[1] - uplifts[0]
    of_lists = path[:1] == ("lists",)
    if same and (not of_lists or found["old"] == found["new"]):
        half = 0.0 if found["old"] == found["new"] else float("nan")
    else:
        variance = _apart(parts, of_lists, both) if pairs is None else _of_pairs(pairs[0], parts, both)
        half = half_width(variance, satterthwaite(variance), 0.05) if variance else float("nan")
    low, high = gap - half, gap + half
    direction = "up" if low > 0 else "down" if high < 0 else ""
    difference = {"relative_uplift": gap, "ci95": [low, high]}
    found |= {"difference": difference, "paired": pairs is not None, "direction": direction}
    return {"kind": kind, "name": name, **found}


def _apart(parts: list[Any], of_lists: bool, both: tuple[Report, Report]) -> list[Part]:
    """Return the variance of two independent uplifts; nothing where one has none. parts: with `standard_error`."""
    found: list[Part] = []
    for part, report in zip(parts, both, strict=True):
        if part.get("standard_error") is None or part.get("degrees_of_freedom") is None:
            return []
        counted = _counted(part["variance"], report["lists"] if of_lists else report)
        # The users' degrees of freedom are what the others leave of Satterthwaite's.
        left = part["standard_error"] ** 4 / part["degrees_of_freedom"] - sum(of.variance**2 / of.df for of in counted)
        users = part["variance"]["users"]
        found += counted
        if users:
            found.append(Part(users, users**2 / left if left > 0 else float("inf")))
    return found


def _counted(variance: Mapping[str, float | None], repeats: Report) -> list[Part]:
    """Return the parts of fits and seeds. repeats: with `fits` and `seeds`."""
    numbers = {"fits": repeats["fits"], "seeds": len(repeats["seeds"])}
    return [Part(of, n - 1) for name, n in numbers.items() if (of := variance[name]) and n > 1]


def _of_pairs(squares: F64, parts: list[Any], both: tuple[Report, Report]) -> list[Part]:
    """Return the variance of two uplifts: that of the users together, that of fits and seeds of each report."""
    counted = (_counted(part["variance"], report) for part, report in zip(parts, both, strict=True))
    return [part_of_squares(squares), *(part for of in counted for part in of)]


def _paired(old: UpliftReport, new: UpliftReport, each_one: bool = False) -> tuple[F64, int] | None:
    """Return float64[users of any of both]: what each adds to the difference's variance; and how many are in both.

    None where a report has no users, both share none, or one has no interval. Ids of another log are other users.
    each_one: each user weighs one.
    """
    if old.figures["data"] != new.figures["data"]:
        return None
    one, other = (_influence(of, each_one) for of in (old, new))
    shared = one.keys() & other.keys()
    if not shared:
        return None
    every = [*one, *(other.keys() - one.keys())]
    gap = np.array([other.get(user, 0.0) - one.get(user, 0.0) for user in every])
    return gap**2 * ((len(every) - 1) / len(every)), len(shared)


def _influence(report: UpliftReport, each_one: bool) -> dict[Any, float]:
    """Return by user how far the uplift moves without them, by the jackknife; empty where that is not known."""
    part = report.figures["macro"] if each_one else report.figures
    if report.users is None or part["ci95"][0] is None:
        return {}
    weight = report.users["total"].to_numpy() if each_one else 1.0
    of = {name: report.users[name].to_numpy() / weight for name in ("without", "with")}
    total = of["without"].sum()
    share = of["without"] / total
    gain = of["with"] - of["without"] * (of["with"].sum() / total)
    return dict(zip(report.users["user"].to_pylist(), (gain / total / (1 - share)).tolist(), strict=True))
