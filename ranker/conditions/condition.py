"""A condition compiled over a catalogue: what depends on items alone is a mask or a column, made once.

check       kinds of columns and attributes against the operators: a mistake is found before the first request
fold        each part that names no attribute of the request, for all items at once
keep        in a request: the rows of some items, and the parts that name attributes
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from features.errors import PairliftError, did_you_mean
from features.kernels import njit
from features.schema import I32, I64, SECOND, Bool, Catalog
from features.schema import Attribute as ItemColumn
from ranker.conditions import sql
from ranker.conditions.values import (
    Kind,
    Values,
    among,
    between,
    calculated,
    column,
    compared,
    constant,
    is_null,
    joined,
    negated,
    truth,
)

if TYPE_CHECKING:
    from ranker.request import Request

KINDS: dict[str, Kind] = {"numeric": "number", "categorical": "text", "multi": "list"}
NUMBER_OR_TRUTH = {"number", "truth", "null"}


@dataclass(frozen=True, slots=True)
class Held:
    """What a part of a condition that names no attribute says of all items: made once."""

    values: Values  # [n_items + 1], the last one of an unknown item


@dataclass(frozen=True, slots=True)
class Lists:
    """A column of several values."""

    offsets: I64  # [n_items + 1], row i has codes[offsets[i]:offsets[i + 1]]
    codes: I32
    code: Mapping[str, int]  # of each value


Tree = sql.Literal | sql.Column | sql.Attribute | sql.Call | Held


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on items in a request."""

    tree: Tree  # `sql.Node`, with `Held` in the place of what is held
    columns: Mapping[str, Values]  # those that the tree still names
    lists: Mapping[str, Lists]  # likewise those of several values
    n_items: int  # that have attributes

    @classmethod
    def compiled(cls, condition: str, catalog: Catalog) -> "Condition":
        """Compile a condition; PairliftError, a sentence without its text, where it does not fit the catalogue."""
        tree = sql.parsed(condition)
        kind = _Check(catalog).kind(tree)
        if kind not in NUMBER_OR_TRUTH:
            raise PairliftError(f"true or false was expected, found {_said(kind)}")
        known = {attribute.name: attribute for attribute in catalog.item_attributes}
        named = [known[name] if name in known else _ids(catalog) for name in sql.names_in(tree, sql.Column)]
        whole = cls(
            tree,
            {attribute.name: column(attribute) for attribute in named if attribute.kind != "multi"},
            {attribute.name: _lists(attribute) for attribute in named if attribute.kind == "multi"},
            catalog.n_items,
        )
        with np.errstate(all="ignore"):
            return whole._folded()

    @property
    def always(self) -> Bool | None:
        """bool[n_items]: of which items it is true in every request; None where it reads what a request says."""
        if isinstance(self.tree, Held):
            return np.asarray(truth(self.tree.values).data[:-1], np.bool_)
        if isinstance(self.tree, sql.Literal | sql.Column):
            found = self._value(self.tree, np.arange(self.n_items), _no_request)
            return np.array(np.broadcast_to(truth(found).data, self.n_items))
        return None

    def keep(self, item: I32, request: "Request") -> Bool:
        """Return bool[n]: of which of int32[n] items the condition is true; NULL is not.

        Of an item that the catalogue has no attributes of, each column is NULL.
        """
        rows = np.where((item >= 0) & (item < self.n_items), item, self.n_items)
        with np.errstate(all="ignore"):
            found = truth(self._value(self.tree, rows, lambda name: _said_by(request, name))).data
        return np.array(np.broadcast_to(found, len(item)))

    def _folded(self) -> "Condition":
        tree = self._fold(self.tree)
        left = sql.names_in(tree, sql.Column)
        columns = {name: values for name, values in self.columns.items() if name in left}
        lists = {name: values for name, values in self.lists.items() if name in left}
        return Condition(tree, columns, lists, self.n_items)

    def _fold(self, node: Any) -> Any:
        if not isinstance(node, sql.Call):
            return node
        if sql.names_in(node, sql.Attribute):
            return sql.Call(node.operator, tuple(self._fold(operand) for operand in node.operands))
        n = self.n_items + 1
        found = self._value(node, np.arange(n), _no_request)
        data, null = (np.array(np.broadcast_to(part, n)) for part in (found.data, found.null))
        return Held(Values(found.kind, data, null, found.vocabulary))

    def _value(self, node: Any, rows: I64, said: Callable[[str], Values]) -> Values:
        """Return a node's values of int64[m] rows. said: gives what the request says by a name."""
        if isinstance(node, Held):
            return node.values.take(rows)
        if isinstance(node, sql.Literal):
            return constant(node.value)
        if isinstance(node, sql.Column):
            return self.columns[node.name].take(rows)
        if isinstance(node, sql.Attribute):
            return said(node.name)
        if node.operator == "contains":
            return _contained(self.lists[node.operands[0].name], self._value(node.operands[1], rows, said), rows)
        return _applied(node.operator, [self._value(operand, rows, said) for operand in node.operands])


def _applied(operator: str, operands: list[Values]) -> Values:
    if operator in ("and", "or"):
        return joined(operator, [truth(operand) for operand in operands])
    if operator == "not":
        return negated(truth(operands[0]))
    if operator == "is null":
        return is_null(operands[0])
    if operator == "in":
        return among(operands[0], operands[1:])
    if operator == "between":
        return between(*operands)
    return (calculated if operator in sql.ARITHMETIC else compared)(operator, operands[0], operands[1])


