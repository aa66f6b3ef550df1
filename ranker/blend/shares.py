"""How many candidates each source has for a request, as it was learned: see `ranker.blend.learned`.

Requests of users with and without history have shares of their own, and so have surfaces with users enough.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from ranker.candidates.configured import Sources
from ranker.candidates.filters import history
from ranker.candidates.gathering import Quotas, own_places, surface_of
from ranker.candidates.merge import Places
from ranker.request import Request

#: the surface of requests that name none, or one without shares of its own
ANY = ""


#: a share of places that is none: the configured order
NONE = 1.0

#: a mean, and the ends of its interval
Estimate = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Judged:
    """What learned shares find of what was wanted, less what the configured order does by as many candidates.

    Means of users that they were not learned of, and the ends of their intervals of 95 %; None of fewer than two users.
    """

    known: bool  # of users with history, or without
    reserved: float  # share of the places that were taken for new items; NONE keeps the configured order
    candidates: int  # of each request, of both orders
    gain: Estimate | None  # in recall
    new_items: Estimate | None  # in recall of new items alone

    @property
    def learned(self) -> bool:
        """Whether learned shares hold: they are better by more than noise, and no worse of new items by more."""
        more = self.gain is not None and self.gain[1] > 0
        return self.reserved < NONE and more and not (self.new_items is not None and self.new_items[2] < 0)

    def __str__(self) -> str:
        """Say which of the two is kept, and why."""
        kind = f"candidates of users {'with' if self.known else 'without'} history"
        if self.reserved == NONE:
            return f"{kind}: as configured, for no learned shares were better for those who chose"
        kept = f"learned shares, {100 * self.reserved:g} % of the places for new items"
        return (
            f"{kind}: {kept if self.learned else 'as configured, for learned shares are not shown to be better'} "
            f"(recall of {self.candidates} candidates, learned less configured, for users they were not learned of: "
            f"{_signed(self.gain)}; of new items {_signed(self.new_items)})"
        )

    def report(self) -> dict[str, Any]:
        """Return it as reports and the manifest have it."""
        return {**asdict(self), "learned": self.learned}

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Self:
        """Return what `report` gave, or `asdict`."""
        estimates = {key: found[key] and tuple(found[key]) for key in ("gain", "new_items")}
        return cls(known=found["known"], reserved=found["reserved"], candidates=found["candidates"], **estimates)


def _signed(of: Estimate | None) -> str:
    return "of too few users to tell" if of is None else f"{of[0]:+.4f} [{of[1]:+.4f}, {of[2]:+.4f}]"


@dataclass(frozen=True, slots=True)
class Share:
    """Of the requests of one kind."""

    known: bool  # whether the user has a history
    surface: str  # or ANY
    users: int  # it was learned of
    candidates: float  # of a request, in their mean
    quotas: Mapping[str, int]  # by source, behind the filters
    total: int  # places that are to be filled together, see `Places`


@dataclass(frozen=True, slots=True)
class Shares:
    """Those of all kinds of requests."""

    of: tuple[Share, ...]  # ANY is there for both values of `known`
    judged: tuple[Judged, ...]  # of both values

    def quotas(self, sources: Sources) -> Quotas:
        """Return the places of sources: what was learned, within their own quotas; their own of one that is new."""
        learned = {(share.known, share.surface): share for share in self.of}
        settings = [of for _, of in sources]

        @cache
        def of_kind(known: bool, surface: str) -> Places:
            share, own = learned.get((known, surface)) or learned[known, ANY], own_places(settings, surface)
            named = zip([source.name for source, _ in sources], own.quota, own.most, strict=True)
            return Places([min(share.quotas.get(name, q), most) for name, q, most in named], own.most, share.total)

        def of(request: Request) -> Places:
            return of_kind(len(history(request)) > 0, surface_of(request))

        return of

    def report(self) -> dict[str, Any]:
        """Return it as reports have it."""
        return {"judged": [of.report() for of in self.judged], "of": [asdict(of) for of in self.of]}

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return what `write` wrote; None where there is no such file."""
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        return cls(tuple(Share(**of) for of in found["of"]), tuple(map(Judged.read, found["judged"])))
