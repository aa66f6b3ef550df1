import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairlift.v1 import ranking_pb2 as pb

from features.newcomers import Newcomers
from features.schema import DAY, NO_GIVEN, Attribute, Catalog
from ranker.asking.messages import column_message, id_list, id_message, ids_message
from ranker.ids import IdTable
from ranker.request import MAX_QUERY, Answer, Detail, Request, RequestError, RuleReport, SourceReport
from ranker.settings import ServeSettings
from ranker.wire import EARLIEST, LATEST, Wire

ROOT = Path(__file__).parent.parent
LIMITS = ServeSettings(max_items=5, max_k=7)
INTEGERS = Catalog(
    user_ids=np.array([-3, 4, 2**62]), item_ids=np.array([-(2**63), -1, 0, 7, 2**63 - 1]), surfaces=("feed", "search")
)
TEXTS = Catalog(
    user_ids=np.array(["ann", "bob"], dtype=object), item_ids=np.array(["", "a", "é", "日本"], dtype=object)
)


INTEGER_STATE, TEXT_STATE = (SimpleNamespace(catalog=catalog, start=0, end=99) for catalog in (INTEGERS, TEXTS))


def wire_of(catalog, limits=LIMITS):
    users, items = IdTable(catalog.user_ids), IdTable(catalog.item_ids)
    return Wire(catalog, users, items, limits=limits, max_id_bytes=256)


def recommend(**fields):
    return pb.RecommendRequest(**fields)


@pytest.fixture
def integers():
    return wire_of(INTEGERS)


@pytest.fixture
def texts():
    return wire_of(TEXTS)


def test_integer_ids_become_indexes(integers):
    assert integers.items.find([7, 8, -(2**63), 2**63 - 1, 7]).tolist() == [3, -1, 0, 4, 3]
    assert integers.items.find([]).tolist() == []
    assert integers.items.kind == "integer"


def test_text_ids_become_indexes(texts):
    assert texts.items.find(["日本", "b", "", "é"]).tolist() == [3, -1, 0, 2]
    assert texts.items.find([]).dtype == np.int32
    assert texts.items.kind == "text"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True), st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_find_equals_a_dictionary(known, wanted):
    table = IdTable(np.array(sorted(known), np.int64))
    expected = {value: place for place, value in enumerate(sorted(known))}
    wanted = wanted + known[:3]
    assert table.find(wanted).tolist() == [expected.get(value, -1) for value in wanted]


@given(st.lists(st.integers(-(2**63), 2**63 - 1)) | st.lists(st.text()))
def test_ids_come_back_as_they_went(values):
    message = pb.Ids.FromString(ids_message(values).SerializeToString())
    assert id_list(message) == values


def test_ids_are_packed():
    assert len(ids_message(list(range(50))).SerializeToString()) < 60
    assert id_list(ids_message(np.array([3, -4]))) == [3, -4]
    assert id_list(pb.Ids()) == []


def test_a_mixture_of_kinds_cannot_be_written():
    with pytest.raises(TypeError):
        ids_message(["a", 1])
    with pytest.raises(ValueError, match="range"):
        id_message(2**63)


def test_a_request_is_read(integers):
    message = recommend(
        user=pb.Id(integer=4),
        context=pb.Context(surface="search", query="shoes", source_item=pb.Id(integer=7), attributes={"device": "tv"}),
        as_of=123,
        exclude=ids_message([0, 99]),
        explain=True,
    )
    request = integers.request(message, now=5, state=INTEGER_STATE)
    assert (request.user, request.as_of, request.surface, request.source_item) == (1, 123, 1, 3)
    assert (request.query, request.explain) == ("shoes", True)
    assert request.exclude.tolist() == [2, -1]


