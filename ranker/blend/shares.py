"""How many candidates each source has for a request, as it was learned: see `ranker.blend.learned`.

Requests of users with and without history have shares of their own, and so have surfaces with users enough.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Self

from ranker.candidates.configured import Sources
from ranker.candidates.filters import history
from ranker.candidates.gathering import Quotas, surface_of
from ranker.request import Request
from ranker.settings import QUOTA, SourceSettings

#: the surface of requests that name none, or one without shares of its own
ANY = ""


@dataclass(frozen=True, slots=True)
class Share:
    """Of the requests of one kind."""

    known: bool  # whether the user has a history
    surface: str  # or ANY
    users: int  # it was learned of
    candidates: float  # of a request, in their mean
    quotas: Mapping[str, int]  # by source, behind the filters


@dataclass(frozen=True, slots=True)
class Shares:
    """Those of all kinds of requests."""

    budget: float  # candidates that a request may have, in the mean
    of: tuple[Share, ...]  # ANY is there for both values of `known`

    def quotas(self, sources: Sources) -> Quotas:
        """Return the quotas of sources: what was learned, within their own; their own of one that is new."""
        learned = {(share.known, share.surface): share.quotas for share in self.of}

        @cache
        def of_kind(known: bool, surface: str) -> list[int]:
            own = learned.get((known, surface)) or learned[known, ANY]
            return [_within(own.get(source.name), settings, surface) for source, settings in sources]

        def of(request: Request) -> list[int]:
            return of_kind(len(history(request)) > 0, surface_of(request))

        return of

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return what `write` wrote; None where there is no such file."""
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        return cls(found["budget"], tuple(Share(**share) for share in found["of"]))


def _within(learned: int | None, settings: SourceSettings, surface: str) -> int:
    most = settings.most(surface)
    return (most or QUOTA) if learned is None else min(learned, most or learned)
