"""The progress of long work on stderr: a bar where that is a terminal, else a line of the log now and then."""

import logging
import sys
from collections.abc import Iterable
from time import monotonic
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)

#: seconds between two lines
EVERY = 30.0
#: what a line says behind the name, in tqdm's words
LINE = "{percentage:.0f} %, {n_fmt} of {total_fmt}, {elapsed} so far, {remaining} left, {rate_fmt}{postfix}"


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> "tqdm[Any]":
    """Return a tqdm of these options on stderr; what is no terminal gets no bar but a line every 30 seconds.

    A bar is drawn anew in its place, of which a file or a collector of logs would keep every state.
    """
    kind: type[tqdm[Any]] = tqdm if sys.stderr.isatty() else _Lines
    return kind(iterable, **{"file": sys.stderr, **options})


class _Nowhere:
    """What a bar that is not drawn is drawn on."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


class _Lines(tqdm):  # type: ignore[type-arg]
    """A bar that is told and not drawn."""

    def __init__(self, iterable: Iterable[Any] | None = None, **options: Any) -> None:
        self._next = monotonic() + EVERY
        own = {"file": _Nowhere(), "bar_format": LINE, "mininterval": 1, "maxinterval": EVERY}
        super().__init__(iterable, **(options | own))

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line where it is time for one; tqdm calls this whenever it would draw."""
        if (now := monotonic()) >= self._next:
            self._next = now + EVERY
            log.info("%s: %s", self.desc.removesuffix(": "), " ".join(str(self).split()))  # which is padded
