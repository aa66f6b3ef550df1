"""How many candidates each source has for a request, as it was learned: see `ranker.blend.learned`.

Requests of users with and without history have shares of their own, and so have surfaces with users enough.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from features.schema import F32
from ranker.blend.worth import LEAD, Steps, led, worth_at
from ranker.candidates.configured import Sources
from ranker.candidates.filters import history
from ranker.candidates.gathering import Quotas, own_places, surface_of
from ranker.candidates.merge import Places
from ranker.request import Request

#: the surface of requests that name none, or one without shares of its own
ANY = ""
#: a weight of new items that is none: the configured order
NONE = 0.0
#: candidates that each source has at least, where they are FLOORS of all at most. The log favours what was shown, so it
#: never tells all that a new item is worth; and what a source says of others' items is a feature of theirs
FLOOR, FLOORS = 10, 0.25

#: a mean, and the ends of its interval
Estimate = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Judged:
    """What learned shares find of what was wanted, less what the configured order does by as many candidates.

    Means of users that they were not learned of, and the ends of their intervals of 95 %; None of fewer than two users.
    """

    known: bool  # of users with history, or without
    new_weight: float  # as so many counts a new item that was wanted; NONE keeps the configured order
    candidates: int  # of each request, of both orders
    gain: Estimate | None  # in recall
    new_items: Estimate | None  # in recall of new items alone

    @property
    def learned(self) -> bool:
        """Whether learned shares hold: they are better by more than noise, and no worse of new items by more."""
        more = self.gain is not None and self.gain[1] > 0
        return self.new_weight > NONE and more and not (self.new_items is not None and self.new_items[2] < 0)

    def __str__(self) -> str:
        """Say which of the two is kept, and why."""
        kind = f"candidates of users {'with' if self.known else 'without'} history"
        if self.new_weight == NONE:
            return f"{kind}: as configured, for no learned shares were better for those who chose"
        kept = f"learned shares, a new item counts as {self.new_weight:g}"
        return (
            f"{kind}: {kept if self.learned else 'as configured, for learned shares are not shown to be better'} "
            f"(recall of {self.candidates} candidates, learned less configured, for users they were not learned of: "
            f"{_signed(self.gain)}; of new items {_signed(self.new_items)})"
        )

    def report(self) -> dict[str, Any]:
        """Return it as reports and the manifest have it."""
        return {**asdict(self), "learned": self.learned}

    @classmethod
    def known_of(cls, found: Sequence[Mapping[str, Any]]) -> list[Self]:
        """Return what a manifest has, less what an older one says in other words, of before places had a worth."""
        return [cls.read(of) for of in found if "new_weight" in of]

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Self:
        """Return what `report` gave, or `asdict`."""
        estimates = {key: found[key] and tuple(found[key]) for key in ("gain", "new_items")}
        return cls(known=found["known"], new_weight=found["new_weight"], candidates=found["candidates"], **estimates)


def floor_of(total: int, sources: int) -> int:
    """Return how many candidates each of so many sources has at least, of `total` in all."""
    return min(FLOOR, int(FLOORS * total) // max(sources, 1))


def _signed(of: Estimate | None) -> str:
    return "of too few users to tell" if of is None else f"{of[0]:+.4f} [{of[1]:+.4f}, {of[2]:+.4f}]"


@dataclass(frozen=True, slots=True)
class Share:
    """Of the requests of one kind."""

    known: bool  # whether the user has a history
    surface: str  # or ANY
    users: int  # it was learned of
    candidates: float  # of a request, in their mean
    quotas: Mapping[str, int]  # by source, behind the filters; with a worth: how deep its list is looked at
    total: int  # places that are to be filled together, see `Places`
    floor: int = 0  # with a worth: candidates that each source has at least
    #: by source, (place, its worth in log-odds), see `ranker.blend.worth`; None: all within the quotas are candidates
    worth: Mapping[str, Steps] | None = None

    def table(self, names: Sequence[str], depth: int) -> F32 | None:
        """Return float32[s, depth]: what places of the named sources are worth, see `Places`; None without a worth.

        What comes of a source that was not learned of, as of pins, is before all else.
        """
        if self.worth is None:
            return None
        new = np.full(depth, 2 * LEAD, np.float32)
        own = [worth_at(self.worth[name], depth) if name in self.worth else new for name in names]
        return led(np.array(own, np.float32).reshape(len(names), depth), self.floor)


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
            names = [source.name for source, _ in sources]
            named = zip(names, own.quota, own.most, strict=True)
            quota = [min(share.quotas.get(name, q), most) for name, q, most in named]
            worth, total = share.table(names, max(quota, default=0)), share.total
            if worth is not None:  # all is kept of a source that was not learned of
                total = max(total, sum(q for name, q in zip(names, quota, strict=True) if name not in share.quotas))
            return Places(quota, own.most, total, worth)

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
        return cls(tuple(Share(**of) for of in found["of"]), tuple(Judged.known_of(found["judged"])))
