"""Which of several plugins are worth serving? Each alone over the counters, all together, what each adds to the rest.

Arms are those of one plugin's report (`ranker.uplift.report`), and one more for each set of plugins: all of them, and
all without one. Fit k of a set has fit k of each of its plugins, and an arm of a set is fitted once, whoever asks for
it. What one adds is paired by users, seeds and fits, for both arms have the same fits of the rest.

Many plugins that know nothing make one that looks useful. So verdicts are corrected by Holm over the plugins, for each
of the two questions (useful alone? more than the rest has?). The p of a plugin alone is the larger one of its uplift
and of its uplift over missingness, for both must lie above zero. Each p is that of no gain: two-sided where there is
one, else 1. So a family of one plugin says what its own report does, and the chance that any of both questions is
answered wrongly with yes is at most 5 %. A plugin that leaks has no part in sets, and counts as one of the family.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from features.errors import PairliftError
from features.progress import progress_bar
from ranker.columns import Columns
from ranker.config import Config, plugin_of
from ranker.hashes import hash_value
from ranker.metrics.holm import LEVEL, SOURCE, holm
from ranker.metrics.interval import Interval, finite, paired_uplift, relative_uplift
from ranker.metrics.pair_accuracy import effective_users
from ranker.training.abreast import abreast
from ranker.training.arms import Arm, Arms, of_kind
from ranker.training.prepared import prepare
from ranker.uplift.explain.asked import row_labels
from ranker.uplift.measured import Fits, Judged, Measured
from ranker.uplift.report import METRIC, holds_for, is_trusted, known_alone, report_on
from ranker.uplift.result import UpliftReport
from ranker.uplift.said import as_text
from ranker.uplift.users import users_table
from ranker.uplift.verdict import doubts

#: of the `uplift.json` of several plugins. 2: `minimum_detectable_uplift` of each question
FORMAT = 2
#: the plugins whose columns an arm has; (MISSING, name) is the arm of what is missing of one plugin alone
Names = tuple[str, ...]
Report = Mapping[str, Any]
MISSING = ""
#: what the plugins' own reports share
SHARED = ("pairs_kind", "sampler", "split", "groups")


def family_report(
    config: Config, names: Sequence[str], lists: bool = True
) -> tuple[dict[str, Any], dict[str, UpliftReport]]:
    """Return the report of several plugins, and by name the whole report of each.

    Of the plugins' own reports `useful` is the corrected one, and `family` says so. Raises PairliftError for fewer than
    two names, or one that is there twice.
    """
    if len(set(names)) < len(names) or len(names) < 2:
        raise PairliftError(f"several plugins, each once, were expected, found {', '.join(names)}")
    for name in names:
        plugin_of(config, name)  # before the log is read
    arms = Arms.of(prepare(config))
    of_rows = row_labels(arms)
    measured = {name: report_on(arms, name, of_rows, lists) for name in names}
    reports = {name: report for name, (report, _) in measured.items()}
    family = family_of(arms, {name: fits for name, (_, fits) in measured.items()}, reports)
    first = reports[names[0]]
    family |= {key: first[key] for key in SHARED if key in first}
    family["settings"] = {**first["settings"], "plugin": {name: reports[name]["settings"]["plugin"] for name in names}}
    for name, report in reports.items():
        own = family["each"][name]
        own |= {key: report[key] for key in ("cost", "minimum_detectable_uplift", "lag")}
        report["family"] = {"plugins": len(names), "p_holm": own["alone"]["p_holm"]}
        report["useful"] = own["useful"]
        own["doubts"] = [f"{doubt.name}: {as_text(report, doubt.sentence)}" for doubt in doubts(report)]
    users = {name: users_table(arms, name, fits) for name, (_, fits) in measured.items()}
    return family, {name: UpliftReport.of(report, users[name]) for name, report in reports.items()}


def family_of(
    arms: Arms, fits: Mapping[str, list[Columns]], reports: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the figures of several plugins. fits: columns by plugin and fit. reports: with `leaks` and `controls`."""
    config, names = arms.prepared.config, tuple(fits)
    sound = tuple(name for name in names if not reports[name]["leaks"])
    judged = Judged.of(arms.groups["test"], of_kind(arms.pairs("test"), arms.kind))
    m = _measured(arms, fits, sound, judged)
    level = LEVEL / len(names)  # of the smallest p
    each = {name: _each(m, name, fits[name], reports[name], sound, level) for name in names}
    _correct(each, reports)
    seeds, n = list(config.uplift.seeds), len(fits[names[0]])
    together = relative_uplift(m[()].right, m[sound].right) if len(sound) > 1 else None
    found: dict[str, Any] = finite(
        {
            "format": FORMAT,
            "metric": METRIC,
            "data": config.name,
            "plugins": list(names),
            "fits": n,
            "fit_seeds": config.uplift.fit_seeds[:n],
            "seeds": seeds,
            "holds_for": holds_for(n, len(seeds)),
            "correction": {"method": "Holm", "source": SOURCE, "level": LEVEL, "plugins": len(names)},
            "pairs": len(judged.pairs),
            "users": judged.n_users,
            "effective_users": effective_users(m[()].total),
            "without": m[()].accuracy,
            "together": None if together is None else _part(m[()], m[sound], together) | {"plugins": list(sound)},
            "each": each,
        }
    )
    return found


