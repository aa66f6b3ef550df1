"""Rules of the TOML against a slow definition, and by the server's own path: what they move is named and counted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import serving
from world import with_config, write_world

from features.errors import PairliftError
from features.schema import SECOND, Attribute, Catalog
from features.state.store import State
from ranker.bundle import Bundle
from ranker.candidates.at_most import AtMost
from ranker.candidates.filters import history
from ranker.client import Client
from ranker.config import load_config, read_config
from ranker.pipeline import Pipeline
from ranker.request import Answer, Request, Trace
from ranker.reranking.diversity import Diversity
from ranker.reranking.order import placed
from ranker.reranking.reranked import Reranking
from ranker.reranking.rules import NAMED, Rules
from ranker.settings import (
    DiversitySettings,
    FilterSettings,
    ListSettings,
    PopularSettings,
    RuleSettings,
    SourcesSettings,
)
from ranker.training.prepared import prepare

N = 8
AUTHOR = Attribute(
    "author", "categorical", codes=np.array([0, 0, 1, 1, 2, 2, -1, -1], np.int32), values=("a", "b", "c")
)
CATALOG = Catalog(user_ids=np.arange(1), item_ids=np.arange(N) * 10, item_attributes=(AUTHOR,), surfaces=("feed",))


def request_of(catalog: Catalog = CATALOG, **said: Any) -> Request:
    state = object.__new__(State)
    object.__setattr__(state, "catalog", catalog)
    return Request(0, 60 * SECOND, state=state, **said)


def rules_of(*rules: dict[str, Any]) -> dict[str, RuleSettings]:
    return {f"r{number}": RuleSettings(**rule) for number, rule in enumerate(rules)}


def reranking(rules: dict[str, RuleSettings], at_most: dict[str, int] | None = None) -> Reranking:
    return Reranking(Rules.of(rules, CATALOG), None, AtMost.of(at_most or {}, CATALOG))


def in_words(items: set[int]) -> str:
    return f"item_id IN ({', '.join(repr(str(10 * item)) for item in sorted(items))})"


ACTIONS = st.one_of(
    st.fixed_dictionaries({"pin": st.integers(1, 12)}),
    st.fixed_dictionaries({"boost": st.sampled_from([-2.0, 0.5, 3.0])}),
    st.just({"bury": True}),
)
SCORES = st.sampled_from([-1.0, 0.0, 1.0, 2.0, np.nan])
RULES = st.lists(st.tuples(st.sets(st.integers(0, N - 1), min_size=1), ACTIONS, st.booleans()), min_size=1, max_size=5)


def slow_list(
    rules: Any, item: list[int], score: list[float], k: int, limit: int | None
) -> tuple[list[int], list[set[int]]]:
    """The places of the list, and of each rule the places of the candidates that it changed."""
    score, pins, buried, changed = list(score), dict[int, int](), list[int](), []

    def falling(places: list[int]) -> list[int]:
        return sorted(
            places, key=lambda p: (not np.isfinite(score[p]), -score[p] if np.isfinite(score[p]) else 0, item[p])
        )

    for items, action, holds in rules:
        own = [p for p in range(len(item)) if item[p] in items and holds]
        free = [p for p in own if p not in pins.values() and p not in buried]
        if "boost" in action:
            for p in own:
                score[p] += action["boost"]
            changed.append(set(own))
        elif "bury" in action:
            buried += free
            changed.append(set(free))
        else:
            for p in falling(free)[:1]:
                place = min(action["pin"], len(item)) - 1
                while place in pins:
                    place += 1
                pins[place] = p
            changed.append(set(falling(free)[:1]))
    rest = falling([p for p in range(len(item)) if p not in pins.values() and p not in buried]) + falling(buried)
    found: list[int] = []
    authors: list[int] = []
    while len(found) < k and (rest or pins):
        due = [place for place in sorted(pins) if place <= len(found) or not rest]
        p = pins.pop(due[0]) if due else rest.pop(0)
        author = int(AUTHOR.codes[item[p]])
        if limit is None or author < 0 or authors.count(author) < limit:
            found.append(p)
            authors.append(author)
    return found, changed


@settings(max_examples=120, deadline=None)
@given(RULES, st.permutations(range(N)), st.lists(SCORES, min_size=N, max_size=N),
       st.integers(1, N), st.integers(1, N + 1), st.sampled_from([None, 1, 2]))  # fmt: skip
def test_lists_equal_the_slow_definition(
    rules: Any, items: list[int], scores: list[float], n: int, k: int, limit: Any
) -> None:
    item, score = np.array(items[:n], np.int32), np.array(scores[:n])
    made = rules_of(*({"items": in_words(own), "when": "true" if holds else "false", **do} for own, do, holds in rules))
    trace = Trace()
    found = reranking(made, None if limit is None else {"author": limit}).top(
        request_of(), item, score, np.arange(n), k, trace
    )
    want, changed = slow_list(rules, item.tolist(), score.tolist(), k, limit)
    assert found.tolist() == want
    assert [(name, set(rows.tolist())) for name, rows in trace.ruled] == [
        (f"r{j}", own) for j, own in enumerate(changed)
    ]
    assert score.tolist() == pytest.approx(scores[:n], nan_ok=True)  # the ranker's own


def test_pins_beyond_the_list_stand_last_and_a_taken_place_gives_the_next() -> None:
    rules = reranking(rules_of(
        {"items": "item_id = '50'", "pin": 2},
        {"items": "item_id = '60'", "pin": 2},
        {"items": "item_id = '0'", "pin": 99},
        {"items": "item_id = '10'", "pin": 99},
        {"items": "item_id = '50'", "bury": True},
        {"items": "item_id = '70'", "bury": True},
    ))  # fmt: skip
    item, score = np.arange(N, dtype=np.int32), -np.arange(N, dtype=float)
    for k in (3, N):
        found = rules.top(request_of(), item, score, np.arange(N), k, Trace()).tolist()
        assert found == [2, 5, 6, 3, 4, 7, 0, 1][:k]
    assert placed(np.array([4, 3]), np.array([-1, -1, -1, 7, 8])).tolist() == [4, 3, 7, 8]


def test_diversity_leaves_pins_and_what_is_buried_where_they_are() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1], [1, 0], [0, 1], [0, 1], [1, 0], [1, 0]], np.float32)
    rules = rules_of({"items": "item_id = '20'", "pin": 2}, {"items": "item_id = '40'", "bury": True})
    both = replace(reranking(rules), diversity=Diversity(vectors, 0.7, 100))
    item, score = np.arange(N, dtype=np.int32), -np.arange(N, dtype=float)
    found = both.top(request_of(), item, score, np.arange(N), N, Trace()).tolist()
    assert (found[0], found[1], found[-1]) == (0, 2, 4)  # what is unlike the first is pinned, or stays buried
    assert found[2] == 1  # so 5, as unlike the first as the pinned one, gains nothing
    alone = replace(both, rules=None).top(request_of(), item, score, np.arange(N), N, Trace()).tolist()
    assert alone[:2] == [0, 2]


def test_when_is_asked_of_the_request() -> None:
    catalog = replace(CATALOG, contexts=(Attribute("device", "categorical", values=("phone",)),))
    settings = rules_of(
        {"items": "true", "when": "context.surface = 'feed' AND context.device = 'phone'", "boost": 1},
        {"items": "author = context.device", "when": "context.as_of >= 60", "boost": 1},
        {"items": "true", "when": "NULL", "boost": 1},
    )
    rules = Rules.of(settings, catalog)
    assert rules is not None
    asked = {
        (True, True, False): request_of(catalog, surface=0, texts={"device": "phone"}),
        (False, True, False): request_of(catalog, texts={"device": "phone"}),
    }
    for want, request in asked.items():
        assert tuple(rule.holds(request) for rule in rules.rules) == want
    request = request_of(catalog, texts={"device": "b"})
    assert rules.ruled(request, np.arange(N, dtype=np.int32), np.zeros(N)).score.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


def recommended(bundle: Bundle, rules: dict[str, RuleSettings], k: int = 10, user: int = 3, **tables: Any) -> Answer:
    pipeline = Pipeline(with_config(bundle, rules=rules, **tables))
    try:
        return pipeline.recommend(Request(user, bundle.state.end, state=bundle.state, explain=True), k)
    finally:
        pipeline.close()


def test_a_server_moves_and_says_so(bundle: Bundle) -> None:
    plain, codes = recommended(bundle, {}, 80), bundle.state.catalog.item_attribute("genre").codes
    last = int(plain.item[-1])
    name = str(bundle.state.catalog.item_ids[last])
    rules = rules_of(
        {"items": f"item_id = '{name}'", "pin": 3},
        {"items": "genre = 'b'", "bury": True},
        {"items": "genre = 'c'", "boost": 1000},
        {"items": "true", "when": "context.surface = 'search'", "boost": -5},
    )
    answer = recommended(bundle, rules, 80)
    assert answer.item[2] == last
    group = {1: 2, 2: 0}  # b stands last, c first
    want = sorted((i for i in plain.item.tolist() if i != last), key=lambda i: group.get(int(codes[i]), 1))
    want.insert(2, last)
    assert answer.item.tolist() == want
    scores = dict(zip(plain.item.tolist(), plain.score.tolist(), strict=True))
    assert answer.score.tolist() == [scores[i] for i in want]
    assert answer.detail is not None
    reports = {report.name: report for report in answer.detail.rules}
    assert reports["r0"].places == (2,)
    assert [want[p] for p in reports["r1"].places] == [i for i in want if codes[i] == 1 and i != last]
    assert reports["r2"].changed == len(reports["r2"].places) == (codes[plain.item] == 2).sum()
    assert (reports["r3"].changed, reports["r3"].places) == (0, ())


def test_without_rules_nothing_is_added(bundle: Bundle) -> None:
    answer = recommended(bundle, {})
    assert answer.detail is not None
    assert answer.detail.rules == ()
    assert "pinned" not in answer.source_names


def test_a_pinned_item_needs_no_source_but_the_filters_win(bundle: Bundle) -> None:
    ids, few = bundle.state.catalog.item_ids, SourcesSettings(popular={"quota": 2}, cooccurrence=False, nearest=False)
    plain = recommended(bundle, {}, sources=few)
    seen = set(history(Request(3, bundle.state.end, state=bundle.state)).tolist())
    unseen = next(i for i in range(80) if i not in seen and i not in plain.item)
    pinned = rules_of({"items": f"item_id = '{ids[unseen]}'", "pin": 1})
    answer = recommended(bundle, pinned, sources=few)
    assert answer.item.tolist() == [unseen, *plain.item.tolist()]
    assert answer.source_names == ("popular", "pinned")
    assert answer.sources[0] == 2
    assert not answer.degraded
    # It is scored by the same columns as an item that a source proposed.
    whole = recommended(bundle, {}, 80, sources=few.model_copy(update={"popular": PopularSettings(quota=80)}))
    assert answer.score[0] == whole.score[whole.item == unseen]
    gone = {
        "seen": rules_of({"items": f"item_id = '{ids[min(seen)]}'", "pin": 1}),
        "condition": pinned,
    }
    keep = {"not_it": FilterSettings(keep=f"item_id <> '{ids[unseen]}'")}
    assert recommended(bundle, gone["seen"], sources=few).item.tolist() == plain.item.tolist()
    assert unseen not in recommended(bundle, gone["condition"], sources=few, filters=keep).item
    # A condition for many items, or one that reads the request, chooses among what is proposed.
    genre = Attribute("genre", "categorical", codes=np.zeros(NAMED + 1, np.int32), values=("a",))
    many = replace(CATALOG, item_ids=np.arange(NAMED + 1), item_attributes=(genre,))
    for condition in ("true", "genre = context.surface"):
        made = Rules.of(rules_of({"items": condition, "pin": 1}), many)
        assert made is not None
        assert made.source() is None


def test_at_most_wins_over_a_pin(bundle: Bundle) -> None:
    codes, ids = bundle.state.catalog.item_attribute("genre").codes, bundle.state.catalog.item_ids
    plain = recommended(bundle, {}, 80)
    like_first = [i for i in plain.item.tolist() if codes[i] == codes[plain.item[0]] >= 0]
    rules = rules_of({"items": f"item_id = '{ids[like_first[-1]]}'", "pin": 3})
    answer = recommended(bundle, rules, 5, lists=ListSettings(at_most={"genre": 1}))
    assert like_first[-1] not in answer.item
    assert like_first[-1] == recommended(bundle, rules, 5, lists=ListSettings(at_most={"genre": 3})).item[2]


def test_a_rank_is_not_ruled(bundle: Bundle) -> None:
    rows, request = np.arange(20, dtype=np.int32), Request(3, bundle.state.end, state=bundle.state)
    found = []
    for rules in ({}, rules_of({"items": "genre = 'a'", "bury": True})):
        pipeline = Pipeline(with_config(bundle, rules=rules))
        found.append(pipeline.rank(request, rows).item.tolist())
        pipeline.close()
    assert found[0] == found[1]


def test_over_the_wire_rules_are_named_and_counted(bundle: Bundle) -> None:
    last, ids = recommended(bundle, {}, 80).item[-1], bundle.state.catalog.item_ids
    rules = {
        "lift": RuleSettings(items=f"item_id = '{ids[last]}'", pin=2),
        "search": RuleSettings(items="true", when="context.surface = 'search'", boost=1.0),
    }
    made = with_config(bundle, rules=rules, lists=ListSettings(diversity=DiversitySettings()))
    with serving(made, clock="snapshot") as server, Client(server.address, timeout=20) as client:
        user = int(bundle.state.catalog.user_ids[3])
        reply = client.recommend(user, 5, explain=True, surface="feed")
        assert reply.items[1].item == ids[last]
        assert reply.rules == (("lift", 1, (1,)), ("search", 0, ()))
        found = client.recommend(user, 40, explain=True, surface="search")
        assert found.rules[1] == ("search", len(found.items), tuple(range(len(found.items))))  # all there are
        page = client.metrics()
        assert 'pairlift_candidates_ruled_total{rule="lift"} 2.0' in page


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("items = 'true'", r"rules.x: one of pin, boost and bury was expected, found none"),
        (
            "items = 'true'\npin = 1\nbury = true",
            r"rules.x: one of pin, boost and bury was expected, found pin and bury",
        ),
        ("items = 'true'\npin = 0", r"rules.x.pin: a number of at least 1 was expected, found 0"),
        ("items = 'tru e'\npin = 1", r"rules.x.items: .*"),
        ("items = 'x = 1'\npin = 1", r"\[rules.x\] items: 'x' is not of \[items.columns\]"),
        (
            "items = 'true'\nwhen = 'genre = 1'\npin = 1",
            r"\[rules.x\] when: 'genre' is of the items; `when` is of the req",
        ),
        ("items = 'true'\nwhen = 'context.devise = 1'\npin = 1", r"\[rules.x\] when: 'context.devise' is not of"),
        ("items = 'true'\nboost = inf", r"rules.x.boost: a finite number was expected"),
        ("items = 'true'\nbury = false", r"rules.x.bury: "),
    ],
)
def test_what_a_toml_says_wrong_is_refused(tmp_path: Path, table: str, says: str) -> None:
    path = write_world(tmp_path)
    path.write_text(path.read_text() + f"\n[rules.x]\n{table}\n")
    with pytest.raises(PairliftError, match=says):
        read_config(path)


def test_what_does_not_fit_the_items_is_told_before_any_fit(tmp_path: Path) -> None:
    path = write_world(tmp_path)
    path.write_text(path.read_text() + "\n[rules.x]\nitems = 'item_id = 5'\npin = 1\n")
    says = r"^\[rules.x\] items = 'item_id = 5': text on both sides of = was expected, found a number"
    with pytest.raises(PairliftError, match=says):
        prepare(load_config(path))
