"""The interval of an uplift covers the truth: with few fits, few users of heavy weight, and much that they share."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import uplift_variance

from features.schema import F64
from ranker.metrics.interval import relative_uplift

TRUTH = 0.01
#: how users' pairs are spread: alike, and with a tail of which a few users have most
SPREADS: dict[str, Callable[[np.random.Generator, int], F64]] = {
    "alike": lambda rng, n: np.full(n, 20.0),
    "lognormal": lambda rng, n: 8 * np.exp(rng.normal(0, 1.2, n)),
    "pareto": lambda rng, n: 3 * np.minimum(rng.pareto(1.2, n) + 1, 300),
}


def draw(
    rng: np.random.Generator, fits: int, seeds: int, users: int, spread: str, luck: float, shared: float
) -> tuple[F64, F64]:
    """Return an experiment whose uplift is TRUTH. luck: sd of one fit over the users' error; shared: with users."""
    pairs = SPREADS[spread](rng, users)
    own = np.sqrt(0.02 * pairs + (0.03 * pairs) ** 2)
    right = pairs * rng.normal(0.6, 0.08, users).clip(0.2, 0.9)
    one = np.sqrt((own**2).sum()) / right.sum()

    def noise(f: int, s: int, u: int) -> Any:
        return rng.normal(size=(f, s, u))

    without = right * (1 + 0.3 * one * noise(1, seeds, 1)) + shared * own * noise(1, seeds, users)
    gain = TRUTH + luck * one * noise(fits, 1, 1) + 0.3 * one * noise(1, seeds, 1)
    with_ = right * (1 + gain) + own * noise(1, 1, users)
    with_ += shared * own * (noise(fits, 1, users) + noise(1, seeds, users) + noise(fits, seeds, users))
    return without, with_


def covered(
    interval: Callable[[F64, F64], tuple[float, float]], worlds: int = 500, seeds: int = 5, **world: Any
) -> float:
    """Return the share of experiments whose interval holds the truth."""
    found = []
    for k in range(worlds):
        low, high = interval(*draw(np.random.default_rng(k), seeds=seeds, **world))
        found.append(low <= TRUTH <= high)
    return float(np.mean(found))


def ours(without: F64, with_: F64) -> tuple[float, float]:
    found = relative_uplift(without, with_)
    return found.low, found.high


