"""The part of the ranker that orders `Recommend`: which of the items that the sources propose will be wanted.

The other part (`ranker.training.arms`) learns which of two *shown* items is liked more. A list asks another question:
its candidates are what the sources propose, most of which nobody was shown. So this part learns from just that:

wanted_stage
    asked           groups of the booster's period, and what their users wanted from then on (`ranker.lists.asked`)
    candidates_of   what the sources propose as of the group: the server's own path, tables of before t1
    Proposed.of     rows: the ranker's columns, and each source's own score; wanted later, or not
    fit_booster     pairs (wanted, other) of each group, weighed by |ΔNDCG@k|; stopped by NDCG@k of whole lists

The trees are added to `demand`, the logarithm of what the source `popular` counts: the chance that an item is taken is
about proportional to how often it is taken now, so without a tree the list is the popular one, and what is learned is
what is left over that. On small logs trees alone draw a curve so steep worse than it is known.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightgbm as lgb
import numpy as np
from tqdm import tqdm

from features.pairing.groups import offsets_of
from features.pairing.pairs import Pairs
from features.plugin import FeaturePlugin, RetrievalPlugin, VectorPlugin
from features.schema import F32, F64, I32, I64, NO_CONTEXT, Bool, Requests
from ranker.candidates.configured import Sources, configured_sources
from ranker.candidates.cooccurrence import Cooccurrence
from ranker.candidates.gathering import candidates_of, source_columns
from ranker.columns import Columns, columns_of, demand, full_matrix, with_sources
from ranker.config import wanted_floor
from ranker.lists.asked import Asked, asked
from ranker.lists.worth import worth_of_hits
from ranker.request import Request
from ranker.training.booster import Slice, fit_booster
from ranker.training.code_hash import code_hash
from ranker.training.prepared import Prepared
from ranker.training.stages import run_stage

logger = logging.getLogger(__name__)

#: what the stage reads of our code, beside what `Prepared.key` and the plugins stand for
CODE = ("ranker.candidates", "ranker.columns", "ranker.lists", "ranker.request", "ranker.training")
#: the k that weights of pairs and stopping are about
LIST = 10
#: losers of a training group: of more, so many are drawn
LOSERS = 100
#: losers that each winner meets in one pair
MET = 10
#: groups whose lists decide when to stop
JUDGED = 1000
#: parameters: |ΔNDCG| is far below 1, and so are gradients and Hessians
PARAMS = {"lambda_l2": 0.5, "min_sum_hessian_in_leaf": 0.05}
#: groups whose rows are made at a time
BLOCK = 256


@dataclass(frozen=True, slots=True)
class Proposed:
    """n candidates of some groups, those that were wanted among them."""

    matrix: F32  # [n, c + s], the ranker's columns, then `source_columns`
    group: I64  # [n], never decreasing
    hit: Bool  # [n], wanted later
    wanted: I64  # [groups], how many items the user wanted, proposed or not
    user: I32  # [groups]

    @classmethod
    def of(
        cls, prepared: Prepared, plugins: Mapping[str, FeaturePlugin], sources: Sources, who: Asked, losers: int | None
    ) -> "Proposed":
        """Ask the sources for each group, and make the rows of what they propose.

        losers: of more candidates that were not wanted, so many are drawn; None keeps all. A group without a wanted
        candidate, or without another, is left out: it orders nothing.
        """
        rng = np.random.default_rng(0)
        blocks: list[tuple[F32, I64, Bool]] = []
        wanted: list[int] = []
        user: list[int] = []
        for first in tqdm(range(0, len(who), BLOCK), desc="proposals", unit_scale=BLOCK, unit=" groups"):
            some = who.select(np.arange(first, min(first + BLOCK, len(who))))
            items, scores, hits, kept = _candidates(prepared, sources, some, losers, rng)
            if len(kept):
                asked_for = _requests(some.requests, kept, items)
                matrix = full_matrix(prepared.state, prepared.spec, plugins, asked_for)
                group = asked_for.row_request() + len(wanted)
                blocks.append((with_sources(matrix, np.concatenate(scores)), group, np.concatenate(hits)))
                wanted.extend(some.wanted[kept].tolist())
                user.extend(asked_for.user.tolist())
        if not blocks:
            columns = len(columns_of(prepared.spec, plugins)) + len(sources)
            rows, groups = np.empty(0, np.int64), np.empty(0, np.int32)
            return cls(np.empty((0, columns), np.float32), rows, rows.astype(bool), rows, groups)
        matrix, group, hit = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        return cls(matrix, group, hit, np.array(wanted, np.int64), np.array(user, np.int32))

    @property
    def share(self) -> F64:
        """float64[groups]: 1 / how many of the groups are the same user's, for every user weighs one."""
        _, place, count = np.unique(self.user, return_inverse=True, return_counts=True)
        return np.asarray(1.0 / count[place])

    def slice(self, columns: Sequence[str], seed: int) -> Slice:
        """Return what is learned from: each wanted candidate with some others of its group, drawn evenly."""
        pairs = _pairs(self.hit, self.group, self.share, seed)
        return Slice(self.matrix, self.group, pairs, self.hit.astype(np.int8), demand(self.matrix, columns))

    def ndcg(self, score: F64) -> float:
        """Return the mean NDCG@10 of the users' lists; what was wanted and not proposed counts as missed."""
        order = np.lexsort((-score, self.group))
        starts = np.searchsorted(self.group, np.arange(len(self.wanted) + 1))
        hit = np.zeros((len(self.wanted), LIST), bool)
        for place in range(LIST):
            at = starts[:-1] + place
            there = at < starts[1:]
            hit[there, place] = self.hit[order[at[there]]]
        return float(np.average(worth_of_hits(hit, self.wanted, (LIST,))[f"ndcg@{LIST}"], weights=self.share))


