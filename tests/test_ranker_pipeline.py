"""The request path: scores equal the offline matrix, a failing or late part is named, and the answer still comes."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from world import with_config

from features.errors import PairliftError
from features.plugin import VectorPlugin
from ranker.candidates.gathering import candidates_of, source_columns, source_values
from ranker.candidates.merge import Places, dedupe, within_places
from ranker.candidates.shortage import shortage
from ranker.candidates.source import Proposal
from ranker.columns import full_matrix
from ranker.columns import with_sources as with_source_scores
from ranker.pipeline import CALLER, Pipeline
from ranker.request import ABSENT, Request
from ranker.reranking.order import select
from ranker.settings import ServeSettings, SourceSettings, SourcesSettings

ITEMS = np.arange(80, dtype=np.int32)


@pytest.fixture(scope="module")
def pipeline(bundle):
    pipeline = Pipeline(bundle)
    yield pipeline
    pipeline.close()


@pytest.fixture(autouse=True)
def _no_threads_left(monkeypatch):
    """Close every pipeline that a test makes."""
    made, real = [], Pipeline.__init__

    def recorded(self, *arguments):
        real(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Pipeline, "__init__", recorded)
    yield
    for pipeline in made:
        pipeline.close()


@pytest.fixture
def now(bundle):
    return bundle.state.end


class Fixed:
    """A source that proposes a fixed list, or raises it where it is an error."""

    def __init__(self, name, items):
        self.name, self.items = name, items
        self.limit = 0

    def propose(self, request, limit):
        self.limit = limit
        if isinstance(self.items, Exception):
            raise self.items
        return Proposal(np.array(self.items, np.int32))


PATIENT = 20_000_000


def with_sources(bundle, *sources, quota=20, deadlines=()):
    """A pipeline over these sources; deadlines in µs, long for those left out (the machine may be busy)."""
    settings = [
        SourceSettings.model_construct(quota=quota, deadline=deadline)
        for deadline in (*deadlines, *[PATIENT] * (len(sources) - len(deadlines)))
    ]
    return Pipeline(bundle, list(zip(sources, settings, strict=True)))


def test_rank_equals_the_offline_matrix_exactly(pipeline, bundle, parts):
    groups = parts.groups.requests
    offline = bundle.score(full_matrix(bundle.state, bundle.spec, bundle.plugins, groups))
    for r in range(0, len(groups), 5):
        one = groups.slice(r, r + 1)
        request = Request(int(one.user[0]), int(one.as_of[0]), surface=int(one.surface[0]), state=bundle.state)
        answer = pipeline.rank(request, one.item)
        expected = offline[groups.offsets[r] : groups.offsets[r + 1]]
        assert answer.degraded == ()
        assert (answer.score == expected[answer.index]).all()


def test_a_score_does_not_depend_on_the_other_candidates(pipeline, now):
    request = Request(3, now, state=pipeline.state)
    together = pipeline.rank(request, ITEMS)
    score = dict(zip(together.item.tolist(), together.score.tolist(), strict=True))
    rng = np.random.default_rng(0)
    for _ in range(20):
        some = rng.choice(ITEMS, rng.integers(1, 30)).astype(np.int32)  # repeats and any order
        answer = pipeline.rank(request, some)
        assert answer.score.tolist() == [score[item] for item in answer.item.tolist()]
        assert sorted(answer.index.tolist()) == list(range(len(some)))
        assert (some[answer.index] == answer.item).all()


def test_recommend_is_ordered_by_the_wanted_part_and_rank_by_the_liked_one(pipeline, bundle, now):
    request = Request(8, now, surface=1, state=pipeline.state, explain=True)
    candidates, scores = candidates_of(pipeline.sources, request, bundle.config)
    matrix = full_matrix(bundle.state, bundle.spec, bundle.plugins, request.requests(candidates.item))
    wanted = bundle.score_wanted(with_source_scores(matrix, scores))
    listed = pipeline.recommend(request, 10)
    best = np.lexsort((candidates.item, -wanted))[:10]
    assert (listed.item.tolist(), listed.score.tolist()) == (candidates.item[best].tolist(), wanted[best].tolist())
    assert np.array_equal(listed.detail.wanted, listed.score)
    assert np.array_equal(listed.detail.liked, bundle.score(matrix[best]))
    assert listed.detail.columns == bundle.wanted_columns
    assert np.array_equal(listed.detail.values[:, -3:], scores[best], equal_nan=True)
    assert np.allclose(listed.detail.contributions.sum(axis=1) + listed.detail.base, listed.score, atol=1e-4)
    ranked = pipeline.rank(request, listed.item)
    score_of = dict(zip(listed.item.tolist(), listed.detail.liked.tolist(), strict=True))
    assert ranked.score.tolist() == [score_of[item] for item in ranked.item.tolist()] == ranked.detail.liked.tolist()
    assert ranked.detail.wanted is None
    assert ranked.source_names == (CALLER,)
    assert set(ranked.sources.tolist()) == {1}


def test_without_the_wanted_part_recommend_is_ordered_as_rank_and_rank_stays_as_it_is(pipeline, bundle, now):
    alone = Pipeline(replace(bundle, wanted=None))
    request = Request(8, now, surface=1, state=bundle.state, explain=True)
    listed = alone.recommend(request, 10)
    for ranked in (alone.rank(request, listed.item), pipeline.rank(request, listed.item)):
        assert ranked.item.tolist() == listed.item.tolist()
        assert ranked.score.tolist() == listed.score.tolist() == ranked.detail.liked.tolist()
    assert listed.detail.wanted is None
    assert listed.detail.columns == bundle.columns


def wanted_rows(pipeline, bundle, now):
    """The degraded lanes of a Recommend, and the values of its sources' columns by name."""
    answer = pipeline.recommend(Request(-1, now, state=bundle.state, explain=True), 10)
    assert len(answer.item)
    assert np.isfinite(answer.score).all()
    assert (answer.detail.wanted == answer.score).all()
    values = answer.detail.values[:, len(bundle.columns) :]
    return answer.degraded, dict(zip(bundle.source_columns, values.T, strict=True))


