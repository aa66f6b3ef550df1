"""The head that retrieves: it changes nothing that came before, and finds what demand alone does not."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contracts import fit_data
from logs import permuted
from world import SMALL_TOWERS, World, make_world

from features.pairing.groups import make_groups
from features.pairing.split import make_split
from features.plugin import FitData
from features.schema import SECOND, Requests
from features.settings import PairingSettings, SplitSettings
from features.state.histories import Histories
from neural import losses
from neural.model import Retrieval
from neural.retrieval import HeadTrainer, find_states, fit_head, item_keys
from neural.settings import TowerSettings
from neural.train import Trained, all_vectors, fit
from neural.two_tower import TwoTower

SETTINGS = TowerSettings(**SMALL_TOWERS)


@pytest.fixture(scope="module")
def data(world: World) -> FitData:
    return fit_data(world, make_split(SplitSettings(), world.log, "UTC"))


@pytest.fixture(scope="module")
def trained(data: FitData) -> Trained:
    return fit(data, SETTINGS)


def boundary(data: FitData) -> int:
    return int(data.groups.requests.as_of[data.groups.validation].min())


def head_of(trained: Trained, **settings: Any) -> Retrieval:
    found = fit_head(trained, TowerSettings(**{**SMALL_TOWERS, **settings}), 3)
    assert found is not None
    return found[0]


def test_what_the_ranker_gets_is_the_same_to_the_bit_with_and_without_it(world: World, data: FitData) -> None:
    columns = ["dot", "user_vector", "item_vector"]
    plugins = [TwoTower(**SMALL_TOWERS, columns=columns, retrieval_epochs=epochs) for epochs in (0, 2)]
    split = make_split(SplitSettings(), world.log, "UTC")
    requests = make_groups(world.log, PairingSettings(), split).of("test").requests
    histories = Histories.build(world.log, world.catalog.n_users)
    for plugin in plugins:
        plugin.fit(data)
    without, with_head = (plugin.values(requests, histories) for plugin in plugins)
    np.testing.assert_array_equal(without, with_head)
    assert [plugin.over_demand for plugin in plugins] == [False, True]
    assert plugins[0].report["epochs"] == plugins[1].report["epochs"]
    assert plugins[0].report["parameters"] > 12 * SMALL_TOWERS["layers"] * SMALL_TOWERS["width"] ** 2  # for studies
    # Without the head, what retrieves are the vectors.
    np.testing.assert_array_equal(plugins[0].item_keys, plugins[0].item_vectors)
    np.testing.assert_array_equal(plugins[0].queries(requests, histories), plugins[0].user_vectors(requests, histories))


def test_a_fit_changes_no_bit_of_the_towers_and_repeats(trained: Trained) -> None:
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    one, other = head_of(trained), head_of(trained)
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize(("floor", "lowest"), [(1, 1), (2, 2), (0, 0), (9, -1)])
def test_targets_are_the_wanted_events_before_the_validation_slice(data: FitData, floor: int, lowest: int) -> None:
    inputs = fit(replace(data, wanted=floor), replace_epochs()).inputs
    h, first = inputs.batches.histories, boundary(data)
    assert (inputs.wanted == ((h.grade >= lowest) & (h.ts < first))).all()
    met = np.isin(h.item, data.log.item[data.log.ts < first])
    assert (inputs.wanted_later == ((h.grade >= lowest) & (h.ts >= first) & met)).all()


def replace_epochs(**others: Any) -> TowerSettings:
    return TowerSettings(**{**SMALL_TOWERS, "pretrain_epochs": 0, "finetune_epochs": 0, **others})


def test_no_more_than_so_many_events_are_learned_from(trained: Trained) -> None:
    settings = TowerSettings(**SMALL_TOWERS, retrieval_events=50)
    trainer = HeadTrainer(trained, settings, 0)
    assert len(trainer.learned) == 50 < trained.inputs.wanted.sum()
    assert trainer.learned.known.state.shape[0] <= 50


def test_labels_of_the_validation_slice_train_nothing(data: FitData, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch, so that they cannot choose one."""
    monkeypatch.setattr("neural.retrieval.LEAST_STEPS", 1)
    held = np.flatnonzero(data.log.ts >= boundary(data))
    settings = replace_epochs(retrieval_epochs=1)
    heads = []
    for log in (data.log, permuted(data.log, held)):
        found = fit_head(fit(replace(data, log=log), settings), settings, 3)
        assert found is not None
        heads.append(found[0].state_dict())
    for name, tensor in heads[0].items():
        assert torch.equal(tensor, heads[1][name]), name


