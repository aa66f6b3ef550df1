"""What a trial is measured on: for a part of the ranker its rows, made once, and the figure that it is for.

The liked part (`ranker.retune.liked`) is judged by PairAccuracy of the shown pairs, the wanted part
(`ranker.retune.wanted`) by NDCG@10 of whole lists. They share no parameter that is searched, and neither is fitted
with the other's trees (served lists add a share of the liked part's score), so neither order is bought by the other.
"""

from typing import Protocol

from features.schema import F64
from ranker.config import Config
from ranker.retune.report import SEEDS, Measure
from ranker.retune.space import Parameter
from ranker.training.prepared import Prepared


class Bench(Protocol):
    """What every trial is measured on."""

    @property
    def config(self) -> Config:
        """The TOML's own, whose parameters are searched."""

    @property
    def measure(self) -> Measure:
        """What trials are judged by."""

    @property
    def judged(self) -> int:
        """How many pairs, or requests, of the validation slice they are judged by."""

    @property
    def total(self) -> float:
        """What a fit is worth at most."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of a trial's fits."""

    @property
    def key(self) -> str:
        """A hash of rows, the TOML's own parameters and the code: another one is another study."""

    def space(self) -> list[Parameter]:
        """Return what is searched over."""

    def fit(self, config: Config, seed: int) -> tuple[F64, int]:
        """Fit; return float64[n_users], what it is worth by user of the validation slice, and the trees."""


def seeds_of(prepared: Prepared) -> tuple[int, ...]:
    """Return the seeds of a trial's fits."""
    first = prepared.config.uplift.seeds[0]
    return tuple(range(first, first + SEEDS))
