"""Holm's correction against its sequential definition, and the p of an uplift against its interval."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from ranker.metrics.holm import holm
from ranker.metrics.interval import half_width, paired_uplift, relative_uplift

PS = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.05, 1.0])), max_size=8)


def rejected(p: list[float], level: float) -> set[int]:
    """The procedure as Holm has it: from the smallest, each against level / (how many are left), until one fails."""
    left, found = sorted(range(len(p)), key=lambda k: p[k]), set()
    while left and p[left[0]] <= level / len(left):
        found.add(left.pop(0))
    return found


@given(PS, st.floats(0.001, 0.5))
def test_holm_rejects_what_its_steps_reject(p: list[float], level: float) -> None:
    adjusted = holm(p)
    near = any(abs(of - level) < 1e-12 for of in adjusted)  # rounding decides
    assert near or {k for k, of in enumerate(adjusted) if of <= level} == rejected(p, level)
    assert all(own <= of <= 1 for own, of in zip(p, adjusted, strict=True))


def test_holm_by_hand_and_what_could_not_be_tested() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, float("nan")]) == pytest.approx([0.02, 1])  # still one of the family
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def arms(seed: int, fits: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    without = rng.uniform(1, 9, 60) + 0.1 * rng.normal(size=(1, 4, 60))
    with_ = without * (1 + gain) + rng.normal(size=(fits, 4, 60)) + 3 * rng.normal(size=60) / 8
    return without, with_ + 0.05 * rng.normal(size=(fits, 1, 1))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 4), st.sampled_from([0.0, 0.01, -0.02, 0.1]))
def test_the_p_is_one_less_the_level_of_the_interval_that_ends_at_zero(seed: int, fits: int, gain: float) -> None:
    found = relative_uplift(*arms(seed, fits, gain))
    p = found.p_value()
    assert (p < 0.05) == (found.low > 0 or found.high < 0)
    assert half_width(found.parts, found.df, p) == pytest.approx(abs(found.uplift), rel=1e-6)


def test_of_one_part_it_is_students_and_extremes_are_told() -> None:
    rng = np.random.default_rng(1)
    base = np.full((1, 1, 30), 2.0)
    gained = base + rng.normal(0.1, 0.3, 30)
    found = relative_uplift(base, gained)
    assert found.p_value() == pytest.approx(2 * student.sf(abs(found.uplift / found.error), found.df))
    assert relative_uplift(base, base).p_value() == 1
    assert relative_uplift(base, 2 * base).p_value() == 0
    assert np.isnan(relative_uplift(base[..., :1], base[..., :1]).p_value())
    assert 0 < relative_uplift(base, 50 * base + rng.normal(0, 1e-9, 30)).p_value() < 1e-25


def test_luck_that_both_arms_share_is_no_part_of_a_paired_interval() -> None:
    rng = np.random.default_rng(2)
    luck = rng.normal(0, 0.2, (4, 1, 1))
    rest = 5 + luck + 0.1 * rng.normal(size=(4, 3, 80))
    all_ = 5.1 + luck + 0.1 * rng.normal(size=(4, 3, 80))
    paired, apart = paired_uplift(rest, all_), relative_uplift(rest, all_)
    assert paired.uplift == pytest.approx(apart.uplift)
    assert paired.error < apart.error / 3
    own = all_ + rng.normal(0, 0.2, (4, 1, 1))  # what the further plugin's fits have of their own stays
    assert paired_uplift(rest, own).variance["fits"] > 10 * paired.variance["fits"]
    one = paired_uplift(rest[:1], all_[:1])
    assert one.error == pytest.approx(relative_uplift(rest[:1], all_[:1]).error)
