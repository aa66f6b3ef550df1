"""SASRec: its contract, its loss, what it reads, what it learns, and that what is served is what was trained."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import VectorContract, check_serves_without, fit_data
from logs import permuted
from world import World

from features.errors import PairliftError
from features.pairing.groups import make_groups
from features.pairing.pairs import Pairs
from features.pairing.split import make_split
from features.plugin import FeaturePlugin, FitData, lag_of, make_plugin
from features.schema import DAY, HOUR, Bool, Catalog, empty_log, one_request
from features.settings import PairingSettings, SplitSettings
from features.state.histories import Histories, HistoryBuffer
from features.state.kept import KeptStates
from features.state.lag import Lag
from neural.sasrec import SASRec
from neural.sasrec.export import export_encoder
from neural.sasrec.losses import gbce, power
from neural.sasrec.model import Encoder
from neural.sasrec.sequences import Sequences
from neural.sasrec.settings import SASRecSettings
from neural.sasrec.train import Inputs, Trainer, fit, ndcg
from neural.wanted import Runtime, count_wanted, latest_wanted

#: options that fit in a second
SMALL: dict[str, Any] = {
    "width": 16, "history": 12, "epochs": 3, "negatives": 32, "batch_tokens": 512, "threads": 1,
}  # fmt: skip


class TestSASRec(VectorContract):
    exact = False

    def make(self) -> FeaturePlugin:
        return SASRec(**SMALL)


# The loss


def gbce_by_the_paper(positive: float, negative: list[float], others: int, t: float) -> float:
    """The definition of arXiv 2308.07192 as it stands."""
    k = len(negative)
    alpha = k / others
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    sigmoid = lambda s: 1 / (1 + math.exp(-s))  # noqa: E731
    total = math.log(sigmoid(positive) ** beta)
    for s in negative:
        total += math.log(1 - sigmoid(s))
    return -total / (k + 1)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize(("k", "others"), [(1, 1000), (7, 20), (16, 16)])
def test_gbce_is_the_papers(t: float, k: int, others: int) -> None:
    rng = np.random.default_rng(k)
    positive, negative = rng.normal(0, 3, 5), rng.normal(0, 3, (5, k))
    found = gbce(torch.from_numpy(positive), torch.from_numpy(negative), power(k, others, t))
    expected = [gbce_by_the_paper(p, n.tolist(), others, t) for p, n in zip(positive, negative, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_without_calibration_gbce_is_cross_entropy_and_with_all_of_it_the_power_is_the_share() -> None:
    assert power(256, 1000, 0.0) == pytest.approx(1.0)
    assert power(250, 1000, 1.0) == pytest.approx(0.25)
    assert power(1000, 1000, 0.75) == pytest.approx(1.0)


def test_scores_far_out_and_negatives_that_are_left_out_have_finite_gradients() -> None:
    positive = torch.tensor([-200.0, 200.0], requires_grad=True)
    negative = torch.tensor([[1.0, -torch.inf], [300.0, 2.0]], requires_grad=True)
    loss = gbce(positive, negative, 0.5)
    assert loss[0].item() == pytest.approx((0.5 * 200 + math.log(1 + math.e)) / 3, rel=1e-6)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(positive.grad).all()  # type: ignore[arg-type]
    assert negative.grad is not None
    assert torch.isfinite(negative.grad).all()
    assert negative.grad[0, 1] == 0


def test_ndcg_is_of_the_place_among_all_items() -> None:
    rng = np.random.default_rng(0)
    states, items, target = rng.normal(size=(40, 3)), rng.normal(size=(25, 3)), rng.integers(0, 25, 40)
    scores = states @ items.T
    place = 1 + (scores > scores[np.arange(40), target][:, None]).sum(1)
    expected = np.where(place <= 10, 1 / np.log2(1 + place), 0)
    found = ndcg(*(torch.from_numpy(x) for x in (states, target, items)))
    np.testing.assert_allclose(found, expected)
    alike = ndcg(torch.ones(1, 2), torch.tensor([3]), torch.ones(5, 2))
    np.testing.assert_allclose(alike, 1 / math.log2(1 + 3))  # the middle of five


# What is read


def some_histories(seed: int, n_users: int = 9, n_items: int = 11) -> Histories:
    rng = np.random.default_rng(seed)
    n = 160
    log = replace(
        empty_log((), n),
        user=np.sort(rng.integers(-1, n_users - 1, n))[rng.permutation(n)].astype(np.int32),  # the last has no event
        item=rng.integers(-1, n_items + 2, n).astype(np.int32),
        ts=np.sort(rng.integers(0, 90, n)),
        grade=rng.integers(-1, 3, n).astype(np.int8),
    )
    return Histories.build(log, n_users)


def wanted_items(h: Histories, start: int, stop: int, known: Bool, floor: int) -> list[int]:
    rows = range(start, stop)
    return [int(h.item[r]) for r in rows if h.grade[r] >= floor and 0 <= h.item[r] < len(known) and known[h.item[r]]]


@pytest.mark.parametrize("floor", [-1, 1, 2])
@pytest.mark.parametrize("most", [1, 4, 200])
def test_the_latest_wanted_events_are_found(floor: int, most: int) -> None:
    h, rng = some_histories(floor + 5), np.random.default_rng(most)
    known = rng.random(11) < 0.7
    user = rng.integers(-1, 10, 60).astype(np.int32)
    start, stop = h.before(user, rng.integers(0, 99, 60))
    count = count_wanted(start, stop, h.item, h.grade, known, floor, most)
    t = int(count.max())
    found = latest_wanted(start, stop, h.item, h.grade, known, floor, t)
    for b in range(60):
        expected = wanted_items(h, int(start[b]), int(stop[b]), known, floor)[-most:]
        assert count[b] == len(expected)
        assert found[b, t - count[b] :].tolist() == expected


@pytest.mark.parametrize("length", [1, 3, 100])
def test_each_wanted_event_but_the_first_is_the_target_of_one_window(length: int) -> None:
    h, row = some_histories(1), np.array([3, -1, 0, 1, 2, -1, 4, 5, 6, 7, 8], np.int64)
    row = np.append(row, [-1, -1])  # as long as the catalogue
    s = Sequences.build(h, row, 1)
    windows = s.windows(length)
    targets: list[int] = []
    for part in windows.batches(20, np.random.default_rng(0)):
        batch = s.batch(part)
        assert batch.item.shape[1] <= length
        assert batch.item.size <= 20 or len(part.start) == 1
        for b, size in enumerate(batch.length):
            assert (batch.there[b].nonzero()[0] == np.arange(batch.item.shape[1] - size, batch.item.shape[1])).all()
            place = batch.place[b, -size:]
            assert (np.diff(place) == 1).all()
            np.testing.assert_array_equal(batch.target[b, -size:], s.item[place])
            np.testing.assert_array_equal(batch.item[b, -size:], s.item[place - 1])
            user = np.searchsorted(s.offsets, place[0], side="right") - 1
            assert s.offsets[user] < place[0]
            assert place[-1] < s.offsets[user + 1]
            targets += place.tolist()
    assert sorted(targets) == sorted(set(range(len(s.item))) - set(s.offsets[:-1].tolist()))
    # The latest window of each user ends with the last event: as the paper has it.
    last = s.offsets[1:][np.diff(s.offsets) > 1] - 1
    assert set(last.tolist()) <= set(windows.stop.tolist())


def test_sequences_are_the_wanted_events_of_known_items_in_time_order() -> None:
    h = some_histories(2)
    known = np.arange(13) % 3 > 0
    s = Sequences.build(h, np.where(known, np.arange(13) + 100, -1), 2)
    for user in range(9):
        expected = wanted_items(h, int(h.offsets[user]), int(h.offsets[user + 1]), known, 2)
        assert (s.item[s.offsets[user] : s.offsets[user + 1]] - 100).tolist() == expected


@pytest.fixture(scope="module")
def data(world: World) -> FitData:
    return fit_data(world, make_split(SplitSettings(), world.log, "UTC"))


def boundary(data: FitData) -> int:
    return int(data.groups.requests.as_of[data.groups.validation].min())


@pytest.mark.parametrize(("wanted", "floor"), [(1, 1), (2, 2), (9, -1)])
def test_it_learns_from_wanted_events_before_the_validation_slice(data: FitData, wanted: int, floor: int) -> None:
    inputs, log = Inputs.build(replace(data, wanted=wanted), 0), data.log
    assert inputs.floor == floor
    early = (log.ts < boundary(data)) & (log.grade >= floor)
    assert len(inputs.learned.item) == early.sum()
    assert (inputs.learned.ts < boundary(data)).all()
    np.testing.assert_array_equal(np.flatnonzero(inputs.row >= 0), np.unique(log.item[early]))
    assert (inputs.known.ts[inputs.held] >= boundary(data)).all()
    assert inputs.held.sum() > 0


def test_the_order_and_labels_of_the_validation_slice_train_nothing(data: FitData) -> None:
    """One epoch, so that they cannot choose one."""
    held = np.flatnonzero(data.log.ts >= boundary(data))
    found = [
        fit(replace(data, log=x), SASRecSettings(**{**SMALL, "epochs": 1}))
        for x in (data.log, permuted(data.log, held))
    ]
    np.testing.assert_array_equal(found[0].items, found[1].items)
    assert found[0].report["epochs"][0]["validation"] != found[1].report["epochs"][0]["validation"]


def test_the_best_epoch_is_kept_and_training_stops(data: FitData) -> None:
    inputs = Inputs.build(data, 0)
    trainer = Trainer(inputs, SASRecSettings(**{**SMALL, "epochs": 50, "patience": 2, "learning_rate": 0.02}), 0)
    trainer.train()
    reached = [epoch["validation"] for epoch in trainer.progress]
    best = int(np.argmax(reached))
    assert len(reached) == best + 3 < 50  # two more epochs, which were no better
    assert trainer.validation(trainer.held_windows()) == pytest.approx(reached[best], abs=1e-12)
    short = Trainer(inputs, SASRecSettings(**{**SMALL, "epochs": 50, "max_steps": 1}), 0)
    short.train()
    assert len(short.progress) == 1


# What is learned


def cyclic(seed: int, shuffled: bool = False) -> tuple[FitData, Histories]:
    """A world in which item k is followed by k + 1: 150 users, 12 to 30 events each, of 16 items, an hour apart.

    shuffled: the same events of each user in another order.
    """
    rng, n_items = np.random.default_rng(seed), 16
    parts = []
    for user in range(150):
        items = (rng.integers(n_items) + np.arange(rng.integers(12, 31))) % n_items
        ts = rng.integers(0, DAY) + np.arange(len(items)) * HOUR
        parts.append(np.stack([np.full(len(items), user), rng.permutation(items) if shuffled else items, ts]))
    user, item, ts = np.concatenate(parts, axis=1)[:, np.argsort(np.concatenate(parts, axis=1)[2], kind="stable")]
    n = len(ts)
    log = replace(
        empty_log((), n), user=user.astype(np.int32), item=item.astype(np.int32), ts=ts, grade=np.zeros(n, np.int8)
    )
    catalog = Catalog(user_ids=np.arange(150), item_ids=np.arange(n_items))
    split = make_split(SplitSettings(), log, "UTC")
    groups, none = make_groups(log, PairingSettings(), split).of("towers"), np.empty(0, np.int32)
    pairs = Pairs(none, none, none.astype(np.float32), none.astype(bool))
    past = log.until(split.t1)
    data = FitData(log=past, catalog=catalog, groups=groups, pairs=pairs, grades=("like",), seed=seed)
    return data, Histories.build(log, 150)


def hits(plugin: SASRec, histories: Histories) -> float:
    """Return how often the last item of a user has the highest product, all events before it being known."""
    right = []
    for user in range(len(histories.sizes)):
        last = int(histories.offsets[user + 1]) - 1
        asked = one_request(user, int(histories.ts[last]), -1, np.arange(16, dtype=np.int32))
        right.append(plugin.values(asked, histories)[:, 0].argmax() == histories.item[last])
    return float(np.mean(right))


LEARNS: dict[str, Any] = {
    "width": 32, "history": 10, "epochs": 60, "dropout": 0.1, "negatives": 8, "learning_rate": 0.01,
    "batch_tokens": 256, "threads": 1,
}  # fmt: skip


@pytest.mark.parametrize(("shuffled", "low", "high"), [(False, 0.95, 1.0), (True, 0.0, 0.3)])
def test_it_learns_which_item_follows_where_the_order_says_it(shuffled: bool, low: float, high: float) -> None:
    data, histories = cyclic(1, shuffled)
    plugin = SASRec(**LEARNS)
    plugin.fit(data)
    assert low <= hits(plugin, histories) <= high


# What is served


@pytest.fixture(scope="module")
def fitted(data: FitData, world: World) -> tuple[SASRec, Histories]:
    plugin = SASRec(**SMALL, lag="4d")
    plugin.fit(data)
    return plugin, Histories.build(world.log, world.catalog.n_users)


def plain(plugin: SASRec, **other: Any) -> SASRec:
    """The same plugin, that keeps nothing or has other arguments of `Runtime`."""
    r = plugin.runtime
    own = SASRec(**SMALL)
    own._runtime = Runtime(
        **{"encode": r.encode, "items": r.items, "floor": r.floor, "length": 12, "lag": Lag(), **other}
    )
    return own


def test_what_is_served_is_what_was_trained(data: FitData, world: World) -> None:
    """The served vector is the last state of torch over the user's latest wanted events, by the definition."""
    settings = SASRecSettings(**SMALL)
    plugin, trainer = SASRec(**SMALL), Trainer(Inputs.build(data, data.seed), settings, data.seed)
    plugin.fit(data)
    trained = fit(data, settings)
    np.testing.assert_array_equal(plugin.item_vectors, trained.items)
    trainer.network.encoder = trained.encoder
    histories, known = Histories.build(world.log, world.catalog.n_users), trainer.inputs.row >= 0
    for user in range(world.catalog.n_users):
        as_of = int(world.log.ts[-1]) - user * DAY // 2
        start, stop = histories.before(np.array([user], np.int32), np.array([as_of]))
        items = wanted_items(histories, int(start[0]), int(stop[0]), known, 1)[-12:]
        vectors = torch.from_numpy(trained.items[items])[None]
        with torch.no_grad():
            states = trained.encoder.states(vectors, torch.tensor([len(items)]))[0]
        found = plugin.user_vectors(one_request(user, as_of, 0, np.zeros(0, np.int32)), histories)[0]
        np.testing.assert_allclose(found, states[-1].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 7])
