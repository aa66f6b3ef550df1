"""Keys of one request, and where they lie: as the codes of many rows, and as a search for each."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import KEYS, catalog

from features.counters.keys import codes_of_one, has_list, key_codes, single_parts
from features.counters.places import find_places
from features.newcomers import New, Newcomers
from features.schema import BY_ARM

SINGLE = [*(key for key in KEYS if not has_list(key, catalog())), ("item", "user"), ("genre", "surface"), ("surface",)]


@given(st.sampled_from(SINGLE), st.integers(-1, 5), st.integers(-1, 1), st.lists(st.integers(-1, 6), max_size=9))
@settings(max_examples=200, deadline=None)
def test_the_codes_of_one_request_are_those_of_its_rows(
    key: tuple[str, ...], user: int, surface: int, items: list[int]
) -> None:
    """Cold, new and known users and items, one, none and several of them."""
    for known in (catalog(), catalog().with_new(New(Newcomers(room=3), Newcomers(room=3), Newcomers(room=1)))):
        parts = single_parts(key, known)
        assert parts is not None
        item, of = np.array(items, np.int32), (np.array([user], np.int32), np.array([surface], np.int16))
        rows = np.full(len(item), of[0][0]), item, np.full(len(item), of[1][0]), np.full(len(item), -1, np.int16)
        want = key_codes(key, known, *rows, asked=True)[1]
        np.testing.assert_array_equal(codes_of_one(parts, of[0], item, of[1]), want)


def test_a_candidate_of_several_keys_has_no_single_parts() -> None:
    assert single_parts(("user", "tags"), catalog()) is None
    assert single_parts((BY_ARM, "item"), catalog()) is None


@given(st.integers(0, 2**32), st.sampled_from([0, 1, 3, 200, 5000]), st.sampled_from([1, 2, 1000]))
@settings(max_examples=60, deadline=None)
def test_codes_are_found_where_they_are(seed: int, n: int, apart: int) -> None:
    """Few and many codes between the least and the greatest that is asked for, and none."""
    rng = np.random.default_rng(seed)
    codes = np.unique(rng.integers(0, n * apart + 1, n))
    low = int(rng.integers(-1, n * apart + 1))
    asked = np.concatenate([rng.integers(low, n * apart + 3, 40), rng.choice(codes, min(n, 20)), [-1]])
    place = {code: k for k, code in enumerate(codes.tolist())}
    # No codes at all are a timeline where each code is its own place.
    want = [place.get(code, -1) for code in asked.tolist()] if n else [-1] * len(asked)
    assert find_places(codes, np.arange(len(codes) + 1), asked).tolist() == want