def test_a_query_is_at_most_so_long(integers):
    def read(said="", attributes=None):
        context = pb.Context(query=said, attributes=attributes)
        return integers.request(recommend(context=context), now=5, state=INTEGER_STATE).query

    assert read("é" * (MAX_QUERY // 2)) == "é" * (MAX_QUERY // 2)
    for query in ("é" * (MAX_QUERY // 2) + "x", "x" * 2**20):
        says = f"context.query: at most {MAX_QUERY} bytes in UTF-8 were expected, found {len(query.encode())}"
        with pytest.raises(RequestError, match=says):
            read(query)
    with pytest.raises(RequestError, match=r"context.attributes 'query': at most"):
        read(attributes={"query": "x" * 2**20})
    assert read('"; DROP TABLE items; --') == '"; DROP TABLE items; --'


def test_the_query_is_the_attribute_of_its_name():
    asked = Attribute("query", "categorical", values=("hats", "shoes"))
    catalog = replace(INTEGERS, contexts=(Attribute("age", "numeric"), asked))
    state = SimpleNamespace(catalog=catalog, start=0, end=99)

    def read(**context):
        return wire_of(catalog).request(recommend(context=pb.Context(**context)), now=5, state=state)

    request = read(query="shoes", attributes={"age": "7", "other": "x"})
    assert (request.query, request.texts, request.context.tolist()) == ("shoes", {"query": "shoes"}, [[7.0, 1.0]])
    assert read(query="shoes", attributes={"query": "hats"}).query == "hats"
    assert read(attributes={"query": "hats"}).query == "hats"
    new = read(query="new")  # text that the log lacks is a query all the same
    assert (new.query, np.isnan(new.context).all()) == ("new", True)
    assert read().query == ""


def test_what_is_left_out_is_missing(integers):
    request = integers.request(pb.RankRequest(), now=5, state=INTEGER_STATE)
    assert (request.user, request.as_of, request.surface, request.source_item) == (-1, 5, -1, -1)
    assert len(request.exclude) == 0
    assert not request.explain


def test_an_as_of_of_zero_is_a_time_and_not_nothing(integers):
    assert integers.request(recommend(as_of=0), now=5, state=INTEGER_STATE).as_of == 0


def test_unknown_ids_and_surfaces_are_cold_and_no_error(integers, texts):
    request = integers.request(
        recommend(user=pb.Id(integer=5), context=pb.Context(surface="attic")), now=5, state=INTEGER_STATE
    )
    assert (request.user, request.surface) == (-1, -1)
    assert texts.request(recommend(user=pb.Id(text="eve")), now=5, state=TEXT_STATE).user == -1


FIRST, LAST = 1_600_000_000_000_000, 1_700_000_000_000_000


@pytest.mark.parametrize(("unit", "size"), [("milliseconds", 1000), ("seconds", 10**6)])
@pytest.mark.parametrize("at", [FIRST - 200 * DAY, FIRST, LAST, LAST + 200 * DAY])
def test_an_as_of_in_seconds_or_milliseconds_is_refused(integers, unit, size, at):
    state = SimpleNamespace(catalog=INTEGERS, start=FIRST, end=LAST)
    with pytest.raises(RequestError, match=f"before the log's first event and is 20.* in {unit}: send {at}"):
        integers.request(recommend(as_of=at // size), now=LAST, state=state)
    assert integers.request(recommend(as_of=at), now=LAST, state=state).as_of == at


@pytest.mark.parametrize("as_of", [0, -5, 1, 10**6, 10**13, FIRST // 1000 - 400 * DAY // 1000])
def test_an_as_of_long_before_the_log_is_a_time(integers, as_of):
    state = SimpleNamespace(catalog=INTEGERS, start=FIRST, end=LAST)
    assert integers.request(recommend(as_of=as_of), now=LAST, state=state).as_of == as_of


@pytest.mark.parametrize("as_of", [EARLIEST - 1, LATEST + 1, 2**63 - 1, -(2**63)])
def test_a_time_outside_the_calendar_is_refused(integers, as_of):
    with pytest.raises(RequestError, match=f"1900 to 9998, were expected, found {as_of}"):
        integers.request(recommend(as_of=as_of), now=5, state=INTEGER_STATE)


WRONG_KIND = [
    ("user", {"user": pb.Id(text="4")}, {"user": pb.Id(integer=4)}),
    (
        "context.source_item",
        {"context": pb.Context(source_item=pb.Id(text="4"))},
        {"context": pb.Context(source_item=pb.Id(integer=4))},
    ),
    ("exclude", {"exclude": ids_message(["4"])}, {"exclude": ids_message([4])}),
]


@pytest.mark.parametrize(("place", "text", "integer"), WRONG_KIND)
def test_ids_of_the_other_kind_are_refused(integers, texts, place, text, integer):
    with pytest.raises(RequestError, match=f"^{place}: integer ids were expected.*found text"):
        integers.request(recommend(**text), now=5, state=INTEGER_STATE)
    with pytest.raises(RequestError, match=f"^{place}: text ids were expected.*found an integer"):
        texts.request(recommend(**integer), now=5, state=TEXT_STATE)


def test_an_empty_list_has_no_kind(integers):
    assert len(integers.values("items", pb.Ids(texts=pb.TextIds()))) == 0
    assert len(integers.values("items", pb.Ids())) == 0


@pytest.mark.parametrize("place", ["items", "exclude"])
def test_too_many_items_are_refused(integers, place):
    assert len(integers.values(place, ids_message([1] * 5))) == 5
    with pytest.raises(RequestError, match=f"^{place}: at most 5 items were expected, found 6"):
        integers.values(place, ids_message([1] * 6))


def test_k(integers):
    assert integers.k(recommend()) == integers.default_k == 7
    assert wire_of(INTEGERS, ServeSettings()).k(recommend()) == 10
    assert integers.k(recommend(k=3)) == 3
    assert integers.k(recommend(k=7)) == 7
    for k in (-1, 8):
        with pytest.raises(RequestError, match=f"^k: 0 .* to 7 was expected, found {k}"):
            integers.k(recommend(k=k))


def answer(detail=None):
    return Answer(
        index=np.array([2, 0, 1]),
        item=np.array([3, 0, -1], np.int32),
        score=np.array([0.1 + 0.2, 0.0, np.nan]),
        sources=np.array([1, 5, 2], np.uint32),
        source_names=("x", "y", "z"),
        degraded=("plugins.p",),
        bundle_version="v",
        detail=detail,
    )


def asked(state):
    return Request(-1, 7, state=state, request_id="r")


@pytest.mark.parametrize("kind", ["integer", "text"])
def test_a_ranked_answer_is_written(kind):
    catalog, ids = (INTEGERS, [50, 60, 70]) if kind == "integer" else (TEXTS, ["p", "q", "r"])
    r = wire_of(catalog).ranked(answer(), asked(INTEGER_STATE), ids)
    r = pb.RankResponse.FromString(r.SerializeToString())
    assert (r.request_id, r.bundle_version, r.snapshot_time, r.as_of) == ("r", "v", 99, 7)
    assert list(r.indexes) == [2, 0, 1]
    assert (r.unknown_user, list(r.unknown_items)) == (True, [1])
    assert id_list(r.items) == [ids[2], ids[0], ids[1]]  # as the caller wrote them, unknown ones too
    assert r.scores[0] == 0.1 + 0.2
    assert np.isnan(r.scores[2])
    assert list(r.sources) == [1, 5, 2]
    assert list(r.source_names) == ["x", "y", "z"]
    assert list(r.degraded) == ["plugins.p"]
    assert not r.HasField("explanation")


def test_a_list_is_written_with_the_catalogues_ids():
    known = replace(answer(), item=np.array([3, 0, 1], np.int32), reason="few")
    assert wire_of(INTEGERS).recommended(known, asked(INTEGER_STATE)).reason == "few"
    assert id_list(wire_of(INTEGERS).recommended(known, asked(INTEGER_STATE)).items) == [7, -(2**63), -1]
    assert id_list(wire_of(TEXTS).recommended(known, asked(TEXT_STATE)).items) == ["日本", "", "a"]


def test_an_explanation_is_written():
    detail = Detail(
        columns=("f", "g"),
        values=np.array([[1, np.nan], [3, 4]], np.float32),
        contributions=np.array([[0.5, 0], [0, -0.5]], np.float32),
        base=0.25,
        liked=np.array([1.5, np.nan]),
        wanted=np.array([0.75, -0.25]),
        sources=(SourceReport("x", 4, 2, "it was late"),),
        removed=(("seen", 2),),
        rules=(RuleReport("lift", 3, (0, 2)),),
        stages=(("sources", 120),),
    )
    e = wire_of(INTEGERS).ranked(answer(detail), asked(INTEGER_STATE), [1, 2, 3]).explanation
    assert list(e.feature_names) == ["f", "g"]
    assert e.rows == 2
    assert e.base == 0.25
    assert np.array_equal(e.liked, [1.5, np.nan], equal_nan=True)
    assert list(e.wanted) == [0.75, -0.25]
    alone = answer(replace(detail, wanted=None))
    assert not wire_of(INTEGERS).ranked(alone, asked(INTEGER_STATE), [1, 2, 3]).explanation.wanted
    assert np.array_equal(np.array(e.feature_values), [1, np.nan, 3, 4], equal_nan=True)
    assert list(e.contributions) == [0.5, 0, 0, -0.5]
    assert e.source_reports[0] == pb.SourceReport(name="x", proposed=4, scored=2, problem="it was late")
    assert e.filter_reports[0] == pb.FilterReport(name="seen", removed=2)
    assert e.rule_reports[0] == pb.RuleReport(name="lift", changed=3, places=[0, 2])
    assert e.stage_reports[0] == pb.StageReport(name="sources", microseconds=120)


def test_the_generated_code_is_that_of_the_proto(tmp_path):
    pytest.importorskip("grpc_tools")
    pytest.importorskip("mypy_protobuf")
    plugin = Path(sys.executable).parent / "protoc-gen-mypy"
    made = subprocess.run(
        [
            sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", f"--plugin=protoc-gen-mypy={plugin}",
            f"--python_out={tmp_path}", f"--mypy_out=quiet:{tmp_path}", f"--grpc_python_out={tmp_path}",
            "proto/pairlift/v1/ranking.proto",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    for name in ("ranking_pb2.py", "ranking_pb2.pyi", "ranking_pb2_grpc.py"):
        fresh = (tmp_path / "pairlift/v1" / name).read_text()
        assert fresh == (ROOT / "proto/pairlift/v1" / name).read_text(), f"{name} is old: run `make proto`"


def test_every_part_of_the_contract_has_a_comment():
    """A line that declares something follows a comment line, whatever its depth."""
    lines = [line.strip() for line in (ROOT / "proto/pairlift/v1/ranking.proto").read_text().splitlines()]
    for before, line in zip(["", *lines], lines, strict=False):
        declares = line.endswith((";", "{", "{}")) and not line.startswith(
            ("//", "syntax", "package", "option ", "oneof")
        )
        assert not declares or before.startswith("//"), f"no comment: {line}"


@pytest.mark.parametrize(("catalog", "new"), [(INTEGERS, [5, 2**62 - 1]), (TEXTS, ["zoë", "ann "])])
def test_new_ids_stand_behind_those_of_the_bundle(catalog, new):
    known = catalog.item_ids.tolist()
    grown = replace(catalog, new_items=Newcomers.of(new[:1], 2))
    table, wanted = IdTable(catalog.item_ids), [new[1], known[2], new[0], known[0]]
    found = table.find(wanted, grown.new_items)
    assert found.tolist() == [-1, 2, len(known), 0]
    assert table.find(wanted).tolist() == [-1, 2, -1, 0]
    assert grown.ids_of_items(found) == [None, *wanted[1:]]


SHOWN = replace(
    INTEGERS, candidates=(Attribute("price", "numeric"), Attribute("badge", "categorical", values=("new", "sale")))
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32, allow_infinity=False), max_size=70), st.booleans())
def test_columns_of_numbers_come_to_the_bit_as_they_were_sent(numbers, later):
    column = pb.CandidateColumn(name="price", numbers=numbers).SerializeToString()
    # A field that a later version may add, in the bytes of the message.
    column = pb.CandidateColumn.FromString(column + (b"\xa2\x06\x03abc" if later else b""))
    given_ = wire_of(SHOWN).given([column], len(numbers))
    assert given_.shape == (len(numbers), 2)
    assert given_[:, 0].tobytes() == np.array(numbers, np.float32).tobytes()
    assert np.isnan(given_[:, 1]).all()


def test_columns_that_say_nothing_or_two_things():
    wire, price = wire_of(SHOWN), pb.CandidateColumn(name="price", numbers=[1, 2])
    assert wire.given([], 2) is NO_GIVEN
    assert wire_of(INTEGERS).given([price, price], 5) is NO_GIVEN
    assert np.isnan(wire.given([pb.CandidateColumn(name="other", texts=["x"])], 2)).all()
    badge = pb.CandidateColumn(name="badge", texts=["sale", ""])
    np.testing.assert_array_equal(wire.given([badge, price], 2), [[1, 1], [2, np.nan]])
    with pytest.raises(RequestError, match="columns 'price': each column once was expected, found it twice"):
        wire.given([price, badge, price], 2)
    both = pb.CandidateColumn(name="price", numbers=[1, 2], texts=["1", "2"])
    with pytest.raises(RequestError, match="columns 'price': numbers were expected, found texts"):
        wire.given([both], 2)
    with pytest.raises(RequestError, match="columns 'badge': texts were expected, found numbers"):
        wire.given([pb.CandidateColumn(name="badge", numbers=[1])], 2)
    with pytest.raises(RequestError, match="columns 'price': 2 numbers were expected, one for each item, found 0"):
        wire.given([pb.CandidateColumn(name="price")], 2)


def test_a_column_of_python_values():
    assert list(column_message("price", [1, None, 2.5]).numbers)[::2] == [1, 2.5]
    assert np.isnan(column_message("price", [None]).numbers[0])
    assert list(column_message("badge", [None, "new"]).texts) == ["", "new"]
    with pytest.raises(TypeError):
        column_message("price", [1, "a"])
