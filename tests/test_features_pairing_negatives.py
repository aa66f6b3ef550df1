"""Each sampler draws what a slow reading of its definition gives, as often as it says, and nothing of the future."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import N_ITEMS, graded_logs
from world import write_world

from features.errors import PairliftError
from features.pairing.groups import Groups, make_groups
from features.pairing.negatives import availability
from features.pairing.split import Split
from features.schema import MINUTE, SECOND, Attribute, Catalog, EventLog, empty_log
from features.settings import PairingSettings
from ranker.config import load_config
from ranker.training.plugins import cut_at_t1
from ranker.training.prepared import prepare

SPLIT = Split(0, 20 * MINUTE, 40 * MINUTE, 61 * MINUTE, 0.2)
DATES = {"sampler": "in_catalogue", "available_from": "since", "available_until": "until"}
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"sampler": "recent", "sampler_window": "7m"},
    {"sampler": "uniform"},
    DATES,
    {"sampler": "in_catalogue", "available_until": "until"},
)


def catalog_of(since: list[float], until: list[float]) -> Catalog:
    """Items that can be had between these minutes; NaN is not known."""
    columns = {"since": since, "until": until}
    return Catalog(
        user_ids=np.arange(9),
        item_ids=np.arange(N_ITEMS),
        item_attributes=tuple(
            Attribute(name, "numeric", numbers=np.array(minutes, np.float32) * 60) for name, minutes in columns.items()
        ),
    )


def made(log: EventLog, catalog: Catalog, negatives: int, seed: int = 0, **keys: Any) -> Groups:
    asked = PairingSettings(negatives=negatives, **keys)
    return make_groups(log, asked, SPLIT, seed, available=availability(log, catalog, asked))


def candidates(log: EventLog, catalog: Catalog, as_of: int, **keys: Any) -> Counter[int]:
    """Return how likely each item is to be drawn, in proportion, by reading the whole log once for each as_of."""
    past = [(int(i), int(t)) for i, t in zip(log.item, log.ts, strict=True) if t < as_of and i >= 0]
    sampler = keys.get("sampler", "popularity")
    if sampler == "popularity":
        return Counter(item for item, _ in past)
    if sampler == "recent":
        return Counter(item for item, t in past if t >= as_of - 7 * MINUTE)
    if sampler == "uniform":
        return Counter({item for item, _ in past})
    found: Counter[int] = Counter()
    for item in range(catalog.n_items):
        since, until = (catalog.item_attribute(name).numbers[item] * SECOND for name in ("since", "until"))
        begun = since <= as_of if "available_from" in keys and not np.isnan(since) else item in dict(past)
        if begun and not until <= as_of:
            found[item] += 1
    return found


def drawn_of(groups: Groups, g: int) -> tuple[set[int], list[int]]:
    """Return a group's own items, and the drawn ones."""
    r = groups.requests
    rows = slice(int(r.offsets[g]), int(r.offsets[g + 1]))
    drawn = groups.sampled[rows]
    return set(r.item[rows][~drawn].tolist()), r.item[rows][drawn].tolist()


minutes = st.lists(st.one_of(st.just(float("nan")), st.integers(0, 60)), min_size=N_ITEMS, max_size=N_ITEMS)


@given(graded_logs(), minutes, minutes, st.sampled_from(KINDS))
@settings(max_examples=150, deadline=None)
def test_what_is_drawn_equals_the_oracle(
    log: EventLog, since: list[float], until: list[float], keys: dict[str, Any]
) -> None:
    catalog = catalog_of(since, until)
    groups = made(log, catalog, 1000, **keys)
    for g in range(len(groups.requests)):
        own, drawn = drawn_of(groups, g)
        want = candidates(log, catalog, int(groups.requests.as_of[g]), **keys)
        # So many draws miss no item that has one event of fifty.
        assert set(drawn) == want.keys() - own


