"""Vectors that the user brings: how they are scaled, and that the towers read the taste of a new item from one."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from contracts import fit_data
from world import SMALL_TOWERS, TASTES, World, make_world

from features.pairing.split import make_split
from features.schema import F32, Attribute, Requests
from features.settings import SplitSettings
from features.state.histories import Histories
from features.state.snapshot import load_state, save_state
from features.state.store import State
from neural.two_tower import TwoTower
from neural.vocabulary.entities import ROWS, Coding, encode, table_rows


def test_a_vector_is_scaled_as_a_whole_by_the_items_of_the_fit() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(50, 3)) * [10, 1, 0.1] + 5).astype(np.float32)
    vectors[4], vectors[40:] = np.nan, 1e6  # missing, and of items that have no events
    count = np.where(np.arange(50) < 40, 7, 0)
    price = Attribute("price", "numeric", numbers=np.where(np.arange(50) == 4, np.nan, 2).astype(np.float32))
    entities = encode(count, (Attribute("v", "vector", numbers=vectors), price), table_rows(10), None, salt=1)
    scaled, fitted = entities.numbers[:, :3].astype(np.float64), np.arange(40) != 4
    assert entities.numbers.shape == (51, 6)
    np.testing.assert_allclose(scaled[:40][fitted].mean(0), 0, atol=0.05)  # but for what is cut
    spread = scaled[:40][fitted].std(0)
    assert spread[0] > 8 * spread[1] > 60 * spread[2]
    assert (scaled[40:50] == 4).all()
    assert not entities.numbers[[4, -1]].any()
    assert entities.known.tolist() == [i not in (4, 50) for i in range(51)]
    np.testing.assert_array_equal(entities.numbers[:, 4:], entities.known[:, None] * [1, 1])


@pytest.mark.parametrize("width", [0, 3])
def test_vectors_of_which_none_is_known(width: int) -> None:
    none = Attribute("v", "vector", numbers=np.full((4, width), np.nan, np.float32))
    entities = encode(np.array([3, 2, 0, 0]), (none,), table_rows(4), None, salt=1)
    assert not entities.numbers.any()
    assert not entities.known.any()


def test_the_vectors_of_many_items_are_scaled_without_copies_of_all() -> None:
    n = 2 * ROWS + 3
    vectors = np.random.default_rng(0).normal(size=(n, 64)).astype(np.float32)
    vectors[::7], count = np.nan, np.arange(n) % 3
    attributes = (Attribute("v", "vector", numbers=vectors), Attribute("price", "numeric", numbers=vectors[:, 0] + 9))
    coding = Coding.build(count, attributes, with_id=False)
    tracemalloc.start()
    entities = encode(count, attributes, table_rows(10), None, salt=1, coding=coding)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * entities.numbers.nbytes
    mean, scale = coding.scales[0] or ([], 0.0)
    wanted = np.where(np.isnan(vectors), 0, np.clip((np.nan_to_num(vectors) - np.array(mean)) / scale, -4, 4))
    np.testing.assert_array_equal(entities.numbers[:n, :64], wanted.astype(np.float32))
    assert not entities.numbers[-1].any()


def with_vectors(world: World, seed: int = 3) -> World:
    """Each item's taste, turned about and with noise, in seven numbers."""
    rng = np.random.default_rng(seed)
    turned = rng.normal(size=(TASTES, 7))
    vectors = (turned[world.item_taste] + 0.2 * rng.normal(size=(len(world.item_taste), 7))).astype(np.float32)
    catalog = replace(world.catalog, item_attributes=(Attribute("v", "vector", numbers=vectors),), user_attributes=())
    return world._replace(catalog=catalog)


def right_of_new(world: World, new: F32) -> float:
    """Return how often the towers place a new item of the user's taste above a new one of another."""
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    plugin = TwoTower(
        **SMALL_TOWERS | {"pretrain_epochs": 4, "finetune_epochs": 3, "id_dropout": 0.5, "retrieval_epochs": 0}
    )
    plugin.fit(data)
    users, histories = np.arange(world.catalog.n_users, dtype=np.int32), Histories.build(world.log, len(world.affinity))
    item = np.flatnonzero(new).astype(np.int32)
    requests = Requests(
        user=users, as_of=np.full(len(users), world.log.ts[-1] + 1), surface=np.full(len(users), -1, np.int16),
        item=np.tile(item, len(users)), offsets=np.arange(len(users) + 1) * len(item),
    )  # fmt: skip
    dot = plugin.values(requests, histories).reshape(len(users), len(item))
    best = world.affinity[:, item]
    better = best[:, :, None] > best[:, None, :]
    return float((dot[:, :, None] > dot[:, None, :])[better].mean())


def test_the_taste_of_a_new_item_is_read_from_its_vector() -> None:
    world = make_world(5, n_users=60, requests_per_user=14)
    new = np.arange(len(world.item_taste)) % 4 == 0
    seen = world._replace(log=world.log.select(~new[world.log.item]))
    assert right_of_new(with_vectors(seen), new) > 0.8


def test_no_bundle_has_the_vectors_again(tmp_path: Path) -> None:
    world = with_vectors(make_world())
    state = State.build(world.log, world.catalog, (), world.grades)
    save_state(tmp_path / "snapshot", state)
    assert load_state(tmp_path / "snapshot").catalog.item_attributes == ()
    assert state.catalog.item_attributes[0].kind == "vector"
