"""Full-text search: tokens of any script, and an index that equals the plain definition of BM25."""

from collections import Counter
from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
from contracts import NamedSourceContract
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import typeof

from features.errors import PairliftError
from features.schema import I32, Attribute
from features.state.store import NEVER, State
from ranker.bundle import Bundle
from ranker.candidates.named import Arrays, Served
from ranker.candidates.source import CandidateSource, Proposal
from ranker.request import Request
from ranker.sources import bm25
from ranker.sources.bm25 import BLOCK, K1, MOST_TERMS, B, TextIndex, index_of
from ranker.sources.search import Search
from ranker.sources.tokens import tokens


def titled(bundle: Bundle, texts: list[str]) -> Bundle:
    """The bundle with a text for each of its items."""
    catalog = bundle.state.catalog
    title = Attribute("title", "text", values=tuple(texts))
    catalog = replace(catalog, item_attributes=(*catalog.item_attributes, title))
    return replace(bundle, state=replace(bundle.state, catalog=catalog, made={}))


class Asking:
    """A source that is asked for something, whatever the request asks for."""

    def __init__(self, source: CandidateSource, query: str) -> None:
        self.source, self.query, self.name = source, query, source.name

    def propose(self, request: Request, limit: int) -> Proposal:
        return self.source.propose(replace(request, query=self.query), limit)


class TestSearch(NamedSourceContract):
    path = "ranker.sources.search:Search"

    @pytest.fixture
    def bundle(self, bundle: Bundle) -> Bundle:
        words = ["red", "blue", "shoe", "shoes", "hat", "東京"]
        n = bundle.state.catalog.n_items
        return titled(bundle, [" ".join(words[k % d] for d in (2, 3, 5) if k % 7) for k in range(n)])

    def opened(self, bundle: Bundle, arrays: Arrays, state: State | None = None) -> CandidateSource:
        return Asking(super().opened(bundle, arrays, state), "red shoe, hat")


def searching(texts: list[str], state: State) -> Search:
    """The source over the texts of items 0, 1 …"""
    source = Search()
    arrays = TextIndex.build(texts, len(texts))._asdict()
    source.open(Served(arrays=arrays, plugins={}, state=state, floor=0))
    return source


def test_items_without_texts_are_refused(bundle: Bundle) -> None:
    catalog = replace(bundle.state.catalog, item_attributes=())
    with pytest.raises(PairliftError, match=r"^needs \[items.text\], the texts that are searched"):
        Search().check(catalog)
    Search().check(titled(bundle, ["red"] * catalog.n_items).state.catalog)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Hello, WORLD! it's 3.5", "hello world it s 3 5"),
        ("Déjà Vu – Straße ﬁn", "deja vu strasse fin"),
        ("Việt Nam, Ελληνικά, ΣΟΦΟΣ", "viet nam ελληνικα σοφοσ"),
        ("東京タワー 2024年", "東 京 タ ワ ー 東京 京タ タワ ワー 2024 年"),
        ("ｶﾞ ＡＢＣ", "ガ abc"),
        ("𠮷野", "𠮷 野 𠮷野"),
        ("검색", "검 색 검색"),
        ("مَرحَبًا بالعالم", "مرحبا بالعالم"),
        ("שָׁלוֹם", "שלום"),
        ("हिन्दी में", "हिन्दी में"),
        ("👍🏽 party🎉🎉 👨‍👩‍👧", "👍 party 🎉 🎉 👨 👩 👧"),
        ("", ""),
        (" !?-- \x00\t", ""),
        ("\ud800a", "a"),
    ],
)
def test_every_script_has_tokens(text: str, found: str) -> None:
    assert tokens(text) == found.split()


def test_a_query_has_pairs_where_it_can() -> None:
    assert tokens("東京タワー", query=True) == ["東京", "京タ", "タワ", "ワー"]
    assert tokens("東 red", query=True) == ["東", "red"]
    assert set(tokens("東京", query=True)) <= set(tokens("新東京塔"))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_case_and_composition_do_not_matter(text: str) -> None:
    found = tokens(text)
    assert tokens(text, query=True) == [t for t in tokens(text, query=True) if t in found]
    if text.isascii():
        assert tokens(text.upper()) == found
    assert all(found)


WORDS = ["a", "b", "cc", "été", "東京", "京", "🎉", "the", "x" * 50]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join), max_size=30)
QUERIES = st.lists(st.sampled_from([*WORDS, "unknown", "AND", '"', "a*", "(", "NEAR/2", "b:"]), max_size=6).map(
    " ".join
)


def plain(texts: list[str], query: str) -> dict[int, float]:
    """BM25 as it is defined, of the items that have a token of the query."""
    words = [tokens(text) for text in texts]
    some = [w for w in words if w]
    mean = sum(map(len, some)) / max(len(some), 1)
    scores: dict[int, float] = {}
    for term in set(tokens(query, query=True)):
        df = sum(term in w for w in some)
        for k, own in enumerate(words):
            f = Counter(own)[term]
            if f:
                idf = log(1 + (len(some) - df + 0.5) / (df + 0.5))
                part = idf * f * (K1 + 1) / (f + K1 * (1 - B + B * len(own) / mean))
                scores[k] = scores.get(k, 0.0) + part
    return scores


