"""The BM25 index of the items' texts: the impact of each token on each item that has it, as arrays of a bundle.

BM25 (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework") with the k1, b and the never negative idf of
Lucene: the impact of token t, with f occurrences in a text of l tokens where texts have L on average, is

    ln(1 + (n - df + ½) / (df + ½)) · f · (k1 + 1) / (f + k1 · (1 - b + b · l / L))

and an item's score is the sum over the different tokens of the query. All of it is known when the index is built, so a
query is a sum of runs (eager scoring, as in Lù 2024, "BM25S"). What is to be found has no syntax, and so no way to be
wrong.

Libraries, at 1 million generated titles, one thread, the top 500, p50 and p99 in ms of CPU time: SQLite's FTS5 37 and
473; tantivy 0.8 and 7.1, but it writes a lock file into a folder whose files a manifest lists; bm25s with numba 1.1 and
2.0; this 0.9 and 2.6. bm25s is as fast. It is not taken because it would be one more dependency that holds all words as
a dictionary in each process, compiles anew in each, takes 22 s of CPU to build where this takes 8, and cannot leave out
what came later.
"""

from array import array
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from features.kernels import njit
from features.progress import progress_bar
from features.schema import F32, I32, I64, Bool, Catalog, offsets_of
from ranker.sources.tokens import text_columns, texts_of, tokens

#: of Lucene's BM25Similarity
K1, B = 1.2, 0.75
#: of a query with more different tokens, so many count: the rarest
MOST_TERMS = 64
#: items whose scores are summed at a time: 16 KiB, which a core's nearest cache holds
BLOCK = 4096


#: characters of a query that is kept with its hashes: a search asks for them as a source and for features
SHORT = 1000
NONE: Bool = np.empty(0, np.bool_)
NO_TERMS: I64 = np.empty(0, np.int64)


class TextIndex(NamedTuple):
    """For each of t tokens, the items whose text has it, p in all."""

    hash: I64  # [t], of the tokens, ascending: 64 bits tell them apart, and take the place of the words themselves
    offsets: I64  # [t + 1], token k has the entries [offsets[k], offsets[k + 1])
    item: I32  # [p], ascending within a token
    impact: F32  # [p], what the token adds to the item's score; above 0
    has_text: Bool  # [n_items], whether the item's text has any token

    @classmethod
    def build(cls, texts: Iterable[str], n_items: int) -> "TextIndex":
        """Index the text of each of n items, in the order of their indexes; an empty one has no tokens.

        Some 15 s for a million titles, 60 bytes for each of their tokens on the way.
        """
        code: dict[str, int] = {}
        flat, sizes = array("i"), np.zeros(n_items, np.int64)
        for k, text in enumerate(progress_bar(texts, desc="texts", unit=" items", total=n_items, leave=False)):
            found = tokens(text)
            sizes[k] = len(found)
            flat.extend([code.setdefault(token, len(code)) for token in found])
        return _indexed(np.array([hashed(token) for token in code], np.int64), np.array(flat, np.int64), sizes)

    def terms(self, query: str) -> I64:
        """Return int64[<= MOST_TERMS]: the places of the query's tokens, ascending, each once; none for an unknown one.

        Of more, the rarest count: a token that is rarer says more, and costs less.
        """
        return self.asked(query)[0]

    def asked(self, query: str) -> tuple[I64, int]:
        """Return `terms` of a query, and how many of its different tokens no text has."""
        asked = _hashes_of(query) if len(query) <= SHORT else _hashes_of.__wrapped__(query)
        at = np.searchsorted(self.hash, asked)
        known = at < len(self.hash)
        known[known] = self.hash[at[known]] == asked[known]
        at = np.sort(at[known])
        if len(at) > MOST_TERMS:
            at = np.sort(at[np.argsort(self.offsets[at + 1] - self.offsets[at], kind="stable")[:MOST_TERMS]])
        return at, int((~known).sum())

    def top(self, terms: I64, limit: int, later: Bool = NONE) -> tuple[I32, F32]:
        """Return (int32[n], float32[n]): at most `limit` items with the highest scores, in their own order.

        Of equal ones the first in that order are in it; those without a token of `terms`, or of the mask bool[n_items]
        `later` (empty: none), never.
        """
        found: tuple[I32, F32] = _top(self.offsets, self.item, self.impact, later, terms, limit)
        return found

    def score(self, terms: I64, item: I32) -> F32:
        """Return float32[n]: the scores of any items, 0 without a token of `terms`; NaN of one that has no text."""
        return self.matched(terms, item)[0]

    def matched(self, terms: I64, item: I32) -> tuple[F32, F32]:
        """Return `score`, and float32[n]: how many of the terms each item's text has; NaN likewise."""
        found: tuple[F32, F32] = _scores(self.offsets, self.item, self.impact, self.has_text, terms, item)
        return found


