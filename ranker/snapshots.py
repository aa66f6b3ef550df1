"""Snapshots of a server that records, and what ties a recorded log to bundles and snapshots.

A snapshot folder is a state (`features.snapshot`), `strangers/` (its events of users or items for which there was no
room) and `manifest.json`: hashes of all files, and which frame of which log it goes up to.
"""

import json
import logging
import os
import shutil
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import load_arrays, save_arrays
from features.errors import PairliftError
from features.live import Frozen
from features.schema import Attribute, Catalog, EventLog
from features.segments import sync_folder
from features.snapshot import load_state, save_state
from features.split import iso
from features.store import State
from ranker.bundle import Bundle
from ranker.hashes import hash_file

logger = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
#: file of a log's folder: its name, and with which bundles it was served
IDENTITY = "log.json"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a snapshot is from: the log's name, its last frame that is in it, its events of strangers."""

    log: str
    frame: int
    strangers: EventLog


def write_snapshot(parent: Path, frozen: Frozen, log: str, bundle: str) -> Path:
    """Write a snapshot into a new folder of `parent`, named by its end and frame; it appears whole or not at all."""
    stamp = iso(frozen.state.end).replace(":", "").replace(" ", "T")
    folder = parent / f"{stamp}-{frozen.frame}"
    if folder.exists():
        return folder
    partial = parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_state(partial, frozen.state)
    save_arrays(partial / "strangers", frozen.strangers)
    files = {str(p.relative_to(partial)): hash_file(p) for p in sorted(partial.rglob("*")) if p.is_file()}
    told = {"format": FORMAT, "end": frozen.state.end, "log": log, "frame": frozen.frame, "bundle": bundle}
    (partial / MANIFEST).write_text(json.dumps({**told, "files": files}, indent=1))
    _sync(partial)
    partial.rename(folder)
    sync_folder(parent)
    return folder


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def with_snapshot(bundle: Bundle, folder: Path) -> Bundle:
    """Return the bundle with the state of another snapshot; PairliftError where that does not fit.

    Every file is checked by its hash, and the ones that changed are named; only a snapshot without a manifest (as in
    a bundle, whose manifest has the hashes) is taken as it is.
    """
    try:
        told = _manifest(folder)
        damaged = [name for name, expected in told.get("files", {}).items() if not _has_hash(folder / name, expected)]
        if damaged:
            raise PairliftError(f"{folder} is damaged, use another snapshot; missing or changed: {', '.join(damaged)}")
        state = load_state(folder)
        if not told:
            logger.warning("%s has no %s: it is served without a check of its bytes", folder, MANIFEST)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PairliftError(f"{folder} is no snapshot, or a damaged one: {error}") from error
    differing = _differences(bundle.state, state)
    if differing:
        raise PairliftError(
            f"the snapshot {folder} does not fit the bundle {bundle.folder}: {'; '.join(differing)}. "
            "Make it with the same TOML and the same users and items, or train the bundle again"
        )
    return replace(bundle, state=state)


def origin_of(folder: Path) -> Origin | None:
    """Return where a snapshot that `with_snapshot` took is from; None where it is of no recorded log."""
    told = _manifest(folder)
    return Origin(told["log"], told["frame"], load_arrays(folder / "strangers", EventLog)) if told else None


def _manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest, empty where there is none."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    told: dict[str, Any] = json.loads(path.read_text())
    if told.get("format") != FORMAT:
        raise PairliftError(f"{path}: format {FORMAT} was expected, found {told.get('format')}")
    return told


def _differences(expected: State, found: State) -> list[str]:
    # Plugins and the co-occurrence table count items and users by dense index, and the booster knows
    # categories by code: one id more, and every number behind it would mean another thing without an error.
    problems = []
    if expected.counters != found.counters:
        problems.append(f"{len(expected.counters)} counters were expected, found {len(found.counters)} or other ones")
    for side in ("user", "item"):
        ours, theirs = (getattr(state.catalog, f"{side}_ids") for state in (expected, found))
        if ours.dtype != theirs.dtype or not np.array_equal(ours, theirs):
            problems.append(f"{len(ours):,} {side}s were expected, found {len(theirs):,} or other ids")
        if _vocabulary(expected.catalog, side) != _vocabulary(found.catalog, side):
            problems.append(f"the {side}s' attributes are others")
    if expected.catalog.surfaces != found.catalog.surfaces:
        problems.append("the surfaces are others")
    if expected.histories.feedback.shape[1:] != found.histories.feedback.shape[1:]:
        problems.append("the histories have other feedback columns")
    return problems


def _vocabulary(catalog: Catalog, side: str) -> list[tuple[str, str, tuple[str, ...]]]:
    attributes: tuple[Attribute, ...] = getattr(catalog, f"{side}_attributes")
    return [(a.name, a.kind, () if a.kind == "text" else tuple(a.values)) for a in attributes]


def _has_hash(path: Path, expected: str) -> bool:
    return path.is_file() and hash_file(path) == expected


class Identity:
    """The name of a log, and up to which frame it was there when a bundle was first served with it.

    A bundle is trained on what was recorded before (`[events] source` reads the log's Parquet files), so events of
    such frames with `ts` before the bundle's end are in it already. All others are not, be they as late as they may.
    """

    def __init__(self, folder: Path, bundle: str) -> None:
        """bundle: the version and the end of its state. PairliftError where the file is damaged."""
        self._path, self._bundle = folder / IDENTITY, bundle
        try:
            told = json.loads(self._path.read_text()) if self._path.exists() else {}
            self.name = str(told.get("log") or uuid.uuid4())
            self._served: dict[str, int] = dict(told.get("served", {}))
        except (ValueError, TypeError, AttributeError) as error:
            raise PairliftError(f"{self._path} is damaged ({error}); restore it from a copy") from error

    @property
    def covered(self) -> int | None:
        """The last frame that the bundle may have in it; None: it was never served, so all that are there now."""
        return self._served.get(self._bundle)

    def keep(self, last: int) -> None:
        """Remember that the bundle was first served when the log ended with the frame `last`; durable."""
        self._served.setdefault(self._bundle, last)
        partial = self._path.with_suffix(".partial")
        with partial.open("w") as file:
            json.dump({"log": self.name, "served": self._served}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self._path)
        sync_folder(self._path.parent)
