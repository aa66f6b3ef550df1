"""Filters of the TOML, and at most so many items of one value: what they remove is counted, and said."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import with_config

from features.errors import PairliftError
from features.schema import DAY, Attribute, Catalog
from ranker.bundle import Bundle
from ranker.candidates.at_most import AtMost
from ranker.candidates.demand import Demand
from ranker.candidates.filters import filters_of, history
from ranker.candidates.gathering import MOST_ASKED, UNBOUNDED, candidates_of, limit_alone, limits
from ranker.candidates.merge import Places
from ranker.candidates.popular import Popular
from ranker.pipeline import Pipeline
from ranker.request import Answer, Request
from ranker.settings import FilterSettings, ListSettings, SourceSettings, SourcesSettings


def with_filters(bundle: Bundle, keep: dict[str, str], **tables: Any) -> Bundle:
    return with_config(bundle, filters={name: FilterSettings(keep=sql) for name, sql in keep.items()}, **tables)


def recommended(bundle: Bundle, k: int = 10, user: int = 3) -> Answer:
    pipeline = Pipeline(bundle)
    try:
        return pipeline.recommend(Request(user, bundle.state.end, state=bundle.state, explain=True), k)
    finally:
        pipeline.close()


def removed(answer: Answer) -> dict[str, int]:
    assert answer.detail is not None
    return dict(answer.detail.removed)


def test_conditions_remove_and_are_counted(bundle: Bundle) -> None:
    genre, length = (bundle.state.catalog.item_attribute(name) for name in ("genre", "length"))
    without = recommended(bundle, 50)
    keep = {"genre": "genre IN ('a', 'c')", "length": "length IS NULL OR length < 150"}
    answer = recommended(with_filters(bundle, keep), 50)
    right = np.isin(genre.codes, [0, 2]) & ~(length.numbers >= 150)
    assert right[answer.item].all()
    assert not right[without.item].all()
    counts = removed(answer)
    assert list(counts) == ["unknown", "excluded", "seen", "genre", "length"]
    assert min(counts["genre"], counts["length"]) > 0
    # Sources are asked for more, so that their quotas are filled behind the filters.
    seen = history(Request(3, bundle.state.end, state=bundle.state))
    assert sorted(answer.item.tolist()) == [k for k in np.flatnonzero(right).tolist() if k not in seen]


def test_each_item_has_the_first_filter_that_removes_it(bundle: Bundle) -> None:
    catalog, state = bundle.state.catalog, bundle.state
    codes = catalog.item_attribute("genre").codes
    both = with_filters(bundle, {"one": "genre <> 'a'", "two": "genre IN ('b', 'c')"}).config
    for exclude_seen in (True, False):
        config = both.model_copy(update={"sources": SourcesSettings(exclude_seen=exclude_seen)})
        filters = filters_of(config, state)
        assert filters_of(config, state) is filters
        verdict = filters.judged(np.arange(-1, 80, dtype=np.int32), Request(-1, state.end, state=state))
        names = ["unknown", *(("one" if code <= 0 else "two" if code == 3 else "") for code in codes)]
        assert [filters.names[v] if v >= 0 else "" for v in verdict] == names


def test_training_filters_as_the_server_does(bundle: Bundle) -> None:
    filtered = with_filters(bundle, {"genre": "genre = 'b'"})
    pipeline = Pipeline(filtered)
    request = Request(5, bundle.state.end, state=bundle.state)
    candidates, _ = candidates_of(pipeline.sources, request, filtered.config)
    assert len(candidates)
    assert sorted(pipeline.recommend(request, 200).item.tolist()) == candidates.item.tolist()
    pipeline.close()


def test_sources_are_asked_for_what_filters_may_remove(bundle: Bundle) -> None:
    request = Request(3, bundle.state.end, surface=0, exclude=np.arange(2, dtype=np.int32), state=bundle.state)
    quotas = {"feed": SourceSettings(quota=9, surfaces=["feed"]), "search": SourceSettings(surfaces=["search"])}
    sources = [(Popular(Demand(bundle.state, 1, DAY)), settings) for settings in quotas.values()]
    seen, places = len(history(request)), Places([9, 9], [9, 9], 18)
    plain, filtered = (
        filters_of(one.config, bundle.state) for one in (bundle, with_filters(bundle, {"all": "genre <> 'a'"}))
    )
    assert limits(sources, request, plain, places) == [min(9 + 2 + 1 + seen, MOST_ASKED * 9), 0]
    assert limits(sources, request, replace(plain, exclude_seen=False), places) == [9 + 2 + 1, 0]
    assert limits(sources, request, filtered, places) == [MOST_ASKED * 9, 0]
    new = replace(request, user=-1)  # many sources know nothing of such a user, and leave their places
    assert limits(sources, new, plain, Places([9, 9], [UNBOUNDED, 9], 30)) == [30 + 2 + 1, 0]
    assert limits(sources, new, plain, Places([9, 9], [9, 9], 30)) == [9 + 2 + 1, 0]
    assert [limit_alone(1000, request, one) for one in (plain, filtered)] == [1001 + seen, MOST_ASKED * 1000]


def test_filters_that_remove_everything_say_so(bundle: Bundle) -> None:
    answer = recommended(with_filters(bundle, {"region": "genre = 'nowhere'"}))
    assert len(answer.item) == 0
    assert answer.reason.startswith("all that was proposed was removed: seen ")
    assert f"region {removed(answer)['region']}" in answer.reason


def test_a_condition_that_does_not_fit_names_its_table(bundle: Bundle) -> None:
    says = r"\[filters.adult\] keep = 'genre > 1': text on both sides of > was expected, found a number"
    with pytest.raises(PairliftError, match=says):
        Pipeline(with_filters(bundle, {"adult": "genre > 1"}))


def test_at_most_so_many_of_one_value(bundle: Bundle) -> None:
    codes, whole = bundle.state.catalog.item_attribute("genre").codes, recommended(bundle, 50, user=-1)
    answer = recommended(with_config(bundle, lists=ListSettings(at_most={"genre": 2})), 8, user=-1)
    assert np.bincount(codes[answer.item] + 1)[1:].max() == 2
    seen, expected = [0] * 4, []
    for item in whole.item.tolist():
        code = codes[item]
        if code < 0 or seen[code] < 2:
            expected.append(item)
            seen[code] += code >= 0
    assert answer.item.tolist() == expected[:8]
    assert removed(answer)["at_most.genre"] == whole.item.tolist().index(answer.item[-1]) + 1 - 8
    assert answer.reason == ""
    few = recommended(with_config(bundle, lists=ListSettings(at_most={"genre": 1})), 50)
    assert few.reason.startswith("fewer candidates than k = 50 were left: removed: ")
    assert "at_most.genre" in few.reason


def test_a_rank_keeps_every_item(bundle: Bundle) -> None:
    limited = with_filters(bundle, {"none": "false"}, lists=ListSettings(at_most={"genre": 1}))
    pipeline = Pipeline(limited)
    answer = pipeline.rank(Request(3, bundle.state.end, state=bundle.state), np.arange(20, dtype=np.int32))
    assert sorted(answer.item.tolist()) == list(range(20))
    pipeline.close()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_at_most_equals_the_plain_definition(data: st.DataObject) -> None:
    n = 9
    lists = data.draw(st.lists(st.lists(st.integers(0, 2), unique=True, max_size=3), min_size=n, max_size=n))
    codes = data.draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n))
    limits = data.draw(st.dictionaries(st.sampled_from(["author", "tags"]), st.integers(1, 3), min_size=1))
    order = data.draw(st.permutations(range(n + 2)))
    item, k = np.array([*range(n), -1, n + 5], np.int32), data.draw(st.integers(0, n + 2))
    catalog = Catalog(
        user_ids=np.arange(1),
        item_ids=np.arange(n),
        item_attributes=(
            Attribute("author", "categorical", codes=np.array(codes, np.int32), values=tuple("abcd")),
            Attribute("tags", "multi", codes=np.array([c for row in lists for c in row], np.int32),
                      offsets=np.cumsum([0, *map(len, lists)]).astype(np.int64), values=tuple("xyz")),
        ),
    )  # fmt: skip
    made = AtMost.of(limits, catalog)
    assert made is not None
    kept, found = made.first_of(item, np.array(order, np.int64), k)
    counts: dict[tuple[str, int], int] = {}
    expected, lost = [], dict.fromkeys((f"at_most.{name}" for name in limits), 0)
    for place in order:
        if len(expected) == k:
            break
        i = int(item[place])
        values = {"author": [codes[i]] if codes[i] >= 0 else [], "tags": lists[i]} if 0 <= i < n else {}
        own = [(name, value) for name in limits for value in values.get(name, ())]
        full = next((name for name, value in own if counts.get((name, value), 0) >= limits[name]), None)
        if full is not None:
            lost[f"at_most.{full}"] += 1
            continue
        expected.append(place)
        for one in own:
            counts[one] = counts.get(one, 0) + 1
    assert kept.tolist() == expected
    assert dict(found) == lost


def test_a_limit_is_of_text_or_lists(bundle: Bundle) -> None:
    assert AtMost.of({}, bundle.state.catalog) is None
    for name, says in (("length", "'length' is not a text or a list of"), ("gerne", "did you mean 'genre'")):
        with pytest.raises(PairliftError, match=says):
            AtMost.of({name: 1}, bundle.state.catalog)


def test_filters_see_what_a_request_says(bundle: Bundle) -> None:
    catalog = replace(bundle.state.catalog, contexts=(Attribute("wants", "categorical", values=("a",)),))
    state = replace(bundle.state, catalog=catalog, made={})
    pipeline = Pipeline(with_filters(replace(bundle, state=state), {"wants": "genre = context.wants"}))
    codes = catalog.item_attribute("genre").codes
    for wants, code in (("a", 0), ("d", 3)):  # the log has a alone
        answer = pipeline.recommend(Request(3, state.end, state=state, texts={"wants": wants}), 10)
        assert len(answer.item)
        assert set(codes[answer.item]) == {code}
    assert len(pipeline.recommend(Request(3, state.end, state=state), 10).item) == 0
    pipeline.close()