@pytest.mark.parametrize("ahead", [0, 30 * SECOND])
def test_a_target_has_a_state_of_its_user_before_it(trained: Trained, ahead: int) -> None:
    trainer = HeadTrainer(trained, TowerSettings(**SMALL_TOWERS, retrieval_ahead=ahead), 0)
    h, learned = trained.inputs.batches.histories, trainer.learned
    user, row = h.rows()
    row, start = row[trained.inputs.wanted], h.offsets[user[trained.inputs.wanted]]
    assert (learned.item == h.item[row]).all()
    back = row - learned.known.row[learned.place]
    assert ((back >= 0) & (back <= row - start)).all()
    assert (h.ts[row] - h.ts[row - back] <= ahead).all()
    assert back.max() == ahead // (10 * SECOND)  # events of a list are 10 s apart
    inputs, model = trained.inputs, trained.model
    assert (learned.known.context.numpy()[:, 0] == inputs.spec.surface_code(h.surface[learned.known.row])).all()
    with torch.no_grad():  # one of them by itself, from whole histories
        for one in learned.known.row[::97]:
            mask = np.arange(len(h.ts)) == one
            alone = find_states(model, inputs, trainer.items, mask)
            place = np.flatnonzero(learned.known.row == one)
            torch.testing.assert_close(alone.state, learned.known.state[place], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(alone.taste, learned.known.taste[place], rtol=1e-4, atol=1e-5)


def test_what_is_served_is_what_was_trained(data: FitData) -> None:
    """As of an event, the query is that of the state before it, and the keys are those of the head."""
    settings = TowerSettings(**{**SMALL_TOWERS, "history": 200})
    plugin, trained = TwoTower(**settings.model_dump()), fit(data, settings)
    plugin.fit(data)
    found = fit_head(trained, settings, data.seed)
    assert found is not None
    head, inputs = found[0], trained.inputs
    np.testing.assert_allclose(plugin.item_keys, item_keys(trained, head, 1), rtol=1e-4, atol=1e-5)
    h = inputs.batches.histories
    with torch.no_grad():
        states = find_states(trained.model, inputs, all_vectors(trained.model.item, inputs.items), inputs.wanted)
        queries = head.queries(states.state, states.taste, states.context).numpy()
    user = np.repeat(np.arange(len(h.sizes), dtype=np.int32), h.sizes)
    # Events of one instant see each other in training's order, and not at all in serving: only the first of them.
    first = states.row[np.append(True, np.diff(h.ts) > 0)[states.row]]
    asked = Requests(
        user=user[first], as_of=h.ts[first], surface=h.surface[first],
        offsets=np.zeros(len(first) + 1, np.int64), item=np.empty(0, np.int32),
    )  # fmt: skip
    served, place = plugin.queries(asked, h), np.searchsorted(np.sort(states.row), first)
    trained_ones = queries[np.argsort(states.row)[place]]
    known = ~np.isnan(served[:, 0])
    assert known.mean() > 0.8
    np.testing.assert_allclose(served[known], trained_ones[known], rtol=1e-3, atol=1e-4)


def test_over_all_items_the_loss_is_the_softmax_over_demand() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, prior = (torch.randn(*shape, generator=generator) for shape in ((5, 4), (7, 4), (7,)))
    target = torch.tensor([0, 3, 6, 3, 1])
    temperature = torch.tensor(0.3)
    found = losses.next_item(query, key, target, torch.arange(7), torch.zeros(7), temperature, prior).mean()
    expected = torch.nn.functional.cross_entropy(query @ key.T / math.exp(0.3) + prior, target)
    torch.testing.assert_close(found, expected)


def test_drawn_items_give_on_average_the_gradient_of_all(trained: Trained) -> None:
    """The oracle is the full softmax; drawn pools are small, so their gradients are noisy, but not biased much."""
    full, drawn = (HeadTrainer(trained, TowerSettings(**SMALL_TOWERS, retrieval_negatives=k), 0) for k in (1000, 32))
    drawn.head.load_state_dict(full.head.state_dict())
    rows, rng = np.arange(200), np.random.default_rng(1)

    def gradient(trainer: HeadTrainer, times: int) -> torch.Tensor:
        trainer.head.zero_grad()
        for _ in range(times):
            (trainer.loss(trainer.learned, rows, trainer.pool(rng)) / times).backward()  # type: ignore[no-untyped-call]
        return torch.cat([p.grad.flatten() for p in trainer.head.parameters() if p.grad is not None])

    whole, many = gradient(full, 1), gradient(drawn, 300)
    assert torch.nn.functional.cosine_similarity(whole, many, dim=0) > 0.97
    assert float(many.norm() / whole.norm()) == pytest.approx(1, rel=0.2)


def test_an_item_that_training_never_met_has_the_key_of_its_attributes(world: World, data: FitData) -> None:
    first = boundary(data)
    item = np.where((data.log.item == 7) & (data.log.ts < first), 8, data.log.item).astype(np.int32)
    trained = fit(replace(data, log=replace(data.log, item=item)), replace_epochs())
    head = head_of(trained, retrieval_negatives=32)
    assert not head.id.weight[7].any()
    assert head.id.weight[8].any()
    keys = item_keys(trained, head, 1)
    known = trained.inputs.items.known[:-1]
    np.testing.assert_array_equal(np.isnan(keys).all(axis=1), ~known)


def test_it_finds_what_is_wanted_beyond_demand() -> None:
    """Tastes are hidden: of the items that are in demand, each user wants those of one taste."""
    world = make_world(1, n_users=120, requests_per_user=20)
    split = make_split(SplitSettings(), world.log, "UTC")
    plugin = TwoTower(width=32, heads=2, pretrain_epochs=12, finetune_epochs=2, teachers=0, history=64)
    data = fit_data(world, split)
    plugin.fit(data)
    groups = make_groups(world.log, PairingSettings(), split).of("test")
    first = np.unique(groups.requests.user, return_index=True)[1]
    queries = plugin.queries(groups.requests, Histories.build(world.log, world.catalog.n_users))[first]
    product = queries @ plugin.item_keys.T
    demand = np.log1p(np.bincount(data.log.item[data.log.grade >= 1], minlength=80))

    def own_taste(score: Any) -> float:
        top = np.argsort(-score, axis=1)[:, :10]
        return float((world.item_taste[top] == world.user_taste[groups.requests.user[first], None]).mean())

    assert own_taste(np.broadcast_to(demand, product.shape)) < 0.4
    assert own_taste(0.5 * product + demand) > 0.6
    losses_ = [epoch["validation"] for epoch in plugin.report["retrieval"]]
    assert losses_[-1] < math.log(80)