class Scoring(Fixed):
    """A source of the wanted part's that scores as it is told."""

    def __init__(self, name, items, score):
        super().__init__(name, items)
        self.score = score

    def propose(self, request, limit):
        return Proposal(super().propose(request, limit).item, self.score)


@pytest.mark.parametrize(
    ("score", "lanes"),
    [
        (lambda item: item * np.float32(2), ()),
        (None, ()),
        (lambda item: item[:1] * np.float32(2), ("sources.cooccurrence",)),
        (lambda item: 1 / 0, ("sources.cooccurrence",)),
    ],
    ids=["scores", "no scores", "wrong shape", "raises"],
)
def test_a_score_that_fails_is_named_and_its_column_is_missing(bundle, now, score, lanes):
    popular = Scoring("popular", [1, 2, 3], lambda item: item * np.float32(3))
    pipeline = with_sources(bundle, Scoring("cooccurrence", [3, 4], score), Fixed("other", [5]), popular)
    degraded, columns = wanted_rows(pipeline, bundle, now)
    assert degraded == lanes
    assert tuple(pipeline.failures.counts()) == lanes
    # By name and not by place: the wanted part knows other sources, in another order.
    assert sorted(columns["source__popular"].tolist()) == [3, 6, 9, 12, 15]
    if score is None or lanes:
        assert np.isnan(columns["source__cooccurrence"]).all()
    else:
        assert sorted(columns["source__cooccurrence"].tolist()) == [2, 4, 6, 8, 10]
    assert np.isnan(columns["source__nearest"]).all()
    assert pipeline.warm() == list(lanes)


def leaves(item):
    raise SystemExit(3)


class Quick(Scoring):
    """One that says that it cannot block."""

    blocks = False


@pytest.mark.parametrize("kind", [Scoring, Quick])
@pytest.mark.parametrize("score", [leaves, lambda item: 1 / 0], ids=["leaves", "raises"])
def test_the_breaker_sees_one_outcome_of_a_request_so_that_no_proposal_closes_what_a_score_opens(
    bundle, now, kind, score
):
    """Ten requests open it; each try of it fails, and doubles the pause."""
    pipeline = with_sources(bundle, kind("popular", [1, 2], score))
    lane, request = pipeline.lanes[0], Request(-1, now, state=bundle.state)
    for k in range(12):
        answer = pipeline.recommend(request, 10)
        assert answer.degraded == ("sources.popular",)
        assert len(answer.item) == (2 if k < 10 else 0)
    for pause in (5, 10, 20):
        assert (lane.state, lane.breaker.pause) == ("open", pause)
        lane.breaker._until = 0.0  # the pause is over
        pipeline.recommend(request, 10)
    pipeline.sources[0][0].score = None
    lane.breaker._until = 0.0
    assert pipeline.recommend(request, 10).degraded == ()
    assert lane.state == "closed"


