"""What is said of the candidates of a request: values (`[events.candidate]`), features of the list, counters of them.

`Requests.given` has a column for each of `Catalog.candidates`, then one for each feature of the list that `[features]
list` names. Training fills it from the log (`given_of_log`: the list is every impression of the request, graded or
not), a request from what the caller or a source says (`with_list`: the list is what is scored). Both take one kernel.

A number can be counted too: the event `candidate_<name>` of a counter is its value at every event, and
`candidate_<name>_of_<grade>` its value at those of that grade or better. Such values stand behind the feedback columns
of an `EventLog` (`counted`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from features.errors import PairliftError, did_you_mean
from features.kernels import njit
from features.schema import F32, I8, I64, LARGEST_FEEDBACK, Catalog, EventLog

#: features of the list, by the ending of their column
RANK, LESS_MEDIAN = "rank", "less_median"
#: what the columns begin with
PREFIX = "candidate_"


def candidate_columns(catalog: Catalog) -> list[str]:
    """Return the names of the features of `Catalog.candidates`, in their order."""
    return [f"{PREFIX}{attribute.name}" for attribute in catalog.candidates]


def list_columns(catalog: Catalog) -> dict[str, tuple[int, str]]:
    """Return (place in `Catalog.candidates`, RANK or LESS_MEDIAN) of each feature of the list that there can be."""
    forms = (RANK, LESS_MEDIAN)
    return {f"{PREFIX}{name}_{form}": (place, form) for place, name in _numbers(catalog) for form in forms}


def _numbers(catalog: Catalog) -> list[tuple[int, str]]:
    """Return (place in `Catalog.candidates`, name) of those that are numbers."""
    return [(place, a.name) for place, a in enumerate(catalog.candidates) if a.kind == "numeric"]


def check_list(wanted: Sequence[str], catalog: Catalog) -> None:
    """Raise PairliftError for a feature of the list that the candidates do not give, or that stands twice."""
    known, taken = list_columns(catalog), candidate_columns(catalog)
    for name in wanted:
        if name not in known:
            hint = did_you_mean(name, known) if known else ": no number is in [events.candidate]"
            raise PairliftError(f"[features] list: '{name}'{hint}")
        if name in taken:
            raise PairliftError(f"[features] list: '{name}' is a column of [events.candidate] too; rename that")
        if wanted.count(name) > 1:
            raise PairliftError(f"[features] list: '{name}' stands there twice")


def with_list(given: F32, offsets: I64, catalog: Catalog, wanted: Sequence[str]) -> F32:
    """Return float32[n, c + len(wanted)]: the values of candidates, then the wanted features of their lists.

    given: float32[n, c] in the order of `Catalog.candidates`; [0, 0] where nothing is said, which stays. offsets:
    int64[g + 1], the candidates of list r are the rows offsets[r] to offsets[r + 1] - 1.
    """
    if not wanted or not len(given):
        return given
    known = list_columns(catalog)
    made = []
    for place, form in (known[name] for name in wanted):
        values = np.ascontiguousarray(given[:, place])
        made.append(_ranks(values, offsets) if form == RANK else _less_median(values, offsets))
    return np.concatenate([given, np.stack(made, axis=1)], axis=1)


def given_of_log(given: F32, request: I64, catalog: Catalog, wanted: Sequence[str]) -> F32:
    """Return what `with_list` does for the n events of a log, of which those of one `request` (code) are a list.

    An event without a request (-1) has no list: NaN.
    """
    if not wanted or not len(given):
        return given
    order = np.argsort(request, kind="stable")
    starts = np.flatnonzero(np.diff(request[order], prepend=-2))
    out = np.empty((len(given), given.shape[1] + len(wanted)), np.float32)
    out[order] = with_list(given[order], np.append(starts, len(order)).astype(np.int64), catalog, wanted)
    out[request < 0, given.shape[1] :] = np.nan
    return out


@njit(cache=True, nogil=True)
def _ranks(values: F32, offsets: I64) -> F32:
    """Return float32[n]: 1 for the lowest value of each list, equals the mean of their ranks, NaN stays.

    for each list
        order ← its known values, sorted
        for each run of equals, of places first to last: each ← (first + last) / 2 + 1
    """
    out = np.full(len(values), np.nan, np.float32)
    for r in range(len(offsets) - 1):
        own = values[offsets[r] : offsets[r + 1]]
        known = np.flatnonzero(~np.isnan(own))
        order = known[np.argsort(own[known])]
        first = 0
        for k in range(len(order)):
            if k + 1 == len(order) or own[order[k + 1]] != own[order[k]]:
                for j in range(first, k + 1):
                    out[offsets[r] + order[j]] = (first + k) / 2 + 1
                first = k + 1
    return out


@njit(cache=True, nogil=True)
def _less_median(values: F32, offsets: I64) -> F32:
    """Return float32[n]: each value less the median of its list's known values (the mean of the middle two)."""
    out = np.empty(len(values), np.float32)
    for r in range(len(offsets) - 1):
        own = values[offsets[r] : offsets[r + 1]]
        known = own[~np.isnan(own)].astype(np.float64)
        middle = np.median(known) if len(known) else np.nan
        out[offsets[r] : offsets[r + 1]] = own - middle
    return out


