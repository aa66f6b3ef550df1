from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from features.errors import PairliftError
from features.schema import SECOND, Attribute, Catalog, empty_log
from features.state.store import State
from ranker.conditions.condition import Condition, Held
from ranker.conditions.sql import Attribute as Said
from ranker.conditions.sql import Column, names_in, parsed
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


@settings(max_examples=150, deadline=None, phases=(Phase.generate,))
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
