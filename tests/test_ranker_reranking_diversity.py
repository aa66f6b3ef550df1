"""Maximal marginal relevance against a slow definition; what it costs is reported."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import with_config, write_world

from features.errors import PairliftError
from features.schema import F32, I32, I64
from ranker.bundle import Bundle
from ranker.config import load_config
from ranker.pipeline import Pipeline
from ranker.request import Answer, Request
from ranker.reranking.diversity import Diversity, mean_similarity
from ranker.reranking.order import select
from ranker.settings import DiversitySettings, ListSettings
from ranker.training.prepared import prepare

NUMBERS = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])
ODD = st.sampled_from([np.nan, np.inf, -np.inf])


def cosine(a: list[float], b: list[float]) -> float | None:
    sizes = [float(np.sum(np.square(v, dtype=np.float64))) for v in (a, b)]
    if not all(0 < size < np.inf for size in sizes):
        return None
    return float(np.dot(np.float64(a), np.float64(b)) / np.sqrt(sizes[0] * sizes[1]))


def plain_values(vectors: F32, rows: list[int], above: list[int], left: list[int], score: Any, weight: float) -> Any:
    """What each of `left` is worth behind `above`, both places; rows: the item of each. score: of the whole pool."""
    vector = [vectors[i].tolist() if 0 <= i < len(vectors) else [np.nan] * vectors.shape[1] for i in rows]
    low, high = min(score.values()), max(score.values())
    relevance = {p: (score[p] - low) / (high - low) if high > low else 0.0 for p in left}
    alike = {p: max([0.0, *(cosine(vector[p], vector[q]) or 0.0 for q in above)]) for p in left}
    known = [alike[p] for p in left if cosine(vector[p], vector[p]) is not None]
    for p in left:
        if cosine(vector[p], vector[p]) is None:
            alike[p] = sum(known) / len(known) if known else 0.0
    return {p: (1 - weight) * relevance[p] - weight * alike[p] for p in left}


@st.composite
def pools(draw: st.DrawFn) -> tuple[F32, I32, Any, int, I64]:
    n, d = draw(st.integers(0, 9)), draw(st.integers(1, 3))
    vectors = np.array(draw(st.lists(st.lists(NUMBERS | ODD, min_size=d, max_size=d), min_size=6, max_size=6)), "f4")
    item = np.array(draw(st.lists(st.integers(0, 8), min_size=n, max_size=n)), np.int32)  # repeats, and new ones
    score = np.array(draw(st.lists(NUMBERS | ODD, min_size=n, max_size=n)))
    fixed = draw(st.lists(st.integers(-1, n - 1), max_size=3)) if n else []
    taken = np.array([p if fixed.index(p) == k or p < 0 else -1 for k, p in enumerate(fixed)], np.int64)
    return vectors, item, score, draw(st.integers(0, 10)), taken


@settings(max_examples=200, deadline=None)
@given(pools(), st.sampled_from([0.2, 0.5, 1.0]), st.integers(1, 10))
def test_each_place_has_the_most_by_the_plain_definition(pool: Any, weight: float, among: int) -> None:
    vectors, item, score, picks, fixed = pool
    whole = select(item, score)
    order = whole[~np.isin(whole, fixed)]
    found = Diversity(vectors, weight, among).reordered(item, score, order, picks, fixed).tolist()
    assert sorted(found) == sorted(order.tolist())
    left = [p for p in order.tolist()[:among] if np.isfinite(score[p])]
    if len(left) < 2:
        assert found == order.tolist()
        return
    scores, above, given = {p: float(score[p]) for p in left}, [], fixed.tolist()
    chosen = found[: min(picks, len(left))]
    assert found[len(chosen) :] == [p for p in order.tolist() if p not in chosen]
    for p in chosen:
        while len(above) < len(given) and given[len(above)] >= 0:
            above.append(given[len(above)])
        values = plain_values(vectors, item.tolist(), [q for q in above if q >= 0], left, scores, weight)
        assert values[p] >= max(values.values()) - 1e-5
        above.append(p)
        left.remove(p)


def test_of_equal_values_the_better_stands_first_and_duplicates_part() -> None:
    one, other = [1.0, 0.0], [0.0, 1.0]
    vectors = np.array([one, one, one, other, [np.nan, 1.0], [0.0, 0.0]], np.float32)
    item, score = np.arange(7, dtype=np.int32), np.array([3.0, 2.9, 2.8, 1.0, 0.5, 0.5, -1.0])
    order = select(item, score)
    # The duplicates of the first come behind what is unlike it. Those without a vector count as those that are left.
    assert Diversity(vectors, 0.9, 9).reordered(item, score, order, 7).tolist() == [0, 3, 1, 2, 4, 5, 6]
    assert Diversity(vectors, 0.9, 4).reordered(item[[0, 1, 3, 4]], np.zeros(4), np.arange(4), 4).tolist() == [
        0,
        2,
        1,
        3,
    ]
    assert Diversity(vectors, 0.9, 4).reordered(item[[0, 1, 4, 3]], np.zeros(4), np.arange(4), 4).tolist() == [
        0,
        3,
        1,
        2,
    ]
    assert Diversity(vectors, 0.9, 2).reordered(item, score, order, 7).tolist() == order.tolist()


@settings(max_examples=100, deadline=None)
@given(pools())
def test_a_higher_weight_takes_no_more_similar_second_item_and_none_changes_nothing(pool: Any) -> None:
    vectors, item, score, _, _ = pool
    order = select(item, score)
    second = []
    for weight in (0.0, 0.1, 0.3, 0.6, 0.9, 1.0):
        found = Diversity(vectors, weight, 10).reordered(item, score, order, 2)
        second.append(found[1] if len(order) > 1 and np.isfinite(score[order[1]]) else -1)
        assert weight or found.tolist() == order.tolist()
    if len(order) > 2 and second[0] >= 0:
        finite = [p for p in order.tolist() if np.isfinite(score[p])]
        alike = plain_values(vectors, item.tolist(), finite[:1], finite[1:], dict.fromkeys(finite, 0.0), 1.0)
        assert (np.diff([-alike[p] for p in second]) <= 1e-6).all()


def test_the_order_does_not_change_with_the_scale_of_scores() -> None:
    rng = np.random.default_rng(0)
    vectors, item, score = rng.normal(size=(50, 4)).astype("f4"), np.arange(50, dtype=np.int32), rng.normal(size=50)
    made, order = Diversity(vectors, 0.4, 40), select(item, score)
    want = made.reordered(item, score, order, 50)
    assert made.reordered(item, 8 * score + 3, order, 50).tolist() == want.tolist()
    huge = score / np.abs(score).max() * 1.7e308  # the difference of two is infinite
    assert made.reordered(item, huge, order, 50).tolist() == want.tolist()
    assert made.reordered(item, score, order, 7)[:7].tolist() == want[:7].tolist()  # whatever k is


def test_the_mean_similarity_is_that_of_the_pairs() -> None:
    vectors = np.random.default_rng(1).normal(size=(9, 3)).astype("f4")
    vectors[4] = np.nan
    item = np.array([3, 4, 1, 8, 20, -1], np.int32)
    pairs = [cosine(vectors[a].tolist(), vectors[b].tolist()) for a, b in ((3, 1), (3, 8), (1, 8))]
    assert mean_similarity(vectors, item) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert np.isnan(mean_similarity(vectors, item[:2]))


def asked(bundle: Bundle, k: int, **lists: Any) -> Answer:
    pipeline = Pipeline(with_config(bundle, lists=ListSettings(**lists)))
    try:
        return pipeline.recommend(Request(3, bundle.state.end, state=bundle.state), k)
    finally:
        pipeline.close()


def test_lists_of_a_server_are_more_unlike_and_a_rank_is_not_touched(bundle: Bundle) -> None:
    vectors, plain = bundle.plugins["als"].item_vectors, asked(bundle, 60)  # type: ignore[attr-defined]
    alike = [mean_similarity(vectors, plain.item[:10])]
    for weight in (0.0, 0.5, 0.9):
        found = asked(bundle, 10, diversity=DiversitySettings(weight=weight))
        assert found.item[0] == plain.item[0]
        assert weight or (found.item.tolist(), found.score.tolist()) == (
            plain.item[:10].tolist(),
            plain.score[:10].tolist(),
        )
        alike += [mean_similarity(vectors, found.item)]
    assert alike[0] == alike[1] > alike[2] > alike[3]
    few = asked(bundle, 10, diversity=DiversitySettings(weight=0.9), at_most={"genre": 2})
    codes = bundle.state.catalog.item_attribute("genre").codes[few.item]
    assert np.bincount(codes[codes >= 0]).max() == 2
    assert few.item.tolist() != asked(bundle, 10, at_most={"genre": 2}).item.tolist()
    rows, request = np.arange(20, dtype=np.int32), Request(3, bundle.state.end, state=bundle.state)
    pipelines = [Pipeline(bundle), Pipeline(with_config(bundle, lists=ListSettings(diversity=DiversitySettings())))]
    assert len({tuple(pipeline.rank(request, rows).item.tolist()) for pipeline in pipelines}) == 1
    for pipeline in pipelines:
        pipeline.close()


def test_a_plugin_that_is_not_served_leaves_it_out(bundle: Bundle) -> None:
    without = replace(bundle, plugins={})
    assert Diversity.of(DiversitySettings(), without.plugins) is None
    assert Diversity.of(DiversitySettings(plugin="als"), without.plugins) is None


@pytest.mark.parametrize(
    ("lists", "plugins", "says"),
    [
        ("{ plugin = 'asl' }", '["als"]', r"^\[lists\] diversity plugin: 'asl' is not among .*did you mean 'als'"),
        ("{ plugin = 'noise' }", '["als", "noise"]', r"^\[lists\] diversity plugin: 'noise' has no vectors; name one"),
        ("{}", '["noise"]', r"^\[lists\] diversity needs a plugin with item vectors, and none of"),
        ("{ weight = 2 }", '["als"]', r"lists.diversity.weight: a number of at most 1.0 was expected, found 2"),
        ("{ wieght = 1 }", '["als"]', r"did you mean 'weight'"),
    ],
)
def test_what_does_not_fit_is_told_before_any_fit(tmp_path: Path, lists: str, plugins: str, says: str) -> None:
    path = write_world(tmp_path)
    text = path.read_text().replace('plugins = ["als"]', f"plugins = {plugins}")
    path.write_text(text + f"\n[lists]\ndiversity = {lists}\n")
    with pytest.raises(PairliftError, match=says):
        prepare(load_config(path))
