"""`[exploration]`: which requests get a list whose order is drawn, and that list."""

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from features.schema import F64, I32, I64
from ranker.candidates.at_most import AtMost
from ranker.exploration.draw import chances, drawn, race, standing
from ranker.request import Explored, Request
from ranker.settings import ExplorationSettings


@dataclass(frozen=True, slots=True)
class Exploration:
    """Draws the order of a share of the requests."""

    settings: ExplorationSettings

    def key(self, request: Request) -> int | None:
        """Return the key of a request's draw, None where its order is not drawn.

        It is a hash of the request's id, without one of user and as_of, and of the seed: a resend gets the same list.
        The feature log samples by another hash.
        """
        if not request.may_explore:
            return None
        asked = request.request_id or f"{request.user} {request.as_of}"
        digest = blake2b(asked.encode(), digest_size=16, salt=self.settings.seed.to_bytes(8, "little")).digest()
        if int.from_bytes(digest[:8], "little") >= self.settings.share * 2**64:
            return None
        return int.from_bytes(digest[8:], "little")

    def race(self, score: F64, order: I64) -> F64:
        """Return float64[m], the weights of the candidates whose order is drawn: see `ranker.exploration.draw`."""
        return race(score, order, self.settings.draw_temperature, self.settings.top)

    def list_of(
        self, key: int, item: I32, score: F64, order: I64, k: int, limits: AtMost | None
    ) -> tuple[I64, list[tuple[str, int]], Explored]:
        """Return int64[<= k] places of the list, (limit, items) of what limits took out, and how it was drawn.

        item, score: int32[n], float64[n]; order: int64[n], best first.
        """
        weight = self.race(score, order)
        found = drawn(key, item, order, weight)
        if limits is None:
            top, removed = found[:k], list[tuple[str, int]]()
            last = np.full(len(order), len(top))
        else:
            top, removed = limits.first_of(item, found, k)
            last = limits.last_of(item, item[top])
        propensity = chances(top, order, weight, standing(top, last))
        settings = self.settings
        return top, removed, Explored(settings.kind, settings.draw_temperature, propensity)
