"""How much of the liked part's score the order of `Recommend` has."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from features.schema import F64

#: weights that are tried
WEIGHTS = (0.125, 0.25, 0.5, 1.0, 2.0)
#: of NDCG on the validation slice, that a weight may cost at most
COST = 0.01
#: fewer users than this choose nothing
LEAST = 20


@dataclass(frozen=True, slots=True)
class LikedWeight:
    """What the liked part's score is multiplied by before it is added."""

    weight: float
    chosen: bool  # False: it is that of `[lists] liked`
    ndcg: dict[str, float]  # by weight, as text: mean by user on the validation slice

    @classmethod
    def of(cls, by_weight: Mapping[float, F64], given: float | None, drawn: bool = False) -> Self:
        """Return the given weight, else `chosen_of`. by_weight, drawn: as there."""
        means = {f"{weight:g}": float(figure.mean()) for weight, figure in by_weight.items()}
        return cls(chosen_of(by_weight, drawn) if given is None else given, given is None, means)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read what `write` wrote; None where there is no such file."""
        return cls(**json.loads(path.read_text())) if path.exists() else None

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(self.report()))

    def report(self) -> dict[str, Any]:
        """Return it as the manifest of a bundle has it."""
        return asdict(self)

    def __str__(self) -> str:
        how = "" if self.chosen else " ([lists] liked)"
        tried = ", ".join(f"{weight}: {mean:.4f}" for weight, mean in self.ndcg.items())
        return f"lists add {self.weight:g} of the liked part's score{how}; NDCG of validation by weight: {tried}"


def chosen_of(by_weight: Mapping[float, F64], drawn: bool = False) -> float:
    """Return the weight that is nearest to the simplest order and costs the lists nothing which could be told.

    by_weight: float64[users], the NDCG of each user's lists, by weight; 0 is among them. A weight will do that loses to
    the best one at most one standard error of their difference by user, and at most the share COST: the
    one-standard-error rule (Breiman et al. 1984, Classification and Regression Trees, 3.4.3). The simplest order has
    most of the liked part, as no policy decided which of two shown items it was told is better; where it has learned
    of losers that were `drawn`, it has none. Fewer users than LEAST, or lists without a hit, choose nothing: 0.
    """
    best = max(by_weight.values(), key=np.mean)
    if len(best) < LEAST or not best.any():
        return 0.0

    def costs_nothing(figure: F64) -> bool:
        lost = best - figure
        error = lost.std(ddof=1) / np.sqrt(len(lost))
        return bool(lost.mean() <= min(error, COST * best.mean()))

    return (min if drawn else max)(weight for weight, figure in by_weight.items() if costs_nothing(figure))