def bootstrapped(without: F64, with_: F64) -> tuple[float, float]:
    """The percentile bootstrap of users, fits and seeds: what stood here before, with the fits drawn too."""
    rng, ratios = np.random.default_rng(0), []
    counts = [rng.multinomial(n, np.full(n, 1 / n), 400).astype(float) for n in with_.shape]
    for f, s, u in zip(*counts, strict=True):
        ratios.append((f @ (with_ @ u) @ s) / len(f) / ((without @ u)[0] @ s) - 1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def of_these_fits(without: F64, with_: F64) -> tuple[float, float]:
    """The interval that takes the mean of the fits for one fit: it leaves out their luck."""
    return ours(without, with_.mean(axis=0, keepdims=True))


@pytest.mark.parametrize("shared", [0.3, 1.0])
@pytest.mark.parametrize("luck", [0, 0.25, 0.5, 1, 2, 4])
def test_the_interval_covers_the_truth(luck: float, shared: float) -> None:
    """Of 800 experiments: the share's own sd is .008."""
    for fits, users, spread in ((3, 40, "lognormal"), (3, 150, "alike"), (5, 100, "lognormal")):
        share = covered(ours, worlds=800, fits=fits, users=users, spread=spread, luck=luck, shared=shared)
        assert 0.93 <= share <= 0.98, (fits, users, spread)


@pytest.mark.parametrize("luck", [0, 1, 4])
def test_the_interval_covers_where_few_users_have_most_pairs_and_where_fits_are_two(luck: float) -> None:
    assert 0.93 <= covered(ours, fits=3, users=200, spread="pareto", luck=luck, shared=0.3) <= 0.99
    assert 0.93 <= covered(ours, seeds=10, fits=5, users=300, spread="lognormal", luck=luck, shared=0.3) <= 0.98
    assert 0.90 <= covered(ours, fits=2, users=100, spread="lognormal", luck=luck, shared=0.3) <= 0.985


def test_what_the_interval_is_for() -> None:
    """A bootstrap of three fits covers too little, an interval without their luck far too little."""
    world: dict[str, Any] = {"fits": 3, "users": 100, "spread": "lognormal", "luck": 4, "shared": 0.3}
    assert covered(bootstrapped, worlds=200, **world) < 0.88
    assert covered(of_these_fits, worlds=200, **world) < 0.75
    assert covered(ours, worlds=200, **world) > 0.93


@pytest.mark.parametrize(("fits", "luck"), [(3, 0.0), (3, 1.0), (2, 0.0)])
def test_the_parts_are_those_of_the_slow_definition(fits: int, luck: float) -> None:
    for k in range(3):
        without, with_ = draw(np.random.default_rng(k), fits, 3, 6, "lognormal", luck, 0.5)
        uplift, variance = uplift_variance(without, with_)
        found = relative_uplift(without, with_)
        assert found.uplift == pytest.approx(uplift)
        assert found.variance == pytest.approx(variance)
        assert found.error**2 == pytest.approx(sum(variance.values()))


@given(st.integers(0, 1000), st.sampled_from([0.0, 1.0, 4.0]), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_the_interval_does_not_depend_on_order_or_on_the_weights_unit(seed: int, luck: float, unit: float) -> None:
    rng = np.random.default_rng(seed)
    without, with_ = draw(rng, 3, 4, 30, "lognormal", luck, 0.5)
    f, s, u = (rng.permutation(n) for n in with_.shape)
    first = relative_uplift(without, with_)
    second = relative_uplift(unit * without[:, s][..., u], unit * with_[f][:, s][..., u])
    np.testing.assert_allclose(list(_numbers(first)), list(_numbers(second)), rtol=1e-6, atol=1e-12)


def _numbers(found: Any) -> list[float]:
    return [found.uplift, found.low, found.high, found.error, found.df, found.detectable, *found.variance.values()]


def test_a_comparison_of_two_plugins_has_the_luck_of_both() -> None:
    """Fits of two plugins are independent: their parts add up, and either alone has its own."""
    rng = np.random.default_rng(3)
    _, one = draw(rng, 4, 5, 400, "alike", 4, 0.1)
    without, other = draw(rng, 4, 5, 400, "alike", 4, 0.1)
    both = relative_uplift(one, other).variance["fits"]
    alone = [relative_uplift(without, arm).variance["fits"] for arm in (one, other)]
    assert both == pytest.approx(sum(alone), rel=0.2)
    assert np.isnan(relative_uplift(without, without).variance["fits"])


def test_one_fit_or_one_seed_tells_nothing_of_its_luck() -> None:
    without, with_ = draw(np.random.default_rng(1), 3, 5, 100, "alike", 4, 0.3)
    whole = relative_uplift(without, with_)
    one_fit = relative_uplift(without, with_[:1])
    one_seed = relative_uplift(without[:, :1], with_[:, :1])
    assert (whole.fits, one_fit.fits) == (3, 1)
    assert np.isnan(one_fit.variance["fits"]) and np.isnan(one_seed.variance["seeds"])  # noqa: PT018
    assert one_fit.error < whole.error / 2
    assert one_seed.high > one_seed.low


def test_the_interval_of_a_real_gain_and_of_nothing() -> None:
    base = np.random.default_rng(0).uniform(1, 2, (1, 5, 100))
    gain = relative_uplift(base, np.repeat(base * 1.02, 3, axis=0))
    assert gain.uplift == pytest.approx(0.02)
    assert gain.low == pytest.approx(gain.high) == pytest.approx(0.02)
    assert np.isnan(relative_uplift(base * 0, base).uplift)
    alone = relative_uplift(base[..., :1], base[..., :1])
    assert (alone.uplift, np.isnan(alone.low)) == (0, True)  # one user tells nothing of others


def test_the_smallest_uplift_that_is_seen_is_seen_with_a_chance_of_80_per_cent() -> None:
    world: dict[str, Any] = {"fits": 5, "seeds": 5, "users": 200, "spread": "alike", "luck": 0.5, "shared": 0.3}
    smallest = np.mean([relative_uplift(*draw(np.random.default_rng(k), **world)).detectable for k in range(50)])
    seen = 0
    for k in range(400):
        without, with_ = draw(np.random.default_rng(k), **world)
        seen += relative_uplift(without, with_ * ((1 + smallest) / (1 + TRUTH))).low > 0
    assert 0.7 < seen / 400 < 0.9


def test_the_report_has_the_parts() -> None:
    found = relative_uplift(*draw(np.random.default_rng(0), 3, 5, 50, "alike", 1, 0.3))
    told = found.told()
    assert told["ci95"] == [found.low, found.high]
    assert sum(told["variance"].values()) == pytest.approx(told["standard_error"] ** 2)
    assert set(told) == {"relative_uplift", "ci95", "standard_error", "variance", "degrees_of_freedom"}
