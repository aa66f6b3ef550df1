"""LiMAML: its contract, its tasks, its inner loop in torch and NumPy, what it learns, and that it needs few events."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contracts import VectorContract, check_serves_without, fit_data
from logs import permuted
from torch import Tensor
from world import World, make_world

from features.errors import PairliftError
from features.pairing.groups import make_groups
from features.pairing.pairs import make_pairs, weight_table
from features.pairing.split import make_split
from features.plugin import FeaturePlugin, FitData, make_plugin
from features.schema import DAY, F32, HOUR, Requests, one_request
from features.settings import PairingSettings, SplitSettings
from features.state.histories import Histories, HistoryBuffer
from features.state.kept import KeptStates
from features.state.lag import Lag
from features.state.refreshed import Ahead
from neural.data import TowerData
from neural.limaml import LiMAML
from neural.limaml.model import MetaNetwork
from neural.limaml.settings import LiMAMLSettings
from neural.limaml.tasks import TaskData
from neural.limaml.train import Trainer, fit, served_block
from ranker.metrics.pair_accuracy import pair_accuracy

#: options that fit in a second or two
SMALL: dict[str, Any] = {
    "width": 16, "hidden": 8, "history": 24, "query": 4, "pretrain_epochs": 3, "finetune_epochs": 2, "threads": 1,
    "batch_tokens": 1024,
}  # fmt: skip


class TestLiMAML(VectorContract):
    def make(self) -> FeaturePlugin:
        return LiMAML(**SMALL)


@pytest.fixture(scope="module")
def data(world: World) -> FitData:
    return fit_data(world, make_split(SplitSettings(), world.log, "UTC"))


def task_data(data: FitData, **options: Any) -> TaskData:
    settings = LiMAMLSettings(**{**SMALL, **options})
    return TaskData(TowerData.build(data, settings), settings, "UTC")


# Tasks


@pytest.mark.parametrize("lag", ["0s", "2d", "daily"])
@pytest.mark.parametrize("drawn", [True, False])
def test_the_support_is_before_the_query_and_each_event_is_asked_for_once(data: FitData, lag: str, drawn: bool) -> None:
    made = task_data(data, lag=lag, history=7)
    h, cut = made.inputs.batches.histories, Lag(made.settings.lag)
    tasks = made.events(np.random.default_rng(1) if drawn else None)
    asked = np.concatenate([np.arange(a, b) for a, b in zip(tasks.first, tasks.last, strict=True)])
    np.testing.assert_array_equal(np.sort(asked), np.flatnonzero(made.inputs.pretrain.events))
    assert (tasks.last - tasks.first).max() <= 4
    assert (tasks.stop - tasks.start).max() == 7
    for k in range(len(tasks)):
        user = int(tasks.user[k])
        assert h.offsets[user] <= tasks.start[k] <= tasks.stop[k] <= tasks.first[k] < tasks.last[k]
        assert tasks.last[k] <= h.offsets[user + 1]
        seen = h.ts[h.offsets[user] : h.offsets[user + 1]] < cut.cut(h.ts[tasks.first[k] : tasks.first[k] + 1])[0]
        assert tasks.stop[k] == h.offsets[user] + seen.sum()


def test_a_groups_support_is_of_before_its_as_of(data: FitData) -> None:
    made = task_data(data, lag="1d")
    h, r = made.inputs.batches.histories, made.inputs.batches.requests
    tasks = made.groups(made.inputs.validation.groups)
    assert len(tasks)
    for k in range(len(tasks)):
        user, as_of = int(tasks.user[k]), int(r.as_of[tasks.first[k]])
        assert user == r.user[tasks.first[k]]
        assert tasks.stop[k] == h.offsets[user] + (h.ts[h.offsets[user] : h.offsets[user + 1]] < as_of - DAY).sum()


def test_pairs_of_a_batch_are_those_of_its_groups(data: FitData) -> None:
    made = task_data(data)
    batches = made.inputs.batches
    tasks = made.groups(made.inputs.finetune.groups)
    part = tasks.select(np.array([5, 2, 11]))
    query, pairs = made.group_query(part)
    expected = []
    for place, group in enumerate(part.first):
        rows = np.arange(batches.requests.offsets[group], batches.requests.offsets[group + 1])
        np.testing.assert_array_equal(query.item[query.task == place], batches.requests.item[rows])
        inside = np.isin(data.pairs.winner, rows)
        items = batches.requests.item
        expected += [
            (place, items[w], items[x])
            for w, x in zip(data.pairs.winner[inside], data.pairs.loser[inside], strict=True)
        ]
    found = [(query.task[w], query.item[w], query.item[x]) for w, x in zip(pairs.winner, pairs.loser, strict=True)]
    assert sorted(found) == sorted(expected)
    np.testing.assert_array_equal(query.task[pairs.winner], query.task[pairs.loser])


# The inner loop


def some_support(b: int, t: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return user [b, d], items [b, t, d], offset [b, t] and rank int64[b, t], where the first task has none."""
    torch.manual_seed(seed)
    rank = torch.randint(-1, 3, (b, t))
    rank[0] = -1
    return torch.randn(b, width), torch.randn(b, t, width), torch.randn(b, t), rank


