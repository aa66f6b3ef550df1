"""A request's way through the server: Rank of 500 candidates and Recommend, stage by stage.

Run from the repository: python tests/bench/serve.py [--trees 300] [--leaves 63] [--requests 300]
The world is synthetic (1,000 users, 2,000 items); before anything is timed, the answer over the wire is
checked against the offline matrix and score.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace

import click
import lightgbm as lgb
import numpy as np
from pairlift.v1 import ranking_pb2 as pb
from world import bundle_of, make_world, proposed_data, train_parts, with_config

from features.rows import assemble
from ranker.asking.messages import id_message, ids_message
from ranker.bundle import Bundle
from ranker.candidates.configured import configured_sources
from ranker.client import Client
from ranker.columns import columns_of, full_matrix
from ranker.lanes import Lane
from ranker.pipeline import Pipeline
from ranker.request import Candidates, Request, Trace
from ranker.server import Server
from ranker.settings import ServeSettings, SourcesSettings

CANDIDATES = 500
#: whose candidates the wanted part is grown on
LISTS = 100


def grown(trees: int, leaves: int) -> Bundle:
    """Return a bundle of the synthetic world with two boosters of that size, one for each part."""
    world = make_world(n_users=1000, n_items=2000)
    parts = train_parts(world)
    groups = parts.groups.of("booster")
    matrix = full_matrix(parts.state, parts.spec, parts.plugins, groups.requests)
    data = lgb.Dataset(matrix, groups.grade, feature_name=columns_of(parts.spec, parts.plugins))
    params = {
        "objective": "regression",
        "num_leaves": leaves,
        "min_data_in_leaf": 5,
        "verbosity": -1,
        "num_threads": 1,
    }
    limits = ServeSettings(plugin_deadline="20s")
    bundle = with_config(bundle_of(parts), serve=limits, sources=SourcesSettings())
    sources = configured_sources(bundle.config, parts.state, parts.cooccurrence, parts.plugins.values())
    some = groups.requests.slice(0, LISTS)
    proposed = proposed_data(world, bundle.config, sources, parts.state, parts.spec, parts.plugins, some)
    booster, wanted = (
        lgb.Booster(model_str=lgb.train(params, learned, trees).model_to_string()) for learned in (data, proposed)
    )
    return replace(bundle, booster=booster, wanted=wanted)


def timed(rows: dict[str, Callable[[int], object]], n: int) -> dict[str, tuple[float, float]]:
    """Return p50 and p99 in ms of n calls of each row, in turns, so that a busy moment hits all rows alike."""
    took: dict[str, list[float]] = {name: [] for name in rows}
    for k in range(n):
        for name, call in rows.items():
            begun = time.perf_counter()
            call(k)
            took[name].append((time.perf_counter() - begun) * 1000)
    return {name: (float(np.percentile(t, 50)), float(np.percentile(t, 99))) for name, t in took.items()}


def check(bundle: Bundle, client: Client, items: np.ndarray) -> None:
    """Compare an answer over the wire with the offline matrix and score; they are equal to the bit."""
    requests = Request(7, bundle.state.end, state=bundle.state).requests(items)
    offline = bundle.score(full_matrix(bundle.state, bundle.spec, bundle.plugins, requests))
    catalog = bundle.state.catalog
    reply = client.rank(int(catalog.user_ids[7]), catalog.item_ids[items].tolist())
    if reply.degraded or [item.score for item in reply.items] != [offline[item.index] for item in reply.items]:
        raise SystemExit("the server's scores are not the offline ones")


@click.command()
@click.option("--trees", default=300, show_default=True)
@click.option("--leaves", default=63, show_default=True)
@click.option("--requests", default=300, show_default=True)
def main(trees: int, leaves: int, requests: int) -> None:
    """Print a table of p50 and p99 in ms, and one line of JSON."""
    bundle = grown(trees, leaves)
    server = Server(bundle, clock="snapshot")
    server.start()
    pipeline, state, plugin = server.pipeline, bundle.state, bundle.plugins["als"]
    items = np.random.default_rng(0).choice(state.catalog.n_items, CANDIDATES, replace=False).astype(np.int32)
    asked = [Request(k % state.catalog.n_users, state.end, state=state) for k in range(requests)]
    matrix = full_matrix(state, bundle.spec, bundle.plugins, asked[0].requests(items))
    wanted = ids_message(state.catalog.item_ids[items])
    users = [id_message(int(u)) for u in state.catalog.user_ids]
    empty = replace(bundle, plugins={})
    lane, shown = Lane("bench", 2), Candidates(items, np.zeros((len(items), 1), np.int32))
    bare = Pipeline(replace(empty, columns=bundle.spec.columns))
    with Client(server.address, timeout=20) as client:
        check(bundle, client, items)
        rows = {
            "an empty Rank over gRPC": lambda k: client._stub.Rank(pb.RankRequest(user=users[k])),
            "features.rows.assemble": lambda k: assemble(state, bundle.spec, asked[k].requests(items)),
            "ALS.values": lambda k: plugin.values(asked[k].requests(items), state.histories),
            "Pipeline._features without plugins": lambda k: bare._features(asked[k], shown, Trace()),
            "an empty call through a Lane": lambda k: lane.start(int).result(1),
            "Bundle.score": lambda k: bundle.score(matrix),
            "Pipeline.rank": lambda k: pipeline.rank(asked[k], items),
            "Rank over gRPC": lambda k: client._stub.Rank(pb.RankRequest(user=users[k], items=wanted)),
            "Pipeline.recommend, k = 10": lambda k: pipeline.recommend(asked[k], 10),
            "Recommend over gRPC, k = 10": lambda k: client._stub.Recommend(pb.RecommendRequest(user=users[k], k=10)),
        }
        figures = timed(rows, requests)
    server.stop(0)
    bare.close()
    click.echo(f"{CANDIDATES} candidates, {len(bundle.columns)} columns, {trees} trees × {leaves} leaves; ms")
    for name, (p50, p99) in figures.items():
        click.echo(f"{name:38} {p50:8.2f} {p99:8.2f}")
    click.echo(json.dumps({"bench": "serve", "trees": trees, "leaves": leaves, "ms": figures}))


if __name__ == "__main__":
    main()
