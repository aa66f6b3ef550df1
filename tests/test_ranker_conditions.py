from dataclasses import replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import PairliftError
from features.schema import SECOND, Attribute, Catalog, empty_log
from features.state.store import State
from ranker.conditions.condition import Condition, Held
from ranker.conditions.sql import Call
from ranker.request import Request

N = 12
DUCKDB = duckdb.connect(config={"threads": 1})
KINDS = {
    "x": pa.float32(),
    "y": pa.float32(),
    "c": pa.string(),
    "d": pa.string(),
    "tags": pa.list_(pa.string()),
    "context": pa.struct({"n": pa.float32(), "t": pa.string(), "surface": pa.string(), "as_of": pa.float64()}),
}
NUMBERS = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.0, -1.0, 0.1, 2.5, 16_777_216.0, 3e38]))
TEXTS = st.one_of(st.none(), st.sampled_from(["", "a", "b", "Ab", "é", "東京", "it's"]))


def catalog_of(x: Any, y: Any, c: Any, d: Any, tags: Any) -> Catalog:
    words = sorted({word for row in tags for word in row})
    return Catalog(
        user_ids=np.arange(3),
        item_ids=np.arange(len(x)),
        surfaces=("feed", "kids"),
        item_attributes=(
            numeric("x", x),
            numeric("y", y),
            category("c", c),
            category("d", d),
            Attribute(
                "tags",
                "multi",
                values=tuple(words),
                codes=np.array([words.index(word) for row in tags for word in row], np.int32),
                offsets=np.cumsum([0, *map(len, tags)]).astype(np.int64),
            ),
            Attribute("title", "text", values=("",) * len(x)),
        ),
        contexts=(Attribute("n", "numeric"), Attribute("t", "categorical", values=("a", "b"))),
    )


def numeric(name: str, values: Any) -> Attribute:
    return Attribute(name, "numeric", numbers=np.array([np.nan if v is None else v for v in values], np.float32))


def category(name: str, values: Any) -> Attribute:
    # Not in order: a catalogue of another hand need not have it so.
    words = sorted({v for v in values if v is not None}, reverse=True)
    codes = np.array([-1 if v is None else words.index(v) for v in values], np.int32)
    return Attribute(name, "categorical", codes=codes, values=tuple(words))


def request_of(catalog: Catalog, n: float | None = None, t: str | None = None, surface: int = -1) -> Request:
    state = State.build(empty_log(()), catalog, (), ("no", "yes"))
    context = np.array([[np.nan if n is None else n, np.nan]], np.float32)
    return Request(0, 7 * SECOND, state=state, surface=surface, context=context, texts={} if t is None else {"t": t})


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


LITERALS = st.sampled_from(["0", "1", "2.5", "0.1", "-1", "16777217", "1e0", "1e-1", "NULL"])
WORDS = st.sampled_from(["'a'", "'b'", "'zz'", "''", "'東京'", "'it''s'", "NULL"])
NUMERIC = st.recursive(
    st.sampled_from(["x", "y", "x", "context.n", "context.as_of"]) | LITERALS,
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner)
        | st.builds("({} % {})".format, inner, st.sampled_from(["x", "y", "context.n"]))
        | st.builds("(- {})".format, inner)
    ),
    max_leaves=4,
)
TEXTUAL = st.sampled_from(["c", "d", "context.t", "context.surface"])
COMPARISON = st.sampled_from(["=", "<>", "<", "<=", ">", ">="])
#: each has a column or an attribute, as constants alone have types of their own in SQL (0.1 + 0.2 = 0.3)
LEAF = st.one_of(
    st.builds("(x * 1 {} {})".format, COMPARISON, NUMERIC),
    st.builds("({} {} y)".format, NUMERIC, COMPARISON),
    st.builds("({} {} {})".format, TEXTUAL, COMPARISON, TEXTUAL | WORDS),
    st.builds("({} IN ({}, {}, c))".format, TEXTUAL, WORDS, TEXTUAL),
    st.builds("(x {}IN ({}, {}))".format, st.sampled_from(["", "NOT "]), LITERALS, NUMERIC),
    st.builds("(x {}BETWEEN {} AND {})".format, st.sampled_from(["", "NOT "]), NUMERIC, NUMERIC),
    st.builds(
        "({} IS {}NULL)".format, TEXTUAL | st.sampled_from(["x", "(x + y)", "context.n"]), st.sampled_from(["", "NOT "])
    ),
    st.builds("list_contains(tags, {})".format, TEXTUAL | WORDS),
    st.builds("({} IN tags)".format, TEXTUAL),
    st.sampled_from(["x", "y", "context.n", "true", "false", "NULL", "(x = true)"]),
)
CONDITION = st.recursive(
    LEAF,
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from(["AND", "OR"]), inner)
        | st.builds("(NOT {})".format, inner)
    ),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_condition_is_what_duckdb_says(data: st.DataObject) -> None:
    x, y = (data.draw(st.lists(NUMBERS, min_size=N, max_size=N)) for _ in range(2))
    c, d = (data.draw(st.lists(TEXTS, min_size=N, max_size=N)) for _ in range(2))
    tags = data.draw(
        st.lists(st.lists(st.sampled_from(["a", "b", "é"]), unique=True, max_size=3), min_size=N, max_size=N)
    )
    n, t, surface = data.draw(NUMBERS), data.draw(TEXTS), data.draw(st.sampled_from([-1, 0, 1]))
    sql = data.draw(CONDITION)
    catalog = catalog_of(x, y, c, d, tags)
    request = request_of(catalog, n, t, surface)
    said = {"n": n, "t": t, "surface": None if surface < 0 else catalog.surfaces[surface], "as_of": 7.0}
    rows = {"x": x, "y": y, "c": c, "d": d, "tags": tags, "context": [said] * N}
    DUCKDB.register("items", pa.table({name: pa.array(rows[name], KINDS[name]) for name in rows}))
    expected = [row[0] for row in DUCKDB.execute(f"SELECT coalesce(({sql})::BOOLEAN, false) FROM items").fetchall()]
    item = np.arange(N, dtype=np.int32)
    found = Condition.compiled(sql, catalog).keep(item, request)
    assert found.tolist() == expected, sql
    some = data.draw(st.lists(st.integers(0, N - 1)))
    few = Condition.compiled(sql, catalog).keep(np.array(some, np.int32), request)
    assert few.tolist() == [expected[k] for k in some]


