"""What a request says of itself, as codes: of the request asked, for the heads behind the trunk, and of past events,
for their tokens. NumPy alone.

A code of 0 is "unknown": not said, or never met during fit. That is a value of its own, and none of the known ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from features.errors import PairliftError, did_you_mean
from features.plain import day_of_week, hour_of_day
from features.schema import F32, I64, Attribute, Catalog

#: what a request says without [events.context]
OWN = ("surface", "hour", "weekday")
SURFACE_ALONE = ("surface",)
HOURS, WEEKDAYS = 24, 7
#: a number is known by which of so many bins of equally many events it is in
BINS = 16


@dataclass(frozen=True, slots=True)
class ContextAttribute:
    """One of `[events.context]`, as it was during fit."""

    name: str
    place: int  # in `Requests.context`
    category: bool  # else a number
    marks: tuple[float, ...]  # increasing: the codes that a category had; the lower bounds of a number's bins

    @classmethod
    def build(cls, attribute: Attribute, place: int, context: F32) -> Self:
        """Take what was said during fit: float32[n, contexts] as `EventLog.context`."""
        said = context[:, place] if context.size else np.empty(0, np.float32)
        said, category = said[np.isfinite(said)], attribute.kind == "categorical"
        if len(said) and not category:
            said = np.quantile(said, np.arange(1, BINS) / BINS, method="inverted_cdf")
        return cls(attribute.name, place, category, tuple(np.unique(said).tolist()))

    @property
    def size(self) -> int:
        """How many codes there are; 1 where nothing was known."""
        return len(self.marks) + (1 if self.category or not self.marks else 2)

    def codes(self, context: F32) -> I64:
        """Return int64[g] codes of float32[g, contexts]."""
        said = context[:, self.place]
        if not self.marks:
            return np.zeros(len(said), np.int64)
        marks = np.array(self.marks)  # once: of many values it takes longer than the search
        place = marks.searchsorted(said, side="right")
        # A category is known where it is one that the fit met; the place behind it is its code.
        met = marks.take(np.maximum(place - 1, 0)) == said if self.category else np.isfinite(said)
        return np.where(met, place if self.category else place + 1, 0).astype(np.int64)


def check_context(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise PairliftError for a name that is neither in OWN nor known, of `[events.context]`."""
    for name in names:
        if name not in known and name not in OWN:
            near = did_you_mean(name, [*known, *OWN])
            raise PairliftError(
                f"context: surface, hour, weekday or a name of [events.context] was expected, found '{name}'{near}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSpec:
    """Which parts of a request's context are read."""

    surface: bool = True
    hour: bool = False
    weekday: bool = False
    attributes: tuple[ContextAttribute, ...] = ()
    zone: str = "UTC"  # of hour and weekday
    in_tokens: bool = False  # whether past events' tokens have the attributes too; in older fits they have not

    @classmethod
    def build(cls, names: Sequence[str], catalog: Catalog, context: F32, zone: str) -> Self:
        """Return what these names ask for; PairliftError for one that is neither in OWN nor in `[events.context]`.

        context: float32[n, contexts] of the events of the fit, as `EventLog.context`.
        """
        known = {attribute.name: place for place, attribute in enumerate(catalog.contexts)}
        check_context(names, list(known))
        further = [name for name in names if name not in OWN]
        attributes = (ContextAttribute.build(catalog.contexts[known[name]], known[name], context) for name in further)
        own = {name: name in names for name in OWN}
        return cls(**own, attributes=tuple(attributes), zone=zone, in_tokens=bool(further))

    @classmethod
    def of_json(cls, saved: dict[str, Any]) -> Self:
        """Return what `asdict` made, JSON having lists for tuples."""
        attributes = (ContextAttribute(**a | {"marks": tuple(a["marks"])}) for a in saved["attributes"])
        return cls(**saved | {"attributes": tuple(attributes)})

    @property
    def clock_sizes(self) -> tuple[int, ...]:
        """How many codes each column of `clock` has."""
        return (*[HOURS + 1] * self.hour, *[WEEKDAYS + 1] * self.weekday)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many codes each column of `codes` has."""
        return (*self.clock_sizes, *(attribute.size for attribute in self.attributes))

    @property
    def token_sizes(self) -> tuple[int, ...]:
        """How many codes each column of `token_codes` has."""
        return self.sizes if self.in_tokens else self.clock_sizes

    def clock(self, ts: I64) -> I64:
        """Return int64[…, columns] codes of hour and weekday, where they are read; ts: int64[…], µs UTC."""
        flat = ts.ravel()
        columns = [hour_of_day(flat, self.zone).astype(np.int64)] if self.hour else []
        columns += [day_of_week(flat, self.zone)] if self.weekday else []
        codes = np.stack(columns, axis=-1) + 1 if columns else np.empty((len(flat), 0), np.int64)
        return codes.reshape(*ts.shape, len(columns))

    def codes(self, ts: I64, context: F32) -> I64:
        """Return int64[g, columns] codes of all but the surface: hour, weekday, then the attributes.

        ts: int64[g], µs UTC. context: float32[g, contexts], NaN unknown; of no rows or columns where nothing is said.
        """
        if self.attributes and not context.size:
            said = [np.zeros(len(ts), np.int64)] * len(self.attributes)
        else:
            said = [attribute.codes(context) for attribute in self.attributes]
        return np.concatenate([self.clock(ts), *(column[:, None] for column in said)], axis=1)

    def token_codes(self, ts: I64, context: F32) -> I64:
        """Return int64[n, columns] codes of past events, whose surfaces every token has. ts, context: as of `codes`."""
        return self.codes(ts, context) if self.in_tokens else self.clock(ts)
