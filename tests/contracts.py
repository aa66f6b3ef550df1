"""What every implementation of a Protocol must hold: subclass for each one."""

import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from world import World, make_world

from features.pairing.groups import make_groups
from features.pairing.pairs import make_pairs, weight_table
from features.pairing.split import Split, make_split
from features.plugin import (
    CurvePlugin,
    FeaturePlugin,
    FitData,
    HeadsPlugin,
    LaterEvents,
    RecodedPlugin,
    RetrievalPlugin,
    VectorPlugin,
)
from features.schema import DAY, F32, Requests, one_request
from features.settings import PairingSettings, SplitSettings
from features.state.histories import Histories
from features.state.store import State
from ranker.bundle import Bundle
from ranker.candidates.named import (
    Arrays,
    CheckedSource,
    FittedSource,
    OpenedSource,
    Served,
    SourceData,
    StateSource,
    load_fitted,
    make_source,
    plugins_of,
    save_fitted,
)
from ranker.candidates.source import CandidateSource, Proposal
from ranker.config import wanted_floor
from ranker.request import Request
from ranker.settings import NamedSource


def fit_data(world: World, split: Split, seed: int = 3) -> FitData:
    """Return what the towers' period of a world shows to a plugin."""
    groups = make_groups(world.log, PairingSettings(), split).of("towers")
    pairs = make_pairs(groups, weight_table({}, world.grades, False))
    log = world.log.until(split.t1)
    return FitData(log=log, catalog=world.catalog, groups=groups, pairs=pairs, grades=world.grades, seed=seed)


