"""The report that a day stands for: the last one of a folder that was made by its end (UTC)."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from features.errors import PairliftError, did_you_mean
from ranker.uplift.result import JSON, UpliftReport, found_json
from ranker.uplift.said import found_at

DAY = r"\d{4}-\d\d-\d\d"


@dataclass(frozen=True, slots=True)
class Kept:
    """A report of one plugin in a folder."""

    path: Path  # its own folder
    data: str
    plugin: str
    day: str  # on which it was made, YYYY-MM-DD UTC; empty where it does not say
    time: str  # at which, HH:MM:SS; empty likewise

    @property
    def said(self) -> str:
        """Where it is, and when it was made."""
        return f"{self.path}, made on {self.day}{f' at {self.time}' if self.time else ''}"


def is_day(word: Path) -> bool:
    """Tell whether a word is a day, and no file or folder. Raises PairliftError for one that no calendar has."""
    if not re.fullmatch(DAY, str(word)) or word.exists():
        return False
    try:
        date.fromisoformat(str(word))
    except ValueError as error:
        raise PairliftError(f"a day such as 2026-11-20, or a path, was expected, found {word}: {error}") from error
    return True


def reports_of(words: Sequence[Path], folder: Path, plugin: str = "") -> tuple[list[Path], list[str]]:
    """Return the path that each word names, a day that of its report; and lines that say what the days took.

    folder: where reports are looked for. plugin: whose; left out, that of the word that is no day, else there must be
    one alone. Raises PairliftError where a day names no report, or not one alone, and where both words name the same.
    """
    kept, unread = _kept(folder)
    beside = [UpliftReport.read(word).figures for word in words if not is_day(word)]
    plugin = plugin or next((of["plugin"] for of in beside), "")
    own = _of_one(kept, folder, plugin, next((of["data"] for of in beside), ""))
    found = {word: _by(word, own, folder) for word in words if is_day(word)}
    paths = [found[word].path if word in found else word for word in words]
    if len({(path if path.is_dir() else path.parent).resolve() for path in paths}) == 1:
        one = next(iter(found.values())).said
        raise PairliftError(
            f"two reports were expected, found that both sides are one: {one}; name days between which another was made"
        )
    lines = [f"{day}: the last report of {of.plugin} by then is {of.said}" for day, of in found.items()]
    return paths, [*lines, *unread]


def _kept(folder: Path) -> tuple[list[Kept], list[str]]:
    """Return the reports of one plugin below a folder, and a line for each file of that name that is none."""
    if not folder.is_dir():
        raise PairliftError(f"a folder of reports was expected, found no folder {folder}")
    kept, unread = [], []
    for path in sorted(folder.rglob(JSON)):
        try:
            found = found_json(path)
            if isinstance(found, dict) and "plugins" in found:
                continue  # of several: the report of each lies below it
            figures = UpliftReport.of(found).figures
        except PairliftError as error:
            unread.append(f"NOT READ: {os.path.relpath(path, folder)}: {error}")
            continue
        day, time = (str(found_at(figures, ("made", key)) or "") for key in ("date", "time"))
        day = day if re.fullmatch(DAY, day) else ""
        kept.append(Kept(path.parent, figures["data"], figures["plugin"], day, time))
    return kept, unread


def _of_one(kept: list[Kept], folder: Path, plugin: str, data: str) -> list[Kept]:
    """Return the reports of one plugin on one log. plugin, data: which; empty where there must be one alone."""
    plugins = sorted({of.plugin for of in kept})
    if plugin and plugin not in plugins:
        there = f"found those of {', '.join(plugins)}{did_you_mean(plugin, plugins)}" if plugins else "found none"
        raise PairliftError(f"{folder}: reports of {plugin} were expected, {there}")
    if not plugin and len(plugins) > 1:
        raise PairliftError(
            f"{folder}: reports of one plugin were expected, found those of {', '.join(plugins)}: --plugin NAME says "
            "which"
        )
    own = [of for of in kept if of.plugin == (plugin or of.plugin) and of.data == (data or of.data)]
    logs = sorted({of.data for of in own})
    if len(logs) > 1:
        raise PairliftError(
            f"{folder}: reports on one log were expected, found {', '.join(logs)}: name a folder with those of one, or "
            "the folders of two reports"
        )
    return own


def _by(day: Path, kept: list[Kept], folder: Path) -> Kept:
    """Return the last report that was made by the end of a day."""
    dated = sorted((of for of in kept if of.day), key=lambda of: (of.day, of.time))
    before = [of for of in dated if of.day <= str(day)]
    if not before:
        undated = f"none of {len(kept)} says when it was made" if kept else "found none"
        first = f"the first is {dated[0].said}" if dated else undated
        raise PairliftError(f"{folder}: a report that was made by {day} (UTC) was expected, {first}")
    last = before[-1]
    same = [of for of in before if (of.day, of.time) == (last.day, last.time)]
    if len(same) > 1:
        raise PairliftError(
            f"{day}: one last report was expected, found {' and '.join(str(of.path) for of in same)} of {last.day}: "
            "name one of these folders in place of the day"
        )
    return last
