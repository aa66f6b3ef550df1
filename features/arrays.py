"""Folders of arrays: each dataclass of arrays is written as `.npy` files and read back memory-mapped."""

import json
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def save_arrays(folder: Path, value: Any) -> None:
    """Write every array field of a dataclass to `<folder>/<field>.npy`, and the rest to `fields.json`.

    Not a field with a default whose array has no columns: a folder without it means the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rest = {}
    for field in fields(value):
        content = getattr(value, field.name)
        if isinstance(content, np.ndarray) and content.dtype != object:
            if content.shape[1:] == (0,) and not _needed(field):
                continue
            np.save(folder / f"{field.name}.npy", np.ascontiguousarray(content))
        else:
            rest[field.name] = content.tolist() if isinstance(content, np.ndarray) else content
    (folder / "fields.json").write_text(json.dumps(rest, ensure_ascii=False))


def load_arrays(folder: Path, kind: type[T]) -> T:
    """Read what `save_arrays` wrote; arrays are memory-mapped and read-only, lists come back as tuples.

    A field with a default may be missing: a version that had none of it wrote the folder.
    """
    rest = json.loads((folder / "fields.json").read_text())
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in rest.items()}
    for field in fields(kind):  # type: ignore[arg-type]
        path = folder / f"{field.name}.npy"
        if field.name not in given and (_needed(field) or path.exists()):
            given[field.name] = load_array(path)
    return kind(**given)


def _needed(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def load_array(path: Path) -> Any:
    """Map one `.npy` file, read-only."""
    try:
        # A plain view: np.memmap's own __getitem__ costs microseconds on a hot path.
        return np.asarray(np.load(path, mmap_mode="r"))
    except ValueError:  # a memory map of no bytes cannot be made
        return np.load(path)
