"""Files that are read anew when they change: certificates, tokens."""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from features.errors import PairliftError

log = logging.getLogger(__name__)
T = TypeVar("T")


class Watched(Generic[T]):
    """What some small files say. Of a change that cannot be read one line is logged, and what they said before holds.

    Content is compared, not its time: a file may be written twice within a tick of the file system's clock.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[list[bytes]], T]) -> None:
        """Read the files; PairliftError, also from `read`, where that cannot be done. read: from their contents."""
        self._paths, self._read = list(paths), read
        self._lock = threading.Lock()
        self._seen: list[bytes] | str = self._contents()
        if isinstance(self._seen, str):
            raise PairliftError(self._seen)
        self.value = read(self._seen)

    def look(self) -> bool:
        """Read the files where they changed since; return whether `value` is a new one."""
        with self._lock:
            found = self._contents()
            if found == self._seen:
                return False
            self._seen = found  # a content that is wrong, too: it is told once
            try:
                if isinstance(found, str):
                    raise PairliftError(found)
                self.value = self._read(found)
            except PairliftError as error:
                log.error("%s; what was read before stays in force", error)
                return False
        log.info("%s read anew", ", ".join(map(str, self._paths)))
        return True

    def _contents(self) -> list[bytes] | str:
        """Return what the files hold, or why they cannot be read."""
        try:
            return [path.read_bytes() for path in self._paths]
        except OSError as error:
            return f"{error.filename} cannot be read: {error.strerror}"
