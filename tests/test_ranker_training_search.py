"""From a log with queries to a bundle that searches, filters and limits: one path in training and in serving."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served import serving
from world import World, make_world, with_config, write_world

from features.errors import PairliftError
from ranker.bundle import Bundle, load_bundle, verify_bundle
from ranker.client import Client, ServerError
from ranker.config import load_config
from ranker.pipeline import Pipeline
from ranker.request import MAX_QUERY, Request
from ranker.settings import FilterSettings
from ranker.train import train
from ranker.training.prepared import Prepared, prepare
from ranker.training.wanted import asked_in_slices

#: users look for what is of their own taste, which the titles tell; adults are told by the log too
TABLES = """
request_id = "request"
[events.context]
query = "'taste' || user_id % 4"
age = "10 + user_id % 20"
[items]
source = "items.parquet"
columns = {rated = "rated", maker = "maker"}
text = {title = "title"}
[sources]
popular = {quota = 20}
cooccurrence = false
[sources.search]
class = "ranker.sources.search:Search"
quota = 15
[filters.rated]
keep = "rated IS NULL OR rated <= context.age"
[lists]
at_most = {maker = 2}
"""
WORLD = {"n_items": 80, "request_ids": True}


def written(folder: Path) -> Path:
    toml = write_world(folder, request=TABLES, **WORLD)
    toml.write_text(toml.read_text().replace('plugins = ["als"]', "plugins = []"))
    n, taste = 80, make_world(7, n_users=60, requests_per_user=20, **WORLD).item_taste
    titles = [f"Taste{taste[k]}: no. {k}" if k % 9 else None for k in range(n)]
    items = pa.table({
        "item_id": np.arange(n), "title": titles, "rated": [None if k % 3 else 6 + k % 18 for k in range(n)],
        "maker": [f"m{k % 30}" for k in range(n)],
    })  # fmt: skip
    pq.write_table(items, folder / "items.parquet")
    return toml


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(7, n_users=60, requests_per_user=20, **WORLD)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(load_config(written(tmp_path_factory.mktemp("search"))))


@pytest.fixture(scope="module")
def bundle(prepared: Prepared) -> Bundle:
    out = prepared.config.folder / "bundle"
    train(prepared.config, out)
    verify_bundle(out)
    return load_bundle(out)


@pytest.fixture(scope="module")
def pipeline(bundle: Bundle) -> Iterator[Pipeline]:
    pipeline = Pipeline(bundle)
    yield pipeline
    pipeline.close()


def test_the_order_is_learned_from_the_queries_of_the_log(world: World, bundle: Bundle, pipeline: Pipeline) -> None:
    assert not bundle.fitted["search"]["impact"].flags.writeable  # mapped
    assert pipeline.source_names == ("popular", "search")
    assert bundle.wanted is not None
    gains = dict(zip(bundle.wanted_columns, bundle.wanted.feature_importance("gain"), strict=True))
    assert gains["source__search"] > 0
    state = bundle.state
    own, plain = 0, 0
    for user in range(-1, 12):
        taste = user % 4
        asked = Request(user, state.end, state=state, query=f"TASTE{taste}")
        # The first three: a list of ten has most of what the filters leave of 80 items.
        found, without = pipeline.recommend(asked, 3), pipeline.recommend(replace(asked, query=""), 3)
        assert not found.degraded
        own += (world.item_taste[found.item] == taste).sum()
        plain += (world.item_taste[without.item] == taste).sum()
        assert not (without.sources & 2).any()
    assert own > 2 * plain


def test_a_request_of_the_log_has_its_query(prepared: Prepared) -> None:
    who = asked_in_slices(prepared)[0]
    for k in range(0, len(who), 50):
        request = Request.of(who.requests, k, prepared.state)
        assert request.query == f"taste{request.user % 4}"


def test_lists_keep_their_limits(prepared: Prepared, pipeline: Pipeline) -> None:
    who, catalog = asked_in_slices(prepared)[1], prepared.catalog
    rated, maker = catalog.item_attribute("rated").numbers, catalog.item_attribute("maker").codes
    taken = 0
    for k in range(0, len(who), 20):
        request = replace(Request.of(who.requests, k, pipeline.state), explain=True)
        answer = pipeline.recommend(request, 30)
        age = 10 + request.user % 20
        assert not (rated[answer.item] > age).any()
        assert np.bincount(maker[answer.item]).max() <= 2
        assert answer.detail is not None
        counts = dict(answer.detail.removed)
        assert list(counts) == ["unknown", "excluded", "seen", "rated", "at_most.maker"]
        taken += counts["rated"]
    assert taken > 0


def test_queries_of_any_kind_are_answered(pipeline: Pipeline) -> None:
    state = pipeline.state
    for query in ("", " ", "the", "東京", "\ud800", '" OR 1=1', "taste1 " * 500, "taste1* AND (", "👍"):
        answer = pipeline.recommend(Request(5, state.end, state=state, query=query), 5)
        assert not answer.degraded
        assert len(answer.item) == 5


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> Iterator[Client]:
    with serving(bundle, clock="snapshot") as server, Client(server.address, timeout=20) as client:
        yield client


@pytest.mark.parametrize(
    "query",
    ["", "taste1", "東京 ذوق вкус स्वाद", "👍🏽\u200d\u0000\u202e", "'; DROP TABLE items", "x" * MAX_QUERY, "ß" * 2048],
)
def test_over_the_wire_any_query_is_answered(client: Client, query: str) -> None:
    for asked in ({"query": query}, {"attributes": {"query": query}}):
        reply = client.recommend(5, 5, **asked)  # type: ignore[arg-type]
        assert len(reply.items) == 5
        assert not reply.degraded
    assert any("search" in item.sources for item in client.recommend(5, 5, query=query).items) == (query == "taste1")


def test_over_the_wire_a_query_of_a_megabyte_is_refused_in_a_sentence(client: Client) -> None:
    for size in (MAX_QUERY + 1, 1_000_000):
        for asked in ({"query": "x" * size}, {"attributes": {"query": "x" * size}}):
            with pytest.raises(ServerError, match=rf"at most 4096 bytes in UTF-8 were expected, found {size}") as told:
                client.recommend(5, 5, **asked)  # type: ignore[arg-type]
            assert told.value.code == "INVALID_ARGUMENT"
    assert len(client.recommend(5, 5).items) == 5  # it goes on


def test_over_the_wire_an_unknown_source_item_is_said_and_the_list_is_that_without_it(client: Client) -> None:
    plain, known = client.recommend(5, 5), client.recommend(5, 5, source_item=7)
    assert not plain.unknown_source_item
    assert not known.unknown_source_item
    for item in (999_999, -(2**63)):
        reply = client.recommend(5, 5, source_item=item)
        assert reply.unknown_source_item
        assert reply.items == plain.items
        assert client.rank(5, [1, 2], source_item=item).unknown_source_item
    with pytest.raises(ServerError, match=r"context.source_item: integer ids were expected"):
        client.recommend(5, 5, source_item="seven")


def test_over_the_wire_filters_that_remove_everything_say_so(bundle: Bundle) -> None:
    nothing = with_config(bundle, filters={"region": FilterSettings(keep="context.age > 1000")})
    with serving(nothing, clock="snapshot") as server, Client(server.address, timeout=20) as client:
        reply = client.recommend(5, 5, explain=True, attributes={"age": "12"})
        assert (reply.items, reply.degraded) == ((), ())
        counts = dict(reply.removed)
        assert counts["region"] > 0
        assert reply.reason == f"all that was proposed was removed: seen {counts['seen']}, region {counts['region']}"
        assert len(client.recommend(5, 5, attributes={"age": "1001"}).items) == 5


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("rated <= context.age", "rated <= context.query", r"\[filters.rated\] keep = .*: text on both sides of <="),
        ("{maker = 2}", "{rated = 2}", r"\[lists\] at_most: 'rated' is not a text or a list"),
    ],
)
def test_what_does_not_fit_is_told_before_any_fit(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(PairliftError, match=says):
        prepare(load_config(path))
