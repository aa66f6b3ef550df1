"""Both parts of the ranker, fitted: one path for what is served, what its lists are measured on, and the benchmarks.

Where `[prerank]` asks for it, the stage before them is distilled from the wanted part, which orders the lists.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm as lgb

from features.plugin import FeaturePlugin
from features.schema import F32, F64, GIB, SAMPLED
from ranker.blend.shares import Shares
from ranker.candidates.configured import Sources
from ranker.code_hash import code_hash
from ranker.columns import Columns, demand
from ranker.config import PRERANK
from ranker.forest.scorer import checked_scorer
from ranker.hashes import hash_value
from ranker.lists.liked import LikedWeight
from ranker.prerank.distil import Teacher, distil, figures
from ranker.prerank.light import Prerank
from ranker.training.arms import Arm, Arms
from ranker.training.earlier_trees import Start
from ranker.training.network import NetworkArm, network_stage
from ranker.training.prepared import Prepared
from ranker.training.proposed import wanted_columns
from ranker.training.stages import run_stage
from ranker.training.wanted import CODE as OF_WANTED
from ranker.training.wanted import Rows, Wanted, digest_of, modules_of, sources_until, wanted_scores, wanted_stage

logger = logging.getLogger(__name__)

#: what the stage before the ranker reads of our code, beside what `Prepared.key` and the plugins stand for
CODE = (*OF_WANTED, "ranker.forest", "ranker.prerank", "ranker.reranking.order")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The liked part, which orders Rank, and the wanted part, which orders Recommend."""

    arms: Arms  # the rows of the liked part
    plugins: dict[str, FeaturePlugin]  # by name, in the order of their columns
    columns: Columns  # of the plugins, for the rows of `arms`
    liked: Arm
    wanted: lgb.Booster | None  # None where nothing that the sources propose was wanted
    shares: Shares | None  # of candidates; None: the quotas of the TOML
    liked_weight: LikedWeight | None  # of the liked part's score in the wanted part; None where there is none
    network: NetworkArm | None  # orders Rank in the liked part's place; None where `[ranker] model` is the booster
    prerank: Prerank | None  # the stage before the wanted part; None where [prerank] is off

    @property
    def prepared(self) -> Prepared:
        """The log."""
        return self.arms.prepared


def fit_parts(
    arms: Arms,
    plugins: dict[str, FeaturePlugin],
    old: Start | None = None,
    memory: int = 2 * GIB,
    rows: Rows | None = None,
) -> Parts:
    """Fit both parts with the seed of what is served, or reuse them.

    old: an earlier bundle's trees that the liked part goes on from. memory: bytes, of `Cooccurrence.build`. rows: what
    `rows_of` gives, where they are made already.
    """
    prepared, columns = arms.prepared, arms.served_columns(plugins)
    seed, label = prepared.config.uplift.seeds[0], "+".join(plugins) or "without"
    liked = arms.fit(label if old is None else f"{label}-{old.mode}", columns, seed, old, "liked part")
    by_network = prepared.config.ranker.model == "network"
    network = network_stage(arms, label, columns, seed, told=True) if by_network else None
    digest = digest_of(columns, plugins)
    made = None if rows is None else (lambda: rows)
    wanted = wanted_stage(
        prepared, plugins, digest, seed, memory, rows=made, liked=liked.booster, drawn=arms.kind == SAMPLED
    )
    prerank = prerank_stage(prepared, plugins, digest, wanted, memory)
    return Parts(
        arms=arms,
        plugins=plugins,
        columns=columns,
        liked=liked,
        wanted=wanted.booster,
        shares=wanted.shares,
        liked_weight=wanted.liked,
        network=network,
        prerank=prerank,
    )


def prerank_stage(
    prepared: Prepared, plugins: dict[str, FeaturePlugin], digest: str, wanted: Wanted, memory: int
) -> Prerank | None:
    """Distil the stage before the wanted part, or reuse it; None where [prerank] is off, or there is no wanted part.

    It learns of requests of the booster's train slice, by sources of before t1. digest: of the plugins' values.
    """
    config = prepared.config
    if config.prerank is None:
        return None
    if wanted.booster is None:
        logger.warning("[prerank] is left out: there is no wanted part to learn from, so all candidates are ranked")
        return None
    settings = [config.sources.model_dump(), config.model_dump(include={"filters"})]
    code = code_hash(*CODE, *modules_of(config, plugins))
    inputs = [prepared.key, digest, hash_value(wanted.booster.model_to_string()), wanted.digest, settings, code]

    def make(folder: Path) -> None:
        sources = sources_until(prepared, plugins, prepared.split.t1, memory)
        teacher = teacher_of(prepared, plugins, sources, wanted)
        if (made := distil(teacher, prepared.slices()["train"].requests)) is not None:
            made.booster.save_model(str(folder / "booster.txt"))

    folder = run_stage(config.work / PRERANK, "+".join(plugins) or "without", inputs, make)
    return Prerank.load(folder / "booster.txt")


def teacher_of(prepared: Prepared, plugins: dict[str, FeaturePlugin], sources: Sources, wanted: Wanted) -> Teacher:
    """Return the wanted part as what is learned from. sources: of what was known before the requests.

    `wanted` has a booster.
    """
    columns, booster = wanted_columns(prepared, plugins, sources), wanted.booster
    assert booster is not None
    scorer = checked_scorer(booster)

    def score(rows: F32) -> F64:
        if scorer is None:
            return wanted_scores(booster, rows, columns)
        return scorer.score(rows) + demand(rows, columns)

    return Teacher(
        config=prepared.config,
        state=prepared.state,
        spec=prepared.spec,
        plugins=plugins,
        sources=sources,
        score=score,
        quotas=wanted.quotas(sources),
    )


def prerank_figures(parts: Parts, memory: int = 2 * GIB) -> dict[str, Any]:
    """Return `ranker.prerank.distil.figures` of requests of the test, by sources of before t2; nothing without it."""
    prepared, config = parts.prepared, parts.prepared.config
    if parts.prerank is None or parts.wanted is None or config.prerank is None:
        return {}
    sources = sources_until(prepared, parts.plugins, prepared.split.t2, memory)
    teacher = teacher_of(prepared, parts.plugins, sources, Wanted(parts.wanted, parts.shares))
    found = figures(teacher, parts.prerank, prepared.slices()["test"].requests, config.prerank.keep)
    kept = "" if found["kept_top50"] is None else f", and keeps {found['kept_top50']:.4f} of the ranker's own first 50"
    logger.info("[prerank] cuts something of %.0f %% of the test's requests%s", 100 * found["cut"], kept)
    return {PRERANK: found}