def _candidates(
    prepared: Prepared, sources: Sources, who: Asked, losers: int | None, rng: np.random.Generator
) -> tuple[list[I32], list[F32], list[Bool], I64]:
    """Return items, source scores and hits of each group that orders something, and which groups these are."""
    items, scores, hits, kept = [], [], [], []
    for k in range(len(who)):
        candidates, score = candidates_of(sources, _request(prepared, who.requests, k), prepared.config)
        hit = np.isin(candidates.item, who.item[who.offsets[k] : who.offsets[k + 1]])
        if hit.all() or not hit.any():
            continue
        rows = np.arange(len(hit))
        others = rows[~hit]
        if losers is not None and len(others) > losers:
            rows = np.sort(np.concatenate([rows[hit], rng.choice(others, losers, replace=False)]))
        items.append(candidates.item[rows])
        scores.append(score[rows])
        hits.append(hit[rows])
        kept.append(k)
    return items, scores, hits, np.array(kept, np.int64)


def _request(prepared: Prepared, r: Requests, k: int) -> Request:
    context = r.context[k : k + 1] if len(r.context) else NO_CONTEXT
    return Request(int(r.user[k]), int(r.as_of[k]), state=prepared.state, surface=int(r.surface[k]), context=context)


def _requests(r: Requests, kept: I64, items: list[I32]) -> Requests:
    """Return the requests of the kept groups, with other items."""
    return Requests(
        user=r.user[kept],
        as_of=r.as_of[kept],
        surface=r.surface[kept],
        offsets=offsets_of(np.array(list(map(len, items)), np.int64)),
        item=np.concatenate(items),
        context=r.context[kept] if len(r.context) else r.context,
    )


def _pairs(hit: Bool, group: I64, share: F64, seed: int) -> Pairs:
    """Return, for each wanted row, MET pairs with other rows of its group, drawn evenly.

    A group's pairs weigh `share` of it, float64[groups], times the root of how many were wanted.
    """
    rng = np.random.default_rng(seed)
    starts = np.searchsorted(group, np.arange(group[-1] + 2))
    others = np.flatnonzero(~hit)  # by group, as all rows
    first = np.searchsorted(others, starts)
    winner = np.repeat(np.flatnonzero(hit), MET)
    of = group[winner]
    loser = others[first[of] + (rng.random(len(winner)) * (first[of + 1] - first[of])).astype(np.int64)]
    winners = np.bincount(group[hit], minlength=len(starts) - 1)
    weight = share[of] / np.sqrt(winners[of])
    return Pairs(
        winner.astype(np.int32),
        loser.astype(np.int32),
        (weight / weight.mean()).astype(np.float32),
        np.ones(len(of), bool),
    )


