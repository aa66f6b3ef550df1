"""The feature matrix of requests: counters, attributes and context, strictly before each `as_of`.

`assemble` is the one path: the server calls it with one request, training with all groups of the log. The numbers are
the same to the last bit for a time within the log that the state was built of, and equal up to rounding (6.6e-7 of a
value) for one request after its end, which reads the tables of `features.counters.latest`.
Of a log whose state does not fit, `features.blocks.training_rows` gives the same, by one block of keys after another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from features.counters.spec import Counter
from features.given import check_list
from features.plain import Columns, candidate_values, column_names, request_values
from features.schema import F32, Catalog, Requests
from features.state.read import counter_values
from features.state.store import State


class Matching(Protocol):
    """What a candidate has to do with the source item and the query of its request: fitted before, the same for all."""

    def write(self, catalog: Catalog, columns: Columns, requests: Requests, out: F32) -> None:
        """Write to float32[n, width] `out` the columns (where each stands, name), NaN where nothing is known."""


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """The columns that `assemble` gives."""

    columns: tuple[str, ...]  # names in their order: the counters, then plain ones
    categorical: tuple[str, ...]  # which of them are categorical codes
    zone: str  # of hours and weekdays
    listed: tuple[str, ...] = ()  # which of them are features of the list: the last ones
    matched: tuple[str, ...] = ()  # which of them `matching` writes
    source_item: bool = False  # whether requests have source items: vectors of plugins are then compared with theirs
    #: by plugin, the codes of the surfaces whose requests do not ask it: its columns are missing there
    unasked: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    matching: Matching | None = field(default=None, compare=False, repr=False)  # there where `matched` has any


def make_spec(
    counters: tuple[Counter, ...],
    catalog: Catalog,
    zone: str,
    wanted: list[str] | None = None,
    listed: Sequence[str] = (),
    further: Sequence[str] = (),
    matched: Sequence[str] = (),
    source_item: bool = False,
) -> FeatureSpec:
    """Return the columns in the order of `assemble`.

    wanted: the plain ones (`features.plain`), else a default and the further ones. listed: features of the list
    (`features.given`). matched: those that a `Matching` can write; the spec has those that are wanted, and not it.
    """
    plain, categorical = column_names(catalog, wanted, further, matched)
    check_list(listed, catalog)
    return FeatureSpec(
        (*(c.column for c in counters), *plain, *listed),
        tuple(categorical),
        zone,
        tuple(listed),
        matched=tuple(name for name in plain if name in matched),
        source_item=source_item,
    )


def assemble(state: State, spec: FeatureSpec, requests: Requests) -> F32:
    """Return float32[n, len(spec.columns)]: a row for each candidate, NaN where nothing is known.

    `requests.given` has the features of the list, `spec.listed`, behind the values of candidates.
    """
    out = np.empty((len(requests.item), len(spec.columns)), np.float32)
    plain, row = without_matched(spec, list(enumerate(spec.columns))[len(state.counters) :]), None
    if len(requests) == 1:
        # What all candidates of a request share is made once, and stands in each row from the first pass on.
        row = np.empty(len(spec.columns), np.float32)
        plain = request_values(state, plain, spec.zone, requests, row)
    counter_values(state, requests, out, row)
    candidate_values(state, plain, spec.zone, requests, out)
    write_matched(spec, state.catalog, requests, out)
    return out


def without_matched(spec: FeatureSpec, columns: Columns) -> Columns:
    """Return those of some columns that no `Matching` writes."""
    return [(k, name) for k, name in columns if name not in spec.matched] if spec.matched else columns


def write_matched(spec: FeatureSpec, catalog: Catalog, requests: Requests, out: F32) -> None:
    """Write to float32[n, width] `out` the columns of `spec.matched`; RuntimeError where it has no `matching`."""
    if spec.matched:
        if spec.matching is None:
            raise RuntimeError(f"a fault of Pairlift, please report it: nothing was fitted for {spec.matched}")
        spec.matching.write(catalog, [(spec.columns.index(name), name) for name in spec.matched], requests, out)
