"""Filters of candidates: each item has the filter that removes it, so that nothing drops in silence."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from features.errors import PairliftError
from features.hashing import bits_for, probe
from features.kernels import njit
from features.schema import I8, I32
from features.state.store import State
from ranker.conditions.condition import Condition
from ranker.config import FILTERS, Config
from ranker.request import Request

#: the filters in the order in which they run, before those of `[filters]`; an item is removed by the first that it does
#: not pass:
#:   unknown    it is no item of the catalogue
#:   excluded   the caller excluded it, or the list is to be related to it
#:   seen       the user's history before `as_of` has it, whatever the feedback was
NAMES = FILTERS
KEPT, UNKNOWN, EXCLUDED, SEEN = -1, 0, 1, 2
NO_HISTORY = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters of a configuration."""

    exclude_seen: bool
    conditions: Mapping[str, Condition]  # of [filters], by name, in their order

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the filters, in the order in which they run."""
        return (*(NAMES if self.exclude_seen else NAMES[:SEEN]), *self.conditions)

    def judged(self, item: I32, request: Request) -> I8:
        """Return int8[n]: for each of int32[n] items the place in `names` of the filter that removes it, or KEPT."""
        verdict, first = judged(item, request, self.exclude_seen), len(self.names) - len(self.conditions)
        for place, condition in enumerate(self.conditions.values(), first):
            left = np.flatnonzero(verdict == KEPT)
            verdict[left[~condition.keep(item[left], request)]] = place
        return verdict


def filters_of(config: Config, state: State) -> Filters:
    """Return the filters of a configuration over the items of a state; compiled once for all states of one catalogue.

    Raises PairliftError for a condition that does not fit the items.
    """
    conditions = {name: settings.keep for name, settings in config.filters.items()}
    key = f"filters {config.sources.exclude_seen} {conditions}"
    if key not in state.made:
        compiled = {name: _compiled(name, keep, state) for name, keep in conditions.items()}
        state.made[key] = Filters(config.sources.exclude_seen, compiled)
    found: Filters = state.made[key]
    return found


def _compiled(name: str, keep: str, state: State) -> Condition:
    try:
        return Condition.compiled(keep, state.catalog)
    except PairliftError as error:
        raise PairliftError(f"[filters.{name}] keep = {keep!r}: {error}") from error


def judged(item: I32, request: Request, exclude_seen: bool) -> I8:
    """Return `Filters.judged` without conditions, by places in NAMES."""
    past = history(request) if exclude_seen else NO_HISTORY
    unwanted = np.append(request.exclude, np.int32(request.source_item))
    verdict: I8 = _judged(item, request.state.catalog.all_items, unwanted, past)
    return verdict


def history(request: Request) -> I32:
    """Return int32[m]: the items of the user's events with `ts < as_of`, in time order, with repeats."""
    histories = request.state.histories
    return histories.item[histories.past(request.user, request.as_of)]


@njit(cache=True, nogil=True)
def _judged(item: I32, n_items: int, unwanted: I32, past: I32) -> I8:
    """Return `judged`, by a hash table of the items to be removed: what was excluded takes the place of what was seen.

    unwanted: those that the caller excluded, and the source item.
    """
    bits = bits_for(len(unwanted) + len(past))
    slots = np.full((1 << bits, 2), -1, np.int64)
    for k in range(len(past)):
        at = probe(slots, np.int64(past[k]), 64 - bits)
        slots[at, 0], slots[at, 1] = past[k], SEEN
    for k in range(len(unwanted)):
        at = probe(slots, np.int64(unwanted[k]), 64 - bits)
        slots[at, 0], slots[at, 1] = unwanted[k], EXCLUDED
    verdicts = np.empty(len(item), np.int8)
    for k in range(len(item)):
        known = 0 <= item[k] < n_items
        verdicts[k] = slots[probe(slots, np.int64(item[k]), 64 - bits), 1] if known else UNKNOWN
    return verdicts
