"""What numeric columns of candidates add to a Rank: the server's whole path, from the request's bytes to the answer's.

Two bundles of one synthetic log, both boosters of one size: one has the columns, and is asked with them; the other has
none, and is asked without. Before anything is timed, the scores of both answers are checked against the offline ones.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import lightgbm as lgb
import numpy as np
from pairlift.v1 import ranking_pb2 as pb
from world import Parts, bundle_of, make_world, train_parts, with_config

from features.rows import make_spec
from features.schema import F32, F64, NO_GIVEN, Attribute
from ranker.asking.messages import column_message, id_message, ids_message
from ranker.bundle import Bundle
from ranker.columns import columns_of, full_matrix
from ranker.ids import IdTable
from ranker.request import Request
from ranker.serving.served import Served
from ranker.settings import ServeSettings
from ranker.wire import Wire

USERS, ITEMS = 500, 2_000
TREES, LEAVES = 300, 31


@dataclass(frozen=True, slots=True)
class Asked:
    """A bundle that answers, and the bytes of its requests."""

    served: Served
    requests: list[bytes]

    def answer(self, k: int) -> bytes:
        """Answer the k-th request, by the path of a call: from bytes to bytes."""
        reply = self.served.rank(pb.RankRequest.FromString(self.requests[k % len(self.requests)]))
        answered: bytes = reply.SerializeToString()
        return answered

    def parse(self, k: int) -> F32:
        """Read the columns of the k-th request alone."""
        message = pb.RankRequest.FromString(self.requests[k % len(self.requests)])
        return self.served.wire.given(message.columns, len(message.items.integers.values))


def candidate_cost(columns: int = 10, items: int = 500, requests: int = 300, rounds: int = 5) -> dict[str, float]:
    """Return µs: `candidate_features_us`, what so many columns add to the p50 of a Rank of so many items, with the p50
    of both, and of reading the columns alone. Medians of the rounds; in a round both are asked in turns. Beside it
    `cpu_us`, what they add to the processor's time, which a busy machine changes less.
    """
    parts = train_parts(make_world(n_users=USERS, n_items=ITEMS))._replace(plugins={})
    given = np.random.default_rng(1).normal(size=(items, columns)).astype(np.float32)
    shown = np.random.default_rng(0).choice(ITEMS, items, replace=False).astype(np.int32)
    plain, priced = _asked(parts, shown, NO_GIVEN), _asked(parts, shown, given)
    calls = {"without": plain.answer, "with": priced.answer, "reading": priced.parse}
    found = [_p50(calls, requests) for _ in range(rounds + 1)][1:]  # the first one warms up
    for asked in (plain, priced):
        asked.served.close()
    wall, cpu = np.median(found, axis=0)  # [calls] each
    added = float(np.median([wall[1] - wall[0] for wall, _ in found]))
    p50 = dict(zip(calls, wall.tolist(), strict=True))
    return {
        "candidate_features_us": added,
        "cpu_us": float(cpu[1] - cpu[0]),
        **{f"{name}_us": took for name, took in p50.items()},
    }


def _p50(calls: dict[str, Callable[[int], object]], n: int) -> F64:
    """Return float64[2, calls]: median µs of n calls each, by the clock and of the processor."""
    took = np.empty((2, len(calls), n))
    for k in range(n):
        for place, call in enumerate(calls.values()):
            begun = time.perf_counter(), time.process_time()
            call(k)
            took[:, place, k] = time.perf_counter() - begun[0], time.process_time() - begun[1]
    return np.asarray(np.median(took, axis=2) * 1e6)


def _asked(parts: Parts, items: Any, given: F32) -> Asked:
    """Return a bundle that answers and has the columns of float32[items, c], and requests of 50 users."""
    bundle = _bundle(parts, given.shape[1])
    state, catalog = bundle.state, bundle.state.catalog
    ids = [IdTable(known) for known in (catalog.user_ids, catalog.item_ids)]
    wire = Wire(catalog, *ids, limits=bundle.config.serve, max_id_bytes=256)
    served = Served(bundle, wire, past=True)
    said = [column_message(known.name, given[:, k]) for k, known in enumerate(catalog.candidates)]
    common = {"items": ids_message(catalog.item_ids[items]), "columns": said}
    messages = [pb.RankRequest(user=id_message(int(user)), **common) for user in catalog.user_ids[:50]]
    asked = Asked(served, [message.SerializeToString() for message in messages])
    matrix = full_matrix(state, bundle.spec, bundle.plugins, Request(3, state.end, state=state).requests(items, given))
    reply = pb.RankResponse.FromString(asked.answer(3))
    if reply.degraded or list(reply.scores) != bundle.score(matrix)[list(reply.indexes)].tolist():
        raise SystemExit("the server's scores are not the offline ones")
    return asked


def _bundle(parts: Parts, columns: int) -> Bundle:
    """Return a bundle with so many numbers of candidates, which tell of the grade as far as chance lets them."""
    known = tuple(Attribute(f"shown{k}", "numeric") for k in range(columns))
    state = replace(parts.state, catalog=replace(parts.state.catalog, candidates=known))
    spec, groups = make_spec(state.counters, state.catalog, "UTC"), parts.groups.of("booster")
    requests = groups.requests
    if columns:
        noise = np.random.default_rng(2).normal(size=(len(groups.grade), columns))
        requests = replace(requests, given=(groups.grade[:, None] + 3 * noise).astype(np.float32))
    matrix = full_matrix(state, spec, parts.plugins, requests)
    data = lgb.Dataset(matrix, groups.grade, feature_name=columns_of(spec, parts.plugins))
    params = {"objective": "regression", "num_leaves": LEAVES, "verbosity": -1, "num_threads": 1}
    booster = lgb.Booster(model_str=lgb.train(params, data, TREES).model_to_string())
    limits = ServeSettings(plugin_deadline="20s")
    return with_config(bundle_of(parts._replace(state=state, spec=spec, booster=booster)), serve=limits)
