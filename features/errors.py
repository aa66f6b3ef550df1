"""The one exception of a user's mistake, and the words of its texts: nearest names, and what pydantic found."""

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a client has errors too, and needs no pydantic
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

#: keys, and places in lists
Place = tuple[int | str, ...]

#: characters of a text of others that a log or an answer has
BRIEF = 300

#: what was expected, by pydantic's type of a finding and with the values of its context
_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "datetime_type": "a time",
    "date_type": "a date",
    "literal_error": "{expected}",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "a list that is not empty",
}
UNKNOWN, MISSING = "extra_forbidden", "missing"
_WORDS = {UNKNOWN: "unknown key", MISSING: "missing key"}
#: characters of a value that a text shows
_SHOWN = 60


class PairliftError(Exception):
    """Something that the user can mend: the text says what was expected, what was found, what to do next.

    The command line prints it without a traceback and exits with status 2.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the known name nearest to `name`, else the list of known names."""
    names = sorted(known)
    near = nearest(name, names)
    return f" (did you mean '{near}'?)" if near else f" (known: {', '.join(names) or 'none'})"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name nearest to `name`; None where none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), None)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at one place of a table."""

    place: Place  # () for the table as a whole
    text: str
    kind: str  # pydantic's type of the (first) finding: UNKNOWN, MISSING, …


def problems(error: "ValidationError", table: Any) -> list[Problem]:
    """Return pydantic's findings about a table in plain words, one for each place.

    A value that may be of several types has a finding for each: they become one. Where the value is a table, only
    what is wrong within it counts.
    """
    found: dict[Place, list[ErrorDetails]] = {}
    for one in error.errors():
        found.setdefault(_place(one, table), []).append(one)
    within = {place[:n] for place in found for n in range(1, len(place))}
    return [Problem(place, _text(of), of[0]["type"]) for place, of in found.items() if place not in within]


def _place(found: "ErrorDetails", table: Any) -> Place:
    """Return the place of a finding without pydantic's own words: which type of several was tried, `[key]`."""
    loc, place = found["loc"], list[int | str]()
    for depth, part in enumerate(loc):
        try:
            table = table[part]
        except (KeyError, IndexError, TypeError):
            if found["type"] != MISSING or depth < len(loc) - 1:
                continue
        place.append(part)
    return tuple(place)


def brief(text: str, most: int = BRIEF) -> str:
    """Return a text that somebody else wrote, for a log or an answer: at most so many characters, and how many it has.

    A caller may send a name of megabytes, and code that is not ours may raise with one.
    """
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def told(error: BaseException) -> str:
    """Return the type and the brief message of an exception of any code, also of one whose own `__str__` raises."""
    name = type(error).__name__
    try:
        return f"{name}: {brief(str(error))}"
    except BaseException as within:
        return f"{name}, whose text raises {type(within).__name__}"


def _text(of: Sequence["ErrorDetails"]) -> str:
    expected = list(dict.fromkeys(_EXPECTED[e["type"]].format(**_context(e)) for e in of if e["type"] in _EXPECTED))
    others = [_WORDS.get(e["type"], e["msg"].removeprefix("Value error, ")) for e in of if e["type"] not in _EXPECTED]
    if expected:
        choice = " or ".join(filter(None, [", ".join(expected[:-1]), expected[-1]]))
        others.insert(0, f"{choice} was expected, found {_shown(of[0]['input'])}")
    return "; ".join(others)


def _context(found: "ErrorDetails") -> dict[str, Any]:
    context = found.get("ctx", {})
    words = str(context.get("expected", "")).replace("False", "false").replace("True", "true")
    return context | {"expected": words}


def _shown(value: Any) -> str:
    """Return a value for a text, about as the TOML writes it; of one that its quotes made text, what to do."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, date | time):
        return value.isoformat()
    text = repr(value)
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return f"{text}: write it without quotes" if isinstance(value, str) and _quoted(value) else text


def _quoted(text: str) -> bool:
    """Return whether a text is a number, a date, or true or false when its quotes are taken off."""
    try:
        return not isinstance(tomllib.loads(f"x = {text}")["x"], str | list | dict)
    except tomllib.TOMLDecodeError:
        return False
