"""One ranking request and its answer in our own terms: dense indexes and arrays, no wire and no ids."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from features.errors import PairliftError
from features.schema import DAY, F32, F64, I32, I64, NO_CONTEXT, NO_GIVEN, Catalog, Requests, one_request

if TYPE_CHECKING:  # the clients load this file, and need no compiled kernels
    from features.state.store import State

U32 = npt.NDArray[np.uint32]

#: `Candidates.place` of an item that a source did not propose; above every real place
ABSENT = np.int32(2**31 - 1)
NO_ITEMS = np.empty(0, np.int32)
#: a bit of the answer's uint32 mask for each source
MAX_SOURCES = 32
BITS = np.left_shift(np.uint32(1), np.arange(MAX_SOURCES, dtype=np.uint32))
#: the attribute of [events.context] that is what the user typed
QUERY = "query"
#: bytes of the longest query, in UTF-8: some pages of it say no more
MAX_QUERY = 4096
#: other units of time, and how many microseconds one has
UNITS = {"milliseconds": 1000, "seconds": 1_000_000}
#: how far from the log a time may lie that is taken for one in another unit, µs
NEAR = 365 * DAY


class RequestError(PairliftError):
    """A request that is wrong, so that the caller must change it: INVALID_ARGUMENT on the wire."""


class GoneError(Exception):
    """Nobody waits for the answer any more: the caller's deadline is over."""


class GivenUpError(GoneError):
    """Nobody waits for the answer any more: the caller gave up."""


def too_long(place: str, most: int, found: int) -> str:
    """Return why a text id of so many bytes is refused."""
    return f"{place}: an id of at most {most} bytes in UTF-8 ([record] max_id_bytes) was expected, found one of {found}"


class Check:
    """Whether the answer of a request is awaited, asked between stages: as it is, whatever time that takes."""

    #: seconds (monotonic) after which nobody waits
    until = math.inf

    def __call__(self) -> None:
        """GoneError where nobody waits for the answer any more."""


#: of a request that has no caller with a deadline
awaited = Check()


@dataclass(frozen=True, slots=True)
class Request:
    """One call, with the state that all of it reads: the state of now may move on while the request is under way."""

    user: int  # dense; -1 cold
    as_of: int  # µs UTC
    _: KW_ONLY
    state: "State"  # ids, counters and histories of one moment
    surface: int = -1  # code; -1 missing
    arm: int = -1  # code (`Catalog.arm_code`) of the experiment's arm that answers; -1 none
    source_item: int = -1  # dense; -1 cold or missing
    unknown_source_item: bool = False  # whether one was named that is cold
    query: str = ""  # what the user typed; empty: nothing
    context: F32 = field(default_factory=lambda: NO_CONTEXT)  # [1, c], as `Requests.context`
    texts: Mapping[str, str] = field(
        default_factory=dict
    )  # of `context` the categories, also those that it cannot have
    exclude: I32 = field(default_factory=lambda: NO_ITEMS)  # [m], items that Recommend must not give; -1 is harmless
    explain: bool = False  # whether `Answer.detail` is wanted
    keep_values: bool = False  # whether `Answer.values` is wanted
    may_explore: bool = False  # whether a draw may order the list, where [exploration] has one
    request_id: str = ""  # the caller's name for it; empty: none
    check: Check = awaited  # whether somebody waits for the answer, and until when

    @classmethod
    def of(cls, requests: Requests, k: int, state: "State") -> "Request":
        """Return the k-th of some requests, to be answered from a state."""
        context = requests.context[k : k + 1] if len(requests.context) else NO_CONTEXT
        user, as_of, surface, arm = (
            int(of[k]) for of in (requests.user, requests.as_of, requests.surface, requests.arm)
        )
        query = str(requests.query[k]) if len(requests.query) else ""
        source = int(requests.source_item[k])
        return cls(user, as_of, state=state, surface=surface, arm=arm, source_item=source, query=query, context=context)

    def requests(self, item: I32, given: F32 = NO_GIVEN) -> Requests:
        """Return the `Requests` that features and plugins take, with the candidates int32[n]. given: as there."""
        asked = self.source_item, self.query
        return one_request(self.user, self.as_of, self.surface, item, self.context, given, self.arm, *asked)


def with_queries(requests: Requests, catalog: Catalog) -> Requests:
    """Return requests of the log with what their users typed: the context attribute `query`; empty for none."""
    for place, known in enumerate(catalog.contexts if len(requests.context) else ()):
        if known.name == QUERY and known.kind == "categorical":
            code = np.nan_to_num(requests.context[:, place], nan=-1.0).astype(np.int64)
            texts = np.array([*known.values, ""], np.object_)
            return replace(requests, query=texts[code])
    return requests