def test_a_score_that_hangs_is_late_by_the_sources_deadline_and_holds_no_request(bundle, now):
    held, ended = threading.Event(), []
    slow = Scoring("popular", [1, 2], lambda item: ended.append(held.wait(20)))
    good = Scoring("cooccurrence", [3], lambda item: item * np.float32(2))
    pipeline = with_sources(bundle, slow, good, deadlines=[50_000])
    for _ in range(3):
        degraded, columns = wanted_rows(pipeline, bundle, now)
        assert degraded == ("sources.popular",)
        assert np.isnan(columns["source__popular"]).all()
        assert sorted(columns["source__cooccurrence"].tolist()) == [2, 4, 6]
    assert not ended
    assert pipeline.failures.counts() == {"sources.popular": 3}
    held.set()


def test_a_source_is_not_asked_for_another_surface_and_nothing_of_it_is_told(bundle, now):
    elsewhere = SourceSettings.model_construct(quota=20, deadline=PATIENT, surfaces=["search"])
    pipeline = Pipeline(bundle, [(Fixed("popular", ValueError("no luck")), elsewhere)])
    while pipeline.lanes[0].state == "closed":
        pipeline.recommend(Request(-1, now, surface=1, state=bundle.state), 5)
    pipeline.lanes[0].breaker._until = 0.0
    assert pipeline.recommend(Request(-1, now, surface=0, state=bundle.state), 5).degraded == ()
    assert pipeline.lanes[0].state == "half-open"


def test_a_source_that_fails_or_is_late_has_missing_scores(bundle, now):
    slow, bad = Hung("popular", [9]), Fixed("nearest", ValueError("no luck"))
    good = Scoring("cooccurrence", [1, 2], lambda item: item * np.float32(2))
    pipeline = with_sources(bundle, slow, bad, good, deadlines=[50_000])
    degraded, columns = wanted_rows(pipeline, bundle, now)
    slow.held.set()
    assert degraded == ("sources.popular", "sources.nearest")
    assert np.isnan(columns["source__popular"]).all()
    assert np.isnan(columns["source__nearest"]).all()
    assert sorted(columns["source__cooccurrence"].tolist()) == [2, 4]


def test_each_short_list_has_a_reason(bundle, world, now):
    def reason(*items, k=10, user=-1, quota=20, exclude=()):
        pipeline = with_sources(bundle, *(Fixed(f"s{n}", some) for n, some in enumerate(items)), quota=quota)
        request = Request(user, now, state=bundle.state, exclude=np.array(exclude, np.int32))
        return pipeline.recommend(request, k).reason

    few = "fewer candidates than k = 10 were left: "
    seen = sorted(set(world.log.item[world.log.user == 0].tolist()))[:12]
    none = "the sources proposed nothing: "
    assert reason().startswith(none + "none is turned on in [sources] of the bundle's TOML")
    assert reason([], []) == none + "s0, s1 had nothing for this user; [sources] popular has items for everyone"
    early = Pipeline(bundle).recommend(Request(0, int(world.log.ts[0]), state=bundle.state), 5)
    assert (len(early.item), early.reason) == (0, none + "no event is known before as_of")
    unwanted = shortage(5, 0, proposed=0, removed=(), n_items=9, sources=("popular",), early=False)
    assert unwanted == none + "no event of a wanted grade ([lists] wanted) is known before as_of"
    assert reason([], ValueError("no")) == "the sources proposed nothing: sources.s1 failed or was late"
    assert reason(seen, seen[:3], user=0) == "all that was proposed was removed: seen 12"
    assert reason([3, -4, 5], exclude=[3, 5, 7]) == "all that was proposed was removed: unknown 1, excluded 2"
    assert reason([1, 2], [2, 3]) == few + "the sources proposed no more within their quotas"
    assert reason([*range(12)], exclude=[1, 2, 3]) == few + (
        "removed: excluded 3; the sources proposed no more within their quotas"
    )
    assert reason([*range(12)], quota=7) == few + "the sources proposed no more within their quotas"
    assert reason([1], ValueError("no")) == few + "sources.s1 failed or was late"
    quotas = "79 of them no source proposed within its quota"
    assert reason([1, 99], k=81).endswith(f"the catalogue has 80 items; removed: unknown 1; {quotas}")
    assert reason([*range(80)], k=81, quota=80).endswith("k = 81 were left: the catalogue has 80 items")
    assert reason([*range(12)], k=12) == ""
    assert Pipeline(bundle).rank(Request(0, now, state=bundle.state), np.empty(0, np.int32)).reason == ""


