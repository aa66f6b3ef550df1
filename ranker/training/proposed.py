"""What the wanted part learns from: what the sources propose as of groups of the log, and what of it was wanted later.

Candidates, features and the sources' scores come about on the path of a request, as of each group's own time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from features.pairing.pairs import Pairs
from features.pairing.slice import Slice
from features.plugin import FeaturePlugin
from features.progress import progress_bar
from features.schema import F32, F64, I32, I64, NO_GIVEN, Bool, Requests, offsets_of
from ranker.candidates.configured import Sources
from ranker.candidates.gathering import Quotas, candidates_of, source_columns
from ranker.columns import columns_of, demand, full_matrix, given_of, with_sources
from ranker.lists.asked import Asked
from ranker.lists.worth import top_hits, worth_of_hits
from ranker.request import Request
from ranker.training.prepared import Prepared

#: the k that weights of pairs and stopping are about
LIST = 10
#: losers that each winner meets in one pair
MET = 10
#: groups whose rows are made at a time
BLOCK = 256


@dataclass(frozen=True, slots=True)
class Proposed:
    """n candidates of some groups, those that were wanted among them."""

    matrix: F32  # [n, c + s], the ranker's columns, then `source_columns`
    group: I64  # [n], never decreasing
    hit: Bool  # [n], wanted later
    wanted: I64  # [groups], how many items the user wanted, proposed or not
    user: I32  # [groups], whose they are

    @classmethod
    def of(
        cls,
        prepared: Prepared,
        plugins: Mapping[str, FeaturePlugin],
        sources: Sources,
        who: Asked,
        losers: int | None,
        every: bool = False,
        quotas: Quotas | None = None,
    ) -> "Proposed":
        """Ask the sources for each group, and make the rows of what they propose.

        losers: of more candidates that were not wanted, so many are drawn; None keeps all. A group without a wanted
        candidate, or without another, orders nothing: it is left out, but where `every` group is asked for.
        quotas: of the sources, in place of their own.
        """
        rng = np.random.default_rng(0)
        blocks: list[tuple[F32, I64, Bool]] = []
        wanted: list[int] = []
        users: list[int] = []
        for first in progress_bar(
            range(0, len(who), BLOCK), desc="proposals", unit_scale=BLOCK, unit=" groups", leave=False
        ):
            some = who.select(np.arange(first, min(first + BLOCK, len(who))))
            items, given, scores, hits, kept = _candidates(prepared, sources, some, losers, rng, every, quotas)
            if len(kept):
                asked_for = _requests(some.requests, kept, items, given)
                if len(asked_for.item):
                    matrix = full_matrix(prepared.state, prepared.spec, plugins, asked_for)
                    group = asked_for.row_request() + len(wanted)
                    blocks.append((with_sources(matrix, np.concatenate(scores)), group, np.concatenate(hits)))
                wanted.extend(some.wanted[kept].tolist())
                users.extend(some.requests.user[kept].tolist())
        if not blocks:
            none = np.empty((0, len(wanted_columns(prepared, plugins, sources))), np.float32)
            blocks.append((none, np.empty(0, np.int64), np.empty(0, bool)))
        matrix, group, hit = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        return cls(matrix, group, hit, np.array(wanted, np.int64), np.array(users, np.int32))

    def slice(self, columns: Sequence[str], seed: int) -> Slice:
        """Return what is learned from: each wanted candidate with some others of its group, drawn evenly."""
        pairs = _pairs(self.hit, self.group, seed)
        return Slice(self.matrix, self.group, pairs, self.hit.astype(np.int8), demand(self.matrix, columns))

    def ndcg(self, score: F64) -> float:
        """Return the mean NDCG@10 of the groups' lists by float64[n] scores."""
        return float(self.ndcgs(score).mean())

    def by_user(self, score: F64) -> F64:
        """Return float64[users], the mean NDCG@10 of each user's lists."""
        _, user, count = np.unique(self.user, return_inverse=True, return_counts=True)
        return np.asarray(np.bincount(user, self.ndcgs(score)) / count)

    def ndcgs(self, score: F64) -> F64:
        """Return float64[groups], the NDCG@10 of each list; what was wanted and not proposed counts as missed."""
        return worth_of_hits(self.hits(score), self.wanted, (LIST,))[f"ndcg@{LIST}"]

    def hits(self, score: F64) -> Bool:
        """Return bool[groups, LIST]: whether each place of the groups' lists was wanted; False behind their end."""
        offsets = np.searchsorted(self.group, np.arange(len(self.wanted) + 1))
        found: Bool = top_hits(score, self.hit, offsets, LIST)
        return found


