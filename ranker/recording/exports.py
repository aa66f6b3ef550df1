"""Closed segments of the log as Parquet: one thread looks for them, and writes the files that are missing."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from features.errors import PairliftError
from features.log.reader import EVENTS
from features.log.segments import check_export, export_segment
from features.log.writer import LogWriter

log = logging.getLogger(__name__)

#: seconds between looks for closed segments without a Parquet file
EXPORT_EVERY = 1.0


class Exporter:
    """Exports the closed segments of a writer's log, from `start` to `stop`."""

    def __init__(self, writer: LogWriter, on_look: Callable[[], None]) -> None:
        """on_look: called after each look, on the exporter's thread."""
        self._writer, self._on_look = writer, on_look
        self._events = writer.folder / EVENTS
        self._failing: dict[Path, str] = {}  # segments that cannot be exported, and why
        self._trouble = ""  # why the last look for closed segments failed
        self._compared: set[Path] = set()  # segments whose Parquet file is known to be theirs
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="export", daemon=True)

    @property
    def problems(self) -> list[str]:
        """What is wrong at the moment: the last look, and the first segment that cannot be exported."""
        failing = list(self._failing.values())
        more = f", and {len(failing) - 1} more; a training lacks their events" if failing[1:] else ""
        return [*filter(None, [self._trouble]), *(one + more for one in failing[:1])]

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more, and wait for the export under way: behind that the log may be another process's."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while True:
            try:
                self._export_closed()
                self._trouble = ""
            except Exception as error:  # this thread must not end: nothing else exports, or calls `on_look`
                if not self._trouble:
                    log.exception("%s: closed segments cannot be looked for", self._writer.folder)
                self._trouble = f"{self._writer.folder}: closed segments cannot be looked for ({error})"
            self._on_look()
            if self._stop.wait(EXPORT_EVERY):
                return

    def _export_closed(self) -> None:
        failing: dict[Path, str] = {}
        for path in self._writer.closed_segments():
            try:
                self._export_one(path)
            except Exception as error:
                failing[path] = reason = f"{path} could not be written as Parquet into {self._events} ({error})"
                if self._failing.get(path) != reason:
                    expected = isinstance(error, OSError | PairliftError)
                    log.error("%s; it is tried again every %g s", reason, EXPORT_EVERY, exc_info=not expected)
        for path in self._failing.keys() - failing.keys():
            log.info("%s is exported again or no longer there", path)
        self._failing = failing

    def _export_one(self, path: Path) -> None:
        exported = self._events / f"{path.stem}.parquet"
        if not exported.exists():
            export_segment(path, self._events)
        elif path not in self._compared:
            check_export(path, exported)
        self._compared.add(path)
