"""What a plugin brings to the lists of `Recommend`: of the test's users, with and without it.

Without it, neither its columns are there nor a source that needs it: `nearest` is of a plugin's vectors. Each arm's
wanted part is learned from what its own sources propose, and its lists are those that a server at t2 would give: see
`ranker.training.wanted`. Both arms have the same users, groups, parameters and seeds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from threading import Lock
from typing import Any

import lightgbm as lgb
import numpy as np

from features.plugin import FeaturePlugin
from features.schema import F64, GIB, Bool
from ranker.candidates.configured import Sources
from ranker.candidates.gathering import Quotas
from ranker.columns import Columns
from ranker.config import wanted_floor
from ranker.lists.asked import NEW, Asked
from ranker.lists.worth import worth_of_hits
from ranker.metrics.interval import relative_uplift
from ranker.training.abreast import abreast
from ranker.training.measured import past_of
from ranker.training.plugins import plugin_errors
from ranker.training.prepared import Prepared
from ranker.training.proposed import BLOCK, LIST, Proposed, wanted_columns
from ranker.training.wanted import Rows, Wanted, digest_of, rows_of, sources_until, wanted_scores, wanted_stage

#: the first so many seeds are fitted, and at most so many users asked about: what it costs. Each seed is one forest,
#: where a served part is the mean of several and has a share of the liked part's score: how much one forest differs
#: from another is what the interval has of seeds
SEEDS, USERS = 3, 2000
#: key in the report, and name in the table
LIST_FIGURES = {f"recall@{LIST}": f"Recall@{LIST}", f"ndcg@{LIST}": f"NDCG@{LIST}"}


@dataclass(frozen=True, slots=True)
class ListArm:
    """One arm's lists: those of each fit of the plugin and each seed of the boosters."""

    worth: dict[str, F64]  # by figure, [fits, seeds, users]
    reached: F64  # [fits, users], share of what each user wanted that is among the candidates
    trees: list[list[int]]  # by fit, then by seed

    @classmethod
    def joined(cls, fits: "list[ListArm]") -> "ListArm":
        """Return the lists of all fits."""
        worth = {name: np.concatenate([fit.worth[name] for fit in fits]) for name in LIST_FIGURES}
        return cls(worth, np.concatenate([fit.reached for fit in fits]), [trees for fit in fits for trees in fit.trees])


def list_uplift(
    prepared: Prepared, name: str, plugins: list[FeaturePlugin], fits: list[Columns], memory: int = 2 * GIB
) -> dict[str, Any]:
    """Return `lists` of a report: recall and NDCG at 10 of both arms, and the relative uplift with its interval.

    plugins, fits: the plugin `name` and its columns, by fit. memory: bytes, of `Cooccurrence.build`. Where there is
    nothing to compare, `remark` says why in place of the figures.
    """
    everyone = past_of(prepared).asked(prepared.split.t2, prepared.split.t3)
    who = everyone.drawn(min(prepared.config.lists.users, USERS), prepared.config.uplift.seeds[0])
    found = {"users": len(who), "eligible_users": len(everyone), "as_of": "first"}
    found |= {"wanted": list(prepared.config.grade_names[wanted_floor(prepared.config) :])}
    found |= {"fits": len(fits), "seeds": prepared.config.uplift.seeds[:SEEDS]}
    if not len(who):
        return found | {"remark": f"nobody wanted an item{NEW[not prepared.config.sources.exclude_seen]} in the test"}
    without = _arm(prepared, who, "without", {}, Columns(), memory)
    if without is None:
        return found | {"remark": "without the plugin, the sources propose nothing that was wanted"}
    with_ = []
    for k, (plugin, columns) in enumerate(zip(plugins, fits, strict=True)):
        with plugin_errors(name, "values"):
            arm = _arm(prepared, who, f"{name}-fit{k}" if k else name, {name: plugin}, columns, memory)
        if arm is None:
            return found | {"remark": "with the plugin, the sources propose nothing that was wanted"}
        with_.append(arm)
    return found | _compared(without, ListArm.joined(with_))


def _compared(without: ListArm, with_: ListArm) -> dict[str, Any]:
    """Return the figures of both arms; each user weighs one."""
    found: dict[str, Any] = {}
    for name in LIST_FIGURES:
        one, other = without.worth[name], with_.worth[name]
        interval = relative_uplift(one, other)
        found[name] = {"without": float(one.mean()), "with": float(other.mean()), **interval.reported()}
        found[name]["above_zero"] = bool(interval.low > 0)
    arms = {"without": without, "with": with_}
    return found | {
        "reached": {arm: float(of.reached.mean()) for arm, of in arms.items()},
        "trees": {arm: of.trees for arm, of in arms.items()},
        "remark": "",
    }


def _arm(
    prepared: Prepared,
    who: Asked,
    label: str,
    plugins: Mapping[str, FeaturePlugin],
    columns: Columns,
    memory: int,
) -> ListArm | None:
    """Return the lists of one fit; None where its sources propose nothing that was wanted in the booster's period."""
    made, alone, digest = cache(partial(rows_of, prepared, plugins, memory)), Lock(), digest_of(columns, plugins)

    def rows() -> Rows:
        with alone:
            return made()

    def fit(seed: int) -> Wanted:
        return wanted_stage(prepared, plugins, digest, seed, memory, name=f"{label}-alone", rows=rows, forests=1)

    fitted = list(abreast([partial(fit, seed) for seed in prepared.config.uplift.seeds[:SEEDS]]))
    boosters = [of.booster for of in fitted if of.booster is not None]
    made.cache_clear()  # large, and not read again
    if not boosters:  # the rows are those of every seed
        return None
    sources = sources_until(prepared, plugins, prepared.split.t2, memory)
    shares = fitted[0].shares  # the same of every seed
    quotas = None if shares is None else shares.quotas(sources)
    some = [who.select(np.arange(first, min(first + BLOCK, len(who)))) for first in range(0, len(who), BLOCK)]
    blocks = [_lists(prepared, plugins, sources, boosters, users, quotas) for users in some]
    hit = np.concatenate([hit for hit, _ in blocks], axis=1)
    reached = np.concatenate([reached for _, reached in blocks])
    seeds = [worth_of_hits(of_seed, who.wanted, (LIST,)) for of_seed in hit]
    worth = {name: np.stack([of_seed[name] for of_seed in seeds])[None] for name in LIST_FIGURES}
    return ListArm(worth, reached[None] / who.wanted, [[booster.num_trees() for booster in boosters]])


def _lists(
    prepared: Prepared,
    plugins: Mapping[str, FeaturePlugin],
    sources: Sources,
    boosters: list[lgb.Booster],
    who: Asked,
    quotas: Quotas | None,
) -> tuple[Bool, F64]:
    """Return bool[seeds, users, LIST] hits of the lists, and float64[users]: how many of the wanted are candidates."""
    proposed = Proposed.of(prepared, plugins, sources, who, None, every=True, quotas=quotas)
    columns = wanted_columns(prepared, plugins, sources)
    hits = [proposed.hits(wanted_scores(booster, proposed.matrix, columns)) for booster in boosters]
    return np.stack(hits), np.bincount(proposed.group[proposed.hit], minlength=len(who)).astype(np.float64)