def _candidates(
    prepared: Prepared,
    sources: Sources,
    who: Asked,
    losers: int | None,
    rng: np.random.Generator,
    every: bool,
    quotas: Quotas | None,
) -> tuple[list[I32], list[F32], list[F32], list[Bool], I64]:
    """Return items, what is given of them, source scores and hits of each group that orders something (or `every`),
    and which these are.
    """
    items, given, scores, hits, kept = [], [], [], [], []
    for k in range(len(who)):
        request = Request.of(who.requests, k, prepared.state)
        candidates, score = candidates_of(sources, request, prepared.config, quotas)
        hit = np.isin(candidates.item, who.item[who.offsets[k] : who.offsets[k + 1]])
        if not every and (hit.all() or not hit.any()):
            continue
        rows = np.arange(len(hit))
        others = rows[~hit]
        if losers is not None and len(others) > losers:
            rows = np.sort(np.concatenate([rows[hit], rng.choice(others, losers, replace=False)]))
        said = given_of(candidates.given, prepared.catalog, prepared.spec)  # before rows are left out, as it is served
        items.append(candidates.item[rows])
        given.append(said[rows] if len(said) else said)
        scores.append(score[rows])
        hits.append(hit[rows])
        kept.append(k)
    return items, given, scores, hits, np.array(kept, np.int64)


def _requests(r: Requests, kept: I64, items: list[I32], given: list[F32]) -> Requests:
    """Return the requests of the kept groups, with other items and what is given of them."""
    offsets = offsets_of(np.array(list(map(len, items)), np.int64))
    return replace(r.select(kept), offsets=offsets, item=np.concatenate(items), given=_joined(given, items))


def _joined(given: list[F32], items: list[I32]) -> F32:
    """Return what is given of all items, NaN for those of groups of which nothing is."""
    width = max(block.shape[1] for block in given)
    if not width:
        return NO_GIVEN
    missing = (np.full((len(own), width), np.nan, np.float32) for own in items)
    return np.concatenate([block if len(block) else none for block, none in zip(given, missing, strict=True)])


def _pairs(hit: Bool, group: I64, seed: int) -> Pairs:
    """Return, for each wanted row, MET pairs with other rows of its group, drawn evenly.

    Together a group's pairs weigh the root of how many rows were wanted.
    """
    rng = np.random.default_rng(seed)
    starts = np.searchsorted(group, np.arange(group[-1] + 2))
    others = np.flatnonzero(~hit)  # by group, as all rows
    first = np.searchsorted(others, starts)
    winner = np.repeat(np.flatnonzero(hit), MET)
    of = group[winner]
    loser = others[first[of] + (rng.random(len(winner)) * (first[of + 1] - first[of])).astype(np.int64)]
    winners = np.bincount(group[hit], minlength=len(starts) - 1)
    weight = 1.0 / np.sqrt(winners[of])
    return Pairs(
        winner.astype(np.int32),
        loser.astype(np.int32),
        (weight / weight.mean()).astype(np.float32),
        np.ones(len(of), bool),
    )


def wanted_columns(prepared: Prepared, plugins: Mapping[str, FeaturePlugin], sources: Sources) -> list[str]:
    """Return the columns of the wanted part in their order."""
    return [*columns_of(prepared.spec, plugins), *source_columns(sources)]
