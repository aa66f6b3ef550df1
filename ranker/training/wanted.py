"""The part of the ranker that orders `Recommend`: which of the items that the sources propose will be wanted.

The other part (`ranker.training.arms`) learns which of two *shown* items is liked more. A list asks another question:
its candidates are what the sources propose, most of which nobody was shown. So this part learns from just that:

wanted_stage
    asked_in_slices   groups of the booster's period, and what their users wanted from then on
    shares_in_slices  how many candidates each source has, where the TOML leaves that open
    candidates_of     what the sources propose as of the group: the server's own path, tables of before t1
    Proposed.of       rows: the ranker's columns, and each source's own score; wanted later, or not
    fit_booster       pairs (wanted, other) of each group, weighed by |ΔNDCG@k|; stopped by NDCG@k of whole lists
    mean_of           three such forests as one: the mean of their scores
    with_liked        adds the liked part's score: as much as costs the validation slice nothing that could be told

The trees are added to `demand`, the logarithm of what the source `popular` counts: the chance that an item is taken is
about proportional to how often it is taken now, so without a tree the list is the popular one, and what is learned is
what is left over that. On small logs trees alone draw a curve so steep worse than it is known.

What was wanted later was met before that, and what was met, an earlier policy chose in part: by such lists alone the
best order is one that does as that policy did. The liked part compares what was shown with what was shown, so it knows
nothing of that; but it has never seen what was not. Their sum is the order, and how much of the liked part it has is
chosen for it where the log cannot tell.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import lightgbm as lgb
import numpy as np

from features.plugin import FeaturePlugin, RetrievalPlugin, VectorPlugin
from features.schema import F32, F64, GIB
from ranker.blend.shares import Shares
from ranker.candidates.configured import Sources, configured_sources
from ranker.candidates.cooccurrence import Cooccurrence
from ranker.candidates.gathering import Quotas
from ranker.candidates.named import Fitted, SourceData, fit_sources
from ranker.code_hash import code_hash
from ranker.columns import Columns, categories_of, demand
from ranker.config import Config, wanted_floor
from ranker.forest.text import change_leaves
from ranker.hashes import hash_arrays, hash_value
from ranker.lists.asked import Asked, asked, validation_start
from ranker.lists.liked import WEIGHTS, LikedWeight
from ranker.lists.shared import SlicedShares, shares_in_slices
from ranker.settings import BoosterSettings
from ranker.training.abreast import abreast
from ranker.training.booster import WANTED_TABLE, added, at_cap, cap_reached, check_params, fit_booster, mean_of
from ranker.training.prepared import Prepared
from ranker.training.proposed import LIST, Proposed, wanted_columns
from ranker.training.stages import run_stage

logger = logging.getLogger(__name__)

#: what the stage reads of our code, beside what `Prepared.key` and the plugins stand for
CODE = (
    "features.dots",
    "features.pace",
    "ranker.blend",
    "ranker.candidates",
    "ranker.columns",
    "ranker.conditions",
    "ranker.forest.text",
    "ranker.lanes",
    "ranker.lists.alone",
    "ranker.lists.asked",
    "ranker.lists.judging",
    "ranker.lists.liked",
    "ranker.lists.shared",
    "ranker.lists.worth",
    "ranker.metrics.interval",
    "ranker.metrics.ndcg",
    "ranker.metrics.pair_accuracy",
    "ranker.request",
    "ranker.training.abreast",
    "ranker.training.booster",
    "ranker.training.objective",
    "ranker.training.proposed",
    "ranker.training.wanted",
)
#: what is said where there is nothing to learn from
NO_SOURCES = "[sources] are all switched off: Recommend proposes nothing, so there are no lists to learn or to measure"
NOTHING_WANTED = "[sources] propose nothing that was wanted in the booster's period"
#: losers of a training group: of more, so many are drawn
LOSERS = 100
#: forests whose mean it is: one forest's luck moves a list's NDCG as much as what is to be learned does
FORESTS = 3
#: between the seeds of its forests, so that two of them share none
SEED_STEP = 1000
#: groups whose lists decide when to stop
JUDGED = 1000
#: parameters: |ΔNDCG| is far below 1, and so are gradients and Hessians
PARAMS = {"lambda_l2": 0.5, "min_sum_hessian_in_leaf": 0.05}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What the wanted part is learned from and stopped by: the same rows for every fit."""

    columns: list[str]  # of the rows
    categorical: list[str]  # those of them that are codes
    train: Proposed
    validation: Proposed
    shares: Shares | None = None  # of candidates, for what is served; None: the sources' own quotas

    @property
    def empty(self) -> bool:
        """Whether a slice has no group of which something proposed was wanted."""
        return not (len(self.train.wanted) and len(self.validation.wanted))

    def fit(
        self,
        config: Config,
        seed: int,
        forests: int = FORESTS,
        progress: str = "",
    ) -> lgb.Booster:
        """Return the mean of so many forests, each up to the round that is best by NDCG@10 on the validation slice.

        The rows are not `empty`. Where the trees are no better there than what they are added to, they say nothing: on
        a log too small to learn from, they add nothing to the popular list. progress: the name of a bar for each
        forest, see `fit_booster`.
        """
        seeds = [seed + SEED_STEP * k for k in range(forests)]
        fitted = list(abreast([partial(self._forest, config, of, progress) for of in seeds]))
        if full := sum(at_cap(config.booster, forest.num_trees()) for forest in fitted):
            logger.warning("%s", cap_reached(config.booster, f"wanted part: {full} of {forests} forests"))
        booster = mean_of(fitted)
        start = demand(self.validation.matrix, self.columns)
        if start.any() and self.validation.ndcg(start) >= self.validation.ndcg(self.scores(booster)):
            logger.info("wanted part: no tree is better than the popular list on the validation slice")
            return _silent(booster)
        return booster

    def with_liked(
        self, booster: lgb.Booster, liked: lgb.Booster, weight: float | None, drawn: bool = False
    ) -> tuple[lgb.Booster, LikedWeight]:
        """Return what `fit` gave with the liked part's score added, and by which weight: the given or a chosen one.

        drawn: the liked part has learned of drawn losers.
        """
        own, rows = self.scores(booster), self.validation.matrix
        of_liked = np.asarray(liked.predict(rows[:, : liked.num_feature()], raw_score=True))  # its columns come first
        weights = {0.0, *WEIGHTS} | (set() if weight is None else {weight})
        by_weight = {w: self.validation.by_user(own + w * of_liked) for w in sorted(weights)}
        found = LikedWeight.of(by_weight, weight, drawn=drawn)
        logger.info("wanted part: %s", found)
        return added(booster, liked, found.weight) if found.weight else booster, found

    def _forest(self, config: Config, seed: int, progress: str) -> lgb.Booster:
        train, validation = (part.slice(self.columns, seed) for part in (self.train, self.validation))
        return fit_booster(
            self.columns,
            self.categorical,
            train,
            validation,
            wanted_settings(config),
            seed,
            judge=self.validation.ndcg,
            table=WANTED_TABLE,
            progress=progress,
        )

    def scores(self, booster: lgb.Booster) -> F64:
        """Return float64[n] scores of the validation rows."""
        return wanted_scores(booster, self.validation.matrix, self.columns)


