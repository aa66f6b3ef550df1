"""Grades of what the user did, from worst to best, out of the columns of feedback."""

from collections.abc import Callable
from typing import NamedTuple

import duckdb

from ranker.guessing.feedback import Act, is_ordered, shows, strength
from ranker.guessing.guess import Guess
from ranker.guessing.names import bare, literal, name_of, quoted

#: a column that is known in less than so much of the rows of another is no grade below it
AS_KNOWN = 0.8
#: the strength of having taken all of it: what is more is a reaction to it
CONSUMED = 2
#: a refusal that is known in less of the rows is no grade
REFUSALS = 0.5
#: the lowest values of a scale are one grade till so many rows have it, and so the highest
LOWEST, HIGHEST = 0.15, 0.02
#: of what share of an item was taken: less is a skip, more is nearly all of it
SKIPPED, WHOLE = 0.2, 0.8


class Feedback(NamedTuple):
    """A line of `[events.feedback]`."""

    name: str
    sql: str  # over the source
    guess: Guess
    act: Act
    value: str  # over the sample: what `sql` is of it


class GradeLine(NamedTuple):
    """One of `[[grades]]`."""

    name: str
    when: str
    why: str


class Grades(NamedTuple):
    """All of them, from worst to best."""

    lines: list[GradeLine]
    positives_only: bool  # no row is worse than another: losers must be drawn
    doubt: str


def feedback_of(guesses: list[Guess], named: Callable[[str], str]) -> list[Feedback]:
    """Return the lines of feedback; a text of kinds of event has one for each kind. named: gives a free name."""
    found = []
    for guess in guesses:
        if guess.role != "feedback":
            continue
        act, column = guess.act or _plain(guess), quoted(guess.name)
        if act.kind != "type":
            value = (act.sql or "{}").format(column)
            found.append(Feedback(named(name_of(guess.name)), guess.expression, guess, act, value))
            continue
        for kind in guess.facts.examples:
            if not shows(kind):
                test = f"{{}} = {literal(kind)}"
                one = Act("act", f"rows of the kind '{kind}'", sql=test)
                sql, value = test.format(guess.facts.column.sql), test.format(column)
                found.append(Feedback(named(name_of(kind)), sql, guess, one, value))
    return found


def _plain(guess: Guess) -> Act:
    """Return what feedback says whose name says nothing."""
    return Act("act" if guess.facts.flag else "amount", guess.why)


def grades_of(con: duckdb.DuckDBPyConnection, feedback: list[Feedback]) -> Grades:
    """Return the grades that the feedback of the sample makes."""
    flags = [f for f in feedback if f.act.kind == "act" and _two(con, f)]
    others = [f for f in feedback if f.act.kind in ("rating", "share", "amount")]
    first = _number(con, flags, others)
    if first:
        made = _by_number(con, first)
        reactions = [] if first.act.kind == "rating" else _by_strength(flags, above=CONSUMED)
        return _with_refusals(made._replace(lines=made.lines + reactions), feedback)
    if flags:
        return _with_refusals(_by_acts(flags, feedback), feedback)
    return _positives(feedback)


def _number(con: duckdb.DuckDBPyConnection, flags: list[Feedback], others: list[Feedback]) -> Feedback | None:
    """Return the rating, share or amount that grades begin with: where no act says as much of as many rows."""
    order = ("rating", "share", "amount")
    plain = max((f.guess.facts.known for f in flags if strength(f.name) <= CONSUMED), default=0.0)
    any_ = max((f.guess.facts.known for f in flags), default=0.0)
    full = [f for f in others if f.guess.facts.known > max(2 * plain, AS_KNOWN * any_) and not _counts(con, f)]
    return min(full, key=lambda f: (order.index(f.act.kind), -f.guess.facts.known), default=None)


def _with_refusals(grades: Grades, feedback: list[Feedback]) -> Grades:
    """Return the grades with a refusal as the worst; a row that is refused has not the grade above it."""
    refusals = [f for f in feedback if f.act.kind == "refusal" and f.guess.facts.known >= REFUSALS]
    if not refusals:
        return grades
    told = " OR ".join(bare(f.name) for f in refusals)
    worst = grades.lines[0]
    not_told = " AND ".join(f"{bare(f.name)} IS NOT TRUE" for f in refusals)
    above = worst._replace(when=f"({worst.when}) AND {not_told}")
    return grades._replace(lines=[GradeLine("refused", told, "the user said no"), above, *grades.lines[1:]])


def _two(con: duckdb.DuckDBPyConnection, feedback: Feedback) -> bool:
    """Return whether an act was done and was not."""
    found = con.execute(f"SELECT count(DISTINCT ({feedback.value})::BOOLEAN) FROM sample").fetchall()
    return int(found[0][0]) > 1


def _counts(con: duckdb.DuckDBPyConnection, feedback: Feedback) -> bool:
    """Return whether a number says how often or how many, one at least: such a row is a positive, whatever it is."""
    found = con.execute(f"SELECT min(x), median(x) FROM (SELECT {feedback.value} AS x FROM sample)").fetchall()[0]
    return feedback.act.kind == "amount" and feedback.guess.facts.whole and found[0] >= 1 and found[1] <= 3


