"""The cross-encoder: its contract, torch against ONNX Runtime, what a score may depend on, and what it learns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from contracts import PluginContract, check_served_as_trained, check_serves_without, fit_data
from logs import permuted
from world import SMALL_NETWORK, World, make_world

from features.errors import PairliftError
from features.pairing.groups import make_groups
from features.pairing.pairs import make_pairs, weight_table
from features.pairing.split import make_split
from features.plugin import FeaturePlugin, make_plugin
from features.schema import Requests, one_request
from features.settings import PairingSettings, SplitSettings
from features.state.histories import Histories
from neural.cross_encoder import CrossEncoder
from neural.cross_encoder.export import export_scorer, random_batch
from neural.cross_encoder.model import CrossArgus, Scorer
from neural.cross_encoder.runtime import SCORER_INPUTS, log_hours, plan
from neural.cross_encoder.settings import CrossSettings
from neural.cross_encoder.train import CrossTrainer, fit_cross, padded
from neural.data import TowerData
from neural.export import check_parity
from neural.histories import TokenSpec
from neural.model import Shape
from neural.vocabulary.entities import Layout

SMALL = {**SMALL_NETWORK, "cross_layers": 2}


class TestCrossEncoder(PluginContract):
    exact = False

    def make(self) -> FeaturePlugin:
        return CrossEncoder(**SMALL)


@pytest.fixture(scope="module")
def fitted(world: World) -> tuple[CrossEncoder, Requests, Histories]:
    split = make_split(SplitSettings(), world.log, "UTC")
    plugin = CrossEncoder(**SMALL)
    plugin.fit(fit_data(world, split))
    requests = make_groups(world.log, PairingSettings(), split).of("test").requests.slice(0, 60)
    return plugin, requests, Histories.build(world.log, world.catalog.n_users)


def random_model(length: int, layers: int) -> tuple[CrossArgus, TokenSpec]:
    spec = TokenSpec(
        n_items=30, n_grades=3, n_surfaces=2, signal_mean=(1.0, 0.5), signal_scale=(1.0, 1.0), length=length
    )
    torch.manual_seed(0)
    item, user = Layout((1, 1, 3), 4), Layout((), 2)
    shape = Shape(width=16, layers=2, heads=2, dropout=0.1, rows=64, tokens=spec, item=item, user=user)
    model = CrossArgus(shape, layers).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model, spec


@pytest.mark.parametrize(("length", "layers"), [(1, 1), (9, 2)])
def test_export_is_checked_and_a_difference_raises(length: int, layers: int, tmp_path: Path) -> None:
    model, spec = random_model(length, layers)
    export_scorer(model, spec, tmp_path / "scorer.onnx")
    rng = np.random.default_rng(1)
    batches = [random_batch(spec, 16, b, t, q, rng) for b in (1, 4) for t in {1, length} for q in (1, 30)]
    check_parity(Scorer(model), tmp_path / "scorer.onnx", SCORER_INPUTS, batches)
    with torch.no_grad():
        model.cross.looks[-1].value.weight.add_(0.05)
    with pytest.raises(PairliftError, match="differs from torch"):
        check_parity(Scorer(model), tmp_path / "scorer.onnx", SCORER_INPUTS, batches)


def test_a_long_history_is_exported_without_a_mask_of_its_longest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("neural.model.QUERIES", 20)
    model, spec = random_model(90, 1)
    export_scorer(model, spec, tmp_path / "scorer.onnx")  # which compares with torch, at 90 events too
    weights = onnx.load(str(tmp_path / "scorer.onnx")).graph.initializer
    assert max(np.prod(x.dims) for x in weights) < 90 * 90


def test_what_is_padded_or_later_changes_no_score() -> None:
    model, spec = random_model(9, 2)
    batch = list(random_batch(spec, 16, 10, 9, 6, np.random.default_rng(3)))
    with torch.no_grad():
        before = Scorer(model)(*batch)
        for row, length in enumerate(batch[5].tolist()):
            for k in (0, 1, 2, 3, 6):
                batch[k][row, length:] = 1
        after = Scorer(model)(*batch)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_a_candidate_meets_each_event_and_when_it_was() -> None:
    """Early fusion: the difference of two candidates' scores is not of one vector of the user, and has an age."""
    model, spec = random_model(9, 1)
    batch = list(random_batch(spec, 16, 1, 9, 40, np.random.default_rng(4)))
    vectors = torch.cat([batch[8][0].double(), torch.ones(40, 1, dtype=torch.float64)], dim=1)

    def of_no_vector(scores: torch.Tensor) -> float:
        """Return the spread of what no product of the candidates with one vector explains."""
        return float((scores - vectors @ torch.linalg.lstsq(vectors, scores[:, None]).solution[:, 0]).std())

    with torch.no_grad():
        scores = Scorer(model)(*batch)[0].double()
        older = Scorer(model)(*batch[:6], batch[6] + torch.linspace(0, 3, 9), *batch[7:])[0].double()
        model.cross.down.weight.zero_()
        product = Scorer(model)(*batch)[0].double()
    assert of_no_vector(product) < 1e-5
    assert of_no_vector(scores) > 0.1
    assert (older - scores).abs().max() > 0.01


