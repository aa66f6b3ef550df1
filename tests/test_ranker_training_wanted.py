"""The wanted part: its rows are those of serving, read nothing of later, and its order is never below demand's."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from forests import forest
from hypothesis import given, settings
from hypothesis import strategies as st
from leaky import Label
from oracles import list_ndcg
from world import write_world

from features.errors import PairliftError
from features.plugin import FeaturePlugin
from features.schema import F64, NO_CONTEXT, Bool, EventLog
from features.state.store import State
from ranker.bundle import load_bundle
from ranker.candidates.cooccurrence import Cooccurrence
from ranker.candidates.filters import history
from ranker.candidates.gathering import candidates_of
from ranker.columns import DEMAND, Columns, demand
from ranker.config import load_config
from ranker.lists.asked import Asked
from ranker.lists.liked import WEIGHTS, chosen_of
from ranker.pipeline import Pipeline
from ranker.request import Request
from ranker.settings import SourcesSettings
from ranker.train import train
from ranker.training import wanted as module
from ranker.training.arms import Arms
from ranker.training.booster import fit_booster
from ranker.training.measured import bundle_at_cut
from ranker.training.plugins import plugin_stage
from ranker.training.prepared import Prepared, prepare
from ranker.training.proposed import LIST, MET, Proposed, _pairs
from ranker.training.wanted import (
    Rows,
    Wanted,
    asked_in_slices,
    digest_of,
    rows_of,
    sources_until,
    wanted_stage,
)  # fmt: skip

MEMORY = 2**30
#: users 5 and 6 and items 3 and 4 come after the plugins were fitted, and hands are a context of requests
LATE = "NOT ((user_id IN (5, 6) OR item_id IN (3, 4)) AND ts < (SELECT quantile_cont(ts, 0.75) FROM shown))"
CONTEXT = "[events.context]\nhand = \"CASE WHEN user_id % 2 = 0 THEN 'left' ELSE 'right' END\"\n"

Plugins = dict[str, FeaturePlugin]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    config = load_config(write_world(tmp_path_factory.mktemp("wanted"), where=LATE, request=CONTEXT))
    return prepare(config)


@pytest.fixture(scope="module")
def plugins(prepared: Prepared) -> Plugins:
    return {"als": plugin_stage(prepared, "als", 0)}


@pytest.fixture(scope="module")
def rows(prepared: Prepared, plugins: Plugins) -> Rows:
    return rows_of(prepared, plugins)


@pytest.fixture(scope="module")
def booster(prepared: Prepared, rows: Rows) -> lgb.Booster:
    return rows.fit(prepared.config, 0)


@pytest.fixture(scope="module")
def pipeline(prepared: Prepared, plugins: Plugins, booster: lgb.Booster) -> Iterator[Pipeline]:
    """A server of the trained parts, with the tables that the wanted part was learned with."""
    arms = Arms.of(prepared)
    arm = arms.fit("als", arms.served_columns(plugins), 0)
    table = Cooccurrence.build(prepared.log.until(prepared.split.t1), prepared.catalog.n_items, 1)
    pipeline = Pipeline(replace(bundle_at_cut(prepared, plugins, arm, Wanted(booster)), cooccurrence=table))
    yield pipeline
    pipeline.close()


def request_of(prepared: Prepared, who: Asked, k: int) -> Request:
    r = who.requests
    context = r.context[k : k + 1] if len(r.context) else NO_CONTEXT
    return Request(
        int(r.user[k]), int(r.as_of[k]), state=prepared.state, surface=int(r.surface[k]), context=context, explain=True
    )


def test_the_rows_are_those_that_are_served(
    prepared: Prepared, plugins: Plugins, rows: Rows, booster: lgb.Booster, pipeline: Pipeline
) -> None:
    sources = sources_until(prepared, plugins, prepared.split.t1, MEMORY)
    who = asked_in_slices(prepared)[1]
    who.requests.user[:2] = -1  # two are cold
    made = Proposed.of(prepared, plugins, sources, who, None, every=True)
    score = booster.predict(made.matrix, raw_score=True) + demand(made.matrix, rows.columns)
    hits = made.hits(score)
    for k in range(len(who)):
        answer = pipeline.recommend(request_of(prepared, who, k), 200)
        own, order = made.group == k, np.argsort(answer.item)
        assert answer.detail is not None
        assert list(answer.detail.columns) == rows.columns
        np.testing.assert_array_equal(made.matrix[own], answer.detail.values[order])
        np.testing.assert_allclose(score[own], answer.score[order], rtol=1e-12)
        wanted = np.isin(answer.item, who.item[who.offsets[k] : who.offsets[k + 1]])
        np.testing.assert_array_equal(made.hit[own], wanted[order])
        assert hits[k, : len(wanted[:LIST])].tolist() == wanted[:LIST].tolist()
    dot = made.matrix[:, rows.columns.index("als__dot")]
    assert np.isnan(dot[made.group < 2]).all()
    assert np.isnan(dot).mean() < 0.5
    assert len(np.unique(made.matrix[:, rows.columns.index("context_hand")])) == 2


def honest(prepared: Prepared, plugins: Mapping[str, FeaturePlugin], who: Asked) -> bool:
    """Whether the rows of each group equal those of a log that ends at its as_of."""
    t1 = prepared.split.t1
    whole = sources_until(prepared, plugins, t1, MEMORY)
    for k in range(len(who)):
        one = who.select(np.array([k]))
        log = prepared.log.until(int(one.requests.as_of[0]))
        state = State.build(log, prepared.catalog, prepared.state.counters, prepared.config.grade_names)
        cut = replace(prepared, log=log, state=state)
        a = Proposed.of(prepared, plugins, whole, one, None, every=True)
        b = Proposed.of(cut, plugins, sources_until(cut, plugins, t1, MEMORY), one, None, every=True)
        if a.matrix.shape != b.matrix.shape or not np.allclose(a.matrix, b.matrix, rtol=1e-5, equal_nan=True):
            return False
    return True


def test_rows_read_nothing_from_their_as_of_on(prepared: Prepared, plugins: Plugins) -> None:
    for who in asked_in_slices(prepared):
        assert honest(prepared, plugins, who.drawn(12, 0))


def test_a_column_that_reads_the_future_gains_and_is_found(prepared: Prepared, plugins: Plugins, rows: Rows) -> None:
    leaks = rows_of(prepared, {"label": Label()})
    worth = [r.validation.ndcg(r.scores(r.fit(prepared.config, 0))) for r in (rows, leaks)]
    assert worth[1] > worth[0] + 0.2
    assert not honest(prepared, {"label": Label()}, asked_in_slices(prepared)[0].drawn(3, 0))


def with_another_future(prepared: Prepared, start: int) -> Prepared:
    """The same users at the same times, with other items and grades from `start` on."""
    log, rng = prepared.log, np.random.default_rng(0)
    later = np.flatnonzero((log.ts >= start) & (log.grade >= 0))
    other = rng.permutation(later)
    item, grade = log.item.copy(), log.grade.copy()
    item[later], grade[later] = log.item[other], log.grade[rng.permutation(later)]
    changed: EventLog = replace(log, item=item, grade=grade)
    state = State.build(changed, prepared.catalog, prepared.state.counters, prepared.config.grade_names)
    return replace(prepared, log=changed, state=state)


def same_proposed(a: Proposed, b: Proposed) -> bool:
    arrays = ("matrix", "group", "hit", "wanted", "user")
    return all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=n == "matrix") for n in arrays)


def test_each_slice_reads_nothing_of_what_comes_behind_it(prepared: Prepared, plugins: Plugins, rows: Rows) -> None:
    begin = int(prepared.groups.of("booster", True).requests.as_of.min())
    after_train = rows_of(with_another_future(prepared, begin), plugins)
    assert same_proposed(after_train.train, rows.train)
    assert not same_proposed(after_train.validation, rows.validation)
    after_both = rows_of(with_another_future(prepared, prepared.split.t2), plugins)
    assert same_proposed(after_both.train, rows.train)
    assert same_proposed(after_both.validation, rows.validation)
    train, validation = asked_in_slices(prepared)
    assert prepared.split.t1 <= train.requests.as_of.min() <= train.requests.as_of.max() < begin
    assert begin <= validation.requests.as_of.min() <= validation.requests.as_of.max() < prepared.split.t2


def test_tables_of_the_sources_are_of_before_t1(
    prepared: Prepared, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, build = [], Cooccurrence.build

    def noted(log: EventLog, *arguments: int, **options: int) -> Cooccurrence:
        ends.append(int(log.ts.max()))
        return build(log, *arguments, **options)

    monkeypatch.setattr(Cooccurrence, "build", noted)
    monkeypatch.setattr(module, "asked_in_slices", lambda prepared: (some, some))
    some = asked_in_slices(prepared)[0].drawn(5, 0)
    rows_of(prepared, plugins)
    assert len(ends) == 1
    assert ends[0] < prepared.split.t1


@st.composite
def proposals(draw: st.DrawFn) -> tuple[Proposed, list[float]]:
    sizes = draw(st.lists(st.integers(2, 15), min_size=1, max_size=6))
    hit = [draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda h: 0 < sum(h) < len(h))) for n in sizes]
    missed = draw(st.lists(st.integers(0, 12), min_size=len(sizes), max_size=len(sizes)))
    n = sum(sizes)
    made = Proposed(
        matrix=np.zeros((n, 1), np.float32),
        group=np.repeat(np.arange(len(sizes)), sizes),
        hit=np.concatenate([np.array(h) for h in hit]),
        wanted=np.array([sum(h) + m for h, m in zip(hit, missed, strict=True)]),
        user=np.array(draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes))), np.int32),
    )
    return made, draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=n, max_size=n))


@given(proposals())
@settings(max_examples=200, deadline=None)
def test_ndcg_equals_the_oracle(made: tuple[Proposed, list[float]]) -> None:
    proposed, score = made
    want = []
    for g, wanted in enumerate(proposed.wanted.tolist()):
        own = np.flatnonzero(proposed.group == g)
        want.append(list_ndcg([score[r] for r in own], proposed.hit[own].tolist(), wanted, LIST))
    np.testing.assert_allclose(proposed.ndcgs(np.array(score)), want, atol=1e-12)
    assert proposed.ndcg(np.array(score)) == pytest.approx(np.mean(want))


@given(proposals(), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_pairs_are_of_what_was_wanted_with_others_of_the_group(made: tuple[Proposed, list[float]], seed: int) -> None:
    proposed, hit, group = made[0], made[0].hit, made[0].group
    pairs = _pairs(hit, group, seed)
    assert Counter(pairs.winner.tolist()) == dict.fromkeys(np.flatnonzero(hit).tolist(), MET)
    assert not hit[pairs.loser].any()
    assert (group[pairs.winner] == group[pairs.loser]).all()
    raw = [1 / np.sqrt(hit[group == group[w]].sum()) for w in pairs.winner]
    np.testing.assert_allclose(pairs.weight, raw / np.mean(raw), rtol=1e-5)
    assert pairs.sampled.all()
    again = proposed.slice(["x"], seed).pairs
    assert (again.loser == pairs.loser).all()


def test_losers_are_drawn_evenly() -> None:
    hit = np.tile([True, False, False, False, False], 2000)
    pairs = _pairs(hit, np.repeat(np.arange(2000), 5), 0)
    counts = np.bincount(pairs.loser % 5, minlength=5)
    assert counts[0] == 0
    assert abs(counts[1:] / counts.sum() - 0.25).max() < 0.02


def test_the_same_log_gives_the_same_rows_and_trees(
    prepared: Prepared, plugins: Plugins, rows: Rows, booster: lgb.Booster
) -> None:
    again = rows_of(prepared, plugins)
    assert same_proposed(again.train, rows.train)
    assert same_proposed(again.validation, rows.validation)
    assert again.fit(prepared.config, 0).model_to_string() == booster.model_to_string()
    assert again.fit(prepared.config, 1).model_to_string() != booster.model_to_string()


def test_what_is_learned_beats_demand_where_there_is_something_to_learn(rows: Rows, booster: lgb.Booster) -> None:
    validation = rows.validation
    assert validation.ndcg(rows.scores(booster)) > validation.ndcg(demand(validation.matrix, rows.columns)) + 0.03


def some_rows(seed: int, by_demand: bool) -> Proposed:
    """Of 20 proposals each, one is wanted: the one of the highest demand, or any."""
    rng, n = np.random.default_rng(seed), 60
    matrix = rng.normal(size=(20 * n, 2)).astype(np.float32)
    demanded = matrix[:, 1].reshape(n, 20).argmax(axis=1)
    hit = np.zeros((n, 20), bool)
    hit[np.arange(n), demanded if by_demand else rng.integers(0, 20, n)] = True
    return Proposed(
        matrix, np.repeat(np.arange(n), 20), hit.ravel(), np.ones(n, np.int64), np.arange(n, dtype=np.int32)
    )


def test_trees_that_are_no_better_than_demand_say_nothing(prepared: Prepared) -> None:
    rows = Rows(columns=["x", DEMAND], categorical=[], train=some_rows(0, False), validation=some_rows(1, True))
    booster = rows.fit(prepared.config, 0)
    np.testing.assert_array_equal(rows.scores(booster), rows.validation.matrix[:, 1].astype(np.float64))
    undemanded = replace(rows, columns=["x", "y"]).fit(prepared.config, 0)
    assert np.ptp(undemanded.predict(rows.validation.matrix)) > 0, "without that source there is no other order"


def test_linear_trees_that_are_silenced_say_nothing() -> None:
    booster = forest(0, trees=4, leaves=5, linear_tree=True)
    quiet = module._silent(booster)
    assert quiet.num_trees() == 1
    assert not np.asarray(quiet.predict(np.random.default_rng(0).normal(size=(100, 6)))).any()


def test_the_part_is_the_mean_of_forests_of_seeds_of_their_own(
    prepared: Prepared, rows: Rows, booster: lgb.Booster, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, lgb.Booster]] = []

    def noted(*arguments: Any, **options: Any) -> lgb.Booster:
        made.append((arguments[5], fit_booster(*arguments, **options)))
        return made[-1][1]

    monkeypatch.setattr(module, "fit_booster", noted)
    assert rows.fit(prepared.config, 0).model_to_string() == booster.model_to_string()
    assert len(made) == module.FORESTS
    values = rows.validation.matrix
    scores = [np.asarray(one.predict(values, raw_score=True)) for _, one in made]
    assert len({one.model_to_string() for _, one in made}) == len(made)
    np.testing.assert_allclose(booster.predict(values, raw_score=True), np.mean(scores, axis=0), rtol=1e-9, atol=1e-12)
    rows.fit(prepared.config, 3, forests=1)
    assert len(made) == module.FORESTS + 1
    for seed in (s for s in prepared.config.uplift.seeds if s):
        rows.fit(prepared.config, seed)
    of_seeds = [seed for seed, _ in made if seed != 3] + [3]
    assert len(of_seeds) == len(set(of_seeds))


def test_without_a_tree_the_list_is_the_popular_one(
    prepared: Prepared, pipeline: Pipeline, booster: lgb.Booster
) -> None:
    quiet = Pipeline(replace(pipeline.bundle, wanted=module._silent(booster)))
    who = asked_in_slices(prepared)[1]
    for k in range(5):
        request = request_of(prepared, who, k)
        popular = pipeline.sources[0][0].propose(request, 200).item.tolist()
        answer = quiet.recommend(request, 200).item.tolist()
        known = [item for item in answer if item in popular]
        assert answer[: len(known)] == known == [item for item in popular if item in answer]
        assert answer != pipeline.recommend(request, 200).item.tolist()
    quiet.close()


def test_the_stage_is_resumed_and_made_anew_by_what_it_reads(
    prepared: Prepared, plugins: Plugins, rows: Rows, booster: lgb.Booster
) -> None:
    made: list[int] = []
    config, digest = prepared.config, digest_of(Columns(), plugins)

    def key(settings: Mapping[str, Mapping[str, object]], digest: str = digest, seed: int = 0, **more: Any) -> str:
        tables = {name: getattr(config, name).model_copy(update=values) for name, values in settings.items()}
        changed = replace(prepared, config=config.model_copy(update=tables))
        wanted_stage(changed, plugins, digest, seed, MEMORY, name="key", rows=lambda: made.append(1) or rows, **more)
        return str(json.loads((config.work / "wanted" / f"key-seed{seed}.key").read_text())["key"])

    first = key({})
    assert key({}) == first
    same: list[dict[str, dict[str, object]]] = [
        {"lists": {"users": 7}}, {"booster": {"params": {"eta": 0.5}}}, {"booster": {"monotone": {"item_age": 1}}},
    ]  # fmt: skip
    assert {key(settings) for settings in same} == {first}
    assert len(made) == 1
    assert key({}, seed=1) != first
    other: list[dict[str, dict[str, object]]] = [
        {"lists": {"groups": 7}}, {"lists": {"params": {"eta": 0.5}}}, {"lists": {"wanted": "like"}},
        {"booster": {"trees": 7}}, {"booster": {"stop_after": 7}}, {"sources": {"cooccurrence": False}},
    ]  # fmt: skip
    keys = [
        first,
        key({}, digest="another"),
        key({}, liked=booster),
        key({}, forests=1),
        *(key(settings) for settings in other),
    ]
    assert len(set(keys)) == len(keys)
    assert len(made) == 1 + len(keys)


def test_parameters_are_of_their_own_and_checked(prepared: Prepared, rows: Rows, booster: lgb.Booster) -> None:
    config = prepared.config
    lists = {"lists": config.lists.model_copy(update={"params": {"num_leaves": 2, "lambda": 9.0}})}
    fitted = rows.fit(config.model_copy(update=lists), 0)
    assert max(tree["num_leaves"] for tree in fitted.dump_model()["tree_info"]) == 2
    assert module.wanted_settings(config.model_copy(update=lists)).params["lambda_l2"] == 9.0
    liked = {"booster": config.booster.model_copy(update={"params": {"num_leaves": 2}})}
    assert rows.fit(config.model_copy(update=liked), 0).model_to_string() == booster.model_to_string()
    said = type(config.lists).model_fields["params"].description or ""
    assert all(f"{name} = {value}" in said for name, value in module.PARAMS.items())
    wrong = {"lists": config.lists.model_copy(update={"params": {"max_cat_threshold": -1}})}
    with pytest.raises(PairliftError, match=r"^\[lists\.params\]: LightGBM says"):
        rows.fit(config.model_copy(update=wrong), 0)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ("num_leafs = 3", r"\[lists.params\] num_leafs: LightGBM has no such parameter \(did you mean 'num_leaves'"),
        ("seed = 3", r"\[lists.params\] seed: Pairlift sets this"),
        ("linear_trees = true", r"only the part that orders Rank can have linear trees: \[booster.params\]"),
        ("mc = [1]", r"only the part that orders Rank can be constrained: \[booster.monotone\]"),
    ],
)
def test_wrong_parameters_are_refused_before_any_work(tmp_path: Path, params: str, says: str) -> None:
    path = write_world(tmp_path)
    path.write_text(f"{path.read_text()}\n[lists.params]\n{params}\n")
    with pytest.raises(PairliftError, match=says):
        prepare(load_config(path))
    assert not (tmp_path / "work").exists()


def test_no_sources_give_no_wanted_part(prepared: Prepared, plugins: Plugins, tmp_path: Path) -> None:
    nothing = SourcesSettings(popular=False, cooccurrence=False, nearest=False)
    empty = replace(prepared, config=prepared.config.model_copy(update={"sources": nothing}))
    assert rows_of(empty, plugins).empty
    path = write_world(tmp_path)
    path.write_text(path.read_text() + "[sources]\npopular = false\ncooccurrence = false\nnearest = false\n")
    measured = train(load_config(path), tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").wanted is None
    assert measured["lists"] is None


def test_nothing_wanted_gives_no_wanted_part(
    prepared: Prepared, plugins: Plugins, caplog: pytest.LogCaptureFixture
) -> None:
    log = prepared.log
    bored = replace(prepared, log=replace(log, grade=np.minimum(log.grade, 0)))
    assert rows_of(bored, plugins).empty
    assert wanted_stage(bored, plugins, "bored", 0, MEMORY, name="bored").booster is None
    assert "lists are ordered as Rank is" in caplog.text
    # That nothing can be learned is kept too.
    again = wanted_stage(bored, plugins, "bored", 0, MEMORY, name="bored", rows=lambda: pytest.fail("again"))
    assert again == (None, None, None)


def test_what_is_wanted_again_is_no_loser_where_lists_have_it(prepared: Prepared, plugins: Plugins) -> None:
    assert not seen_hits(prepared, plugins).any()
    sources = prepared.config.sources.model_copy(update={"exclude_seen": False})
    again = replace(prepared, config=prepared.config.model_copy(update={"sources": sources}))
    assert seen_hits(again, plugins).any()


def seen_hits(prepared: Prepared, plugins: Plugins) -> Bool:
    """Of the rows that requests of training propose and whose item the user has seen: which of them were wanted."""
    sources = sources_until(prepared, plugins, prepared.split.t1, MEMORY)
    found = []
    for who in asked_in_slices(prepared):
        for k in range(len(who)):
            request = Request.of(who.requests, k, prepared.state)
            seen = np.intersect1d(candidates_of(sources, request, prepared.config)[0].item, history(request))
            found.append(np.isin(seen, who.item[who.offsets[k] : who.offsets[k + 1]]))
    return np.concatenate(found)


def test_one_user_is_enough_to_train(tmp_path: Path) -> None:
    path = write_world(tmp_path, where="user_id = 1")
    measured = train(load_config(path), tmp_path / "bundle")
    assert measured["lists"]["users"] == 1
    assert measured["lists"]["ndcg@10"]["ci95"] in (None, [None, None])


def test_the_liked_part_is_added_with_the_weight_that_is_chosen_or_asked_for(
    rows: Rows, booster: lgb.Booster, pipeline: Pipeline, prepared: Prepared
) -> None:
    liked, validation = pipeline.bundle.booster, rows.validation
    own, n = rows.scores(booster), liked.num_feature()
    of_liked = np.asarray(liked.predict(validation.matrix[:, :n], raw_score=True))
    by_user = [np.mean(validation.ndcgs(own)[validation.user == user]) for user in np.unique(validation.user)]
    np.testing.assert_allclose(validation.by_user(own), by_user)
    chosen = chosen_of({w: validation.by_user(own + w * of_liked) for w in (0.0, *WEIGHTS)})
    for asked, weight in ((None, chosen), (0.3, 0.3), (0.0, 0.0)):
        found, said = rows.with_liked(booster, liked, asked)
        np.testing.assert_allclose(rows.scores(found), own + weight * of_liked, atol=1e-9)
        assert (said.weight, said.chosen) == (weight, asked is None)


def test_a_liked_part_that_knows_what_was_wanted_is_added_and_noise_is_not(rows: Rows, prepared: Prepared) -> None:
    hit = rows.validation.hit
    rng = np.random.default_rng(0)

    def told(by: F64) -> Rows:
        parts = {}
        for name in ("train", "validation"):
            part: Proposed = getattr(rows, name)
            matrix = part.matrix.copy()
            matrix[:, 0] = by[: len(matrix)] if name == "validation" else 0  # the wanted part learns nothing of it
            parts[name] = replace(part, matrix=matrix)
        return replace(rows, **parts)

    truth, noise = hit.astype(np.float64), rng.random(len(hit))
    for by, wanted in ((truth, True), (noise, False)):
        made = told(by)
        liked = lgb.train(
            {"objective": "regression", "verbosity": -1, "min_data_in_leaf": 1, "num_leaves": 63},
            lgb.Dataset(made.validation.matrix[:, :1], by * 8, feature_name=rows.columns[:1]),
            20,
        )
        _, found = made.with_liked(made.fit(prepared.config, 0, 1), liked, None)
        assert (found.weight > 0) is wanted