def test_the_ranking_follows_the_users_taste(pipeline, world, now):
    right, pairs = 0.0, 0
    for user in range(40):
        answer = pipeline.rank(Request(user, now, state=pipeline.state), ITEMS)
        affinity = world.affinity[user, answer.item]
        better = affinity[:, None] > affinity[None, :]
        right += np.triu(better).sum()  # the better one stands first
        pairs += better.sum()
    assert right / pairs > 0.7


def test_the_answer_is_sorted_and_its_masks_name_the_sources(pipeline, now):
    answer = pipeline.recommend(Request(2, now, explain=True, state=pipeline.state), 10)
    assert (np.diff(answer.score) <= 0).all()
    assert answer.source_names == ("popular", "cooccurrence", "nearest")
    assert ((answer.sources >= 1) & (answer.sources < 8)).all()
    assert answer.degraded == ()
    assert [report.name for report in answer.detail.sources] == list(answer.source_names)
    assert [name for name, _ in answer.detail.removed] == ["unknown", "excluded", "seen"]
    assert [name for name, _ in answer.detail.stages] == [
        "sources",
        "filters",
        "source scores",
        "features",
        "score",
        "select",
        "explain",
    ]


def test_contributions_sum_to_the_score(pipeline, bundle, now):
    answer = pipeline.rank(Request(2, now, explain=True, state=bundle.state), ITEMS)
    detail = answer.detail
    assert detail.columns == bundle.columns
    assert detail.values.shape == detail.contributions.shape == (80, len(bundle.columns))
    assert (bundle.score(detail.values) == answer.score).all()
    assert np.allclose(detail.contributions.sum(axis=1) + detail.base, answer.score, atol=1e-5)


def test_seen_and_excluded_items_are_not_in_the_list(pipeline, world, now):
    for user in range(0, 40, 9):
        seen = set(world.log.item[world.log.user == user].tolist())
        all_of_them = pipeline.recommend(Request(user, now, state=pipeline.state), 80).item.tolist()
        assert not seen & set(all_of_them)
        exclude = np.array(all_of_them[:2], np.int32)
        rest = pipeline.recommend(Request(user, now, exclude=exclude, state=pipeline.state), 80).item.tolist()
        assert rest == all_of_them[2:]


