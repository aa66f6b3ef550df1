"""The split of users between bundles: GrowthBook's hash, and nobody who moves from arm to arm."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import PairliftError
from ranker.serving.rollout.plan import KNOWN, Place, Plan
from ranker.serving.rollout.split import BUCKETS, CONTROL, Split, bucket_of, buckets_of

USERS = [*range(0, 4000, 3), *(f"user-{k}" for k in range(500)), "", "é", "日本\x00", -5]


def fnv1a(text: str) -> int:
    """The definition, a byte at a time (http://www.isthe.com/chongo/tech/comp/fnv)."""
    value = 2166136261
    for byte in text.encode():
        value ^= byte
        value = value * 16777619 % 2**32
    return value


def test_the_hash_is_the_published_one():
    known = {"": 0x811C9DC5, "a": 0xE40C292C, "b": 0xE70C2DE5, "foo": 0xA9F37ED7, "foobar": 0xBF9CF968}
    assert {text: fnv1a(text) for text in known} == known
    for experiment in ("", "spring", "é"):
        expected = [fnv1a(str(fnv1a(f"{experiment}{user}"))) % 10_000 for user in USERS]
        assert [bucket_of(experiment, user) for user in USERS] == expected
        assert buckets_of(experiment, USERS).tolist() == expected
    assert buckets_of("x", np.arange(5)).tolist() == [bucket_of("x", k) for k in range(5)]
    assert buckets_of("x", []).tolist() == []


def test_shares_are_shares_and_experiments_are_independent():
    users = np.arange(200_000)
    one, two = (Split(name).with_arm("b", 0.3).arms_of(users) == 1 for name in ("one", "two"))
    assert abs(one.mean() - 0.3) < 0.005
    assert abs((one & two).mean() - 0.09) < 0.005


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, BUCKETS)), min_size=1, max_size=12))
def test_whoever_moves_moves_between_the_control_and_an_arm_that_changes(changes):
    split = Split("x")
    for arm, wanted in changes:
        before = {name: owned(split, name) for name in "abc"}
        room = BUCKETS - sum(len(buckets) for name, buckets in before.items() if name != arm)
        if wanted > room:
            with pytest.raises(PairliftError, match="the other arms leave"):
                split.with_arm(arm, wanted / BUCKETS)
            continue
        split = split.with_arm(arm, wanted / BUCKETS)
        after = {name: owned(split, name) for name in "abc"}
        assert all(after[name] == before[name] for name in "abc" if name != arm)
        assert len(after[arm]) == wanted
        assert round(split.share(arm) * BUCKETS) == wanted
        assert after[arm] >= before[arm] or after[arm] < before[arm]
        assert not after["a"] & after["b"] | after["a"] & after["c"] | after["b"] & after["c"]
        codes = split.arms_of(USERS)
        assert [split.names[code] for code in codes] == [split.arm_of(user) for user in USERS]
        for user in USERS[:200]:
            of = bucket_of("x", user)
            assert split.arm_of(user) == next((name for name in "abc" if of in after[name]), CONTROL)


def owned(split: Split, arm: str) -> set[int]:
    return {bucket for first, end in split.arms.get(arm, ()) for bucket in range(first, end)}


def test_an_arm_that_shrinks_and_grows_back_has_its_users_again():
    wide = Split("x").with_arm("b", 0.1).with_arm("c", 0.1).with_arm("b", 0.4)
    assert wide.with_arm("b", 0.05).with_arm("b", 0.4) == wide


def test_a_split_without_arms_is_of_nobody():
    assert Split().arm_of(3) == ""
    assert Split().arms_of([3, 4]).tolist() == [-1, -1]
    assert Split("x").with_arm("b", 0.5).without("b") == Split()
    assert Split("x").with_arm("b", 1.0).arm_of(None) == ""
    for share in (0.0, 1.1, -1, 0.00001, float("nan"), float("inf")):
        with pytest.raises(PairliftError, match="a share from"):
            Split("x").with_arm("b", share)


A, B, C = (Place(folder=f"/{name}", version=name) for name in "abc")


def test_a_plan_is_the_same_after_json_and_changes_as_told():
    plan = Plan(known=("a",), active=A).deployed(B).with_arm("new", C, 0.1, "spring", 7).shadowed(A, 0.5)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert (plan.active, plan.previous, plan.arms, plan.number, plan.known) == (B, A, {"new": C}, 3, ("b", "a"))
    assert plan.split == Split("spring").with_arm("new", 0.1)
    assert plan.rolled_back().rolled_back().active == B
    more = plan.with_arm("new", None, 0.3, "", 8)
    assert more.arms == {"new": C}
    assert more.split.share("new") == 0.3
    done = more.promoted("new", 9)
    assert (done.active, done.previous, done.arms, done.split) == (C, B, {}, Split())
    assert done.rolled_back().active == B
    assert [since.time for since in done.splits] == [7, 8, 9]
    gone = more.dropped("new", 9).dropped("", 9)
    assert (gone.active, gone.arms, gone.shadow) == (B, {}, None)


def test_splits_stay_in_order_when_the_clock_is_set_back_and_what_it_began_with_stays_known():
    plan = Plan(known=("a",), active=A).with_arm("new", C, 0.1, "spring", 7).with_arm("new", None, 0.2, "", 5)
    assert [since.time for since in plan.splits] == [7, 7]
    assert plan.split.share("new") == 0.2
    for k in range(2 * KNOWN):
        plan = plan.deployed(Place(folder="/x", version=f"{k}"))
    assert (plan.known[0], plan.known[-1], len(plan.known)) == (f"{2 * KNOWN - 1}", "a", KNOWN)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda plan: plan.rolled_back(), "no previous bundle"),
        (lambda plan: plan.promoted("x", 0), "there is no arm 'x'"),
        (lambda plan: plan.dropped("", 0), "no shadow"),
        (lambda plan: plan.with_arm("x", None, 0.1, "", 0), "no arm 'x'"),
        (lambda plan: plan.with_arm("x", B, 0.1, "s", 0).with_arm("y", B, 0.1, "t", 0), "'s' is under way"),
        (lambda plan: plan.shadowed(B, 1.5), "a share of the requests"),
    ],
)
def test_what_cannot_be_is_a_sentence(change, sentence):
    with pytest.raises(PairliftError, match=sentence):
        change(Plan(known=("a",), active=A))
