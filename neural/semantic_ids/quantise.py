"""Residual quantisation: k-means, then k-means of what it leaves, and so on. NumPy and SciPy."""

import warnings

import numpy as np
from scipy.cluster.vq import kmeans2, vq

from features.schema import F32, I64

#: sweeps of Lloyd's algorithm at each level
SWEEPS = 30
#: vectors that codebooks are fitted on, drawn where there are more
MOST = 100_000


def fit_codebooks(vectors: F32, levels: int, codes: int, rng: np.random.Generator) -> list[F32]:
    """Return a codebook for each level, float32[k, d] with k <= codes; none for no vectors.

    RQ-KMeans, as RQ-VAE (arXiv 2306.08121) has it but for the encoder: each level is fitted on the residuals of those
    before it, with no more codes than there are different ones.
    """
    if not len(vectors):
        return []
    residual = vectors[np.sort(rng.choice(len(vectors), min(MOST, len(vectors)), replace=False))]
    books = []
    for _ in range(levels):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "One of the clusters is empty")  # its centre stays where it was
            book = kmeans2(residual, min(codes, len(np.unique(residual, axis=0))), SWEEPS, minit="++", rng=rng)[0]
        books.append(np.asarray(book, np.float32))
        residual = residual - books[-1][vq(residual, books[-1])[0]]
    return books


def quantised(vectors: F32, books: list[F32]) -> I64:
    """Return int64[n, levels]: at each level the nearest code to what the levels before it leave."""
    codes = np.zeros((len(vectors), len(books)), np.int64)
    residual = vectors
    for level, book in enumerate(books):
        codes[:, level] = vq(residual, book)[0]
        residual = residual - book[codes[:, level]]
    return codes
