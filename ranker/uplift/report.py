"""Is a feature worth serving? Two rankers, with and without a plugin's columns, all else equal; and the controls.

Equal: rows, pairs, weights, parameters, seeds, stopping rule and maximum trees. Each arm stops by itself on the same
validation slice. `with` adds the plugin's columns to the counters and attributes alone, whatever else is served. The
plugin is fitted several times, and each fit meets each seed of the boosters.

uplift_report   the log of a TOML, the plugin's fits, the leak controls      (fits are resumed)
report_of       the boosters of all arms, and every figure of pairs          (boosters are resumed)
list_uplift     the wanted parts of two arms, and what their lists are worth (boosters are resumed)
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from features.pairing.groups import Groups
from features.pairing.pairs import Pairs
from features.plugin import FeaturePlugin, lag_of
from features.progress import progress_bar
from features.schema import F32, SAMPLED, Bool
from ranker.columns import Columns
from ranker.config import Config, plugin_of
from ranker.metrics.interval import finite, relative_uplift
from ranker.metrics.pair_accuracy import effective_users, pair_accuracy
from ranker.metrics.simple import events_before
from ranker.settings import BoosterSettings
from ranker.training.abreast import abreast
from ranker.training.arms import SHOWN, Arm, Arms
from ranker.training.beside import Wanted, fit_beside
from ranker.training.booster import at_cap
from ranker.training.measured import shown_of
from ranker.training.plugins import head_losses, plugin_seconds, plugin_stage
from ranker.training.prepared import Prepared, prepare
from ranker.uplift.described import described
from ranker.uplift.explain.ages import age_labels
from ranker.uplift.explain.asked import row_labels
from ranker.uplift.explain.margins import calibration, contributions
from ranker.uplift.leaks import Control, find_leaks
from ranker.uplift.lists import list_uplift
from ranker.uplift.measured import LISTED, Fits, Judged, Measured, compared, listed, uplift_of
from ranker.uplift.shown import shown_figures
from ranker.uplift.shrunk import with_shrunk
from ranker.uplift.slices import slices

METRIC = "PairAccuracy, ties as one half"
#: of `uplift.json`. 2: ties as one half; fits of the plugin; leak controls. 3: `lists`. 4: `heads`. 5: `split`, `cost`,
#: `periods`, `settings`; slices have `shrunk`. 6: `calibration`, `contributions`; slices by day and in SQL.
#: 7: `cost` has `memory_bytes`
FORMAT = 7


def uplift_report(config: Config, name: str, lists: bool = True) -> dict[str, Any]:
    """Return the whole report of a plugin as what `uplift.json` holds. Fits are resumed where inputs are unchanged.

    lists: False leaves out what it costs most to measure beside the pairs, the lists.
    """
    plugin_of(config, name)  # before the log is read
    arms = Arms.of(prepare(config))
    return report_on(arms, name, row_labels(arms), lists)[0]


def report_on(
    arms: Arms, name: str, of_rows: Mapping[str, Any], lists: bool = True
) -> tuple[dict[str, Any], list[Columns]]:
    """Return the whole report of a plugin on rows that several reports may share, and its columns by fit.

    of_rows: `row_labels`, made before fits take long, for they refuse what the log cannot answer.
    """
    prepared = arms.prepared
    plugins = _fits(prepared, name)
    fits = [arms.plugin_columns(name, plugin) for plugin in plugins]
    controls = find_leaks(prepared, name, plugins[0], arms.groups, fits)
    more = {"lag": lag_of(plugins[0]).text, "heads": _heads(prepared, name, plugins)}
    of_rows = {**of_rows, **age_labels(arms, name, plugins[0], fits[0])}
    report = report_of(arms, name, fits, controls, of_rows) | more
    report |= finite(described(prepared, name, arms.groups, fits[0]))
    if report["leaks"] or not lists:
        why = "the plugin leaks" if report["leaks"] else "they were not asked for"
        return report | {"lists": {"remark": f"not measured, for {why}"}}, fits
    return report | {"lists": finite(list_uplift(prepared, name, plugins, fits))}, fits


def _fits(prepared: Prepared, name: str) -> list[FeaturePlugin]:
    """Fit the plugin once, then the other times (and once more, for a control) side by side where that takes long."""
    config = prepared.config
    first, *rest = config.uplift.fit_seeds
    fitted = [plugin_stage(prepared, name, first)]
    beside = [Wanted(config=config, name=name, seed=seed) for seed in rest]
    beside.append(Wanted(config=config, name=name, seed=first, cut=True))
    fit_beside(beside, plugin_seconds(config, name, first))
    return fitted + [plugin_stage(prepared, name, seed) for seed in rest]


def _heads(prepared: Prepared, name: str, plugins: list[FeaturePlugin]) -> dict[str, list[float | None]]:
    """Return the mean loss of each head on the events of the test, of each fit: see `features.plugin.HeadsPlugin`."""
    seeds = prepared.config.uplift.fit_seeds
    found = [head_losses(prepared, name, plugin, seed) for plugin, seed in zip(plugins, seeds, strict=True)]
    heads: dict[str, list[float | None]] = finite({head: [of[head] for of in found] for head in found[0]})
    return heads


def report_of(
    arms: Arms, name: str, fits: list[Columns], controls: dict[str, Control], of_rows: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the report without its lists.

    fits: the plugin's columns, for each of its fits; controls: what `find_leaks` found; of_rows: as in `report_on`.
    """
    config = arms.prepared.config
    boosters = _fit_all(arms, name, fits)
    leaks = sum(len(control.leaks) for control in controls.values())
    report: dict[str, Any] = {
        "format": FORMAT,
        "metric": METRIC,
        "data": config.name,
        "plugin": name,
        "columns": list(fits[0].names),
        "fits": len(fits),
        "fit_seeds": config.uplift.fit_seeds[: len(fits)],
        "seeds": list(config.uplift.seeds),
        "holds_for": holds_for(len(fits), len(config.uplift.seeds)),
        "leaks": leaks,
        "controls": {kind: control.reported() for kind, control in controls.items()},
    }
    trusted = is_trusted(report)
    pairs = arms.pairs("test")
    shown, drawn = pairs.select(~pairs.sampled), pairs.select(pairs.sampled)
    main = (SHOWN, shown) if len(shown) else (SAMPLED, drawn)
    sampler = {"sampler": config.pairing.sampler} if len(drawn) else {}
    report |= {"pairs_kind": main[0]} | sampler | _figures(arms, boosters, main[1], fits[0], trusted, of_rows)
    if len(shown) and len(drawn):  # never mixed: drawn negatives have figures of their own
        report[SAMPLED] = _figures(arms, boosters, drawn, fits[0], trusted, of_rows)
    found: dict[str, Any] = finite(report)
    return found