def test_what_was_seen_later_than_as_of_may_be_proposed(pipeline, world):
    as_of = int(world.log.ts[len(world.log) // 2])
    user = 5
    before = set(world.log.item[(world.log.user == user) & (world.log.ts < as_of)].tolist())
    listed = set(pipeline.recommend(Request(user, as_of, state=pipeline.state), 80).item.tolist())
    assert not before & listed
    assert listed & set(world.log.item[(world.log.user == user) & (world.log.ts >= as_of)].tolist())


def test_seen_items_come_back_where_the_configuration_says_so(bundle, now):
    pipeline = Pipeline(with_config(bundle, sources=SourcesSettings(exclude_seen=False)))
    assert len(pipeline.recommend(Request(0, now, state=bundle.state), 80).item) > 55


def test_a_cold_user_gets_what_is_popular(pipeline, now):
    answer = pipeline.recommend(Request(-1, now, state=pipeline.state), 10)
    assert len(answer.item) == 10
    assert set(answer.sources.tolist()) == {1}


def test_fewer_candidates_than_k_is_no_error(bundle, now):
    pipeline = with_sources(bundle, Fixed("few", [1, 2, 3]))
    assert sorted(pipeline.recommend(Request(-1, now, state=bundle.state), 10).item.tolist()) == [1, 2, 3]
    assert len(with_sources(bundle, Fixed("none", [])).recommend(Request(-1, now, state=bundle.state), 10).item) == 0
    assert len(with_sources(bundle).recommend(Request(-1, now, state=bundle.state), 10).item) == 0


def test_an_empty_list_is_ranked(pipeline, now):
    answer = pipeline.rank(Request(0, now, explain=True, state=pipeline.state), np.empty(0, np.int32))
    assert len(answer.item) == len(answer.score) == 0


def test_cold_users_and_items_are_ranked(pipeline, now):
    answer = pipeline.rank(Request(-1, now, surface=-1, state=pipeline.state), np.array([-1, 5, -1], np.int32))
    assert np.isfinite(answer.score).all()
    assert sorted(answer.item.tolist()) == [-1, -1, 5]
    assert [k for k in answer.index.tolist() if k != 1] == [0, 2]  # the tie keeps the caller's order


def test_a_late_as_of_is_fine(pipeline, now):
    assert len(pipeline.recommend(Request(0, now + 10**15, state=pipeline.state), 5).item) == 5


def test_a_failing_source_is_named_and_the_answer_comes(bundle, now):
    pipeline = with_sources(bundle, Fixed("good", [1, 2]), Fixed("bad", ValueError("no luck")), Fixed("more", [2, 3]))
    for turn in (1, 2):
        answer = pipeline.recommend(Request(-1, now, explain=True, state=bundle.state), 10)
        assert answer.degraded == ("sources.bad",)
        assert pipeline.failures.counts() == {"sources.bad": turn}
    assert dict(zip(answer.item.tolist(), answer.sources.tolist(), strict=True)) == {
        1: 0b001,
        2: 0b101,
        3: 0b100,
    }
    assert answer.detail.sources[1].problem == "ValueError: no luck"


@pytest.mark.parametrize("given", [*map(np.array, ([0.5, 1.5], [[1, 2]], ["a"])), None])
def test_a_source_that_gives_no_items_is_a_failing_one(bundle, now, given):
    class Odd(Fixed):
        def propose(self, request, limit):
            return np.array([1, 2]) if given is None else Proposal(given)

    answer = with_sources(bundle, Odd("odd", []), Fixed("good", [1])).recommend(
        Request(-1, now, state=bundle.state), 10
    )
    assert answer.degraded == ("sources.odd",)
    assert answer.item.tolist() == [1]


def test_items_that_do_not_exist_are_filtered_and_counted(bundle, now):
    answer = with_sources(bundle, Fixed("wild", [1, -5, 4000, 1])).recommend(
        Request(-1, now, explain=True, state=bundle.state), 10
    )
    assert answer.item.tolist() == [1]
    assert answer.detail.removed[0] == ("unknown", 2)


class Hung(Fixed):
    """Proposes once `held` is set."""

    def __init__(self, name, items):
        super().__init__(name, items)
        self.held = threading.Event()

    def propose(self, request, limit):
        self.held.wait(20)
        return super().propose(request, limit)


def test_a_late_source_is_left_behind(bundle, now):
    slow = Hung("slow", [9])
    pipeline = with_sources(bundle, slow, Fixed("good", [1, 2]), deadlines=[50_000])
    answer = pipeline.recommend(Request(-1, now, explain=True, state=bundle.state), 10)
    assert answer.degraded == ("sources.slow",)
    assert answer.detail.sources[0].problem == "it was late"
    assert sorted(answer.item.tolist()) == [1, 2]
    slow.held.set()


def test_late_calls_do_not_pile_up_threads(bundle, now):
    hung = Hung("hung", [1])
    pipeline = with_sources(bundle, hung, Fixed("good", [2]), deadlines=[5_000])
    threads = threading.active_count()
    for _ in range(20):
        answer = pipeline.recommend(Request(-1, now, state=bundle.state), 5)
        assert answer.degraded == ("sources.hung",)
        assert answer.item.tolist() == [2]
    assert threading.active_count() - threads <= 2 * bundle.config.serve.workers + 3
    assert pipeline.failures.counts()["sources.hung"] == 10  # then its breaker is open
    assert [lane.state for lane in pipeline.lanes][:2] == ["open", "closed"]
    assert answer.trace.problems == {"sources.hung": "it failed too often, so it is not asked for some seconds"}
    hung.held.set()
    pipeline.lanes[0].breaker._until = 0.0  # the pause is over
    for _ in range(1000):  # the lane is free again once its late calls have ended
        if not pipeline.recommend(Request(-1, now, state=bundle.state), 5).degraded:
            break
        pipeline.lanes[0].breaker._until = 0.0
        time.sleep(0.01)
    else:
        pytest.fail("the lane stayed busy")
    assert pipeline.lanes[0].state == "closed"


class Broken:
    """A plugin of one column that does what `act` does instead of giving values."""

    columns = ("dot",)

    def __init__(self, act):
        self.act = act

    def values(self, requests, histories):
        return self.act(requests)


def fail(requests):
    raise RuntimeError("no vector today")


@pytest.mark.parametrize(
    "act",
    [
        fail,
        lambda requests: np.zeros((len(requests.item) + 1, 1), np.float32),
        lambda requests: np.full((len(requests.item), 1), "x"),
        lambda requests: [[1j]] * len(requests.item),
        lambda requests: time.sleep(3),
    ],
    ids=["raises", "wrong shape", "text", "complex", "late"],
)
def test_a_failing_plugin_is_named_and_its_columns_are_missing(bundle, now, act):
    serve = ServeSettings.model_construct(**{**bundle.config.serve.model_dump(), "plugin_deadline": 150_000})
    pipeline = Pipeline(with_config(replace(bundle, plugins={"als": Broken(act)}), serve=serve))
    answer = pipeline.rank(Request(0, now, explain=True, state=bundle.state), ITEMS)
    assert answer.degraded == ("plugins.als",)
    assert np.isnan(answer.detail.values[:, bundle.columns.index("als__dot")]).all()
    assert np.isfinite(answer.detail.values[:, 0]).any()
    assert np.isfinite(answer.score).all()
    assert len(answer.item) == 80
    assert pipeline.failures.counts()["plugins.als"] == 1


def test_warming_names_what_fails(bundle):
    pipeline = Pipeline(replace(bundle, plugins={"als": Broken(fail)}))
    assert not isinstance(Broken(fail), VectorPlugin)
    assert pipeline.source_names == ("popular", "cooccurrence")  # without vectors there is nothing nearest
    assert pipeline.warm() == ["plugins.als"]


def test_warming_a_good_bundle_is_silent(pipeline):
    assert pipeline.warm() == []


def test_each_source_may_be_left_out(bundle, now):
    only = SourcesSettings(popular=False, cooccurrence=False)
    pipeline = Pipeline(with_config(bundle, sources=only))
    assert pipeline.source_names == ("nearest",)
    assert len(pipeline.recommend(Request(-1, now, state=bundle.state), 5).item) == 0


def test_more_sources_than_bits_is_refused(bundle):
    with pytest.raises(PairliftError, match="at most 32"):
        with_sources(bundle, *(Fixed(str(k), []) for k in range(33)))


def test_a_source_is_asked_for_what_the_filters_will_remove(bundle, world, now):
    source = Fixed("asked", [])
    pipeline = with_sources(bundle, source, quota=20)
    pipeline.recommend(Request(-1, now, state=bundle.state), 5)
    assert source.limit == 21
    pipeline.recommend(Request(0, now, state=bundle.state), 5)
    assert source.limit == 100  # and no more than five times its quota


def test_the_quota_counts_what_the_filters_left(bundle, world, now):
    user = 0
    seen = sorted(set(world.log.item[world.log.user == user].tolist()))
    fresh = [item for item in range(80) if item not in seen]
    pipeline = with_sources(bundle, Fixed("first", [*seen, *fresh]), Fixed("second", fresh[::-1]), quota=3)
    assert len(seen) > 12  # more than what is asked for: the first source comes to nothing
    assert set(pipeline.recommend(Request(user, now, state=bundle.state), 80).item.tolist()) == set(fresh[-3:])
    pipeline = with_sources(bundle, Fixed("first", [*seen, *fresh]), Fixed("second", fresh[::-1]), quota=20)
    answer = pipeline.recommend(Request(user, now, state=bundle.state), 80)
    assert {i for i, m in zip(answer.item, answer.sources, strict=True) if m & 1} == set(fresh[:20])


def candidates_served(pipeline, request, monkeypatch):
    """The candidates that a Recommend scores, and the mask of each."""
    met = []
    answer, monkeypatched = pipeline._answer, lambda *given: met.append(given[1]) or answer(*given)
    monkeypatch.setattr(pipeline, "_answer", monkeypatched)
    pipeline.recommend(request, 5)
    return met[-1]


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_training_gathers_the_candidates_that_are_served(bundle, world, monkeypatch, exclude_seen):
    tables = {"sources": bundle.config.sources.model_copy(update={"exclude_seen": exclude_seen})}
    pipeline = Pipeline(with_config(bundle, **tables))
    for row in range(0, len(world.log), 250):
        user, as_of = int(world.log.user[row]), int(world.log.ts[row])
        exclude = world.log.item[row : row + 3]
        request = Request(user, as_of, state=bundle.state, exclude=exclude, source_item=int(world.log.item[row - 1]))
        served = candidates_served(pipeline, request, monkeypatch)
        learned, values = candidates_of(pipeline.sources, request, pipeline.bundle.config)
        assert learned.item.tolist() == served.item.tolist()
        assert learned.place.tolist() == served.place.tolist()
        # What a source proposed, it scores; and popular says of every item how popular it is.
        assert not np.isnan(values[learned.place < ABSENT]).any()
        assert not np.isnan(values[:, 0]).any()
    assert source_columns(pipeline.sources) == ("source__popular", "source__cooccurrence", "source__nearest")


def test_the_scores_of_sources_are_columns_and_in_training_an_error_is_raised():
    item, none = np.arange(3, dtype=np.int32), np.empty(0, np.int32)
    proposals = [Proposal(none, lambda item: item * 2.0), Proposal(none), Proposal(none, lambda item: item * 1e300)]
    expected = np.array([[0, 2, 4], [np.nan] * 3, [0, np.nan, np.nan]]).T
    assert np.array_equal(source_values(proposals, item), expected, equal_nan=True)
    with pytest.raises(ValueError, match=r"shape \(3,\) were expected, found \(1,\)"):
        source_values([Proposal(none, lambda item: item[:1])], item)


def test_dedupe_keeps_every_sources_place():
    merged = dedupe([Proposal(np.array(items, np.int32)) for items in ([5, 3, 5], [], [7, 5])])
    assert merged.item.tolist() == [5, 3, 7]
    none = int(ABSENT)
    assert merged.place.tolist() == [[0, none, 1], [1, none, none], [none, none, 0]]
    assert merged.sources.tolist() == [0b101, 0b001, 0b100]
    assert len(dedupe([])) == 0


def test_within_places_keeps_the_first_of_each_source():
    merged = dedupe([Proposal(np.array(items, np.int32)) for items in ([9, 8, 7, 6], [6, 7])])
    kept = within_places(merged, np.ones(4, bool), Places([2, 1], [2, 1], 3))
    assert dict(zip(kept.item.tolist(), kept.sources.tolist(), strict=True)) == {9: 0b01, 8: 0b01, 6: 0b10}


def test_select_puts_what_is_no_number_last_and_breaks_ties_by_item():
    item = np.array([4, 3, 2, 1, 1, 0, 9], np.int32)
    score = np.array([np.nan, 1.0, 1.0, 2.0, 2.0, np.inf, -np.inf])
    assert select(item, score).tolist() == [3, 4, 2, 1, 5, 0, 6]


def test_concurrent_requests_get_the_answers_they_get_alone(bundle, now):
    pipeline = Pipeline(bundle)
    users = [k % 40 for k in range(80)]
    alone = [pipeline.recommend(Request(user, now, state=bundle.state), 10) for user in users]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda user: pipeline.recommend(Request(user, now, state=bundle.state), 10), users))
    for one, other in zip(alone, together, strict=True):
        assert one.item.tolist() == other.item.tolist()
        assert one.score.tolist() == other.score.tolist()
        assert other.degraded == ()


