"""The in-memory contract: the event log, the catalogue, and the requests that features are asked for.

Everything is arrays. Ids of the user's own log (integers or text) become dense indexes once, in
`features.log.dataset`; -1 is "not known" everywhere. Times are int64 microseconds UTC.
"""

from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from features.newcomers import New, Newcomers

I8 = npt.NDArray[np.int8]
I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Ids = npt.NDArray[Any]  # int64, or object (str): the user's own ids

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
#: zones change their offset from UTC at one, but for some minutes of the past
QUARTER = HOUR // 4
DAY = 24 * HOUR
GIB = 2**30  # bytes

#: name of the grade that a drawn (not shown) loser has in pair weights and in reports
SAMPLED = "sampled"
#: the first part of a counter's key that is declared so, and how the key ends in names of columns
BY_ARM = "by_arm"
#: the largest feedback, either way: a float64 running sum that has held it still resolves later values to 0.001
LARGEST_FEEDBACK = 1e12
#: of a log that is not recorded into
NO_NEWCOMERS = Newcomers()
#: `EventLog.arm` of an arm that has no number: `by_arm` counters of no request have such an event
OTHER_ARM = -2
#: of events and requests of no experiment: without rows
NO_ARMS: I16 = np.empty(0, np.int16)
#: of requests that start from no item, and of events of such: without rows
NO_SOURCE_ITEMS: I32 = np.empty(0, np.int32)
NO_SOURCES_OF_EVENTS: I32 = np.empty((0, 0), np.int32)
#: of requests in which nobody typed anything: without rows
NO_QUERIES: npt.NDArray[np.object_] = np.empty(0, np.object_)
#: of events and requests that say nothing of themselves: without rows
NO_CONTEXT: F32 = np.empty((0, 0), np.float32)
#: what an attribute of another kind has
NO_CODES, NO_OFFSETS, NO_NUMBERS = np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """All n events in time order; events of the same instant keep the order of the source."""

    user: I32  # [n], dense; -1 unknown
    item: I32  # [n], dense; -1 unknown
    ts: I64  # [n], µs UTC, never decreasing
    grade: I8  # [n], rank of the feedback grade from worst (0) to best; -1 none
    surface: I16  # [n], code; -1 unknown
    organic: I8  # [n], 1 or 0; -1 unknown
    request: I64  # [n], code of the source's request id; -1 none
    pairable: Bool  # [n], whether `pairing.where` lets the event make pairs
    feedback: F32  # [n, k], NaN where unknown
    feedback_names: tuple[str, ...]  # [k]
    #: [n], code of the experiment's arm that the user was in; -1 none, `OTHER_ARM` one without a code. Left out: none
    arm: I16 = field(default_factory=lambda: NO_ARMS)
    #: [n, contexts], what was said of itself by the request that each event is of, as `Requests.context`; [n, 0] where
    #: there is no `[events.context]`. Left out: that
    context: F32 = field(default_factory=lambda: NO_CONTEXT)
    #: [n, 1], dense; the item that the request of each event started from, -1 none or not known; [n, 0] where there is
    #: no `[events] source_item`. Left out: that
    source_item: I32 = field(default_factory=lambda: NO_SOURCES_OF_EVENTS)

    def __post_init__(self) -> None:
        if len(self.arm) != len(self.ts):
            object.__setattr__(self, "arm", arms_of(self.arm, len(self.ts)))
        if len(self.source_item) != len(self.ts):
            object.__setattr__(self, "source_item", event_sources(self.source_item, len(self.ts)))
        if len(self.context) != len(self.ts):
            object.__setattr__(self, "context", event_contexts(self.context, len(self.ts)))

    def __len__(self) -> int:
        return len(self.ts)

    def between(self, start: int, end: int) -> "EventLog":
        """Return the events with `start <= ts < end`, as views of the same arrays."""
        first, last = (int(np.searchsorted(self.ts, t, side="left")) for t in (start, end))
        return self.select(slice(first, last))

    def select(self, rows: Any) -> "EventLog":
        """Return the events of a mask, a slice or indexes (in time order)."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _ARRAYS})

    def until(self, end: int) -> "EventLog":
        """Return the events with `ts < end`: what may be seen as of `end`, as views of the same arrays."""
        return self.between(int(self.ts[0]) if len(self) else end, end)

    def with_feedback(self, k: int) -> "EventLog":
        """Return the log with the first k columns of feedback alone, as views."""
        return replace(self, feedback=self.feedback[:, :k], feedback_names=self.feedback_names[:k])


def arms_of(arm: I16, n: int) -> I16:
    """Return int16[n] arms: those that are given, or -1 of each where none are (`NO_ARMS`); ValueError otherwise."""
    if len(arm) not in (0, n):
        raise ValueError(f"{n} arms were expected, found {len(arm)}")
    return arm if len(arm) else np.full(n, -1, np.int16)


def source_items_of(item: I32, n: int) -> I32:
    """Return int32[n] source items: those that are given, or -1 where none are (no memory); ValueError otherwise."""
    if len(item) not in (0, n):
        raise ValueError(f"{n} source items were expected, found {len(item)}")
    return item if len(item) else np.broadcast_to(np.int32(-1), n)


def event_sources(item: I32, n: int) -> I32:
    """Return int32[n, s] source items: those that are given, or [n, 0] where none are; ValueError otherwise."""
    if len(item) not in (0, n):
        raise ValueError(f"the source items of {n} events were expected, found {len(item)}")
    return item if len(item) else np.empty((n, 0), np.int32)


def event_contexts(context: F32, n: int) -> F32:
    """Return float32[n, c] contexts: those that are given, or [n, 0] where none are (`NO_CONTEXT`); else ValueError."""
    if len(context) not in (0, n):
        raise ValueError(f"the contexts of {n} events were expected, found {len(context)}")
    return context if len(context) else np.empty((n, 0), np.float32)


#: the fields of an `EventLog` that have an entry for each event
_ARRAYS = tuple(f.name for f in fields(EventLog) if f.name != "feedback_names")


def empty_log(feedback_names: tuple[str, ...], n: int = 0, contexts: int = 0) -> EventLog:
    """Return n events at time 0, all their fields unknown. contexts: how many columns of context they have."""
    return EventLog(
        user=np.full(n, -1, np.int32),
        item=np.full(n, -1, np.int32),
        ts=np.zeros(n, np.int64),
        grade=np.full(n, -1, np.int8),
        surface=np.full(n, -1, np.int16),
        organic=np.full(n, -1, np.int8),
        request=np.full(n, -1, np.int64),
        pairable=np.ones(n, bool),
        feedback=np.full((n, len(feedback_names)), np.nan, np.float32),
        feedback_names=feedback_names,
        context=np.full((n, contexts), np.nan, np.float32),
    )


def merged(logs: list[EventLog]) -> EventLog:
    """Return all events in time order; those of one instant in the order given."""
    if len(logs) == 1 and (np.diff(logs[0].ts) >= 0).all():
        return logs[0]
    whole = {name: np.concatenate([getattr(part, name) for part in logs]) for name in _ARRAYS}
    order = np.argsort(whole["ts"], kind="stable")
    return EventLog(**{name: array[order] for name, array in whole.items()}, feedback_names=logs[0].feedback_names)


@dataclass(frozen=True, slots=True)
class Attribute:
    """One column of the n items or of the n users; its kind says which of the fields it fills."""

    name: str  # as the TOML names the column
    kind: str  # `categorical`, `multi`, `numeric`, `vector` or `text`
    _: KW_ONLY
    codes: I32 = field(default_factory=lambda: NO_CODES)  # places in `values`: [n], -1 missing; multi: all in one
    offsets: I64 = field(default_factory=lambda: NO_OFFSETS)  # multi: [n + 1], the bounds of each row in `codes`
    numbers: F32 = field(default_factory=lambda: NO_NUMBERS)  # numeric: [n], vector: [n, d]; NaN missing
    values: tuple[str, ...] = ()  # categorical, multi: the vocabulary; text: [n]

    def value_codes(self) -> dict[str, int]:
        """Return the code of each value of a vocabulary, made anew."""
        return {value: code for code, value in enumerate(self.values)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """The ids behind the dense indexes, and the attributes of items and users."""

    user_ids: Ids  # [n_users], sorted, all int64 or all text
    item_ids: Ids  # [n_items], sorted, all int64 or all text
    surfaces: tuple[str, ...] = ()  # the name of each code
    arms: tuple[str, ...] = ()  # of experiments: the name of each code
    item_attributes: tuple[Attribute, ...] = ()  # of n_items each
    user_attributes: tuple[Attribute, ...] = ()  # of n_users each
    contexts: tuple[Attribute, ...] = ()  # what a request says of itself (device …): numeric or categorical
    candidates: tuple[Attribute, ...] = ()  # what it says of each candidate (price …): numeric or categorical
    new_users: Newcomers = NO_NEWCOMERS  # came with recorded events; indexes from n_users on, no attributes
    new_items: Newcomers = NO_NEWCOMERS  # came with recorded events; indexes from n_items on, no attributes
    new_arms: Newcomers = NO_NEWCOMERS  # came with recorded events; codes from len(arms) on

    @property
    def n_users(self) -> int:
        """Number of users without new ones."""
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        """Number of items without new ones."""
        return len(self.item_ids)

    @property
    def all_users(self) -> int:
        """Number of users with new ones."""
        return self.n_users + self.new_users.count

    @property
    def all_items(self) -> int:
        """Number of items with new ones."""
        return self.n_items + self.new_items.count

    def surface_codes(self) -> dict[str, int]:
        """Return the code of each surface by its name, made anew; what is not in it has the code -1."""
        return {name: code for code, name in enumerate(self.surfaces)}

    def arm_code(self, name: str) -> int:
        """Return the code of an arm by its name; -1 where there is no event of it, and for the empty name: no arm."""
        if name in self.arms:
            return self.arms.index(name)
        new = int(self.new_arms.find([name])[0])
        return len(self.arms) + new if new >= 0 else -1

    @property
    def new(self) -> New:
        """What recorded events brought."""
        return New(self.new_users, self.new_items, self.new_arms)

    def with_new(self, new: New) -> "Catalog":
        """Return the catalogue with the new users, items and arms as of another moment."""
        return replace(self, new_users=new.users, new_items=new.items, new_arms=new.arms)

    def described_users(self, user: I32) -> I32:
        """Return int32[n] with -1 for new users: of them no attribute is known."""
        return np.where(user < self.n_users, user, np.int32(-1)) if self.new_users.room else user

    def described_items(self, item: I32) -> I32:
        """Return int32[n] with -1 for new items: neither attributes nor plugins know them."""
        return np.where(item < self.n_items, item, np.int32(-1)) if self.new_items.room else item

    def ids_of_users(self, user: I32) -> list[Any]:
        """Return the id behind each dense index, None behind -1."""
        return _ids_behind(self.user_ids, self.new_users, user)

    def ids_of_items(self, item: I32) -> list[Any]:
        """Return the id behind each dense index, None behind -1."""
        return _ids_behind(self.item_ids, self.new_items, item)

    def item_attribute(self, name: str) -> Attribute:
        """Return the item attribute of that name; KeyError where there is none."""
        return next(a for a in self.item_attributes if a.name == name)


def _ids_behind(known: Ids, new: Newcomers, index: I32) -> list[Any]:
    inside = (index >= 0) & (index < len(known))
    ids: list[Any] = known[index[inside]].tolist()
    if len(ids) < len(index):
        of_known, rest = iter(ids), (new.ids[k - len(known)] if k >= 0 else None for k in index[~inside].tolist())
        ids = [next(of_known) if own else next(rest) for own in inside.tolist()]
    return ids


def offsets_of(sizes: I64 | Bool) -> I64:
    """Return int64[n + 1]: where each of n runs of these sizes begins, and the end of the last."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


