"""What is written as bytes is what protobuf's own setters write."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pairlift.v1 import ranking_pb2 as pb

from ranker.packed import packed_doubles, packed_signed, packed_unsigned


@settings(deadline=None)  # the kernel is compiled
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-200, 200), max_size=80))
def test_signed_integers_are_those_of_protobuf(values):
    assert packed_signed(1, np.array(values, np.int64)) == pb.IntegerIds(values=values).SerializeToString()


@settings(deadline=None)  # the kernel is compiled
@given(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 200), max_size=80))
def test_unsigned_integers_are_those_of_protobuf(values):
    for kind in (np.uint32, np.int64):
        found = packed_unsigned(11, np.array(values, kind))
        assert found == pb.RankResponse(indexes=values).SerializeToString()


@settings(deadline=None)  # the kernel is compiled
@given(st.lists(st.floats(), max_size=80))
def test_doubles_are_those_of_protobuf(values):
    assert packed_doubles(7, np.array(values, np.float64)) == pb.RankResponse(scores=values).SerializeToString()
