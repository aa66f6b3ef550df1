"""Whether what was served is what the record of it gives: every value and every score, computed again afterwards.

Counters, histories and vectors of a server follow the events that it was told of; a training reads the same events from
the exported log. Of each bundle the rows that it served are made again from that log, as of their requests, with the
bundle's own counters and plugins, and compared value by value (`ranker.recording.logged.drift`). The bundle's trees
then score the values that were served, and the scores are compared with those of the answers: a tower's value that is
off by rounding may lie on the other side of a tree's threshold, and tells nothing of the trees.

Two things are taken as they were served. What the sources said of an item is one: `popular` counts anew when the server
has time for it, once the recorded events are 30 s further or soon after. And only requests that followed when all
events before them had been told can be compared, the first of each round: later ones have seen less than the log has,
for those beside them had not answered.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.schema import F32, F64, GIB
from ranker.bundle import Bundle, read_manifest
from ranker.client import Reply
from ranker.columns import full_matrix, with_sources
from ranker.config import Config
from ranker.offpolicy.target import Target
from ranker.recording.logged import Logged, drift, read_features
from ranker.training.prepared import group_log

#: of the bundles of other TOMLs there is none here: all that was told may be read
NO_LIMIT = 2**62
#: share of a score that it may be off by: the towers sum in another order in a batch
NEAR = 1e-5


class Agreement(NamedTuple):
    """What was compared."""

    requests: int
    values: int
    differing: dict[str, float]  # by column, the largest share of the values that differ, of a bundle; those that have
    scores: int
    other_scores: int  # of them, those that are others when they are computed again


def agreement(config: Config, bundles: Sequence[Path], features: Path, replies: Mapping[str, Reply]) -> Agreement:
    """Compare what bundles served to some requests with what the log of a TOML gives.

    config: its log has all that was told before the requests. features: a feature log. replies: by the requests' ids,
    explained answers that nothing was late for.
    """
    made, found = group_log(config), Agreement(0, 0, {}, 0, 0)
    for folder in bundles:
        if not list(features.glob(f"part-*-{read_manifest(folder)['version']}.parquet")):
            continue
        bundle = Target.of(folder, made, NO_LIMIT, GIB).bundle
        logged = read_features(features, made.catalog, bundle.spec.listed, bundle.version)
        logged = _select(logged, np.isin(logged.request_id, list(replies)))
        if len(logged.request_id):
            found = _both(found, _compared(bundle, logged, [replies[str(name)] for name in logged.request_id]))
    return found


def _compared(bundle: Bundle, logged: Logged, replies: Sequence[Reply]) -> Agreement:
    """Return what of one bundle's requests is other."""
    again = full_matrix(bundle.state, bundle.spec, bundle.plugins, logged.requests)
    own = bundle.columns[len(bundle.spec.columns) :]
    places = [bundle.columns.index(name) for name in logged.columns]
    rows = drift(logged, again[:, places], own)
    differing = {row["column"]: row["differs"] for row in rows if row["differs"]}
    again[:, places] = logged.values
    served = np.array([item.score for reply in replies for item in reply.items])
    other = ~np.isclose(served, _scored(bundle, again, replies), rtol=NEAR, atol=NEAR, equal_nan=True)
    return Agreement(len(replies), logged.values.size, differing, len(served), int(other.sum()))


def _scored(bundle: Bundle, again: F32, replies: Sequence[Reply]) -> F64:
    """Return float64[n], what a bundle's trees say of float32[n, c] rows beside what the sources said of them."""
    if bundle.wanted is None:
        return bundle.score(again)
    told = [{name: value for name, value, _ in item.features} for reply in replies for item in reply.items]
    sources = np.array([[of[name] for name in bundle.source_columns] for of in told], np.float32)
    return bundle.score_wanted(with_sources(again, sources))


def _both(a: Agreement, b: Agreement) -> Agreement:
    worst = {name: max(a.differing.get(name, 0.0), b.differing.get(name, 0.0)) for name in a.differing | b.differing}
    return Agreement(
        a.requests + b.requests, a.values + b.values, worst, a.scores + b.scores, a.other_scores + b.other_scores
    )


def _select(logged: Logged, keep: np.ndarray) -> Logged:
    rows = keep[logged.requests.row_request()]
    return Logged(logged.request_id[keep], logged.requests.select(keep), logged.values[rows], logged.columns)