def test_what_is_served_is_what_was_trained(world: World) -> None:
    """One pass over a window, with all groups in it, gives what each request is answered with."""
    settings = CrossSettings(**{**SMALL, "history": 200})
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    plugin, trained = CrossEncoder(**settings.model_dump()), fit_cross(data, settings)
    plugin.fit(data)
    trainer = CrossTrainer(trained.inputs, settings, data.seed)
    trainer.model = trained.model.eval()
    served = plugin.values(data.groups.requests, Histories.build(world.log, world.catalog.n_users))[:, 0]
    check_served_as_trained(trainer, served)
    assert np.abs(trained.model.cross.down.weight.detach().numpy()).max() > 0  # type: ignore[union-attr,operator]


def test_what_is_asked_in_parts_has_the_same_scores_and_gradients(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    settings = CrossSettings(**SMALL)
    inputs = TowerData.build(data, settings)
    torch.manual_seed(0)
    trainer = CrossTrainer(inputs, settings, 0)
    torch.nn.init.normal_(trainer.model.cross.down.weight)  # type: ignore[union-attr,arg-type]
    trainer.model.eval()
    batches, found = inputs.batches, []
    batch = batches.make(batches.plan(inputs.finetune, 600)[0], inputs.finetune)
    assert len(batch.groups.item) > 2 * len(batch.user)
    for queries in (512, 3):
        monkeypatch.setattr("neural.cross_encoder.train.QUERIES", queries)
        trainer.model.zero_grad()
        loss = trainer.finetune_loss(batch)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in trainer.model.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_rows_are_padded_by_window() -> None:
    window = np.array([0, 0, 2, 2, 2, 3])
    place, flat = padded(window, 5)
    np.testing.assert_array_equal(place, [[0, 1, 0], [0, 0, 0], [2, 3, 4], [5, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(place.ravel()[flat], np.arange(6))
    assert padded(np.empty(0, np.int64), 2)[0].shape == (2, 1)


def test_a_plan_scores_each_request_with_candidates_once() -> None:
    rng = np.random.default_rng(0)
    length, size = rng.integers(0, 300, 500), rng.integers(0, 40, 500)
    size[7] = 9000
    parts = list(plan(length, size))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.flatnonzero(size > 0))
    for at in parts:
        assert len(at) == 1 or len(at) * (length[at].max() + 1) * size[at].max() <= 2 << 19
        assert size[at].max() < 2 * size[at].min() or size[at].max() <= 2
    assert list(plan(np.empty(0, np.int64), np.empty(0, np.int64))) == []


def test_the_age_of_an_event() -> None:
    hour = 3_600_000_000
    found = log_hours(np.array([[2 * hour], [hour]]), np.array([[0, 2 * hour, 3 * hour]] * 2))
    np.testing.assert_allclose(found, [[np.log(3), 0, 0], [np.log(2), 0, 0]], rtol=1e-6)


def test_the_order_of_candidates_and_doubles_change_nothing(fitted: Any) -> None:
    plugin, requests, histories = fitted
    rng, as_of = np.random.default_rng(0), int(requests.as_of[-1])
    items = rng.integers(-1, 82, 200).astype(np.int32)  # cold ones, doubles
    found = plugin.values(one_request(5, as_of, 0, items), histories)[:, 0]
    order = rng.permutation(200)
    moved = plugin.values(one_request(5, as_of, 0, items[order]), histories)[:, 0]
    np.testing.assert_allclose(moved, found[order], rtol=1e-5, atol=1e-6)
    for item in np.unique(items):
        assert np.ptp(found[items == item]) <= 1e-6 or np.isnan(found[items == item]).all()
    np.testing.assert_array_equal(np.isnan(found), (items < 0) | (items >= 80))


def test_cold_users_and_unknown_feedback_are_defined(fitted: Any, world: World) -> None:
    plugin, requests, _ = fitted
    n_users, as_of = world.catalog.n_users, int(requests.as_of[0])
    log = replace(world.log, feedback=np.full_like(world.log.feedback, np.nan), grade=np.full_like(world.log.grade, -1))
    blank, items = Histories.build(log, n_users), np.arange(9, dtype=np.int32)
    assert np.isfinite(plugin.values(one_request(0, as_of, 0, items), blank)).all()
    for user in (-1, n_users + 5):  # no event, and no user attributes in this world
        assert np.isnan(plugin.values(one_request(user, as_of, 0, items), blank)).all()
    assert np.isnan(plugin.values(one_request(0, 0, 0, items), blank)).all()  # no event before then


def test_the_surface_is_context(fitted: Any) -> None:
    plugin, requests, histories = fitted
    item = np.arange(9, dtype=np.int32)
    asked = [plugin.values(one_request(2, int(requests.as_of[0]), s, item), histories) for s in (-1, 0, 1, 77)]
    assert not np.array_equal(asked[1], asked[2])
    np.testing.assert_array_equal(asked[0], asked[3])  # a new surface is an unknown one


def test_all_candidates_of_a_request_are_one_call(fitted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin, requests, histories = fitted
    session, calls = plugin.runtime.session, []

    class Counted:
        def run(self, *given: Any) -> Any:
            calls.append(given[1]["candidates"].shape)
            return session.run(*given)

    monkeypatch.setattr(plugin.runtime, "session", Counted())
    plugin.values(one_request(2, int(requests.as_of[-1]), 0, np.arange(70, dtype=np.int32)), histories)
    assert calls == [(1, 70, 16)]


def test_labels_of_the_validation_slice_train_nothing(world: World) -> None:
    settings = CrossSettings(**{**SMALL, "pretrain_epochs": 1, "finetune_epochs": 0})
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    held = np.flatnonzero(data.log.ts >= data.groups.requests.as_of[data.groups.validation].min())
    before, after = fit_cross(data, settings), fit_cross(replace(data, log=permuted(data.log, held)), settings)
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, after.model.state_dict()[name]), name


def test_what_is_saved_has_the_mode_of_its_folder(fitted: Any, tmp_path: Path) -> None:
    """The folder of a fit is for its user alone; a bundle is served by another one."""
    tmp_path.chmod(0o755)
    fitted[0].save(tmp_path)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o755] * len(folders)


def test_an_option_that_is_none_is_refused_and_another_format_too(fitted: Any, tmp_path: Path) -> None:
    with pytest.raises(PairliftError, match=r"\[plugins.cross\]: retrieval_epochs"):
        make_plugin("cross", "neural.cross_encoder:CrossEncoder", {"retrieval_epochs": 3})
    with pytest.raises(PairliftError, match="not fitted"):
        CrossEncoder().values(fitted[1], fitted[2])
    fitted[0].save(tmp_path)
    about = tmp_path / "cross_encoder.json"
    about.write_text(about.read_text().replace('"format": 2', '"format": 0'))
    with pytest.raises(PairliftError, match="format 2 was expected, found 0"):
        CrossEncoder.load(tmp_path)


def test_loading_and_serving_never_import_torch(fitted: Any, tmp_path: Path) -> None:
    plugin, requests, histories = fitted
    check_serves_without({"torch"}, plugin, histories, int(requests.as_of[0]), tmp_path)


TAUGHT = {"width": 32, "heads": 2, "pretrain_epochs": 6, "finetune_epochs": 3, "threads": 1, "history": 64}


def test_the_answer_of_the_world_is_learnt() -> None:
    """Tastes are hidden: a user's own items are known from what the user did before, and from nothing else."""
    world = make_world(1, n_users=120, requests_per_user=20)
    split = make_split(SplitSettings(), world.log, "UTC")
    plugin = CrossEncoder(**TAUGHT)
    plugin.fit(fit_data(world, split))
    groups = make_groups(world.log, PairingSettings(), split).of("test")
    pairs = make_pairs(groups, weight_table({}, world.grades, False))
    r = groups.requests
    score = plugin.values(r, Histories.build(world.log, world.catalog.n_users))[:, 0]
    best = world.affinity[r.user[r.row_request()], r.item]
    ahead = [np.sign(s[pairs.winner] - s[pairs.loser]) / 2 for s in (score, best)]
    found, most = (float((a * pairs.weight).sum() / pairs.weight.sum()) for a in ahead)  # above chance
    assert found > 0.6 * most, (found, most)


def test_shuffled_labels_teach_nothing() -> None:
    world = make_world(1, n_users=120, requests_per_user=20)
    world = world._replace(log=permuted(world.log, np.arange(len(world.log))))
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    fitted = fit_cross(data, CrossSettings(**{**TAUGHT, "pretrain_epochs": 3, "finetune_epochs": 1}))
    found = [epoch["validation"] for epoch in fitted.report["epochs"]]
    assert np.abs(np.array(found) - 0.5).max() < 0.05, found
