"""The items nearest to the user by a plugin that the TOML names, beside `[sources.nearest]`, which takes the first."""

from copy import copy
from typing import Any, Self

from pydantic import Field

from features.plugin import VectorPlugin
from features.schema import DAY
from features.settings import Duration, Settings
from features.state.store import State
from ranker.candidates.demand import Demand
from ranker.candidates.named import Served, vector_plugin
from ranker.candidates.nearest import Nearest
from ranker.candidates.source import Proposal
from ranker.request import Request
from ranker.settings import exact_limit


class NearestBySettings(Settings):
    """Items nearest to the user by the vectors of a plugin, or by its own query and keys where it has these."""

    plugin: str = Field(description="Name of the one of [ranker] plugins (towers, item2vec, ALS).")
    weight: float = Field(
        default=0.5, ge=0, allow_inf_nan=False, description="Of the product over demand, as in [sources.nearest]."
    )
    half_life: Duration = Field(default=7 * DAY, gt=0, description="Of the counts of demand, likewise.")
    exact: int = exact_limit()


class NearestBy:
    """`ranker.candidates.nearest.Nearest` of the plugin that is named."""

    options = NearestBySettings
    name = "nearest_by"
    vectors = True

    def __init__(self, **params: Any) -> None:
        self.settings = NearestBySettings(**params)
        self.plugins = (self.settings.plugin,)

    def open(self, served: Served) -> None:
        """Take the plugin."""
        s = self.settings
        plugin: VectorPlugin = vector_plugin(f"[sources.{self.name}]", s.plugin, served.plugins)
        demand = Demand(served.state, served.floor, s.half_life) if getattr(plugin, "over_demand", False) else None
        self._nearest = Nearest(plugin, demand, s.weight, served.state, s.exact)
        self.blocks = self._nearest.blocks  # it runs the plugin's code

    def over(self, state: State) -> Self:
        """Return the same source over the demand of another state."""
        other, demand = copy(self), self._nearest.demand
        if demand is not None:
            other._nearest = self._nearest.by(demand.by(state))
        return other

    def in_full(self) -> Self | None:
        """Return the same source without a first pass; None where it has none."""
        nearest = self._nearest.in_full()
        if nearest is None:
            return None
        other = copy(self)
        other._nearest = nearest
        return other

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the items nearest to the user as of the request; the score is the product."""
        return self._nearest.propose(request, limit)
