"""The plugin: its contract, its columns, lags and zones; what is served is what was trained."""

import json
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from contracts import RetrievalContract, check_served_as_trained, check_serves_without, fit_data
from logs import permuted
from world import SMALL_TOWERS, TOML, World, make_world

from features.errors import PairliftError
from features.pairing.groups import make_groups
from features.pairing.split import make_split
from features.plugin import FeaturePlugin, lag_of
from features.schema import DAY, Requests, one_request
from features.settings import PairingSettings, SplitSettings
from features.state.histories import Histories, HistoryBuffer
from features.state.kept import KeptStates
from features.state.lag import Lag
from features.state.refreshed import Ahead
from neural.histories import TokenSpec
from neural.model import Argus, Shape
from neural.settings import TowerSettings
from neural.train import Trainer, fit
from neural.two_tower import TwoTower
from neural.vocabulary.entities import Layout, encode, table_rows
from ranker.config import load_config
from ranker.export.vectors import Wanted, write_vectors
from ranker.training.prepared import prepare as prepare_log


class TestTwoTower(RetrievalContract):
    exact = False

    def make(self) -> FeaturePlugin:
        return TwoTower(**SMALL_TOWERS)


@pytest.fixture(scope="module")
def fitted(world: World) -> tuple[TwoTower, Requests, Histories]:
    split = make_split(SplitSettings(), world.log, "UTC")
    plugin = TwoTower(**SMALL_TOWERS, columns=["dot", "user_vector", "item_vector"], lag="4d")
    plugin.fit(fit_data(world, split))
    requests = make_groups(world.log, PairingSettings(), split).of("test").requests.slice(0, 60)
    return plugin, requests, Histories.build(world.log, world.catalog.n_users)


def test_all_columns_stand_in_their_order(fitted: Any) -> None:
    plugin, requests, histories = fitted
    values = plugin.values(requests, histories)
    assert plugin.columns[:2] == ("dot", "user_vector_0")
    assert plugin.columns[17] == "item_vector_0"
    np.testing.assert_allclose(values[:, 0], (values[:, 1:17] * values[:, 17:]).sum(1), rtol=1e-4, atol=1e-5)


