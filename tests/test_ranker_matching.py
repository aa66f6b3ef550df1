"""Features of the source item and the query: their plain definition, and one path in training and in serving."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairlift.v1 import ranking_pb2 as pb
from served import pairlift
from world import write_world

from features.errors import PairliftError
from features.plugin import VectorPlugin
from features.rows import assemble
from features.schema import Attribute, Catalog, EventLog, Requests, empty_log
from ranker.bundle import Bundle, load_bundle
from ranker.candidates.cooccurrence import Cooccurrence
from ranker.columns import columns_of, full_matrix
from ranker.config import load_config, wanted_floor
from ranker.export.batch import Wanted, write_lists
from ranker.ids import IdTable
from ranker.lists.answers import without_deadlines
from ranker.matching.matching import Matches
from ranker.offpolicy.target import _refuse_other_meanings as refuse_on_a_log
from ranker.pipeline import Pipeline
from ranker.recording.featurelog import FeatureLog
from ranker.recording.logged import drift, read_features
from ranker.request import Request
from ranker.sources.bm25 import MOST_TERMS, TextIndex
from ranker.sources.tokens import tokens
from ranker.train import train
from ranker.training.earlier_bundle import _refuse_other_meanings as refuse_other_meanings
from ranker.training.prepared import Prepared, prepare
from ranker.wire import Wire

STARTED = "CASE WHEN request % 3 > 0 THEN request % 90 END"
#: related lists start from an item that the log may not have; two of three lists are typed
MAPPED = """
request_id = "request"
source_item = "CASE WHEN request % 3 > 0 THEN request % 90 END"
[events.context]
query = "CASE request % 3 WHEN 0 THEN 'Taste' || user_id % 4 || ' no' WHEN 1 THEN '...' END"
[items]
source = "items.parquet"
columns = {maker = "maker", tags = "tags", year = "year"}
text = {title = "title"}
[sources.search]
class = "ranker.sources.search:Search"
"""
NAMES = ["source_item_cooccurrence", "source_item_same_maker", "source_item_same_tags", "query_bm25", "query_share"]
N = 80


def written(folder: Path, request: str = MAPPED) -> Path:
    toml = write_world(folder, request=request, n_items=N, request_ids=True)
    pq.write_table(
        pa.table({
            "item_id": np.arange(N), "title": [f"Taste{k % 4}: no. {k}" if k % 9 else None for k in range(N)],
            "maker": [f"m{k % 7}" if k % 5 else None for k in range(N)], "year": np.arange(N) % 3,
            "tags": [[f"t{k % 3}", f"t{k % 11}"] if k % 4 else [] for k in range(N)],
        }),
        folder / "items.parquet",
    )  # fmt: skip
    return toml


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(load_config(written(tmp_path_factory.mktemp("matching"))))


@pytest.fixture(scope="module")
def bundle(prepared: Prepared) -> Bundle:
    train(prepared.config, prepared.config.folder / "bundle")
    return load_bundle(prepared.config.folder / "bundle")


TITLES = ("red shoes", "Red hat", "", "東京の靴", "café ☕", "?!")
TAGS = ([0, 2], [1], [], [0], [1, 2], [2])
CATALOG = Catalog(
    user_ids=np.arange(4),
    item_ids=np.arange(6),
    item_attributes=(
        Attribute("maker", "categorical", codes=np.array([0, 0, 1, -1, 1, 0], np.int32), values=("a", "b")),
        Attribute(
            "tags", "multi", codes=np.concatenate(TAGS).astype(np.int32),
            offsets=np.cumsum([0, *map(len, TAGS)]).astype(np.int64), values=("x", "y", "z"),
        ),
        Attribute("title", "text", values=TITLES),
    ),
)  # fmt: skip


def log_of(user: list[int], item: list[int]) -> EventLog:
    n = len(user)
    return replace(
        empty_log((), n), user=np.array(user, np.int32), item=np.array(item, np.int32), grade=np.ones(n, np.int8)
    )


MATCHES = Matches.fit(tuple(NAMES), log_of([0, 0, 0, 1, 1, 2], [0, 1, 4, 0, 1, 3]), CATALOG, 1)


def plainly(source: int, item: int, query: str) -> list[float]:
    """Return what `Matches` gives of one candidate, told by the definitions."""
    known = 0 <= source < 6 and 0 <= item < 6
    table, nan = MATCHES.taken, float("nan")
    assert table is not None
    near = dict(zip(table.neighbour[source].tolist(), table.score[source].tolist(), strict=True)) if known else {}
    met = known and all(table.neighbour[k, 0] >= 0 for k in (source, item))
    maker, _, title = CATALOG.item_attributes
    makers = [int(maker.codes[k]) for k in (source, item)] if known else [-1]
    tags = [set(TAGS[k]) for k in (source, item)] if known else [set[int]()]
    asked, own = set(tokens(query, query=True)), set(tokens(title.values[item])) if 0 <= item < 6 else set()
    told = bool(asked and own)
    return [
        near.get(item, 0.0) if met else nan,
        nan if -1 in makers else float(makers[0] == makers[1]),
        float(bool(tags[0] & tags[1])) if all(tags) else nan,
        nan,  # BM25 has an oracle of its own, in the tests of the source
        len(asked & own) / len(asked) if told else nan,
    ]


ANY = st.integers(-1, 8)
QUERIES = (
    st.sampled_from(["", " . ", "red", "RED unknown", "靴", "東京の靴", "cafe", "☕ ?", "\ud800", "red " * 9])
    | st.text()
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(ANY, QUERIES, st.lists(ANY, max_size=6)), max_size=5))
def test_each_value_is_what_its_definition_says_and_of_its_own_row(asked: list[tuple[int, str, list[int]]]) -> None:
    requests = requests_of(asked)
    out = np.full((len(requests.item), len(NAMES)), -7, np.float32)
    MATCHES.write(CATALOG, list(enumerate(NAMES)), requests, out)
    want = [plainly(source, item, query) for source, query, items in asked for item in items]
    others = [0, 1, 2, 4]
    np.testing.assert_allclose(out[:, others], np.array(want, np.float32).reshape(-1, len(NAMES))[:, others], rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(out[:, 3]), np.isnan(out[:, 4]))
    np.testing.assert_array_equal(out[:, 3] > 0, out[:, 4] > 0)
    for r in range(len(requests)):
        one = np.empty((len(asked[r][2]), len(NAMES)), np.float32)
        MATCHES.write(CATALOG, list(enumerate(NAMES)), requests.slice(r, r + 1), one)
        np.testing.assert_array_equal(one, out[requests.offsets[r] : requests.offsets[r + 1]])


def requests_of(asked: list[tuple[int, str, list[int]]]) -> Requests:
    g = len(asked)
    return Requests(
        user=np.zeros(g, np.int32),
        as_of=np.zeros(g, np.int64),
        surface=np.full(g, -1, np.int16),
        offsets=np.cumsum([0, *(len(items) for *_, items in asked)]).astype(np.int64),
        item=np.array([item for *_, items in asked for item in items], np.int32),
        source_item=np.array([source for source, *_ in asked], np.int32),
        query=np.array([query for _, query, _ in asked], np.object_) if g else np.empty(0, np.object_),
    )


def test_of_a_query_of_a_thousand_words_the_rarest_count() -> None:
    words = [f"w{k}" for k in range(1000)]
    index = TextIndex.build([" ".join(words), *(" ".join(words[k:]) for k in range(5))], 6)
    assert index.asked(" ".join([*words, "new"]))[1] == 1
    assert len(index.asked(" ".join(words))[0]) == MOST_TERMS


def test_rows_of_the_log_are_those_of_the_same_requests_one_by_one(prepared: Prepared, bundle: Bundle) -> None:
    """The bundle's own tables, mapped, give what the training had, to the last bit."""
    groups, spec = prepared.groups, prepared.spec
    at = [spec.columns.index(name) for name in NAMES]
    whole = assemble(prepared.state, spec, groups.requests)[:, at]
    assert np.isnan(whole).any(axis=0).all()
    assert np.isfinite(whole).any(axis=0).all()
    of_plugin = columns_of(bundle.spec, bundle.plugins).index("als__source_item")
    for k in range(0, len(groups.requests), 40):
        r = groups.requests.slice(k, k + 1)
        asked = Request.of(groups.requests, k, bundle.state).requests(r.item)
        own = full_matrix(bundle.state, bundle.spec, bundle.plugins, asked)
        rows = slice(groups.requests.offsets[k], groups.requests.offsets[k + 1])
        np.testing.assert_array_equal(own[:, at], whole[rows])
        als, source = bundle.plugins["als"], int(r.source_item[0])
        assert isinstance(als, VectorPlugin)
        vectors = als.item_vectors
        want = vectors[r.item] @ vectors[source] if source >= 0 else np.full(len(r.item), np.nan)
        np.testing.assert_allclose(own[:, of_plugin], want, rtol=1e-4, atol=1e-6)