class Wanted(NamedTuple):
    """The wanted part."""

    booster: lgb.Booster | None = None  # None where nothing that the sources propose was wanted later
    shares: Shares | None = None  # of the candidates that it orders; None: the sources' own quotas
    liked: LikedWeight | None = None  # how much of the liked part's score it has; None where nothing was to be added

    @property
    def digest(self) -> str:
        """A hash of the shares."""
        return "" if self.shares is None else hash_value(asdict(self.shares))

    def quotas(self, sources: Sources) -> Quotas | None:
        """Return the quotas of sources by the shares; None for their own."""
        return None if self.shares is None else self.shares.quotas(sources)


def wanted_scores(booster: lgb.Booster, rows: F32, columns: Sequence[str]) -> F64:
    """Return float64[n] scores of float32[n, c] rows: what the trees say, added to demand."""
    start = demand(rows, columns)
    return start + np.asarray(booster.predict(rows, raw_score=True)) if len(rows) else start


def wanted_settings(config: Config) -> BoosterSettings:
    """Return how the wanted part is fitted: `[booster]` trees and stop_after, and parameters of its own."""
    params = PARAMS | check_params(config.lists, WANTED_TABLE)
    return BoosterSettings(
        trees=config.booster.trees, stop_after=config.booster.stop_after, ndcg_at=LIST, params=params
    )


def _silent(booster: lgb.Booster) -> lgb.Booster:
    """Return its first tree with zero in every leaf: LightGBM writes no booster without trees."""
    return lgb.Booster(model_str=change_leaves(booster.model_to_string(num_iteration=1), lambda _: 0.0))


def wanted_stage(
    prepared: Prepared,
    plugins: Mapping[str, FeaturePlugin],
    digest: str,
    seed: int,
    memory: int,
    *,
    name: str | None = None,
    rows: Callable[[], Rows] | None = None,
    forests: int = FORESTS,
    liked: lgb.Booster | None = None,
    drawn: bool = False,
) -> Wanted:
    """Fit the wanted part (or reuse it); a warning, where nothing that the sources propose was wanted later.

    digest: of the plugins' values and vectors. name: of the stage, in place of the plugins' names. rows: gives what
    `rows_of` does, where several seeds share it. forests: whose mean it is. liked: the liked part,
    to add; None adds nothing. drawn: it has learned of drawn losers.
    """
    config = prepared.config
    settings = [
        config.sources.model_dump(),
        config.model_dump(include={"filters"}),
        config.lists.model_dump(exclude={"users", "at_most", "diversity"}),
        wanted_settings(config).model_dump(),
    ]
    code = code_hash(*CODE, *modules_of(config, plugins))
    own = liked and hash_value(liked.model_to_string())
    inputs = [prepared.key, digest, settings, seed, forests, own, drawn, code]

    def make(folder: Path) -> None:
        found = rows_of(prepared, plugins, memory) if rows is None else rows()
        if found.empty:
            if config.sources.on:  # else `list_figures` says it
                logger.warning("%s: lists are ordered as Rank is", NOTHING_WANTED)
        else:
            booster = found.fit(config, seed, forests, "wanted part")
            if liked is not None:
                booster, weight = found.with_liked(booster, liked, config.lists.liked, drawn)
                weight.write(folder / "liked.json")
            booster.save_model(str(folder / "booster.txt"))
            if found.shares is not None:
                found.shares.write(folder / "shares.json")

    label = name or "+".join(plugins) or "without"
    folder = run_stage(config.work / "wanted", f"{label}-seed{seed}", inputs, make)
    path = folder / "booster.txt"
    booster = lgb.Booster(model_file=str(path)) if path.exists() else None
    return Wanted(booster, Shares.read(folder / "shares.json"), LikedWeight.read(folder / "liked.json"))


