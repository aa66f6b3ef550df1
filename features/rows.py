"""The feature matrix of requests: counters, attributes and context, strictly before each `as_of`.

`assemble` is the one path: the server calls it with one request, training with all groups of the log. The numbers are
the same to the last bit for a time within the log that the state was built of, and equal up to rounding (6.6e-7 of a
value) for one request after its end, which reads the tables of `features.counters.latest`.
Of a log whose state does not fit, `features.blocks.training_rows` gives the same, by one block of keys after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.counters.spec import Counter
from features.given import check_list
from features.plain import candidate_values, column_names, request_values
from features.schema import F32, Catalog, Requests
from features.state.read import counter_values
from features.state.store import State


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """The columns that `assemble` gives."""

    columns: tuple[str, ...]  # names in their order: the counters, then plain ones
    categorical: tuple[str, ...]  # which of them are categorical codes
    zone: str  # of hours and weekdays
    listed: tuple[str, ...] = ()  # which of them are features of the list: the last ones


def make_spec(
    counters: tuple[Counter, ...],
    catalog: Catalog,
    zone: str,
    wanted: list[str] | None = None,
    listed: Sequence[str] = (),
    further: Sequence[str] = (),
) -> FeatureSpec:
    """Return the columns in the order of `assemble`.

    wanted: the plain ones (`features.plain`), else a default and the further ones. listed: features of the list
    (`features.given`).
    """
    plain, categorical = column_names(catalog, wanted, further)
    check_list(listed, catalog)
    return FeatureSpec((*(c.column for c in counters), *plain, *listed), tuple(categorical), zone, tuple(listed))


def assemble(state: State, spec: FeatureSpec, requests: Requests) -> F32:
    """Return float32[n, len(spec.columns)]: a row for each candidate, NaN where nothing is known.

    `requests.given` has the features of the list, `spec.listed`, behind the values of candidates.
    """
    out = np.empty((len(requests.item), len(spec.columns)), np.float32)
    plain, row = list(enumerate(spec.columns))[len(state.counters) :], None
    if len(requests) == 1:
        # What all candidates of a request share is made once, and stands in each row from the first pass on.
        row = np.empty(len(spec.columns), np.float32)
        plain = request_values(state, plain, spec.zone, requests, row)
    counter_values(state, requests, out, row)
    candidate_values(state, plain, spec.zone, requests, out)
    return out
