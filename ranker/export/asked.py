"""Who is asked for, and as of which request: the options that exports of users share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from features.errors import PairliftError, did_you_mean
from features.schema import Ids, Requests, is_text
from features.state.store import State
from ranker.bundle import Bundle
from ranker.ids import IdTable
from ranker.recording.follower import Follower
from ranker.recording.snapshots import check_log
from ranker.wire import context_row, contexts_of


def caught_up(bundle: Bundle, log: Path) -> State:
    """Return the state of the bundle with all events of a recorded log, as a server has it that begins now."""
    check_log(log)
    catalog = bundle.state.catalog
    users, items = IdTable(catalog.user_ids), IdTable(catalog.item_ids)
    follower = Follower(bundle, log, users=users.find, items=items.find)
    try:
        follower.catch_up()
        return follower.state
    finally:
        follower.close()


def request_like(state: State, as_of: int | None, surface: str, context: Mapping[str, str]) -> Requests:
    """Return one request of nobody, without candidates; PairliftError for a surface or context that is not known.

    as_of: µs UTC, None for the end of what is known. surface: by name, empty for none. context: of [events.context].
    """
    catalog = state.catalog
    surfaces = catalog.surface_codes()
    if surface and surface not in surfaces:
        hint = did_you_mean(surface, surfaces) if surfaces else ""
        raise PairliftError(f"--surface {surface}: the bundle knows no such surface{hint}")
    names = [known.name for known in catalog.contexts]
    for name in context:
        if name not in names:
            hint = did_you_mean(name, names) if names else ""
            raise PairliftError(f"--context {name}: the bundle has no such name in [events.context]{hint}")
    return Requests(
        user=np.full(1, -1, np.int32),
        as_of=np.full(1, state.end if as_of is None else as_of, np.int64),
        surface=np.full(1, surfaces.get(surface, -1), np.int16),
        offsets=np.zeros(2, np.int64),
        item=np.empty(0, np.int32),
        context=context_row(contexts_of(catalog), context),
    )


def ids_of(option: str, path: Path, known: Ids) -> list[Any]:
    """Return the different ids of a file's only column, or of its column user_id, in their order.

    option: that names the file, for the error. known: users' ids, which say of what kind they are.
    """
    place = f"{option} {path}"
    try:
        with duckdb.connect() as con:
            table = con.sql("FROM query_table(?)", params=[str(path)]).to_arrow_table()
    except duckdb.Error as error:
        raise PairliftError(f"{place}: {str(error).splitlines()[0]}; Parquet, CSV or JSON was expected") from error
    names = table.column_names
    if len(names) > 1 and "user_id" not in names:
        raise PairliftError(f"{place}: one column, or one named user_id, was expected, found {', '.join(names)}")
    column = table["user_id" if "user_id" in names else names[0]].drop_null()
    kind, is_kind = ("text", pa.types.is_string) if is_text(known) else ("integer", pa.types.is_integer)
    if not is_kind(column.type):
        raise PairliftError(f"{place}: {kind} ids were expected, as the bundle has them; found {column.type}")
    # A CSV without a header has its first id in the place of the name.
    first = [name for name in names if len(names) == 1 and is_text(known) and np.isin(name, known)]
    return list(dict.fromkeys([*first, *column.to_pylist()]))
