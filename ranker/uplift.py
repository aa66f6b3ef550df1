"""Is a feature worth serving? Two rankers, with and without a plugin's columns, all else equal; and the controls.

Equal: rows, pairs, weights, parameters, seeds, stopping rule and maximum trees. Each arm stops by itself on the same
validation slice. `with` adds the plugin's columns to the counters and attributes alone, whatever else is served.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from features.counters import Timeline
from features.keys import key_codes
from features.pairs import Groups, Pairs
from features.plans import make_plans
from features.schema import F32, F64, I64, SAMPLED, Bool
from features.spec import Counter, Span
from ranker.arms import SHOWN, Arm, Arms
from ranker.config import Config
from ranker.interval import Interval, relative_uplift
from ranker.metrics import NDCG_AT, effective_users, right_by_user, shown_metrics
from ranker.objective import pair_accuracy
from ranker.prepare import Prepared, plugin_stage, prepare

#: what stands beside PairAccuracy: its key in the report, and its name in the table
LISTED = {f"ndcg@{NDCG_AT}": f"NDCG@{NDCG_AT}", "map": "MAP", "mrr": "MRR", "auc_by_user": "AUC by user"}
#: an uplift of this many standard errors is seen with a chance of 80 % at the 5 % level
DETECTABLE = 2.8
LEAST_SEEDS = 5


@dataclass(frozen=True, slots=True)
class Measured:
    """One arm on the test's pairs. right, half (ties as ½): float64[seeds, users]; total: float64[users].

    listed: NDCG, MAP, MRR and AUC by user (`metrics.list_metrics`), averaged over seeds.
    """

    right: F64
    half: F64
    total: F64
    tie_share: float
    accuracy_by_seed: list[float]
    listed: dict[str, float]
    trees: list[int]

    @property
    def accuracy(self) -> float:
        """PairAccuracy, ties wrong."""
        return float(self.right.sum() / self.total.sum() / len(self.right))


def measure(arms: list[Arm], groups: Groups, pairs: Pairs, user: I64, n_users: int) -> Measured:
    """Evaluate one arm's fits (one for each seed). user: int64[n], the row's user in [0, n_users)."""
    by_seed = [right_by_user(arm.scores, pairs, user, n_users) for arm in arms]
    right = np.stack([r for r, _, _ in by_seed])
    tied = np.stack([t for _, t, _ in by_seed])
    total = by_seed[0][2]
    return Measured(
        right,
        right + tied / 2,
        total,
        float(tied.sum() / total.sum() / len(arms)),
        [float(r.sum() / total.sum()) for r, _, _ in by_seed],
        _listed(arms, groups, shown=not pairs.sampled.any()),
        [arm.trees for arm in arms],
    )


def _listed(arms: list[Arm], groups: Groups, shown: bool) -> dict[str, float]:
    found = [shown_metrics(arm.scores, groups, shown) for arm in arms]
    return {name: float(np.mean([f[name] for f in found])) for name in LISTED}


def uplift_report(config: Config, name: str) -> dict[str, Any]:
    """Return the whole report of a plugin as what `uplift.json` holds. Fits are resumed where inputs are unchanged."""
    prepared = prepare(config)
    plugin = plugin_stage(prepared, name, config.uplift.seeds[0])
    arms = Arms.of(prepared)
    columns = arms.plugin_columns(name, plugin)
    names = [f"{name}__{column}" for column in plugin.columns]
    fits = _fit_all(arms, name, names, columns)
    report: dict[str, Any] = {
        "data": config.name,
        "plugin": name,
        "columns": names,
        "seeds": list(config.uplift.seeds),
        "plugin_fits": "one fit of the plugin for all seeds",
        "draws": config.uplift.draws,
    }
    pairs = arms.pairs("test")
    shown, drawn = pairs.select(~pairs.sampled), pairs.select(pairs.sampled)
    main = (SHOWN, shown) if len(shown) else (SAMPLED, drawn)
    report |= {"pairs_kind": main[0]} | _figures(arms, fits, main[1], columns["test"], names)
    if len(shown) and len(drawn):  # never mixed: drawn negatives have figures of their own
        report[SAMPLED] = _figures(arms, fits, drawn, columns["test"], names)
    told: dict[str, Any] = _finite(report)
    return told


def _finite(value: Any) -> Any:
    """Replace what is not a number by None, at any depth: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _fit_all(arms: Arms, name: str, names: list[str], columns: dict[str, F32]) -> dict[str, list[Arm]]:
    seeds = arms.prepared.config.uplift.seeds
    fits: dict[str, list[Arm]] = {"without": [], "with": [], "shuffled": []}
    with tqdm(total=3 * len(seeds), desc="fitting both arms and the control", unit="fit") as bar:
        for seed in seeds:
            shuffled = {part: _shuffle(values, arms.groups[part], seed) for part, values in columns.items()}
            none = {part: values[:, :0] for part, values in columns.items()}
            for arm, label, own, given in (
                ("without", "without", [], none),
                ("with", name, names, columns),
                ("shuffled", f"{name}-shuffled", names, shuffled),
            ):
                fits[arm].append(arms.fit(label, own, given, seed))
                bar.update()
    return fits


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


