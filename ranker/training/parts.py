"""Both parts of the ranker, fitted: one path for what is served, what its lists are measured on, and the benchmarks."""

from dataclasses import dataclass

import lightgbm as lgb

from features.plugin import FeaturePlugin
from features.schema import GIB
from ranker.blend.shares import Shares
from ranker.columns import Columns
from ranker.training.arms import Arm, Arms
from ranker.training.earlier_trees import Start
from ranker.training.network import NetworkArm, network_stage
from ranker.training.prepared import Prepared
from ranker.training.wanted import digest_of, wanted_stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The liked part, which orders Rank, and the wanted part, which orders Recommend."""

    arms: Arms  # the rows of the liked part
    plugins: dict[str, FeaturePlugin]  # by name, in the order of their columns
    columns: Columns  # of the plugins, for the rows of `arms`
    liked: Arm
    wanted: lgb.Booster | None  # None where nothing that the sources propose was wanted
    shares: Shares | None  # of candidates; None: the quotas of the TOML
    network: NetworkArm | None  # orders Rank in the liked part's place; None where `[ranker] model` is the booster

    @property
    def prepared(self) -> Prepared:
        """The log."""
        return self.arms.prepared


def fit_parts(arms: Arms, plugins: dict[str, FeaturePlugin], old: Start | None = None, memory: int = 2 * GIB) -> Parts:
    """Fit both parts with the seed of what is served, or reuse them.

    old: an earlier bundle's trees that the liked part goes on from. memory: bytes, of `Cooccurrence.build`.
    """
    prepared, columns = arms.prepared, arms.served_columns(plugins)
    seed, label = prepared.config.uplift.seeds[0], "+".join(plugins) or "without"
    liked = arms.fit(label if old is None else f"{label}-{old.mode}", columns, seed, old, "liked part")
    by_network = prepared.config.ranker.model == "network"
    network = network_stage(arms, label, columns, seed, told=True) if by_network else None
    wanted = wanted_stage(prepared, plugins, digest_of(columns, plugins), seed, memory, liked=liked.booster)
    return Parts(
        arms=arms,
        plugins=plugins,
        columns=columns,
        liked=liked,
        wanted=wanted.booster,
        shares=wanted.shares,
        network=network,
    )
