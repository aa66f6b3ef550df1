import numpy as np
import pytest
from world import make_bundle, make_world

from ranker.candidates import filters
from ranker.request import ABSENT, Candidates, Request


@pytest.fixture(scope="module")
def bundle():
    return make_bundle(make_world())


def candidates(items):
    item = np.array(items, np.int32)
    return Candidates(item, np.arange(len(item), dtype=np.int32)[:, None])


FILTERS = [filters.unknown, filters.excluded, filters.seen]


@pytest.mark.parametrize("keep", FILTERS)
def test_kept_and_removed_are_a_partition_in_order(bundle, keep):
    given = candidates([3, -1, 79, 80, 0, 17])
    request = Request(user=1, as_of=bundle.state.end, exclude=np.array([17], np.int32))
    kept, removed = keep(given, request, bundle.state)
    assert sorted([*kept.item, *removed.item]) == sorted(given.item)
    assert list(kept.item) == [i for i in given.item if i in kept.item]
    assert len(kept.place) == len(kept)
    assert len(removed.place) == len(removed)


@pytest.mark.parametrize("keep", FILTERS)
def test_nothing_in_gives_nothing_out(bundle, keep):
    kept, removed = keep(candidates([]), Request(-1, bundle.state.end), bundle.state)
    assert len(kept) == len(removed) == 0


def test_unknown_is_what_the_catalogue_lacks(bundle):
    kept, removed = filters.unknown(candidates([-1, 0, 79, 80]), Request(0, 0), bundle.state)
    assert list(kept.item) == [0, 79]
    assert list(removed.item) == [-1, 80]


def test_excluded_are_the_callers_items_and_the_source_item(bundle):
    request = Request(0, bundle.state.end, source_item=5, exclude=np.array([2, -1, 2], np.int32))
    kept, removed = filters.excluded(candidates([1, 2, 5, 7]), request, bundle.state)
    assert list(kept.item) == [1, 7]
    assert list(removed.item) == [2, 5]


def test_seen_is_strictly_before_as_of(bundle):
    histories = bundle.state.histories
    user = 4
    start, stop = histories.offsets[user : user + 2]
    k = start + (stop - start) // 2
    item, ts = int(histories.item[k]), int(histories.ts[k])
    first = int(histories.ts[start:stop][histories.item[start:stop] == item][0])
    for as_of, removed_count in ((first, 0), (first + 1, 1), (ts + 1, 1)):
        _, removed = filters.seen(candidates([item]), Request(user, as_of), bundle.state)
        assert len(removed) == removed_count


def test_seen_equals_the_plain_definition(bundle):
    log = make_world().log
    everything = candidates(range(80))
    for user in range(0, 40, 7):
        for as_of in (log.ts[0], log.ts[len(log) // 3], log.ts[-1], log.ts[-1] + 1):
            expected = {int(i) for u, i, t in zip(log.user, log.item, log.ts, strict=True) if u == user and t < as_of}
            _, removed = filters.seen(everything, Request(user, int(as_of)), bundle.state)
            assert set(removed.item.tolist()) == expected


def test_a_cold_user_has_seen_nothing(bundle):
    kept, removed = filters.seen(candidates(range(80)), Request(-1, bundle.state.end), bundle.state)
    assert len(kept) == 80
    assert len(removed) == 0


def test_sources_are_bits_of_the_places():
    place = np.array([[0, ABSENT, 3], [ABSENT, 1, ABSENT], [2, 0, 0]], np.int32)
    assert Candidates(np.arange(3, dtype=np.int32), place).sources.tolist() == [0b101, 0b010, 0b111]