def test_a_call_reaches_them_with_its_own_ids_and_words(prepared: Prepared, bundle: Bundle) -> None:
    """What nobody typed in the log has a score too, though `context_query` does not know it."""
    catalog = bundle.state.catalog
    wire = Wire(
        catalog, IdTable(catalog.user_ids), IdTable(catalog.item_ids), limits=bundle.config.serve, max_id_bytes=9
    )
    item, at = np.arange(-1, N, dtype=np.int32), [bundle.spec.columns.index(name) for name in NAMES]

    def values(source: int, query: str) -> np.ndarray:
        context = pb.Context(source_item=pb.Id(integer=source), query=query)
        request = wire.request(pb.RankRequest(context=context), bundle.state.end, bundle.state)
        return assemble(bundle.state, bundle.spec, request.requests(item))[:, at]

    found = values(1, "no. 13 of TASTE1, never typed")
    assert np.nanargmax(found[:, 3]) == 14
    assert np.isnan(found[0]).all()
    assert np.nanmax(found[:, 0]) > 0
    assert set(found[1:, 1][np.isfinite(found[1:, 1])]) == {0, 1}
    assert np.isnan(values(999, "")).all()  # an item that nobody knows, and no query
    assert np.isnan(values(1, "…")[:, 3:]).all()


