"""User and item vectors of a bundle's plugin as Parquet, for a vector store and whoever else computes with them.

They are what is served: the plugin's own vectors of users as of one time (towers run in ONNX Runtime), and those of the
items. user · item is the plugin's product for a request of that time and context, such as the towers' `dot`. Users go
through in chunks, so beside bundle and log the memory is the same for any number of them.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import PairliftError, did_you_mean
from features.files import written_folder
from features.pairing.split import iso
from features.plugin import VectorPlugin, lag_of
from features.progress import progress_bar
from features.schema import F32, I32, NO_CONTEXT, Ids, Requests
from features.state.store import State
from ranker.bundle import Bundle
from ranker.export.asked import caught_up, ids_of, request_like
from ranker.ids import IdTable

logger = logging.getLogger(__name__)

USERS, ITEMS = "users.parquet", "items.parquet"
#: users or items of a row group: a tower's batches, and few enough that it shows no bar of its own
CHUNK = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which vectors are wanted, and as of which request."""

    plugin: str | None = None  # name in the TOML; None: the first served one that has vectors
    as_of: int | None = None  # µs UTC; None: the end of what is known
    surface: str = ""  # empty: unknown
    context: Mapping[str, str] = field(default_factory=dict)  # of [events.context], by name
    sides: tuple[str, ...] = (USERS, ITEMS)
    ids: Path | None = None  # a file of users' ids; None: all users with an event before `as_of`


class Written(NamedTuple):
    """A file that was written."""

    path: Path
    rows: int
    without: int  # users or items that were asked for and have no vector: they are cold, and have no row


def write_vectors(bundle: Bundle, out: Path, wanted: Wanted, log: Path | None = None) -> list[Written]:
    """Write the vectors into the folder `out`, whole or not at all; return what was written.

    users.parquet: `user_id` as in the log (int64 or text) and `vector`, float32 of the plugin's width; items.parquet
    likewise with `item_id`. The files' metadata have the keys `pairlift.bundle`, `.plugin` and `.class`; that of users
    also `.as_of`, `.lag` and `.context`. Items' vectors are of the training, whenever they are written.

    A side that is not wanted stays as it lies there, where it is of the same bundle and plugin.

    log: the folder of `pairlift serve --log` whose events are known too. PairliftError for a place that holds anything
    else, or the other side of another bundle; a plugin without vectors, a surface or context that the bundle does not
    know, ids of another kind.
    """
    _check_out(out)
    name, plugin = _plugin(bundle, wanted.plugin)
    said = {"bundle": bundle.version, "plugin": name, "class": bundle.config.plugins[name].path}
    kept = [out / side for side in (USERS, ITEMS) if side not in wanted.sides and (out / side).exists()]
    for path in kept:
        _check_kept(path, said)
    found = []
    with written_folder(out) as partial:
        for path in kept:
            shutil.copyfile(path, partial / path.name)
        if USERS in wanted.sides:
            state = bundle.state if log is None else caught_up(bundle, log)
            found.append(Written(out / USERS, *_write_users(partial / USERS, state, plugin, wanted, said)))
        if ITEMS in wanted.sides:
            vectors, catalog = plugin.item_vectors, bundle.state.catalog
            side = _Side("item_id", _kind(catalog.item_ids), catalog.ids_of_items, lambda some: vectors[some])
            rows = _write(partial / ITEMS, side, np.arange(catalog.n_items, dtype=np.int32), said)
            found.append(Written(out / ITEMS, rows, catalog.n_items - rows))
    return found


def _write_users(
    path: Path, state: State, plugin: VectorPlugin, wanted: Wanted, said: Mapping[str, str]
) -> tuple[int, int]:
    """Write the users' vectors; return (rows, users without). said: of the plugin, for the metadata."""
    like = request_like(state, wanted.as_of, wanted.surface, wanted.context)
    said = {
        **said,
        "as_of": iso(int(like.as_of[0])),
        "lag": lag_of(plugin).text or "none",
        "context": json.dumps({"surface": wanted.surface, "attributes": dict(wanted.context)}),
    }
    user, unknown = _users(state, like, wanted.ids)

    def vectors(some: I32) -> F32:
        return plugin.user_vectors(_for_users(like, some), state.histories)

    catalog = state.catalog
    rows = _write(path, _Side("user_id", _kind(catalog.user_ids), catalog.ids_of_users, vectors), user, said)
    return rows, len(user) - rows + unknown


