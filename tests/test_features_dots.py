"""Products of rows that are looked up, against one product at a time; a row that is not there gives NaN."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.dots import row_dots


@settings(deadline=None)  # the kernel is compiled
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 70), st.integers(0, 4), st.booleans())
def test_each_row_is_multiplied_with_the_query_of_its_request(seed, m, width, requests, short):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(m, width)).astype(np.float32)
    vectors[rng.random(m) < 0.2] = np.nan
    queries = rng.normal(size=(requests, width)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 40, requests))]).astype(np.int64)
    row = rng.integers(-2, m + 3, offsets[-1]).astype(np.int32 if short else np.int64)
    if len(row):
        row[0] = np.iinfo(row.dtype).max
    found = row_dots(vectors, row, offsets, queries)
    assert found.dtype == np.float32
    for r in range(requests):
        for k in range(offsets[r], offsets[r + 1]):
            there = 0 <= row[k] < m and not np.isnan(vectors[row[k]]).any()
            slow = np.sum(vectors[row[k]].astype(np.float64) * queries[r]) if there else np.nan
            np.testing.assert_allclose(found[k], slow, rtol=1e-4, atol=1e-4)
            alone = row_dots(vectors, row[k : k + 1], np.array([0, 1]), queries[r : r + 1])
            assert alone.tobytes() == found[k : k + 1].tobytes()