def counted_events(events: Iterable[str], catalog: Catalog, grades: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of the events of counters that are numbers of candidates, each once.

    PairliftError where a name is both a candidate's value and another one's value at a grade.
    """
    known = counted_names(catalog, grades)
    for _, name in _numbers(catalog):
        if known[f"{PREFIX}{name}"][1] >= 0:
            raise PairliftError(
                f"[events.candidate] {name}: counters call so another column's value at a grade; rename it"
            )
    return tuple(dict.fromkeys(event for event in events if event in known))


def counted_names(catalog: Catalog, grades: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Return (place in `Catalog.candidates`, least grade, -1 for any event) of every event that there can be."""
    numbers = _numbers(catalog)
    every = {f"{PREFIX}{name}": (place, -1) for place, name in numbers}
    graded = [(place, name, rank, grade) for place, name in numbers for rank, grade in enumerate(grades)]
    return every | {f"{PREFIX}{name}_of_{grade}": (place, rank) for place, name, rank, grade in graded}


def counted_values(names: Sequence[str], given: F32, grade: I8, catalog: Catalog, grades: tuple[str, ...]) -> F32:
    """Return float32[n, len(names)]: the counted value of each event, NaN where it has none.

    names: of `counted_events`. given: float32[n, c] of the events; grade: int8[n]. PairliftError for a value that
    sums cannot bear.
    """
    known, out = counted_names(catalog, grades), np.full((len(grade), len(names)), np.nan, np.float32)
    for k, name in enumerate(names):
        place, least = known[name]
        if len(given):
            out[:, k] = np.where(grade >= least, given[:, place], np.nan)
    _check_sums(names, out)
    return out


def _check_sums(names: Sequence[str], values: F32) -> None:
    """Raise PairliftError where a counted value is larger than running sums can bear."""
    for k, name in enumerate(names):
        beyond = np.flatnonzero(np.abs(values[:, k]) > LARGEST_FEEDBACK)
        if len(beyond):
            found = f"found {values[beyond[0], k]:g}, beside which running sums lose others"
            raise PairliftError(
                f"[[counters]] event = '{name}': numbers of at most {LARGEST_FEEDBACK:g} either way were expected in "
                f"[events.candidate], {found}; scale the column"
            )


def counted(log: EventLog, given: F32, names: Sequence[str], catalog: Catalog, grades: tuple[str, ...]) -> EventLog:
    """Return the log with the counted values of candidates behind its feedback columns.

    PairliftError where a feedback column has the name of a counted value.
    """
    for name in names:
        if name in log.feedback_names:
            raise PairliftError(
                f"[events.feedback] {name}: counters call so a value of [events.candidate]; rename the feedback column"
            )
    if not names:
        return log
    values = counted_values(names, given, log.grade, catalog, grades)
    feedback = np.concatenate([log.feedback, values], axis=1)
    return replace(log, feedback=feedback, feedback_names=(*log.feedback_names, *names))
