"""A stranger's log, guessed: from the path of a file to all that its TOML says."""

import os
from dataclasses import dataclass
from pathlib import Path

import duckdb

from features.schema import DAY, MINUTE
from ranker.guessing.columns import roles_of
from ranker.guessing.facts import facts_of
from ranker.guessing.finding import keys_of
from ranker.guessing.grades import Feedback, Grades, feedback_of, grades_of
from ranker.guessing.guess import Guess, Role
from ranker.guessing.keys import Keys
from ranker.guessing.names import Namer, name_of
from ranker.guessing.reading import Opened, open_log
from ranker.guessing.sides import Side, replaced, side_in_log, side_of_file
from ranker.guessing.words import words_of

#: words in the names of files that say nothing of the log
_ANY = "events event log logs data all train test part sample interactions inter clean final raw"
#: what of the rows must have a neighbour within half an hour for groups of half an hour
NEIGHBOURS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Guessed:
    """All that is written into the TOML."""

    path: str  # as the user gave it
    root: str  # `[data] root`
    label: str  # `name`
    seen: str  # how many rows there are, and how many were looked at
    source: str  # `[events] source`
    notes: list[str]  # what had to be done to read it: sentences
    keys: dict[Role, Guess]
    columns: list[Guess]  # one for each column of the log, keys among them
    feedback: list[Feedback]
    grades: Grades
    neighbours: float  # share of rows with another one of the same user within half an hour
    window: int  # µs, `[pairing] window`
    items: Side | None
    users: Side | None

    @property
    def doubts(self) -> list[Guess]:
        """Return the guesses of which something is unsure."""
        made = [guess for guess in self.keys.values() if guess not in self.columns]
        return [guess for guess in [*made, *self.columns] if guess.doubt]


def guess_log(path: str, folder: Path, items: str | None = None, users: str | None = None) -> Guessed:
    """Guess what the columns of a log are. Nothing is written.

    path: a Parquet, CSV or JSON file, or a glob. folder: where the TOML is to lie. items, users: files of their
    attributes. Raises PairliftError where a file cannot be read, or no column can be the time or the item.
    """
    root, name, shown = _placed(path, folder)
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        opened = open_log(con, name, root)
        facts = facts_of(con, opened.columns)
        keys = keys_of(con, facts)
        guesses = keys.columns | {guess.name: guess for guess in roles_of(con, facts, keys)}
        columns = [guesses[f.name] for f in facts]
        feedback = feedback_of(columns, Namer())
        near = _neighbours(con, keys)
        made: dict[Role, Side | None] = {}
        for role, key, file in _sides(items, users):
            made[role] = side_in_log(con, opened.source, keys, columns, role)
            if file:
                side = side_of_file(con, os.path.relpath(file, root), root, role, keys.guesses[key])
                made[role] = replaced(made[role], side)
        return Guessed(
            path=path,
            root=shown,
            label=_label(root / name),
            seen=_seen(opened),
            source=opened.source,
            notes=opened.notes,
            keys=keys.guesses,
            columns=columns,
            feedback=feedback,
            grades=grades_of(con, feedback),
            neighbours=near,
            window=30 * MINUTE if near >= NEIGHBOURS else DAY,
            items=made["item attribute"],
            users=made["user attribute"],
        )


def _sides(items: str | None, users: str | None) -> tuple[tuple[Role, Role, str | None], ...]:
    """Return for items and users the role of an attribute, that of the id, and the file."""
    return ("item attribute", "item_id", items), ("user attribute", "user_id", users)


def _label(path: Path) -> str:
    """Return a name for the log: the file's, or the folder's where the file's is any log's."""
    words = [word for word in words_of(path.stem.split("*")[0]) if word not in _ANY.split()]
    return Namer()(name_of("_".join(words or words_of(path.resolve().parent.name)) or "mine"))


def _placed(path: str, folder: Path) -> tuple[Path, str, str]:
    """Return the folder that paths count from, the path from there, and the folder as the TOML names it."""
    given = Path(path)
    parts = given.parts
    plain = next((k for k, part in enumerate(parts[:-1]) if any(c in part for c in "*?[")), len(parts) - 1)
    root = Path(*parts[:plain]) if plain else Path()
    # A relative path stays one, so that the folders can move together.
    shown = str(root) if given.is_absolute() else os.path.relpath(root, folder)
    return root.resolve(), str(Path(*parts[plain:])), shown


def _seen(opened: Opened) -> str:
    if opened.sampled == opened.rows:
        return f"{opened.rows:,} rows, all of them looked at"
    return f"{opened.rows:,} rows, {opened.sampled:,} of them looked at"


def _neighbours(con: duckdb.DuckDBPyConnection, keys: Keys) -> float:
    """Return the share of rows that have another one of their user within half an hour."""
    user, ts = keys.sample["user_id"], keys.sample["ts"]
    found = con.execute(f"""
        SELECT avg((coalesce(t - before < 1800, false) OR coalesce(after - t < 1800, false))::INT)
        FROM (SELECT t, lag(t) OVER w AS before, lead(t) OVER w AS after
              FROM (SELECT {user} AS u, epoch({ts}) AS t FROM sample)
              WINDOW w AS (PARTITION BY u ORDER BY t))""").fetchall()
    return float(found[0][0] or 0)
