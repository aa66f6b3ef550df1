"""The columns of a recorded event that the TOML names, beside those that every event has, and its arm.

They are those of [events.feedback], [events.columns], [events.context] and [events.candidate], under the names there,
so that the exported log is a source of the same TOML. Tables that name one alike must mean one thing by it. `ARM` is
the arm of an experiment that the user was in, for `[events] arm`: as the event says, else as the server splits users.
"""

from typing import NamedTuple

import numpy as np

from features.errors import PairliftError
from features.given import counted_names
from features.log.grading import CONTRACT
from features.schema import LARGEST_FEEDBACK
from ranker.bundle import Bundle
from ranker.config import counted_of

#: the tables by their keys in [events], and what refusals call a column of each
TABLES = {"feedback": "feedback", "columns": "feedback", "context": "context", "candidate": "candidate"}
#: the largest number of a feature
LARGEST = float(np.finfo(np.float32).max)
#: the column of the arm
ARM = "arm"


class Column(NamedTuple):
    """What is expected of one column."""

    table: str  # what refusals call it, of `TABLES`; of the arm `event`
    text: bool  # whether its values are text; else they are numbers
    most: float  # of a number, either way

    @property
    def summed(self) -> bool:
        """Whether running sums may be made of it."""
        return self.most == LARGEST_FEEDBACK


#: of every event, but where a table of a TOML from before there were arms names a column so
ARM_COLUMN = Column("event", text=True, most=np.inf)


class Condition(NamedTuple):
    """What a condition reads of a recorded event by one name."""

    column: str  # of the event
    kind: str  # the SQL type in which the import has it


def recorded_columns(bundle: Bundle) -> dict[str, Column]:
    """Return the columns of a bundle's events by name; PairliftError where one would have to be two."""
    events, counted = bundle.config.events, _counted(bundle)
    own = events.arm is None and any(ARM in getattr(events, table) for table in TABLES)
    found: dict[str, Column] = {} if own else {ARM: ARM_COLUMN}
    expressions: dict[str, tuple[str, str]] = {}
    for table, called in TABLES.items():
        for name, sql in getattr(events, table).items():
            place = f"[events.{table}] {name}"
            if name in (*CONTRACT, "event_id") and not (name == ARM and own):
                raise PairliftError(f"{place}: a recorded event has another column of that name; rename it")
            other, meant = expressions.setdefault(name, (place, sql))
            if meant != sql:
                raise PairliftError(
                    f"{other} = {meant!r} and {place} = {sql!r}: a recorded event has one column of a name; rename one"
                )
            summed = table == "feedback" or (table == "candidate" and name in counted)
            most = np.inf if table == "columns" else LARGEST
            column = Column(called, _is_text(bundle, table, name), LARGEST_FEEDBACK if summed else most)
            first = found.setdefault(name, column)
            found[name] = first._replace(most=min(first.most, column.most))
    return found


def conditions_of(bundle: Bundle) -> dict[str, Condition]:
    """Return what conditions may read beside the contract's columns, by the names that the import has."""
    events, found = bundle.config.events, {}
    for table in TABLES:
        feature = table in ("context", "candidate")
        for name in getattr(events, table):
            number = "FLOAT" if feature else "DOUBLE"
            kind = "VARCHAR" if _is_text(bundle, table, name) else number
            found[f"{table}_{name}" if feature else name] = Condition(name, kind)
    return found


def _is_text(bundle: Bundle, table: str, name: str) -> bool:
    if table in ("feedback", "columns"):
        return table == "columns" and name in bundle.texts
    catalog = bundle.state.catalog
    known = catalog.contexts if table == "context" else catalog.candidates
    return any(attribute.name == name and attribute.kind == "categorical" for attribute in known)


def _counted(bundle: Bundle) -> set[str]:
    """Return the names of the candidates' numbers that counters are made of."""
    catalog, events = bundle.state.catalog, counted_names(bundle.state.catalog, bundle.config.grade_names)
    return {catalog.candidates[events[name][0]].name for name in counted_of(bundle.config, catalog)}
