"""Training: one pass for all groups of a user, what a fit must not see, the same bits twice, and a known answer."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import fit_data
from logs import permuted
from world import SMALL_TOWERS, World, make_world

from features.pairing.groups import make_groups
from features.pairing.pairs import make_pairs, weight_table
from features.pairing.split import make_split
from features.plugin import FitData
from features.schema import DAY, HOUR
from features.settings import PairingSettings, SplitSettings
from features.state.histories import Histories
from features.state.lag import DAILY, Lag
from neural.batches import TargetMask
from neural.data import TowerData
from neural.histories import make_tokens, visible
from neural.settings import TowerSettings
from neural.train import NO_NEGATIVES, Trainer, all_vectors, fit, network_size
from neural.two_tower import TwoTower
from ranker.studies.variants import STUDIES


def all_groups(inputs: TowerData) -> TargetMask:
    return TargetMask(np.zeros_like(inputs.pretrain.events), np.ones_like(inputs.finetune.groups))


@pytest.mark.parametrize(("lag", "history"), [(0, 200), (0, 8), (6 * HOUR, 200), (DAILY, 200)])
def test_one_pass_gives_the_states_of_one_pass_per_group(world: World, lag: int | str, history: int) -> None:
    """With a history longer than a window, a state has seen at least half a window, and is that of these events."""
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    settings = TowerSettings.model_construct(
        **{**TowerSettings(**SMALL_TOWERS).model_dump(), "lag": lag, "history": history}
    )
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
                items = all_vectors(trainer.model.item, inputs.items)
                last = trainer.model.user.last(
                    items[torch.from_numpy(tokens.item)],
                    torch.from_numpy(tokens.codes),
                    torch.from_numpy(tokens.signals),
                    torch.from_numpy(inputs.expected.surprise(tokens)),
                    trainer.model.user_token(*(torch.from_numpy(x[r.user[g : g + 1]]) for x in (
                        inputs.users.slots, inputs.users.weight, inputs.users.numbers))),
                    torch.from_numpy(tokens.length),
                )  # fmt: skip
                vector = trainer.model.user.vectors(*last, torch.from_numpy(batches.context[g : g + 1]))
                rows = np.arange(r.offsets[g], r.offsets[g + 1])
                dot = items[torch.from_numpy(batches.item[rows])] @ vector[0]
                expected = trainer.model.residual(dot, torch.from_numpy(batches.impression_offset[rows]))
                torch.testing.assert_close(found[owner == g], expected, rtol=1e-3, atol=1e-4)
                checked, cut = checked + 1, cut + int(state < stop[g] - start[g])
    assert checked > 20
    assert (cut > 20) == (history < 200)


def test_pairs_of_a_batch_are_the_pairs_of_the_log(world: World) -> None:
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    inputs = TowerData.build(data, TowerSettings(**SMALL_TOWERS))
    everything = all_groups(inputs)
    found = []
    for chosen in inputs.batches.plan(everything, 300, np.random.default_rng(0)):
        batch = inputs.batches.make(chosen, everything).groups
        found += list(zip(batch.row[batch.winner], batch.row[batch.loser], batch.weight, strict=True))
        assert (batch.group[batch.winner] == batch.group[batch.loser]).all()
    assert sorted(found) == sorted(zip(data.pairs.winner, data.pairs.loser, data.pairs.weight, strict=True))


def test_nothing_of_the_validation_slice_is_a_target(world: World) -> None:
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    inputs = TowerData.build(data, TowerSettings(**SMALL_TOWERS))
    first = data.groups.requests.as_of[data.groups.validation].min()
    assert (inputs.pretrain.events == (inputs.batches.histories.ts < first)).all()
    assert not (inputs.finetune.groups & data.groups.validation).any()
    assert not (inputs.validation.groups & ~data.groups.validation).any()
    assert inputs.validation.groups.sum() > 0


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
    before, r, boundary = TowerData.build(data, TowerSettings(**SMALL_TOWERS)), data.groups.requests, first_held(data)
    h = before.batches.histories
    user = np.repeat(np.arange(len(h.sizes)), h.sizes)
    for ts in np.unique(data.log.ts)[1:-3:4].tolist():
        later = np.flatnonzero((data.log.ts >= ts) & (data.log.ts < boundary))
        after = TowerData.build(replace(data, log=permuted(data.log, later)), TowerSettings(**SMALL_TOWERS))
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
    settings = TowerSettings(**{**SMALL_TOWERS, "pretrain_epochs": 0, "finetune_epochs": 0, phase: 1})
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
    inputs, first = TowerData.build(data, TowerSettings(**SMALL_TOWERS)), first_held(data)
    log = replace(data.log, item=np.where(data.log.ts >= first, 7, np.where(data.log.item == 7, 8, data.log.item)))
    moved = TowerData.build(replace(data, log=log), TowerSettings(**SMALL_TOWERS))
    assert (inputs.popularity == np.bincount(data.log.item[data.log.ts < first], minlength=80)).all()
    assert inputs.items.weight[7, 0] > 0 == moved.items.weight[7, 0] == moved.popularity[7]


#: width and threads at which torch shares its sums among threads
LARGE = {
    **SMALL_TOWERS,
    "width": 64,
    "history": 64,
    "batch_tokens": 4096,
    "negatives": 256,
    "threads": 2,
    "columns": ["dot"],
}
DIGEST = f"""
import hashlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_neural_train import *
print(digest(fitted_on(make_world(surfaces=("feed", "search")))))
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
    fit(fit_data(world, make_split(SplitSettings(), world.log, "UTC")), TowerSettings(**{**SMALL_TOWERS, "threads": 2}))
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
    a, b = (fit(fit_data(w, split), TowerSettings(**SMALL_TOWERS)) for w in (whole, cut))
    assert a.inputs.spec == b.inputs.spec
    for name, tensor in a.model.state_dict().items():
        assert torch.equal(tensor, b.model.state_dict()[name]), name