class PluginContract:
    """A FeaturePlugin. Set `make`; `exact` is False where sums may be rounded in another order in a batch."""

    exact = True

    def make(self) -> FeaturePlugin:
        """Return a plugin that is not fitted."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    def heads(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Return where the fit of `case` may keep its heads."""
        return tmp_path_factory.mktemp("heads")

    @pytest.fixture(scope="class")
    def case(self, heads: Path) -> tuple[FeaturePlugin, World, Requests, Histories]:
        world = make_world(11, surfaces=("feed", "search"))
        split = make_split(SplitSettings(), world.log, "UTC")
        plugin = self.make()
        plugin.fit(replace(fit_data(world, split), heads=heads))
        requests = make_groups(world.log, PairingSettings(), split).of("test").requests.slice(0, 40)
        return plugin, world, requests, Histories.build(world.log, world.catalog.n_users)

    def same(self, a: Any, b: Any) -> None:
        if self.exact:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    def test_values_have_the_declared_shape(self, case: Any) -> None:
        plugin, _, requests, histories = case
        assert isinstance(plugin, FeaturePlugin)
        assert len(plugin.columns) == len(set(plugin.columns)) > 0
        values = plugin.values(requests, histories)
        assert values.shape == (len(requests.item), len(plugin.columns))
        assert values.dtype == np.float32
        assert np.isfinite(values).mean() > 0.9
        assert not np.isinf(values).any()

    def test_a_category_is_a_whole_number_from_0_on(self, case: Any) -> None:
        plugin, _, requests, histories = case
        categorical = getattr(plugin, "categorical", ())
        assert set(categorical) <= set(plugin.columns)
        values = plugin.values(requests, histories)[:, [plugin.columns.index(name) for name in categorical]]
        known = values[np.isfinite(values)]
        np.testing.assert_array_equal(known, np.floor(known))
        assert (known >= 0).all()

    def test_a_batch_equals_one_request_at_a_time_up_to_rounding(self, case: Any) -> None:
        plugin, _, requests, histories = case
        values = plugin.values(requests, histories)
        alone = np.concatenate([plugin.values(requests.slice(r, r + 1), histories) for r in range(len(requests))])
        # What `features.plugin` and `pairlift drift` say: within 1e-5 of the column's standard deviation.
        bound = np.zeros(values.shape[1]) if self.exact else 1e-5 * np.nanstd(values, axis=0)
        np.testing.assert_array_equal(np.isnan(alone), np.isnan(values))
        assert (np.nanmax(np.abs(alone - values), axis=0) <= bound).all()

    def test_the_same_data_and_seed_give_the_same_values(self, case: Any) -> None:
        plugin, world, requests, histories = case
        again = self.make()
        again.fit(fit_data(world, make_split(SplitSettings(), world.log, "UTC")))
        values, found = plugin.values(requests, histories), again.values(requests, histories)
        if getattr(plugin, "deterministic", True):
            np.testing.assert_array_equal(found, values)
        else:
            np.testing.assert_allclose(found, values, rtol=1e-3, atol=1e-4)

    def test_a_candidate_does_not_depend_on_the_others(self, case: Any) -> None:
        plugin, _, requests, histories = case
        user, as_of = int(requests.user[0]), int(requests.as_of[0])
        items = np.array([0, 5, 9, 5, 30], np.int32)
        all_of_them = plugin.values(one_request(user, as_of, 0, items), histories)
        for k, item in enumerate(items):
            alone = plugin.values(one_request(user, as_of, 0, np.array([item], np.int32)), histories)
            self.same(alone[0], all_of_them[k])

    def test_nothing_at_or_after_as_of_is_seen(self, case: Any) -> None:
        plugin, world, requests, histories = case
        for r in range(0, len(requests), 8):
            one = requests.slice(r, r + 1)
            past = Histories.build(world.log.until(int(one.as_of[0])), world.catalog.n_users)
            self.same(plugin.values(one, past), plugin.values(one, histories))

    def test_cold_users_cold_items_and_no_items_are_answered(self, case: Any) -> None:
        plugin, _, requests, histories = case
        as_of = int(requests.as_of[0])
        cold = plugin.values(one_request(-1, as_of, -1, np.array([-1, 2], np.int32)), histories)
        assert cold.shape == (2, len(plugin.columns))
        assert not np.isinf(cold).any()
        assert plugin.values(one_request(0, as_of, 0, np.empty(0, np.int32)), histories).shape == (
            0,
            len(plugin.columns),
        )
        assert plugin.values(requests.slice(0, 0), histories).shape == (0, len(plugin.columns))

    def test_new_items_of_histories_are_as_cold_ones(self, case: Any) -> None:
        plugin, world, requests, _ = case
        log, n_users, n_items = world.log, world.catalog.n_users, world.catalog.n_items
        as_of, items = int(requests.as_of[-1]), np.arange(6, dtype=np.int32)
        found = []
        for shift in (0, 57):
            third = np.where(np.arange(len(log)) % 3 == 0, n_items + shift + log.item % 5, log.item)
            mixed = Histories.build(replace(log, item=third.astype(np.int32)), n_users)
            found.append(plugin.values(one_request(3, as_of, 0, items), mixed))
        self.same(*found)  # which new item it is says nothing

    def test_what_is_saved_is_loaded_and_can_be_saved_again(self, case: Any, tmp_path: Path) -> None:
        plugin, _, requests, histories = case
        before = plugin.values(requests, histories)
        for step in ("first", "second"):
            (tmp_path / step).mkdir()
            plugin.save(tmp_path / step)
            plugin = type(plugin).load(tmp_path / step)
            np.testing.assert_array_equal(plugin.values(requests, histories), before)

    def test_a_curve_is_in_the_order_of_the_training_and_is_saved(self, case: Any, tmp_path: Path) -> None:
        plugin = case[0]
        if not isinstance(plugin, CurvePlugin):
            pytest.skip("it is not trained in steps")
        curve = list(plugin.curve)
        phases = [point["phase"] for point in curve]
        for phase in set(phases):
            steps = [point["step"] for point in curve if point["phase"] == phase]
            assert steps == sorted(steps)
            assert phases[phases.index(phase) :][: len(steps)] == [phase] * len(steps)
        losses = [point["loss"] for point in curve if point["loss"] is not None]
        assert losses
        assert np.isfinite(losses).all()
        assert any(point["validation"] is not None for point in curve)
        plugin.save(tmp_path)
        loaded = type(plugin).load(tmp_path)
        assert isinstance(loaded, CurvePlugin)
        assert list(loaded.curve) == curve

    def test_a_recoded_plugin_gives_the_same_for_the_same_items_and_users(self, case: Any, tmp_path: Path) -> None:
        plugin, world, requests, histories = case
        if not isinstance(plugin, RecodedPlugin):
            pytest.skip("it cannot be recoded")
        rng = np.random.default_rng(0)
        n_items, n_users = world.catalog.n_items, world.catalog.n_users
        # Some are new, and all the others have another place.
        items = np.append(rng.permutation(n_items).astype(np.int32), [-1, -1, -1]).astype(np.int32)
        users = np.append([-1, -1], rng.permutation(n_users)).astype(np.int32)
        moved = plugin.recoded(items, users)
        item_at, user_at = (np.argsort(codes)[(codes < 0).sum() :].astype(np.int32) for codes in (items, users))
        user = user_at[world.log.user]
        later = Histories.build(replace(world.log, item=item_at[world.log.item], user=user), len(users))
        asked = replace(requests, item=item_at[requests.item], user=user_at[requests.user])
        want = plugin.values(requests, histories)
        self.same(moved.values(asked, later), want)
        moved.save(tmp_path)
        self.same(type(plugin).load(tmp_path).values(asked, later), want)
        new = replace(asked, item=np.full_like(asked.item, len(items) - 1))
        cold = replace(requests, item=np.full_like(requests.item, -1))
        self.same(moved.values(new, later), plugin.values(cold, histories))

    def test_heads_are_kept_beside_it_and_measured_on_events_behind_the_fit(
        self, case: Any, heads: Path, tmp_path: Path
    ) -> None:
        plugin, world, _, _ = case
        kept = {path.name for path in heads.iterdir()}
        assert bool(kept) == isinstance(plugin, HeadsPlugin)
        if not kept:
            return
        plugin.save(tmp_path)
        assert not kept & {path.name for path in tmp_path.iterdir()}
        split = make_split(SplitSettings(), world.log, "UTC")
        data, middle = replace(fit_data(world, split), heads=heads), (split.t2 + split.t3) // 2
        spans = [(split.t2, split.t3), (split.t2, middle), (middle, split.t3)]
        whole, first, last = (
            plugin.head_losses(data, LaterEvents(log=world.log.until(end), since=since)) for since, end in spans
        )
        assert whole
        for head, loss in whole.items():  # what comes later changes nothing of what came before
            low, high = sorted((first[head], last[head]))
            assert low - 1e-6 < loss < high + 1e-6
        loaded = type(plugin).load(tmp_path)
        again = LaterEvents(log=world.log.until(split.t3), since=split.t2)
        assert loaded.head_losses(data, again) == whole
        assert plugin.head_losses(replace(data, heads=tmp_path), again) == {}


