"""The columns that a log has once: what their guesses are, and how each is written over the sample."""

from dataclasses import dataclass, field

from ranker.guessing.facts import Facts
from ranker.guessing.guess import Guess, Role
from ranker.guessing.names import quoted


@dataclass(slots=True)
class Keys:
    """The keys of a log: their guesses, and each as an expression over the sample."""

    guesses: dict[Role, Guess] = field(default_factory=dict)
    sample: dict[Role, str] = field(default_factory=dict)
    left_out: dict[str, Guess] = field(default_factory=dict)  # columns that a rule chose and the groups did not
    made: set[Role] = field(default_factory=set)  # keys that no column is, but what is made of some

    @property
    def columns(self) -> dict[str, Guess]:
        """Return the guesses of the columns that are keys, by the column's name."""
        return {guess.name: guess for role, guess in self.guesses.items() if role not in self.made}

    def put(self, role: Role, facts: Facts, why: str, expression: str = "{}", doubt: str = "") -> None:
        """Take a column for a key. expression: has {} in the place of the column."""
        own = "" if expression == "{}" else expression.format(facts.column.sql)
        self.guesses[role] = Guess(facts, role, why, own, doubt)
        self.sample[role] = expression.format(quoted(facts.name))


def id_expression(f: Facts) -> str:
    """Return the expression of a column's ids, with {} for the column: integers or text."""
    if f.number and (f.column.kind == "number" or f.column.type.startswith("DECIMAL")):
        return "({})::BIGINT"
    plain = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "VARCHAR"}
    return "{}" if f.column.type in plain else "({})::VARCHAR"
