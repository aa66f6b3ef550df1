"""The booster's columns and their values: counters, attributes and context first, then those of each plugin.

One definition of their names, their order and the shape that a plugin must give, for training (`Columns`, by slice) and
for a request (`row_matrix`) alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.dots import row_dots
from features.errors import PairliftError
from features.given import with_list
from features.kernels import njit
from features.plugin import FeaturePlugin, VectorPlugin
from features.rows import FeatureSpec, assemble
from features.schema import F32, F64, I64, Catalog, Requests
from features.state.histories import Histories
from features.state.store import State

#: the column of the source whose score the wanted part starts from
DEMAND = "source__popular"
#: of a plugin with vectors: the product of a candidate's and the source item's
SOURCE_ITEM = "source_item"
#: kinds of NumPy's types that are real numbers
NUMBERS = "fiub"


def given_of(said: F32, catalog: Catalog, spec: FeatureSpec) -> F32:
    """Return `Requests.given` of one request: float32[n, c] said of its candidates, then the features of their list."""
    return with_list(said, np.array([0, len(said)]), catalog, spec.listed)


def plugin_columns(name: str, plugin: FeaturePlugin, spec: FeatureSpec) -> list[str]:
    """Return the booster's names of the columns of the plugin `name`: its own, and SOURCE_ITEM where there is one."""
    further = [SOURCE_ITEM] if _compares(plugin, spec) else []
    return [f"{name}__{column}" for column in (*plugin.columns, *further)]


def _compares(plugin: FeaturePlugin, spec: FeatureSpec) -> bool:
    """Tell whether a plugin's item vectors are compared with those of source items."""
    return spec.source_item and isinstance(plugin, VectorPlugin) and SOURCE_ITEM not in plugin.columns


def plugin_categories(name: str, plugin: FeaturePlugin) -> list[str]:
    """Return the booster's names of those columns of the plugin `name` that are codes of categories."""
    categories = getattr(plugin, "categorical", ())
    for column in categories:
        if column not in plugin.columns:
            raise PairliftError(
                f"[plugins.{name}] categorical: of its columns {', '.join(plugin.columns)} some were expected, found "
                f"'{column}'"
            )
    return [f"{name}__{column}" for column in categories]


def categories_of(spec: FeatureSpec, plugins: Mapping[str, FeaturePlugin]) -> list[str]:
    """Return those of the booster's columns that are codes of categories."""
    return [*spec.categorical, *(c for name, plugin in plugins.items() for c in plugin_categories(name, plugin))]


def columns_of(spec: FeatureSpec, plugins: Mapping[str, FeaturePlugin]) -> list[str]:
    """Return the booster's columns in their order."""
    return [
        *spec.columns,
        *(column for name, plugin in plugins.items() for column in plugin_columns(name, plugin, spec)),
    ]


def plugin_values(name: str, plugin: FeaturePlugin, requests: Requests, histories: Histories, spec: FeatureSpec) -> F32:
    """Return float32[n, c] of `plugin_columns`, NaN for an infinity; PairliftError for another shape or no numbers.

    NaN too for requests of a surface that does not ask the plugin.
    """
    if name not in spec.unasked:
        return _asked_values(name, plugin, requests, histories, spec)
    asked = ~np.isin(requests.surface, spec.unasked[name])
    values = np.full((len(requests.item), len(plugin_columns(name, plugin, spec))), np.nan, np.float32)
    if asked.any():
        values[asked[requests.row_request()]] = _asked_values(name, plugin, requests.select(asked), histories, spec)
    return values


def is_asked(name: str, surface: int, spec: FeatureSpec) -> bool:
    """Return whether a request of a surface (its code, -1 none) asks the plugin `name`."""
    return surface not in spec.unasked.get(name, ())


def _asked_values(name: str, plugin: FeaturePlugin, requests: Requests, histories: Histories, spec: FeatureSpec) -> F32:
    values = np.asarray(plugin.values(requests, histories))
    expected, found = (len(requests.item), len(plugin.columns)), values.shape
    if found != expected:
        raise PairliftError(f"[plugins.{name}] values(): an array of shape {expected} was expected, found {found}")
    if values.dtype.kind not in NUMBERS:
        raise PairliftError(f"[plugins.{name}] values(): real numbers were expected, found the type {values.dtype}")
    if not (_compares(plugin, spec) and isinstance(plugin, VectorPlugin)):
        return finite(values)
    return _beside(finite(values), [finite(_source_products(plugin.item_vectors, requests))[:, None]])


