"""From the scores of a Recommend to the places of its list.

rules       the scores and places that the TOML asks for
diversity   what stands below is unlike what stands above
at_most     at most so many of one value: it wins over a pin, as all filters do
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from features.plugin import FeaturePlugin
from features.schema import F64, I32, I64
from features.state.store import State
from ranker.candidates.at_most import NOTHING_FIXED, AtMost
from ranker.config import Config
from ranker.request import Request, Trace
from ranker.reranking.diversity import Diversity
from ranker.reranking.order import placed
from ranker.reranking.rules import Pinned, Rules
from ranker.settings import SourceSettings


@dataclass(frozen=True, slots=True)
class Reranking:
    """What a configuration asks for; each stage is None where it asks for nothing."""

    rules: Rules | None
    diversity: Diversity | None
    at_most: AtMost | None

    @classmethod
    def of(cls, config: Config, state: State, plugins: Mapping[str, FeaturePlugin]) -> "Reranking":
        """Return the stages. plugins: those that are served. PairliftError for what does not fit the items or these."""
        return cls(
            Rules.of(config.rules, state.catalog),
            Diversity.of(config.lists.diversity, plugins),
            AtMost.of(config.lists.at_most, state.catalog),
        )

    @property
    def sources(self) -> list[tuple[Pinned, SourceSettings]]:
        """The source of what rules pin, where they name items."""
        found = None if self.rules is None else self.rules.source()
        return [] if found is None else [found]

    def pins(self, request: Request, item: I32) -> list[I64]:
        """Return what `Rules.pins` does; nothing without rules."""
        return [] if self.rules is None else self.rules.pins(request, item)

    def top(self, request: Request, item: I32, score: F64, order: I64, k: int, trace: Trace) -> I64:
        """Return int64[<= k]: places of the items of the list. order: int64[n], all places, by float64[n] score."""
        head, fixed = len(order), NOTHING_FIXED
        if self.rules is not None:
            score, order, head, fixed, changed = self.rules.ruled(request, item, score)
            trace.ruled = list(changed)
        if self.diversity is not None:
            picks = k if self.at_most is None else head
            above = self.diversity.reordered(item, score, order[:head], picks, fixed)
            order = np.concatenate([above, order[head:]])
        return self.limited(item, order, k, trace, fixed)

    def limited(self, item: I32, order: I64, k: int, trace: Trace, fixed: I64 = NOTHING_FIXED) -> I64:
        """Return int64[<= k]: the first places of an order that `[lists] at_most` allows; the trace has the others.

        fixed: what is pinned to the first places, -1 for none, and is not in the order.
        """
        if self.at_most is None:
            return (placed(order, fixed) if len(fixed) else order)[:k]
        top, removed = self.at_most.first_of(item, order, k, fixed)
        trace.removed += removed
        return top