def test_an_infinity_of_a_plugin_is_a_missing_value(bundle, now):
    values = np.tile(np.array([[np.inf], [-np.inf], [1.0], [1e300]]), (20, 1))
    pipeline = Pipeline(replace(bundle, plugins={"als": Broken(lambda requests: values)}))
    answer = pipeline.rank(Request(0, now, state=bundle.state, keep_values=True), ITEMS)
    assert answer.degraded == ()
    column = answer.values[:, bundle.columns.index("als__dot")]
    assert np.array_equal(column, np.tile([np.nan, np.nan, 1, np.nan], 20)[answer.index], equal_nan=True)
    assert answer.trace.missing[bundle.columns.index("als__dot")] == 60


def test_what_is_ours_runs_on_the_requests_thread_and_what_may_block_does_not(bundle, now):
    class Where(Fixed):
        def propose(self, request, limit):
            self.thread = threading.current_thread()
            return super().propose(request, limit)

    class Quick(Where):
        blocks = False

    ours = Pipeline(bundle)
    assert [lane.width for lane in ours.lanes] == [0] * 4
    threads = threading.active_count()
    ours.recommend(Request(3, now, state=bundle.state), 5)
    assert threading.active_count() == threads
    slow, quick = Where("slow", [1]), Quick("quick", [2])
    with_sources(bundle, slow, quick).recommend(Request(-1, now, state=bundle.state), 5)
    assert slow.thread is not threading.current_thread()
    assert quick.thread is threading.current_thread()
    # The source of vectors runs the plugin's code, whoever wrote it.
    other = type("Other", (type(bundle.plugins["als"]),), {"__module__": "theirs"})
    plugin = other.__new__(other)
    plugin.__dict__ = bundle.plugins["als"].__dict__
    theirs = Pipeline(replace(bundle, plugins={"als": plugin}))
    assert {lane.name: lane.width > 0 for lane in theirs.lanes} == {
        "sources.popular": False, "sources.cooccurrence": False, "sources.nearest": True, "plugins.als": True,
    }  # fmt: skip


