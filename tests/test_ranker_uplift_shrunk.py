"""Shrinkage of slices: against a plain definition, at its limits, and what its intervals cover on average."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.uplift.shrunk import FEW_USERS, GRID, NORMAL, shrink, with_shrunk

UPLIFTS = st.floats(-0.1, 0.1)
ERRORS = st.floats(1e-4, 0.1)


def plain(uplift: list[float], error: list[float], least: float) -> list[tuple[float, float, float]]:
    """The same by loops: each τ² of the grid has a posterior of every slice; their mixture has a mean and a spread."""
    parts = []
    for g in range(GRID):
        place = (g + 0.5) / GRID
        at = place**4
        tau2 = max(e * e for e in error) * (1 - at) / at
        known = [1 / (e * e + tau2) for e in error]
        common = sum(w * u for w, u in zip(known, uplift, strict=True)) / sum(known)
        likely = place**3 / np.sqrt(sum(known))
        for w, u in zip(known, uplift, strict=True):
            likely *= np.sqrt(w) * np.exp(-w * (u - common) ** 2 / 2)
        posterior = []
        for u, e in zip(uplift, error, strict=True):
            b = e * e / (e * e + tau2)
            variance = (1 - b) * e * e + b * b * max(1 / sum(known), least**2)
            posterior.append((b * common + (1 - b) * u, variance, 1 - b))
        parts.append((likely, posterior))
    total, found = sum(likely for likely, _ in parts), []
    for k in range(len(uplift)):
        mean = sum(likely * of[k][0] for likely, of in parts) / total
        variance = sum(likely * (of[k][1] + (of[k][0] - mean) ** 2) for likely, of in parts) / total
        found.append((mean, np.sqrt(variance), sum(likely * of[k][2] for likely, of in parts) / total))
    return found


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(UPLIFTS, st.floats(0.01, 0.1)), min_size=2, max_size=5), ERRORS)
def test_it_is_the_plain_definition(slices: list[tuple[float, float]], least: float) -> None:
    uplift, error = map(np.array, zip(*slices, strict=True))
    found = np.array(shrink(uplift, error, least)).T
    np.testing.assert_allclose(found, plain(uplift.tolist(), error.tolist(), least), rtol=1e-8, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(UPLIFTS, ERRORS), min_size=2, max_size=8), ERRORS)
def test_a_slice_stays_between_its_own_figure_and_the_others(slices: list[tuple[float, float]], least: float) -> None:
    uplift, error = map(np.array, zip(*slices, strict=True))
    mean, _, own = shrink(uplift, error, least)
    assert (mean >= uplift.min() - 1e-12).all()
    assert (mean <= uplift.max() + 1e-12).all()
    assert ((own >= 0) & (own <= 1)).all()
    order = np.argsort(error)
    assert (np.diff(own[order]) <= 1e-12).all()  # what is known less has less of its own


def test_slices_far_apart_keep_their_own_figures_and_equal_ones_are_the_whole() -> None:
    far = np.array([-0.5, 0.0, 0.5])
    mean, error, own = shrink(far, np.full(3, 0.001), 0.001)
    np.testing.assert_allclose(mean, far, atol=1e-3)
    np.testing.assert_allclose(error, 0.001, rtol=0.02)
    assert own.min() > 0.99
    mean, error, _ = shrink(np.full(30, 0.02), np.full(30, 0.01), 0.002)
    np.testing.assert_allclose(mean, 0.02)
    assert (error < 0.004).all()
    one = np.array([0.3]), np.array([0.1])
    assert [of.tolist() for of in shrink(*one, 0.1)] == [[0.3], [0.1], [1.0]]


def part(uplift: float | None, low: float | None, high: float | None, users: int) -> dict[str, Any]:
    return {"relative_uplift": uplift, "ci95": [low, high], "users": users}


def test_small_slices_are_marked_and_what_has_no_interval_has_none() -> None:
    slices = {"kind": {"big": part(0.02, 0.01, 0.03, FEW_USERS), "small": part(0.2, -0.1, 0.5, FEW_USERS - 1)}}
    slices["kind"]["one user"] = part(0.1, None, None, 1)
    found = with_shrunk(slices, part(0.02, 0.01, 0.03, 90))["kind"]
    assert [of["small"] for of in found.values()] == [False, True, True]
    assert found["small"]["relative_uplift"] == 0.2  # the raw one is kept
    assert 0.02 < found["small"]["shrunk"]["relative_uplift"] < 0.15
    assert found["small"]["shrunk"]["own"] < found["big"]["shrunk"]["own"]
    assert found["one user"]["shrunk"] == {"relative_uplift": None, "ci95": [None, None], "own": None}
    lost = with_shrunk(slices, part(None, None, None, 0))["kind"]
    assert all(of["shrunk"]["relative_uplift"] is None for of in lost.values())


@pytest.mark.parametrize("spread", [0.0, 0.005, 0.02, 0.06])
def test_intervals_cover_on_average(spread: float) -> None:
    """The errors of slices are those of 5 % to 60 % of the users; the truths of a kind differ by `spread`."""
    rng, hit, raw, closer = np.random.default_rng(1), [], [], []
    for _ in range(1500):
        k = rng.integers(2, 8)
        truth = 0.02 + spread * rng.standard_normal(k)
        error = 0.006 / np.sqrt(rng.dirichlet(np.ones(k)) * 0.95 + 0.05 / k)
        uplift = truth + error * rng.standard_normal(k)
        mean, sd, _ = shrink(uplift, error, float(1 / np.sqrt((1 / error**2).sum())))
        hit += (np.abs(mean - truth) <= NORMAL * sd).tolist()
        raw.append(np.mean((uplift - truth) ** 2))
        closer.append(np.mean((mean - truth) ** 2))
    assert (
        0.93 <= np.mean(hit) <= (0.995 if spread < 0.01 else 0.97)
    )  # where slices hardly differ, that τ² is unknown is felt
    assert np.mean(closer) < np.mean(raw)