def modules_of(config: Config, plugins: Mapping[str, FeaturePlugin]) -> list[str]:
    """Return what of the code is named in the TOML: packages of plugins and of sources, of ours the wing."""
    own = [source.path.partition(":")[0].split(".") for source in config.sources.named.values()]
    of_plugins = {type(plugin).__module__.partition(".")[0] for plugin in plugins.values()}
    return sorted(of_plugins | {".".join(name[: 2 if name[0] == "ranker" else 1]) for name in own})


def rows_of(prepared: Prepared, plugins: Mapping[str, FeaturePlugin], memory: int = 2 * GIB) -> Rows:
    """Ask the sources, with tables of before t1, for groups of the booster's two slices.

    memory: bytes, of `Cooccurrence.build`.
    """
    sources, slices = sources_until(prepared, plugins, prepared.split.t1, memory), asked_in_slices(prepared)
    shares = sliced_shares(prepared, sources, slices)
    quotas = (None, None) if shares is None else (shares.of_train(sources), shares.of_validation(sources))
    train, validation = (
        Proposed.of(prepared, plugins, sources, who, losers, quotas=own)
        for who, losers, own in zip(slices, (LOSERS, None), quotas, strict=True)
    )
    return Rows(
        columns=wanted_columns(prepared, plugins, sources),
        categorical=categories_of(prepared.spec, plugins),
        train=train,
        validation=validation,
        shares=None if shares is None else shares.served,
    )


def sliced_shares(prepared: Prepared, sources: Sources, slices: tuple[Asked, Asked]) -> SlicedShares | None:
    """Return the shares of candidates; None where the TOML has all quotas, or there is nothing to learn of.

    sources: of before t1. slices: of `asked_in_slices`.
    """
    if not (prepared.config.sources.shared and sources and all(map(len, slices))):
        return None
    return shares_in_slices(sources, slices, prepared.state, prepared.config)


def sources_until(prepared: Prepared, plugins: Mapping[str, FeaturePlugin], end: int, memory: int) -> Sources:
    """Return the configured sources with tables of the events before `end` alone. memory: of `Cooccurrence.build`."""
    floor = wanted_floor(prepared.config)
    table = Cooccurrence.build(prepared.log.until(end), prepared.catalog.n_items, floor, memory=memory)
    return configured_sources(prepared.config, prepared.state, table, plugins, fitted_until(prepared, end))


def fitted_until(prepared: Prepared, end: int) -> Fitted:
    """Return what each [sources.NAME] is fitted to of the events before `end` alone."""
    data = SourceData(log=prepared.log.until(end), catalog=prepared.catalog, floor=wanted_floor(prepared.config))
    return fit_sources(prepared.config.sources, data)


def asked_in_slices(prepared: Prepared) -> tuple[Asked, Asked]:
    """Return the groups that are learned from, and those that decide when to stop, each as of its own time.

    What their users wanted is read to the end of their own slice, and never of the test. Where lists have items that
    the user has seen, what was wanted again counts too: else every one of these would be a loser.
    """
    split, most = prepared.split, prepared.config.lists.groups
    begin = validation_start(prepared.groups)
    floor, histories = wanted_floor(prepared.config), prepared.state.histories
    again = not prepared.config.sources.exclude_seen

    def of(start: int, end: int, most: int) -> Asked:
        return asked(prepared.log, histories, prepared.groups, start, end, floor, "each", most, again=again)

    return of(split.t1, begin, most), of(begin, split.t2, JUDGED)


def digest_of(columns: Columns, plugins: Mapping[str, FeaturePlugin]) -> str:
    """Return a hash of the plugins' values and of the vectors that a source finds the nearest of."""
    arrays = dict(columns.values)
    for name, plugin in plugins.items():
        if isinstance(plugin, VectorPlugin):
            arrays[f"{name} vectors"] = plugin.item_vectors
        if isinstance(plugin, RetrievalPlugin):
            arrays[f"{name} keys"] = plugin.item_keys
    return hash_arrays(arrays, columns.names)