class VectorContract(PluginContract):
    """A VectorPlugin: what a candidate source needs of one, beside all that a FeaturePlugin holds."""

    def test_every_user_and_item_has_a_row_of_the_same_width(self, case: Any) -> None:
        plugin, world, requests, histories = case
        assert isinstance(plugin, VectorPlugin)
        items, users = plugin.item_vectors, plugin.user_vectors(requests, histories)
        assert items.shape == (world.catalog.n_items, users.shape[1])
        assert len(users) == len(requests)
        assert items.dtype == users.dtype == np.float32
        for vectors in (items, users):
            known = ~np.isnan(vectors)
            np.testing.assert_array_equal(known.all(axis=1), known.any(axis=1))  # a row is known as a whole, or NaN
            assert np.isfinite(vectors[known]).all()
            assert known.mean() > 0.8

    def test_vectors_give_the_dot(self, case: Any) -> None:
        plugin, _, requests, histories = case
        assert plugin.columns == ("dot",)
        users, items = plugin.user_vectors(requests, histories), plugin.item_vectors
        dot = np.einsum("nd,nd->n", users[requests.row_request()], items[requests.item])
        np.testing.assert_allclose(plugin.values(requests, histories)[:, 0], dot, rtol=1e-3, atol=1e-4)

    def test_a_users_vector_is_of_the_events_before_as_of_alone(self, case: Any) -> None:
        plugin, world, requests, histories = case
        for r in range(0, len(requests), 8):
            one = requests.slice(r, r + 1)
            past = Histories.build(world.log.until(int(one.as_of[0])), world.catalog.n_users)
            self.same(plugin.user_vectors(one, past), plugin.user_vectors(one, histories))

    def test_a_user_without_a_history_has_no_vector(self, case: Any) -> None:
        plugin, world, requests, histories = case
        as_of = int(requests.as_of[0])
        for user in (-1, world.catalog.n_users + 1):
            assert np.isnan(plugin.user_vectors(one_request(user, as_of, -1, np.zeros(1, np.int32)), histories)).all()

    def test_a_new_user_has_the_vector_of_the_same_history(self, case: Any) -> None:
        plugin, world, requests, histories = case
        log, n_users = world.log, world.catalog.n_users
        as_of, items = int(requests.as_of[-1]), np.arange(6, dtype=np.int32)
        later = Histories.build(replace(log, user=np.where(log.user == 3, n_users + 2, log.user)), n_users + 3)
        known = plugin.user_vectors(one_request(3, as_of, 0, items), histories)
        self.same(plugin.user_vectors(one_request(n_users + 2, as_of, 0, items), later), known)
        assert np.isfinite(known).all()
        assert np.isnan(plugin.user_vectors(one_request(n_users + 1, as_of, 0, items), later)).all()


