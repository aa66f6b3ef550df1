"""What is written as bytes is what protobuf's own setters write."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pairlift.v1 import ranking_pb2 as pb

from ranker.packed import packed_lists, packed_signed


@settings(deadline=None)  # the kernel is compiled
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-200, 200), max_size=80))
def test_signed_integers_are_those_of_protobuf(values):
    assert packed_signed(1, np.array(values, np.int64)) == pb.IntegerIds(values=values).SerializeToString()


COUNTS = st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 200), max_size=80)


@settings(deadline=None)  # the kernel is compiled
@given(st.lists(st.floats(), max_size=80), COUNTS, COUNTS)
def test_lists_are_those_of_protobuf(doubles, first, second):
    fields = tuple(getattr(pb.RankResponse, f"{name}_FIELD_NUMBER") for name in ("SCORES", "SOURCES", "INDEXES"))
    found = packed_lists(fields, np.array(doubles, np.float64), np.array(first, np.uint32), np.array(second, np.int64))
    assert found == pb.RankResponse(scores=doubles, sources=first, indexes=second).SerializeToString()
