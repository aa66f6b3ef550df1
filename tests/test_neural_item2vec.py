"""Item2vec: its contract, its sessions, what it learns, and that a user is the mean of the latest wanted items."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import VectorContract, check_serves_without, fit_data
from logs import permuted
from world import World, make_world

from features.errors import PairliftError
from features.pairing.split import make_split
from features.plugin import FeaturePlugin, FitData, make_plugin
from features.schema import DAY, F64, empty_log, one_request
from features.settings import SplitSettings
from features.state.histories import Histories
from neural.item2vec import Item2Vec
from neural.item2vec.plugin import mean
from neural.item2vec.train import sessions

#: options that fit in a second
SMALL: dict[str, Any] = {"width": 16, "epochs": 30, "history": 12}


class TestItem2Vec(VectorContract):
    exact = False

    def make(self) -> FeaturePlugin:
        return Item2Vec(**SMALL)


@pytest.fixture(scope="module")
def data(world: World) -> FitData:
    return fit_data(world, make_split(SplitSettings(), world.log, "UTC"))


@pytest.mark.parametrize("floor", [-1, 1])
@pytest.mark.parametrize("gap", [0, 3, 1000])
def test_a_session_is_a_run_of_wanted_events_that_are_near_in_time(floor: int, gap: int) -> None:
    rng, n = np.random.default_rng(gap), 200
    log = replace(
        empty_log((), n),
        user=rng.integers(-1, 7, n).astype(np.int32),
        item=rng.integers(-1, 9, n).astype(np.int32),
        ts=np.sort(rng.integers(0, 150, n)),
        grade=rng.integers(-1, 3, n).astype(np.int8),
    )
    expected = []
    for user in range(7):
        run: list[str] = []
        before = 0
        for k in np.flatnonzero((log.user == user) & (log.grade >= floor) & (log.item >= 0)):
            if run and log.ts[k] - before > gap:
                expected.append(run)
                run = []
            run, before = [*run, str(log.item[k])], int(log.ts[k])
        expected.append(run)
    assert sessions(Histories.build(log, 8), floor, gap) == [run for run in expected if len(run) > 1]


def cosines(plugin: Item2Vec, world: World) -> tuple[F64, F64]:
    """Return the cosines of pairs of items of one taste, and of two."""
    v = plugin.item_vectors.astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(v[~np.isnan(v[:, 0])], axis=1), 1, rtol=1e-5)
    first, second = np.triu_indices(len(v), 1)
    cosine = (v[first] * v[second]).sum(1)
    same = world.item_taste[first] == world.item_taste[second]
    known = ~np.isnan(cosine)
    return cosine[known & same], cosine[known & ~same]


def above(a: F64, b: F64) -> float:
    """Return how likely one of `a` is above one of `b`."""
    return float((a[:, None] > b[None, :]).mean())


def test_items_of_one_taste_are_near_and_not_where_events_are_shuffled() -> None:
    world, found = make_world(3, n_users=200, requests_per_user=24), []
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    for log in (data.log, permuted(data.log, np.arange(len(data.log)))):
        plugin = Item2Vec(**SMALL)
        plugin.fit(replace(data, log=log))
        found.append(above(*cosines(plugin, world)))
    assert found[0] > 0.85
    assert abs(found[1] - 0.5) < 0.1


def test_a_user_is_the_mean_of_the_latest_wanted_items(data: FitData, world: World) -> None:
    plugin = Item2Vec(**SMALL, lag="2d")
    plugin.fit(data)
    v, h = plugin.item_vectors, Histories.build(world.log, world.catalog.n_users)
    for user in range(world.catalog.n_users):
        as_of = int(world.log.ts[-1]) - user * DAY // 2
        rows = range(int(h.offsets[user]), int(h.offsets[user + 1]))
        wanted = [h.item[r] for r in rows if h.ts[r] < as_of - 2 * DAY and h.grade[r] >= 1]
        latest = [item for item in wanted if not np.isnan(v[item, 0])][-12:]
        asked = one_request(user, as_of, 0, np.arange(9, dtype=np.int32))
        vector = v[latest].astype(np.float64).mean(0)
        np.testing.assert_allclose(plugin.user_vectors(asked, h)[0], vector, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(plugin.values(asked, h)[:, 0], v[:9] @ vector, rtol=1e-4, atol=1e-6)


def test_padding_is_not_in_the_mean() -> None:
    item = np.array([[[9.0], [1.0], [2.0]], [[9.0], [9.0], [4.0]]], np.float32)
    np.testing.assert_array_equal(mean(item, np.array([2, 1])), [[1.5], [4.0]])


def test_loading_and_serving_import_neither_torch_nor_gensim(data: FitData, world: World, tmp_path: Path) -> None:
    plugin = Item2Vec(**SMALL, session="2h")
    plugin.fit(data)
    histories, session = Histories.build(world.log, world.catalog.n_users), "plugin.settings.session == 7_200_000_000"
    check_serves_without({"torch", "gensim"}, plugin, histories, int(world.log.ts[-1]), tmp_path, session)


def test_wrong_options_are_told_and_an_unfitted_plugin_says_so() -> None:
    with pytest.raises(PairliftError, match="did you mean"):
        make_plugin("item2vec", "neural.item2vec:Item2Vec", {"windows": 3})
    with pytest.raises(PairliftError, match="Item2Vec is not fitted"):
        _ = Item2Vec().item_vectors


def test_a_log_without_sessions_is_answered_with_nan(data: FitData, world: World) -> None:
    histories = Histories.build(world.log, world.catalog.n_users)
    asked = one_request(0, int(world.log.ts[-1]), 0, np.arange(9, dtype=np.int32))
    alone = np.sort(np.unique(data.log.user, return_index=True)[1])
    for rows in (slice(0, 0), alone):
        plugin = Item2Vec(**SMALL)
        plugin.fit(replace(data, log=data.log.select(rows)))
        assert np.isnan(plugin.values(asked, histories)).all()
        assert np.isnan(plugin.item_vectors).all()