@settings(max_examples=80, deadline=None)
@given(TEXTS, QUERIES, st.integers(0, 8))
def test_the_index_is_bm25(texts: list[str], query: str, limit: int) -> None:
    index = TextIndex.build(texts, len(texts))
    terms, expected = index.terms(query), plain(texts, query)
    everything = np.arange(-1, len(texts) + 1, dtype=np.int32)
    score = index.score(terms, everything)
    known = [bool(tokens(text)) for text in texts]
    assert np.isfinite(score).tolist() == [False, *known, False]
    found = np.array([expected.get(int(k), 0.0) for k in everything])
    np.testing.assert_allclose(score[np.isfinite(score)], found[np.isfinite(score)], rtol=1e-5)
    item, own = index.top(terms, limit)
    assert own.tolist() == index.score(terms, item).tolist()  # to the last bit: both add in one order
    by_score = sorted(expected, key=lambda k: (-index.score(terms, np.array([k], np.int32))[0], k))
    assert item.tolist() == sorted(by_score[:limit])


@pytest.mark.parametrize("limit", [1, 10, 500, 20_000])
def test_the_best_of_many_blocks_and_of_ties(limit: int) -> None:
    rng = np.random.default_rng(limit)
    n = 3 * BLOCK + 17
    texts = [" ".join(["w"] * int(rng.integers(0, 3)) + ["v"] * int(rng.integers(1, 3))) for _ in range(n)]
    index = TextIndex.build(texts, n)
    terms, items = index.terms("w v"), np.arange(n, dtype=np.int32)
    score = index.score(terms, items)
    expected: I32 = np.lexsort((items, -score))[:limit]
    assert index.top(terms, limit)[0].tolist() == np.sort(expected).tolist()


def test_what_came_later_is_not_there_yet(bundle: Bundle) -> None:
    state, n = bundle.state, bundle.state.catalog.n_items
    first = state.first_seen.copy()
    first[3] = NEVER
    state = replace(state, first_seen=first)
    source, half = searching(["red"] * n, state), int(np.median(first))
    for as_of in (int(first.min()), half, half + 1, state.end):
        found = source.propose(Request(0, as_of, state=state, query="red"), n).item.tolist()
        assert found == [k for k in range(n) if first[k] < as_of or k == 3]


def proposal(texts: list[str], query: str, bundle: Bundle, limit: int = 5) -> list[int]:
    request = Request(0, bundle.state.end, state=bundle.state, query=query)
    found = searching(texts, bundle.state).propose(request, limit)
    return found.item.tolist()


def test_queries_without_syntax(bundle: Bundle) -> None:
    texts = ["red shoes", "the red hat", "blue shoes OR", "東京タワー", "عربي"]
    for query in ("", "   ", "!!!", "unknown", "\x00", '"', "'; DROP TABLE items; --"):
        assert proposal(texts, query, bundle) == []
    assert proposal(texts, 'RED" NOT (shoes', bundle) == [0, 1, 2]
    assert proposal(texts, "or", bundle) == [2]  # stop words are words: their weight is small, and theirs alone counts
    assert proposal(texts, "the", bundle) == [1]
    assert proposal(texts, "東京", bundle) == [3]
    assert proposal(texts, "عَرَبِيّ", bundle) == [4]
    assert proposal([], "red", bundle) == []
    assert proposal(["", ""], "red", bundle) == []


def test_a_first_search_finds_its_kernels_compiled(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba compiles by the types of the arguments: an index that is opened calls each kernel by those of a search."""
    called = set[Any]()

    def recorded(kernel: Any) -> Any:
        def call(*arguments: Any) -> Any:
            called.add((kernel.__name__, *map(typeof, arguments)))
            return kernel(*arguments)

        return call

    for kernel in (bm25._top, bm25._scores):
        monkeypatch.setattr(bm25, kernel.__name__, recorded(kernel))
    state = bundle.state
    source = searching(["red shoes", "the red hat"], state)
    opened = called.copy()
    for as_of in (state.end, state.end - 1):
        found = source.propose(Request(-1, as_of, state=state, query="red"), 5)
        assert found.score is not None
        assert found.score(np.array([1, 0], np.int32)).shape == (2,)
    assert called == opened


def test_one_catalogue_is_indexed_once(bundle: Bundle) -> None:
    catalog = titled(bundle, ["red hat"] * bundle.state.catalog.n_items).state.catalog
    other = titled(bundle, ["red"] * bundle.state.catalog.n_items).state.catalog
    first = index_of(catalog)
    assert index_of(replace(catalog, user_attributes=())) is first
    assert len(index_of(other).hash) == 1
    assert len(index_of(catalog).hash) == 2


def test_of_many_tokens_the_rarest_count() -> None:
    words = [f"w{k}" for k in range(MOST_TERMS + 20)]
    texts = [" ".join(words[:k]) for k in range(len(words) + 1)]  # w0 is in the most texts
    index = TextIndex.build(texts, len(texts))
    terms = index.terms(" ".join(words))
    assert len(terms) == MOST_TERMS
    assert (np.diff(terms) > 0).all()
    kept = index.terms(" ".join(words[20:]))
    assert terms.tolist() == kept.tolist()
    assert len(index.terms("w1 w1 W1")) == 1