def is_trusted(report: Mapping[str, Any]) -> bool:
    """Return whether no leak control of a report found one, and none could not be run."""
    return not report["leaks"] and all(control["groups"] for control in report["controls"].values())


def holds_for(fits: int, seeds: int) -> str:
    """Return in words what the interval is about."""
    new = ["users", *(["fits of the plugin"] if fits > 1 else []), *(["seeds of the boosters"] if seeds > 1 else [])]
    this = [*(["this one fit of the plugin"] if fits == 1 else []), *(["this one seed"] if seeds == 1 else [])]
    what = "other " + (", ".join(new[:-1]) + " and " + new[-1] if len(new) > 1 else new[0])
    return what + (f", but for {' and '.join(this)} alone" if this else "") + ", and this training log"


def _fit_all(arms: Arms, name: str, fits: list[Columns]) -> dict[str, Fits]:
    """Fit the boosters of every arm: `with` for each fit and seed, the others (of the first fit) for each seed.

    Where the plugin's values are missing nowhere, or everywhere, the arm of missingness is the arm without.
    """
    seeds, first, known = arms.prepared.config.uplift.seeds, fits[0], known_alone(fits[0])
    boosters: dict[str, Fits] = {arm: [[]] for arm in ("without", "shuffled", "missingness")}
    boosters["with"] = [[] for _ in fits]

    def shuffled(seed: int) -> Arm:
        values = {part: _shuffle(values, arms.groups[part], seed) for part, values in first.values.items()}
        return arms.fit(f"{name}-shuffled", replace(first, values=values), seed)

    wanted: list[tuple[str, int, Callable[[], Arm]]] = []
    for seed in seeds:
        wanted.append(("without", 0, partial(arms.fit, "without", Columns(), seed)))
        for k, columns in enumerate(fits):
            wanted.append(("with", k, partial(arms.fit, f"{name}-fit{k}", columns, seed)))
        wanted.append(("shuffled", 0, partial(shuffled, seed)))
        if known is not None:
            wanted.append(("missingness", 0, partial(arms.fit, f"{name}-missingness", known, seed)))
    with progress_bar(total=len(wanted), desc="fitting all arms", unit="fit") as bar:
        for (arm, place, _), fitted in zip(wanted, abreast([fit for *_, fit in wanted]), strict=True):
            boosters[arm][place].append(fitted)
            bar.update()
    return boosters if known is not None else boosters | {"missingness": boosters["without"]}


