"""The stage before the ranker: its columns are the ranker's own, what it cuts is counted, and pins are never cut."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import Parts, World, with_config, write_world

from features.counters.spec import make_counters
from features.errors import PairliftError
from features.rows import assemble
from features.schema import DAY, F64, I64, Bool
from features.settings import CounterSettings
from features.state.read import counter_values, item_counters, of_items
from features.state.store import State
from ranker.bundle import Bundle, load_bundle
from ranker.candidates.configured import configured_sources
from ranker.candidates.gathering import source_columns
from ranker.cli.main import cli
from ranker.config import PRERANK, load_config, read_config
from ranker.lists.answers import ask, patient
from ranker.lists.asked import Asked
from ranker.pipeline import Pipeline
from ranker.prerank.distil import Teacher, distil, drawn, figures, held_out
from ranker.prerank.light import PINNED, by_sources, kept, light_columns, light_rows
from ranker.request import ABSENT, Answer, Request
from ranker.settings import ExplorationSettings, PrerankSettings, RuleSettings
from ranker.train import train

KEEP = 15


@pytest.fixture(scope="module")
def teacher(bundle: Bundle) -> Teacher:
    sources = configured_sources(bundle.config, bundle.state, bundle.cooccurrence, bundle.plugins)
    return Teacher(
        config=bundle.config,
        state=bundle.state,
        spec=bundle.spec,
        plugins=bundle.plugins,
        sources=sources,
        score=bundle.score_wanted,
    )


@pytest.fixture(scope="module")
def cutting(bundle: Bundle, parts: Parts, teacher: Teacher) -> Bundle:
    """The bundle with the stage."""
    light = distil(teacher, parts.groups.of("booster").requests)
    assert light is not None
    return with_config(replace(bundle, prerank=light), prerank=PrerankSettings(keep=KEEP))


@pytest.fixture(scope="module")
def pipeline(cutting: Bundle) -> Iterator[Pipeline]:
    pipeline = Pipeline(cutting)
    yield pipeline
    pipeline.close()


def asked_of(bundle: Bundle, pipeline: Pipeline | None = None, **said: object) -> Answer:
    own = Pipeline(bundle) if pipeline is None else pipeline
    try:
        return own.recommend(Request(3, bundle.state.end, state=bundle.state, explain=True, **said), 50)  # type: ignore[arg-type]
    finally:
        if pipeline is None:
            own.close()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-1, 79), max_size=12), st.integers(-1, 39), st.floats(0, 1))
def test_its_columns_are_those_of_the_rankers_rows(
    bundle: Bundle, world: World, item: list[int], user: int, when: float
) -> None:
    """As of the end, of any time before, and where later events lie in a level of their own."""
    state, spec, log = bundle.state, bundle.spec, world.log
    as_of = int(log.ts[0] + when * (state.end - log.ts[0]))
    begun = State.build(log.until(as_of), world.catalog, state.counters, world.grades)
    later = begun.extended(log.between(as_of, state.end + 1))
    items = np.array(item, np.int32)
    used = of_items(state)
    assert [spec.columns[k] for k in used.tolist()] == [c for c in spec.columns if c.startswith("item__")]
    for known, time in ((state, state.end), (state, as_of), (later, state.end), (later, as_of)):
        request = Request(user, time, state=known)
        rows = light_rows(request, spec, items, np.ones((len(items), 2), np.float32))
        full = assemble(known, spec, request.requests(items))
        np.testing.assert_array_equal(rows[:, : len(used)], full[:, used])
        assert (rows[:, len(used) :] == 1).all()
    past = light_rows(Request(user, as_of, state=begun), spec, items, np.ones((len(items), 2), np.float32))
    now = light_rows(Request(user, as_of, state=state), spec, items, np.ones((len(items), 2), np.float32))
    np.testing.assert_allclose(past, now, rtol=1e-5)  # it has not seen what came later


def test_of_items_is_the_count_in_place_of_a_rank_and_no_distinct_count(world: World) -> None:
    """Windows too, whose events go: as of the end and later."""
    asked = [
        CounterSettings(key=["user"], event="impression", spans=["all"], stats=["count"]),
        CounterSettings(key=["item"], event="like", spans=["w2d", "all"], stats=["count", "rate"]),
        CounterSettings(key=["item", "surface"], event="like", spans=["all"], stats=["count"]),
        CounterSettings(
            key=["item"], event="impression", spans=["all"], stats=["rank_genre", "distinct_user", "since"]
        ),
    ]
    counters = make_counters(asked, world.log, world.catalog, world.grades)
    state = State.build(world.log, world.catalog, counters, world.grades)
    found, items = of_items(state), np.array([5, -1, 5, 79, 0], np.int32)
    assert [counters[k].key for k in found.tolist()] == [("item",)] * 6
    for as_of in (state.end - DAY, state.end, state.end + 3 * DAY):
        requests = Request(0, as_of, state=state).requests(items)
        out = np.empty((len(items), len(found)), np.float32)
        item_counters(state, requests, out)
        right = counter_values(state, requests)[:, found]
        same = [counters[k].kind != "rank" for k in found.tolist()]
        assert same.count(False) == 1
        np.testing.assert_array_equal(out[:, same], right[:, same])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, np.nan, -np.inf]), max_size=20), st.integers(0, 25), st.data())
def test_the_best_and_the_pinned_are_kept(score: list[float], most: int, data: st.DataObject) -> None:
    n = len(score)
    pins = [sorted(data.draw(st.sets(st.integers(0, n - 1)))) for _ in range(2)] if n else []
    known = [k for k in range(n) if score[k] > -np.inf]
    right = {*sorted(known, key=lambda k: (-score[k], k))[:most], *(k for pin in pins for k in pin)}
    found = kept(np.array(score), np.arange(n, dtype=np.int32), most, [np.array(pin, np.int64) for pin in pins])
    assert found.tolist() == sorted(right)


def test_of_a_pin_of_many_items_the_best_are_kept() -> None:
    score, item = np.arange(300.0), np.arange(300, dtype=np.int32)
    found = kept(score, item, 10, [np.arange(200)])
    assert found.tolist() == [*range(200 - PINNED, 200), *range(290, 300)]


def test_by_sources_the_first_of_each_come_first() -> None:
    place = np.array([[0, ABSENT], [1, ABSENT], [2, 0], [ABSENT, 1]], np.int32)
    assert by_sources(place).tolist() == [0, -1, 0, -1]


def test_what_it_cuts_is_counted_and_what_it_keeps_is_ranked_as_without_it(
    bundle: Bundle, cutting: Bundle, pipeline: Pipeline
) -> None:
    whole, found = asked_of(bundle), asked_of(cutting, pipeline)
    assert found.degraded == ()
    assert len(whole.item) > KEEP == len(found.item)
    assert found.detail is not None
    assert dict(found.detail.removed)[PRERANK] == len(whole.item) - KEEP
    assert [stage for stage, _ in found.stages].index(PRERANK) == 3
    places = [whole.item.tolist().index(item) for item in found.item.tolist()]
    assert places == sorted(places)
    np.testing.assert_array_equal(found.score, whole.score[places])
    np.testing.assert_array_equal(found.sources, whole.sources[places])
    assert f"{PRERANK} {len(whole.item) - KEEP}" in found.reason
    assert len(set(whole.item[:5].tolist()) - set(found.item.tolist())) <= 1


def test_without_the_table_or_with_fewer_candidates_nothing_changes(bundle: Bundle, cutting: Bundle) -> None:
    whole = asked_of(bundle)
    for prerank in (None, PrerankSettings(keep=len(whole.item))):
        found = asked_of(with_config(cutting, prerank=prerank))
        np.testing.assert_array_equal(found.item, whole.item)
        np.testing.assert_array_equal(found.score, whole.score)
        assert found.trace.removed == whole.trace.removed


def test_a_pin_is_never_cut(bundle: Bundle, cutting: Bundle, pipeline: Pipeline) -> None:
    cut = set(asked_of(bundle).item.tolist()) - set(asked_of(cutting, pipeline).item.tolist())
    ids = bundle.state.catalog.item_ids
    item = min(cut)
    rule = RuleSettings(items=f"item_id IN ('{ids[item]}')", pin=1)
    assert asked_of(with_config(cutting, rules={"launch": rule})).item[0] == item


def test_where_it_fails_the_first_of_the_sources_are_ranked(
    cutting: Bundle, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> F64:
        raise RuntimeError("no")

    monkeypatch.setattr("ranker.prerank.light.Prerank.scores", broken)
    found = asked_of(cutting, pipeline)
    assert found.degraded == (PRERANK,)
    assert len(found.item) == KEEP
    first = {int(p.item[0]) for p in pipeline._fetch(Request(3, cutting.state.end, state=cutting.state), found.trace)}
    seen = cutting.state.histories.item[cutting.state.histories.past(3, cutting.state.end)]
    assert first - set(seen.tolist()) <= set(found.item.tolist())


def test_drawn_lists_are_drawn_among_what_is_kept(cutting: Bundle) -> None:
    exploring = with_config(cutting, exploration=ExplorationSettings(share=1.0, kind="uniform", top=50))
    found = asked_of(exploring, may_explore=True, request_id="r")
    assert found.explored is not None
    np.testing.assert_allclose(found.explored.propensity, 1 / np.arange(KEEP, 0, -1))


def test_requests_and_items_of_the_figure_are_none_of_the_fit(teacher: Teacher, parts: Parts) -> None:
    requests = parts.groups.of("booster").requests
    fitted, measured = ([r.user for r in drawn(requests, teacher.state, of, 1000)] for of in (True, False))
    assert len(fitted) > 5
    assert len(measured) > 5
    assert not set(fitted) & set(measured)
    assert len(set(fitted)) == len(fitted)
    assert 0.1 < held_out(np.arange(1000, dtype=np.int32)).mean() < 0.3


def test_it_learns_what_the_ranker_puts_first(cutting: Bundle, teacher: Teacher, parts: Parts) -> None:
    assert cutting.prerank is not None
    requests, sources = parts.groups.of("test").requests, source_columns(teacher.sources)
    found = figures(teacher, cutting.prerank, requests, 20)
    assert found["requests"] > 5
    assert 0.8 < found["kept_top50"] <= 1
    assert figures(teacher, cutting.prerank, requests, 1000)["kept_top50"] is None
    assert cutting.prerank.booster.feature_importance().any()
    assert cutting.prerank.booster.feature_name() == light_columns(teacher.state, teacher.spec, sources)


def test_of_counters_alone_the_least_are_left_out(
    teacher: Teacher, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few requests, those with a query, may rest on a source alone that gains little in all of them together."""
    sources, requests = source_columns(teacher.sources), parts.groups.of("booster").requests
    for most in (0, 2):
        monkeypatch.setattr("ranker.prerank.distil.COUNTERS", most)
        light = distil(teacher, requests)
        assert light is not None
        splits = dict(zip(teacher.columns, light.booster.feature_importance().tolist(), strict=True))
        assert all(splits[name] for name in sources)
        assert sum(splits[name] > 0 for name in teacher.columns if name not in sources) == most


