"""The one exception of a user's mistake, and the nearest-name hint that its texts use."""

import difflib
from collections.abc import Iterable


class PairliftError(Exception):
    """Something that the user can mend: the text says what was expected, what was found, what to do next.

    The command line prints it without a traceback and exits with status 2.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the known name nearest to `name`, else the list of known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else f" (known: {', '.join(names) or 'none'})"
