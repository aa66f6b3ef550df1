"""How many columns `pairlift init` takes for what they are: over public logs, made ones and those of `tests/shapes.py`.

`init_fields_right` is 1 less the wrong guesses over all columns; a wrong guess without a stated doubt counts double.
Columns of one numbered family (f_0, f_1, …) are one column, wrong if one of them is. A column with one value may be
left out, whatever it would be. The truth is in `init_logs`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from init_logs import StrangeLog

from ranker.guessing.guess import Guess
from ranker.guessing.guessed import guess_log

#: of a column: its guess is right, wrong and doubted, or wrong without a doubt
RIGHT, DOUBTED, SILENT = 0, 1, 2


def init_fields(logs: Sequence[StrangeLog]) -> dict[str, Any]:
    """Guess the columns of logs; return the figure, and a row for each log with its wrong guesses."""
    rows = [log_row(log) for log in logs]
    columns = sum(row["columns"] for row in rows)
    return {
        "init_fields_right": round(1 - sum(row["cost"] for row in rows) / columns, 4),
        "columns": columns,
        "wrong": sum(len(row["wrong"]) for row in rows),
        "wrong_without_doubt": sum(row["silent"] for row in rows),
        "doubted": sum(row["doubted"] for row in rows),
        "logs": rows,
    }


def log_row(log: StrangeLog) -> dict[str, Any]:
    """Guess the columns of one log."""
    guesses = guess_log(str(log.path), log.path.parent).columns
    missing = set(log.roles) - {guess.name for guess in guesses}
    assert not missing, f"{log.name}: the truth names columns that are not there: {missing}"
    verdicts, wrong = defaultdict[str, list[int]](list), []
    for guess in guesses:
        allowed = log.roles[guess.name]
        verdict = _verdict(guess, allowed)
        verdicts[family(guess.name)].append(verdict)
        if verdict:
            wrong.append(
                f"{guess.name}: {guess.role}, not {' or '.join(sorted(allowed))}{' (doubted)' * (verdict == 1)}"
            )
    cost = [max(of) for of in verdicts.values()]
    return {
        "log": log.name,
        "columns": len(cost),
        "right": cost.count(RIGHT),
        "silent": cost.count(SILENT),
        "cost": sum(cost),
        "doubted": len({family(guess.name) for guess in guesses if guess.doubt}),
        "wrong": wrong,
    }


def family(name: str) -> str:
    """Return the name of a column's numbered family."""
    return re.sub(r"(?<=_)\d+$", "#", name)


def _verdict(guess: Guess, allowed: Iterable[str]) -> int:
    if guess.role in allowed or (guess.role == "none" and guess.facts.distinct <= 1):
        return RIGHT
    return DOUBTED if guess.doubt else SILENT


def table(measured: dict[str, Any]) -> str:
    """Return the lines of a table for people."""
    lines = [f"{'log':14}{'columns':>9}{'right':>7}{'wrong':>7}{'silent':>8}{'doubts':>8}"]
    for row in measured["logs"]:
        wrong = row["columns"] - row["right"]
        lines.append(f"{row['log']:14}{row['columns']:9}{row['right']:7}{wrong:7}{row['silent']:8}{row['doubted']:8}")
        lines += [f"    {line}" for line in row["wrong"]]
    return "\n".join([*lines, f"init_fields_right {measured['init_fields_right']:.4f}"])
