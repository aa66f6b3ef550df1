"""The text of a candidate beside the query of its request."""

import numpy as np

from features.schema import F32, Requests
from ranker.sources.bm25 import TextIndex


def query_values(index: TextIndex, requests: Requests) -> tuple[F32, F32]:
    """Return float32[n] BM25 scores and float32[n] shares of the query's different tokens that each item's text has.

    A token that no text has counts for the share; of a query with more than `MOST_TERMS` others, the rarest do. NaN
    without a token in the query (it is empty, or dots and spaces alone), and of an item without text.
    """
    n = len(requests.item)
    score, share = np.full(n, np.nan, np.float32), np.full(n, np.nan, np.float32)
    for r, query in enumerate(requests.query.tolist()):
        terms, unknown = index.asked(query)
        if len(terms) + unknown:
            rows = slice(requests.offsets[r], requests.offsets[r + 1])
            score[rows], held = index.matched(terms, requests.item[rows])
            share[rows] = held / (len(terms) + unknown)
    return score, share
