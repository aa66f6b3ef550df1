"""Estimators against their definitions, and against known values: all lists of a small world, by their chances."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.schema import Requests, offsets_of
from ranker.exploration.draw import chances, race, standing
from ranker.offpolicy.estimators import dr, effective_lists, ips, mean_weight, snips, value_of, weights
from ranker.offpolicy.logged import DrawnLists
from ranker.offpolicy.report import part_of
from ranker.offpolicy.rewards import Scored, modelled
from ranker.pipeline import select

KINDS = ("item_position", "cascade", "list")


@st.composite
def logs(draw):
    """Lists of 0 to 4 rows with rewards, ratios and a model."""
    sizes = np.array(draw(st.lists(st.integers(0, 4), min_size=1, max_size=6)), np.int64)
    numbers = st.floats(0, 4, allow_nan=False, width=16)
    n = int(sizes.sum())
    rows = [np.array(draw(st.lists(numbers, min_size=n, max_size=n)), float) for _ in range(4)]
    place = np.concatenate([np.arange(n) for n in sizes]).astype(np.int64)
    user = np.array(draw(st.lists(st.integers(5, 7), min_size=len(sizes), max_size=len(sizes))))
    return offsets_of(sizes), place, user, *rows


@settings(deadline=None)
@given(logs(), st.sampled_from(KINDS))
def test_the_estimators_are_their_definitions(log, kind):
    offsets, place, user, ratio, reward, model, expected = log
    of, lists = weights(kind, ratio, offsets), len(user)
    bounds = list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
    weight, robust = np.zeros(len(ratio)), 0.0
    for first, end in bounds:
        for row in range(first, end):
            down, above = np.prod(ratio[first : row + 1]), np.prod(ratio[first:row])
            now, before = (ratio[row], 1.0) if kind == "item_position" else (down, above)
            weight[row] = {"item_position": ratio[row], "cascade": down, "list": np.prod(ratio[first:end])}[kind]
            robust += weight[row] * reward[row] - (now * model[row] - before * expected[row])
    np.testing.assert_allclose(of.weight, weight, rtol=1e-12)
    assert value_of(ips(weight, reward), offsets, user)[0] == pytest.approx((weight * reward).sum() / lists)
    assert value_of(dr(of, reward, model, expected), offsets, user)[0] == pytest.approx(robust / lists, abs=1e-9)
    normal, least = 0.0, np.inf
    for at in np.unique(place):
        w, r = weight[place == at], reward[place == at]
        normal += len(w) / lists * ((w * r).sum() / w.sum() if w.sum() else np.nan)
        least = min(least, w.sum() ** 2 / (w**2).sum() if w.any() else 0)
    assert value_of(snips(weight, reward, place), offsets, user)[0] == pytest.approx(normal, nan_ok=True)
    assert effective_lists(weight, place) == pytest.approx(least)
    if len(weight):
        assert mean_weight(weight, offsets, user)[0] == pytest.approx(weight.mean())


def all_lists(score, temperature, k):
    """Each list of a policy with the chances of its items given those above; no temperature: the best order alone."""
    item = np.arange(len(score), dtype=np.int32)
    order = select(item, score)
    weight = np.empty(0) if temperature is None else race(score, order, temperature, len(score))
    for listed in permutations(range(len(score)), k):
        place = np.array(listed, np.int64)
        yield listed, chances(place, order, weight, standing(place, np.full(len(score), k)))


def reward_of(kind, listed, taste):
    """What each item of a list gets: for itself, less what stands above it, or less what stands around it."""
    around = [
        sum(taste[i] for i in (listed[:p] if kind == "cascade" else listed) if i != a) for p, a in enumerate(listed)
    ]
    return np.array([taste[a] - 0.1 * of * (kind != "item_position") for a, of in zip(listed, around, strict=True)])


@pytest.mark.parametrize("kind", ["cascade", "list"])
@pytest.mark.parametrize("temperature", [None, 0.5])
def test_the_mean_over_all_lists_is_the_value_that_is_known(kind, temperature):
    taste, logged, other = (
        np.array([0.9, 0.1, 0.5, 0.3]),
        np.array([0.0, 1.0, 0.5, 0.2]),
        np.array([0.5, 0.4, 2.0, 1.0]),
    )
    target = dict(all_lists(other, temperature, 3))
    known = sum(q.prod() * reward_of(kind, listed, taste).sum() for listed, q in target.items())
    model = np.array([0.3, -1.0, 2.0, 0.7])  # wrong, and no matter
    found = {"ips": 0.0, "dr": 0.0, "weight": 0.0}
    for listed, p in all_lists(logged, 1.0, 3):
        q, reward, rows = target[listed], reward_of(kind, listed, taste), np.array([0, 3])
        of = weights(kind, q / p, rows)
        expected = [
            sum(target_chance(other, temperature, listed[:j], i) * model[i] for i in range(4)) for j in range(3)
        ]
        found["ips"] += p.prod() * ips(of.weight, reward).sum()
        found["dr"] += p.prod() * dr(of, reward, model[list(listed)], np.array(expected)).sum()
        found["weight"] += p.prod() * of.weight[-1]
    assert found["ips"] == pytest.approx(known)
    assert found["dr"] == pytest.approx(known)
    assert found["weight"] == pytest.approx(1)


def target_chance(score, temperature, above, item):
    """The chance of an item below others."""
    if item in above:
        return 0.0
    left = [i for i in range(len(score)) if i not in above]
    if temperature is None:
        return float(item == max(left, key=lambda i: score[i]))
    shares = {i: np.exp(score[i] / temperature) for i in left}
    return shares[item] / sum(shares.values())


def test_the_model_sees_other_users_alone_and_takes_noise_away():
    rng, n = np.random.default_rng(0), 2000
    user, place, score = np.arange(n) % 50, rng.integers(0, 3, n), rng.normal(size=n)
    score[::7] = np.nan
    reward = 0.5 * np.nan_to_num(score) - 0.1 * place + 0.1 * rng.normal(size=n)
    of = Scored(score, np.full(n, 1.0), np.full(n, 1.0), np.ones(n))
    found, expected = modelled(of, reward, place, user)
    assert np.corrcoef(found, reward)[0, 1] > 0.9
    np.testing.assert_allclose(expected, 0.5 - 0.1 * place, atol=0.05)
    changed = reward + 100 * (user == 3)
    again = modelled(of, changed, place, user)[0]
    np.testing.assert_array_equal(again[user % 5 == 3], found[user % 5 == 3])
    none = modelled(Scored(np.full(n, np.nan), np.zeros(n), np.zeros(n), np.zeros(n)), reward, place, user)
    assert np.isfinite(none).all()
    assert not none[1].any()


def test_what_the_log_does_not_show_widens_the_interval_to_what_it_may_be_worth():
    """Drawn are 8 of 9 items evenly; the other policy shows the ninth, which all want, in 6 of 100 lists."""
    rng, n = np.random.default_rng(0), 4000
    item, want = rng.integers(0, 8, n), np.array([0.2] * 8 + [1.0])
    other = np.array([0.94 / 8] * 8 + [0.06])
    requests = Requests(
        user=(np.arange(n) % 400).astype(np.int32),
        as_of=np.arange(n, dtype=np.int64),
        surface=np.zeros(n, np.int16),
        offsets=np.arange(n + 1, dtype=np.int64),
        item=item.astype(np.int32),
    )
    reward = (rng.random(n) < want[item]).astype(np.float64)
    lists = DrawnLists(
        requests=requests, place=np.zeros(n, np.int64), reward=reward, propensity=np.full(n, 1 / 8), left_out={}
    )
    part = part_of("list", lists, other[item] * 8, (np.full(n, 0.2), np.full(n, 0.94 * 0.2)))
    known = other @ want
    assert part["refused"] == ""
    assert part["unshown"] == pytest.approx(0.06)
    for name in ("ips", "snips", "dr"):
        low, high = part[name]["ci95"]
        assert low < known < high
        assert high - 0.06 < known  # as the interval was without
        assert part[name]["gain_ci95"][1] - part[name]["gain"] > 0.06
    whole = part_of("list", lists, np.ones(n), (np.full(n, 0.2), np.full(n, 0.2)))
    assert whole["unshown"] == 0
    assert whole["ips"]["ci95"] == list(value_of(reward, requests.offsets, requests.user)[1:])