ITEMS = catalog_of(
    [1.0, 2.0, None, 4.0], [0.0] * 4, ["a", "b", None, "a"], ["é"] * 4, [["fr", "no"], [], ["fr"], ["de"]]
)


def kept(sql: str, item: list[int] | None = None, **said: Any) -> list[int]:
    items = np.array([0, 1, 2, 3] if item is None else item, np.int32)
    return items[Condition.compiled(sql, ITEMS).keep(items, request_of(ITEMS, **said))].tolist()


def test_what_is_of_items_alone_is_made_once() -> None:
    assert isinstance(Condition.compiled("x + 1 > 2 AND c = 'a'", ITEMS).tree, Held)
    mixed = Condition.compiled("x > 1 AND list_contains(tags, context.t) AND (x > 2 OR c IS NULL)", ITEMS)
    assert isinstance(mixed.tree, Call)
    held = [isinstance(part, Held) for part in mixed.tree.operands]
    assert (held, list(mixed.columns), list(mixed.lists)) == ([True, False, True], [], ["tags"])


def test_a_request_may_say_what_the_log_never_said() -> None:
    assert kept("list_contains(tags, context.t)", t="fr") == [0, 2]  # the log's requests have a and b alone
    assert kept("context.t IN tags", t="xx") == []
    assert kept("list_contains(tags, context.t)") == []
    assert kept("context.t IS NULL OR list_contains(tags, context.t)") == [0, 1, 2, 3]
    assert kept("x <= context.n", n=2.0) == [0, 1]
    assert kept("context.surface = 'kids'", surface=1) == [0, 1, 2, 3]
    assert kept("x * 3 <= context.as_of") == [0, 1]


def test_a_request_of_the_log_says_the_same() -> None:
    context = np.array([[2.5, 0.0]], np.float32)
    request = replace(request_of(ITEMS), context=context)
    items = np.arange(4, dtype=np.int32)
    assert Condition.compiled("c = context.t AND x < context.n", ITEMS).keep(items, request).tolist() == [True] + 3 * [
        False
    ]


def test_of_an_item_without_attributes_everything_is_null() -> None:
    assert kept("x > 0", [0, 4, -1, 99]) == [0]
    assert kept("x IS NULL", [0, 2, 4, -1]) == [2, 4, -1]
    assert kept("NOT list_contains(tags, 'fr')", [0, 1, 4]) == [1]
    assert kept("x > 0", []) == []


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("", "a SQL condition was expected, found an empty text"),
        ("x >", "found what DuckDB cannot read: syntax error"),
        ("x) , (y", "one SQL condition was expected, found a whole query"),
        ("x) ORDER BY (y", "one SQL condition was expected, found a whole query"),
        ("x) FROM (SELECT 1", "one SQL condition was expected, found a whole query"),
        ("1); DROP TABLE items; SELECT (1", "cannot read: Only SELECT statements"),
        ("1); SELECT (2", "one SQL condition was expected, found a whole query"),
        ("x > 1, y > 1", r"row\(…\) is not supported"),
        ("lower(c) = 'a'", r"lower\(…\) is not supported in a condition; supported are comparisons"),
        ("c LIKE 'a%'", "the operator ~~ is not supported"),
        ("x IN (SELECT 1)", "SUBQUERY is not supported"),
        ("CASE WHEN x > 1 THEN true END", "CASE EXPR is not supported"),
        ("x::INT > 1", "CAST is not supported"),
        ("x IS DISTINCT FROM y", "DISTINCT FROM is not supported"),
        ("a.b.c > 1", "the name a.b.c is not supported"),
        ("user.age > 1", "the name user.age is not supported"),
        ("x'ab' = c", "a constant such as ab is not supported"),
        ("c", "true or false was expected, found text"),
        ("tags", "true or false was expected, found a list"),
        ("c = 1", "text on both sides of = was expected, found a number"),
        ("c > context.n", "text on both sides of > was expected, found a number"),
        ("c + 1 > 2", r"numbers on both sides of \+ were expected, found text"),
        ("(x > 1) + 1 > 2", r"numbers on both sides of \+ were expected, found true or false"),
        ("x > 1 AND c", "true or false was expected beside AND, found text"),
        ("tags = 'fr'", r"a list of values has one use, list_contains\(list, text\)"),
        ("list_contains(c, 'a')", "a list of .items.columns. was expected, found text"),
        ("list_contains(tags, 1)", "a text was expected behind the list, found a number"),
        ("z > 1", "'z' is no number, text or list of .items.columns. .known"),
        ("title = 'a'", "'title' is no number, text or list"),
        ("context.tt = 'a'", "'context.tt' is not of .events.context. .did you mean 't'"),
        ("(" * 5000 + "x" + ")" * 5000, "found what DuckDB cannot read: Max expression depth"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(sql: str, says: str) -> None:
    with pytest.raises(PairliftError, match=says) as found:
        Condition.compiled(sql, ITEMS)
    assert "\n" not in str(found.value)
    assert kept("x > 1 -- a comment") == [1, 3]