def test_onnx_is_torch_and_padding_says_nothing(length: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = Encoder(length, 8, 2, 2, 0.3).eval()
    export_encoder(encoder, tmp_path / "encoder.onnx")  # which compares them for all lengths
    item = torch.randn(1, length, 8)
    with torch.no_grad():
        alone = encoder(item[:, -1:], torch.tensor([1]))
        np.testing.assert_allclose(encoder(item, torch.tensor([1])), alone, rtol=1e-5, atol=1e-6)
        states = encoder.states(item, torch.tensor([length]))
        np.testing.assert_allclose(encoder(item, torch.tensor([length])), states[:, -1], rtol=1e-5, atol=1e-6)


def test_a_state_has_seen_the_items_up_to_its_own_and_no_padding() -> None:
    torch.manual_seed(0)
    encoder, item, length = Encoder(6, 8, 2, 2, 0.0).eval(), torch.randn(2, 6, 8), torch.tensor([6, 4])
    with torch.no_grad():
        states = encoder.states(item, length)
        for j in range(6):
            other = item.clone()
            other[:, j] += torch.randn(8)  # a constant would be normalised away
            moved = (encoder.states(other, length) - states).abs().amax(-1) > 1e-4  # [2, 6]
            assert moved[0].tolist() == [k >= j for k in range(6)]
            assert moved[1, 2:].tolist() == [k >= j >= 2 for k in range(2, 6)]  # the first two are padding


def test_an_encoder_that_differs_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = Encoder(4, 8, 1, 1, 0.0).eval()
    # As a graph that has lost what tells real items from padding.
    original = encoder.forward
    calls: list[int] = []

    def other(item: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return original(item, length) * (1 if torch.compiler.is_exporting() else 2)

    encoder.forward = other  # type: ignore[method-assign]
    with pytest.raises(PairliftError, match="differs from torch"):
        export_encoder(encoder, tmp_path / "encoder.onnx")
    assert calls


def test_a_lag_hides_the_latest_events(fitted: Any, world: World) -> None:
    plugin, histories = fitted
    assert lag_of(plugin) == plugin.runtime.lag == Lag(4 * DAY)
    items, end = np.arange(20, dtype=np.int32), int(world.log.ts[-1])
    different = 0
    for user in range(20):
        late, early = (one_request(user, as_of, 0, items) for as_of in (end, end - 4 * DAY))
        found = plugin.values(late, histories)
        np.testing.assert_array_equal(found, plain(plugin).values(early, histories))
        different += not np.array_equal(found, plain(plugin).values(late, histories))
    assert different > 10


def test_unwanted_events_and_untrained_items_say_nothing(fitted: Any, world: World) -> None:
    plugin, histories = fitted
    items, end = np.arange(20, dtype=np.int32), int(world.log.ts[-1])
    plain_one = plain(plugin)
    rng = np.random.default_rng(0)
    unwanted = np.flatnonzero(histories.grade < 1)
    mixed = histories.item.copy()
    mixed[unwanted] = rng.integers(-1, 99, len(unwanted))
    other = replace(histories, item=mixed)
    for user in range(9):
        asked = one_request(user, end, 0, items)
        np.testing.assert_array_equal(plain_one.values(asked, histories), plain_one.values(asked, other))
    vectors = plugin.item_vectors.copy()
    vectors[3] = np.nan  # as if it had never been trained on
    without = plain(plugin, items=vectors)
    gone = replace(histories, grade=np.where(histories.item == 3, -1, histories.grade).astype(np.int8))
    asked = one_request(1, end, 0, items)
    found = without.values(asked, histories)[:, 0]
    assert np.isnan(found).tolist() == [k == 3 for k in range(20)]
    np.testing.assert_array_equal(np.delete(found, 3), np.delete(plain_one.values(asked, gone)[:, 0], 3))


def test_who_wanted_nothing_has_no_value(fitted: Any, world: World) -> None:
    plugin, histories = fitted
    items, end = np.arange(5, dtype=np.int32), int(world.log.ts[-1])
    nothing = replace(histories, grade=np.zeros_like(histories.grade))
    assert np.isnan(plugin.values(one_request(1, end, 0, items), nothing)).all()
    assert np.isfinite(plugin.values(one_request(1, end, 0, items), histories)).all()
    cold = np.array([-1, 80, 0, 12345], np.int32)
    assert np.isnan(plugin.values(one_request(1, end, 0, cold), histories)[:, 0]).tolist() == [True, True, False, True]


def test_a_kept_vector_gives_the_same_to_the_bit(fitted: Any, world: World) -> None:
    """Over recorded events in any order, early and late as_of, known and cold users."""
    kept, histories = plain(fitted[0]), fitted[1]
    fresh = plain(fitted[0])
    fresh.runtime.kept = KeptStates(0)
    rng, end, items = np.random.default_rng(0), int(world.log.ts[-1]), np.arange(30, dtype=np.int32)
    buffer = HistoryBuffer(histories)
    states = [histories, buffer.histories]
    for _ in range(6):
        late = world.log.select(np.sort(rng.choice(len(world.log), 40, replace=False)))
        ts = np.sort(late.ts + rng.integers(0, 40 * DAY, 40))
        states.append(buffer.extended(replace(late, ts=ts, user=rng.integers(0, 45, 40).astype(np.int32))))
        for _ in range(40):
            known = states[-1] if rng.random() < 0.8 else states[rng.integers(len(states))]
            as_of = end + int(rng.choice([-20, -1, 0, 3, 50])) * DAY
            one = one_request(int(rng.integers(-1, 8 if rng.random() < 0.7 else 50)), as_of, 0, items)
            assert kept.values(one, known).tobytes() == fresh.values(one, known).tobytes()
    assert len(kept.runtime.kept) > 0
    assert len(fresh.runtime.kept) == 0


def test_a_vector_is_computed_once_until_there_are_new_events(fitted: Any, world: World) -> None:
    encode, calls = fitted[0].runtime.encode, []
    own = plain(fitted[0], encode=lambda *given: calls.append(1) or encode(*given))
    buffer = HistoryBuffer(fitted[1])
    asked = one_request(3, int(world.log.ts[-1]) + 9 * DAY, 0, np.arange(9, dtype=np.int32))
    for _ in range(3):
        own.values(asked, buffer.histories)
    assert len(calls) == 1
    others = world.log.select(world.log.user != 3)
    own.values(asked, buffer.extended(others.select(slice(0, 50))))
    assert len(calls) == 1
    mine = world.log.select(world.log.user == 3)
    own.values(asked, buffer.extended(mine.select(slice(0, 2))))
    assert len(calls) == 2


def test_loading_and_serving_never_import_torch(fitted: Any, tmp_path: Path, world: World) -> None:
    plugin, histories = fitted
    lag = f"plugin.settings.lag == {4 * DAY}"
    check_serves_without({"torch"}, plugin, histories, int(world.log.ts[-1]), tmp_path, lag)


# Bad input


def test_wrong_options_are_told_and_an_unfitted_plugin_says_so() -> None:
    for params, text in (({"heads": 3, "width": 16}, "must divide"), ({"negative": 3}, "did you mean")):
        with pytest.raises(PairliftError, match=text):
            make_plugin("sasrec", "neural.sasrec:SASRec", params)
    with pytest.raises(PairliftError, match="not fitted"):
        _ = SASRec().item_vectors


@pytest.mark.parametrize("kind", ["no events", "one event each", "one item", "no validation slice"])
def test_a_log_that_teaches_nothing_is_answered_with_nan(data: FitData, world: World, kind: str) -> None:
    log = data.log
    if kind == "no events":
        log = log.select(slice(0, 0))
    elif kind == "one event each":
        log = log.select(np.sort(np.unique(log.user, return_index=True)[1]))
    elif kind == "one item":
        log = replace(log, item=np.zeros_like(log.item))
    groups = data.groups
    if kind == "no validation slice":
        groups = replace(groups, validation=np.zeros_like(groups.validation))
    plugin = SASRec(**{**SMALL, "epochs": 1})
    plugin.fit(replace(data, log=log, groups=groups))
    asked = one_request(0, int(world.log.ts[-1]), 0, np.arange(9, dtype=np.int32))
    values = plugin.values(asked, Histories.build(world.log, world.catalog.n_users))
    assert np.isnan(values).all() == (kind != "no validation slice")
    json.dumps(plugin.curve, allow_nan=False)