def test_a_batch_of_a_query_is_what_a_call_of_it_answers(bundle: Bundle, tmp_path: Path) -> None:
    catalog, query = bundle.state.catalog, "no. 13 of TASTE1"
    pq.write_table(pa.table({"user_id": catalog.user_ids[:3]}), tmp_path / "users.parquet")
    asked = Wanted(users=tmp_path / "users.parquet", context={"query": query}, k=5)
    write_lists(bundle, tmp_path / "lists.parquet", asked)
    found = pq.read_table(tmp_path / "lists.parquet").to_pydict()
    wire = Wire(
        catalog, IdTable(catalog.user_ids), IdTable(catalog.item_ids), limits=bundle.config.serve, max_id_bytes=9
    )
    pipeline = Pipeline(replace(bundle, config=without_deadlines(bundle.config)))
    for place, user in enumerate(catalog.user_ids[:3].tolist()):
        call = pb.RecommendRequest(user=pb.Id(integer=user), context=pb.Context(query=query))
        answer = pipeline.recommend(wire.request(call, bundle.state.end, bundle.state), 5)
        assert found["item_id"][5 * place : 5 * place + 5] == catalog.item_ids[answer.item].tolist()
        assert found["score"][5 * place : 5 * place + 5] == answer.score.tolist()
    pipeline.close()


def test_old_trees_do_not_go_on_where_these_columns_would_mean_something_else(
    prepared: Prepared, bundle: Bundle
) -> None:
    config = prepared.config
    other = config.model_copy(update={"lists": config.lists.model_copy(update={"wanted": "other"})})
    with pytest.raises(PairliftError, match=r"\[lists\] wanted of .* are not what it was trained with"):
        refuse_other_meanings("--refit", bundle, replace(prepared, config=other))
    assert config.items is not None
    untitled = config.model_copy(update={"items": config.items.model_copy(update={"text": {}})})
    with pytest.raises(PairliftError, match=r"\[items.text\]"):
        refuse_other_meanings("--refit", bundle, replace(prepared, config=untitled))
    with pytest.raises(PairliftError, match=r"\[items.text\]"):
        refuse_on_a_log(Path("old"), bundle.config, untitled)
    moved = config.model_copy(update={"events": config.events.model_copy(update={"source_item": "item_id"})})
    with pytest.raises(PairliftError, match=r"\[events\] source_item"):
        refuse_on_a_log(Path("old"), bundle.config, moved)
    refuse_on_a_log(Path("old"), bundle.config, config)