#: of requests that say nothing of their candidates: without rows
NO_GIVEN = np.empty((0, 0), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """g requests and the n candidates of each, flat: what features and plugins give values for.

    A pairing group of the log and a call to the server are the same thing here, so training and serving ask
    for features in one way.
    """

    user: I32  # [g], -1 cold
    as_of: I64  # [g], µs UTC
    surface: I16  # [g], -1 unknown
    offsets: I64  # [g + 1], request r has the candidates item[offsets[r]:offsets[r + 1]]
    item: I32  # [n], -1 cold
    context: F32 = field(default_factory=lambda: NO_CONTEXT)  # [g, contexts], numbers or codes; NaN unknown
    #: [n, candidates], what was said of each candidate in its request, numbers or codes, NaN unknown; then the features
    #: of the list that are asked for (`features.given`)
    given: F32 = field(default_factory=lambda: NO_GIVEN)
    #: [g], code of the experiment's arm that each is answered in, -1 none. Left out: none
    arm: I16 = field(default_factory=lambda: NO_ARMS)
    #: [g], dense; the item that each request starts from (of a list of related items), -1 none or cold. Left out: none
    source_item: I32 = field(default_factory=lambda: NO_SOURCE_ITEMS)
    #: [g], what the user typed, empty for nothing; without rows: nothing in any of them
    query: npt.NDArray[np.object_] = field(default_factory=lambda: NO_QUERIES)

    def __post_init__(self) -> None:
        if len(self.arm) != len(self.user):
            object.__setattr__(self, "arm", arms_of(self.arm, len(self.user)))
        if len(self.source_item) != len(self.user):
            object.__setattr__(self, "source_item", source_items_of(self.source_item, len(self.user)))

    def __len__(self) -> int:
        return len(self.user)

    def row_request(self) -> I64:
        """Return int64[n]: the request that each candidate belongs to."""
        return np.repeat(np.arange(len(self.user), dtype=np.int64), np.diff(self.offsets))

    def slice(self, start: int, stop: int) -> "Requests":
        """Return the requests `start .. stop - 1` with their candidates."""
        first, last = self.offsets[start], self.offsets[stop]
        return Requests(
            user=self.user[start:stop],
            as_of=self.as_of[start:stop],
            surface=self.surface[start:stop],
            offsets=self.offsets[start : stop + 1] - first,
            item=self.item[first:last],
            context=self.context[start:stop],
            given=self.given[first:last],
            arm=self.arm[start:stop],
            source_item=self.source_item[start:stop],
            query=self.query[start:stop],
        )

    def select(self, keep: Bool | I64) -> "Requests":
        """Return the requests of a mask bool[g], or of indexes int64[] in any order, with their candidates."""
        rows = np.arange(len(self))[keep]
        offsets = offsets_of(np.diff(self.offsets)[rows])
        take = np.repeat(self.offsets[rows] - offsets[:-1], np.diff(offsets)) + np.arange(offsets[-1])
        return Requests(
            user=self.user[rows],
            as_of=self.as_of[rows],
            surface=self.surface[rows],
            offsets=offsets,
            item=self.item[take],
            context=self.context[rows] if len(self.context) else self.context,
            given=self.given[take] if len(self.given) else self.given,
            arm=self.arm[rows],
            source_item=self.source_item[rows],
            query=self.query[rows] if len(self.query) else self.query,
        )

    def with_candidates(self, keep: Bool) -> "Requests":
        """Return all requests with the candidates of the mask bool[n] alone; a request may be left empty."""
        given = self.given[keep] if len(self.given) else self.given
        return replace(self, offsets=offsets_of(keep)[self.offsets], item=self.item[keep], given=given)


def one_request(
    user: int,
    as_of: int,
    surface: int,
    item: I32,
    context: F32 = NO_CONTEXT,
    given: F32 = NO_GIVEN,
    arm: int = -1,
    source_item: int = -1,
    query: str = "",
) -> Requests:
    """Return the `Requests` of a single call: user index, as_of in µs, surface code, int32[n] items, code of the arm.

    context, given, source_item, query: as in `Requests`.
    """
    return Requests(
        user=np.array([user], np.int32),
        as_of=np.array([as_of], np.int64),
        surface=np.array([surface], np.int16),
        offsets=np.array([0, len(item)], np.int64),
        item=np.asarray(item, np.int32),
        context=context,
        given=given,
        arm=np.array([arm], np.int16),
        source_item=np.array([source_item], np.int32),
        query=np.array([query], np.object_) if query else NO_QUERIES,
    )


def is_text(ids: Ids) -> bool:
    """Tell whether ids of the user's own are text; else they are int64."""
    return ids.dtype == object


def lookup(ids: Ids, wanted: Ids) -> I32:
    """Return the dense index of each wanted id in the sorted `ids`, -1 where it is unknown."""
    if len(ids) == 0 or len(wanted) == 0:
        return np.full(len(wanted), -1, np.int32)
    at = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.where(ids[at] == wanted, at, -1).astype(np.int32)