def known_alone(columns: Columns) -> Columns | None:
    """Return 1 for each value that is known, and NaN for the others; None where they are missing nowhere or everywhere.

    What a ranker gains by these columns, the values have no part in.
    """
    missing = {part: np.isnan(values) for part, values in columns.values.items()}
    if len(np.unique(np.concatenate(list(missing.values())), axis=0)) < 2:
        return None
    ones = {part: np.where(nan, np.float32(np.nan), np.float32(1)) for part, nan in missing.items()}
    return replace(columns, values=ones)


def _shuffle(values: F32, groups: Groups, seed: int) -> F32:
    """Permute the rows of a plugin within each group: what is left knows the group, and nothing of its items.

    Columns that are equal for all rows of each group are permuted between the groups instead.
    """
    group, rng = groups.requests.row_request(), np.random.default_rng(seed)
    shuffled = values[np.lexsort((rng.random(len(group)), group))]
    first = groups.requests.offsets[group]
    same = (values == values[first]) | (np.isnan(values) & np.isnan(values[first]))
    constant = same.all(axis=0)
    between = groups.requests.offsets[rng.permutation(len(groups.requests))[group]]
    shuffled[:, constant] = values[between][:, constant]
    return shuffled


def _figures(
    arms: Arms, boosters: dict[str, Fits], pairs: Pairs, columns: Columns, trusted: bool, of_rows: Mapping[str, Any]
) -> dict[str, Any]:
    """Return every figure of the report for one kind of pairs. trusted: no control found or missed a leak."""
    groups = arms.groups["test"]
    judged = Judged.of(groups, pairs)
    m = {arm: Measured.of(fits, judged) for arm, fits in boosters.items()}
    without, with_ = m["without"], m["with"]
    main = relative_uplift(without.right, with_.right)
    missing = _missingness(boosters, m, judged, np.asarray(~np.isnan(columns.values["test"]).all(axis=1)))
    beyond = relative_uplift(m["missingness"].right, with_.right)
    shuffled = relative_uplift(without.right, m["shuffled"].right)
    whole = compared(without, with_)
    by_label = slices(arms.prepared, boosters["without"], boosters["with"], judged, of_rows)
    return {
        "pairs": len(pairs),
        "users": judged.n_users,
        "effective_users": effective_users(without.total),
        **whole,
        "minimum_detectable_uplift": main.detectable,
        "useful": bool(trusted and main.low > 0 and beyond.low > 0),
        "macro": _macro(without, with_),
        "pair_accuracy_catboost": _catboost(without, with_),
        "tie_share": {"without": without.tie_share, "with": with_.tie_share},
        "missingness": missing | {"beyond": beyond.reported()},
        "shuffled": {
            "pair_accuracy": m["shuffled"].accuracy,
            **shuffled.reported(),
            "above_zero": bool(shuffled.low > 0),
        },
        **_spread(without, with_),
        "trees": {arm: [[b.trees for b in of_seeds] for of_seeds in fits] for arm, fits in boosters.items()},
        "most_trees": arms.prepared.config.booster.trees,
        "at_cap": {arm: _at_cap(arms.prepared.config.booster, fits) for arm, fits in boosters.items()},
        **_listed(boosters, judged),
        **_simple(arms, boosters, pairs, columns),
        "slices": with_shrunk(finite(by_label), whole),
        "importance": _importance(boosters["with"]),
        "contributions": contributions(boosters["with"][0][0], arms.rows("test", columns), pairs),
        "calibration": {arm: calibration(boosters[arm], pairs) for arm in ("without", "with")},
    }


