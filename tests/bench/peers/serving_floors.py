"""What the bare stages of a request cost: tower, gather, scorer, and for a Recommend the top 500 by vector.

Run by `serving.py` in a process of its own, on the server's core (and see `serving_stages.py`, of which it has the
stages): FOLDER (of `serving_world.py`) CANDIDATES. Each stage
has what it needs ready in memory, and no more than the request's own inputs change between calls:

    tower      ONNX Runtime, one thread, one user with a history of 256 (the inputs ready)
    gather     candidates found in a compiled hash of 1 million ids, and their rows of 60 taken from one array
    scorer     the compiled forest, candidates × 60 (`Bundle.score`), and of the wanted part
    retrieval  the nearest 500 of the item keys by faiss, inverted lists of halves (IVF, SQfp16), probed until recall of
               the exact 500 is at least .95

The CPU time of the process for a call is taken in rounds, the stages in turns, and the median round counts. The last
line is a JSON object: `us` by stage, and of the retrieval `probes`, `recall` and `exact_us` (all items, in floats).
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from features.ids import IdIndex
from features.rows import assemble
from features.schema import F32, Requests, one_request
from neural.histories import make_tokens, visible
from neural.runtime import HEAD_INPUTS, TRUNK_INPUTS, Runtime
from ranker.bundle import Bundle, load_bundle
from ranker.columns import row_matrix

ROUNDS, CALLS = 9, 40
#: distinct inputs of each stage
INPUTS = 64
NEAREST, RECALL, QUERIES = 500, 0.95, 200
LISTS, IN_A_LIST = 1024, 100  # the most lists, and the least items of one
PROBES = (2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 128, 192, 256)

Stage = Callable[[int], object]


def measured(stages: dict[str, Stage]) -> dict[str, float]:
    """Return the µs of CPU time of a call of each stage: the median of rounds that take turns."""
    took: dict[str, list[float]] = {name: [] for name in stages}
    for stage in stages.values():
        stage(0)
    for turn in range(ROUNDS):
        for name, stage in stages.items():
            begun = time.process_time()
            for k in range(CALLS):
                stage(turn * CALLS + k)
            took[name].append((time.process_time() - begun) / CALLS * 1e6)
    return {name: float(np.median(each)) for name, each in took.items()}


def asking(bundle: Bundle, ids: Any) -> list[Requests]:
    """Return one request each, without candidates, of users who ask."""
    users = np.searchsorted(bundle.state.catalog.user_ids, ids)
    return [one_request(int(user), bundle.state.end, 0, np.empty(0, np.int32)) for user in users]


def tower(runtime: Runtime, bundle: Bundle, requests: list[Requests]) -> Stage:
    """Return the user tower's run alone."""
    prepared = []
    for request in requests[:INPUTS]:
        start, stop = visible(bundle.state.histories, request.user, request.as_of, runtime.lag, runtime.spec.length)
        tokens = make_tokens(bundle.state.histories, request.user, start, stop, runtime.spec)
        inputs = (
            *(runtime.vectors.items[tokens.item], tokens.codes, tokens.signals, runtime.expected.surprise(tokens)),
            *(runtime.vectors.users[runtime.vectors.user_tokens(request.user)], tokens.length),
        )
        prepared.append((dict(zip(TRUNK_INPUTS, inputs, strict=True)), runtime.spec.request_codes(request)))

    def run(k: int) -> object:
        inputs, context = prepared[k % INPUTS]
        state = runtime.trunk.run(None, inputs)[0]
        return runtime.heads.user.run(None, dict(zip(HEAD_INPUTS, (state, context), strict=True)))

    return run


def gather(bundle: Bundle, candidates: int, rng: np.random.Generator) -> Stage:
    """Return the search of the candidates' places and the copy of their rows."""
    ids = bundle.state.catalog.item_ids
    index, table = IdIndex.of(ids), rng.random((len(ids), len(bundle.columns)), np.float32)
    asked = [ids[rng.choice(len(ids), candidates, replace=False)] for _ in range(ROUNDS * CALLS)]
    return lambda k: table.take(index.find(asked[k % len(asked)]), axis=0)


def scorers(bundle: Bundle, candidates: int, requests: list[Requests], rng: np.random.Generator) -> dict[str, Stage]:
    """Return both parts' scores of a matrix of a request."""
    state, liked, wanted = bundle.state, [], []
    for request in requests[:INPUTS]:
        item = rng.choice(state.catalog.n_items, candidates, replace=False).astype(np.int32)
        known = assemble(state, bundle.spec, one_request(int(request.user[0]), state.end, 0, item))
        dot = {"two_tower": rng.normal(size=(candidates, 1)).astype(np.float32)}
        liked.append(row_matrix(known, bundle.plugins, dot, bundle.spec))
        wanted.append(np.hstack([liked[-1], rng.random((candidates, len(bundle.source_columns)), np.float32)]))
    return {
        "scorer": lambda k: bundle.score(liked[k % INPUTS]),
        "scorer_wanted": lambda k: bundle.score_wanted(wanted[k % INPUTS]),
    }


def retrieval(folder: Path, keys: F32, queries: F32) -> tuple[dict[str, Stage], dict[str, float]]:
    """Return the search by lists and the exact one, and how many lists are probed for which recall."""
    faiss.omp_set_num_threads(1)
    exact = faiss.IndexFlatIP(keys.shape[1])
    exact.add(keys)
    nearest = min(NEAREST, len(keys))
    truth = exact.search(queries[:QUERIES], nearest)[1]
    lists = _lists(folder / "lists.faiss", keys)
    for probes in PROBES:
        lists.nprobe = probes
        found = lists.search(queries[:QUERIES], nearest)[1]
        recall = float(np.mean([np.isin(a, b).mean() for a, b in zip(truth, found, strict=True)]))
        if recall >= RECALL:
            break

    def search(index: Any, k: int) -> object:
        at = k % len(queries)
        return index.search(queries[at : at + 1], nearest)

    return {"retrieval": partial(search, lists), "exact": partial(search, exact)}, {"probes": probes, "recall": recall}


def _lists(path: Path, keys: F32) -> Any:
    """Return the inverted lists, made once."""
    if not path.exists():
        lists = max(1, min(LISTS, len(keys) // IN_A_LIST))
        made = faiss.index_factory(keys.shape[1], f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
        made.train(keys[:: max(1, len(keys) // 100_000)])
        made.add(keys)
        faiss.write_index(made, str(path))
    return faiss.read_index(str(path))


def stages_of(folder: Path, candidates: int) -> tuple[dict[str, Stage], dict[str, float]]:
    """Return the stages by name, and how the retrieval was set."""
    rng, bundle = np.random.default_rng(0), load_bundle(folder / "bundle")
    requests = asking(bundle, rng.permutation(np.load(folder / "askers.npy"))[:QUERIES])
    plugin: Any = bundle.plugins["two_tower"]
    queries = np.concatenate([plugin.queries(request, bundle.state.histories) for request in requests])
    search, how = retrieval(folder, np.ascontiguousarray(plugin.item_keys), queries)
    stages = {"tower": tower(plugin.runtime, bundle, requests), "gather": gather(bundle, candidates, rng)}
    return {**stages, **scorers(bundle, candidates, requests, rng), **search}, how


def main() -> None:
    """Print one line of JSON."""
    stages, how = stages_of(Path(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps({"us": measured(stages), **how}))


if __name__ == "__main__":
    main()
