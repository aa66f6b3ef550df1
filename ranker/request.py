"""One ranking request and its answer in our own terms: dense indexes and arrays, no wire and no ids."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from features.errors import PairliftError
from features.schema import F32, F64, I32, I64, NO_CONTEXT, Bool, Requests, one_request

if TYPE_CHECKING:  # the clients load this file, and need no compiled kernels
    from features.state.histories import Histories
    from features.state.store import State

U32 = npt.NDArray[np.uint32]

#: `Candidates.place` of an item that a source did not propose; above every real place
ABSENT = np.int32(2**31 - 1)
#: a bit of the answer's uint32 mask for each source
MAX_SOURCES = 32


class RequestError(PairliftError):
    """A request that the caller must mend: it becomes INVALID_ARGUMENT on the wire."""


def too_long(place: str, most: int, found: int) -> str:
    """Return why a text id of so many bytes is refused."""
    return f"{place}: an id of at most {most} bytes in UTF-8 ([record] max_id_bytes) was expected, found one of {found}"


def _none() -> I32:
    return np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Request:
    """One call. user, surface, source_item: dense, -1 where cold or missing. as_of: µs UTC. context: float32[1, c], as
    `Requests.context`.

    keep_values: whether `Answer.values` is wanted.
    exclude: int32[m], items that Recommend must not give (-1 is harmless). explain: whether `Answer.detail`
    is wanted. state: what the whole request reads, where the server's state moves on; None: the pipeline sets it.
    """

    user: int
    as_of: int
    surface: int = -1
    source_item: int = -1
    query: str = ""
    context: F32 = field(default_factory=lambda: NO_CONTEXT)
    exclude: I32 = field(default_factory=_none)
    explain: bool = False
    keep_values: bool = False
    state: "State | None" = None

    def histories(self, default: "Histories") -> "Histories":
        """Return the histories that the request reads: its state's, or `default` where it has none."""
        return default if self.state is None else self.state.histories

    def requests(self, item: I32) -> Requests:
        """Return the `Requests` that features and plugins take, with the candidates int32[n]."""
        return one_request(self.user, self.as_of, self.surface, item, self.context)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Items under consideration and who proposed them.

    item: int32[n], distinct. place: int32[n, s], where in its list each source proposed it (0 first),
    `ABSENT` where it did not.
    """

    item: I32
    place: I32

    def __len__(self) -> int:
        return len(self.item)

    def select(self, keep: Bool) -> "Candidates":
        """Return the candidates of the mask bool[n]."""
        return Candidates(self.item[keep], self.place[keep])

    def split(self, keep: Bool) -> tuple["Candidates", "Candidates"]:
        """Return (kept, removed) of the mask bool[n]."""
        return self.select(keep), self.select(~keep)

    @property
    def sources(self) -> U32:
        """uint32[n]: bit b is set where source b proposed the item."""
        bits = np.left_shift(np.uint32(1), np.arange(self.place.shape[1], dtype=np.uint32))
        return np.asarray(((self.place < ABSENT) * bits).sum(axis=1), np.uint32)


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What one source did: how many items it proposed, how many of them were scored, its problem."""

    name: str
    proposed: int
    scored: int
    problem: str


@dataclass(frozen=True, slots=True)
class Detail:
    """How an answer came about. The first r items of the answer are explained, over the c columns of the
    bundle.

    values: float32[r, c]. contributions: float32[r, c], which sum to the score with `base`. stages: (name,
    µs).
    """

    columns: tuple[str, ...]
    values: F32
    contributions: F32
    base: float
    sources: tuple[SourceReport, ...]
    removed: tuple[tuple[str, int], ...]
    stages: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """k items, best first, as parallel arrays.

    index: int64[k], place in the request's items (Rank) or among the candidates (Recommend). item: int32[k].
    score: float64[k]. sources: uint32[k] masks over `source_names`. degraded: what failed or was late. values:
    float32[k, c] that the scores were computed of, for the feature log.
    """

    index: I64
    item: I32
    score: F64
    sources: U32
    source_names: tuple[str, ...]
    degraded: tuple[str, ...]
    detail: Detail | None
    values: F32 | None = None
