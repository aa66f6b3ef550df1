"""Names of the TOML out of names of columns, and texts as TOML and SQL write them."""

import re
from collections.abc import Iterable
from functools import cache

import duckdb

from features.settings import RESERVED
from ranker.guessing.words import words_of

#: names that the contract's own columns have
_CONTRACT = {"user_id", "item_id", "ts", "event_id", "surface", "organic", "request_id", "position", "propensity"}


def name_of(column: str) -> str:
    """Return a column's name as a name of the TOML: its words, in lower case."""
    name = "_".join(words_of(column)) or "column"
    name = re.sub(r"_x_", "_by_", name)
    return name if name[0].isalpha() else f"c_{name}"


class Namer:
    """Gives names that the contract does not have and that no other column of the same table was given."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken) | RESERVED | _CONTRACT

    def __call__(self, name: str) -> str:
        """Return the name, or the name and a number."""
        free, number = name, 2
        while free in self._taken:
            free, number = f"{name}_{number}", number + 1
        self._taken.add(free)
        return free


@cache
def _keywords() -> frozenset[str]:
    """Return the words that a SQL expression cannot have as a column's name without quotes."""
    with duckdb.connect() as con:
        rows = con.execute(
            "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category <> 'unreserved'"
        ).fetchall()
    return frozenset(row[0] for row in rows)


def bare(name: str) -> str:
    """Return a name as a SQL expression has it, in quotes where it needs them."""
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and name.lower() not in _keywords()
    return name if plain else quoted(name)


def quoted(name: str) -> str:
    """Return a name as a SQL identifier, in quotes."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as a SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def toml_text(text: str) -> str:
    """Return a text as TOML writes it, in the quotes that leave it readable."""
    if not re.search(r"[\x00-\x1f\x7f\"\\]", text):
        return f'"{text}"'
    if "'" not in text and not re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text):
        return f"'{text}'"
    # TOML drops a line's end right behind the opening quotes.
    if (
        "'''" not in text
        and not text.endswith("'")
        and text[0] != "\n"
        and not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    ):
        return f"'''{text}'''"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\u{ord(m[0]):04x}", escaped) + '"'