def wanted_columns(prepared: Prepared, plugins: Mapping[str, FeaturePlugin], sources: Sources) -> list[str]:
    """Return the columns of the wanted part in their order."""
    return [*columns_of(prepared.spec, plugins), *source_columns(sources)]


def sources_until(prepared: Prepared, plugins: Mapping[str, FeaturePlugin], end: int, memory: int) -> Sources:
    """Return the configured sources with tables of the events before `end` alone. memory: of `Cooccurrence.build`."""
    floor = wanted_floor(prepared.config)
    table = Cooccurrence.build(prepared.log.until(end), prepared.catalog.n_items, floor, memory=memory)
    return configured_sources(prepared.config, prepared.state, table, plugins.values())


def wanted_stage(
    prepared: Prepared, plugins: Mapping[str, FeaturePlugin], digest: str, seed: int, memory: int
) -> lgb.Booster | None:
    """Fit the wanted part (or reuse it); None where the sources propose nothing that anybody wanted later.

    digest: of the plugins' values and vectors.
    """
    config = prepared.config
    settings = [config.sources.model_dump(), config.lists.model_dump(), config.booster.model_dump()]
    inputs = [prepared.key, digest, settings, seed, code_hash(*CODE)]

    def make(folder: Path) -> None:
        booster = _fit(prepared, plugins, seed, memory)
        if booster is not None:
            booster.save_model(str(folder / "booster.txt"))

    folder = run_stage(config.work / "wanted", f"{'+'.join(plugins) or 'without'}-seed{seed}", inputs, make)
    path = folder / "booster.txt"
    return lgb.Booster(model_file=str(path)) if path.exists() else None


def _fit(prepared: Prepared, plugins: Mapping[str, FeaturePlugin], seed: int, memory: int) -> lgb.Booster | None:
    config = prepared.config
    sources = sources_until(prepared, plugins, prepared.split.t1, memory)
    train, validation = (
        Proposed.of(prepared, plugins, sources, who, losers)
        for who, losers in zip(_asked(prepared), (LOSERS, None), strict=True)
    )
    if not (len(train.wanted) and len(validation.wanted)):
        logger.warning(
            "[sources] propose nothing that was wanted in the booster's period: lists are ordered as Rank is"
        )
        return None
    booster = config.booster.model_copy(
        update={"ndcg_at": LIST, "margin": 0.0, "params": PARAMS | config.booster.params, "monotone": {}}
    )
    names = wanted_columns(prepared, plugins, sources)
    return fit_booster(
        names,
        list(prepared.spec.categorical),
        train.slice(names, seed),
        validation.slice(names, seed),
        booster,
        seed,
        judge=validation.ndcg,
    )


def _asked(prepared: Prepared) -> tuple[Asked, Asked]:
    """Return the groups that are learned from, and those that decide when to stop, each as of its own time.

    What their users wanted is read to the end of their own slice.
    """
    split, most = prepared.split, prepared.config.lists.groups
    begin = int(prepared.groups.of("booster", True).requests.as_of.min())
    floor, histories = wanted_floor(prepared.config), prepared.state.histories

    def of(start: int, end: int, most: int) -> Asked:
        return asked(prepared.log, histories, prepared.groups, start, end, floor, "each", most)

    return of(split.t1, begin, most), of(begin, split.t2, JUDGED)


def digest_of(columns: Columns, plugins: Mapping[str, FeaturePlugin]) -> str:
    """Return a hash of the plugins' values and of the vectors that a source finds the nearest of."""
    digest = hashlib.sha256(repr(columns.names).encode())
    vectors = [plugin.item_vectors for plugin in plugins.values() if isinstance(plugin, VectorPlugin)]
    keys = [plugin.item_keys for plugin in plugins.values() if isinstance(plugin, RetrievalPlugin)]
    for array in (*columns.values.values(), *vectors, *keys):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
