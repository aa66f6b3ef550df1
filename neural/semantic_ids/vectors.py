"""What items are quantised by: how they are taken up, and for new ones what their attributes lead one to expect."""

import numpy as np

from features.baselines import ALS
from features.plugin import FitData
from features.schema import F32, F64, Bool
from neural.entities import Entities, count_values, encode, table_rows
from neural.semantic_ids.settings import SemanticIdsSettings

#: numbers that hashed attributes are projected to
CONTENT_WIDTH = 128
#: of the ridge regression, as so many items: of as many as there are numbers to fit, half is believed
RIDGE = 128.0


def item_vectors(data: FitData, settings: SemanticIdsSettings) -> tuple[F32, Bool, Bool]:
    """Return float32[n_items, d], bool[n_items] of which at least one thing is known, and of which there are events.

    The first `factors` numbers are an item's behaviour: its direction in a matrix factorisation (`features.baselines`),
    drawn to what a ridge regression on the attributes of all items with events expects of it. The others are the
    attributes, hashed. Both parts are scaled to one mean square over the items with events.
    """
    count = np.bincount(data.log.item[data.log.item >= 0], minlength=data.catalog.n_items)
    attributes = data.catalog.item_attributes
    entities = encode(count, attributes, table_rows(count_values(0, attributes)), None, salt=1)
    content = content_vectors(entities, data.seed)[:-1]
    als = ALS(factors=settings.factors)
    als.fit(data)
    own = directions(als.item_vectors)
    weight = np.where(np.isnan(own[:, 0]), 0, count / (count + settings.shrink + 1e-9))[:, None]
    expected = ridge(content, own, count > 0)
    behaviour = expected + weight * (np.nan_to_num(own) - expected)
    fitted = count > 0
    parts = [scaled(behaviour, fitted), settings.content * scaled(content, fitted)]
    return np.concatenate(parts, axis=1).astype(np.float32), entities.known[:-1] | fitted, fitted


def content_vectors(entities: Entities, seed: int) -> F64:
    """Return float64[n + 1, CONTENT_WIDTH + m] of hashed values, by random directions of length 1, and m numbers.

    An attribute with several values has their mean, one that is missing 0.
    """
    rows, place = np.unique(entities.slots, return_inverse=True)
    directions = np.random.default_rng(seed).standard_normal((len(rows), CONTENT_WIDTH)) / np.sqrt(CONTENT_WIDTH)
    looked = place.reshape(entities.slots.shape)  # [n + 1, s, HASHES]
    n, slots = entities.weight.shape
    out = np.zeros((n, CONTENT_WIDTH))
    for slot in range(slots):
        out += entities.weight[:, slot, None] * directions[looked[:, slot]].mean(axis=1)
    return np.concatenate([out, entities.numbers], axis=1)


def directions(vectors: F32) -> F64:
    """Return float64[n, d] of length 1, NaN where there is none: the length in a factorisation tells of demand."""
    wide = vectors.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(length > 0, length, np.nan)


def ridge(content: F64, own: F64, fitted: Bool) -> F64:
    """Return float64[n, f]: what the content of each item leads one to expect, learned from the fitted ones.

    content: float64[n, c]. own: float64[n, f], NaN unknown.
    """
    rows = fitted & ~np.isnan(own[:, 0])
    if not rows.any():
        return np.zeros(own.shape)
    x_mean, y_mean = content[rows].mean(0), own[rows].mean(0)
    x, y = content[rows] - x_mean, own[rows] - y_mean
    spread = max(float(x.var(0).mean()), 1e-12)
    gram = x.T @ x + RIDGE * spread * np.eye(x.shape[1])
    return np.asarray(y_mean + (content - x_mean) @ np.linalg.solve(gram, x.T @ y))


def scaled(vectors: F64, fitted: Bool) -> F64:
    """Return them less the mean of the fitted ones, in units of the latter's root mean square length."""
    if not fitted.any():
        return np.zeros(vectors.shape)
    centred = vectors - vectors[fitted].mean(0)
    length = np.sqrt((centred[fitted] ** 2).sum(1).mean())
    return np.asarray(centred / (length if length > 0 else 1.0))