def network(width: int = 8, steps: int = 3) -> MetaNetwork:
    torch.manual_seed(5)
    from neural.vocabulary.entities import Layout

    layout = Layout((1,), 2)
    model = MetaNetwork(64, layout, layout, n_cuts=2, width=width, hidden=6, steps=steps, dropout=0.0)
    with torch.no_grad():
        model.meta.log_rate.normal_(0, 0.3)
        model.grade_steps.copy_(torch.tensor([-0.4, 0.7]))
        model.known.fill_(0.6)
    return model


def inner_loss(
    block: dict[str, Tensor], user: Tensor, items: Tensor, offset: Tensor, rank: Tensor, model: MetaNetwork
) -> Tensor:
    """The definition: the mean ordinal loss of one user's support, with the shrinkage's events in the mean."""
    hidden = torch.tanh(block["up.weight"] @ user + block["up.bias"])
    out = block["down.weight"] @ hidden + block["down.bias"]
    score = items @ out[:-1] + out[-1] + model.known * offset
    above = (rank[:, None] > torch.arange(2)).float()
    loss = F.binary_cross_entropy_with_logits(score[:, None] - model.cuts, above, reduction="none").sum(1)
    there = (rank >= 0).float()
    return (loss * there).sum() / (there.sum() + model.meta.log_shrink.exp())


def test_the_inner_loop_is_maml_of_the_ordinal_loss() -> None:
    """Against `torch.func`: gradients of the loss by each array, vectorised over users, step by step."""
    model, (user, items, offset, rank) = network(), some_support(5, 9, 8)
    meta = model.meta
    block = {name: p.expand(5, *p.shape) for name, p in meta.named_parameters() if "." in name}
    gradient = torch.func.vmap(torch.func.grad(inner_loss), in_dims=(0, 0, 0, 0, 0, None))
    for rate in meta.log_rate.exp():
        slopes = gradient(block, user, items, offset, rank, model)
        rates = dict(zip(("up.weight", "up.bias", "down.weight", "down.bias"), rate, strict=True))
        block = {name: p - rates[name] * slopes[name] for name, p in block.items()}
    hidden = torch.tanh((block["up.weight"] @ user[:, :, None])[..., 0] + block["up.bias"])
    expected = (block["down.weight"] @ hidden[:, :, None])[..., 0] + block["down.bias"]
    found = model.embeddings(user, items, offset, rank)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    moved = (found - meta.down(torch.tanh(meta.up(user)))).abs().amax(1)
    assert moved[0] < 1e-6  # nothing adapts a user without events
    assert (moved[1:] > 0.01).all()


def test_the_outer_gradient_goes_through_the_inner_loop() -> None:
    model, (user, items, offset, rank) = network(), some_support(4, 6, 8)
    loss = model.embeddings(user, items, offset, rank).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    for name in ("log_rate", "log_shrink"):
        parameter = dict(model.meta.named_parameters())[name]
        before, step = loss.item(), 1e-3
        assert parameter.grad is not None
        with torch.no_grad():
            flat = parameter.view(-1)
            flat[0] += step
            after = model.embeddings(user, items, offset, rank).square().sum().item()
            flat[0] -= step
        assert (after - before) / step == pytest.approx(parameter.grad.view(-1)[0].item(), rel=0.1, abs=0.02)


