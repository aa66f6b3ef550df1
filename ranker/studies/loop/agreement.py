"""Whether what was served is what the record of it gives: every value of a request's rows, computed again afterwards.

Counters, histories and vectors of a server follow the events that it was told of; a training reads the same events from
the exported log. Of each bundle the rows that it served are made again from that log, as of their requests, with the
bundle's own counters and plugins, and compared value by value (`ranker.recording.logged.drift`).

Only requests that followed when all events before them had been told can be compared: the first of each round. Later
ones of a round have seen less than the log has, for those beside them had not answered yet.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.schema import GIB
from ranker.columns import full_matrix
from ranker.config import Config
from ranker.offpolicy.target import Target
from ranker.recording.logged import Logged, drift, read_features
from ranker.training.prepared import group_log

#: of the bundles of other TOMLs there is none here: all that was told may be read
NO_LIMIT = 2**62


class Agreement(NamedTuple):
    """What was compared."""

    requests: int
    values: int
    differing: dict[str, float]  # by column, the share of the values that differ; those without any are not there


def agreement(config: Config, bundles: Sequence[Path], features: Path, requests: Collection[str]) -> Agreement:
    """Compare what bundles served to some requests with what the log of a TOML gives.

    config: its log has what the requests of `features`, a feature log, were told of; those after its end are passed
    over. requests: their ids.
    """
    made, found = group_log(config), Agreement(0, 0, {})
    for folder in bundles:
        target = Target.of(folder, made, NO_LIMIT, GIB)
        bundle = target.bundle
        if not list(features.glob(f"part-*-{bundle.version}.parquet")):
            continue
        logged = read_features(features, made.catalog, bundle.spec.listed, bundle.version)
        known = np.isin(logged.request_id, list(requests)) & (logged.requests.as_of <= made.log.ts[-1])
        logged = _select(logged, known)
        again = full_matrix(bundle.state, bundle.spec, bundle.plugins, logged.requests)
        own = bundle.columns[len(bundle.spec.columns) :]
        rows = drift(logged, again[:, [bundle.columns.index(name) for name in logged.columns]], own)
        differing = found.differing | {row["column"]: row["differs"] for row in rows if row["differs"]}
        found = Agreement(found.requests + len(logged.request_id), found.values + logged.values.size, differing)
    return found


def _select(logged: Logged, keep: np.ndarray) -> Logged:
    rows = keep[logged.requests.row_request()]
    return Logged(logged.request_id[keep], logged.requests.select(keep), logged.values[rows], logged.columns)
