"""The text of a candidate beside the query of its request."""

import numpy as np

from features.kernels import njit
from features.schema import F32, I32, I64, Bool, Requests
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
            item = requests.item[rows]
            score[rows] = index.score(terms, item)
            share[rows] = _held(index.offsets, index.item, index.has_text, terms, item) / (len(terms) + unknown)
    return score, share


@njit(cache=True, nogil=True)
def _held(offsets: I64, item: I32, has_text: Bool, terms: I64, asked: I32) -> F32:
    """Return float32[n]: how many of the terms each item's text has, NaN of one without text."""
    held = np.zeros(len(asked), np.float32)
    for k in range(len(asked)):
        if not (0 <= asked[k] < len(has_text) and has_text[asked[k]]):
            held[k] = np.nan
    for t in terms:
        own = item[offsets[t] : offsets[t + 1]]
        for k in range(len(asked)):
            at = np.searchsorted(own, asked[k])
            held[k] += at < len(own) and own[at] == asked[k]
    return held