def _by_acts(flags: list[Feedback], feedback: list[Feedback]) -> Grades:
    """Return grades of what was done and not done: a skip, then the acts by what they mean."""
    most = max(f.guess.facts.known for f in flags)
    base = min((f for f in flags if f.guess.facts.known >= AS_KNOWN * most), key=lambda f: (strength(f.name), -_on(f)))
    types = [f for f in feedback if f.guess.act is not None and f.guess.act.kind == "type"]
    nothing = f"NOT {bare(base.name)}"
    if base in types:
        nothing = " AND ".join(f"NOT {bare(f.name)}" for f in types)
    lines = [GradeLine("skip", nothing, "shown, and not taken")]
    weaker = [f.name for f in flags if strength(f.name) <= strength(base.name) and f is not base]
    lines.append(GradeLine(_free(base.name, lines), bare(base.name), f"known in {_percent(base)} of the rows"))
    lines += [
        line for line in _by_strength(flags, above=strength(base.name)) if line.name not in {x.name for x in lines}
    ]
    doubt = "" if all(map(is_ordered, (f.name for f in flags))) else "the order is by what the words mean"
    if weaker:
        doubt = f"{doubt}; no grade is made of {', '.join(weaker)}" if doubt else f"no grade of {', '.join(weaker)}"
    if len(types) > 1 and any(f.guess.act is not None for f in types):
        doubt = f"{doubt}; a view and a click of one impression are two rows here: join them first, if they are"
    return Grades(lines, False, doubt.removeprefix("; "))


def _by_strength(flags: list[Feedback], above: int) -> list[GradeLine]:
    """Return a grade for each strength above one; acts of one strength that are as well known are one grade."""
    lines = list[GradeLine]()
    for rank in sorted({strength(f.name) for f in flags}):
        if rank <= above:
            continue
        same = sorted((f for f in flags if strength(f.name) == rank), key=lambda f: -_on(f))
        known = max(f.guess.facts.known for f in same)
        same = [f for f in same if f.guess.facts.known >= AS_KNOWN * known]
        told = " OR ".join(bare(f.name) for f in same)
        lines.append(GradeLine(_free(same[0].name, lines), told, f"known in {_percent(same[0])} of the rows"))
    return lines


def _free(name: str, lines: list[GradeLine]) -> str:
    taken = {line.name for line in lines} | {"skip", "refused"}
    return f"{name}_done" if name in taken else name


def _on(feedback: Feedback) -> float:
    return feedback.guess.facts.on


def _percent(feedback: Feedback) -> str:
    return f"{100 * feedback.guess.facts.known:.0f} %"


def _by_number(con: duckdb.DuckDBPyConnection, feedback: Feedback) -> Grades:
    name = bare(feedback.name)
    if feedback.act.kind == "share":
        part, whole = SKIPPED * feedback.act.whole, WHOLE * feedback.act.whole
        lines = [
            GradeLine("skip", f"{name} < {part:g}", "hardly any of it"),
            GradeLine("part", f"{name} >= {part:g}", "some of it"),
            GradeLine("whole", f"{name} >= {whole:g}", "nearly all of it"),
        ]
        return Grades(lines, False, "the shares that part them are a guess")
    if feedback.act.kind == "rating":
        cuts = _steps(con, feedback.value)
        return Grades(_at(name, cuts), False, "are the steps those that matter to you?")
    cuts = _quantiles(con, feedback.value, (0.5, 0.8))
    return Grades(_at(name, cuts), False, "parted at the median and above: what of it is little, and what is much?")


def _at(name: str, cuts: list[float]) -> list[GradeLine]:
    """Return the grade below the first of some values, and one from each of them on."""
    lines = [GradeLine("low", f"{name} < {cuts[0]:g}", "")] if cuts else [GradeLine("known", f"{name} IS NOT NULL", "")]
    return lines + [
        GradeLine(f"from_{cut:g}".replace(".", "_").replace("-", "minus_"), f"{name} >= {cut:g}", "") for cut in cuts
    ]


def _steps(con: duckdb.DuckDBPyConnection, value: str) -> list[float]:
    """Return where the grades of a scale begin: at each of few steps, at quantiles of many."""
    rows = con.execute(
        f"SELECT x, count(*) / sum(count(*)) OVER () FROM (SELECT {value} AS x FROM sample) "
        "WHERE x IS NOT NULL GROUP BY x ORDER BY x"
    ).fetchall()
    if len(rows) > 6:
        return _quantiles(con, value, (0.25, 0.5, 0.75))
    cuts, below = list[float](), 0.0
    for step, share in rows:
        if below >= LOWEST and share >= HIGHEST:
            cuts.append(float(step))
        below += float(share)
    return cuts


def _quantiles(con: duckdb.DuckDBPyConnection, value: str, at: tuple[float, ...]) -> list[float]:
    """Return the different quantiles of a value that lie above its least one."""
    found = con.execute(
        f"SELECT quantile_disc(x, {list(at)}), min(x) FROM (SELECT {value} AS x FROM sample)"
    ).fetchall()[0]
    return sorted({float(f"{cut:.3g}") for cut in found[0] or () if cut > found[1]})


def _positives(feedback: list[Feedback]) -> Grades:
    types = [f for f in feedback if f.act.kind == "act"]
    if len(types) > 1:
        lines = [GradeLine(f.name, bare(f.name), "") for f in sorted(types, key=lambda f: strength(f.name))]
        return Grades(lines, True, "every row is an act: losers are drawn ([pairing] negatives)")
    return Grades([GradeLine("taken", "true", "every row is something that the user took")], True,
                  "no column says what was shown and not taken: losers are drawn ([pairing] negatives)")  # fmt: skip
