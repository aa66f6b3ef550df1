"""The TOML of a guessed log, with the reason behind each line and the doubts between them."""

from collections.abc import Iterable
from typing import get_args

from features.settings import duration_text
from ranker.guessing.grades import Feedback, Grades
from ranker.guessing.guess import KEYS, Guess, Role
from ranker.guessing.guessed import Guessed
from ranker.guessing.names import Namer, name_of, toml_text
from ranker.guessing.sides import Side

#: behind a longer line no reason stands, but above it
_WIDE = 60
#: what the tables of a side are
_MEANING = {
    "columns": "# text is a category, a list has several values, a list of fractions is a vector for the networks",
    "text": "# for people, no feature; with `words = true` the towers read its words",
}
#: columns of one role that a summary names
MOST_NAMES = 12

_HEAD = """\
# Written by `pairlift init --from {path}`: {seen}.
# Every line is a guess by names, types and values, with its reason. Look at those marked "unsure".
# `pairlift config events` says what each key means. Next: `pairlift validate pairlift.toml`.
"""
_TAIL = """
[split]               # towers learn on [t0, t1), the booster on [t1, t2), the test is [t2, t3)
t1 = 0.5              # a quantile of the events' times, or a date or time such as 2026-04-25
t2 = 0.8

[ranker]
plugins = ["two_tower"]                    # whose columns the served booster has

[plugins.two_tower]   # a transformer over each user's history
class = "neural.two_tower:TwoTower"

[plugins.als]         # baselines for `pairlift uplift`
class = "features.baselines:ALS"

[plugins.noise]
class = "features.baselines:Noise"
"""


def toml_of(guessed: Guessed) -> str:
    """Return the text of pairlift.toml."""
    lines = _HEAD.format(path=guessed.path, seen=guessed.seen).splitlines()
    lines += [f'name = "{guessed.label}"', "", "[data]", f"root = {toml_text(guessed.root)}", 'work = "work"', ""]
    lines += [*_events(guessed), *_feedback(guessed.feedback), *_tables(guessed), *_left_out(guessed)]
    for title, key, side in (("items", "item_id", guessed.items), ("users", "user_id", guessed.users)):
        lines += _side(title, key, side) if side else []
    lines += [*_grades(guessed.grades), *_pairing(guessed)]
    return "\n".join(lines) + "\n" + _TAIL


def _line(key: str, value: str, why: str, doubt: str = "") -> Iterable[str]:
    """Give a key's line, with its reason behind it or, where it is long, above it; and the doubt below."""
    text = f"{key} = {toml_text(value)}"
    if why and len(text) > _WIDE:
        yield f"# {why}:"
        yield text
    else:
        yield f"{text:{_WIDE // 2}}  # {why}" if why else text
    if doubt:
        yield f"#   unsure: {doubt}"


def _events(guessed: Guessed) -> list[str]:
    lines = ["[events]              # one row for each impression or event", *(f"# {note}" for note in guessed.notes)]
    lines.append(f"source = {toml_text(guessed.source)}")
    for role in KEYS:
        guess = guessed.keys.get(role)
        if guess:
            lines += _line(role, guess.expression, guess.why, guess.doubt)
    return [*lines, ""]


def _feedback(feedback: list[Feedback]) -> list[str]:
    if not feedback:
        return []
    lines = ["[events.feedback]     # what the user did; NULL is unknown, not no; never a feature of the same request"]
    for line in feedback:
        lines += _line(line.name, line.sql, line.act.why, line.guess.doubt)
    return [*lines, ""]


def _tables(guessed: Guessed) -> list[str]:
    lines = []
    for role, head in (
        (
            "context",
            "[events.context]      # what a request says of itself: features, and context.attributes of requests",
        ),
        ("candidate", "[events.candidate]    # what was shown of each candidate, known before the answer"),
    ):
        mine = [g for g in guessed.columns if g.role == role]
        if not mine:
            continue
        refused = role == "candidate" and guessed.grades.positives_only
        own = [head]
        named = Namer()
        for guess in mine:
            own += _line(named(name_of(guess.name)), guess.expression, guess.why, guess.doubt)
        if refused:
            own = [f"# {line}" for line in own]
            own.insert(
                0, "# Not with [pairing] negatives: drawn losers have no such values, which would tell the label."
            )
        lines += [*own, *(_of_the_list(mine, guessed) if role == "candidate" and not refused else []), ""]
    return lines