def _source_products(vectors: F32, requests: Requests) -> F32:
    """Return float32[n]: the product of each candidate's vector and its source item's; NaN where one has none."""
    source, keys = requests.source_item, np.ascontiguousarray(vectors, np.float32)
    known = (source >= 0) & (source < len(keys))
    of = np.full((len(source), keys.shape[1]), np.nan, np.float32)
    of[known] = keys[source[known]]
    return row_dots(keys, requests.item, requests.offsets, of)


def finite(values: NDArray[Any]) -> F32:
    """Return real numbers as float32, NaN for an infinity, also one that a float32 makes of them."""
    numbers = values
    if values.dtype != np.float32:
        with np.errstate(over="ignore"):
            numbers = values.astype(np.float32)
    return np.where(np.isinf(numbers), np.float32(np.nan), numbers) if np.isinf(numbers).any() else numbers


@njit(cache=True, nogil=True)
def missing(matrix: F32) -> I64:
    """Return int64[c]: how many rows of float32[n, c] lack each column (NaN)."""
    counts = np.zeros(matrix.shape[1], np.int64)
    for row in range(matrix.shape[0]):
        for c in range(matrix.shape[1]):
            counts[c] += np.isnan(matrix[row, c])
    return counts


def row_matrix(known: F32, plugins: Mapping[str, FeaturePlugin], values: Mapping[str, F32], spec: FeatureSpec) -> F32:
    """Return float32[n, c] in the order of `columns_of`.

    known: float32[n, c], the columns of the spec. values: of each plugin by name; the columns of one that gave none
    are missing (NaN).
    """

    def missing(name: str, plugin: FeaturePlugin) -> F32:
        return np.full((len(known), len(plugin_columns(name, plugin, spec))), np.nan, np.float32)

    return _beside(known, [values[name] if name in values else missing(name, p) for name, p in plugins.items()])


def full_matrix(state: State, spec: FeatureSpec, plugins: Mapping[str, FeaturePlugin], requests: Requests) -> F32:
    """Return float32[n, c] of requests in the order of `columns_of`, every plugin asked for all of them at once."""
    values = {name: plugin_values(name, plugin, requests, state.histories, spec) for name, plugin in plugins.items()}
    return row_matrix(assemble(state, spec, requests), plugins, values, spec)


def with_sources(matrix: F32, scores: F32) -> F32:
    """Return float32[n, c + s], the rows of the wanted part: those of the ranker, then each source's own score."""
    return _beside(matrix, [scores])


def demand(matrix: F32, columns: Sequence[str]) -> F64:
    """Return float64[n]: what the trees of the wanted part are added to, the score of the source `popular`.

    It is log(1 + decayed count of wanted events); 0 where it is missing or not finite, or there is no such source.
    """
    if DEMAND not in columns:
        return np.zeros(len(matrix))
    return np.nan_to_num(matrix[:, columns.index(DEMAND)].astype(np.float64), posinf=0.0, neginf=0.0)


def _beside(known: F32, blocks: Iterable[F32]) -> F32:
    return np.concatenate([known, *blocks], axis=1, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Columns:
    """Some of the booster's columns, with their values for the rows of each slice."""

    names: tuple[str, ...] = ()
    values: dict[str, F32] = field(default_factory=dict)  # by slice, [n, len(names)]; no slices where no names
    categorical: tuple[str, ...] = ()  # which of the names are codes of categories

    @classmethod
    def joined(cls, parts: Iterable["Columns"]) -> "Columns":
        """Return the columns of all parts beside each other, in their order."""
        first, *rest = [part for part in parts if part.names] or [cls()]
        names = (*first.names, *(name for part in rest for name in part.names))
        categorical = tuple(name for part in (first, *rest) for name in part.categorical)
        values = {s: _beside(block, [part.values[s] for part in rest]) for s, block in first.values.items()}
        return cls(names, values, categorical)

    def rows(self, name: str, further: "Columns | None" = None) -> F32:
        """Return float32[n, c] of the slice `name`, with the further columns to the right."""
        return _beside(self.values[name], [further.values[name]]) if further and further.names else self.values[name]
