"""The heads of pre-training: what they learn from, what they are told from, and what they reach behind the fit."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import fit_data
from world import SMALL_TOWERS, make_world

from features.pairing.split import make_split
from features.plugin import FitData, LaterEvents
from features.schema import DAY, I64, NO_CONTEXT, EventLog
from features.settings import SplitSettings
from features.state.histories import Histories
from neural.batches import TargetMask
from neural.data import TowerData
from neural.histories import make_tokens
from neural.pretraining import negatives
from neural.pretraining.heads import FEEDBACK, NEXT_ITEM, Said, mean_losses
from neural.pretraining.negatives import Negatives, even_pool
from neural.settings import TowerSettings
from neural.train import Trained, Trainer, all_vectors, entity_inputs, fit, head_losses, repeatable
from neural.vocabulary.feedback import FeedbackKinds

#: no history of the world is longer than a window
LONG: dict[str, Any] = {**SMALL_TOWERS, "history": 100}
#: an item and a user that are new behind the fit
NEW = 7


@pytest.fixture(scope="module")
def logged() -> tuple[FitData, LaterEvents]:
    """Return the data of a fit and a day behind it, in which an item and a user are new."""
    world = make_world(3, surfaces=("feed", "search"))
    split = make_split(SplitSettings(), world.log, "UTC")
    later = world.log.ts >= split.t2
    log = replace(world.log, item=np.where(~later & (world.log.item == NEW), NEW + 1, world.log.item))
    log = log.select(later | (log.user != NEW))
    events = LaterEvents(log=log.until(split.t2 + DAY), since=split.t2)
    return fit_data(world._replace(log=log), split), events


def slow_losses(trained: Trained, later: LaterEvents) -> dict[str, float]:
    """Predict event by event, each from all events of its user before it, one pass for each."""
    model, inputs, log = trained.model, trained.inputs, later.log
    items, each = all_vectors(model.item, inputs.items), dict[str, list[float]]()
    for k in np.flatnonzero(log.ts >= later.since).tolist():
        user, item, rank, play = int(log.user[k]), int(log.item[k]), int(log.grade[k]), float(log.feedback[k, 0])
        before = log.select(np.flatnonzero(log.user[:k] == user))
        tokens = make_tokens(history(before), np.zeros(1, np.int32), np.zeros(1, np.int64), length(before), inputs.spec)
        state, taste = model.user.last(
            items[torch.from_numpy(tokens.item)],
            torch.from_numpy(tokens.codes),
            torch.from_numpy(tokens.signals),
            torch.from_numpy(inputs.expected.surprise(tokens)),
            model.user_token(*entity_inputs(inputs.users, np.array([user]))),
            torch.from_numpy(tokens.length),
        )
        context = torch.from_numpy(inputs.spec.context_codes(log.surface[k : k + 1], log.ts[k : k + 1], NO_CONTEXT))
        query, key = model.next_item(state, context, items[:-1])
        chance = (query @ key.T / model.log_temperature.exp())[0].log_softmax(0)[item]
        vector = model.user.vectors(state, taste, context)
        known = inputs.expected.before(log.item[k : k + 1], log.ts[k : k + 1])[0, 0]
        score = model.residual((vector * items[item]).sum(-1), torch.tensor([known]))
        above = model.grade_logits(state, score)[0].sigmoid().tolist()
        said = model.feedback_logits(state, vector, items[item : item + 1])[0, 0]
        each.setdefault("next_item", []).append(-float(chance))
        if rank >= inputs.floor:
            each.setdefault("next_wanted", []).append(-float(chance))
        each.setdefault("grade", []).append(-sum(math.log(p if rank > g else 1 - p) for g, p in enumerate(above)))
        if math.isfinite(play):
            wanted = float(inputs.feedback.wanted(np.array([[play]], np.float32))[0, 0])
            each.setdefault("feedback", []).append(float(torch.nn.functional.huber_loss(said, torch.tensor(wanted))))
    assert len(each["next_item"]) > 80
    return {name: float(np.mean(of)) for name, of in each.items()}


def history(log: EventLog) -> Histories:
    return Histories.build(replace(log, user=np.zeros_like(log.user)), 1)


def length(log: EventLog) -> I64:
    return np.array([len(log)], np.int64)


def test_heads_reach_what_event_by_event_they_do_as_pre_training_left_them(
    logged: tuple[FitData, LaterEvents], tmp_path: Path
) -> None:
    """Each as of what came before it, of the network that fine-tuning then goes on from."""
    data, later = logged
    settings = [TowerSettings(**LONG | {"finetune_epochs": n, "learning_rate": 0.02}) for n in (0, 3)]
    for name in "ab":
        (tmp_path / name).mkdir()
    kept = [replace(data, heads=tmp_path / name) for name in "ab"]
    trained, tuned = (fit(one, s) for one, s in zip(kept, settings, strict=True))
    found = [head_losses(one, later, s) for one, s in zip(kept, settings, strict=True)]
    assert found[0] == found[1]
    assert not torch.equal(trained.model.user.out.weight, tuned.model.user.out.weight)
    assert trained.inputs.popularity[NEW] == trained.inputs.items.weight[NEW, 0] == 0
    assert {NEW} < set(later.log.item[later.log.ts >= later.since].tolist())
    assert {NEW} < set(later.log.user[later.log.ts >= later.since].tolist())
    with torch.no_grad():
        expected = slow_losses(trained, later)
    assert found[0] == pytest.approx(expected, rel=1e-4)
    assert head_losses(data, later, settings[0]) == {}  # it kept nothing


def drawn(data: FitData, settings: TowerSettings) -> Trainer:
    """Return the network of a fit as it was drawn."""
    with repeatable(1, data.seed):
        return Trainer(TowerData.build(data, settings), settings, data.seed)


@pytest.mark.parametrize(
    ("asked", "heads", "learns", "stays"),
    [
        ("feedback", {"grade", "feedback"}, "grade_bias.weight", "next_query.weight"),
        ("next_item", {"next_item", "next_wanted"}, "next_query.weight", "grade_bias.weight"),
    ],
)
def test_a_head_alone_learns_alone(
    logged: tuple[FitData, LaterEvents], asked: Any, heads: set[str], learns: str, stays: str, tmp_path: Path
) -> None:
    data, later = replace(logged[0], heads=tmp_path), logged[1]
    settings = TowerSettings(**SMALL_TOWERS | {"finetune_epochs": 0}, pretrain_losses=[asked])
    trained, before = fit(data, settings), drawn(data, settings).model.state_dict()
    after = trained.model.state_dict()
    assert torch.equal(after[stays], before[stays])
    assert not torch.equal(after[learns], before[learns])
    found = head_losses(data, later, settings)
    assert set(found) == heads
    assert all(map(math.isfinite, found.values()))
    figures = [epoch["validation"] for epoch in trained.report["epochs"]]
    if asked == "next_item":  # no score is learned that could order pairs: the epoch is chosen by the likelihood
        trainer = drawn(data, settings)
        trainer.model.load_state_dict(after)
        assert max(figures) < -1
        assert trainer.likelihood() == pytest.approx(max(figures))
    else:
        assert all(0 < figure < 1 for figure in figures)


@pytest.mark.parametrize("both", [False, True])
def test_of_wanted_items_no_other_is_learned(logged: tuple[FitData, LaterEvents], both: bool) -> None:
    """The loss of a batch is that of its wanted events among the same other items; feedback is of all of them."""
    heads = ["next_item", "feedback"] if both else ["next_item"]
    settings = TowerSettings(**LONG, next_items="wanted", pretrain_losses=heads)
    trainer = drawn(logged[0], settings)
    inputs = trainer.inputs
    trainer.negatives.draw = lambda targets, rng: even_pool(inputs.spec.n_items)  # type: ignore[method-assign]
    trainer.model.eval()
    targets = TargetMask(inputs.pretrain.events, np.zeros_like(inputs.pretrain.groups))
    every = np.arange(len(inputs.batches.windows.user))
    with torch.no_grad():
        loss = float(trainer.pretrain_loss(inputs.batches.make(every, targets)))
    found = trainer.head_losses(inputs.batches, inputs.pretrain.events)
    wanted = found.pop("next_wanted")
    others = found.pop("next_item")
    assert abs(wanted - others) > 1e-3
    assert loss == pytest.approx(wanted + sum(found.values()), rel=1e-4)
    assert 0.1 < inputs.wanted.sum() / inputs.pretrain.events.sum() < 0.9


def test_log_q_is_how_often_an_item_is_drawn() -> None:
    rng = np.random.default_rng(0)
    targets = rng.choice(20, 500, p=rng.dirichlet(np.ones(20)))
    popularity = np.bincount(targets, minlength=25)
    in_fit = np.arange(22)  # two are of the fit, but no target
    count, said = np.zeros(25), np.full(25, np.nan)
    for _ in range(3000):
        pool = Negatives(popularity, in_fit, 16, log_q=True).draw(targets, rng)
        count += np.bincount(pool.item, minlength=25) / 3000
        said[pool.item] = np.exp(pool.log_expected)
    np.testing.assert_allclose(count[:22], said[:22], atol=0.06)
    assert count[22:].sum() == 0
    plain = Negatives(popularity, in_fit, 16, log_q=False).draw(targets, rng)
    assert (plain.log_expected == 0).all()


def test_of_a_large_catalogue_the_same_items_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = even_pool(30)
    assert whole.item.tolist() == list(range(30))
    assert (whole.log_expected == 0).all()
    monkeypatch.setattr(negatives, "MOST", 20)
    some, again = even_pool(30), even_pool(30)
    np.testing.assert_array_equal(some.item, again.item)
    assert len(set(some.item.tolist())) == 20
    np.testing.assert_allclose(np.exp(some.log_expected), 20 / 30, rtol=1e-6)


def test_a_head_that_no_event_concerns_has_no_loss(logged: tuple[FitData, LaterEvents]) -> None:
    log = logged[1].log
    unknown = replace(log, grade=np.full_like(log.grade, -1), feedback=np.full_like(log.feedback, np.nan))
    histories, k = Histories.build(unknown, logged[0].catalog.n_users), log.feedback.shape[1]
    said = Said(np.arange(5), torch.ones(5), torch.zeros(5, 2), torch.zeros(5, k))
    kinds = FeedbackKinds.build(log.feedback, False)
    found = mean_losses([said], histories, kinds, 1, [NEXT_ITEM, FEEDBACK])
    assert found.pop("next_item") == 1
    assert set(found) == {"next_wanted", "grade", "feedback"}
    assert all(map(math.isnan, found.values()))
