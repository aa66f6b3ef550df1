"""Lists of many users as Parquet, for notifications and e-mail: what `Recommend` answers, by the server's own path.

Nobody waits for them, so no deadline cuts them short. Users go through in chunks, each answered by several threads; the
file is in the order of the users, and there whole or not at all.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import PairliftError
from features.files import written
from features.machine import cores
from features.pairing.split import iso
from features.progress import progress_bar
from features.schema import I32, Ids, is_text
from features.state.store import State
from ranker.bundle import Bundle
from ranker.candidates.shortage import kind_of
from ranker.export.asked import caught_up, ids_of, request_like
from ranker.ids import IdTable
from ranker.lists.answers import without_deadlines
from ranker.pipeline import Pipeline
from ranker.request import BITS, QUERY, Answer, Request
from ranker.wire import DEFAULT_K

logger = logging.getLogger(__name__)

#: users of a row group: some seconds of work
CHUNK = 1024
#: of `--users`: who has an event before as_of
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Whose lists are wanted, and as of which request."""

    users: Path | None = None  # a file of ids; None: all with an event before `as_of`
    surface: str = ""  # empty: none
    k: int | None = None  # None: that of the surface, or 10
    as_of: int | None = None  # µs UTC; None: the end of what is known
    context: Mapping[str, str] = field(default_factory=dict)  # of [events.context], by name


class Written(NamedTuple):
    """What was written."""

    users: int  # who were asked for
    rows: int
    unknown: int  # of them, whom the bundle does not know: their lists are those of a new user
    empty: Mapping[str, int]  # why users have no list, and how many
    degraded: Mapping[str, int]  # what failed, and in how many lists


def write_lists(bundle: Bundle, out: Path, wanted: Wanted, log: Path | None = None) -> Written:
    """Write `user_id`, `rank` (from 1), `item_id`, `score` and `sources` of each list to the Parquet file `out`.

    Ids are as in the log (int64 or text), and those of the file as they stand there. The file's metadata have the keys
    `pairlift.bundle`, `.as_of`, `.surface`, `.k` and `.context`. log: the folder of `pairlift serve --log` whose events
    are known too. PairliftError for ids of another kind, a surface or context that the bundle does not know, a k that
    is too large.
    """
    state = bundle.state if log is None else caught_up(bundle, log)
    like, k = _like(state, wanted), _k(bundle, wanted)
    ids, known = _users(state, like, wanted.users)
    said = {"bundle": bundle.version, "as_of": iso(like.as_of), "surface": wanted.surface, "k": str(k)}
    said["context"] = json.dumps(dict(wanted.context))
    pipeline = Pipeline(replace(bundle, config=without_deadlines(bundle.config)), state=lambda: state)
    try:
        with written(out) as partial, pq.ParquetWriter(partial, _schema(state, said)) as writer:
            return _write(writer, pipeline, like, k, ids, known)
    finally:
        pipeline.close()


def _k(bundle: Bundle, wanted: Wanted) -> int:
    profile, most = bundle.config.surfaces.get(wanted.surface), bundle.config.serve.max_k
    k = wanted.k or (profile.k if profile is not None else None) or min(DEFAULT_K, most)
    if k > most:
        raise PairliftError(f"--k {k}: at most {most} ([serve] max_k of the bundle) was expected")
    return k


def _like(state: State, wanted: Wanted) -> Request:
    """Return the request of nobody that all users' are like."""
    requests = request_like(state, wanted.as_of, wanted.surface, wanted.context)
    texts = {known.name for known in state.catalog.contexts if known.kind == "categorical"}
    said = {name: value for name, value in wanted.context.items() if name in texts}
    return replace(Request.of(requests, 0, state), texts=said, query=said.get(QUERY, ""))


def _users(state: State, like: Request, file: Path | None) -> tuple[Sequence[Any], I32]:
    """Return the ids of u users, and int32[u] their indexes, -1 of unknown ones."""
    catalog = state.catalog
    if file is not None:
        ids = ids_of("--users", file, catalog.user_ids)
        return ids, IdTable(catalog.user_ids).find(ids, catalog.new_users)
    user = np.arange(len(state.histories.ends), dtype=np.int32)
    start, stop = state.histories.before(user, np.full(len(user), like.as_of))
    user = user[start < stop]
    return catalog.ids_of_users(user), user


def _schema(state: State, said: Mapping[str, str]) -> pa.Schema:
    def kind(ids: Ids) -> pa.DataType:
        return pa.string() if is_text(ids) else pa.int64()

    columns = {
        "user_id": kind(state.catalog.user_ids),
        "rank": pa.int32(),
        "item_id": kind(state.catalog.item_ids),
        "score": pa.float64(),
        "sources": pa.list_(pa.string()),
    }
    return pa.schema(columns, {f"pairlift.{key}": value for key, value in said.items()})


def _write(
    writer: pq.ParquetWriter, pipeline: Pipeline, like: Request, k: int, ids: Sequence[Any], user: I32
) -> Written:
    """Ask for the lists and write them. ids, user: of `_users`."""
    rows, empty, degraded = 0, Counter[str](), Counter[str]()
    threads = min(pipeline.bundle.config.serve.workers, cores())
    with (
        ThreadPoolExecutor(threads) as pool,
        progress_bar(total=len(ids), desc="lists", unit=" users", disable=not logger.isEnabledFor(logging.INFO)) as bar,
    ):
        for first in range(0, len(ids), CHUNK):
            some = user[first : first + CHUNK].tolist()
            answers = list(pool.map(lambda u: pipeline.recommend(replace(like, user=u), k), some))
            table = _table(answers, ids[first : first + CHUNK], like.state, writer.schema)
            writer.write_table(table)
            rows += len(table)
            empty.update(kind_of(answer.reason) for answer in answers if not len(answer.item))
            degraded.update(lane for answer in answers for lane in answer.degraded)
            bar.update(len(some))
    return Written(len(ids), rows, int((user < 0).sum()), empty, degraded)


def _table(answers: Sequence[Answer], ids: Sequence[Any], state: State, schema: pa.Schema) -> pa.Table:
    sizes = [len(answer.item) for answer in answers]
    item = np.concatenate([answer.item for answer in answers])
    columns = {
        "user_id": [ids[k] for k, n in enumerate(sizes) for _ in range(n)],
        "rank": [rank for n in sizes for rank in range(1, n + 1)],
        "item_id": state.catalog.ids_of_items(item),
        "score": np.concatenate([answer.score for answer in answers]),
        "sources": list(_sources(answers)),
    }
    return pa.table({name: pa.array(values, schema.field(name).type) for name, values in columns.items()}, schema)


def _sources(answers: Sequence[Answer]) -> Iterator[list[str]]:
    """Yield who proposed each item."""
    for answer in answers:
        bits = BITS[: len(answer.source_names)]
        for of in (answer.sources[:, None] & bits) != 0:
            yield [name for name, own in zip(answer.source_names, of.tolist(), strict=True) if own]