@pytest.mark.parametrize("encoder", ["transformer", "hstu"])
def test_the_answer_of_the_world_is_learnt(encoder: str) -> None:
    """Tastes are hidden: a user's own items are known from what the user did before, and from nothing else."""
    world = make_world(1, n_users=120, requests_per_user=20)
    split = make_split(SplitSettings(), world.log, "UTC")
    plugin = TwoTower(width=32, heads=2, pretrain_epochs=12, finetune_epochs=5, teachers=0, history=64, encoder=encoder)
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


def test_less_fine_tuning_is_a_part_of_more(world: World) -> None:
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    built = {
        share: TowerData.build(data, TowerSettings(**SMALL_TOWERS, finetune_share=share)) for share in (0.25, 0.5, 1.0)
    }
    quarter, half, whole = (built[share].finetune.groups for share in (0.25, 0.5, 1.0))
    assert (quarter <= half).all()
    assert (half <= whole).all()
    for share, some in ((0.25, quarter), (0.5, half)):
        assert abs(some.sum() / whole.sum() - share) < 0.12
    in_validation = data.groups.validation
    np.testing.assert_array_equal(whole, ~in_validation & built[1.0].batches.with_pairs)
    for inputs in built.values():
        np.testing.assert_array_equal(inputs.validation.groups, built[1.0].validation.groups)
        np.testing.assert_array_equal(inputs.pretrain.events, built[1.0].pretrain.events)


def test_the_sizes_that_are_studied_span_thirty_times_and_leave_the_table_out(world: World) -> None:
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    found = []
    for arm in STUDIES["sizes"].of("two_tower"):
        settings = TowerSettings(**arm.options)
        model = Trainer(TowerData.build(data, settings), settings, 0).model
        found.append(network_size(model))
        by_name = {name: p.numel() for name, p in model.named_parameters()}
        assert found[-1] == sum(n for name, n in by_name.items() if "table" not in name)
    assert found == sorted(found)
    assert found[-1] > 30 * found[0]
