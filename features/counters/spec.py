"""Counter declarations: which aggregates exist, and what their columns are called.

A column is `<key>__<event>__<span>__<stat>`, for example `user_x_genres__like__h3d__rate`: the one place where
such names are built and parsed is here, and in `features.counters.keys` for their keys.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from features.counters.defaults import default_settings
from features.counters.keys import key_attribute, key_parts, name_of, parse_key
from features.errors import PairliftError, did_you_mean
from features.schema import BY_ARM, DAY, F32, HOUR, MINUTE, SECOND, Catalog, EventLog
from features.settings import CounterSettings

#: statistics as they are, and those that name something: `ratio_<event>`, `distinct_<part>`, `rank_<attribute>`
STATS = ("count", "sum", "rate", "mean", "since")
NAMING = ("ratio", "distinct", "rank")
UNITS = {"d": DAY, "h": HOUR, "m": MINUTE, "s": SECOND}


@dataclass(frozen=True, slots=True)
class Span:
    """What a counter sees.

    An event counts from `delay` µs after it on: as of a time it is seen if `ts < as_of - delay`. Windows and
    half-lives are measured from as_of all the same: a window is `[as_of - size, as_of - delay)`.
    """

    kind: str  # `w` (window), `h` (half-life) or `all`
    size: int  # µs, of a window or a half-life
    delay: int = 0  # µs

    @classmethod
    def parse(cls, text: str) -> "Span":
        """Read `w7d`, `w12h`, `h3d`, `h6h` or `all`, then `_d30m` where there is a delay; PairliftError otherwise."""
        match = re.fullmatch(r"(?:all|([wh])(\d+)([hd]))(?:_d(\d+)([smhd]))?", text)
        if match is None or (match[2] and not int(match[2])):
            raise PairliftError(
                f"counter span '{text}': 'w7d' (window), 'h12h' (half-life), in whole days (d) or hours (h), or 'all' "
                "was expected"
            )
        delay = int(match[4]) * UNITS[match[5]] if match[4] else 0
        return cls(match[1], int(match[2]) * UNITS[match[3]], delay) if match[1] else cls("all", 0, delay)

    def __str__(self) -> str:
        name = "all"
        if self.kind != "all":
            unit = "d" if self.size % DAY == 0 else "h"
            name = f"{self.kind}{self.size // UNITS[unit]}{unit}"
        if not self.delay:
            return name
        unit = next(u for u, size in UNITS.items() if self.delay % size == 0)
        return f"{name}_d{self.delay // UNITS[unit]}{unit}"


@dataclass(frozen=True, slots=True)
class Counter:
    """One column."""

    key: tuple[str, ...]  # parts, as in `features.counters.keys`
    event: str  # `impression`, the name of a grade, `grade` (its rank) or the name of a feedback column
    span: Span  # which events count, and how much
    stat: str  # one of STATS, or one of NAMING with what it names, as in `distinct_item`
    strength: float = 10.0  # how many trials the prior weighs
    prior: float = 0.0  # what a quotient without trials is

    @property
    def column(self) -> str:
        """The column's name."""
        return f"{name_of(self.key)}__{self.event}__{self.span}__{self.stat}"

    @property
    def kind(self) -> str:
        """The statistic without what it names."""
        return self.stat.partition("_")[0]

    @property
    def argument(self) -> str:
        """What the statistic names, empty for one of STATS."""
        return self.stat.partition("_")[2]


def parse_column(name: str) -> Counter:
    """Read a column name back (strength and prior are not in it); PairliftError for another form."""
    parts = name.split("__")
    if len(parts) != 4 or not _is_stat(parts[3]):
        raise PairliftError(f"'{name}' is not a counter column: '<key>__<event>__<span>__<stat>' was expected")
    return Counter(parse_key(parts[0]), parts[1], Span.parse(parts[2]), parts[3])


def _is_stat(stat: str) -> bool:
    kind, _, argument = stat.partition("_")
    return stat in STATS or (kind in NAMING and argument != "")


def check_event(event: str, grades: tuple[str, ...], feedback: tuple[str, ...]) -> None:
    """Raise PairliftError for an event that is neither built in nor a grade nor a feedback column."""
    names = ("impression", "grade", *grades, *feedback)
    if event not in names:
        raise PairliftError(f"[[counters]] event = '{event}' is not known{did_you_mean(event, names)}")


class Worth(NamedTuple):
    """What an event is worth to a counter by its grade: float[grades + 1], of no grade first."""

    value: tuple[float, ...]  # what sums and means add
    trial: tuple[float, ...]  # 1 where the value is known: what means and rates are over

    @property
    def hit(self) -> tuple[float, ...]:
        """1 where the value is not 0: what counts and rates add."""
        return tuple(float(value != 0) for value in self.value)


def worth_by_grade(event: str, grades: tuple[str, ...]) -> Worth | None:
    """Return what a log's event is worth to counters of `event`; None where that is a feedback column's value."""
    ranks = range(-1, len(grades))
    graded = tuple(float(rank >= 0) for rank in ranks)
    if event == "impression":
        ones = tuple(1.0 for _ in ranks)
        return Worth(ones, ones)
    if event == "grade":
        return Worth(tuple(float(max(rank, 0)) for rank in ranks), graded)
    if event in grades:
        return Worth(tuple(float(rank == grades.index(event)) for rank in ranks), graded)
    return None


