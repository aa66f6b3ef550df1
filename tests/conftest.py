"""The small served world that tests of the request path share, trained once."""

import pytest
from world import Parts, World, bundle_of, make_world, train_parts

from ranker.bundle import Bundle


@pytest.fixture(scope="session")
def world() -> World:
    return make_world(surfaces=("feed", "search"))


@pytest.fixture(scope="session")
def parts(world: World) -> Parts:
    return train_parts(world)


@pytest.fixture(scope="session")
def bundle(parts: Parts) -> Bundle:
    return bundle_of(parts)