@dataclass(frozen=True, slots=True)
class Candidates:
    """Items under consideration and who proposed them."""

    item: I32  # [n], dense; distinct, but for the items of a Rank: those are the caller's, -1 cold
    place: I32  # [n, s], where in its list each source proposed the item (0 first), `ABSENT` where it did not
    #: [n, c], what is said of each: numbers and codes of `Catalog.candidates`, NaN unknown; without rows: nothing
    given: F32 = field(default_factory=lambda: NO_GIVEN)

    def __len__(self) -> int:
        return len(self.item)

    def select(self, rows: I64) -> "Candidates":
        """Return the candidates of int64[k] rows, in their order."""
        given = self.given[rows] if len(self.given) else self.given
        return Candidates(self.item[rows], self.place[rows], given)

    @property
    def sources(self) -> U32:
        """uint32[n]: bit b is set where source b proposed the item."""
        return np.asarray((self.place < ABSENT) @ BITS[: self.place.shape[1]], np.uint32)


class Trace:
    """What one request leaves behind beside its items: for metrics, `Answer.degraded` and `Detail`."""

    __slots__ = (
        "_check",
        "_last",
        "candidates",
        "missing",
        "problems",
        "proposed",
        "removed",
        "ruled",
        "stages",
        "took",
    )

    def __init__(self, check: Callable[[], None] = awaited) -> None:
        """check: of the request, asked at the end of each stage."""
        self._check = check
        self.stages: list[tuple[str, int]] = []  # (stage, µs), in their order
        self.took: dict[str, int] = {}  # µs of each source and plugin that was asked, by lane (`sources.nearest`)
        self.problems: dict[str, str] = {}  # why one failed, was late or was not asked, by lane
        self.proposed: list[int] = []  # items of each source, in the order of the bits
        self.removed: list[tuple[str, int]] = []  # (filter, items)
        self.ruled: list[tuple[str, I64]] = []  # (rule, [m] places of the candidates that it changed)
        self.candidates = 0  # items that were scored
        self.missing: I64 | None = None  # [c], how many of the candidates lack each feature (NaN); None: none scored
        self._last = time.perf_counter_ns()

    def mark(self, stage: str) -> None:
        """End a stage; GoneError where nobody waits for the rest."""
        self._check()
        now = time.perf_counter_ns()
        self.stages.append((stage, (now - self._last) // 1000))
        self._last = now


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What one source did."""

    name: str  # of the source
    proposed: int  # items, before dedupe and filters
    scored: int  # how many of them were scored
    problem: str  # why it gave nothing, where it failed or was late


@dataclass(frozen=True, slots=True)
class RuleReport:
    """What one rule of `[rules]` did."""

    name: str
    changed: int  # candidates that it pinned, boosted or buried
    places: tuple[int, ...]  # of those that are in the answer, 0 the first


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """How an answer came about; its first r items are explained, over the c columns of the part that scored."""

    columns: tuple[str, ...]  # c names
    values: F32  # [r, c]
    contributions: F32 | None  # [r, c], which sum to the score with `base`; None of a network, which has none
    base: float  # the score without any feature
    liked: F64  # [r], of the liked part, which orders Rank
    wanted: F64 | None  # [r], of the wanted part, which orders Recommend; None where it was not asked
    sources: tuple[SourceReport, ...]  # none for a Rank
    removed: tuple[tuple[str, int], ...]  # (filter, items)
    rules: tuple[RuleReport, ...]  # none for a Rank
    stages: tuple[tuple[str, int], ...]  # (stage, µs)


@dataclass(frozen=True, slots=True)
class Explored:
    """How the order of a list was drawn: see `ranker.exploration`."""

    kind: str  # of [exploration]
    temperature: float | None  # None: the draw did not read the scores
    propensity: F64  # [k], the chance of each item given the items above it, in (0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """k items, best first or in an order that was drawn, as parallel arrays."""

    index: I64  # [k], place in the request's items (Rank) or among the candidates (Recommend)
    item: I32  # [k], dense
    score: F64  # [k]
    sources: U32  # [k], masks over `source_names`
    source_names: tuple[str, ...]  # of the bits of `sources`, the lowest first
    degraded: tuple[str, ...]  # what failed or was late, such as `sources.nearest`
    bundle_version: str  # of the bundle that computed it
    reason: str = ""  # why a Recommend gives fewer than k items (`ranker.candidates.shortage`); empty: it does not
    detail: Detail | None = None
    values: F32 | None = None  # [k, c] that the scores were computed of, for the feature log
    explored: Explored | None = None  # None: the order was not drawn
    trace: Trace = field(default_factory=Trace)  # how it came about: stages, sources, plugins

    @property
    def stages(self) -> tuple[tuple[str, int], ...]:
        """(stage, µs), in their order."""
        return tuple(self.trace.stages)
