"""The towers and their plugin: torch and ONNX Runtime agree, one pass and one pass per group, a known answer."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from contracts import VectorContract, fit_data
from world import TOML, World, make_world

from features.errors import PairliftError
from features.pairing.groups import make_groups
from features.pairing.pairs import make_pairs, weight_table
from features.pairing.split import make_split
from features.plugin import FeaturePlugin, FitData
from features.schema import DAY, HOUR, I64, EventLog, Requests, one_request
from features.settings import PairingSettings, SplitSettings
from features.state.histories import Histories
from neural.batches import TargetMask, TowerData
from neural.entities import Layout, encode, table_rows
from neural.export import check_parity, export_towers, random_user_batch
from neural.histories import DAILY, Lag, TokenSpec, make_tokens, visible
from neural.model import Argus, Shape
from neural.runtime import USER_INPUTS, USER_TOWER
from neural.settings import TowerSettings
from neural.train import NO_NEGATIVES, Trainer, fit
from neural.two_tower import TwoTower
from ranker.config import load_config
from ranker.training.prepare import prepare as prepare_log

SMALL: dict[str, Any] = {
    "width": 16, "heads": 2, "layers": 2, "history": 12, "pretrain_epochs": 2, "finetune_epochs": 1, "threads": 1,
    "batch_tokens": 512, "negatives": 32,
}  # fmt: skip


class TestTwoTower(VectorContract):
    exact = False

    def make(self) -> FeaturePlugin:
        return TwoTower(**SMALL)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(5, surfaces=("feed", "search"))


@pytest.fixture(scope="module")
def fitted(world: World) -> tuple[TwoTower, Requests, Histories]:
    split = make_split(SplitSettings(), world.log, "UTC")
    plugin = TwoTower(**SMALL, columns=["dot", "user_vector", "item_vector"], lag="4d")
    plugin.fit(fit_data(world, split))
    requests = make_groups(world.log, PairingSettings(), split).of("test").requests.slice(0, 60)
    return plugin, requests, Histories.build(world.log, world.catalog.n_users)


# -- Torch and ONNX Runtime -----------------------------------------------------------------------------------


def random_model(length: int = 9) -> tuple[Argus, TokenSpec]:
    spec = TokenSpec(
        n_items=30, n_grades=3, n_surfaces=2, signal_mean=(1.0, 0.5), signal_scale=(1.0, 1.0), length=length
    )
    torch.manual_seed(0)
    item, user = Layout((1, 1, 3), 4), Layout((), 2)
    shape = Shape(width=16, layers=2, heads=2, dropout=0.1, rows=64, tokens=spec, item=item, user=user)
    model = Argus(shape).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model, spec


@pytest.mark.parametrize("length", [1, 9])
def test_export_is_checked_and_a_difference_raises(length: int, tmp_path: Path) -> None:
    model, spec = random_model(length)
    export_towers(model, 64, spec, tmp_path)
    rng = np.random.default_rng(1)
    shapes = [(b, t) for b in (1, 4) for t in {1, length}]
    batches = [random_user_batch(spec, 16, b, t, rng) for b, t in shapes]
    check_parity(model.user, tmp_path / USER_TOWER, USER_INPUTS, batches)
    with torch.no_grad():
        model.user.out.bias += 0.01
    with pytest.raises(PairliftError, match="differs from torch"):
        check_parity(model.user, tmp_path / USER_TOWER, USER_INPUTS, batches)


def test_the_last_state_is_that_of_all_states() -> None:
    model, spec = random_model()
    rng = np.random.default_rng(2)
    item, codes, signals, surprise, user, length, surface = random_user_batch(spec, 16, 10, 9, rng)
    with torch.no_grad():
        states, taste = model.user.states(item, codes, signals, surprise, user)
        at = torch.arange(10), length
        expected = model.user.vectors(states[at], taste[at], surface)
        found = model.user(item, codes, signals, surprise, user, length, surface)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_state_depends_on_nothing_later() -> None:
    model, spec = random_model()
    inputs = list(random_user_batch(spec, 16, 1, 9, np.random.default_rng(3)))[:5]
    with torch.no_grad():
        before = [x[:, :5].clone() for x in model.user.states(*inputs)]
        for k in range(4):
            inputs[k][:, 4:] = 1
        after = [x[:, :5] for x in model.user.states(*inputs)]
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)


# -- Training -------------------------------------------------------------------------------------------------


def all_groups(inputs: TowerData) -> TargetMask:
    return TargetMask(np.zeros_like(inputs.pretrain.events), np.ones_like(inputs.finetune.groups))


@pytest.mark.parametrize(("lag", "history"), [(0, 200), (0, 8), (6 * HOUR, 200), (DAILY, 200)])
def test_one_pass_gives_the_states_of_one_pass_per_group(world: World, lag: int | str, history: int) -> None:
    """With a history longer than a window, a state has seen at least half a window, and is that of these events."""
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    settings = TowerSettings.model_construct(**{**TowerSettings(**SMALL).model_dump(), "lag": lag, "history": history})
    inputs = TowerData.build(data, settings)
    torch.manual_seed(0)
    trainer = Trainer(inputs, settings, 0)
    trainer.model.eval()
    everything, batches, r = all_groups(inputs), inputs.batches, data.groups.requests
    checked, cut = 0, 0
    with torch.no_grad():
        for chosen in batches.plan(everything, 600):
            batch = batches.make(chosen, everything)
            found = trainer.scores(batch, trainer.encode(batch, NO_NEGATIVES))
            start, stop = visible(batches.histories, r.user, r.as_of, Lag(lag), 10_000)
            owner = r.row_request()[batch.groups.row]
            for g in np.unique(owner)[::5]:
                state = batch.groups.state[batch.groups.group[owner == g][0]]
                one = np.array([stop[g]])
                tokens = make_tokens(batches.histories, r.user[g : g + 1], one - state, one, inputs.spec)
                assert min(stop[g] - start[g], history - history // 2 + 1) <= state <= min(stop[g] - start[g], history)
                items = trainer.item_vectors(np.arange(inputs.spec.n_items + 1))
                vector = trainer.model.user(
                    items[torch.from_numpy(tokens.item)],
                    torch.from_numpy(tokens.codes),
                    torch.from_numpy(tokens.signals),
                    torch.from_numpy(inputs.expected.surprise(tokens)),
                    trainer.model.user_token(*(torch.from_numpy(x[r.user[g : g + 1]]) for x in (
                        inputs.users.slots, inputs.users.weight, inputs.users.numbers))),
                    torch.from_numpy(tokens.length),
                    torch.from_numpy(batches.surface[g : g + 1]),
                )  # fmt: skip
                rows = np.arange(r.offsets[g], r.offsets[g + 1])
                dot = items[torch.from_numpy(batches.item[rows])] @ vector[0]
                expected = trainer.model.residual(dot, torch.from_numpy(batches.impression_offset[rows]))
                torch.testing.assert_close(found[owner == g], expected, rtol=1e-3, atol=1e-4)
                checked, cut = checked + 1, cut + int(state < stop[g] - start[g])
    assert checked > 20
    assert (cut > 20) == (history < 200)


def test_pairs_of_a_batch_are_the_pairs_of_the_log(world: World) -> None:
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    inputs = TowerData.build(data, TowerSettings(**SMALL))
    everything = all_groups(inputs)
    found = []
    for chosen in inputs.batches.plan(everything, 300, np.random.default_rng(0)):
        batch = inputs.batches.make(chosen, everything).groups
        found += list(zip(batch.row[batch.winner], batch.row[batch.loser], batch.weight, strict=True))
        assert (batch.group[batch.winner] == batch.group[batch.loser]).all()
    assert sorted(found) == sorted(zip(data.pairs.winner, data.pairs.loser, data.pairs.weight, strict=True))


def test_nothing_of_the_validation_slice_is_a_target(world: World) -> None:
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    inputs = TowerData.build(data, TowerSettings(**SMALL))
    first = data.groups.requests.as_of[data.groups.validation].min()
    assert (inputs.pretrain.events == (inputs.batches.histories.ts < first)).all()
    assert not (inputs.finetune.groups & data.groups.validation).any()
    assert not (inputs.held.groups & ~data.groups.validation).any()
    assert inputs.held.groups.sum() > 0


def permuted(log: EventLog, rows: I64) -> EventLog:
    """Return the log with the labels (grade and feedback) of some events handed to others of them."""
    others = np.random.default_rng(0).permutation(rows)
    grade, feedback = log.grade.copy(), log.feedback.copy()
    grade[rows], feedback[rows] = log.grade[others], log.feedback[others]
    assert (grade != log.grade).any()
    return replace(log, grade=grade, feedback=feedback)


def first_held(data: FitData) -> int:
    return int(data.groups.requests.as_of[data.groups.validation].min())


def fed(inputs: TowerData, user: int, ts: int, offset: Any) -> list[Any]:
    """Return what the model reads for a target at a time: the tokens before it, their surprise, and the offset."""
    one, at, histories = np.array([user], np.int32), np.array([ts]), inputs.batches.histories
    tokens = make_tokens(histories, one, *visible(histories, one, at, Lag(0), 99), inputs.spec)
    surprise = inputs.expected.surprise(tokens)
    entities = (inputs.items.weight, inputs.items.numbers, inputs.users.weight, inputs.popularity)
    return [tokens.item, tokens.codes, tokens.signals, surprise, offset, *entities]


def test_a_target_is_fed_no_label_of_its_own_or_a_later_event(world: World) -> None:
    """An item is met again by many: what is expected of it must not tell how that ends, at the same instant either."""
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    data = replace(data, log=replace(data.log, ts=data.log.ts // DAY * DAY))  # days of equal times, each a tie
    before, r, boundary = TowerData.build(data, TowerSettings(**SMALL)), data.groups.requests, first_held(data)
    h = before.batches.histories
    user = np.repeat(np.arange(len(h.sizes)), h.sizes)
    for ts in np.unique(data.log.ts)[1:-3:4].tolist():
        later = np.flatnonzero((data.log.ts >= ts) & (data.log.ts < boundary))
        after = TowerData.build(replace(data, log=permuted(data.log, later)), TowerSettings(**SMALL))
        for row in np.flatnonzero(h.ts == ts)[::7].tolist():
            pair = [fed(inputs, user[row], ts, inputs.batches.event_offset[row]) for inputs in (before, after)]
            for a, b in zip(*pair, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)  # the scale is of the same labels, summed in another order
        rows = np.flatnonzero(r.as_of[r.row_request()] <= ts)
        np.testing.assert_allclose(
            before.batches.impression_offset[rows], after.batches.impression_offset[rows], atol=1e-5
        )


@pytest.mark.parametrize("phase", ["pretrain_epochs", "finetune_epochs"])
def test_labels_of_the_validation_slice_train_nothing(world: World, phase: str) -> None:
    """One epoch, so that they cannot choose one: the trained state is the same to the last bit."""
    settings = TowerSettings(**{**SMALL, "pretrain_epochs": 0, "finetune_epochs": 0, phase: 1})
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    held = np.flatnonzero(data.log.ts >= first_held(data))
    log = permuted(data.log, held)
    log.feedback[held] *= 3
    before, after = fit(data, settings), fit(replace(data, log=log), settings)
    assert before.inputs.spec == after.inputs.spec
    for name in ("weight", "numbers"):
        np.testing.assert_array_equal(getattr(before.inputs.items, name), getattr(after.inputs.items, name))
    start = Trainer(before.inputs, settings, 0).model.state_dict()
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, after.model.state_dict()[name]), name
    assert not torch.equal(before.model.state_dict()["user.out.weight"], start["user.out.weight"])


def test_items_of_the_validation_slice_alone_are_as_cold_ones(world: World) -> None:
    """Their ids were never trained, and an item is as often there as training saw it."""
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    inputs, first = TowerData.build(data, TowerSettings(**SMALL)), first_held(data)
    log = replace(data.log, item=np.where(data.log.ts >= first, 7, np.where(data.log.item == 7, 8, data.log.item)))
    moved = TowerData.build(replace(data, log=log), TowerSettings(**SMALL))
    assert (inputs.popularity == np.bincount(data.log.item[data.log.ts < first], minlength=80)).all()
    assert inputs.items.weight[7, 0] > 0 == moved.items.weight[7, 0] == moved.popularity[7]


# -- The same bits --------------------------------------------------------------------------------------------

#: width and threads at which torch shares its sums among threads
LARGE = {**SMALL, "width": 64, "history": 64, "batch_tokens": 4096, "negatives": 256, "threads": 2, "columns": ["dot"]}
DIGEST = f"""
import hashlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_neural_towers import *
print(digest(fitted_on(make_world(5, surfaces=("feed", "search")))))
"""


def fitted_on(world: World) -> tuple[Any, ...]:
    """Return the item vectors, user vectors and dots of a fit on two threads, and its epochs."""
    split = make_split(SplitSettings(), world.log, "UTC")
    plugin = TwoTower(**LARGE)
    plugin.fit(fit_data(world, split))
    requests = make_groups(world.log, PairingSettings(), split).of("test").requests
    histories = Histories.build(world.log, world.catalog.n_users)
    users, dots = plugin.user_vectors(requests, histories), plugin.values(requests, histories)
    return plugin.item_vectors, users, dots, plugin.report["epochs"]


def digest(found: tuple[Any, ...]) -> str:
    *arrays, epochs = found
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays) + json.dumps(epochs).encode()).hexdigest()


def test_two_fits_give_the_same_bits_in_one_process_and_in_two(world: World) -> None:
    found = digest(fitted_on(world))
    assert digest(fitted_on(world)) == found
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", DIGEST], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == found


def test_a_fit_leaves_torch_as_it_was(world: World) -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fit(fit_data(world, make_split(SplitSettings(), world.log, "UTC")), TowerSettings(**{**SMALL, "threads": 2}))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    assert torch.equal(torch.rand(3), expected)


def test_a_refit_on_a_log_that_ends_at_t1_gives_the_same(world: World) -> None:
    """Nothing that came later is handed to a fit, a surface that was new then neither."""
    split = make_split(SplitSettings(), world.log, "UTC")
    later = world.log.ts >= split.t1
    surface = np.where(later & (world.log.item % 3 == 0), 2, world.log.surface).astype(np.int16)
    catalog = replace(world.catalog, surfaces=("feed", "search", "watch"))
    whole = world._replace(log=replace(world.log, surface=surface), catalog=catalog)
    cut = world._replace(log=world.log.until(split.t1))
    a, b = (fit(fit_data(w, split), TowerSettings(**SMALL)) for w in (whole, cut))
    assert a.inputs.spec == b.inputs.spec
    for name, tensor in a.model.state_dict().items():
        assert torch.equal(tensor, b.model.state_dict()[name]), name


def test_the_answer_of_the_world_is_learnt() -> None:
    """Tastes are hidden: a user's own items are known from what the user did before, and from nothing else."""
    world = make_world(1, n_users=120, requests_per_user=20)
    split = make_split(SplitSettings(), world.log, "UTC")
    plugin = TwoTower(width=32, heads=2, pretrain_epochs=12, finetune_epochs=5, threads=1, history=64)
    plugin.fit(fit_data(world, split))
    groups = make_groups(world.log, PairingSettings(), split).of("test")
    pairs = make_pairs(groups, weight_table({}, world.grades, False))
    dot = plugin.values(groups.requests, Histories.build(world.log, world.catalog.n_users))[:, 0]
    best = world.affinity[groups.requests.user[groups.requests.row_request()], groups.requests.item]
    right = {
        name: float(((s[pairs.winner] > s[pairs.loser]) * pairs.weight).sum() / pairs.weight.sum())
        for name, s in (("dot", dot), ("best", best))
    }
    ties = float(((best[pairs.winner] == best[pairs.loser]) * pairs.weight).sum() / pairs.weight.sum())
    assert right["dot"] > 0.5 + 0.6 * (right["best"] + ties / 2 - 0.5), right


