"""A fit that goes on from an earlier one: weights by id and value whatever the codes are, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import fit_data
from world import SMALL_TOWERS, World, make_world

from features.errors import PairliftError
from features.pairing.groups import make_groups
from features.pairing.split import make_split
from features.plugin import FitData
from features.schema import Attribute, Catalog
from features.settings import PairingSettings, SplitSettings
from features.state.histories import Histories
from neural.data import TowerData
from neural.histories import CODES
from neural.settings import TowerSettings
from neural.train import Trained, Trainer, all_vectors, fit
from neural.two_tower import TwoTower
from neural.vocabulary.context import ContextAttribute
from neural.vocabulary.earlier import Known, Numbered, Side
from neural.vocabulary.entities import hashed
from neural.vocabulary.feedback import FeedbackKinds
from neural.warm.train import fit_warm
from neural.warm.weights import WEIGHTS, kept_rows, save_weights, take_up

OPTIONS: dict[str, Any] = {**SMALL_TOWERS, "columns": ["dot", "item_vector"], "retrieval_epochs": 0}
#: likewise, of what requests say of themselves
OF_DEVICES = {"context": ["surface", "device"]}
#: the user of the one event with a device that an earlier fit does not know
OTHER = 7
NO_EPOCHS = {"warm_pretrain_epochs": 0, "warm_finetune_epochs": 0}
SPLIT = SplitSettings()


@pytest.fixture(scope="module")
def small() -> World:
    world = make_world(11, surfaces=("feed", "search"))
    said = np.random.default_rng(0).choice([np.nan, 0, 1], (len(world.log), 1)).astype(np.float32)
    contexts = (Attribute("device", "categorical", values=("phone", "tv")),)
    return world._replace(log=replace(world.log, context=said), catalog=replace(world.catalog, contexts=contexts))


@pytest.fixture(scope="module")
def large(small: World) -> World:
    """The same events; new items, a new genre, a new tag, surface and device stand before the old ones."""
    was = small.catalog
    ids = np.arange(9, 9 + 1200)
    at, n = np.searchsorted(ids, was.item_ids), len(ids)
    genre, length, tags = was.item_attributes
    codes, numbers = np.zeros(n, np.int32), np.full(n, np.nan, np.float32)
    codes[at], numbers[at] = np.where(genre.codes >= 0, genre.codes + 1, -1), length.numbers
    sizes = np.zeros(n, np.int64)
    sizes[at] = np.diff(tags.offsets)
    attributes = (
        Attribute("genre", "categorical", codes=codes, values=("A new one", *genre.values)),
        Attribute("length", "numeric", numbers=numbers),
        Attribute(
            "tags", "multi", codes=tags.codes + 1, offsets=np.append(0, sizes.cumsum()), values=("A", *tags.values)
        ),
    )
    contexts = (replace(was.contexts[0], values=("desk", "phone", "tv")),)
    catalog = replace(
        was, item_ids=ids, surfaces=("about", *was.surfaces), item_attributes=attributes, contexts=contexts
    )
    said = small.log.context + np.float32(1)
    said[np.flatnonzero(small.log.user == OTHER)[0]] = 0
    surface = small.log.surface + np.int16(1)
    log = replace(small.log, item=at[small.log.item].astype(np.int32), surface=surface, context=said)
    return small._replace(log=log, catalog=catalog)


def of(world: World, t1: float | None = None) -> FitData:
    split = SPLIT if t1 is None else SplitSettings(t1=t1)
    return fit_data(world, make_split(split, world.log, "UTC"))


def saved(plugin: TwoTower, folder: Path) -> Path:
    folder.mkdir()
    plugin.save(folder)
    return folder


@pytest.fixture(scope="module")
def earlier(small: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the plugin saves of a fit, for one that goes on."""
    settings, folder = TowerSettings(**OPTIONS), tmp_path_factory.mktemp("earlier")
    trained = fit(of(small), settings)
    save_weights(trained.model, trained.inputs, folder)
    about = {"format": TwoTower.format, "settings": settings.model_dump(), "report": trained.report}
    (folder / "two_tower.json").write_text(json.dumps(about))
    return folder


def went_on(data: FitData, earlier: Path, **options: Any) -> Trained:
    return fit_warm(data, TowerSettings(**OPTIONS, **options), earlier, "two_tower.json", TwoTower.format)


def max_validation(folder: Path) -> float:
    epochs = json.loads((folder / "two_tower.json").read_text())["report"]["epochs"]
    return float(max(epoch["validation"] for epoch in epochs))


def values(plugin: TwoTower, world: World) -> Any:
    requests = make_groups(world.log, PairingSettings(), make_split(SPLIT, world.log, "UTC")).of("test").requests
    requests = requests.select(requests.user != OTHER).slice(0, 60)
    return plugin.values(requests, Histories.build(world.log, world.catalog.n_users))


