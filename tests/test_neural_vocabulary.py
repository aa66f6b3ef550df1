"""The codes of a request's context and the kinds of feedback, each against a slow definition."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import PairliftError
from features.schema import DAY, NO_CONTEXT, Attribute, Catalog
from neural.vocabulary.context import BINS, ContextAttribute, ContextSpec
from neural.vocabulary.feedback import FeedbackKinds, known_scale

NONE = np.empty(0, object)
CATALOG = Catalog(
    user_ids=NONE, item_ids=NONE,
    contexts=(Attribute("device", "categorical", values=tuple("abcdef")), Attribute("battery", "numeric")),
)  # fmt: skip
NAN = float("nan")


def said(*rows: tuple[float, float]) -> Any:
    return np.array(rows, np.float32).reshape(-1, 2)


def test_a_category_is_known_where_the_fit_met_it() -> None:
    device = ContextAttribute.build(CATALOG.contexts[0], 0, said((4, 0), (1, 0), (4, 0), (NAN, 0)))
    assert device.size == 3
    found = device.codes(said((1, 0), (4, 0), (0, 0), (2, 0), (5, 0), (NAN, 0), (99, 0)))
    assert found.tolist() == [1, 2, 0, 0, 0, 0, 0]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 200))
def test_a_number_is_in_one_of_bins_of_equally_many(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=n) if seed % 2 else rng.integers(0, 3, n)).astype(np.float32)
    battery = ContextAttribute.build(CATALOG.contexts[1], 1, np.stack([values, values], axis=1))
    codes = battery.codes(np.stack([values, values], axis=1))
    slow = [1 + sum(value >= mark for mark in battery.marks) for value in values.tolist()]
    assert codes.tolist() == slow
    assert codes.min() >= 1
    assert codes.max() < battery.size <= BINS + 1
    if len(np.unique(values)) == n >= BINS:
        assert np.bincount(codes)[1:].max() <= n / BINS + 1
    assert battery.codes(said((0, NAN), (0, np.inf))).tolist() == [0, 0]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("nothing", [NO_CONTEXT, said((NAN, NAN))])
def test_of_what_was_never_said_every_code_is_unknown(place: int, nothing: Any) -> None:
    attribute = ContextAttribute.build(CATALOG.contexts[place], place, nothing)
    assert attribute.size == 1
    assert attribute.codes(said((1, 1), (NAN, NAN))).tolist() == [0, 0]


@settings(deadline=None)
@given(st.integers(0, 2**41), st.sampled_from(["UTC", "America/New_York", "Asia/Kathmandu"]))
def test_hour_and_weekday_are_those_of_the_clocks(ms: int, zone: str) -> None:
    spec, ts = ContextSpec.build(["hour", "weekday"], CATALOG, NO_CONTEXT, zone), ms * 1000
    local = datetime.fromtimestamp(ms // 1000, UTC).astimezone(ZoneInfo(zone))
    assert spec.clock_sizes == spec.sizes == (25, 8)
    assert spec.codes(np.array([ts]), NO_CONTEXT).tolist() == [[local.hour + 1, local.weekday() + 1]]
    assert spec.clock(np.array([[ts, ts]])).tolist() == [[[local.hour + 1, local.weekday() + 1]] * 2]


def test_codes_stand_in_one_order_whatever_the_order_of_the_names() -> None:
    fitted = said((4, 0.5), (1, NAN))
    spec = ContextSpec.build(["battery", "device", "hour"], CATALOG, fitted, "UTC")
    assert not spec.surface
    assert spec.sizes == (25, 3, 3)
    ts = np.array([3 * DAY, 0])
    assert spec.codes(ts, said((9, 0.7), (4, 0.1))).tolist() == [[1, 2, 0], [1, 1, 2]]
    assert spec.codes(ts, NO_CONTEXT).tolist() == [[1, 0, 0]] * 2
    assert spec.codes(ts[:0], NO_CONTEXT).shape == (0, 3)
    assert ContextSpec.of_json(json.loads(json.dumps(asdict(spec)))) == spec


def test_a_context_that_no_one_has_is_told() -> None:
    with pytest.raises(
        PairliftError, match=r"a name of \[events.context\] was expected, found 'devise' \(did you mean 'device'"
    ):
        ContextSpec.build(["surface", "devise"], CATALOG, NO_CONTEXT, "UTC")


@pytest.mark.parametrize(
    ("values", "plain", "all_kinds"),
    [
        ([0, 1, NAN], "binary", "binary"),
        ([NAN, NAN], "binary", "binary"),
        ([], "binary", "binary"),
        ([0, 0.25, 1], "number", "share"),
        ([0, 3, 1, NAN], "number", "count"),
        ([0, 3.5], "number", "number"),
        ([-1, 0, 1], "number", "number"),
        ([2, 2], "number", "count"),
        ([2.5, 2.5], "number", "number"),
        ([0, 0, 0.5, 3, 5, 8.5, 400], "number", "time"),  # seconds, one of them overnight
        ([0, 0, 500, 3000, 5000, 8500, 400_000], "number", "time"),  # the same in milliseconds
        ([0, 0, 1, 3, 5, 8, 400], "number", "count"),
        ([0.5, 3, 3.5, 4, 4, 4.5, 5], "number", "number"),  # stars
        ([1000, 3000, 2000], "number", "number"),
    ],
)
def test_the_kind_of_a_column_is_what_its_values_are(values: list[float], plain: str, all_kinds: str) -> None:
    column = np.array(values, np.float32)[:, None]
    assert FeedbackKinds.build(column, False).kind == (plain,)
    assert FeedbackKinds.build(column, True).kind == (all_kinds,)


@given(st.integers(0, 10_000), st.booleans())
def test_what_is_learned_of_each_kind(seed: int, all_kinds: bool) -> None:
    rng = np.random.default_rng(seed)
    some, long = rng.random(30) < 0.3, np.where(rng.random(30) < 0.2, 0, rng.lognormal(3, 2, 30))
    columns = (some, rng.random(30), rng.poisson(2, 30), rng.normal(0, 9, 30), np.full(30, NAN), long)
    values = np.stack(columns, axis=1).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = NAN
    kinds = FeedbackKinds.build(values, all_kinds)
    wanted = kinds.wanted(values)
    assert wanted.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(wanted), np.isnan(values))
    for k, kind in enumerate(kinds.kind):
        known = values[np.isfinite(values[:, k]), k].astype(np.float64)
        raw = np.log1p(known) if kind == "count" else known
        if kind == "time":
            raw = np.log1p(known / np.median(known[known > 0]))
        if kind in ("number", "count", "time"):
            raw = (raw - raw.mean()) / (raw.std() or 1)
        np.testing.assert_allclose(wanted[np.isfinite(values[:, k]), k], raw, atol=1e-5)
    assert kinds.bounded.tolist() == [kind in ("binary", "share") for kind in kinds.kind]
    later = np.array([[NAN, 1.5, -3, NAN, 7, -1]], np.float32)  # what the fit did not have
    assert np.isfinite(kinds.wanted(later)[0, [1, 2, 4, 5]]).all()


def test_numbers_are_scaled_as_the_signals_of_tokens_are() -> None:
    values = np.random.default_rng(0).normal(3, 2, (50, 2)).astype(np.float32)
    kinds, (mean, scale) = FeedbackKinds.build(values, False), known_scale(values)
    assert kinds.mean.tolist() == list(mean)
    assert kinds.scale.tolist() == list(scale)