def test_lists_are_measured_with_it(cutting: Bundle, parts: Parts) -> None:
    requests = parts.groups.of("test").requests
    some: Bool = np.arange(len(requests)) < 5
    who = Asked(requests=requests.select(some), history=np.zeros(5, np.int64))
    own = Pipeline(patient(cutting))
    counts: I64 = ask(own, who, 10, alone=()).candidates
    own.close()
    assert counts.max() == KEEP


def test_a_training_writes_it_and_says_what_it_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_world(tmp_path)
    path.write_text(path.read_text() + "max_k = 20\n[prerank]\nkeep = 20\n[sources]\nexclude_seen = false\n")
    train(load_config(path), tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    found = manifest["measured"][PRERANK]
    assert found["requests"] > 0
    assert 0.5 < found["kept_top50"] <= 1
    assert "prerank.txt" in manifest["files"]
    assert "[prerank]: of " in (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    bundle = load_bundle(tmp_path / "bundle")
    pipeline = Pipeline(bundle)
    assert pipeline.warm() == []
    answer = pipeline.recommend(Request(3, bundle.state.end, state=bundle.state), 20)
    pipeline.close()
    assert dict(answer.trace.removed)[PRERANK] > 0
    assert len(answer.item) == 20
    cli(["bundle", "show", str(tmp_path / "bundle")], standalone_mode=False)
    assert "[prerank]: of " in capsys.readouterr().out
    with pytest.raises(PairliftError, match="disagree about the columns"):
        replace(bundle, state=replace(bundle.state, plans=()))


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("[prerank]\nkeep = 100", r"\[prerank\] keep: at least 500 \(\[serve\] max_k\) was expected, found 100"),
        ("[prerank]\n[filters.prerank]\nkeep = 'true'", r"\[filters.prerank\]: the stage \[prerank\] has this name"),
        ("[prerank]\nkept = 9", "'keep'"),
        ("[prerank]\n[features]\nlist = ['candidate_a_rank']", "request_id|leave one of the two out"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, added: str, said: str) -> None:
    path = write_world(tmp_path)
    path.write_text(f"{path.read_text()}\n{added}\n")
    with pytest.raises(PairliftError, match=said):
        read_config(path)
