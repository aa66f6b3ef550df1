"""The folder of `pairlift serve --bundles`: the bundles that are deployed, each by its version, and the plan.

<version>/         a bundle: linked where it lies on the same file system, else copied, or uploaded
<version>.upload/  one that is not whole yet
deployment.json    the plan (`ranker.serving.rollout.plan`): replaced in one step, and followed by other processes
refresh.json       the last refresh that was asked for (`ranker.serving.refreshing`), likewise
lock               held by the process that changes the plan
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pydantic import ValidationError

from features.errors import PairliftError
from features.files import made_folder, sync_tree, written
from ranker.bundle import read_manifest
from ranker.hashes import MANIFEST, hash_file
from ranker.serving.rollout.plan import Place, Plan

PLAN, REFRESH, LOCK, UPLOAD = "deployment.json", "refresh.json", "lock", ".upload"
#: seconds for which an upload that was broken off may go on
UPLOAD_KEPT = 86_400.0


class RefreshAsked(NamedTuple):
    """A refresh that is asked for: the fields of RefreshRequest in admin.proto."""

    users: int  # 0: as many as there is room for
    memory: int  # bytes


class Store:
    """The folder; PairliftError where it cannot be made or written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        try:
            made_folder(self.folder)
        except OSError as error:
            raise PairliftError(f"--bundles {folder}: {error.strerror}") from error

    @contextmanager
    def locked(self, name: str = LOCK) -> Iterator[bool]:
        """Give whether this process alone has a lock until the block ends; False where another has it, at once."""
        with (self.folder / name).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def plan(self) -> Plan | None:
        """Return the plan; None where nothing was deployed. PairliftError where the file is damaged."""
        path = self.folder / PLAN
        try:
            return Plan.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise PairliftError(f"{path} is damaged: remove it, and deploy again") from error

    def save(self, plan: Plan) -> None:
        """Write the plan, and remove the bundles that it has no place for."""
        with written(self.folder / PLAN) as partial:
            partial.write_text(plan.model_dump_json(indent=1))
        kept = {place.folder for place in plan.places}
        for path in self.folder.iterdir():
            if path.is_dir() and str(path) not in kept and (path.suffix != UPLOAD or _age(path) > UPLOAD_KEPT):
                shutil.rmtree(path, ignore_errors=True)  # what is mapped stays readable

    def changed(self) -> Any:
        """Return what differs once the plan was replaced."""
        return _stamp(self.folder / PLAN)

    def ask_refresh(self, asked: RefreshAsked) -> None:
        """Have all processes of the server refresh what was computed ahead."""
        with written(self.folder / REFRESH) as partial:
            partial.write_text(json.dumps(asked._asdict()))

    def refresh_changed(self) -> Any:
        """Return what differs once another refresh was asked for."""
        return _stamp(self.folder / REFRESH)

    def refresh_asked(self) -> RefreshAsked:
        """Return the refresh that was asked for last, where one was."""
        return RefreshAsked(**json.loads((self.folder / REFRESH).read_bytes()))

    def keep(self, folder: Path) -> Place:
        """Take a bundle in: a later change of its folder does not touch what is deployed."""
        manifest = read_manifest(folder)
        place = self.folder / manifest["version"]
        if not place.exists():
            partial = place.with_name(f".{place.name}.{os.getpid()}")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(folder, partial, copy_function=_link_or_copy)
            sync_tree(partial)
            try:
                partial.rename(place)
            except OSError:
                if not place.exists():
                    raise
                shutil.rmtree(partial, ignore_errors=True)  # another process of the server was faster
        return Place(folder=str(place), version=manifest["version"])

    def offered(self, manifest: bytes) -> list[str]:
        """Begin an upload; return the paths of the files that are neither here nor in another bundle of the store."""
        with TemporaryDirectory(prefix=".offer", dir=self.folder) as offer:
            (Path(offer) / MANIFEST).write_bytes(manifest)
            read = read_manifest(Path(offer))  # its version is the hash of all that it says
        version, files = str(read["version"]), dict(read["files"])
        if (self.folder / version).exists():
            return []
        partial = self.folder / f"{version}{UPLOAD}"
        partial.mkdir(exist_ok=True)
        (partial / MANIFEST).write_bytes(manifest)
        known = self._known()
        for name, wanted in files.items():
            target = _inside(partial, name)
            if target.is_file() and hash_file(target) == wanted:
                continue
            target.unlink(missing_ok=True)
            if wanted in known:
                target.parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(str(known[wanted]), str(target))
        return [name for name in files if not (partial / name).exists()]

    def write(self, version: str, name: str, chunk: bytes, first: bool) -> None:
        """Write a piece of a file of an upload. first: it is the first of the file."""
        partial = self.folder / f"{version}{UPLOAD}"
        if not version.isalnum() or not (partial / MANIFEST).is_file():
            raise PairliftError(f"bundle '{version}' was not offered: offer its manifest first")
        files = read_manifest(partial)["files"]
        if name not in files:
            raise PairliftError(f"'{name}' is no file of bundle {version}")
        target = _inside(partial, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if first or (target.exists() and target.stat().st_nlink > 1):
            target.unlink(missing_ok=True)  # it may be a link to a file of a bundle that answers
        with target.open("ab") as file:
            file.write(chunk)

    def uploaded(self, version: str) -> Place:
        """Return where an uploaded bundle lies; PairliftError where files of it are missing or damaged."""
        upload = self.folder / f"{version}{UPLOAD}"
        if not version.isalnum() or not ((self.folder / version).is_dir() or (upload / MANIFEST).is_file()):
            raise PairliftError(f"bundle '{version}' was not uploaded")
        if not (self.folder / version).is_dir():
            self._whole(version)
        return Place(folder=str(self.folder / version), version=version)

    def _whole(self, version: str) -> None:
        partial = self.folder / f"{version}{UPLOAD}"
        files = read_manifest(partial)["files"]
        bad = [name for name, wanted in files.items() if not _is(partial / name, wanted)]
        if bad:
            raise PairliftError(f"of bundle {version} these files are missing or damaged, upload them again: {bad[:5]}")
        sync_tree(partial)
        partial.rename(self.folder / version)

    def _known(self) -> dict[str, Path]:
        """Return a file of each hash in the bundles that are whole."""
        found: dict[str, Path] = {}
        for manifest in self.folder.glob(f"*/{MANIFEST}"):
            if manifest.parent.suffix != UPLOAD:
                files = read_manifest(manifest.parent)["files"]
                found |= {wanted: manifest.parent / name for name, wanted in files.items()}
        return found


def _stamp(path: Path) -> Any:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _inside(folder: Path, name: str) -> Path:
    target = (folder / name).resolve()
    if not target.is_relative_to(folder) or target == folder:
        raise PairliftError(f"'{name}' lies outside of the bundle")
    return target


def _is(path: Path, wanted: str) -> bool:
    return path.is_file() and hash_file(path) == wanted


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