def index_of(catalog: Catalog) -> TextIndex:
    """Return the index of the items' texts, not to be written to.

    That of the latest catalogue is kept: a training asks for its features, and for the source at each cut.
    """
    return _index_of(text_columns(catalog), catalog.n_items)


@lru_cache(1)
def _index_of(columns: tuple[tuple[str, ...], ...], n_items: int) -> TextIndex:
    return TextIndex.build(texts_of(columns), n_items)


def hashed(token: str) -> int:
    """Return a hash of a token, an int64 that is the same on every machine."""
    digest = blake2b(token.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


@lru_cache(64)
def _hashes_of(query: str) -> I64:
    """Return int64[t]: the hashes of the query's different tokens; not to be written to."""
    return np.array([hashed(token) for token in dict.fromkeys(tokens(query, query=True))], np.int64)


def _indexed(hash_of: I64, flat: I64, sizes: I64) -> TextIndex:
    """Return the index of tokens by text. flat: int64[m] their codes, int64[n] sizes of each text; hash_of: by code."""
    order = np.argsort(hash_of)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    n, owner = max(len(sizes), 1), np.repeat(np.arange(len(sizes)), sizes)
    pairs, count = np.unique(place[flat] * n + owner, return_counts=True)
    term, item = pairs // n, (pairs % n).astype(np.int32)
    having = np.bincount(term, minlength=len(order))
    texts = max(int((sizes > 0).sum()), 1)
    idf = np.log1p((texts - having + 0.5) / (having + 0.5))
    mean = max(len(flat), 1) / texts
    long = K1 * (1 - B + B * sizes / mean)
    impact = idf[term] * count * (K1 + 1) / (count + long[item])
    return TextIndex(hash_of[order], offsets_of(having), item, impact.astype(np.float32), sizes > 0)


# for each block of items that has an entry of some term:
#     add the impact of each entry to its item's score
#     keep each item whose score is above that of the limit-th so far; where the room is full, forget all below that
@njit(cache=True, nogil=True)
def _top(offsets: I64, item: I32, impact: F32, later: Bool, terms: I64, limit: int) -> tuple[I32, F32]:
    """Return `TextIndex.top`."""
    room = 2 * limit + BLOCK
    found, score, n, above = np.empty(room, np.int32), np.empty(room, np.float32), 0, np.float32(0)
    at, stop, sums = offsets[terms], offsets[terms + 1], np.zeros(BLOCK, np.float32)
    while limit > 0:
        first = np.int64(2**31)
        for t in range(len(at)):
            if at[t] < stop[t]:
                first = min(first, np.int64(item[at[t]]))
        if first == 2**31:
            break
        first -= first % BLOCK
        for t in range(len(at)):
            k = at[t]
            while k < stop[t] and item[k] < first + BLOCK:
                sums[item[k] - first] += impact[k]
                k += 1
            at[t] = k
        for k in range(BLOCK):
            if sums[k] > above and not (len(later) and later[first + k]):
                found[n], score[n] = first + k, sums[k]
                n += 1
        sums[:] = 0
        if n > 2 * limit:
            n, above = _cut(found, score, n, limit)
    if n > limit:
        n, above = _cut(found, score, n, limit)
    return found[:n].copy(), score[:n].copy()


@njit(cache=True, nogil=True)
def _cut(found: I32, score: F32, n: int, limit: int) -> tuple[int, np.float32]:
    """Keep the first `limit` of n entries by score, then by item; return (limit, the least of their scores)."""
    least = np.partition(score[:n], n - limit)[n - limit]
    ties, kept = limit - (score[:n] > least).sum(), 0
    for k in range(n):
        tie = score[k] == least
        if score[k] > least or (tie and ties > 0):
            ties -= tie
            found[kept], score[kept] = found[k], score[k]
            kept += 1
    return kept, least


@njit(cache=True, nogil=True)
def _scores(offsets: I64, item: I32, impact: F32, has_text: Bool, terms: I64, asked: I32) -> tuple[F32, F32]:
    """Return `TextIndex.matched`."""
    scores, held = np.zeros(len(asked), np.float32), np.zeros(len(asked), np.float32)
    for k in range(len(asked)):
        if not (0 <= asked[k] < len(has_text) and has_text[asked[k]]):
            scores[k] = held[k] = np.nan
    for t in terms:  # in the order of `_top`, so that the sums are equal to the last bit
        own = item[offsets[t] : offsets[t + 1]]
        for k in range(len(asked)):
            at = np.searchsorted(own, asked[k])
            if at < len(own) and own[at] == asked[k]:
                scores[k] += impact[offsets[t] + at]
                held[k] += 1
    return scores, held