def _macro(without: Measured, with_: Measured) -> dict[str, Any]:
    """Return the figure in which each user weighs one."""
    one, other = without.by_user, with_.by_user
    return {"without": float(one.mean()), "with": float(other.mean())} | relative_uplift(one, other).reported()


def _catboost(without: Measured, with_: Measured) -> dict[str, Any]:
    """Return the figure with ties wrong: a column of noise that breaks ties "gains" by it."""
    accuracy = {"without": without.accuracy_catboost, "with": with_.accuracy_catboost}
    return accuracy | relative_uplift(without.catboost, with_.catboost).reported()


def _missingness(boosters: dict[str, Fits], m: dict[str, Measured], judged: Judged, known: Bool) -> dict[str, Any]:
    """Return what the columns' being known is worth without their values, and the uplift by who is known.

    That a vector is known says that an item is old. known: bool[n] of the test's rows, any column has a value.
    """
    sides = known[judged.pairs.winner].astype(int) + known[judged.pairs.loser]
    by_sides = {
        name: uplift_of(boosters["without"], boosters["with"], judged.only(sides == n))
        for n, name in ((2, "both_sides"), (1, "one_side"), (0, "no_side"))
    }
    interval = relative_uplift(m["without"].right, m["missingness"].right)
    return {"pair_accuracy": m["missingness"].accuracy} | interval.reported() | by_sides


def _spread(without: Measured, with_: Measured) -> dict[str, float | None]:
    """Return the standard deviation of the uplift over fits (mean of the seeds) and over seeds (mean of the fits)."""
    right, base = with_.right.sum(axis=2), without.right.sum(axis=2)[0]

    def sd(values: Any) -> float | None:
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    return {"fit_sd": sd(right.mean(axis=1) / base.mean() - 1), "seed_sd": sd(right.mean(axis=0) / base - 1)}


def _at_cap(settings: BoosterSettings, fits: Fits) -> int:
    """Return how many fits of an arm ended by the most trees, not by themselves."""
    return sum(at_cap(settings, arm.trees) for of_seeds in fits for arm in of_seeds)


def _listed(boosters: dict[str, Fits], judged: Judged) -> dict[str, dict[str, float]]:
    by_arm = {arm: listed(boosters[arm], judged) for arm in ("without", "with")}
    return {name: {arm: by_arm[arm][name] for arm in by_arm} for name in LISTED}


def _simple(arms: Arms, boosters: dict[str, Fits], pairs: Pairs, columns: Columns) -> dict[str, Any]:
    """Return PairAccuracy of scores that learn nothing: random, popularity as of the group, each column alone.

    A column is judged on the pairs of which both sides are known, and their share of all pairs' weight stands beside;
    and so is the order that was shown, where the log has positions (`shown_figures`).
    """
    groups = arms.groups["test"]
    random = np.random.default_rng(0).random(len(groups.grade))
    popularity = events_before(arms.prepared.log, arms.prepared.state, groups)
    alone, total = {}, float(pairs.weight.sum(dtype=np.float64))
    for name, value in zip(columns.names, columns.values["test"].T, strict=True):
        known = ~np.isnan(value)
        both = pairs.select(known[pairs.winner] & known[pairs.loser])
        share = float(both.weight.sum(dtype=np.float64)) / total if total else float("nan")
        accuracy = pair_accuracy(value.astype(np.float64), both).value
        alone[name] = {"pair_accuracy": accuracy, "comparable": share}
    return {
        "random": pair_accuracy(random, pairs).value,
        "popularity": pair_accuracy(popularity, pairs).value,
        "column_alone": alone,
        "shown_order": shown_figures(shown_of(arms.prepared, groups, pairs), boosters, {"popularity": popularity}),
    }


def _importance(fits: Fits) -> dict[str, float]:
    """Return each column's share of the gain, averaged over fits and seeds, largest first."""
    boosters = [arm.booster for of_seeds in fits for arm in of_seeds]
    gains = np.mean([b.feature_importance("gain") for b in boosters], axis=0)
    shares = gains / max(gains.sum(), 1e-12)
    columns = boosters[0].feature_name()
    return {columns[k]: float(shares[k]) for k in np.argsort(-shares)}
