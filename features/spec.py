"""Counter declarations: which aggregates exist, and what their columns are called.

A column is `<key>__<event>__<span>__<stat>`, for example `user_x_genres__like__h3d__rate`: the one place where
such names are built and parsed is here.
"""

import re
from dataclasses import dataclass

import numpy as np

from features.errors import PairliftError, did_you_mean
from features.schema import DAY, F32, HOUR, Catalog, EventLog
from features.settings import CounterSettings

STATS = ("count", "sum", "rate", "mean", "since")
#: default counters are declared for item attributes with no more values than this
MAX_DEFAULT_VALUES = 1000


@dataclass(frozen=True, slots=True)
class Span:
    """How far back a counter looks. kind: `w` (window of `size` µs), `h` (half-life of `size` µs) or `all`."""

    kind: str
    size: int

    @classmethod
    def parse(cls, text: str) -> "Span":
        """Read `w7d`, `w12h`, `h3d`, `h6h` or `all`; PairliftError on anything else."""
        if text == "all":
            return cls("all", 0)
        match = re.fullmatch(r"([wh])(\d+)([hd])", text)
        if match is None or int(match[2]) == 0:
            raise PairliftError(f"counter span '{text}': 'w7d' (window), 'h12h' (half-life) or 'all' was expected")
        return cls(match[1], int(match[2]) * (HOUR if match[3] == "h" else DAY))

    def __str__(self) -> str:
        if self.kind == "all":
            return "all"
        unit, name = (DAY, "d") if self.size % DAY == 0 else (HOUR, "h")
        return f"{self.kind}{self.size // unit}{name}"


@dataclass(frozen=True, slots=True)
class Counter:
    """One column. key: names among user, item, surface and item attributes. prior: what a rate without trials is.

    event: `impression`, the name of a grade, `grade` (its rank) or of a feedback column.
    """

    key: tuple[str, ...]
    event: str
    span: Span
    stat: str
    strength: float = 10.0
    prior: float = 0.0

    @property
    def column(self) -> str:
        """The column's name."""
        return f"{'_x_'.join(self.key)}__{self.event}__{self.span}__{self.stat}"


def parse_column(name: str) -> Counter:
    """Read a column name back (strength and prior are not in it); PairliftError for another form."""
    parts = name.split("__")
    if len(parts) != 4 or parts[3] not in STATS:
        raise PairliftError(f"'{name}' is no counter column: '<key>__<event>__<span>__<stat>' was expected")
    return Counter(tuple(parts[0].split("_x_")), parts[1], Span.parse(parts[2]), parts[3])


def event_values(log: EventLog, event: str, grades: tuple[str, ...]) -> tuple[F32, F32]:
    """Return float32[n] value and float32[n] trial (1 where the value is known) of each event of the log."""
    if event == "impression":
        ones = np.ones(len(log), np.float32)
        return ones, ones
    graded = (log.grade >= 0).astype(np.float32)
    if event == "grade":
        return np.maximum(log.grade, 0).astype(np.float32), graded
    if event in grades:
        return (log.grade == grades.index(event)).astype(np.float32), graded
    if event in log.feedback_names:
        column = log.feedback[:, log.feedback_names.index(event)]
        known = ~np.isnan(column)
        return np.where(known, column, 0).astype(np.float32), known.astype(np.float32)
    names = ("impression", "grade", *grades, *log.feedback_names)
    raise PairliftError(f"[[counters]] event = '{event}' is not known{did_you_mean(event, names)}")


def default_settings(catalog: Catalog, grades: tuple[str, ...]) -> list[CounterSettings]:
    """Return counters that are good on any log, for a TOML that declares none."""
    attributes = [
        a.name
        for a in catalog.item_attributes
        if a.kind in ("categorical", "multi") and 2 <= len(a.values) <= MAX_DEFAULT_VALUES
    ]
    keys = [["user"], ["item"], *(["user", name] for name in attributes)]
    if len(catalog.surfaces) > 1:
        keys.append(["item", "surface"])
    declared = []
    for key in keys:
        declared.append(CounterSettings(key=key, event="impression", spans=["h1d", "h7d", "all"], stats=["count"]))
        if len(grades) > 1:
            declared.append(CounterSettings(key=key, event="grade", spans=["h7d", "all"], stats=["mean"]))
            declared.extend(
                CounterSettings(key=key, event=grade, spans=["h7d", "all"], stats=["rate"]) for grade in grades[1:]
            )
    declared.extend(CounterSettings(key=key, event="impression", stats=["since"]) for key in (["user"], ["item"]))
    return declared


def make_counters(
    settings: list[CounterSettings], log: EventLog, catalog: Catalog, grades: tuple[str, ...]
) -> tuple[Counter, ...]:
    """Resolve declarations to columns. log: the towers' period, whose overall means are the priors."""
    counters: dict[str, Counter] = {}
    for declared in settings or default_settings(catalog, grades):
        _check_key(declared.key, catalog)
        value, trial = event_values(log, declared.event, grades)
        prior = float(value.sum() / trial.sum()) if trial.sum() > 0 else 0.0
        for span in declared.spans:
            for stat in declared.stats:
                if stat not in STATS:
                    raise PairliftError(f"[[counters]] stat '{stat}' is not known{did_you_mean(stat, STATS)}")
                counter = Counter(tuple(declared.key), declared.event, Span.parse(span), stat, declared.strength, prior)
                if counter.column in counters:
                    raise PairliftError(f"[[counters]]: the column '{counter.column}' is declared twice")
                counters[counter.column] = counter
    return tuple(counters.values())


def _check_key(key: list[str], catalog: Catalog) -> None:
    known = {a.name: a.kind for a in catalog.item_attributes if a.kind in ("categorical", "multi")}
    for part in key:
        if part not in ("user", "item", "surface") and part not in known:
            names = ("user", "item", "surface", *known)
            raise PairliftError(f"[[counters]] key '{part}' is not known{did_you_mean(part, names)}")
    if sum(known.get(part) == "multi" for part in key) > 1:
        raise PairliftError(f"[[counters]] key {key}: at most one multi-valued attribute can stand in a key")
