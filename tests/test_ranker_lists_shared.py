"""Shares of candidates in training and serving: no slice is asked by what it taught, and a bundle serves by them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from world import write_world

from features.plugin import FeaturePlugin
from features.state.store import State
from ranker.blend.shares import Judged
from ranker.bundle import load_bundle
from ranker.candidates.gathering import UNBOUNDED, candidates_of, own_quotas
from ranker.candidates.merge import Places
from ranker.config import load_config
from ranker.lists import shared
from ranker.lists.shared import SlicedShares
from ranker.pipeline import Pipeline
from ranker.request import Request
from ranker.train import train
from ranker.training.plugins import plugin_stage
from ranker.training.prepared import Prepared, prepare
from ranker.training.wanted import asked_in_slices, rows_of, sliced_shares, sources_until

MEMORY = 2**30
Plugins = dict[str, FeaturePlugin]


def open_world(folder: Path) -> Path:
    """A world whose TOML leaves quotas open. 80 items are few, so the budget is small."""
    path = write_world(folder)
    path.write_text(path.read_text() + "[sources]\ncandidates = 20\n")
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(load_config(open_world(tmp_path_factory.mktemp("shared"))))


@pytest.fixture(scope="module")
def plugins(prepared: Prepared) -> Plugins:
    return {"als": plugin_stage(prepared, "als", 0)}


def shares_of(prepared: Prepared, plugins: Plugins) -> SlicedShares:
    sources = sources_until(prepared, plugins, prepared.split.t1, MEMORY)
    found = sliced_shares(prepared, sources, asked_in_slices(prepared))
    assert found is not None
    return found


def changed(prepared: Prepared, where: Callable[[Prepared], np.ndarray]) -> Prepared:
    """The same log with other grades of the rows of a mask."""
    grade = prepared.log.grade.copy()
    rows = np.flatnonzero(where(prepared) & (grade >= 0))
    grade[rows] = 2 - grade[rows]
    log = replace(prepared.log, grade=grade)
    state = State.build(log, prepared.catalog, prepared.state.counters, prepared.config.grade_names)
    return replace(prepared, log=log, state=state)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learned shares hold, whatever so few users can show."""
    better = {known: Judged(known, 1.0, 12, (0.2, 0.1, 0.3), None) for known in (True, False)}
    monkeypatch.setattr(shared, "judged", lambda learner, budget: replace(learner, judged=better))


@pytest.mark.usefixtures("held")
def test_no_slice_is_asked_by_what_it_taught(prepared: Prepared, plugins: Plugins) -> None:
    begin = int(prepared.groups.of("booster", True).requests.as_of.min())
    before = shares_of(prepared, plugins)
    after_t2 = shares_of(changed(prepared, lambda p: p.log.ts >= p.split.t2), plugins)
    assert after_t2 == before
    of_validation = shares_of(changed(prepared, lambda p: p.log.ts >= begin), plugins)
    assert (of_validation.folds, of_validation.train) == (before.folds, before.train)
    assert of_validation.served != before.served
    sources = sources_until(prepared, plugins, prepared.split.t1, MEMORY)
    for user in (4, 5, 6, 7):
        request = Request(user, begin - 1, state=prepared.state)
        taught = before.folds[user % 2].quotas(sources) if user < 6 else own_quotas(sources)
        for own, other in (
            (before.of_train(sources), taught),
            (before.of_validation(sources), before.train.quotas(sources)),
        ):
            np.testing.assert_equal(own(request), other(request))


@pytest.mark.usefixtures("held")
def test_a_fold_is_learned_of_the_other_users(prepared: Prepared, plugins: Plugins) -> None:
    users = np.unique(asked_in_slices(prepared)[0].requests.user)
    folds = shares_of(prepared, plugins).folds
    assert [of.of[0].users for of in folds] == [(users % 2 == other).sum() for other in (1, 0)]
    assert len({(users % 2 == other).sum() for other in (1, 0)}) == 2  # so that they can be told apart


def test_the_budget_is_kept_and_open_quotas_without_one_are_as_wide_as_before(
    prepared: Prepared, plugins: Plugins, tmp_path: Path
) -> None:
    rows = rows_of(prepared, plugins)
    assert rows.shares is not None
    assert all(14 < of.candidates <= 20 for of in rows.shares.of)
    per_group = np.bincount(rows.validation.group)
    assert 14 < per_group.mean() < 26
    path = write_world(tmp_path)
    names = ("popular", "cooccurrence", "nearest")
    path.write_text(path.read_text() + "[sources]\n" + "".join(f"{name} = {{quota = 9}}\n" for name in names))
    fixed = prepare(load_config(path))
    assert not fixed.config.sources.shared
    assert rows_of(fixed, {"als": plugin_stage(fixed, "als", 0)}).shares is None


def test_a_bundle_serves_by_its_shares_as_it_was_trained(tmp_path: Path) -> None:
    config = load_config(open_world(tmp_path))
    train(config, tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.shares is not None
    pipeline = Pipeline(bundle)
    counts = []
    for user in range(-1, 40):
        request = Request(user, bundle.state.end, state=bundle.state)
        candidates, _ = candidates_of(pipeline.sources, request, config, bundle.shares.quotas(pipeline.sources))
        answer = pipeline.recommend(request, 80)
        assert sorted(answer.item.tolist()) == candidates.item.tolist()
        counts.append(len(candidates))
    pipeline.close()
    assert 8 < np.mean(counts) < 26
    old = Pipeline(replace(bundle, shares=None))  # as a bundle from before there were shares
    assert old.quotas(request) == Places([200] * 3, [UNBOUNDED] * 3, 600)
    old.close()
