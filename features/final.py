"""The FinalRanker Protocol: what orders Rank in the booster's place, learned from the same rows, pairs and weights.

It is named in the TOML by its path (`[network] class`) and never imported by name in `ranker`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, cast, runtime_checkable

from features.pairing.slice import Slice
from features.plugin import built, class_of
from features.schema import F32, F64


@runtime_checkable
class FinalRanker(Protocol):
    """A ranker over the columns that a booster has: NaN is a missing value, a categorical column holds codes.

    It is built from its table in the TOML (without `class`), as keyword arguments; a wrong one raises PairliftError. A
    class whose options are a pydantic model names it in the attribute `options`. The same rows, options and seed give
    the same scores, to the bit on one machine.
    """

    report: dict[str, Any]  # what the fit reached, as JSON: `parameters`, and `epochs` where it has some

    def __init__(self, **params: Any) -> None: ...

    def fit(
        self, columns: Sequence[str], categorical: Sequence[str], train: Slice, validation: Slice, seed: int
    ) -> None:
        """Learn from the weighted pairs of one slice, stopped by the PairAccuracy of the other; progress on stderr.

        columns: of the rows, in their order. categorical: those of them that are codes. The rows have no infinity.
        """

    def score(self, matrix: F32) -> F64:
        """Return float64[n] of float32[n, c] rows; a row's score depends on no other row, but for rounding.

        On the calling thread alone, and safe to call from several.
        """

    def save(self, folder: Path) -> None:
        """Write all that `load` needs into an empty folder; after `load`, write the same again."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; never imports torch."""


def ranker_class(path: str) -> type[FinalRanker]:
    """Import `module:Class` of `[network]`; PairliftError where there is no such thing, or its module raises."""
    methods = ("fit", "score", "save", "load")
    return cast(type[FinalRanker], class_of(f"[network] class '{path}'", path, methods, "features.final.FinalRanker"))


def make_ranker(path: str, params: Mapping[str, Any]) -> FinalRanker:
    """Build what `[network]` asks for; a PairliftError names the table."""
    return cast(FinalRanker, built("[network]", ranker_class(path), path, params))