@pytest.mark.parametrize("steps", [1, 4])
def test_serving_adapts_as_training_does(steps: int) -> None:
    model, (user, items, offset, rank) = network(steps=steps), some_support(6, 11, 8, seed=steps)
    with torch.no_grad():
        expected = model.embeddings(user, items, offset, rank)[:, :-1].numpy()
    block = served_block(model)
    table = items.flatten(0, 1).numpy()
    bounds = np.arange(7, dtype=np.int64) * 11
    flat = (np.arange(66), rank.flatten().numpy(), offset.flatten().numpy())
    found = block.embeddings(user.numpy(), table, *flat, bounds)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    kept = np.flatnonzero(flat[1] >= 0)  # what is no part of the support may as well not be there
    shorter = np.searchsorted(kept, bounds).astype(np.int64)
    fewer = block.embeddings(user.numpy(), table, *(x[kept] for x in flat), shorter)
    np.testing.assert_allclose(fewer, found, rtol=1e-5, atol=1e-6)


def test_events_of_any_size_are_finite() -> None:
    model = network()
    user, items, offset, rank = some_support(3, 400, 8)
    found = served_block(model).embeddings(
        user.numpy(), 1e3 * items.flatten(0, 1).numpy(), np.arange(1200), rank.flatten().numpy(),
        1e4 * offset.flatten().numpy(), np.array([0, 400, 800, 1200]),
    )  # fmt: skip
    assert np.isfinite(found).all()