# -- The plugin -----------------------------------------------------------------------------------------------


def test_all_columns_stand_in_their_order(fitted: Any) -> None:
    plugin, requests, histories = fitted
    values = plugin.values(requests, histories)
    assert plugin.columns[:2] == ("dot", "user_vector_0")
    assert plugin.columns[17] == "item_vector_0"
    np.testing.assert_allclose(values[:, 0], (values[:, 1:17] * values[:, 17:]).sum(1), rtol=1e-4, atol=1e-5)


def test_a_lag_hides_the_latest_events(fitted: Any) -> None:
    plugin, requests, histories = fitted
    later = Requests(requests.user, requests.as_of - 4 * DAY, requests.surface, requests.offsets, requests.item)
    plain = TwoTower(**{**plugin.settings.model_dump(), "lag": 0})
    r = plugin.runtime
    plain._runtime = type(r)(r.session, r.spec, r.vectors, r.expected, Lag(0))
    np.testing.assert_array_equal(plugin.values(requests, histories), plain.values(later, histories))
    assert not np.array_equal(plugin.values(requests, histories), plain.values(requests, histories))


def test_what_is_served_is_what_was_trained(world: World) -> None:
    """A token means the same: the served product of the held groups is that of one training pass over them."""
    settings = {**SMALL, "history": 200}
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    plugin, trained = TwoTower(**settings), fit(data, TowerSettings(**settings))
    plugin.fit(data)
    trainer = Trainer(trained.inputs, TowerSettings(**settings), data.seed)
    trainer.model = trained.model.eval()
    r, inputs = data.groups.requests, trained.inputs
    served = plugin.values(r, Histories.build(world.log, world.catalog.n_users))[:, 0]
    checked = 0
    with torch.no_grad():
        for chosen in inputs.batches.plan(inputs.held, 600):
            batch = inputs.batches.make(chosen, inputs.held)
            score = trainer.scores(batch, trainer.encode(batch, NO_NEGATIVES)).numpy()
            known = float(trained.model.known) * batch.groups.offset
            np.testing.assert_allclose(served[batch.groups.row], score - known, rtol=1e-3, atol=1e-4)
            checked += len(batch.groups.row)
    assert checked > 100


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
    plugin = TwoTower(**{**SMALL, "pretrain_epochs": 1, "finetune_epochs": 0}, lag="daily")
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
    plain._runtime = type(p)(p.session, p.spec, p.vectors, p.expected, Lag(0))
    expected = plain.values(replace(r, as_of=midnight), histories)
    for known in (plugin, loaded, moved, TwoTower.load(tmp_path / "second")):
        np.testing.assert_array_equal(known.values(r, histories), expected)
        assert known.zone == "America/New_York"


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
    with pytest.raises(PairliftError, match="format 2 were expected, found 1; train anew"):
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
    short = Histories(offsets, *(getattr(histories, name)[keep] for name in names))
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


def test_an_unseen_item_has_the_vector_of_its_attributes(world: World) -> None:
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
    plugin.save(tmp_path)
    arrays = {name: getattr(histories, name) for name in histories.__slots__}
    np.savez(tmp_path / "histories.npz", **arrays)
    code = f"""
import sys, numpy as np
from pathlib import Path
from features.state.histories import Histories
from features.schema import one_request
from neural.two_tower import TwoTower
folder = Path({str(tmp_path)!r})
plugin = TwoTower.load(folder)
histories = Histories(**np.load(folder / "histories.npz"))
values = plugin.values(one_request(0, {int(requests.as_of[0])}, 0, np.arange(5, dtype=np.int32)), histories)
assert np.isfinite(values).all()
assert "torch" not in sys.modules, "torch was imported"
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
