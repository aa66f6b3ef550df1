"""Slices by the age of the vector that a user is served with, of a plugin that works ahead or sees events late."""

from typing import Any

import numpy as np

from features.plugin import FeaturePlugin, has_vectors, lag_of
from features.schema import DAY, HOUR, Bool
from ranker.columns import Columns
from ranker.training.arms import Arms
from ranker.training.plugins import plugin_errors

#: the kind of slices
AGE = "vector_age"
#: labels of ages, and behind each where it ends; of a daily lag there are those within a day
AGES = {
    **{"under 6 hours": 6 * HOUR, "6 to 12 hours": 12 * HOUR, "12 to 24 hours": DAY},
    **{"1 to 2 days": 2 * DAY, "2 to 7 days": 7 * DAY},
}
OLDEST, NO_VECTOR = "7 days and more", "no vector"


def age_labels(arms: Arms, name: str, plugin: FeaturePlugin, columns: Columns) -> dict[str, Any]:
    """Return text[n] of the test's rows by `vector_age`, the `Lag.age` of their requests; nothing without a lag.

    columns: of this fit of the plugin, which are looked at where it has no vectors.
    """
    lag, groups = lag_of(plugin, arms.prepared.config.time.zone), arms.groups["test"]
    if not lag.text:
        return {}
    labels = np.array([f"{k}: {label}" for k, label in enumerate((NO_VECTOR, *AGES, OLDEST))])
    place = 1 + np.searchsorted(list(AGES.values()), lag.age(groups.requests.as_of), side="right")
    known = _known(arms, name, plugin, columns)
    return {AGE: labels[np.where(known, place, 0)[groups.requests.row_request()]]}


def _known(arms: Arms, name: str, plugin: FeaturePlugin, columns: Columns) -> Bool:
    """Return bool[g]: which requests of the test have a vector of their user; of a plugin without vectors, any value.

    None of a surface that does not ask the plugin.
    """
    prepared, requests = arms.prepared, arms.groups["test"].requests
    if not has_vectors(plugin):
        valued = ~np.isnan(columns.values["test"]).all(axis=1)
        return np.bincount(requests.row_request(), weights=valued, minlength=len(requests)) > 0
    histories = prepared.state.histories.until(int(requests.as_of.max(initial=0)))
    with plugin_errors(name, "user_vectors"):
        vectors = plugin.user_vectors(requests, histories)
    return ~np.isnan(vectors).any(axis=1) & ~np.isin(requests.surface, prepared.spec.unasked.get(name, ()))
