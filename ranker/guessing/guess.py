"""What is guessed: a column's role, the expression that the TOML has, why, and the doubt."""

from dataclasses import dataclass
from typing import Literal, get_args

from ranker.guessing.facts import Facts
from ranker.guessing.feedback import Act

#: what a log has once
Key = Literal[
    "user_id",
    "item_id",
    "ts",
    "event_id",
    "request_id",
    "position",
    "propensity",
    "surface",
    "organic",
]
Role = Literal[Key, "feedback", "candidate", "context", "item attribute", "user attribute", "none"]
KEYS: tuple[Role, ...] = get_args(Key)


@dataclass(frozen=True, slots=True)
class Guess:
    """One column of the log and what it is taken for."""

    facts: Facts
    role: Role
    why: str  # a clause: what speaks for it
    sql: str = ""  # the expression over the source, "" for the column's own
    doubt: str = ""  # a clause: what it may be in place of that, or what to decide; "" where there is none
    act: Act | None = None  # of feedback, where it is known what it says

    @property
    def name(self) -> str:
        """Return the column's name."""
        return self.facts.name

    @property
    def expression(self) -> str:
        """Return the expression that the TOML has."""
        return self.sql or self.facts.column.sql