def _of_the_list(candidates: list[Guess], guessed: Guessed) -> list[str]:
    """Return what could be asked for of the first number among the candidates' columns, where there are requests."""
    number = next((g for g in candidates if g.facts.number and not g.facts.flag and not g.sql), None)
    if number is None or "request_id" not in guessed.keys:
        return []
    name = f"candidate_{name_of(number.name)}"
    return ["# [features]          # of the whole list: a score then depends on the other candidates",
            f'# list = ["{name}_rank", "{name}_less_median"]']  # fmt: skip


def _left_out(guessed: Guessed) -> list[str]:
    left = [g for g in guessed.columns if g.role == "none"]
    if not left:
        return []
    lines = ["# Left out:"]
    for guess in left:
        lines.append(f"#   {guess.name}: {guess.why}")
        lines += [f"#     unsure: {guess.doubt}"] if guess.doubt else []
    return [*lines, ""]


def _side(title: str, key: str, side: Side) -> list[str]:
    lines = [
        f"[{title}]               # {side.why}",
        f"source = {toml_text(side.source)}",
        f"{key} = {toml_text(side.key)}",
    ]
    for table, columns in (("columns", side.columns), ("text", side.text)):
        if columns:
            head = _MEANING[table]
            lines += ["", f"[{title}.{table}]  {head}"]
            for name, sql, guess in columns:
                lines += _line(name, sql, "" if guess.facts.column.note == "" else guess.facts.column.note, guess.doubt)
    lines += [f"# left out: {guess.name}, {guess.why}" for guess in side.left_out]
    return [*lines, ""]


def _grades(grades: Grades) -> list[str]:
    lines = ["# From worst to best; a row gets the best one whose condition is true."]
    if grades.doubt:
        lines.append(f"#   unsure: {grades.doubt}")
    for grade in grades.lines:
        why = f"  # {grade.why}" if grade.why else ""
        lines += ["[[grades]]", f'name = "{grade.name}"', f"when = {toml_text(grade.when)}{why}"]
    return [*lines, ""]


def _pairing(guessed: Guessed) -> list[str]:
    lines = ["[pairing]"]
    if "request_id" in guessed.keys:
        lines.append("# Groups are requests; those without an id are made from time, with the default window.")
    else:
        share = f"{100 * guessed.neighbours:.0f} % of the rows have another of their user within 30 minutes"
        lines.append(f"# The log has no request ids, so groups are made from time: {share}.")
        lines += [f'window = "{duration_text(guessed.window)}"', "max_size = 50"]
    if guessed.grades.positives_only:
        lines.append("negatives = 4         # at most so many losers are drawn for each row")
    return lines


def summary_of(guessed: Guessed) -> str:
    """Return what was guessed, a line for each role, and the doubts, for the command line."""
    lines = [f"{guessed.path}: {guessed.seen}"]
    for role in get_args(Role):
        names = [guess.name for guess in guessed.columns if guess.role == role]
        made = guessed.keys.get(role)
        if made and made.name not in names:
            names = [made.expression]
        if names:
            shown = ", ".join(names[:MOST_NAMES]) + (
                f" and {len(names) - MOST_NAMES} more" if names[MOST_NAMES:] else ""
            )
            lines.append(f"  {'left out' if role == 'none' else role:15} {shown}")
    lines.append(f"  {'grades':15} {' < '.join(grade.name for grade in guessed.grades.lines)}")
    doubts = [f"  {guess.name} ({_role(guess)}): {guess.doubt}" for guess in guessed.doubts]
    doubts += [f"  grades: {guessed.grades.doubt}"] if guessed.grades.doubt else []
    return "\n".join([*lines, *(["unsure", *doubts] if doubts else [])])


def _role(guess: Guess) -> str:
    return "left out" if guess.role == "none" else guess.role