def test_what_is_served_is_what_was_trained(data: FitData, world: World) -> None:
    settings = LiMAMLSettings(**SMALL)
    trained = fit(data, settings)
    trainer = Trainer(trained.inputs, settings, 0, "UTC")
    trainer.model = trained.model
    tasks = trainer.data.groups(trained.inputs.validation.groups)
    query, _ = trainer.data.group_query(tasks)
    with torch.no_grad():
        expected = (trainer.scores(tasks, query) - trained.model.known * torch.from_numpy(query.offset)).numpy()
    plugin = LiMAML(**SMALL)
    plugin.fit(data)
    requests = data.groups.requests.select(tasks.first)
    found = plugin.values(requests, Histories.build(data.log, world.catalog.n_users))[:, 0]
    # The user's bias is no part of the column, for it is the same for all candidates of a request.
    owner = query.task
    centred = [x - (np.bincount(owner, x) / np.bincount(owner))[owner] for x in (found, expected)]
    np.testing.assert_allclose(*centred, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("phase", ["pretrain_epochs", "finetune_epochs"])
def test_labels_of_the_validation_slice_train_nothing(data: FitData, phase: str) -> None:
    """One epoch, so that they cannot choose one: the trained state is the same to the last bit."""
    settings = LiMAMLSettings(**{**SMALL, "pretrain_epochs": 0, "finetune_epochs": 0, phase: 1})
    first = data.groups.requests.as_of[data.groups.validation].min()
    log = permuted(data.log, np.flatnonzero(data.log.ts >= first))
    before, after = (fit(x, settings).model.state_dict() for x in (data, replace(data, log=log)))
    start = fit(data, LiMAMLSettings(**{**SMALL, "pretrain_epochs": 0, "finetune_epochs": 0})).model.state_dict()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    for name in ("table.weight", "meta.up.weight", "meta.log_rate", "meta.log_shrink"):
        assert not torch.equal(before[name], start[name]), name


# What it learns


def asked_of(world: World) -> tuple[Requests, Any]:
    groups = make_groups(world.log, PairingSettings(), make_split(SplitSettings(), world.log, "UTC")).of("test")
    return groups.requests, make_pairs(groups, weight_table({}, world.grades, negatives=False))


def accuracy(plugin: LiMAML, requests: Requests, pairs: Any, histories: Histories) -> float:
    score = plugin.values(requests, histories)[:, 0].astype(np.float64)
    return float(pair_accuracy(np.nan_to_num(score), pairs).value)


LEARNS: dict[str, Any] = {**SMALL, "pretrain_epochs": 5, "finetune_epochs": 1, "learning_rate": 0.01, "id_shrink": 2.0}


def test_it_learns_tastes_of_few_events_and_nothing_where_grades_are_shuffled() -> None:
    world = make_world(3, n_users=120, requests_per_user=12)
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    (requests, pairs), users = asked_of(world), world.catalog.n_users
    histories, found = Histories.build(world.log, users), {}
    for name, log in {"true": data.log, "shuffled": permuted(data.log, np.arange(len(data.log)))}.items():
        plugin = LiMAML(**LEARNS)
        plugin.fit(replace(data, log=log))
        found[name] = accuracy(plugin, requests, pairs, histories)
        if name == "true":
            # The same users as if they had but their last events: cut before as_of, so nothing later is seen.
            for most in (0, 8, 24):
                found[most] = accuracy(plugin, requests, pairs, latest(histories, requests, most))
    print(found)
    assert found["true"] > 0.75
    assert abs(found["shuffled"] - 0.5) < 0.06
    assert found[0] == 0.5  # nothing is known of anybody
    assert found[8] > 0.7
    assert found[24] > found[8]


def latest(histories: Histories, requests: Requests, most: int) -> Histories:
    """Return histories in which each user has the `most` events before the user's first request and nothing else."""
    first = np.full(len(histories.sizes), np.iinfo(np.int64).max)
    np.minimum.at(first, requests.user, requests.as_of)
    start, stop = histories.before(np.arange(len(first), dtype=np.int32), first, most)
    rows = np.concatenate([np.arange(a, b) for a, b in zip(start, stop, strict=True)]).astype(np.int64)
    columns = {
        name: getattr(histories, name)[rows] for name in ("item", "ts", "grade", "surface", "organic", "feedback")
    }
    return Histories(np.concatenate([[0], np.cumsum(stop - start)]).astype(np.int64), **columns)


@pytest.fixture(scope="module")
def late(data: FitData) -> LiMAML:
    plugin = LiMAML(**SMALL, lag="2h")
    plugin.fit(data)
    return plugin


def test_loading_and_serving_import_no_torch(late: LiMAML, world: World, tmp_path: Path) -> None:
    histories, lag = Histories.build(world.log, world.catalog.n_users), "plugin.settings.lag == 7_200_000_000"
    check_serves_without({"torch"}, late, histories, int(world.log.ts[-1]), tmp_path, lag)


def test_requests_take_what_was_computed_ahead(late: LiMAML, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, end = HistoryBuffer(Histories.build(world.log, world.catalog.n_users)), int(world.log.ts[-1])
    users = np.unique(world.log.user[world.log.ts < end - 2 * HOUR]).tolist()

    def vectors() -> F32:
        items = np.arange(9, dtype=np.int32)
        return np.concatenate(
            [late.user_vectors(one_request(u, end, 0, items), buffer.histories) for u in users]
        )  # fmt: skip

    before = vectors()
    made = late.refresh(Ahead(lambda: buffer.histories, end, 1000, 2**20, lambda *_: None))
    assert len(made) == made.computed == len(users)
    late.runtime.kept = KeptStates()
    monkeypatch.setattr(late.runtime, "_computed", None)  # nobody asks for it
    buffer.extended(replace(world.log.select(slice(0, 1)), ts=np.array([end - HOUR])))  # not visible yet
    np.testing.assert_allclose(vectors(), before, rtol=1e-4, atol=1e-5)


def test_a_log_of_one_grade_learns_from_pairs_alone(data: FitData, world: World) -> None:
    one = replace(data.log, grade=np.where(data.log.grade > 0, 0, -1).astype(np.int8))
    plugin = LiMAML(**SMALL)
    plugin.fit(replace(data, log=one, grades=("like",)))
    assert {epoch["phase"] for epoch in plugin.report["epochs"]} == {"fine-tune"}
    histories = Histories.build(one, world.catalog.n_users)
    items = np.arange(80, dtype=np.int32)
    later = one_request(3, int(world.log.ts[-1]), 0, items)
    liked = histories.item[histories.offsets[3] : histories.offsets[4]][
        histories.grade[histories.offsets[3] : histories.offsets[4]] >= 0
    ]
    vector, vectors = plugin.user_vectors(later, histories)[0], plugin.item_vectors
    start = plugin.user_vectors(one_request(3, int(world.log.ts[0]) + 1, 0, items), histories)[0]
    if np.isnan(start).any():
        start = np.zeros_like(vector)
    assert (vectors[liked] @ (vector - start)).mean() > 0  # it moves to what the user liked


def test_a_log_without_grades_or_pairs_is_answered(data: FitData, world: World) -> None:
    histories = Histories.build(world.log, world.catalog.n_users)
    asked = one_request(0, int(world.log.ts[-1]), 0, np.arange(9, dtype=np.int32))
    plugin = LiMAML(**SMALL)
    plugin.fit(replace(data, log=data.log.select(slice(0, 0))))
    assert not np.isinf(plugin.values(asked, histories)).any()


def test_wrong_options_are_told_and_an_unfitted_plugin_says_so() -> None:
    with pytest.raises(PairliftError, match="did you mean"):
        make_plugin("limaml", "neural.limaml:LiMAML", {"inner_step": 3})
    with pytest.raises(PairliftError, match="LiMAML is not fitted"):
        _ = LiMAML().item_vectors
