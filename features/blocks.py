"""The feature matrix of a log whose state does not fit into memory: `features.rows` over one block after another.

A block is the events of some users (or items), and the candidates of these: a key that names the user is whole in it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from features.counters.plans import scatter
from features.counters.spec import Counter
from features.kernels import njit
from features.plain import candidate_values
from features.rows import FeatureSpec, without_matched, write_matched
from features.schema import F32, GIB, I32, I64, NO_CONTEXT, NO_SOURCES_OF_EVENTS, Bool, Catalog, EventLog, Requests
from features.state.histories import Histories
from features.state.read import counter_values
from features.state.store import State

#: what `training_rows` needs at its peak for each event of a block, times the values of a list in its key
BYTES_PER_EVENT = 96
#: keys that are made at the same time
THREADS = 2


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
    log = replace(log, context=NO_CONTEXT, source_item=NO_SOURCES_OF_EVENTS)  # no counter reads them; blocks are copies
    bare = State.build(log.until(0), catalog, (), grades, Histories.build(log.until(0), 0)).with_first_seen(log)
    plain = without_matched(spec, list(enumerate(spec.columns))[len(counters) :])
    candidate_values(bare, plain, spec.zone, requests, out)
    write_matched(spec, catalog, requests, out)

    def fill(key: tuple[str, ...]) -> None:
        places = [k for k, c in enumerate(counters) if c.key == key]
        mine = tuple(counters[k] for k in places)
        for events, rows in _blocks(log, requests, key, mine, memory // THREADS):
            asked = requests if rows is None else requests.with_candidates(rows)
            part = State.build(events, catalog, mine, grades, bare.histories, asked)
            at = np.arange(len(out)) if rows is None else np.flatnonzero(rows)
            scatter(counter_values(part, asked), at, np.array(places), out)

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
    """Return (int32[n] rows, those of one block beside each other and in their order, int64[blocks + 1] starts).

        starts[b] ← how many rows the blocks before b have
        for each row: it goes to the next free place of its block

    One pass of a counting sort; the starts that move on stand one place behind those that are returned.
    """
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