def _each(
    m: Mapping[Names, Measured], name: str, fits: list[Columns], report: Report, sound: Names, level: float
) -> dict[str, Any]:
    """Return the figures of one plugin, not yet corrected; `adds` is None where there are no sets with it.

    level: of the smallest uplift that is found, which is not below what the correction asks.
    """
    alone = relative_uplift(m[()].right, m[name,].right)
    beyond = relative_uplift(m[MISSING, name].right, m[name,].right)
    found: dict[str, Any] = {
        "columns": list(fits[0].names),
        "leaks": report["leaks"],
        "alone": _part(m[()], m[name,], alone)
        | {"p": max(p_of_gain(alone), p_of_gain(beyond)), "minimum_detectable_uplift": alone.detectable_at(level)},
        "beyond": beyond.reported(),
        "adds": None,
    }
    if name in sound and len(sound) > 1:
        rest = m[_less(sound, name)]
        adds = paired_uplift(rest.right, m[sound].right)
        smallest = adds.detectable_at(level)
        found["adds"] = _part(rest, m[sound], adds) | {"p": p_of_gain(adds), "minimum_detectable_uplift": smallest}
    return found


def _part(without: Measured, with_: Measured, interval: Interval) -> dict[str, Any]:
    return {"without": without.accuracy, "with": with_.accuracy} | interval.reported()


def p_of_gain(interval: Interval) -> float:
    """Return the p of no gain: two-sided where there is one, else 1; 1 too where nothing is known."""
    return interval.p_value() if interval.uplift > 0 and interval.parts else 1.0


def _correct(each: dict[str, dict[str, Any]], reports: Mapping[str, Report]) -> None:
    """Write Holm's p and the verdicts beside the figures."""
    trusted = {name: is_trusted(reports[name]) for name in each}
    alone = holm([of["alone"]["p"] if trusted[name] else 1.0 for name, of in each.items()])
    adds = holm([of["adds"]["p"] if of["adds"] and trusted[name] else 1.0 for name, of in each.items()])
    for of, p_alone, p_adds in zip(each.values(), alone, adds, strict=True):
        of["alone"]["p_holm"] = p_alone
        of["useful"] = p_alone <= LEVEL
        of["more"] = p_adds <= LEVEL
        if of["adds"]:
            of["adds"]["p_holm"] = p_adds


def _less(names: Names, name: str) -> Names:
    return tuple(other for other in names if other != name)


def _measured(arms: Arms, fits: Mapping[str, list[Columns]], sound: Names, judged: Judged) -> dict[Names, Measured]:
    """Return the arm of each set of plugins that is asked for, and of (MISSING, name) of each plugin."""
    sets: list[Names] = [(), *((name,) for name in fits)]
    if len(sound) > 1:
        sets += [sound, *(_less(sound, name) for name in sound)]
    columns: dict[Names, list[Columns]] = {names: _joined(fits, names) for names in sets}
    known = {name: known_alone(of[0]) for name, of in fits.items()}
    columns |= {(MISSING, name): [of] for name, of in known.items() if of is not None}
    found = {key: Measured.of(of, judged) for key, of in _fitted(arms, columns).items()}
    return found | {(MISSING, name): found[()] for name, of in known.items() if of is None}


def _joined(fits: Mapping[str, list[Columns]], names: Names) -> list[Columns]:
    """Return the columns of a set by fit; a set of none has one fit, without any."""
    if not names:
        return [Columns()]
    return [Columns.joined(of) for of in zip(*(fits[name] for name in names), strict=True)]


def _fitted(arms: Arms, columns: Mapping[Names, list[Columns]]) -> dict[Names, Fits]:
    """Fit the boosters of every arm, each of its fits with each seed, or find them."""
    wanted: list[tuple[Names, int, Callable[[], Arm]]] = []
    for key, of_fits in columns.items():
        for k, of in enumerate(of_fits):
            wanted += [
                (key, k, partial(arms.fit, _label(key, k), of, seed)) for seed in arms.prepared.config.uplift.seeds
            ]
    found: dict[Names, Fits] = {key: [[] for _ in of_fits] for key, of_fits in columns.items()}
    with progress_bar(total=len(wanted), desc="fitting sets of plugins", unit="fit") as bar:
        for (key, k, _), arm in zip(wanted, abreast([fit for *_, fit in wanted]), strict=True):
            found[key][k].append(arm)
            bar.update()
    return found


def _label(key: Names, k: int) -> str:
    """Return the name of an arm's stage; of one plugin that of its own report, so that its boosters are found."""
    if not key:
        return "without"
    if key[0] == MISSING:
        return f"{key[1]}-missingness"
    return f"{key[0]}-fit{k}" if len(key) == 1 else f"{len(key)}-plugins-{hash_value(key)[:16]}-fit{k}"
