"""The towers and their plugin: torch and ONNX Runtime agree, one pass and one pass per group, a known answer."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import PluginContract, fit_data
from world import World, make_world

from features.errors import PairliftError
from features.histories import Histories
from features.pairs import make_groups, make_pairs, weight_table
from features.plugin import FeaturePlugin
from features.schema import DAY, HOUR, Requests, one_request
from features.settings import PairingSettings, SplitSettings
from features.split import make_split
from neural.entities import Layout, encode, table_rows
from neural.export import check_parity, export_towers, random_user_batch
from neural.histories import DAILY, TokenSpec, make_tokens, visible
from neural.model import Argus, Shape
from neural.prepare import prepare
from neural.runtime import USER_INPUTS, USER_TOWER
from neural.settings import TowerSettings
from neural.train import Trainer
from neural.two_tower import TwoTower

SMALL: dict[str, Any] = {
    "width": 16, "heads": 2, "layers": 2, "history": 12, "pretrain_epochs": 2, "finetune_epochs": 1, "threads": 1,
    "batch_tokens": 512, "negatives": 32,
}  # fmt: skip


class TestTwoTower(PluginContract):
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
    spec = TokenSpec(30, 3, 2, (1.0, 0.5), (1.0, 1.0), length)
    torch.manual_seed(0)
    model = Argus(Shape(16, 2, 2, 0.1, 64, spec, Layout((1, 1, 3), 4), Layout((), 2))).eval()
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


@pytest.mark.parametrize(("lag", "history"), [(0, 200), (0, 8), (6 * HOUR, 200), (DAILY, 200)])
def test_one_pass_gives_the_states_of_one_pass_per_group(world: World, lag: int | str, history: int) -> None:
    """With a history longer than a window, a state has seen at least half a window, and is that of these events."""
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    settings = TowerSettings.model_construct(**{**TowerSettings(**SMALL).model_dump(), "lag": lag, "history": history})
    inputs = prepare(data, settings)
    torch.manual_seed(0)
    trainer = Trainer(inputs, settings, 0)
    trainer.model.eval()
    everything = np.ones(len(data.groups.requests), bool)
    r, lookout, checked = data.groups.requests, inputs.lookout, 0
    with torch.no_grad():
        for chosen in lookout.plan(trainer.no_events, everything, 600, None):
            batch = lookout.make(chosen, trainer.no_events, everything)
            found = trainer.scores(batch, trainer.look(batch, np.empty(0, np.int64)))
            start, stop = visible(inputs.histories, r.user, r.as_of, lag, 10_000)
            owner = r.row_request()[batch.row]
            for g in np.unique(owner)[::5]:
                state = batch.group_state[batch.group[owner == g][0]]
                one = np.array([stop[g]])
                tokens = make_tokens(inputs.histories, r.user[g : g + 1], one - state, one, inputs.spec)
                assert history < 200 or state == stop[g] - start[g]
                items = trainer.item_vectors(np.arange(inputs.spec.n_items + 1))
                vector = trainer.model.user(
                    items[torch.from_numpy(tokens.item)],
                    torch.from_numpy(tokens.codes),
                    torch.from_numpy(tokens.signals),
                    torch.from_numpy(tokens.surprise(inputs.expected)),
                    trainer.model.user_token(*(torch.from_numpy(x[r.user[g : g + 1]]) for x in (
                        inputs.users.slots, inputs.users.weight, inputs.users.numbers))),
                    torch.from_numpy(tokens.length),
                    torch.from_numpy(lookout.surface[g : g + 1]),
                )  # fmt: skip
                rows = np.arange(r.offsets[g], r.offsets[g + 1])
                dot = items[torch.from_numpy(lookout.item[rows])] @ vector[0]
                expected = trainer.model.residual(dot, torch.from_numpy(inputs.candidate_offset[rows]))
                if history == 200:
                    torch.testing.assert_close(found[owner == g], expected, rtol=1e-3, atol=1e-4)
                checked += 1
    assert checked > 20


def test_pairs_of_a_batch_are_the_pairs_of_the_log(world: World) -> None:
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    inputs = prepare(data, TowerSettings(**SMALL))
    everything = np.ones(len(data.groups.requests), bool)
    none = np.zeros(len(inputs.events), bool)
    found = []
    for chosen in inputs.lookout.plan(none, everything, 300, np.random.default_rng(0)):
        batch = inputs.lookout.make(chosen, none, everything)
        found += list(zip(batch.row[batch.winner], batch.row[batch.loser], batch.weight, strict=True))
        assert (batch.group[batch.winner] == batch.group[batch.loser]).all()
    assert sorted(found) == sorted(zip(data.pairs.winner, data.pairs.loser, data.pairs.weight, strict=True))


def test_nothing_of_the_validation_slice_is_a_target(world: World) -> None:
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    inputs = prepare(data, TowerSettings(**SMALL))
    first = data.groups.requests.as_of[data.groups.validation].min()
    assert (inputs.events == (inputs.histories.ts < first)).all()
    assert not (inputs.tuned & data.groups.validation).any()
    assert inputs.held.sum() > 0


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
    plain._runtime = type(plugin.runtime)(plugin.runtime.session, plugin.runtime.spec, plugin.runtime.vectors, 0)
    np.testing.assert_array_equal(plugin.values(requests, histories), plain.values(later, histories))
    assert not np.array_equal(plugin.values(requests, histories), plain.values(requests, histories))


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


def test_strangers_have_no_value(fitted: Any, world: World) -> None:
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
    spec = TokenSpec(n, 3, 2, (1.0, 0.5), (1.0, 1.0), 9)
    model = Argus(Shape(16, 2, 2, 0.0, table_rows(200), spec, items.layout, Layout((), 2))).eval()

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
from features.histories import Histories
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