def _ids(catalog: Catalog) -> ItemColumn:
    """Return the items' ids as a column of text; integers too, for a 32-bit number does not tell them apart."""
    ids = tuple(map(str, catalog.item_ids.tolist()))
    return ItemColumn(sql.ITEM_ID, "categorical", codes=np.arange(len(ids), dtype=np.int32), values=ids)


def _lists(column: ItemColumn) -> Lists:
    return Lists(column.offsets, column.codes, {word: k for k, word in enumerate(column.values)})


def _contained(lists: Lists, wanted: Values, rows: I64) -> Values:
    """Return whether the list of each of int64[m] rows has the wanted text; NULL of the row of unknown items."""
    if wanted.kind == "null":
        return Values("truth", np.False_, np.True_)
    null = np.logical_or(rows >= len(lists.offsets) - 1, wanted.null)
    if isinstance(wanted.data, str):
        codes = np.full(len(rows), lists.code.get(wanted.data, -1), np.int32)
    else:
        own = np.array([*(lists.code.get(word, -1) for word in wanted.vocabulary), -1], np.int32)
        codes = np.broadcast_to(own[wanted.data], len(rows))
    return Values("truth", _has(lists.offsets, lists.codes, rows, codes) & ~null, null)


@njit(cache=True, nogil=True)
def _has(offsets: I64, codes: I32, rows: I64, wanted: I32) -> Bool:
    found = np.zeros(len(rows), np.bool_)
    for k in range(len(rows)):
        if wanted[k] >= 0 and rows[k] < len(offsets) - 1:
            found[k] = (codes[offsets[rows[k]] : offsets[rows[k] + 1]] == wanted[k]).any()
    return found


def _said_by(request: "Request", name: str) -> Values:
    """Return what a request says of itself: text as it was sent, of a log's request as the log has it; NULL unknown."""
    catalog = request.state.catalog
    place = next((k for k, known in enumerate(catalog.contexts) if known.name == name), -1)
    if place < 0:
        if name == sql.AS_OF:
            return constant(np.float64(request.as_of / SECOND))
        return constant(catalog.surfaces[request.surface] if request.surface >= 0 else None)
    if name in request.texts:
        return constant(request.texts[name])
    value = request.context[0, place] if len(request.context) else np.float32(np.nan)
    if np.isnan(value):
        return constant(None)
    known = catalog.contexts[place]
    return constant(np.float32(value) if known.kind == "numeric" else known.values[int(value)])


def _no_request(name: str) -> NoReturn:
    raise AssertionError(f"context.{name} is of a request")


@dataclass(frozen=True, slots=True)
class _Check:
    """The kinds of a condition's parts; PairliftError where they do not fit."""

    catalog: Catalog

    def kind(self, node: sql.Node) -> Kind:
        """Return the kind of a node."""
        if isinstance(node, sql.Literal):
            return constant(node.value).kind
        if isinstance(node, sql.Column):
            return self._column(node.name)
        if isinstance(node, sql.Attribute):
            return self._attribute(node.name)
        kinds = [self.kind(operand) for operand in node.operands]
        if node.operator == "contains":
            return self._contains(node, kinds)
        if "list" in kinds:
            raise PairliftError("a list of values has one use, list_contains(list, text), found another")
        if node.operator in sql.ARITHMETIC:
            self._all(kinds, {"number", "null"}, f"numbers on both sides of {node.operator} were expected")
            return "number"
        if node.operator in ("and", "or", "not"):
            self._all(kinds, NUMBER_OR_TRUTH, f"true or false was expected beside {node.operator.upper()}")
        elif node.operator != "is null" and "text" in kinds:
            self._all(kinds, {"text", "null"}, f"text on both sides of {node.operator.upper()} was expected")
        return "truth"

    def _all(self, kinds: list[Kind], expected: set[str], said: str) -> None:
        for kind in kinds:
            if kind not in expected:
                raise PairliftError(f"{said}, found {_said(kind)}")

    def _contains(self, node: sql.Call, kinds: list[Kind]) -> Kind:
        if kinds[0] != "list":
            raise PairliftError(f"list_contains: a list of [items.columns] was expected, found {_said(kinds[0])}")
        self._all(kinds[1:], {"text", "null"}, "list_contains: a text was expected behind the list")
        return "truth"

    def _column(self, name: str) -> Kind:
        known: dict[str, Kind] = {sql.ITEM_ID: "text"}
        known |= {a.name: KINDS[a.kind] for a in self.catalog.item_attributes if a.kind in KINDS}
        if name not in known:
            raise PairliftError(f"'{name}' is no number, text or list of [items.columns]{did_you_mean(name, known)}")
        return known[name]

    def _attribute(self, name: str) -> Kind:
        found: dict[str, Kind] = {sql.SURFACE: "text", sql.AS_OF: "number"}
        found |= {known.name: KINDS[known.kind] for known in self.catalog.contexts}
        if name not in found:
            raise PairliftError(f"'context.{name}' is not of [events.context]{did_you_mean(name, found)}")
        return found[name]


def _said(kind: Kind) -> str:
    return {"text": "text", "number": "a number", "truth": "true or false", "list": "a list", "null": "NULL"}[kind]
