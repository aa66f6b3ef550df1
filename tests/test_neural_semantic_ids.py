"""Semantic ids: their contract, the quantiser, what it quantises, and that new items have the codes of like ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import PluginContract, check_serves_without, fit_data
from logs import permuted
from world import World, make_world

from features.errors import PairliftError
from features.pairing.split import make_split
from features.plugin import FeaturePlugin, FitData, make_plugin
from features.schema import F32, Attribute, one_request
from features.settings import SplitSettings
from features.state.histories import Histories
from neural.data import TowerData
from neural.limaml.settings import LiMAMLSettings
from neural.semantic_ids import SemanticIds
from neural.semantic_ids.quantise import fit_codebooks, quantised
from neural.semantic_ids.settings import SemanticIdsSettings
from neural.semantic_ids.vectors import item_vectors, ridge

SMALL: dict[str, Any] = {"levels": 2, "codes": 4, "factors": 8}


class TestSemanticIds(PluginContract):
    def make(self) -> FeaturePlugin:
        return SemanticIds(**SMALL)


@pytest.fixture(scope="module")
def data(world: World) -> FitData:
    return fit_data(world, make_split(SplitSettings(), world.log, "UTC"))


# The quantiser


def test_each_level_takes_the_nearest_code_to_what_is_left_and_leaves_less() -> None:
    vectors = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    books = fit_codebooks(vectors, 3, 6, np.random.default_rng(1))
    codes, left = quantised(vectors, books), vectors.astype(np.float64)
    before = (left**2).sum()
    for level, book in enumerate(books):
        assert book.shape == (6, 5)
        far = ((left[:, None] - book) ** 2).sum(2)
        np.testing.assert_allclose(far[np.arange(300), codes[:, level]], far.min(1), rtol=1e-4, atol=1e-5)
        left -= book[codes[:, level]]
        assert (left**2).sum() < 0.9 * before
        before = (left**2).sum()


def test_clusters_within_clusters_are_found_level_by_level() -> None:
    rng = np.random.default_rng(2)
    coarse, fine = rng.integers(0, 3, 400), rng.integers(0, 3, 400)
    centres, steps = 10 * np.eye(3, 4), np.array([[0, 0, 0, 2.0], [0, 0, 0, 0], [0, 0, 0, -2.0]])
    vectors = (centres[coarse] + steps[fine] + rng.normal(0, 0.1, (400, 4))).astype(np.float32)
    codes = quantised(vectors, fit_codebooks(vectors, 2, 3, np.random.default_rng(0)))
    assert len(np.unique(np.stack([coarse, codes[:, 0]], 1), axis=0)) == 3
    assert len(np.unique(np.column_stack([coarse, fine, codes]), axis=0)) == 9


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_few_vectors_have_few_codes(n: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    books = fit_codebooks(vectors, 2, 4, np.random.default_rng(0))
    assert [len(book) for book in books][:1] == ([min(n, 4)] if n else [])
    assert all(np.isfinite(book).all() for book in books)
    codes = quantised(vectors, books)
    assert codes.shape == (n, len(books))
    assert len(np.unique(codes, axis=0)) == n  # both levels tell all of them apart


def test_equal_vectors_are_one_cluster_without_a_warning() -> None:
    vectors = np.ones((9, 3), np.float32)
    assert len(np.unique(quantised(vectors, fit_codebooks(vectors, 2, 4, np.random.default_rng(0))), axis=0)) == 1


# What items are quantised by


def test_what_attributes_lead_one_to_expect_is_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    content, weights = rng.normal(size=(3000, 6)), rng.normal(size=(6, 2))
    own = content @ weights + 3
    fitted = rng.random(3000) < 0.8
    own[:5] = np.nan
    left = (ridge(content, own, fitted) - own)[5:]
    assert np.abs(left).max() < 0.1 * np.ptp(own[5:])
    assert left.std() < 0.1 * own[5:].std()
    assert (ridge(content, own, np.zeros(3000, bool)) == 0).all()


def codes_of(data: FitData, **options: Any) -> F32:
    plugin = SemanticIds(**{**SMALL, **options})
    plugin.fit(data)
    return plugin.codes[:-1]


def agreement(code: F32, taste: Any) -> float:
    """Return the share of items whose taste is the commonest one of their code."""
    known = np.isfinite(code)
    table = np.zeros((int(code[known].max()) + 1, int(taste.max()) + 1))
    np.add.at(table, (code[known].astype(int), taste[known]), 1)
    return float(table.max(1).sum() / table.sum())


def test_items_of_one_taste_share_a_code_and_not_where_labels_are_shuffled() -> None:
    world = make_world(3, n_users=200, requests_per_user=24)
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    none = replace(data, catalog=replace(data.catalog, item_attributes=()))
    shuffled = replace(none, log=permuted(data.log, np.arange(len(data.log))))
    found = [agreement(codes_of(x, levels=1)[:, 0], world.item_taste) for x in (none, shuffled)]
    assert found[0] > 0.6
    assert found[1] < 0.45


def told_world() -> tuple[World, FitData]:
    """A world whose genre is the taste, and whose last 20 items have no event in the fit."""
    world = make_world(5, n_users=200, requests_per_user=24)
    genre = Attribute("genre", "categorical", codes=world.item_taste.astype(np.int32), values=tuple("abcd"))
    world = world._replace(catalog=replace(world.catalog, item_attributes=(genre,)))
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    return world, replace(data, log=data.log.select(data.log.item < 60))


def test_a_new_item_has_the_code_of_items_with_its_attributes() -> None:
    world, data = told_world()
    codes = codes_of(data, levels=1)[:, 0]
    assert np.isfinite(codes).all()
    assert agreement(codes, world.item_taste) == 1
    for taste in range(4):
        old, new = (
            np.unique(codes[part & (world.item_taste == taste)]) for part in (np.arange(80) < 60, np.arange(80) >= 60)
        )
        assert old.tolist() == new.tolist()


def test_of_what_nothing_is_known_there_is_no_code() -> None:
    _, data = told_world()
    bare = replace(data, catalog=replace(data.catalog, item_attributes=()))
    codes = codes_of(bare)
    assert np.isfinite(codes[:60]).all()
    assert np.isnan(codes[60:]).all()
    assert np.isnan(codes_of(replace(bare, log=bare.log.select(slice(0, 0))))).all()


def test_an_items_own_events_count_beside_its_attributes_as_shrink_says() -> None:
    _, data = told_world()
    different = {}
    for shrink in (0.0, 1e9):
        vectors = item_vectors(data, SemanticIdsSettings(**SMALL, shrink=shrink, content=0.0))[0]
        different[shrink] = len(np.unique(vectors.round(4), axis=0))
    assert different == {0.0: 60 + 4, 1e9: 4}  # each its own, and the new ones one of four genres; genres alone


def test_the_towers_embed_the_codes_of_new_items_too_and_learn_them_before_the_validation_slice() -> None:
    _, data = told_world()
    bare = TowerData.build(data, LiMAMLSettings()).items
    items = TowerData.build(data, LiMAMLSettings(semantic_ids=2)).items
    assert items.layout.slots == (*bare.layout.slots, 1, 1)
    assert (items.weight[:-1, -2:] == 1).all()  # of the 20 items without an event too
    old, new = (set(map(tuple, items.slots[rows, -2].tolist())) for rows in (slice(0, 60), slice(60, 80)))
    assert new <= old  # embeddings that were trained
    held = np.flatnonzero(data.log.ts >= data.groups.requests.as_of[data.groups.validation].min())
    other = TowerData.build(replace(data, log=permuted(data.log, held)), LiMAMLSettings(semantic_ids=2)).items
    np.testing.assert_array_equal(other.slots, items.slots)
    learned = permuted(data.log, np.arange(held[0]))
    assert (
        TowerData.build(replace(data, log=learned), LiMAMLSettings(semantic_ids=2)).items.slots != items.slots
    ).any()


def test_loading_and_serving_import_neither_torch_nor_implicit(data: FitData, world: World, tmp_path: Path) -> None:
    plugin = SemanticIds(**SMALL)
    plugin.fit(data)
    histories = Histories.build(world.log, world.catalog.n_users)
    check_serves_without({"torch", "implicit"}, plugin, histories, int(world.log.ts[-1]), tmp_path)


def test_the_fit_reads_no_event_but_those_it_is_given(data: FitData, world: World) -> None:
    asked = one_request(0, 0, 0, np.arange(80, dtype=np.int32))
    plugin = SemanticIds(**SMALL)
    plugin.fit(data)
    nothing = Histories.build(world.log.select(slice(0, 0)), world.catalog.n_users)
    np.testing.assert_array_equal(plugin.values(asked, nothing), plugin.codes[:-1])


def test_wrong_options_are_told_and_an_unfitted_plugin_says_so() -> None:
    with pytest.raises(PairliftError, match="did you mean"):
        make_plugin("ids", "neural.semantic_ids:SemanticIds", {"level": 3})
    with pytest.raises(PairliftError, match="SemanticIds is not fitted"):
        _ = SemanticIds().codes
