"""Distillation: who the teachers are, how near the student comes to their mean, and that a fit repeats."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contracts import fit_data
from world import SMALL_TOWERS, World

from features.pairing.split import make_split
from features.plugin import FitData
from features.settings import SplitSettings
from neural.distil import Student, _products, distil
from neural.settings import TowerSettings
from neural.train import SEED_STEP, Trainer, fit
from neural.two_tower import TwoTower

TAUGHT: dict[str, Any] = {
    **SMALL_TOWERS, "pretrain_epochs": 6, "finetune_epochs": 2, "teachers": 2, "distil_epochs": 12,
    "retrieval_epochs": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(world: World) -> FitData:
    return fit_data(world, make_split(SplitSettings(), world.log, "UTC"))


def test_the_student_is_nearer_to_the_mean_of_the_teachers_than_they_are(data: FitData) -> None:
    settings = TowerSettings(**TAUGHT)
    trained = distil(data, settings)
    of = [fit(replace(data, seed=data.seed + SEED_STEP * k), settings) for k in range(2)]
    assert {epoch["phase"] for epoch in trained.report["epochs"]} == {"distil"}  # what is served reached these alone
    assert trained.report["teachers"][0]["phase"] == "teacher 1: pre-train"
    taught = [epoch for epoch in trained.report["teachers"] if epoch["phase"].startswith("teacher 2")]
    assert [epoch["loss"] for epoch in taught] == [epoch["loss"] for epoch in of[1].report["epochs"]]

    def products(model: Any) -> torch.Tensor:
        trainer = Trainer(trained.inputs, settings, 0)
        trainer.model.load_state_dict(model.state_dict())
        trainer.model.eval()
        batches, mask = trained.inputs.batches, trained.inputs.validation
        batch = batches.make(batches.plan(mask, 10_000)[0], mask)
        with torch.no_grad():
            return _products(trainer, batch, np.arange(trained.inputs.spec.n_items))

    teachers = [products(fitted.model) for fitted in of]
    mean = torch.stack(teachers).mean(0)
    student, first, second = (float((x - mean).square().mean()) for x in (products(trained.model), *teachers))
    assert student < 0.5 * min(first, second)


def test_what_is_known_without_towers_is_weighed_as_the_teachers_do(data: FitData) -> None:
    settings = TowerSettings(**TAUGHT)
    inputs = fit(data, TowerSettings(**TAUGHT | {"pretrain_epochs": 0, "finetune_epochs": 1})).inputs
    torch.manual_seed(0)
    teachers = [Trainer(inputs, settings, k) for k in range(2)]
    for teacher, weight in zip(teachers, (0.5, 1.5), strict=True):
        torch.nn.init.constant_(teacher.model.known, weight)
    student = Student(inputs, settings, 0, teachers)
    assert float(student.model.known) == 1.0
    mask = student.phases()[0].plan(None)
    loss = student.phases()[0].loss(mask[0])
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.model.known.grad is None
    assert all(parameter.grad is None for parameter in teachers[0].model.parameters())


def test_a_taught_plugin_repeats_to_the_bit(data: FitData) -> None:
    fits = []
    for _ in range(2):
        plugin = TwoTower(**TAUGHT | {"pretrain_epochs": 1, "finetune_epochs": 1, "distil_epochs": 1})
        plugin.fit(data)
        fits.append(plugin.item_vectors)
    np.testing.assert_array_equal(*fits)
