"""How likely a place is to be looked at, estimated in a world where it is known, and where it cannot be told."""

from dataclasses import replace

import numpy as np
import pytest
from examined import SHOWN, Examined, examined

from features.pairing.examination import PARTS, Examination, estimate_examination
from features.pairing.exposure import Places
from features.schema import DAY

END = 14 * DAY
TRUE = np.arange(1, SHOWN + 1) ** -0.8


def estimated(world: Examined, end: int = END) -> Examination:
    found = estimate_examination(world.log, world.places, end)
    assert found is not None
    return found


def test_items_at_several_places_tell_what_is_looked_at() -> None:
    """Of 40 seeds its mean log is within 0.02 of the truth, and 0.965 of its intervals hold it; here are six."""
    worlds = [estimated(examined(seed)) for seed in range(1, 7)]
    for found in worlds:
        assert not found.drawn
        assert found.impressions == 120_000
        assert found.first.tolist() == list(range(1, 11))
        assert found.power == pytest.approx(0.8, abs=0.06)
        assert found.power_high - found.power_low < 0.15
    chances = np.stack([found.chance for found in worlds])
    np.testing.assert_allclose(chances.mean(axis=0), TRUE, rtol=0.1)
    held = np.stack([(found.low <= TRUE) & (found.high >= TRUE) for found in worlds])
    assert held[:, 1:].mean() > 0.8
    assert sum(found.power_low < 0.8 < found.power_high for found in worlds) >= 5


def test_a_few_places_far_down_a_feed_cost_nothing() -> None:
    world = examined(1)
    position = world.places.position.copy()
    position[np.flatnonzero(position == SHOWN)[:30]] = 1_000_000  # of the last range, as before
    found = estimated(world._replace(places=Places(position, world.places.propensity)))
    assert found.first.tolist() == list(range(1, SHOWN + 1))
    np.testing.assert_array_equal(found.chance, estimated(world).chance)


def test_what_feedback_by_place_alone_says_is_wrong_there() -> None:
    """Without the items the good ones on top are taken for places that are looked at."""
    world = examined(1, luck=0.3)
    by_place = np.bincount(world.places.position.astype(int), world.log.grade)[1:]
    naive, found = by_place / by_place[0], estimated(world).chance
    assert np.abs(np.log(naive / TRUE)).mean() > 4 * np.abs(np.log(found / TRUE)).mean()


def test_drawn_places_agree_and_alone_are_right_where_lists_are_personal() -> None:
    honest = estimated(examined(3, drawn=0.4))
    assert honest.drawn
    personal = examined(4, personal=1.0, drawn=0.4)
    drawn = estimated(personal)
    assert drawn.drawn
    assert drawn.impressions == (personal.places.propensity < 1).sum()
    for found in (honest, drawn):
        assert found.power == pytest.approx(0.8, abs=0.12)
        assert found.power_low < 0.8 < found.power_high
    unknown = Places(personal.places.position, np.full_like(personal.places.propensity, np.nan))
    fooled = estimated(personal._replace(places=unknown))
    assert fooled.power_low > 0.8  # as the text of the report says


def test_unequal_propensities_are_weighed() -> None:
    """A policy that draws, but gives good items the first places more often: only with its propensities it is right."""
    rng = np.random.default_rng(0)
    world = examined(5, personal=1.0, lists=30_000, luck=0.0)
    best = world.worth.reshape(-1, SHOWN).argsort(axis=1).argsort(axis=1) >= SHOWN // 2
    first_half, within = rng.random((30_000, 1)) < 0.8, rng.random((30_000, SHOWN))
    # Four times of five the better half stands on top, else the worse one; each half is shuffled.
    place = ((best != first_half) + within).argsort(axis=1).argsort(axis=1) + 1
    on_top = place <= SHOWN // 2
    propensity = np.where(best == on_top, 0.8, 0.2) / (SHOWN // 2)
    clicked = (world.liked.reshape(-1, SHOWN) == 1) & (rng.random(place.shape) < place**-0.8)
    world = world._replace(log=replace(world.log, grade=clicked.ravel().astype(np.int8)))
    places = Places(place.ravel().astype(np.float32), propensity.ravel().astype(np.float32))
    weighed = estimated(world._replace(places=places))
    assert weighed.power_low < 0.8 < weighed.power_high
    even = Places(places.position, np.full_like(places.propensity, 0.1))
    assert estimated(world._replace(places=even)).power_low > 0.8


def test_nothing_of_the_end_or_later_is_read() -> None:
    world = examined(6)
    early = estimated(world, 7 * DAY)
    later = world.log.ts >= 7 * DAY
    world.log.grade[later] = world.log.grade[later][::-1]
    again = estimated(world, 7 * DAY)
    np.testing.assert_array_equal(early.chance, again.chance)
    assert early.impressions == (~later).sum()


def test_places_of_little_feedback_are_one_and_the_unknown_ones_have_no_chance() -> None:
    found = estimated(examined(7, lists=1500))
    assert 1 < len(found.first) < SHOWN
    of = found.range_of(np.array([1, SHOWN, 999, np.nan], np.float32))
    assert of.tolist() == [0, len(found.first) - 1, len(found.first) - 1, -1]


def test_items_that_never_move_tell_nothing() -> None:
    world = examined(8)
    fixed = Places((world.log.item % SHOWN + 1).astype(np.float32), world.places.propensity)
    assert estimate_examination(world.log, fixed, END) is None
    assert estimate_examination(world.log, Places(np.full_like(fixed.position, np.nan), fixed.propensity), END) is None
    assert estimate_examination(world.log, world.places, 0) is None
    few = examined(8, lists=100)
    assert estimate_examination(few.log, few.places, END) is None


def test_a_place_that_nothing_joins_to_the_first_is_not_known() -> None:
    """Items move among the upper five places, or among the lower five."""
    world = examined(9)
    half = (world.log.item % 2) * 5
    place = (world.places.position.astype(int) - 1) % 5 + 1 + half
    found = estimated(world._replace(places=Places(place.astype(np.float32), world.places.propensity)))
    assert np.isfinite(found.chance[:5]).all()
    assert np.isnan(found.chance[5:]).all()
    assert found.range_of(np.array([1, 5, 6, 10], np.float32)).tolist() == [0, 4, -1, -1]
    assert np.isfinite([found.power, found.power_low, found.power_high]).all()


def test_each_part_of_the_users_is_left_out_once() -> None:
    """Users of one part alone are too few for an interval: with the others it is finite, without them it is none."""
    world = examined(10)
    alone = replace(world.log, user=world.log.user // PARTS * PARTS)
    found = estimated(world._replace(log=alone))
    assert np.isfinite(found.power)
    assert np.isnan(found.power_low)