@given(graded_logs(), minutes, minutes, st.sampled_from(KINDS), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_what_comes_later_changes_no_draw(
    log: EventLog, since: list[float], until: list[float], keys: dict[str, Any], end: int
) -> None:
    """The same seed draws the same items, with the rest of the log or without it."""
    catalog = catalog_of(since, until)
    whole, cut = (made(part, catalog, 3, seed=5, **keys) for part in (log, log.until(end * MINUTE)))
    whole_groups, cut_groups = ([drawn_of(of, g) for g in range(len(of.requests))] for of in (whole, cut))
    complete = int(np.sum(whole.requests.as_of + 30 * MINUTE < end * MINUTE))
    assert whole_groups[:complete] == cut_groups[:complete]


@pytest.mark.parametrize("keys", KINDS)
def test_each_item_is_drawn_as_often_as_its_sampler_says(keys: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    n = 400
    item = np.minimum(rng.geometric(0.4, n) - 1, N_ITEMS - 1)
    log = replace(
        graded_log(n), item=item.astype(np.int32), ts=np.sort(rng.integers(0, 50, n)).astype(np.int64) * MINUTE
    )
    log.grade[:-1] = -1  # one positive, at the end, of an item of which there is no other event
    log.item[-1], log.ts[-1] = N_ITEMS, 55 * MINUTE
    catalog = catalog_of([10, 20, 30, np.nan, 58, np.nan], [np.nan, 54, np.nan, np.nan, np.nan, 56])
    catalog = replace(
        catalog,
        item_ids=np.arange(N_ITEMS + 1),
        item_attributes=tuple(replace(a, numbers=np.append(a.numbers, np.nan)) for a in catalog.item_attributes),
    )
    groups = made(log, catalog, 20_000, **keys)
    _, drawn = drawn_of(groups, 0)
    want = candidates(log, catalog, int(groups.requests.as_of[0]), **keys)
    assert len(drawn) == 20_000
    assert len(want) > 2
    expected = np.array([want[item] for item in sorted(want)]) / want.total() * len(drawn)
    counted = np.array([Counter(drawn)[item] for item in sorted(want)])
    # Chi-square over at most 6 cells has a mean of at most 5 and an sd of 3.2: 25 is beyond any luck.
    assert ((counted - expected) ** 2 / expected).sum() < 25


def graded_log(n: int) -> EventLog:
    return replace(empty_log((), n), user=np.zeros(n, np.int32), grade=np.zeros(n, np.int8))


def test_a_sampler_that_lacks_what_it_needs_is_told() -> None:
    catalog = catalog_of([1] * N_ITEMS, [9] * N_ITEMS)
    asked = PairingSettings(negatives=2, sampler="in_catalogue", available_from="sinse")
    with pytest.raises(PairliftError, match=r"available_from: 'sinse' is no number .* \(did you mean 'since'\?\)"):
        availability(graded_log(3), catalog, asked)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"sampler": "recent"}, "set negatives = 4 too"),
        ({"sampler": "uniform", "negatives": 2, "sampler_window": "1d"}, "goes with sampler = 'recent'"),
        ({"sampler": "in_catalogue", "negatives": 2}, "available_from or available_until"),
        ({"negatives": 2, "available_until": "until"}, "choose sampler = 'uniform'"),
        ({"negatives": 2, "sampler": "popular"}, "'popularity', 'recent', 'uniform' or 'in_catalogue'"),
    ],
)
def test_wrong_keys_of_a_sampler_are_told(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PairingSettings(**keys)


@pytest.mark.parametrize("keys", ['sampler = "recent"\nsampler_window = "12h"', 'sampler = "uniform"'])
def test_the_log_that_ends_at_t1_has_the_same_draws(tmp_path: Path, keys: str) -> None:
    prepared = prepare(load_config(write_world(tmp_path, pairing=f"negatives = 2\n{keys}", where="play >= 0.9")))
    one, other = prepared.groups.of("towers"), cut_at_t1(prepared).groups.of("towers")
    assert one.sampled.any()
    np.testing.assert_array_equal(one.requests.item, other.requests.item)
