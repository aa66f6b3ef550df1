"""The feature matrix of requests: counters, attributes and context, strictly before each `as_of`.

`assemble` is the one path: the server calls it with one request, training with all groups of the log. The numbers are
the same to the last bit for a time within the log that the state was built of, and equal up to rounding (6.6e-7 of a
value) for one request after its end, which reads the tables of `features.counters.latest`.
`training_rows` is for a log whose state does not fit: the same path, over one block of keys after another.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from features.counters.plans import place
from features.counters.spec import Counter
from features.plain import candidate_values, column_names, request_values
from features.schema import F32, I32, I64, Bool, Catalog, EventLog, Requests
from features.state.histories import Histories
from features.state.read import counter_values
from features.state.store import State

#: what `training_rows` needs at its peak for each event of a block, times the values of a list in its key
BYTES_PER_EVENT = 96
GIB = 2**30
#: keys that are made at the same time
THREADS = 2


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """The columns that `assemble` gives."""

    columns: tuple[str, ...]  # names in their order: the counters, then plain ones
    categorical: tuple[str, ...]  # which of them are categorical codes
    zone: str  # of hours and weekdays


def make_spec(
    counters: tuple[Counter, ...], catalog: Catalog, zone: str, wanted: list[str] | None = None
) -> FeatureSpec:
    """Return the columns in the order of `assemble`. wanted: the plain ones (`features.plain`), else a default."""
    plain, categorical = column_names(catalog, wanted)
    return FeatureSpec((*(c.column for c in counters), *plain), tuple(categorical), zone)


def assemble(state: State, spec: FeatureSpec, requests: Requests) -> F32:
    """Return float32[n, len(spec.columns)]: a row for each candidate, NaN where nothing is known."""
    out = np.empty((len(requests.item), len(spec.columns)), np.float32)
    plain, row = list(enumerate(spec.columns))[len(state.counters) :], None
    if len(requests) == 1:
        # What all candidates of a request share is made once, and stands in each row from the first pass on.
        row = np.empty(len(spec.columns), np.float32)
        plain = request_values(state.catalog, plain, spec.zone, requests, row)
    counter_values(state, requests, out, row)
    candidate_values(state, plain, spec.zone, requests, out)
    return out


def training_rows(
    log: EventLog,
    catalog: Catalog,
    counters: tuple[Counter, ...],
    grades: tuple[str, ...],
    spec: FeatureSpec,
    requests: Requests,
    *,
    memory: int = 2 * GIB,
) -> F32:
    """Return what `assemble` gives with the state of the whole log, within about `memory` bytes beside log and matrix.

    Counters of one key are made at a time; where its events do not fit, those of a share of its users (or items).
    """
    out = np.empty((len(requests.item), len(spec.columns)), np.float32)
    bare = State.build(log.until(0), catalog, (), grades, Histories.build(log.until(0), 0)).with_first_seen(log)
    candidate_values(bare, list(enumerate(spec.columns))[len(counters) :], spec.zone, requests, out)

    def fill(key: tuple[str, ...]) -> None:
        places = [k for k, c in enumerate(counters) if c.key == key]
        mine = tuple(counters[k] for k in places)
        for events, rows in _blocks(log, requests, key, mine, memory // THREADS):
            asked = requests if rows is None else _candidates(requests, rows)
            part = State.build(events, catalog, mine, grades, bare.histories, asked)
            at = np.arange(len(out)) if rows is None else np.flatnonzero(rows)
            place(counter_values(part, asked), at, np.array(places), out)

    # The kernels release the GIL; each thread writes columns of its own.
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fill, dict.fromkeys(c.key for c in counters)))
    return out


def _blocks(
    log: EventLog, requests: Requests, key: tuple[str, ...], counters: tuple[Counter, ...], memory: int
) -> Iterator[tuple[EventLog, Bool | None]]:
    """Yield (events, candidates bool[n]) that together hold every key once; None: all candidates."""
    blocks = -(-len(log) * BYTES_PER_EVENT // memory)
    side = next((part for part in ("user", "item") if part in key), None)
    # A rank compares all items, so a block needs all of them.
    if blocks <= 1 or side is None or any(c.kind == "rank" for c in counters):
        yield log, None
        return
    of_event = log.user if side == "user" else log.item
    of_row = requests.user[requests.row_request()] if side == "user" else requests.item
    order, starts = _by_block(of_event, blocks)
    for block in range(blocks):
        yield log.select(order[starts[block] : starts[block + 1]]), of_row % blocks == block


@njit(cache=True, nogil=True)
def _by_block(of: I32, blocks: int) -> tuple[I32, I64]:
    """Return (int32[n] rows, those of one block beside each other and in their order, int64[blocks + 1] starts)."""
    starts = np.zeros(blocks + 2, np.int64)
    for k in range(len(of)):
        starts[of[k] % blocks + 2] += 1
    for b in range(blocks):
        starts[b + 1] += starts[b]
    order = np.empty(len(of), np.int32)
    for k in range(len(of)):
        order[starts[of[k] % blocks + 1]] = k
        starts[of[k] % blocks + 1] += 1
    return order, starts[: blocks + 1]


def _candidates(requests: Requests, keep: Bool) -> Requests:
    """Return the requests with those of their candidates that the mask bool[n] keeps."""
    kept: I64 = np.concatenate([[0], np.cumsum(keep)])
    return replace(requests, offsets=kept[requests.offsets], item=requests.item[keep])
