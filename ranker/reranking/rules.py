"""The rules of the TOML: which items of a Recommend are pinned to a place, boosted or buried, and in which requests.

They work on the scored candidates in the order of the file, each on what those before it left:

    boost   adds an amount to the scores of its items, whatever else is done to them
    pin     gives a place to the best of its items, by the scores of then
    bury    puts its items behind all others; among themselves they keep their order

An item that a rule has pinned or buried is pinned or buried by no other. Of two pins to one place the first has it, and
the other the next free one; a place behind the last candidate is the last one. Scores that are answered stay those of
the ranker.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from features.errors import PairliftError
from features.schema import F64, I32, I64, Bool, Catalog
from ranker.candidates.source import Proposal
from ranker.conditions.condition import Condition
from ranker.config import PINNED
from ranker.request import NO_ITEMS, Request
from ranker.reranking.order import select
from ranker.settings import RuleSettings, SourceSettings

#: of a pin whose condition holds for no more items than these, each is a candidate whatever the sources propose
NAMED = 100
#: `when` is of the request: it is asked of no item
NO_ITEM, NO_ROWS = np.array([-1], np.int32), np.empty(0, np.int64)


class Ruled(NamedTuple):
    """n candidates behind the rules."""

    score: F64  # [n], boosts added
    order: I64  # [<= n], places of all that are not pinned, best first, those buried last
    kept: int  # how many of `order` are not buried
    fixed: I64  # [f], the pinned candidate of each of the first f places of the list, -1 for none; [0] without pins
    changed: tuple[tuple[str, I64], ...]  # (rule, places of the candidates that it changed) of each rule


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule over the items of a catalogue."""

    name: str
    settings: RuleSettings
    when: Condition | None
    items: Condition
    named: I32  # [<= NAMED], the items of a pin that are few and the same in every request; else none

    @classmethod
    def of(cls, name: str, settings: RuleSettings, catalog: Catalog) -> "Rule":
        """Compile a rule; PairliftError, which names its table and key, for what does not fit the items."""
        when = None if settings.when is None else _compiled(name, "when", settings.when, catalog)
        items = _compiled(name, "items", settings.items, catalog)
        named = NO_ITEMS
        if settings.pin is not None and (always := items.always) is not None and always.sum() <= NAMED:
            named = np.flatnonzero(always).astype(np.int32)
        return cls(name, settings, when, items, named)

    def holds(self, request: Request) -> bool:
        """Return whether the rule is for the request."""
        return self.when is None or bool(self.when.keep(NO_ITEM, request)[0])


def _compiled(name: str, key: str, condition: str, catalog: Catalog) -> Condition:
    try:
        return Condition.compiled(condition, catalog)
    except PairliftError as error:
        raise PairliftError(f"[rules.{name}] {key} = {condition!r}: {error}") from error


@dataclass(frozen=True, slots=True)
class Rules:
    """`[rules]`, in the order of the file."""

    rules: tuple[Rule, ...]

    @classmethod
    def of(cls, settings: Mapping[str, RuleSettings], catalog: Catalog) -> "Rules | None":
        """Compile the rules; None without any."""
        return cls(tuple(Rule.of(name, one, catalog) for name, one in settings.items())) if settings else None

    def ruled(self, request: Request, item: I32, score: F64) -> Ruled:
        """Return int32[n] candidates with their float64[n] scores behind the rules."""
        score, pins = score.copy(), dict[int, int]()  # by place
        free, buried = np.ones(len(item), np.bool_), np.zeros(len(item), np.bool_)
        changed: list[tuple[str, I64]] = []
        for rule in self.rules:
            rows = np.flatnonzero(rule.items.keep(item, request)) if rule.holds(request) else NO_ROWS
            if rule.settings.boost is not None:
                score[rows] += rule.settings.boost
            else:
                rows = rows[free[rows]]
                if rule.settings.pin is not None and len(rows):
                    rows = rows[select(item[rows], score[rows])[:1]]
                    pins[_free_place(pins, min(rule.settings.pin, len(item)) - 1)] = int(rows[0])
                elif rule.settings.bury:
                    buried[rows] = True
                free[rows] = False
            changed.append((rule.name, rows))
        return _ordered(item, score, free, buried, pins, changed)

    def pins(self, request: Request, item: I32) -> list[I64]:
        """Return the places among int32[n] candidates of the items of each pin that holds for the request."""
        pins = [rule for rule in self.rules if rule.settings.pin is not None and rule.holds(request)]
        return [np.flatnonzero(rule.items.keep(item, request)) for rule in pins]

    def source(self) -> "tuple[Pinned, SourceSettings] | None":
        """Return the source of the items that pins name, with its quota; None where none names any."""
        most = sum(len(rule.named) for rule in self.rules)
        return (Pinned(self.rules), SourceSettings(quota=most)) if most else None


def _free_place(pins: Mapping[int, int], place: int) -> int:
    while place in pins:
        place += 1
    return place


def _ordered(
    item: I32, score: F64, free: Bool, buried: Bool, pins: Mapping[int, int], changed: list[tuple[str, I64]]
) -> Ruled:
    order = select(item, score)
    kept = order[free[order]]
    fixed = np.full(max(pins, default=-1) + 1, -1, np.int64)
    fixed[list(pins)] = list(pins.values())
    return Ruled(score, np.concatenate([kept, order[buried[order]]]), len(kept), fixed, tuple(changed))


class Pinned:
    """Proposes what the pins of a request name, so that an item is pinned also where no source found it.

    A condition that holds for more than NAMED items, or that reads the request, names none: it chooses among what the
    other sources propose. It has no scores: no ranker learns from it.
    """

    name = PINNED

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the items of the rules that hold, in the order of the file."""
        named = [rule.named for rule in self._rules if len(rule.named) and rule.holds(request)]
        items = list(dict.fromkeys(np.concatenate([NO_ITEMS, *named]).tolist()))
        return Proposal(np.array(items[:limit], np.int32))