def test_what_takes_long_behind_the_epochs_has_a_bar(
    fitted: Any, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plugin, requests, histories = fitted
    monkeypatch.setattr("features.progress.EVERY", 0)
    caplog.set_level("INFO")
    plugin.values(requests, histories)
    assert "user vectors" not in caplog.text
    monkeypatch.setattr("neural.runtime.MANY", 10)
    plugin.values(requests, histories)
    assert "user vectors: 100 %" in caplog.text
    TwoTower(**SMALL_TOWERS).fit(fit_data(world, make_split(SplitSettings(), world.log, "UTC")))
    assert re.search(r"pre-train.*: .*fine-tune.*: .*states: .*retrieve.*: ", caplog.text, re.DOTALL)


def test_a_lag_hides_the_latest_events(fitted: Any) -> None:
    plugin, requests, histories = fitted
    later = Requests(
        user=requests.user,
        as_of=requests.as_of - 4 * DAY,
        surface=requests.surface,
        offsets=requests.offsets,
        item=requests.item,
    )
    plain = TwoTower(**{**plugin.settings.model_dump(), "lag": 0})
    r = plugin.runtime
    plain._runtime = type(r)(r.trunk, r.heads, r.spec, r.vectors, r.expected, Lag(0))
    np.testing.assert_array_equal(plugin.values(requests, histories), plain.values(later, histories))
    assert not np.array_equal(plugin.values(requests, histories), plain.values(requests, histories))
    assert lag_of(plugin) == plugin.runtime.lag == Lag(4 * DAY)


def test_what_is_served_is_what_was_trained(world: World) -> None:
    """A token means the same: the served product of the held groups is that of one training pass over them."""
    settings = {**SMALL_TOWERS, "history": 200}
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    plugin, trained = TwoTower(**settings), fit(data, TowerSettings(**settings))
    plugin.fit(data)
    trainer = Trainer(trained.inputs, TowerSettings(**settings), data.seed)
    trainer.model = trained.model.eval()
    served = plugin.values(data.groups.requests, Histories.build(world.log, world.catalog.n_users))[:, 0]
    check_served_as_trained(trainer, served)


def test_an_event_after_the_fit_is_expected_to_be_as_its_whole_period(fitted: Any, world: World) -> None:
    """A server knows no more of an item than the fit did: other users' later events do not change a token."""
    plugin, requests, _ = fitted
    t1, log, user = make_split(SplitSettings(), world.log, "UTC").t1, world.log, int(requests.user[-1])
    later = np.flatnonzero((log.ts >= t1) & (log.user != user))
    one = one_request(user, int(requests.as_of[-1]), 0, np.arange(9, dtype=np.int32))
    found = [plugin.values(one, Histories.build(x, world.catalog.n_users)) for x in (log, permuted(log, later))]
    np.testing.assert_array_equal(*found)
    expected, item = plugin.runtime.expected, np.arange(80)
    at_t1, at_the_end = (expected.before(item, np.full(80, ts)) for ts in (t1, int(log.ts[-1]) + DAY))
    np.testing.assert_array_equal(at_t1, at_the_end)


def test_the_zone_of_a_daily_lag_is_saved(world: World, tmp_path: Path) -> None:
    """At 02:00 in New York it is 06:00 or 07:00 UTC: the last 00:00 there was 04:00 or 05:00 UTC."""
    split = make_split(SplitSettings(), world.log, "UTC")
    plugin = TwoTower(**{**SMALL_TOWERS, "pretrain_epochs": 1, "finetune_epochs": 0}, lag="daily")
    plugin.fit(replace(fit_data(world, split), zone="America/New_York"))
    (tmp_path / "first").mkdir()
    plugin.save(tmp_path / "first")
    loaded = TwoTower.load(tmp_path / "first")
    moved = loaded.recoded(np.arange(80, dtype=np.int32), np.arange(40, dtype=np.int32))
    (tmp_path / "second").mkdir()
    moved.save(tmp_path / "second")
    histories = Histories.build(world.log, world.catalog.n_users)
    r = make_groups(world.log, PairingSettings(), split).of("test").requests.slice(0, 40)
    midnight = np.array([at_midnight(int(ts), "America/New_York") for ts in r.as_of])
    assert (midnight % DAY > 0).all()
    plain = TwoTower(**{**plugin.settings.model_dump(), "lag": 0})
    p = plugin.runtime
    plain._runtime = type(p)(p.trunk, p.heads, p.spec, p.vectors, p.expected, Lag(0))
    expected = plain.values(replace(r, as_of=midnight), histories)
    for known in (plugin, loaded, moved, TwoTower.load(tmp_path / "second")):
        np.testing.assert_array_equal(known.values(r, histories), expected)
        assert known.zone == "America/New_York"
        assert lag_of(known, known.zone) == known.runtime.lag  # an uplift report's ages are of what is served


def test_the_zone_of_the_toml_is_handed_to_a_fit(world: World, tmp_path: Path) -> None:
    log = world.log
    columns = {"user_id": log.user, "item_id": log.item, "ts": log.ts.view("M8[us]"), "play": log.feedback[:, 0]}
    pq.write_table(pa.table(columns), tmp_path / "events.parquet")
    (tmp_path / "pairlift.toml").write_text(f'{TOML}\n[time]\nzone = "Asia/Tokyo"\n')
    assert prepare_log(load_config(tmp_path / "pairlift.toml")).fit_data(0).zone == "Asia/Tokyo"


def at_midnight(ts: int, zone: str) -> int:
    local = datetime.fromtimestamp(ts / 1e6, ZoneInfo(zone))
    return int(datetime(local.year, local.month, local.day, tzinfo=ZoneInfo(zone)).timestamp()) * 1_000_000


def test_towers_of_an_older_format_are_refused(fitted: Any, tmp_path: Path) -> None:
    plugin, _, _ = fitted
    plugin.save(tmp_path)
    about = json.loads((tmp_path / "two_tower.json").read_text())
    del about["format"]
    (tmp_path / "two_tower.json").write_text(json.dumps(about))
    with pytest.raises(PairliftError, match="format 5 were expected, found 1; train anew"):
        TwoTower.load(tmp_path)


def test_a_history_over_the_length_is_cut_to_the_latest(fitted: Any) -> None:
    plugin, requests, histories = fitted
    last = int(requests.as_of.max()) + 10 * DAY
    one = one_request(3, last, 0, np.arange(5, dtype=np.int32))
    stop = histories.offsets[4]
    keep = slice(stop - plugin.settings.history - 1, stop)  # one more, for the gap of the first
    offsets = np.zeros(len(histories.offsets), np.int64)
    offsets[4:] = plugin.settings.history + 1
    names = ("item", "ts", "grade", "surface", "organic", "feedback")
    short = Histories(offsets, **{name: getattr(histories, name)[keep] for name in names})
    np.testing.assert_array_equal(plugin.values(one, short), plugin.values(one, histories))


def test_the_surface_is_context(fitted: Any) -> None:
    plugin, requests, histories = fitted
    item = np.arange(9, dtype=np.int32)
    asked = [plugin.values(one_request(2, int(requests.as_of[0]), s, item), histories) for s in (-1, 0, 1, 77)]
    assert not np.array_equal(asked[1], asked[2])
    np.testing.assert_array_equal(asked[0], asked[3])  # a new surface is an unknown one


def test_cold_users_and_items_have_no_value(fitted: Any, world: World) -> None:
    plugin, requests, histories = fitted
    as_of = int(requests.as_of[0])
    items = np.array([-1, 0, world.catalog.n_items], np.int32)
    dot = plugin.values(one_request(0, as_of, 0, items), histories)[:, 0]
    assert np.isnan(dot).tolist() == [True, False, True]
    for user in (-1, world.catalog.n_users + 5):  # no event, and no user attributes in this world
        assert np.isnan(plugin.values(one_request(user, as_of, 0, items), histories)[:, 0]).all()
    assert np.isnan(plugin.user_vectors(one_request(0, 0, 0, items), histories)).all()


def test_an_unseen_item_has_the_vector_of_its_attributes() -> None:
    world = make_world(5)  # in which an unseen item shares no row of the table with a seen one's attributes
    attributes, n = world.catalog.item_attributes, world.catalog.n_items
    count = np.ones(n, np.int64)
    count[[4, 9]] = 0
    items = encode(count, attributes, table_rows(200), 20.0, salt=1)
    assert (items.weight[[4, 9, n], 0] == 0).all()
    torch.manual_seed(0)
    spec = TokenSpec(n_items=n, n_grades=3, n_surfaces=2, signal_mean=(1.0, 0.5), signal_scale=(1.0, 1.0), length=9)
    sizes = {"width": 16, "layers": 2, "heads": 2, "rows": table_rows(200)}
    model = Argus(Shape(**sizes, dropout=0.0, tokens=spec, item=items.layout, user=Layout((), 2))).eval()

    def vectors() -> np.ndarray[Any, Any]:
        with torch.no_grad():
            out = model.item(*(torch.from_numpy(x) for x in (items.slots, items.weight, items.numbers)))
        return np.asarray(out.numpy())

    before = vectors()
    with torch.no_grad():  # whatever the id's own rows hold
        model.table.weight[np.unique(items.slots[[4, 9], 0])] += 5.0
    seen = np.flatnonzero(~np.isin(items.slots[:, 1:], items.slots[[4, 9], 0]).any(axis=(1, 2)))
    unseen = np.intersect1d([4, 9, n], seen)
    assert len(unseen)
    np.testing.assert_array_equal(vectors()[unseen], before[unseen])


def test_loading_and_serving_never_import_torch(fitted: Any, tmp_path: Path) -> None:
    plugin, requests, histories = fitted
    check_serves_without({"torch"}, plugin, histories, int(requests.as_of[0]), tmp_path)


def test_a_kept_state_gives_the_same_to_the_bit(fitted: Any, world: World) -> None:
    """Over recorded events in any order, early and late as_of, known and cold users, every surface."""
    kept, _, histories = fitted
    plain, r = TwoTower(**kept.settings.model_dump()), kept.runtime
    plain._runtime = type(r)(r.trunk, r.heads, r.spec, r.vectors, r.expected, r.lag)
    plain._runtime.kept = KeptStates(0)
    rng, end, items = np.random.default_rng(0), int(world.log.ts[-1]), np.arange(30, dtype=np.int32)
    buffer = HistoryBuffer(histories)
    states = [histories, buffer.histories]
    for step in range(12):
        late = world.log.select(np.sort(rng.choice(len(world.log), 40, replace=False)))
        ts = np.sort(late.ts + rng.integers(0, 40 * DAY, 40))
        states.append(buffer.extended(replace(late, ts=ts, user=rng.integers(0, 45, 40).astype(np.int32))))
        if step == 6:
            buffer = HistoryBuffer(states[-1])  # other arrays, with the same rows elsewhere
        for _ in range(60):
            known = states[-1] if rng.random() < 0.8 else states[rng.integers(len(states))]
            user = int(rng.integers(-1, 8 if rng.random() < 0.7 else 50))
            as_of = end + int(rng.choice([-20, -1, 0, 3, 50])) * DAY
            one = one_request(user, as_of, int(rng.integers(-1, 3)), items)
            assert kept.values(one, known).tobytes() == plain.values(one, known).tobytes()
            assert kept.queries(one, known).tobytes() == plain.queries(one, known).tobytes()
    assert 0 < len(kept.runtime.kept) < 400
    assert len(plain.runtime.kept) == 0


def test_a_users_row_is_the_unknown_one_outside_the_fit(fitted: Any) -> None:
    r = fitted[0].runtime
    n, unknown = len(r.vectors.user_row), len(r.vectors.users) - 1
    user = np.array([-1, *range(n), n, 2**31 - 1], np.int32)
    assert r.vectors.user_tokens(user).tolist() == [unknown, *r.vectors.user_row.tolist(), unknown, unknown]
    assert r.vectors.user_tokens(user[:0]).tolist() == []


def test_a_head_runs_once_for_a_surface_until_there_are_new_events(fitted: Any, world: World) -> None:
    plugin, _, histories = fitted
    runtime, calls = plugin.runtime, {"user": 0, "query": 0}

    def counted(name: str) -> Any:
        def run(*given: Any) -> Any:
            calls[name] += 1
            return getattr(runtime.heads, name).run(*given)

        return SimpleNamespace(run=run)

    heads = type(runtime.heads)(counted("user"), counted("query"))
    own = type(runtime)(runtime.trunk, heads, runtime.spec, runtime.vectors, runtime.expected, runtime.lag)
    buffer, end, items = HistoryBuffer(histories), int(world.log.ts[-1]) + 9 * DAY, np.arange(9, dtype=np.int32)
    for surface in (0, 1, 0, 1, 1):
        one = one_request(3, end, surface, items)
        queries, users = own.queries(one, histories), own.user_vectors(one, histories)
        assert not np.array_equal(users, queries)
    assert calls == {"user": 2, "query": 2}
    own.user_vectors(one_request(3, end, 0, items), buffer.extended(world.log.select(world.log.user == 3)))
    assert calls == {"user": 3, "query": 2}


def test_a_state_is_computed_once_until_there_are_new_events(fitted: Any, world: World) -> None:
    plugin, _, histories = fitted
    runtime, calls = plugin.runtime, []
    counted = SimpleNamespace(run=lambda *given: calls.append(1) or runtime.trunk.run(*given))
    own = type(runtime)(counted, runtime.heads, runtime.spec, runtime.vectors, runtime.expected, runtime.lag)
    buffer, end, items = HistoryBuffer(histories), int(world.log.ts[-1]) + 9 * DAY, np.arange(9, dtype=np.int32)
    for surface in (0, 1, 0):
        for ask in (own.user_vectors, own.queries):
            ask(one_request(3, end, surface, items), buffer.histories)
    assert len(calls) == 1
    others = world.log.select(world.log.user != 3)
    own.queries(one_request(3, end, 0, items), buffer.extended(others.select(slice(0, 50))))
    assert len(calls) == 1
    mine = world.log.select(world.log.user == 3)
    own.queries(one_request(3, end, 0, items), buffer.extended(mine.select(slice(0, 2))))
    assert len(calls) == 2


def test_a_refreshed_state_answers_until_its_lag_is_over(fitted: Any, world: World) -> None:
    """The trunk runs for nobody whose visible events are those of the refresh; the values are the same."""
    plugin, _, histories = fitted
    r, calls = plugin.runtime, []
    counted = SimpleNamespace(run=lambda *given: calls.append(1) or r.trunk.run(*given))
    own, fresh = (TwoTower(**plugin.settings.model_dump()) for _ in range(2))
    own._runtime = type(r)(counted, r.heads, r.spec, r.vectors, r.expected, r.lag)
    fresh._runtime = type(r)(r.trunk, r.heads, r.spec, r.vectors, r.expected, r.lag)
    buffer, end, items = HistoryBuffer(histories), int(world.log.ts[-1]), np.arange(9, dtype=np.int32)
    made = own.refresh(Ahead(lambda: buffer.histories, end, 1000, 2**20, lambda *_: None))
    cut = end - 4 * DAY
    assert len(made) == made.computed == len(np.unique(world.log.user[world.log.ts < cut]))
    del calls[:]

    def ask(as_of: int) -> None:
        for user in range(20):
            one = one_request(user, as_of, user % 2, items)
            np.testing.assert_allclose(
                own.values(one, buffer.histories), fresh.values(one, buffer.histories), rtol=1e-4, atol=1e-5
            )

    ask(end)
    late = world.log.select(np.flatnonzero(world.log.user == 3)[:1])
    buffer.extended(replace(late, ts=np.array([end])))  # visible in four days
    ask(end)
    assert not calls
    buffer.extended(replace(late, ts=np.array([cut - DAY])))
    ask(end)
    assert len(calls) == 1
    ask(end + 9 * DAY)
    assert len(calls) > 1
    again = own.refresh(Ahead(lambda: buffer.histories, end, 1000, 2**20, lambda *_: None))
    assert (len(again), again.computed) == (len(made), 1)


def test_vectors_in_a_file_are_those_of_the_dot(fitted: Any, world: World, tmp_path: Path) -> None:
    plugin, requests, histories = fitted
    state = SimpleNamespace(catalog=world.catalog, histories=histories)
    config = SimpleNamespace(plugins={"two_tower": SimpleNamespace(path="neural.two_tower:TwoTower")})
    bundle = SimpleNamespace(version="v", plugins={"two_tower": plugin}, config=config, state=state)
    one = requests.slice(7, 8)
    surface = world.catalog.surfaces[one.surface[0]]
    write_vectors(bundle, tmp_path / "out", Wanted(as_of=int(one.as_of[0]), surface=surface))  # type: ignore[arg-type]
    users, items = (pq.read_table(tmp_path / "out" / f"{side}.parquet") for side in ("users", "items"))
    assert users.schema.metadata[b"pairlift.lag"] == b"4d"
    user = users["vector"].to_pylist()[users["user_id"].to_pylist().index(world.catalog.user_ids[one.user[0]])]
    by_id = dict(zip(items["item_id"].to_pylist(), items["vector"].to_pylist(), strict=True))
    found = [np.dot(user, by_id[world.catalog.item_ids[item]]) for item in one.item]
    np.testing.assert_allclose(found, plugin.values(one, histories)[:, 0], rtol=1e-4, atol=1e-5)