def ambiguous_events(counters: tuple[Counter, ...], log: EventLog, grades: tuple[str, ...]) -> list[str]:
    """Return a line for each event of counters that is a grade and a feedback column, where their events differ.

    A counter means the grade. They differ where a row has the grade and its feedback is not above 0, or the reverse: a
    purchase that was in the cart before has another grade than `cart`, and its column `cart` is true.
    """
    asked = {c.event for c in counters} | {c.argument for c in counters if c.kind == "ratio"}
    lines = []
    for name in (name for name in grades if name in asked and name in log.feedback_names):
        of_grade = log.grade == grades.index(name)
        of_column = log.feedback[:, log.feedback_names.index(name)] > 0
        if (of_grade != of_column).any():
            lines.append(
                f"counters of event = '{name}' count the {of_grade.sum():,} events of the grade '{name}', not the "
                f"{of_column.sum():,} whose [events.feedback] {name} is above 0: to count those too, give that column "
                f"a name of its own (is_{name}, say) and name it as event"
            )
    return lines


def event_values(log: EventLog, event: str, grades: tuple[str, ...]) -> tuple[F32, F32]:
    """Return float32[n] value and float32[n] trial (1 where the value is known) of each event of the log."""
    check_event(event, grades, log.feedback_names)
    worth = worth_by_grade(event, grades)
    if worth is not None:
        at = np.minimum(log.grade + 1, len(grades))
        return np.array(worth.value, np.float32)[at], np.array(worth.trial, np.float32)[at]
    column = log.feedback[:, log.feedback_names.index(event)]
    known = ~np.isnan(column)
    return np.where(known, column, 0).astype(np.float32), known.astype(np.float32)


def make_counters(
    settings: list[CounterSettings] | None,
    log: EventLog,
    catalog: Catalog,
    grades: tuple[str, ...],
    add: bool = False,
) -> tuple[Counter, ...]:
    """Resolve declarations to columns. log: the events before t1, whose overall quotients are the priors.

    settings: None stands for the default ones. add: beside the default ones, and in place of those of the same column.
    """
    default = default_settings(catalog, grades) if settings is None or add else []
    priors = _Priors(log, grades)
    counters = [_resolved(declared, priors, log, catalog, grades) for declared in (default, settings or [])]
    return tuple((counters[0] | counters[1]).values())


def _resolved(
    settings: list[CounterSettings], priors: "_Priors", log: EventLog, catalog: Catalog, grades: tuple[str, ...]
) -> dict[str, Counter]:
    """Return the counters of declarations by their columns."""
    counters: dict[str, Counter] = {}
    for declared in settings:
        check_event(declared.event, grades, log.feedback_names)
        _check_key(declared.key, catalog)
        for span in declared.spans:
            for stat in declared.stats:
                seen = Span.parse(span)
                counter = Counter(
                    key=(*((BY_ARM,) if declared.by_arm else ()), *declared.key),
                    event=declared.event,
                    span=Span(seen.kind, seen.size, declared.delay),
                    stat=stat,
                    strength=declared.strength,
                    prior=priors.of(stat, declared),
                )
                _check(counter, log, catalog, grades)
                if counter.column in counters:
                    raise PairliftError(f"[[counters]]: the column '{counter.column}' is declared twice")
                counters[counter.column] = counter
    return counters


class _Priors:
    """The quotients of all events of a log, that before t1, each made once."""

    def __init__(self, log: EventLog, grades: tuple[str, ...]) -> None:
        self._log, self._grades = log, grades
        self._made: dict[tuple[str, str], float] = {}

    def of(self, stat: str, declared: CounterSettings) -> float:
        """Return the declared prior, or the quotient of all events; 0 for any other statistic."""
        if stat.partition("_")[0] not in ("rate", "mean", "ratio"):
            return 0.0
        if declared.prior is not None:
            return declared.prior
        if (stat, declared.event) not in self._made:
            self._made[stat, declared.event] = self._quotient(stat, declared.event)
        return self._made[stat, declared.event]

    def _quotient(self, stat: str, event: str) -> float:
        kind, _, over = stat.partition("_")
        value, trial = event_values(self._log, event, self._grades)
        below = event_values(self._log, over, self._grades)[0] if kind == "ratio" else trial
        above = (value != 0) if kind == "rate" else value
        total = float(below.sum(dtype=np.float64))
        return float(above.sum(dtype=np.float64)) / total if total > 0 else 0.0


def _check(counter: Counter, log: EventLog, catalog: Catalog, grades: tuple[str, ...]) -> None:
    place, span = f"[[counters]] stat '{counter.stat}'", counter.span
    if not _is_stat(counter.stat):
        known = (*STATS, *(f"{kind}_…" for kind in NAMING))
        raise PairliftError(f"{place} is not known{did_you_mean(counter.stat, known)}")
    if span.kind == "w" and span.delay >= span.size:
        raise PairliftError(f"[[counters]] delay: the window of '{counter.column}' is over before an event is seen")
    if counter.key[0] == BY_ARM and counter.kind in ("distinct", "rank"):
        raise PairliftError(f"{place}: without by_arm was expected, for it cannot be added up of two arms")
    if counter.kind == "ratio":
        check_event(counter.argument, grades, log.feedback_names)
    if counter.kind == "distinct":
        _check_key([counter.argument], catalog)
        if span.kind == "h":
            raise PairliftError(f"{place}: a window or 'all' was expected, found the half-life '{span}'")
    if counter.kind == "rank":
        found = key_attribute(counter.argument, catalog)
        if counter.key != ("item",) or found is None or found[0] != "item":
            raise PairliftError(f"{place}: key = ['item'] and an item attribute were expected")


def _check_key(key: list[str], catalog: Catalog) -> None:
    known = key_parts(catalog)
    for part in key:
        if part not in known:
            raise PairliftError(f"[[counters]] key '{part}' is not known{did_you_mean(part, known)}")