def _figures(arms: Arms, fits: dict[str, list[Arm]], pairs: Pairs, columns: F32, names: list[str]) -> dict[str, Any]:
    """Return every figure of DESIGN section 8 for one kind of pairs."""
    groups = arms.groups["test"]
    row_user = groups.requests.user[groups.requests.row_request()].astype(np.int64)
    with_pairs, user_code = np.unique(row_user[pairs.winner], return_inverse=True)
    user = np.full(len(row_user), -1, np.int64)
    user[pairs.winner] = user_code
    m = {arm: measure(fit, groups, pairs, user, len(with_pairs)) for arm, fit in fits.items()}
    draws = arms.prepared.config.uplift.draws
    wrong = relative_uplift(m["without"].right, m["with"].right, draws)
    half = relative_uplift(m["without"].half, m["with"].half, draws)
    control = relative_uplift(m["without"].right, m["shuffled"].right, draws)
    by_seed = np.divide(m["with"].accuracy_by_seed, m["without"].accuracy_by_seed) - 1
    useful = wrong.low > 0 and half.low > 0
    return {
        "metric": "PairAccuracy",
        "pairs": len(pairs),
        "users": len(with_pairs),
        "effective_users": effective_users(m["without"].total),
        "without": m["without"].accuracy,
        "with": m["with"].accuracy,
        **wrong.told(),
        "minimum_detectable_uplift": DETECTABLE * wrong.error,
        "useful": bool(useful),
        "ties_half": _ties_half(m, half),
        "tie_share": {arm: m[arm].tie_share for arm in ("without", "with")},
        "macro": _macro(m, draws),
        "seed_sd": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
        "trees": {arm: m[arm].trees for arm in ("without", "with", "shuffled")},
        "shuffled": {
            "pair_accuracy": m["shuffled"].accuracy,
            **control.told(),
            "contains_zero": bool(control.low <= 0 <= control.high),
        },
        **{name: {arm: m[arm].listed[name] for arm in ("without", "with")} for name in LISTED},
        **_simple(arms.prepared, groups, pairs, columns, names),
        "slices": _slices(arms, fits, pairs, user, len(with_pairs)),
        "importance": _importance(fits["with"]),
    }


def _ties_half(m: dict[str, Measured], half: Interval) -> dict[str, Any]:
    accuracy = {arm: float(np.mean(m[arm].half.sum(axis=1)) / m[arm].total.sum()) for arm in ("without", "with")}
    return accuracy | half.told()


def _macro(m: dict[str, Measured], draws: int) -> dict[str, Any]:
    """Return the figure in which each user weighs one."""
    without, with_ = (m[arm].right / m[arm].total for arm in ("without", "with"))
    interval = relative_uplift(without, with_, draws)
    return {"without": float(without.mean()), "with": float(with_.mean())} | interval.told()


def _simple(prepared: Prepared, groups: Groups, pairs: Pairs, columns: F32, names: list[str]) -> dict[str, Any]:
    """Return PairAccuracy of scores that learn nothing: random, popularity as of the group, each column alone."""
    random = np.random.default_rng(0).random(len(groups.grade))
    popularity = popularity_as_of(prepared, groups)
    alone = {name: pair_accuracy(columns[:, k].astype(np.float64), pairs)[0] for k, name in enumerate(names)}
    return {
        "random": pair_accuracy(random, pairs)[0],
        "popularity": pair_accuracy(popularity, pairs)[0],
        "column_alone": alone,
    }


def popularity_as_of(prepared: Prepared, groups: Groups) -> F64:
    """Return float64[n]: how many events each candidate had before its group's as_of."""
    counter = Counter(("item",), "impression", Span("all", 0), "count")
    plan = make_plans((counter,))[0]
    timeline = Timeline.build(plan, prepared.log, prepared.catalog, prepared.config.grade_names)
    r = groups.requests
    owner = r.row_request()
    rows, code, _ = key_codes(plan.key, prepared.catalog, r.user[owner], r.item, r.surface[owner])
    return timeline.values(plan, rows, code, r.as_of[owner])[:, 0].astype(np.float64)


def _slices(arms: Arms, fits: dict[str, list[Arm]], pairs: Pairs, user: I64, n_users: int) -> dict[str, dict[str, Any]]:
    """Return the uplift by grade pair, surface, user activity and the winner's popularity as of the group."""
    groups, prepared = arms.groups["test"], arms.prepared
    owner = groups.requests.row_request()[pairs.winner]
    names = (SAMPLED, *prepared.config.grade_names)
    winner, loser = (np.array(names)[groups.grade[rows] + 1] for rows in (pairs.winner, pairs.loser))
    grade_pair = np.char.add(np.char.add(winner, " > "), loser)
    start, stop = prepared.state.histories.before(groups.requests.user, groups.requests.as_of)
    labels = {
        "grade_pair": grade_pair,
        "user_activity": _bucket((stop - start)[owner], "events"),
        "winner_popularity": _bucket(popularity_as_of(prepared, groups)[pairs.winner].astype(np.int64), "events"),
    }
    if prepared.catalog.surfaces:
        surfaces = np.array([*prepared.catalog.surfaces, "none"])
        labels["surface"] = surfaces[groups.requests.surface[owner]]
    return {
        kind: {
            str(value): _slice(fits, groups, pairs.select(label == value), user, n_users, prepared.config.uplift.draws)
            for value in np.unique(label)
        }
        for kind, label in labels.items()
    }