def test_what_was_learned_stays_with_its_id_and_value(small: World, large: World, tmp_path: Path) -> None:
    """Without epochs the values are those of then: over shifted codes, a table that has grown, and back again."""
    first, second = TwoTower(**OPTIONS, **OF_DEVICES), TwoTower(**OPTIONS, **OF_DEVICES, **NO_EPOCHS)
    first.fit(of(small))
    second.fit(replace(of(large), earlier=saved(first, tmp_path / "first")))
    want = values(first, small)
    assert np.isfinite(want).mean() > 0.9
    assert len(np.unique(want[:, 0])) > 100
    np.testing.assert_allclose(values(second, large), want, rtol=1e-4, atol=1e-5)
    saved(second, tmp_path / "second")
    rows = [Known.load(folder).rows for folder in (tmp_path / "first", tmp_path / "second")]
    assert rows[1] == 16 * rows[0]
    # And of a fit that was kept for another catalogue, as a refit of the trees keeps it.
    saved(first.recoded(np.arange(80, dtype=np.int32)[::-1].copy(), np.arange(40, dtype=np.int32)), tmp_path / "moved")
    for name in ("second", "moved"):
        again = went_on(of(small), tmp_path / name, **OF_DEVICES, **NO_EPOCHS)
        with torch.no_grad():
            vectors = all_vectors(again.model.item, again.inputs.items)[:-1]
        np.testing.assert_allclose(vectors.numpy(), first.runtime.vectors.items[:-1], rtol=1e-4, atol=1e-5)
        assert again.report["earlier"]["validation"] == pytest.approx(max_validation(tmp_path / "first"), abs=1e-9)


def test_rows_that_no_kept_value_has_are_as_drawn(small: World, large: World, earlier: Path) -> None:
    """As in any fit: of new ids, and of those that are gone."""
    settings, known = TowerSettings(**OPTIONS), Known.load(earlier)
    catalog = replace(large.catalog, item_ids=np.where(large.catalog.item_ids == 10, 5, large.catalog.item_ids))
    assert (small.catalog.item_ids == 10).any()  # the first item is gone
    inputs = TowerData.build(replace(of(large), catalog=catalog), settings, earlier=known)
    torch.manual_seed(0)
    model = Trainer(inputs, settings, 0).model
    drawn = model.table.weight.detach().clone()
    take_up(model, earlier, known, inputs, catalog)
    with np.load(earlier / "weights.npz") as file:
        old, places = file["table.weight"], file["table_rows"].tolist()
    kept = np.zeros(inputs.rows, bool)
    number = dict(zip(known.items.values["id"].value, known.items.values["id"].number, strict=True))
    for feature, values in enumerate(known.items.values.values()):
        for value, k in zip(*values, strict=True):
            if feature or value != 10:
                row = hashed(np.array([k]), inputs.rows, 1, feature)[0]
                kept[row] = True
                then = hashed(np.array([k]), known.rows, 1, feature)[0]
                want = old[[places.index(r) for r in then]]
                np.testing.assert_array_equal(model.table.weight.detach()[torch.from_numpy(row)], want)
    gone = hashed(np.array([number[10]]), inputs.rows, 1, 0)
    assert not kept[gone].all()
    np.testing.assert_array_equal(kept, kept_rows(known, inputs.known, inputs.rows))
    assert 0.01 < kept.mean() < 0.2
    same = (model.table.weight.detach() == drawn).all(1).numpy()
    np.testing.assert_array_equal(same, ~kept)


def test_a_few_epochs_go_on_from_where_it_was_and_repeat(large: World, earlier: Path) -> None:
    options = {"warm_pretrain_epochs": 1, "warm_finetune_epochs": 5, "warm_rate": 0.5}
    fits = [went_on(of(large), earlier, **options) for _ in range(2)]
    epochs = fits[0].report["epochs"]
    assert [e["phase"] for e in epochs] == ["pre-train", "fine-tune"]  # not more than in a fit anew
    last = json.loads((earlier / "two_tower.json").read_text())["report"]["epochs"]
    assert epochs[0]["loss"] < last[1]["loss"] < last[0]["loss"]  # of the second epoch of then, and the first
    one, same = (dict(fit.model.named_parameters()) for fit in fits)
    assert all(torch.equal(one[name], same[name]) for name in one)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"width": 24}, "width was 16, now it is 24"),
        ({"layers": 1, "encoder": "hstu"}, "encoder was transformer, now it is hstu; layers was 2, now it is 1"),
        ({"context": ["hour"]}, "context was ['surface'], now it is ['hour']"),
        ({"semantic_ids": 2}, "semantic_ids was 0, now it is 2"),
    ],
)
def test_another_network_is_refused(options: dict[str, Any], says: str, small: World, earlier: Path) -> None:
    with pytest.raises(PairliftError) as found:
        TwoTower(**OPTIONS | options).fit(replace(of(small), earlier=earlier))
    assert says in str(found.value)
    assert "or train anew" in str(found.value)


