"""Hashes of files and of settings: what a bundle's manifest and the resumed stages compare."""

import hashlib
import json
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20


def hash_file(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def hash_value(value: Any) -> str:
    """Return the sha256 in hex of anything JSON can hold (other things by their `str`)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