def _check_out(out: Path) -> None:
    """Refuse, before any work, a place that holds anything else than vectors."""
    others = sorted({path.name for path in out.iterdir()} - {USERS, ITEMS}) if out.is_dir() else []
    if others or (out.exists() and not out.is_dir()):
        what = f"it holds {others[0]}" if others else "it is a file"
        raise PairliftError(f"--out {out}: a new folder, or one of earlier vectors, was expected, but {what}")


def _check_kept(path: Path, said: Mapping[str, str]) -> None:
    """Refuse to leave vectors of another bundle or plugin beside new ones: products of the two mean nothing."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except pa.ArrowInvalid:  # another file, or a part of one
        metadata = {}
    found = {key: metadata.get(f"pairlift.{key}".encode(), b"unknown").decode() for key in said}
    differ = [f"{key} is {found[key]}, here it is {said[key]}" for key in said if found[key] != said[key]]
    if differ:
        raise PairliftError(
            f"--out {path.parent}: its {path.name} would stay, but {'; '.join(differ)}: write both sides, or name "
            "another folder"
        )


def _plugin(bundle: Bundle, name: str | None) -> tuple[str, VectorPlugin]:
    """Return the plugin of a name, or the first that has vectors."""
    having = {name: plugin for name, plugin in bundle.plugins.items() if isinstance(plugin, VectorPlugin)}
    wanted = next(iter(having), None) if name is None else name
    if wanted is None or wanted not in having:
        which = "no served plugin" if name is None else f"--plugin {name}: no served plugin of that name"
        raise PairliftError(
            f"{which} has vectors of users and items; the bundle has: {', '.join(having) or 'none that does'}"
            f"{did_you_mean(name, having) if name and having else ''}"
        )
    return wanted, having[wanted]


def _for_users(like: Requests, user: I32) -> Requests:
    """Return the same request of each of int32[b] users."""
    b = len(user)
    return Requests(
        user=user,
        as_of=np.repeat(like.as_of, b),
        surface=np.repeat(like.surface, b),
        offsets=np.zeros(b + 1, np.int64),
        item=like.item,
        context=np.repeat(like.context, b, axis=0) if len(like.context) else NO_CONTEXT,
    )


def _users(state: State, like: Requests, ids: Path | None) -> tuple[I32, int]:
    """Return int32[u] users, those of a file in its order, and how many ids of it are not known."""
    catalog = state.catalog
    if ids is not None:
        found = IdTable(catalog.user_ids).find(ids_of("--ids", ids, catalog.user_ids), catalog.new_users)
        return found[found >= 0], int((found < 0).sum())
    user = np.arange(len(state.histories.ends), dtype=np.int32)
    start, stop = state.histories.before(user, np.repeat(like.as_of, len(user)))
    return user[start < stop], 0


class _Side(NamedTuple):
    """How users, or items, are written."""

    column: str
    kind: pa.DataType  # of the ids, be there any or none
    ids: Callable[[I32], list[Any]]  # of int32[b] dense indexes
    vectors: Callable[[I32], F32]  # float32[b, d] of them, NaN for one without


def _kind(ids: Ids) -> pa.DataType:
    return pa.string() if ids.dtype == object else pa.int64()


def _write(path: Path, side: _Side, index: I32, said: Mapping[str, str]) -> int:
    """Write a row for each of int32[n] indexes that has a vector; return how many these are."""
    width = side.vectors(index[:0]).shape[1]
    metadata = {f"pairlift.{key}": value for key, value in said.items()}
    schema = pa.schema([(side.column, side.kind), ("vector", pa.list_(pa.float32(), width))], metadata)
    rows, quiet = 0, not logger.isEnabledFor(logging.INFO)
    with (
        pq.ParquetWriter(path, schema) as writer,
        progress_bar(total=len(index), desc=path.stem, unit=" vectors", unit_scale=True, disable=quiet) as bar,
    ):
        for first in range(0, len(index), CHUNK):
            part = index[first : first + CHUNK]
            vectors = side.vectors(part)
            known = ~np.isnan(vectors).any(axis=1)
            flat = pa.array(np.ascontiguousarray(vectors[known]).ravel())
            columns = [pa.array(side.ids(part[known]), side.kind), pa.FixedSizeListArray.from_arrays(flat, width)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            rows += int(known.sum())
            bar.update(len(part))
    return rows