def test_what_runs_inline_and_fails_is_named_and_no_longer_asked(bundle, now, monkeypatch):
    pipeline, asked = Pipeline(bundle), []

    def broken(self, request, limit):
        asked.append(limit)
        raise ValueError("no luck")

    monkeypatch.setattr(type(pipeline.sources[0][0]), "propose", broken)
    for _ in range(15):
        answer = pipeline.recommend(Request(3, now, state=bundle.state, explain=True), 5)
        assert answer.degraded == ("sources.popular",)
        assert len(answer.item) == 5
    assert len(asked) == 10
    assert pipeline.failures.counts() == {"sources.popular": 10}
    assert answer.detail.sources[0].problem.startswith("it failed too often")
    assert "sources.popular" not in answer.trace.took


def test_inline_calls_do_not_wait_for_the_threads_before_them(bundle, now):
    held = threading.Event()

    class Waits(Fixed):
        def propose(self, request, limit):
            assert held.wait(20)
            return super().propose(request, limit)

    class Frees(Fixed):
        blocks = False

        def propose(self, request, limit):
            held.set()
            return super().propose(request, limit)

    answer = with_sources(bundle, Waits("waits", [1]), Frees("frees", [2])).recommend(
        Request(-1, now, state=bundle.state), 5
    )
    assert answer.degraded == ()
    assert sorted(answer.item.tolist()) == [1, 2]


def test_an_answer_says_how_it_came_about(pipeline, bundle, now):
    trace = pipeline.recommend(Request(2, now, state=bundle.state), 10).trace
    names = ["sources", "filters", "source scores", "features", "score", "select"]
    assert [name for name, _ in trace.stages] == names
    assert list(trace.took) == ["sources.popular", "sources.cooccurrence", "sources.nearest", "plugins.als"]
    assert sum(trace.took.values()) <= sum(took for _, took in trace.stages) + len(names) + len(trace.took)
    assert len(trace.proposed) == 3
    assert 10 <= trace.candidates <= sum(trace.proposed)
    answer = pipeline.rank(Request(-1, now, state=bundle.state, keep_values=True), ITEMS)
    assert answer.trace.missing.tolist() == np.isnan(answer.values).sum(axis=0).tolist()
    assert answer.stages == tuple(answer.trace.stages)
    assert answer.trace.candidates == len(ITEMS)
