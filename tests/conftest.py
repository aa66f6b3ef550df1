"""The small served world that tests of the request path share, trained once, and servers of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import serving
from world import Parts, World, bundle_of, make_world, train_parts, with_config, write_world_bundle

from features.schema import SECOND
from ranker.bundle import Bundle
from ranker.client import Client
from ranker.server import Server


@pytest.fixture(scope="session")
def world() -> World:
    return make_world(surfaces=("feed", "search"))


@pytest.fixture(scope="session")
def parts(world: World) -> Parts:
    return train_parts(world)


@pytest.fixture(scope="session")
def bundle(parts: Parts) -> Bundle:
    return bundle_of(parts)


@pytest.fixture(scope="session")
def bundle_folder(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle on disk; tests read it alone."""
    folder = tmp_path_factory.mktemp("served") / "bundle"
    write_world_bundle(parts, folder)
    return folder


@pytest.fixture(scope="session")
def text_bundle() -> Bundle:
    """A bundle whose ids are text."""
    return bundle_of(train_parts(make_world(text_ids=True)))


@pytest.fixture(scope="session", autouse=True)
def memory_unmeasured() -> Iterator[None]:
    """Reports start no process for a plugin's memory, which takes seconds: see `test_ranker_uplift_memory`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ranker.uplift.described.memory_of", lambda asked: 3 << 20)
        yield


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Server]:
    # So long that a busy machine refuses nothing.
    patient = bundle.config.serve.model_copy(update={"max_wait": 60 * SECOND})
    with serving(with_config(bundle, serve=patient), clock="snapshot") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.address, timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def text_server(text_bundle: Bundle) -> Iterator[Server]:
    with serving(text_bundle, clock="snapshot") as server:
        yield server
