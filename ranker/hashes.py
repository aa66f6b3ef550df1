"""Hashes of files, of folders, of settings and of arrays: what manifests and the keys of stages compare."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from features.pace import breathe

#: file of a bundle or snapshot that has the hashes of its other files
MANIFEST = "manifest.json"
_BLOCK = 1 << 20


def hash_file(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            breathe()
    return digest.hexdigest()


def hash_value(value: Any) -> str:
    """Return the sha256 in hex of anything JSON can hold (other things by their `str`)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def hash_arrays(arrays: Mapping[str, Any], names: Sequence[str] = ()) -> str:
    """Return the sha256 in hex of arrays by name, and of the names of their columns where given."""
    digest = hashlib.sha256(repr(tuple(names)).encode())
    for name, values in arrays.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def files_below(folder: Path) -> list[str]:
    """Return the paths of a folder's files in it, sorted, without its manifest."""
    return sorted({str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {MANIFEST})


def hash_files(folder: Path) -> dict[str, str]:
    """Return the hash of each of a folder's files by its path in it: the `files` of a manifest."""
    return {name: hash_file(folder / name) for name in files_below(folder)}


def link_equal_arrays(folder: Path, hashes: Mapping[str, str]) -> None:
    """Make the arrays of one content one file, which memory then holds once: a search's texts and its features'.

    hashes: of `hash_files`.
    """
    first: dict[str, Path] = {}
    for name, found in hashes.items():
        path = folder / name
        if path.suffix == ".npy" and (same := first.setdefault(found, path)) != path:
            link = path.with_name(f"{path.name}.link")
            with suppress(OSError):  # a file system without such links keeps both
                link.hardlink_to(same)
                link.replace(path)


def damaged_files(folder: Path, hashes: Mapping[str, str]) -> dict[str, str]:
    """Return `missing` or `changed` for each file that is not as its hash says, by its path in the folder."""
    damaged = {}
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            damaged[name] = "missing"
        elif hash_file(path) != expected:
            damaged[name] = "changed"
    return damaged
