"""Snapshots of a server that records, and what ties a recorded log to bundles and snapshots.

A snapshot folder is a state (`features.state.snapshot`), `strangers/` (its unplaced events: of users or items that the
bundle does not know and for which there was no room) and `manifest.json`: hashes of all files, and which frame of which
log it goes up to, with that frame's checksum: a copy of the log may have gone on with others.
"""

import errno
import itertools
import json
import logging
import shutil
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import load_arrays, save_arrays
from features.errors import PairliftError
from features.files import made_folder, sync, sync_tree, written
from features.log.recorded import Recorded
from features.log.segments import checksum_of
from features.pairing.split import iso
from features.schema import Attribute, EventLog
from features.state.live import Frozen
from features.state.snapshot import load_state, save_state
from features.state.store import State
from ranker.bundle import Bundle, read_manifest, recorded_of
from ranker.hashes import MANIFEST, damaged_files, hash_files

logger = logging.getLogger(__name__)

FORMAT = 1
PARTIAL = ".partial"
#: folder of a snapshot's unplaced events, by the name that folders on disk have
UNPLACED = "strangers"
#: file of a log's folder: its name
IDENTITY = "log.json"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a snapshot is from."""

    log: str  # the log's name, of `log_name`
    frame: int  # number of the log's last frame that is in the snapshot
    unplaced: EventLog  # its events of users or items for which there was no room: they are in no history
    checksum: int | None = None  # of the frame; None: the log lacked it, or an older Pairlift wrote the snapshot

    def is_of(self, name: str, folder: Path) -> bool:
        """Tell whether the snapshot is of the log of that name in a folder, as far as the log's files show.

        The frame may have been deleted from it.
        """
        found = checksum_of(folder, self.frame)
        return self.log == name and (found == self.checksum or found is None or self.checksum is None)


def write_snapshot(parent: Path, frozen: Frozen, log: str, bundle: str, checksum: int | None = None) -> Path:
    """Write a snapshot into a new folder of `parent`; it appears whole or not at all, and never in another's place.

    Its name is its end, its last frame and the version of the bundle that it fits, and a number where that is taken.
    checksum: of its last frame in the log, None where that is not known.
    """
    stamp = iso(frozen.state.end).replace(":", "").replace(" ", "T")
    name = f"{stamp}-{frozen.frame}-{bundle}"
    # Not `written_folder`, which replaces: several may be written at once, and each finds its own name.
    partial = parent / f".{name}.{uuid.uuid4().hex}{PARTIAL}"
    made_folder(parent)
    partial.mkdir()
    try:
        save_state(partial, frozen.state)
        save_arrays(partial / UNPLACED, frozen.unplaced)
        manifest = {"format": FORMAT, "end": frozen.state.end, "log": log, "frame": frozen.frame, "bundle": bundle}
        manifest |= {"checksum": checksum, "files": hash_files(partial)}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        sync_tree(partial)
        folder = _placed(partial, parent / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync(parent)
    return folder


def _placed(partial: Path, wanted: Path) -> Path:
    """Rename a folder to the wanted name, or to the first free one of `<name>-2`, `<name>-3`, …; return it."""
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            partial.rename(folder)  # over a folder that has files, or a file, it fails
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        else:
            return folder
    raise AssertionError("a count has no end")


def tidy_snapshots(parent: Path) -> None:
    """Remove what a server left half written when it was killed. The caller holds the log's lock."""
    for left in parent.glob(f".*{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)


def with_snapshot(bundle: Bundle, folder: Path) -> Bundle:
    """Return the bundle with the state of another snapshot; PairliftError where that does not fit.

    Every file is checked by its hash, and the ones that changed are named; only a snapshot without a manifest (as in
    a bundle, whose manifest has the hashes) is taken as it is.
    """
    try:
        manifest = _manifest(folder)
        damaged = damaged_files(folder, manifest.get("files", {}))
        if damaged:
            raise PairliftError(f"{folder} is damaged, use another snapshot; missing or changed: {', '.join(damaged)}")
        state = load_state(folder)
        if not manifest:
            logger.warning("%s has no %s: it is served without a check of its bytes", folder, MANIFEST)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PairliftError(f"{folder} is not a snapshot, or a damaged one: {error}") from error
    differing = _differences(bundle.state, state)
    if differing:
        raise PairliftError(
            f"the snapshot {folder} does not fit the bundle {bundle.folder}: {'; '.join(differing)}. "
            "Make it with the same TOML and the same users and items, or train the bundle again"
        )
    if _has_context(bundle.state) and not _has_context(state):
        logger.warning(
            "%s was written before snapshots had [events.context] of past events: to plugins that read it there, it is "
            "unknown of all events, recorded ones too, until a new bundle is served",
            folder,
        )
    return replace(bundle, state=state, recorded={} if manifest else _recorded_beside(folder))


def _recorded_beside(folder: Path) -> Recorded:
    """Return which recorded events a snapshot without a manifest has: it is a bundle's own, or has none."""
    bundle = folder.resolve().parent
    if folder.name != "snapshot" or not (bundle / MANIFEST).is_file():
        return {}
    return recorded_of(read_manifest(bundle))


def origin_of(folder: Path) -> Origin | None:
    """Return where a snapshot that `with_snapshot` took is from; None where it is not of a recorded log."""
    manifest = _manifest(folder)
    if not manifest:
        return None
    unplaced = load_arrays(folder / UNPLACED, EventLog)
    return Origin(manifest["log"], manifest["frame"], unplaced, manifest.get("checksum"))


def _manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest, empty where there is none."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    manifest: dict[str, Any] = json.loads(path.read_text())
    if manifest.get("format") != FORMAT:
        raise PairliftError(
            f"{path}: format {FORMAT} was expected, found {manifest.get('format')}; serve the bundle without it, and "
            "take a new snapshot"
        )
    return manifest


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
        ours, theirs = (getattr(state.catalog, f"{side}_attributes") for state in (expected, found))
        if _vocabulary(ours) != _vocabulary(theirs):
            problems.append(f"the {side}s' attributes differ")
    if expected.catalog.surfaces != found.catalog.surfaces:
        problems.append("the surfaces differ")
    if expected.catalog.arms != found.catalog.arms:
        problems.append("the arms of experiments differ")
    if expected.histories.feedback.shape[1:] != found.histories.feedback.shape[1:]:
        problems.append("the histories have other feedback columns")
    if _has_context(found) and _vocabulary(expected.catalog.contexts) != _vocabulary(found.catalog.contexts):
        problems.append("the values of [events.context] differ")
    return problems


def _has_context(state: State) -> bool:
    """Whether events of the histories have what their requests said: in older snapshots they do not."""
    return bool(state.histories.context.shape[1])


def _vocabulary(attributes: tuple[Attribute, ...]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(a.name, a.kind, () if a.kind == "text" else tuple(a.values)) for a in attributes]


def check_log(folder: Path) -> None:
    """Raise PairliftError where a folder is no log that was recorded."""
    if not (folder / IDENTITY).is_file():
        raise PairliftError(f"{folder}: the folder of `pairlift serve --log` was expected, but {IDENTITY} is not there")


def log_name(folder: Path) -> str:
    """Return the name of the log in a folder, which it is given for ever; PairliftError where the file is damaged."""
    path = folder / IDENTITY
    try:
        if path.exists():
            return str(json.loads(path.read_text())["log"])
    except (ValueError, TypeError, KeyError) as error:
        raise PairliftError(f"{path} is damaged ({error}); restore it from a copy") from error
    name = str(uuid.uuid4())
    with written(path) as partial:
        partial.write_text(json.dumps({"log": name}, indent=1))
    return name
