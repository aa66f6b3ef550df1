"""The columns of grade and feedback: what is served is what was trained, and it is near the truth of a world."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from contracts import PluginContract, check_serves_without, fit_data
from world import SMALL_TOWERS, World, make_world

from features.errors import PairliftError
from features.pairing.groups import make_groups
from features.pairing.split import make_split
from features.plugin import FeaturePlugin, FitData
from features.schema import HOUR, EventLog, one_request
from features.settings import PairingSettings, SplitSettings
from features.state.histories import Histories
from neural.answers import Answers, AnswersTrainer, answered, fit_answers
from neural.settings import TowerSettings
from neural.train import fit
from neural.two_tower import TwoTower
from neural.vocabulary.feedback import FeedbackKinds

NAMES = ("like", "play", "count", "watch", "never")
COLUMNS = ["feedback:count", "dot", "grade", "feedback:like", "feedback:play", "feedback:watch"]
SETTINGS: dict[str, Any] = {
    **SMALL_TOWERS, "history": 40, "width": 32, "pretrain_epochs": 12, "finetune_epochs": 4, "feedback_kinds": True,
    "retrieval_epochs": 0,
}  # fmt: skip
SHORT: dict[str, Any] = {**SMALL_TOWERS, "pretrain_epochs": 1, "retrieval_epochs": 0}


def feedback_of(log: EventLog) -> EventLog:
    """Feedback of every kind that follows the grade; that of `watch` stands in seconds, and `never` is not known."""
    rng, grade = np.random.default_rng(0), log.grade
    columns = [
        grade == 2, log.feedback[:, 0], rng.poisson(np.array([0.2, 2, 9])[grade]), 30.0 * grade - 20,
        np.full(len(log), np.nan),
    ]  # fmt: skip
    feedback = np.stack(columns, axis=1).astype(np.float32)
    feedback[rng.random(len(log)) < 0.1, 0] = np.nan
    return replace(log, feedback=feedback, feedback_names=NAMES)


class TestAnswers(PluginContract):
    exact = False

    def make(self) -> FeaturePlugin:
        return TwoTower(**SMALL_TOWERS, retrieval_epochs=0, columns=["grade", "feedback:play"])


@pytest.fixture(scope="module")
def told() -> World:
    world = make_world(3, n_users=80, requests_per_user=16, surfaces=("feed", "search"))
    return world._replace(log=feedback_of(world.log))


@pytest.fixture(scope="module")
def data(told: World) -> FitData:
    return fit_data(told, make_split(SplitSettings(), told.log, "UTC"))


@pytest.fixture(scope="module")
def fitted(data: FitData) -> TwoTower:
    plugin = TwoTower(**SETTINGS, columns=COLUMNS)
    plugin.fit(data)
    return plugin


def test_they_are_near_what_comes_after_the_fit(fitted: TwoTower, told: World) -> None:
    """Over the shown of the test period, of which nothing was learned: as often as said, and for whom it was said."""
    split = make_split(SplitSettings(), told.log, "UTC")
    groups = make_groups(told.log, PairingSettings(), split).of("test")
    values = fitted.values(groups.requests, Histories.build(told.log, told.catalog.n_users))
    others = (f"feedback_{name}" for name in ("like", "play", "watch"))
    assert fitted.columns == ("feedback_count", "dot", "grade", *others)
    found = dict(zip(fitted.columns, values.T, strict=True))
    came, grade = told.log.feedback[groups.event], groups.grade.astype(float)
    play, count = np.nanmean(came[:, 1]), came[:, 2]
    for name, truth, near in (("feedback_like", grade == 2, 0.05), ("grade", grade, 0.1), ("feedback_play", play, 0.1)):
        assert abs(found[name].mean() - truth.mean()) < near, name
    for name, truth in (("grade", grade), ("like", grade == 2), ("play", grade), ("count", count), ("watch", grade)):
        assert np.corrcoef(found[name if name == "grade" else f"feedback_{name}"], truth)[0, 1] > 0.5, name
    rate, p = (grade == 2).mean(), found["feedback_like"].astype(float)
    loss, constant = (-np.mean(np.where(grade == 2, np.log(q), np.log(1 - q))) for q in (p, np.full(len(p), rate)))
    assert loss < 0.8 * constant
    for name, most in (("grade", 2), ("feedback_like", 1), ("feedback_play", 1), ("feedback_count", 50)):
        assert 0 <= found[name].min() < found[name].max() <= most, name


def test_what_is_served_is_what_was_trained(data: FitData) -> None:
    """As of an event, the heads read what is seen of the user less the lag; windows hold whole histories here."""
    settings = TowerSettings(**{**SHORT, "history": 200, "lag": 6 * HOUR, "columns": ["grade", "feedback:like"]})
    plugin, trained = TwoTower(**settings.model_dump()), fit(data, settings)
    plugin.fit(data)
    before = copy.deepcopy(trained.model.state_dict())
    answers, _ = fit_answers(trained, (-1, 0), settings, data.seed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.model.state_dict().items())
    inputs, h = trained.inputs, trained.inputs.batches.histories
    some = np.flatnonzero(inputs.pretrain.events)[::7]
    user, row = h.rows()
    mask = np.zeros(len(row), bool)
    mask[some] = True
    with torch.no_grad():
        items = AnswersTrainer(trained, (), 0).items
        events = answered(trained.model, inputs, items, mask)
        vectors = items[events.item]
        grade, feedback = answers.logits(events.states, events.users, vectors, events.known)
        want = torch.stack([grade.sigmoid().sum(1), feedback[:, 0].sigmoid()], dim=1).numpy()
    checked = 0
    for place, k in enumerate(some[:200:3]):
        one = one_request(int(user[k]), int(h.ts[k]), int(h.surface[k]), h.item[k : k + 1])
        found = plugin.values(one, h)[0]
        if not np.isnan(found[0]):
            np.testing.assert_allclose(found, want[3 * place], rtol=1e-3, atol=1e-4)
            checked += 1
    assert checked > 40


def test_cold_and_doubled_candidates_and_none_at_all(fitted: TwoTower, told: World, tmp_path: Path) -> None:
    h, as_of = Histories.build(told.log, told.catalog.n_users), int(told.log.ts[-1])
    items = np.array([4, -1, 4, told.catalog.n_items], np.int32)
    found = fitted.values(one_request(2, as_of, 0, items), h)
    assert np.isnan(found).all(axis=1).tolist() == np.isnan(found).any(axis=1).tolist() == [False, True, False, True]
    np.testing.assert_array_equal(found[0], found[2])
    assert np.isnan(fitted.values(one_request(-1, as_of, 0, items), h)).all()  # of whom nothing is known
    check_serves_without({"torch"}, fitted, h, as_of, tmp_path)


def test_a_batch_in_parts_is_a_batch(fitted: TwoTower, data: FitData, monkeypatch: pytest.MonkeyPatch) -> None:
    h = Histories.build(data.log, data.catalog.n_users)
    whole = fitted.values(data.groups.requests, h)
    monkeypatch.setattr("neural.runtime.CANDIDATES", 37)
    np.testing.assert_allclose(fitted.values(data.groups.requests, h), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ("liek", r"'feedback:liek' is none of \[events.feedback\] \(did you mean 'like'"),
        ("never", "no value of it is known"),
    ],
)
def test_what_the_log_does_not_say_is_told_before_anything_is_trained(data: FitData, column: str, says: str) -> None:
    with pytest.raises(PairliftError, match=says):
        TwoTower(**SETTINGS, columns=[f"feedback:{column}"]).fit(data)


def test_a_log_without_feedback_still_has_a_grade(told: World) -> None:
    log = told.log.with_feedback(0)
    plugin = TwoTower(**SHORT, columns=["grade"])
    plugin.fit(fit_data(told._replace(log=log), make_split(SplitSettings(), log, "UTC")))
    found = plugin.values(one_request(2, int(log.ts[-1]), 0, np.arange(9, dtype=np.int32)), Histories.build(log, 80))
    assert ((found >= 0) & (found <= 2)).all()


def test_what_is_expected_stands_in_the_logs_own_units() -> None:
    rng = np.random.default_rng(0)
    times = np.where(rng.random(200) < 0.3, 0, 1000 * rng.lognormal(3, 1.5, 200))
    values = np.stack([rng.normal(0, 9, 200), rng.poisson(3, 200), times], axis=1).astype(np.float32)
    kinds = FeedbackKinds.build(values, True)
    assert kinds.kind == ("number", "count", "time")
    answers, wanted = SimpleNamespace(kinds=kinds), torch.from_numpy(kinds.wanted(values))
    for k in range(3):
        found = Answers._unscaled(answers, k, wanted[:, k])  # type: ignore[arg-type]
        np.testing.assert_allclose(found.numpy(), values[:, k], rtol=1e-4, atol=1e-2)