def _bucket(count: I64, unit: str) -> Any:
    """Return labels of counts: none, then up to 9, 99, 999 … (they sort as text)."""
    digits = np.where(count > 0, np.floor(np.log10(np.maximum(count, 1))).astype(int) + 1, 0)
    return np.array([f"{d}: 0 {unit}" if d == 0 else f"{d}: {10 ** (d - 1)}-{10**d - 1} {unit}" for d in digits])


def _slice(
    fits: dict[str, list[Arm]], groups: Groups, pairs: Pairs, user: I64, n_users: int, draws: int
) -> dict[str, Any]:
    def right(arm: str) -> F64:
        return np.stack([right_by_user(f.scores, pairs, user, n_users)[0] for f in fits[arm]])

    without, with_ = right("without"), right("with")
    total = float(pairs.weight.sum(dtype=np.float64))
    present: Bool = np.bincount(user[pairs.winner], minlength=n_users) > 0
    interval = relative_uplift(without[:, present], with_[:, present], draws)
    return {
        "pairs": len(pairs),
        "users": int(present.sum()),
        "without": float(without.sum() / total / len(without)),
        "with": float(with_.sum() / total / len(with_)),
    } | interval.told()


def _importance(arms: list[Arm]) -> dict[str, float]:
    """Return each column's share of the gain, averaged over seeds, largest first."""
    gains = np.mean([a.booster.feature_importance("gain") for a in arms], axis=0)
    shares = gains / max(gains.sum(), 1e-12)
    order = np.argsort(-shares)
    columns = arms[0].booster.feature_name()
    return {columns[k]: float(shares[k]) for k in order}


def as_table(report: dict[str, Any]) -> str:
    """Return the report's main figures as text."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:+.2f} %"

    def number(value: float | None) -> str:
        return f"{'-':>9}" if value is None else f"{value:9.4f}"

    def interval(part: dict[str, Any]) -> str:
        return f"{percent(part['relative_uplift'])}   95 % [{percent(part['ci95'][0])}, {percent(part['ci95'][1])}]"

    half, macro = report["ties_half"], report["macro"]
    alone = ", ".join(f"{n} {v:.4f}" for n, v in list(report["column_alone"].items())[:4])
    verdict = "useful" if report["useful"] else "not shown to be useful"
    seed_sd = "-" if report["seed_sd"] is None else f"{100 * report['seed_sd']:.2f} %"
    lines = [
        f"{report['data']}: {report['plugin']} is {verdict} ({report['pairs']:,} {report['pairs_kind']} pairs, "
        f"{report['users']:,} users, {report['effective_users']:.0f} effective)",
        "",
        f"{'':22}{'without':>9}{'with':>9}   uplift",
        f"{'PairAccuracy':22}{report['without']:9.4f}{report['with']:9.4f}   {interval(report)}",
        f"{'  ties as one half':22}{half['without']:9.4f}{half['with']:9.4f}   {interval(half)}",
        f"{'  each user weighs one':22}{macro['without']:9.4f}{macro['with']:9.4f}   {interval(macro)}",
        f"{'  columns shuffled':22}{'':9}{report['shuffled']['pair_accuracy']:9.4f}   {interval(report['shuffled'])}",
        *(f"{told:22}{number(report[k]['without'])}{number(report[k]['with'])}" for k, told in LISTED.items()),
        f"{'share of ties':22}{report['tie_share']['without']:9.4f}{report['tie_share']['with']:9.4f}",
        f"{'trees (mean)':22}{np.mean(report['trees']['without']):9.0f}{np.mean(report['trees']['with']):9.0f}",
        "",
        f"random {report['random']:.4f}   popularity {report['popularity']:.4f}   alone: {alone}",
        f"{len(report['seeds'])} seeds, sd of the uplift over seeds {seed_sd}; "
        f"smallest uplift that this test could show: {percent(report['minimum_detectable_uplift'])}",
        *_doubts(report),
    ]
    return "\n".join(lines)


def _doubts(report: dict[str, Any]) -> list[str]:
    """Return what speaks against trusting the number."""
    found = []
    if not report["shuffled"]["contains_zero"]:
        found.append(
            "WARNING: the shuffled columns' interval leaves zero out: do not trust this uplift; more seeds, or a leak?"
        )
    if len(report["seeds"]) < LEAST_SEEDS:
        found.append(f"WARNING: {len(report['seeds'])} seeds are few; at least {LEAST_SEEDS} are advised")
    if report["relative_uplift"] is None:
        found.append("WARNING: the arm without the column orders no pair right: there is nothing to compare with")
    return found