class RetrievalContract(VectorContract):
    """A RetrievalPlugin: its queries hold to what its user vectors hold to, and its keys to what its items do."""

    def test_a_query_and_a_key_are_of_one_width_or_are_not_known(self, case: Any) -> None:
        plugin, world, requests, histories = case
        assert isinstance(plugin, RetrievalPlugin)
        assert isinstance(plugin.over_demand, bool)
        keys, queries = plugin.item_keys, plugin.queries(requests, histories)
        assert keys.shape == (world.catalog.n_items, queries.shape[1])
        assert len(queries) == len(requests)
        assert keys.dtype == queries.dtype == np.float32
        for rows in (keys, queries):
            known = ~np.isnan(rows)
            np.testing.assert_array_equal(known.all(axis=1), known.any(axis=1))
            assert np.isfinite(rows[known]).all()
            assert known.mean() > 0.8
        np.testing.assert_array_equal(np.isnan(keys[:, 0]), np.isnan(plugin.item_vectors[:, 0]))
        none = plugin.queries(requests.slice(0, 0), histories)
        assert none.shape == (0, keys.shape[1])

    def test_a_query_is_of_its_request_alone(self, case: Any) -> None:
        plugin, _, requests, histories = case
        queries = plugin.queries(requests, histories)
        alone = np.concatenate([plugin.queries(requests.slice(r, r + 1), histories) for r in range(len(requests))])
        np.testing.assert_allclose(alone, queries, rtol=1e-4, atol=1e-5)
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda r: plugin.queries(requests.slice(r, r + 1), histories), range(len(requests)))
            np.testing.assert_array_equal(np.concatenate(list(found)), alone)

    def test_a_query_is_of_the_events_before_as_of_alone(self, case: Any) -> None:
        plugin, world, requests, histories = case
        for r in range(0, len(requests), 8):
            one = requests.slice(r, r + 1)
            past = Histories.build(world.log.until(int(one.as_of[0])), world.catalog.n_users)
            self.same(plugin.queries(one, past), plugin.queries(one, histories))

    def test_who_has_no_vector_has_no_query(self, case: Any) -> None:
        plugin, world, requests, histories = case
        as_of = int(requests.as_of[0])
        for user in (-1, world.catalog.n_users + 1):
            assert np.isnan(plugin.queries(one_request(user, as_of, -1, np.zeros(1, np.int32)), histories)).all()

    def test_keys_and_queries_are_saved(self, case: Any, tmp_path: Path) -> None:
        plugin, _, requests, histories = case
        plugin.save(tmp_path)
        loaded = type(plugin).load(tmp_path)
        assert loaded.over_demand == plugin.over_demand
        np.testing.assert_array_equal(loaded.item_keys, plugin.item_keys)
        np.testing.assert_array_equal(loaded.queries(requests, histories), plugin.queries(requests, histories))

    def test_keys_move_with_their_items(self, case: Any) -> None:
        plugin, world, _, _ = case
        n_items, n_users = world.catalog.n_items, world.catalog.n_users
        items = np.append(np.random.default_rng(0).permutation(n_items), -1).astype(np.int32)
        keys = plugin.recoded(items, np.arange(n_users, dtype=np.int32)).item_keys
        np.testing.assert_array_equal(keys[:-1], plugin.item_keys[items[:-1]])
        assert np.isnan(keys[-1]).all()


