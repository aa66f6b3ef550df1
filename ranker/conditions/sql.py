"""A SQL condition as a tree: DuckDB's own parser reads it, and what is not supported is refused by name.

`json_serialize_sql` gives the tree of DuckDB's dialect, as it would run it. Nothing is run here.
"""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import duckdb
import numpy as np

from features.errors import PairliftError

#: what a condition may have, for people
SUPPORTED = (
    "comparisons (= <> < <= > >=), AND, OR, NOT, IN, BETWEEN, IS NULL, + - * / %, list_contains(list, text), numbers, "
    "'texts', TRUE, FALSE and NULL, over columns of [items.columns], item_id (as text: '42') and context.NAME"
)
#: of the first part of a name that is of the request
CONTEXT = "context"
#: the name of the items' ids, where [items.columns] has no column of that name
ITEM_ID = "item_id"
#: what every request says of itself; [events.context] may have its own of these names
SURFACE, AS_OF = REQUEST = ("surface", "as_of")
COMPARISONS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_NOTEQUAL": "<>",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
}
ARITHMETIC = ("+", "-", "*", "/", "%")
#: names of one function; the last is what `'x' IN list` becomes
CONTAINS = ("list_contains", "list_has", "array_contains", "array_has", "contains")


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant: text, a number (a float64 where SQL has a DOUBLE), true, false, or None: NULL."""

    value: str | bool | float | np.float64 | None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of items, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Attribute:
    """What the request says of itself, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """An operator over its operands: one of SQL in lower case, `is null`, or `contains`."""

    operator: str
    operands: tuple["Node", ...]


Node = Literal | Column | Attribute | Call


def parsed(sql: str) -> Node:
    """Return the tree of a condition; PairliftError, a sentence without the condition, for what cannot be read."""
    if not sql.strip():
        raise PairliftError(f"a SQL condition was expected, found an empty text; supported are {SUPPORTED}")
    # The line break: a comment at the end would take the parenthesis with it.
    found, bare = _selects(f"SELECT (\n{sql}\n)"), _selects("SELECT (1)")
    chosen = found[0].pop("select_list") if found else []
    bare[0].pop("select_list")
    if found != bare or len(chosen) != 1:  # two statements, FROM, ORDER BY …
        raise PairliftError("one SQL condition was expected, found a whole query")
    try:
        return _node(chosen[0])
    except RecursionError:
        raise PairliftError("a shorter condition was expected: this one nests too deeply") from None


def _selects(text: str) -> list[dict[str, Any]]:
    """Return what DuckDB reads of SELECT statements; PairliftError for others."""
    with _parser().cursor() as con:
        ((found,),) = con.execute("SELECT json_serialize_sql(?)", [text]).fetchall()
    said = json.loads(found)
    if said["error"]:
        raise PairliftError(f"a SQL condition was expected, found what DuckDB cannot read: {said['error_message']}")
    return [statement["node"] for statement in said["statements"]]


@cache
def _parser() -> duckdb.DuckDBPyConnection:
    """Return a connection to read conditions with: to open one takes 30 times as long as to read one."""
    return duckdb.connect(config={"threads": 1})


def names_in(node: Any, kind: type[Column] | type[Attribute]) -> list[str]:
    """Return the names of the columns, or of the attributes, of a tree, each once; none of another node than these."""
    if isinstance(node, Call):
        return list(dict.fromkeys(name for operand in node.operands for name in names_in(operand, kind)))
    return [node.name] if isinstance(node, kind) else []


def _node(e: dict[str, Any]) -> Node:
    kind, of = e["class"], e["type"]
    if kind == "CONSTANT":
        return Literal(_constant(e["literal"]))
    if kind == "COLUMN_REF":
        return _name(e["column_names"])
    if kind == "FUNCTION":
        return _function(e)
    if of in COMPARISONS:
        return Call(COMPARISONS[of], (_node(e["left"]), _node(e["right"])))
    if kind == "BETWEEN":
        return _operator(of, tuple(_node(e[part]) for part in ("input", "lower", "upper")))
    return _operator(of, tuple(map(_node, e.get("children", ()))))


def _operator(of: str, operands: tuple[Node, ...]) -> Node:
    if of in ("CONJUNCTION_AND", "CONJUNCTION_OR"):
        return Call(of.removeprefix("CONJUNCTION_").lower(), operands)
    if of in ("COMPARE_BETWEEN", "COMPARE_IN"):
        return Call(of.removeprefix("COMPARE_").lower(), operands)
    if of == "OPERATOR_NOT":
        return Call("not", operands)
    if of == "OPERATOR_IS_NULL":
        return Call("is null", operands)
    if of == "OPERATOR_IS_NOT_NULL":
        return Call("not", (Call("is null", operands),))
    raise _unsupported(of.removeprefix("OPERATOR_").removeprefix("COMPARE_").replace("_", " "))


def _function(e: dict[str, Any]) -> Node:
    name, operands = e["function_name"], tuple(_node(argument["expression"]) for argument in e["arguments"])
    if name in ARITHMETIC and len(operands) == 2:
        return Call(name, operands)
    if name in ("+", "-") and len(operands) == 1:
        return Call("*", (*operands, Literal(-1.0))) if name == "-" else operands[0]
    if name in CONTAINS and len(operands) == 2:
        return Call("contains", operands)
    raise _unsupported(f"{name}(…)" if name.isidentifier() else f"the operator {name}")


def _name(parts: list[str]) -> Node:
    if len(parts) == 1:
        return Column(parts[0])
    if len(parts) == 2 and parts[0].lower() == CONTEXT:
        return Attribute(parts[1])
    raise _unsupported(f"the name {'.'.join(parts)}")


def _constant(literal: dict[str, str]) -> str | bool | float | np.float64 | None:
    kind, text = literal["kind"], literal.get("text", "")
    if kind == "NULL_LITERAL":
        return None
    if kind == "BOOLEAN":
        return text == "true"
    if kind == "STRING":
        return text
    if kind not in ("INTEGER", "NUMERIC"):
        raise _unsupported(f"a constant such as {text}")
    value = float(text)
    # SQL has a DOUBLE for these; others are as exact as what they meet.
    double = "e" in text.lower() or abs(value) > np.finfo(np.float32).max
    return np.float64(value) if double else value


def _unsupported(what: str) -> PairliftError:
    return PairliftError(f"{what} is not supported in a condition; supported are {SUPPORTED}")
