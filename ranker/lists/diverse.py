"""What `[lists] diversity` costs, and what it buys: lists and orders with and without it."""

from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from features.pairing.groups import Groups
from features.pairing.pairs import Pairs
from features.progress import progress_bar
from features.schema import F64, I32
from ranker.lists.answers import ask
from ranker.lists.asked import Asked
from ranker.metrics.interval import ratio_interval
from ranker.metrics.pair_accuracy import pair_accuracy, right_by_user
from ranker.pipeline import Pipeline
from ranker.reranking.diversity import Diversity, mean_similarity
from ranker.reranking.order import select

#: the name of the lists of the server in the order of their scores
PLAIN = "without diversity"


def plain_lists(pipeline: Pipeline, who: Asked, m: int) -> dict[str, I32]:
    """Return int32[u, m], the lists of Recommend without diversity, by their name; none where it is off."""
    if pipeline.reranking.diversity is None:
        return {}
    plain = copy(pipeline)  # sources and lanes are the same
    plain.reranking = replace(pipeline.reranking, diversity=None)
    return {PLAIN: ask(plain, who, m, alone=()).lists}


def similarity(lists: I32, diversity: Diversity, k: int = 10) -> F64:
    """Return float64[u]: the mean cosine of the pairs of items in the first k of each list; NaN without a pair."""
    return np.array([mean_similarity(diversity.vectors, row) for row in lists[:, :k]])


def order_cost(diversity: Diversity, groups: Groups, scores: F64, pairs: Pairs) -> dict[str, Any]:
    """Return the PairAccuracy of groups in the order of their scores, and in that which diversity gives it.

    A list of Recommend has no losers that were shown. So this is the same reranking of what was shown together: all
    items of a group are put in such an order, and their places are scores. scores: float64[n] by row of the groups. The
    difference has its interval of 95 % about new users.
    """
    r = groups.requests
    places = np.empty(len(scores))
    for first, stop in progress_bar(
        list(zip(r.offsets[:-1], r.offsets[1:], strict=True)), desc="diversity", leave=False
    ):
        item, score = r.item[first:stop], scores[first:stop]
        order = replace(diversity, among=len(item)).reordered(item, score, select(item, score), len(item))
        places[first + order] = -np.arange(len(item))
    user = np.maximum(r.user[r.row_request()], 0).astype(np.int64)
    n_users = int(user.max(initial=0)) + 1
    plain, own = (right_by_user(of, pairs, user, n_users) for of in (scores, places))
    right = [of[0] + of[1] / 2 for of in (plain, own)]
    seen = plain[2] > 0
    less, low, high = ratio_interval((right[1] - right[0])[seen], plain[2][seen])
    accuracy = {"without": pair_accuracy(scores, pairs).value, "with": pair_accuracy(places, pairs).value}
    return {"weight": diversity.weight, "pair_accuracy": accuracy, "difference": less, "ci95": [low, high]}