def test_co_occurrence_has_seen_nothing_of_t1_or_later(prepared: Prepared) -> None:
    log, floor, split = prepared.log, wanted_floor(prepared.config), prepared.split
    matching = prepared.spec.matching
    assert isinstance(matching, Matches)
    assert matching.taken is not None
    before, whole = (Cooccurrence.build(log.until(end), N, floor) for end in (split.t1, split.t3))
    np.testing.assert_array_equal(matching.taken.score, before.score)
    assert (matching.taken.score != whole.score).any()


def test_of_a_log_without_them_there_are_no_such_columns(prepared: Prepared, tmp_path: Path) -> None:
    said = MAPPED.replace("source_item =", "position =").replace("query =", "asked =")
    without = prepare(load_config(written(tmp_path, said))).spec
    assert not without.matched
    assert not without.source_item
    assert without.matching is None
    plain = [name for name in prepared.spec.columns if name not in NAMES]
    assert [name.replace("asked", "query") for name in without.columns] == plain
    assert list(prepared.spec.matched) == NAMES
    assert not set(NAMES) & set(prepared.spec.categorical)


def test_the_toml_chooses_among_them(tmp_path: Path) -> None:
    toml = written(tmp_path)
    toml.write_text(toml.read_text() + '[features]\ncolumns = ["hour", "query_share", "item_age"]\n')
    spec = prepare(load_config(toml)).spec
    assert spec.columns[-3:] == ("hour", "query_share", "item_age")
    assert spec.matched == ("query_share",)


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("CASE WHEN request % 2 = 0 THEN '7' ELSE '' END", {7, -1}),  # as a server records it: text, or a fraction
        ("CASE WHEN request % 2 = 0 THEN 7.0 END", {7, -1}),
        ("NULL", {-1}),
        ("12345", {-1}),
    ],
)
def test_ids_of_source_items_are_read_as_those_of_items(tmp_path: Path, sql: str, found: set[int]) -> None:
    made = prepare(load_config(written(tmp_path, MAPPED.replace(STARTED, sql))))
    assert set(made.log.source_item[:, 0].tolist()) == found
    first = made.groups.event[made.groups.requests.offsets[:-1]]
    np.testing.assert_array_equal(made.groups.requests.source_item, made.log.source_item[first, 0])


def test_a_source_item_that_is_no_id_is_refused(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, MAPPED.replace(STARTED, "[item_id]")))
    with pytest.raises(PairliftError, match=r"\[events\] source_item = '\[item_id\]': the id of an item was expected"):
        prepare(config)


def test_a_feature_log_knows_what_a_list_started_from(bundle: Bundle, tmp_path: Path) -> None:
    """So `pairlift drift` recomputes these columns too, for a query that the log never had."""
    pipeline, state = Pipeline(bundle), bundle.state
    log = FeatureLog(tmp_path, columns=bundle.columns, version=bundle.version, share=1.0)
    for number, (source, query) in enumerate([(3, "no. 7"), (-1, ""), (5, "")]):
        asked = Request(number, state.end, state=state, source_item=source, query=query, request_id=f"r{number}")
        answer = pipeline.rank(replace(asked, keep_values=True), np.arange(9, dtype=np.int32))
        assert answer.values is not None
        log.offer(asked, answer, answer.values)
    log.close()
    pipeline.close()
    logged = read_features(tmp_path, state.catalog, ())
    assert logged.requests.source_item.tolist() == [3, -1, 5]
    assert logged.requests.query.tolist() == ["no. 7", "", ""]
    again = full_matrix(state, bundle.spec, bundle.plugins, logged.requests)
    assert not any(row["differs"] for row in drift(logged, again))


def test_validate_says_how_many_lists_start_from_an_item(tmp_path: Path) -> None:
    for sql, said in (
        (STARTED, "[events] source_item is an item of the log in 5"),
        ("12345", "[events] source_item is an item of the log in 0.0 % of the groups: is it the id of an item"),
    ):
        code, output = pairlift("validate", written(tmp_path, MAPPED.replace(STARTED, sql)))
        assert code == 0, output
        assert said in output
