"""The experiments of the `trust` benchmark: simulated arms of known effect, read as `pairlift ab` reads a log.

Users differ by a heavy-tailed rate, see impressions and click on some; an arm changes the chance of a click. Figures of
users go through the product's own `against`, as DuckDB would give their means and covariances (a test says it does).
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.schema import F64
from ranker.ab.estimates import Moments
from ranker.ab.plan import Metric, Plan
from ranker.ab.report import against

#: of an experiment; the days of before it that are known
LOOKS, BEFORE = 10, 10
METRICS = ("clicks", "ctr")
#: experiments of another number than those of the coverage
NULLS = 5_000_000


@dataclass(frozen=True, slots=True)
class Setting:
    """A kind of experiment."""

    name: str
    users: int = 2000
    share: float = 0.5  # of the arm
    spread: float = 1.0  # of the log of a user's rate
    arrive: bool = False  # users come over the whole time, in place of all on the first day
    past: bool = True  # it is known
    effect: float = 0.1  # of the arm, in the experiments of the coverage


SETTINGS = {
    s.name: s
    for s in (
        Setting("all users there"),
        Setting("all users there, no past", past=False),
        Setting("users come", arrive=True),
        Setting("users come, no past", arrive=True, past=False),
        Setting("a fifth in the arm", users=4000, share=0.2, arrive=True),
        Setting("heavier tail", users=6000, spread=1.4),
        Setting("few users", users=500, spread=0.7),
    )
}


def simulated(setting: Setting, effect: float, seed: int) -> tuple[F64, F64, F64]:
    """Return bool[n] of the arm, float64[LOOKS, n, 2] clicks and impressions up to each look, float64[n, 2] before."""
    rng = np.random.default_rng(seed)
    n = setting.users
    arm = rng.random(n) < setting.share
    rate = rng.lognormal(-(setting.spread**2) / 2, setting.spread, n)
    chance = rng.beta(2, 6, n) * (1 + effect * arm)  # at most 1.1: cut off below, so rare that no figure knows
    comes = rng.uniform(0, LOOKS, n) if setting.arrive else np.zeros(n)
    there = np.clip(np.arange(1, LOOKS + 1)[:, None] - comes, 0, 1)
    seen = rng.poisson(2 * rate * there)
    clicks = rng.binomial(seen, np.minimum(chance, 1))
    before = rng.poisson(2 * rate * BEFORE)
    past = np.stack([rng.binomial(before, np.minimum(chance / (1 + effect * arm), 1)), before], axis=1)
    return arm, np.stack([clicks, seen], axis=2).cumsum(axis=0).astype(np.float64), past.astype(np.float64)


def looked(setting: Setting, effect: float, seed: int, final: bool) -> list[dict[str, dict[str, Any]]]:
    """Return what the report says of each metric at each look; at the last one alone, where it is `final`."""
    arm, figures, past = simulated(setting, effect, seed)
    plan = Plan(metrics=[Metric(name, "") for name in METRICS], final=final)
    found = []
    for look in figures[-1:] if final else figures:
        seen = look[:, 1] > 0  # a user without a row is not in the log
        found.append({name: _against(name, arm[seen], look[seen], past[seen] * setting.past, plan) for name in METRICS})
    return found


def _against(name: str, arm: F64, figures: F64, past: F64, plan: Plan) -> dict[str, Any]:
    one = np.ones((len(arm), 1))
    values = np.hstack([figures, past] if name == "ctr" else [figures[:, :1], one, past[:, :1], one])
    return against(Moments.of(values[~arm]), Moments.of(values[arm]), plan)


def ab_covered(name: str, number: int) -> dict[str, Any]:
    """Return, by metric, the interval of the one planned look; the truth is the setting's effect."""
    [found] = looked(SETTINGS[name], SETTINGS[name].effect, number, final=True)
    return {metric: of["ci95"] for metric, of in found.items()}


def ab_null(name: str, number: int) -> dict[str, Any]:
    """Return, by metric, whether any of ten looks says that an arm without effect has one: always-valid, and fixed."""
    found = looked(SETTINGS[name], 0.0, NULLS + number, final=False)
    return {
        metric: {key: any(_off(look[metric][key]) for look in found) for key in ("always95", "fixed95")}
        for metric in METRICS
    }


def _off(ends: list[float | None]) -> bool:
    low, high = (np.nan if end is None else end for end in ends)
    return bool(low > 0 or high < 0)


PARTS = {"ab_covered": ab_covered, "ab_null": ab_null}


def tasks_of(n: int) -> list[tuple[str, tuple[Any, ...]]]:
    """Return n experiments with an effect, and n without."""
    names = list(SETTINGS)
    return [(part, (names[k % len(names)], k)) for part in PARTS for k in range(n)]


def summary(found: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of all results. What holds the truth and what is called wrongly: of both metrics together."""
    hits, called, peeked = (defaultdict(list) for _ in range(3))
    refused: dict[str, int] = defaultdict(int)
    for (part, arguments), result in found.items():
        for of in result.values() if part in PARTS else ():
            if part == "ab_covered" and of[0] is None:
                refused[arguments[0]] += 1
            elif part == "ab_covered":
                hits[arguments[0]].append(bool(of[0] <= SETTINGS[arguments[0]].effect <= of[1]))
            else:
                called[arguments[0]].append(of["always95"])
                peeked[arguments[0]].append(of["fixed95"])
    return {
        "ab_coverage": _share(hit for of in hits.values() for hit in of),
        "ab_false_positive": _share(one for of in called.values() for one in of),
        "ab_coverage_by_setting": {name: _share(of) for name, of in hits.items()},
        "ab_false_positive_by_setting": {name: _share(of) for name, of in called.items()},
        "ab_false_positive_fixed": _share(one for of in peeked.values() for one in of),
        "ab_refused": sum(refused.values()),
        "ab_refused_by_setting": dict(refused),
        "ab_experiments": sum(part == "ab_covered" for part, _ in found),
    }


def _share(of: Iterable[bool]) -> float:
    return round(float(np.mean(list(of))), 4)


def lines(figures: dict[str, Any]) -> list[str]:
    """Return the figures as lines of the table."""
    said = [f"{'coverage of experiments, one planned look':44}{figures['ab_coverage']:8.3f}"]
    refused = figures["ab_refused_by_setting"]
    said[0] += f"   and {figures['ab_refused']:,} of {len(METRICS) * figures['ab_experiments']:,} not known"
    for name, share in figures["ab_coverage_by_setting"].items():
        said.append(f"  {name:42}{share:8.3f}" + (f"   and {refused[name]:,} not known" if name in refused else ""))
    said += [f"{'no effect, and called one in ten looks':44}{figures['ab_false_positive']:8.3f}"]
    said += [f"  {name:42}{share:8.3f}" for name, share in figures["ab_false_positive_by_setting"].items()]
    return [*said, f"  {'by intervals of a single look':42}{figures['ab_false_positive_fixed']:8.3f}"]


def kept(figures: dict[str, Any]) -> bool:
    """Tell whether the targets are met."""
    return 0.93 <= figures["ab_coverage"] <= 0.97 and figures["ab_false_positive"] <= 0.05
