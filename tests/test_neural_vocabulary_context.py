"""A request's context in the towers: trained as it is served, kept states serve any of it, and it says what it says."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from contracts import PluginContract, check_served_as_trained, fit_data
from world import SMALL_NETWORK, SMALL_TOWERS, World, make_world, write_world

from features.pairing.split import make_split
from features.plugin import FeaturePlugin, FitData
from features.schema import HOUR, NO_CONTEXT, Attribute, EventLog, Requests, one_request
from features.settings import SplitSettings
from features.state.histories import Histories, HistoryBuffer
from neural.cross_encoder import CrossEncoder
from neural.retrieval import find_states
from neural.settings import TowerSettings
from neural.train import Trainer, all_vectors, fit
from neural.two_tower import TwoTower
from ranker.config import load_config
from ranker.training.prepared import prepare

NAN = float("nan")
ALL = ["surface", "hour", "weekday", "device", "battery"]
SETTINGS: dict[str, Any] = {**SMALL_TOWERS, "history": 200, "context": ALL, "learning_rate": 2e-2}
ZONE = "Asia/Kathmandu"


class TestTowersOfContext(PluginContract):
    exact = False

    def make(self) -> FeaturePlugin:
        return TwoTower(**SMALL_TOWERS, context=["surface", "hour", "weekday"], retrieval_epochs=0)


@pytest.fixture(scope="module")
def spoken() -> World:
    """Of each list a device (never `tv`) and a battery, some unknown."""
    world = make_world(2, surfaces=("feed", "search"))
    contexts = (Attribute("device", "categorical", values=("phone", "tv", "web")), Attribute("battery", "numeric"))
    rng, log = np.random.default_rng(0), world.log
    _, place = np.unique(np.stack([log.user, log.ts // HOUR]), axis=1, return_inverse=True)
    each = np.stack([rng.choice([0, 2, NAN], place.max() + 1), rng.random(place.max() + 1)], axis=1)
    each[rng.random(len(each)) < 0.2, 1] = NAN
    said = each.astype(np.float32)[place.ravel()]
    return world._replace(log=replace(log, context=said), catalog=replace(world.catalog, contexts=contexts))


@pytest.fixture(scope="module")
def data(spoken: World) -> FitData:
    return replace(fit_data(spoken, make_split(SplitSettings(), spoken.log, "UTC")), zone=ZONE)


@pytest.fixture(scope="module")
def fitted(data: FitData) -> TwoTower:
    plugin = TwoTower(**SETTINGS)
    plugin.fit(data)
    return plugin


def asked(row: tuple[float, float], as_of: int, surface: int = 0, user: int = 3) -> Requests:
    return one_request(user, as_of, surface, np.arange(9, dtype=np.int32), np.array([row], np.float32))


def test_what_is_served_is_what_was_trained(data: FitData, spoken: World, fitted: TwoTower) -> None:
    settings = TowerSettings(**SETTINGS)
    trained = fit(data, settings)
    trainer = Trainer(trained.inputs, settings, data.seed)
    trainer.model = trained.model.eval()
    r, inputs = data.groups.requests, trained.inputs
    h = Histories.build(spoken.log, spoken.catalog.n_users)
    assert inputs.spec.context_sizes == (3, 25, 8, 3, 17)
    assert inputs.spec.code_sizes[-4:] == (25, 8, 3, 17)
    served, queries = fitted.values(r, h)[:, 0], fitted.queries(r, h)
    check_served_as_trained(trainer, served)
    alone = np.concatenate([fitted.queries(r.slice(k, k + 1), h) for k in range(len(r))])
    np.testing.assert_allclose(alone, queries, rtol=1e-4, atol=1e-5)


def test_an_event_has_the_context_of_its_request(data: FitData) -> None:
    """In pre-training and for the head that retrieves, row for row of the log."""
    settings = TowerSettings(**{**SETTINGS, "pretrain_epochs": 0, "finetune_epochs": 0})
    trained = fit(data, settings)
    inputs, log = trained.inputs, data.log
    order = np.argsort(log.user, kind="stable")
    want = inputs.spec.context_codes(log.surface[order], log.ts[order], log.context[order])
    assert len(np.unique(want[:, 3])) == 3
    with torch.no_grad():
        found = find_states(
            trained.model, inputs, all_vectors(trained.model.item, inputs.items), inputs.pretrain.events
        )
    np.testing.assert_array_equal(found.context.numpy(), want[found.row])


def test_a_kept_state_serves_any_context_and_each_differs(fitted: TwoTower, spoken: World) -> None:
    h, runtime, calls = Histories.build(spoken.log, spoken.catalog.n_users), fitted.runtime, []
    counted = SimpleNamespace(run=lambda *given: calls.append(1) or runtime.trunk.run(*given))
    own = type(runtime)(counted, runtime.heads, runtime.spec, runtime.vectors, runtime.expected, runtime.lag)
    end = int(spoken.log.ts[-1]) + HOUR
    plain = asked((0, 0.5), end)
    others = {
        "device": asked((2, 0.5), end), "battery": asked((0, 0.01), end), "surface": asked((0, 0.5), end, 1),
        "hour": asked((0, 0.5), end + HOUR), "weekday": asked((0, 0.5), end + 24 * HOUR),
        "unknown": asked((NAN, NAN), end),
    }  # fmt: skip
    first = own.user_vectors(plain, h).copy()
    for name, request in others.items():
        vector = own.user_vectors(request, h)
        assert not np.array_equal(vector, first), name
        np.testing.assert_array_equal(own.user_vectors(request, h), vector)  # the kept one
    assert len(calls) == 1
    np.testing.assert_array_equal(own.user_vectors(plain, h), first)


def test_what_was_not_met_or_not_said_is_unknown(fitted: TwoTower, spoken: World, tmp_path: Path) -> None:
    h, end = Histories.build(spoken.log, spoken.catalog.n_users), int(spoken.log.ts[-1]) + HOUR
    unknown = fitted.values(asked((NAN, NAN), end), h)
    for row in ((1, NAN), (77, NAN), (NAN, np.inf)):  # `tv` was never seen, 77 came after the fit
        np.testing.assert_array_equal(fitted.values(asked(row, end), h), unknown)
    nothing = replace(asked((0, 0), end), context=NO_CONTEXT)
    np.testing.assert_array_equal(fitted.values(nothing, h), unknown)
    assert fitted.contexts == ("device",)
    fitted.save(tmp_path)
    loaded = TwoTower.load(tmp_path)
    assert loaded.runtime.spec == fitted.runtime.spec
    one = asked((2, 0.3), end)
    np.testing.assert_array_equal(loaded.values(one, h), fitted.values(one, h))


def with_said(log: EventLog, row: int, said: tuple[float, float]) -> EventLog:
    context = log.context.copy()
    context[row] = said
    return replace(log, context=context)


def test_of_past_events_what_their_requests_said_is_read(fitted: TwoTower, spoken: World) -> None:
    log, own = spoken.log, np.flatnonzero(spoken.log.user == 3)
    request = asked((0, 0.5), int(log.ts[own[-1]]))  # the last event, which is of that time, is not seen

    def values(row: int, said: tuple[float, float]) -> Any:
        return fitted.values(request, Histories.build(with_said(log, row, said), spoken.catalog.n_users))

    plain, unknown = fitted.values(request, Histories.build(log, spoken.catalog.n_users)), values(own[-2], (NAN, NAN))
    np.testing.assert_array_equal(values(own[-1], (2, 0.9)), plain)
    np.testing.assert_array_equal(values(own[-2], (1, np.inf)), unknown)  # `tv` was never seen
    for said in ((0, NAN), (2, NAN), (NAN, 0.01)):
        assert not np.array_equal(values(own[-2], said), unknown), said


def test_live_events_are_read_as_those_of_the_log(fitted: TwoTower, spoken: World) -> None:
    log, end = spoken.log, int(spoken.log.ts[-1]) + HOUR
    buffer = HistoryBuffer(Histories.build(log.until(int(log.ts[len(log) // 2])), spoken.catalog.n_users))
    whole = Histories.build(log, spoken.catalog.n_users)
    requests = [asked((0, 0.5), end, user=user) for user in range(5)]
    earlier = [fitted.values(request, buffer.histories) for request in requests]  # these states are kept
    live = buffer.extended(log.between(int(log.ts[len(log) // 2]), end))
    for request, before in zip(requests, earlier, strict=True):
        now = fitted.values(request, live)
        np.testing.assert_allclose(now, fitted.values(request, whole), rtol=1e-4, atol=1e-5)
        assert not np.allclose(now, before, rtol=1e-4, atol=1e-5)


def test_no_context_at_all_and_the_cross_encoders(data: FitData, spoken: World) -> None:
    h, end = Histories.build(spoken.log, spoken.catalog.n_users), int(spoken.log.ts[-1]) + HOUR
    short = {**SMALL_NETWORK, "pretrain_epochs": 1, "finetune_epochs": 1, "learning_rate": 2e-2}
    none = TwoTower(**short, teachers=0, context=[], retrieval_epochs=0)
    cross = CrossEncoder(**short, context=ALL)
    for plugin in (none, cross):
        plugin.fit(data)
    one, others = asked((0, 0.5), end), [asked((2, 0.5), end), asked((0, 0.5), end, 1), asked((0, 0.5), end + HOUR)]
    for other in others:
        np.testing.assert_array_equal(none.values(other, h), none.values(one, h))
        assert not np.array_equal(cross.values(other, h), cross.values(one, h))
    r = data.groups.requests.slice(0, 20)
    alone = np.concatenate([cross.values(r.slice(k, k + 1), h) for k in range(20)])
    np.testing.assert_allclose(alone, cross.values(r, h), rtol=1e-3, atol=1e-4)


def test_a_fit_is_handed_the_context_of_its_events(tmp_path: Path) -> None:
    request = "[events.context]\nhand = \"CASE WHEN user_id % 3 > 0 THEN 'hand ' || user_id % 2 END\"\n"
    prepared = prepare(load_config(write_world(tmp_path, request=request)))
    data = prepared.fit_data(0)
    assert data.log.context.shape == (len(data.log), 1)
    user = prepared.catalog.user_ids[data.log.user]
    values = prepared.catalog.contexts[0].values
    want = [values.index(f"hand {u % 2}") if u % 3 > 0 else NAN for u in user.tolist()]
    np.testing.assert_array_equal(data.log.context[:, 0], np.array(want, np.float32))
    assert duckdb.sql(f"SELECT count(*) FROM '{tmp_path}/log.parquet'").fetchall()[0][0] > len(data.log)