class SourceContract:
    """A CandidateSource. Set `make`, which builds one of the small served world.

    `by_score` is False where items stand by more than the score.
    """

    by_score = True

    def make(self, bundle: Bundle) -> CandidateSource:
        raise NotImplementedError

    @pytest.fixture
    def source(self, bundle: Bundle) -> CandidateSource:
        return self.make(bundle)

    def scores(self, proposal: Proposal, bundle: Bundle) -> F32:
        """Return the scores of the whole catalogue; none without `Proposal.score`."""
        items = np.arange(bundle.state.catalog.n_items, dtype=np.int32)
        return np.empty(0, np.float32) if proposal.score is None else proposal.score(items)

    @pytest.mark.parametrize("limit", [1, 7, 1000])
    @pytest.mark.parametrize("user", [0, 13, -1])
    def test_the_score_orders_the_proposal_and_ends_where_it_ends(
        self, source: CandidateSource, bundle: Bundle, user: int, limit: int
    ) -> None:
        proposal = source.propose(Request(user, bundle.state.end - DAY, state=bundle.state), limit)
        said = (len(proposal.item), len(bundle.state.catalog.candidates))
        assert proposal.given is None or proposal.given.shape == said
        if proposal.score is None:
            return
        given, rest = proposal.score(proposal.item), self.scores(proposal, bundle)
        assert given.dtype == rest.dtype == np.float32
        assert np.isfinite(given).all()
        if not self.by_score:
            return
        assert (np.diff(given) <= 0).all()
        rest[proposal.item] = np.nan
        if len(given) == limit:
            assert not (rest > given.min(initial=np.inf)).any()

    def test_a_score_is_of_its_item_alone_and_of_no_other_than_an_item(
        self, source: CandidateSource, bundle: Bundle
    ) -> None:
        proposal, n = source.propose(Request(3, bundle.state.end, state=bundle.state), 5), bundle.state.catalog.n_items
        if proposal.score is None:
            return
        whole, rng = self.scores(proposal, bundle), np.random.default_rng(0)
        for size in (0, 1, 9):
            some = rng.integers(0, n, size).astype(np.int32)
            assert proposal.score(some).tobytes() == whole[some].tobytes()
        odd = proposal.score(np.array([-1, n + 1000], np.int32))
        assert np.isnan(odd[0])
        assert odd.shape == (2,)

    @pytest.mark.parametrize("limit", [1, 7, 1000])
    @pytest.mark.parametrize("user", [0, 13, -1])
    def test_distinct_known_items_within_the_limit(
        self, source: CandidateSource, bundle: Bundle, user: int, limit: int
    ) -> None:
        items = source.propose(Request(user, bundle.state.end, state=bundle.state), limit).item
        assert items.dtype == np.int32
        assert items.ndim == 1
        assert len(items) <= limit
        assert len(set(items.tolist())) == len(items)
        assert ((items >= 0) & (items < bundle.state.catalog.n_items)).all()

    def test_a_smaller_limit_is_a_prefix(self, source: CandidateSource, bundle: Bundle) -> None:
        request = Request(3, bundle.state.end, state=bundle.state)
        assert len(source.propose(request, 5).item) == 5
        assert source.propose(request, 5).item.tolist() == source.propose(request, 50).item[:5].tolist()

    def test_the_same_request_gives_the_same_items(self, source: CandidateSource, bundle: Bundle) -> None:
        request = Request(3, bundle.state.end - DAY, source_item=4, state=bundle.state)
        again = self.make(bundle)
        assert len(source.propose(request, 20).item)
        for other in (source, again):
            assert other.propose(request, 20).item.tolist() == source.propose(request, 20).item.tolist()

    def test_several_threads_get_the_items_of_one(self, source: CandidateSource, bundle: Bundle) -> None:
        requests = [Request(user, bundle.state.end, state=bundle.state) for user in range(40)]
        alone = [source.propose(request, 20).item.tolist() for request in requests]
        with ThreadPoolExecutor(4) as pool:
            assert [found.item.tolist() for found in pool.map(lambda r: source.propose(r, 20), requests)] == alone

    def test_an_event_of_the_instant_is_not_seen(self, source: CandidateSource, bundle: Bundle, world: World) -> None:
        """As of the time of a user's own event, the answer is that of histories that end before it."""
        state, compared = bundle.state, 0
        for event in range(len(world.log) // 2, len(world.log) // 2 + 60):
            user, as_of = int(world.log.user[event]), int(world.log.ts[event])
            cut = replace(state, histories=state.histories.until(as_of))
            asked = [Request(user, as_of, state=one) for one in (state, cut)]
            whole, before = (source.propose(request, 30) for request in asked)
            assert whole.item.tolist() == before.item.tolist()
            assert self.scores(whole, bundle).tobytes() == self.scores(before, bundle).tobytes()
            compared += len(whole.item) > 0
        assert compared

    def test_the_histories_are_those_of_the_request(self, source: CandidateSource, bundle: Bundle) -> None:
        """A source that has answered from one state answers from another as a new one does."""
        state = bundle.state
        user, end = 3, state.end
        other = replace(state, histories=state.histories.until(end - 10 * DAY))
        for one in (state, other, state):
            request = Request(user, end, state=one)
            assert source.propose(request, 30).item.tolist() == self.make(bundle).propose(request, 30).item.tolist()

    def test_before_the_first_event_there_is_nothing(
        self, source: CandidateSource, bundle: Bundle, world: World
    ) -> None:
        request = Request(0, int(world.log.ts[0]), state=bundle.state)
        assert len(source.propose(request, 20).item) == 0


class NamedSourceContract(SourceContract):
    """A class of `[sources.NAME]`. Set `path`, and `params`: the keys of its table."""

    path: str
    params: Mapping[str, Any] = MappingProxyType({})

    def built(self) -> CandidateSource:
        return make_source("mine", NamedSource(**{"class": self.path, **self.params}))

    def fitted(self, bundle: Bundle) -> Arrays:
        source, state = self.built(), bundle.state
        log = state.histories.log(("play",))
        data = SourceData(log=log, catalog=state.catalog, floor=wanted_floor(bundle.config))
        return source.fit(data) if isinstance(source, FittedSource) else {}

    def opened(self, bundle: Bundle, arrays: Arrays, state: State | None = None) -> CandidateSource:
        source = self.built()
        if isinstance(source, OpenedSource):
            floor = wanted_floor(bundle.config)
            source.open(Served(arrays=arrays, plugins=bundle.plugins, state=state or bundle.state, floor=floor))
        return source

    def make(self, bundle: Bundle) -> CandidateSource:
        return self.opened(bundle, self.fitted(bundle))

    def test_it_has_the_name_of_its_table_and_passes_its_own_check(self, bundle: Bundle) -> None:
        source = self.built()
        assert source.name == "mine"
        assert set(plugins_of(source)) <= set(bundle.plugins)
        if isinstance(source, CheckedSource):
            source.check(bundle.state.catalog)

    def test_it_proposes_the_same_from_what_was_saved(self, bundle: Bundle, tmp_path: Path) -> None:
        arrays = self.fitted(bundle)
        save_fitted(tmp_path, {"mine": arrays})
        loaded = load_fitted(tmp_path).get("mine", {})
        for again in (loaded, self.fitted(bundle)):
            assert sorted(again) == sorted(arrays)
            assert all(again[name].tobytes() == array.tobytes() for name, array in arrays.items())
        assert not any(array.flags.writeable for array in loaded.values() if array.size)
        source, other = self.opened(bundle, arrays), self.opened(bundle, loaded)
        for user in range(10):
            request = Request(user, bundle.state.end - DAY, state=bundle.state)
            assert other.propose(request, 30).item.tolist() == source.propose(request, 30).item.tolist()

    def test_it_says_the_same_from_a_log_that_ends_at_as_of(self, bundle: Bundle, world: World) -> None:
        arrays, known = self.fitted(bundle), 0
        whole = self.opened(bundle, arrays)
        for event in range(len(world.log) // 2, len(world.log), 400):
            user, as_of = int(world.log.user[event]), int(world.log.ts[event])
            # Its end is as_of, and not the last event, from which on a count may stand still.
            state = replace(State.build(world.log.until(as_of), world.catalog, (), world.grades), end=as_of)
            source = self.opened(bundle, arrays, state)
            a = self.scores(whole.propose(Request(user, as_of, state=bundle.state), 30), bundle)
            b = self.scores(source.propose(Request(user, as_of, state=state), 30), bundle)
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
            known += int(np.isfinite(a).sum())
        assert known

    def test_over_another_state_it_answers_as_one_that_was_opened_over_it(self, bundle: Bundle, world: World) -> None:
        arrays, whole = self.fitted(bundle), bundle.state
        early = State.build(world.log.until(whole.end - 12 * DAY), world.catalog, (), world.grades)
        source = self.opened(bundle, arrays, early)
        if not isinstance(source, StateSource):
            return
        requests = [Request(user, whole.end, state=whole) for user in range(10)]
        before = [source.propose(request, 30).item.tolist() for request in requests]
        moved, anew = source.over(whole), self.opened(bundle, arrays)
        assert moved.name == "mine"
        for request, old in zip(requests, before, strict=True):
            assert moved.propose(request, 30).item.tolist() == anew.propose(request, 30).item.tolist()
            assert source.propose(request, 30).item.tolist() == old  # requests may be under way in it


def check_served_as_trained(trainer: Any, served: F32) -> None:
    """What is served of each impression of the validation slice is the training score, less what is known of the item.

    trainer: a `neural.train.Trainer` with the trained model. served: float32[impressions].
    """
    import torch

    from neural.train import NO_NEGATIVES

    batches, mask, checked = trainer.inputs.batches, trainer.inputs.validation, 0
    with torch.no_grad():
        for chosen in batches.plan(mask, 600):
            batch = batches.make(chosen, mask)
            score = trainer.scores(batch, trainer.encode(batch, NO_NEGATIVES)).numpy()
            known = float(trainer.model.known) * batch.groups.offset
            np.testing.assert_allclose(served[batch.groups.row], score - known, rtol=1e-3, atol=1e-4)
            checked += len(batch.groups.row)
    assert checked > 100


def check_serves_without(
    packages: set[str], plugin: FeaturePlugin, histories: Histories, as_of: int, folder: Path, further: str = "True"
) -> None:
    """Load a plugin in a process of its own and ask it for five items of user 0: none of these packages is imported.

    folder: empty. further: what must be true there of `plugin`.
    """
    plugin.save(folder)
    np.savez(folder / "histories.npz", **{name: getattr(histories, name) for name in histories.__slots__})
    code = f"""
import sys, numpy as np
from pathlib import Path
from features.plugin import plugin_class
from features.state.histories import Histories
from features.schema import one_request
folder = Path({str(folder)!r})
plugin = plugin_class("{type(plugin).__module__}:{type(plugin).__name__}").load(folder)
histories = Histories(**np.load(folder / "histories.npz"))
values = plugin.values(one_request(0, {as_of}, 0, np.arange(5, dtype=np.int32)), histories)
assert np.isfinite(values).all()
assert {further}
imported = {packages!r} & set(sys.modules)
assert not imported, f"{{imported}} was imported"
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