def test_what_would_mean_something_else_is_refused(small: World, earlier: Path, tmp_path: Path) -> None:
    data, catalog = replace(of(small), earlier=earlier), small.catalog
    cases: dict[str, FitData] = {
        "its grades were skip, listen, like": replace(data, grades=("skip", "like")),
        "its feedback were play, now they are share": replace(data, log=replace(data.log, feedback_names=("share",))),
        "the attributes of items were id, genre": replace(
            data, catalog=replace(catalog, item_attributes=catalog.item_attributes[1:])
        ),
        "none of its 80 items is in this log": replace(data, catalog=replace(catalog, item_ids=catalog.item_ids + 1)),
    }
    for says, changed in cases.items():
        with pytest.raises(PairliftError, match=says):
            TwoTower(**OPTIONS).fit(changed)
    copied = tmp_path / "older"
    copied.mkdir()
    shutil.copy(earlier / "two_tower.json", copied)
    with pytest.raises(PairliftError, match="its weights were not kept"):
        TwoTower(**OPTIONS).fit(replace(data, earlier=copied))


def test_towers_from_before_past_context_was_read_say_so(small: World, tmp_path: Path) -> None:
    """Their tokens had no codes of it: the network is another one, though the TOML is the same."""
    first = TwoTower(**OPTIONS, **OF_DEVICES, **NO_EPOCHS)
    first.fit(of(small))
    weights = saved(first, tmp_path / "first") / WEIGHTS
    with np.load(weights) as file:
        np.savez(weights, **{name: array for name, array in file.items() if name != f"user.codes.{len(CODES)}.weight"})
    with pytest.raises(PairliftError, match=r"fitted before towers read what past requests said.* or train anew"):
        TwoTower(**OPTIONS, **OF_DEVICES).fit(replace(of(small), earlier=tmp_path / "first"))


def test_a_fit_that_has_seen_what_is_judged_is_refused(small: World, earlier: Path) -> None:
    """What it has learned from ends where its own validation slice began: by then this one's must not have begun."""
    until = Known.load(earlier).until
    data = of(small)
    assert until == data.groups.requests.as_of[data.groups.validation].min()
    with pytest.raises(PairliftError, match="it has seen what it would be judged by"):
        TwoTower(**OPTIONS, **NO_EPOCHS).fit(replace(of(small, t1=0.4), earlier=earlier))


def test_a_requests_categories_and_numbers_keep_their_rows() -> None:
    side = Side(1, {"id": Numbered([], [])}, {})
    contexts = {"device (category)": ["phone", "tv"], "age (number)": [1.0, 2.0], "price (number)": []}
    known = Known(
        until=0, rows=2, grades=[], surfaces=["feed", "search"], contexts=contexts, signals=[[], []],
        feedback={"watched": ["share", 0.0, 1.0], "plays": ["count", 0.5, 2.0]}, items=side, users=side,
    )  # fmt: skip
    device = Attribute("device", "categorical", values=("desk", "phone", "tv"))
    catalog = Catalog(
        user_ids=np.empty(0, np.int64), item_ids=np.empty(0, np.int64), surfaces=("about", "search", "zoo"),
        contexts=(device, Attribute("age", "numeric"), Attribute("price", "numeric")),
    )  # fmt: skip
    now = ContextAttribute("device", 0, True, (0.0, 2.0))  # desk and tv were said
    assert known.context_rows(now, catalog).tolist() == [0, -1, 2]
    assert known.surface_rows(catalog, 2).tolist() == [0, -1, 2]
    age, price = ContextAttribute("age", 1, False, (1.0, 2.0)), ContextAttribute("price", 2, False, (5.0,))
    assert known.context_rows(age, catalog).tolist() == [0, 1, 2, 3]
    assert known.context_rows(price, catalog).tolist() == [0, -1, -1]
    kinds = FeedbackKinds(("binary", "number"), np.zeros(2), np.ones(2), np.ones(2))
    with pytest.raises(PairliftError, match="'plays' was a count, now it is a number"):
        known.kinds(kinds)
    kept = known.kinds(replace(kinds, kind=("binary", "binary")))
    assert (kept.kind, kept.mean.tolist(), kept.scale.tolist()) == (("share", "count"), [0.0, 0.5], [1.0, 2.0])
    assert kept.unit.tolist() == [1.0, 1.0]  # of a fit that knew no times
    timed = replace(known, feedback={"stay": ["time", 0.5, 2.0, 30.0], "plays": ["count", 0.5, 2.0, 1.0]})
    assert timed.kinds(replace(kinds, kind=("number", "count"))).unit.tolist() == [30.0, 1.0]
