"""Shares of candidates: what places are worth is its plain definition, and the blend is not below the best source."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import with_config

from features.schema import F32, F64, I32, I64, Bool
from ranker.blend.learned import LEAST, Kind, Learner, Told, blended, kinds_of
from ranker.blend.order import Order, filled, in_turn, mean_items, table_of
from ranker.blend.shares import ANY, FLOOR, NONE, Judged, Share, Shares
from ranker.blend.worth import KNOTS, LEAD, RIDGE, Worth, cells_of, first_of, worth_of
from ranker.bundle import Bundle
from ranker.candidates.filters import history
from ranker.candidates.merge import Places, dedupe, within_places
from ranker.candidates.source import Proposal
from ranker.card import measured_lines
from ranker.lists import judging
from ranker.lists.judging import FOLDS, NEW_WEIGHTS, folds, judged
from ranker.lists.worth import worth_of_hits
from ranker.pipeline import Pipeline
from ranker.request import Request
from ranker.settings import QUOTA, RuleSettings, SourceSettings

M = 8
users = st.lists(
    st.tuples(
        st.lists(st.lists(st.integers(0, 12), max_size=M, unique=True), min_size=3, max_size=3),
        st.sets(st.integers(0, 12)),
        st.sampled_from([0.0, 0.5, 1.0]),
    ),
    min_size=1,
    max_size=4,
)
#: of the sources in made worlds: how many users there are, and how many items
USERS, ITEMS = 150, 2000


def padded(lists: Sequence[Sequence[Sequence[int]]]) -> I32:
    """int32[s, u, M] of lists by user and source."""
    found = np.full((len(lists[0]), len(lists), M), -1, np.int32)
    for u, own in enumerate(lists):
        for s, items in enumerate(own):
            found[s, u, : len(items)] = items
    return found


def wanted_of(wanted: Sequence[set[int]]) -> tuple[I64, I32]:
    items = [np.array(sorted(own), np.int32) for own in wanted]
    return np.cumsum([0, *map(len, items)]), np.concatenate(items)


def plain_slope(lists: list[list[list[int]]], wanted: list[set[int]], weight: F64, most: list[int], of: Worth) -> F64:
    """The slope of the penalised negative log-likelihood by the height of each step, by its definition.

    At the log-odds of no worth that are best for these heights, which are looked for by halves.
    """
    rows = list[tuple[float, bool, F64]]()
    for own, want, weighs in zip(lists, wanted, weight, strict=True):
        for item in {i for items in own for i in items}:
            step = np.zeros((len(own), len(KNOTS)))  # whether the step reaches to the item's place
            for s, items in enumerate(own):
                if item in items and KNOTS[last := sum(k <= items.index(item) for k in KNOTS) - 1] < most[s]:
                    step[s, last:] = 1
            if step.any() and weighs:
                rows.append((weighs, item in want, step))
    height = of.at - np.pad(of.at[:, 1:], ((0, 0), (0, 1)))
    low, high = -50.0, 50.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        chance = [1 / (1 + np.exp(-middle - (step * height).sum())) for _, _, step in rows]
        more = sum(weighs * (p - hit) for p, (weighs, hit, _) in zip(chance, rows, strict=True))
        low, high = (low, middle) if more > 0 else (middle, high)
    slope = RIDGE * height
    for p, (weighs, hit, step) in zip(chance, rows, strict=True):
        slope = slope + weighs * (p - hit) * step
    return np.asarray(slope)


@given(users, st.lists(st.integers(0, M), min_size=3, max_size=3))
@settings(max_examples=100, deadline=None)
def test_worths_are_of_the_least_penalised_likelihood(
    users: list[tuple[list[list[int]], set[int], float]], most: list[int]
) -> None:
    lists, wanted = [user[0] for user in users], [user[1] for user in users]
    weight = np.array([user[2] for user in users])
    table = table_of(padded(lists), *wanted_of(wanted))
    of = worth_of(cells_of(table), table.hit, weight[table.user], np.array(most))
    assert of.most.tolist() == most
    assert (np.diff(of.at, axis=1) <= 0).all()
    assert (of.at >= 0).all()
    met = [
        (item in want) for own, want, w in zip(lists, wanted, weight, strict=True) if w for item in plain_in(own, most)
    ]
    if not any(met) or all(met):
        assert not of.at.any()  # nothing tells one place from another
        return
    slope, height = plain_slope(lists, wanted, weight, most, of), of.at - np.pad(of.at[:, 1:], ((0, 0), (0, 1)))
    assert (slope > -0.01).all()  # none would be better higher
    assert np.abs(slope[height > 1e-3]).max(initial=0) < 0.01  # and none of those that there are lower


def plain_in(own: list[list[int]], most: list[int]) -> set[int]:
    """The items with a place that counts: those of steps that begin within the most places."""
    inside = [sum(k < m for k in KNOTS) for m in most]
    ends = [KNOTS[n] if n < len(KNOTS) else M for n in inside]
    return {i for items, end, n in zip(own, ends, inside, strict=True) if n for i in items[:end]}


@given(
    users,
    st.lists(st.lists(st.integers(0, 3), min_size=M, max_size=M), min_size=3, max_size=3),
    st.lists(st.integers(0, M), min_size=3, max_size=3),
    st.integers(0, 20),
    st.sets(st.integers(0, 12)),
)
@settings(max_examples=200, deadline=None)
def test_a_request_has_the_items_that_are_worth_most_and_a_report_the_same(
    users: list[tuple[list[list[int]], set[int], float]],
    worth: list[list[int]],
    depth: list[int],
    m: int,
    removed: set[int],
) -> None:
    table, lists = np.array(worth, np.float32), [user[0] for user in users]
    kept = [[[i for i in own if i not in removed] for own in of] for of in lists]
    found = first_of(padded(kept), Plain(table, np.array(depth)), m)  # type: ignore[arg-type]
    for row, own, whole in zip(found, kept, lists, strict=True):
        inside = [items[:d] for items, d in zip(own, depth, strict=True)]
        score = {
            i: sum(float(table[s, items.index(i)]) for s, items in enumerate(inside) if i in items)
            for items in inside
            for i in items
        }
        best = sorted(score, key=lambda i: -score[i])[:m]  # of equal ones the first
        assert row[row >= 0].tolist() == best
        merged = dedupe([Proposal(np.array(items, np.int32)) for items in whole])
        keep = np.array([i not in removed for i in merged.item.tolist()], bool)
        left = within_places(merged, keep, Places(depth, [M] * 3, m, table))
        assert left.item.tolist() == sorted(best)
        for item, place in zip(left.item.tolist(), left.place.tolist(), strict=True):
            assert [at < M for at in place] == [item in items for items in inside]
            assert all(whole[s][at] == item for s, at in enumerate(place) if at < M)


class Plain(Worth):
    """A worth whose table is given in place of its steps."""

    def table(self, depth: int) -> F32:
        return np.asarray(self.at[:, :depth], np.float32)


@given(users, st.lists(st.integers(0, M), min_size=3, max_size=3), st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_filled_and_counted_as_by_hand(
    users: list[tuple[list[list[int]], set[int], float]], depth: list[int], m: int
) -> None:
    lists, wanted = [user[0] for user in users], [user[1] for user in users]
    weight = np.array([user[2] for user in users])
    arrays = padded(lists)
    order = np.array([2, 0, 1, 0], np.int32), np.array([depth[2], depth[0] // 2, depth[1], depth[0]], np.int32)
    found = filled(arrays, *order, m)
    for row, own in zip(found, lists, strict=True):
        taken = [*own[2][: depth[2]], *own[0][: depth[0] // 2], *own[1][: depth[1]], *own[0][: depth[0]]]
        assert row[row >= 0].tolist() == list(dict.fromkeys(taken))[:m]
    count = [len({i for items, d in zip(own, depth, strict=True) for i in items[:d]}) for own in lists]
    mean = float(np.dot(count, weight)) / max(float(weight.sum()), 1e-9)
    table, every = table_of(arrays, *wanted_of(wanted)), np.ones(3, bool)
    assert mean_items(table, weight, Places(depth, depth, 0), every) == pytest.approx(mean)
    spread = mean_items(table, weight, Places(depth, [M] * 3, 3 * M), every)  # all that is left empty is given away
    union = [len(set().union(*own)) for own in lists]
    assert spread == pytest.approx(float(np.dot(union, weight)) / max(float(weight.sum()), 1e-9))
    alone = mean_items(table, weight, Places(depth, depth, 0), np.array([False, True, False]))
    one = [len(set(own[1][: depth[1]])) for own in lists]
    assert alone == pytest.approx(float(np.dot(one, weight)) / max(float(weight.sum()), 1e-9))


class Silent:
    """A source whose lists stand in a `Told`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def propose(self, request: Request, limit: int) -> Proposal:
        return Proposal(np.arange(limit, dtype=np.int32))


def told_world(seed: int, *, tastes: float, users: int = USERS, length: int = 200) -> Told:
    """Users want 20 items each: `tastes` of them of their own, which `near` knows with error, the others popular ones.

    A third of the users is new: of them `near` says nothing. `worse` is `popular` with more error, `noise` is random.
    """
    rng = np.random.default_rng(seed)
    popular = 1.0 / (np.arange(ITEMS) + 10.0)
    lists = np.full((4, users, length), -1, np.int32)
    known, wanted = rng.random(users) < 2 / 3, []

    def best(score: F64) -> I32:
        return np.argsort(-score)[:length].astype(np.int32)

    for u in range(users):
        own = rng.normal(size=ITEMS)
        chance = tastes * np.exp(3 * own) / np.exp(3 * own).sum() + (1 - tastes) * popular / popular.sum()
        wanted.append(set(rng.choice(ITEMS, 20, replace=False, p=chance).tolist()))
        lists[0, u], lists[2, u] = best(popular), best(np.log(popular) + rng.normal(size=ITEMS))
        if known[u]:
            lists[1, u] = best(own + rng.normal(size=ITEMS))
        lists[3, u] = rng.permutation(ITEMS)[:length]
    surface = np.where(np.arange(users) % 3 == 0, 1, 0).astype(np.int16)
    return Told(lists, np.arange(users, dtype=np.int32), known, surface, *wanted_of(wanted))


def learner_of(told: Told, *quotas: int | dict[str, int] | None, budget: int = 100, old: int = ITEMS) -> Learner:
    names = ["popular", "near", "worse", "noise"]
    all_quotas = [*quotas, *[None] * (4 - len(quotas))]
    sources = [(Silent(name), SourceSettings(quota=own)) for name, own in zip(names, all_quotas, strict=True)]
    return judged(Learner.of(told, sources, ["feed", "search"], np.arange(2 * ITEMS) >= old), budget)


def first_worth(share: Share) -> dict[str, float]:
    """What the first place of each source is worth."""
    assert share.worth is not None
    return {name: steps[0][1] for name, steps in share.worth.items()}


def recall(lists: I32, told: Told, k: int) -> F64:
    rows = [told.item[a:b] for a, b in zip(told.offsets[:-1], told.offsets[1:], strict=True)]
    hit = np.stack([np.isin(own, wanted) for own, wanted in zip(lists, rows, strict=True)])
    return worth_of_hits(hit, np.diff(told.offsets), (k,))[f"recall@{k}"]


@pytest.mark.parametrize("tastes", [0.0, 0.6, 0.9])
def test_the_blend_is_hardly_below_the_best_source_and_above_it_where_two_know_different_things(tastes: float) -> None:
    learner, test = learner_of(told_world(0, tastes=tastes, users=450)), told_world(1, tastes=tastes, users=300)
    for k in (20, 100, 200):
        blend = recall(blended(test, learner.surfaces, learner.blends(), k), test, k).mean()
        alone = max(recall(own[:, :k], test, k).mean() for own in test.lists)
        assert blend > alone - 0.01
        if tastes == 0.6:
            assert blend > alone + 0.02


def test_shares_are_of_what_each_knows() -> None:
    told = told_world(0, tastes=0.5)
    learner = learner_of(told)
    shares = {(of.known, of.surface): of for of in learner.shares(learner.blends(), 100).of}
    known, new = shares[True, ANY], shares[False, ANY]
    assert first_worth(known)["near"] > 1 > 0.2 + first_worth(known)["noise"]
    assert first_worth(new)["near"] == 0  # the log cannot tell what it would be worth
    assert new.quotas == {"popular": 150, "near": FLOOR, "worse": 150, "noise": 150}
    assert first_worth(new)["popular"] > 1
    for of in shares.values():
        assert 80 < of.candidates <= 100 == of.total
        assert min(of.quotas.values()) >= FLOOR > of.floor == 100 // 4 // (4 if of.known else 3)
    assert (True, "feed") in shares
    assert (False, "search") not in shares  # too few users
    assert learner.shares(learner.blends(), 100) == learner_of(told).shares(learner_of(told).blends(), 100)


@pytest.mark.parametrize("budget", [3, 25, 39])
def test_there_are_no_more_candidates_than_asked_for_though_each_source_has_some(budget: int) -> None:
    learner = learner_of(told_world(0, tastes=0.5))
    for of in learner.shares(learner.blends(), budget).of:
        assert 0.7 * budget - 2 < of.candidates <= budget
        assert of.total <= budget  # what others leave empty is filled up to it
        if of.known:
            assert min(of.quotas.values()) >= budget // 16


def test_a_surface_of_many_users_has_shares_of_its_own_and_one_of_few_those_of_all() -> None:
    told = told_world(0, tastes=0.5, users=450)
    search = told.surface == 1
    lists = told.lists.copy()
    lists[3, search] = lists[1, search]  # there, noise knows what near does not say
    lists[1, search] = -1
    told = told._replace(lists=lists, known=np.ones(450, bool))
    few = told._replace(surface=np.where(np.cumsum(search) < LEAST, told.surface, 0).astype(np.int16))
    one, other = (learner_of(of) for of in (told, few))
    first = {of.surface: first_worth(of) for of in one.shares(one.blends(), 100).of if of.known}
    assert first["search"]["noise"] > 2 * first["feed"]["noise"]
    assert first["feed"]["near"] > first["search"]["near"]  # where it has nothing, other surfaces tell of it
    assert Kind(True, "search") not in other.blends()
    assert kinds_of(few, other.surfaces, other.blends())[0] == Kind(True, ANY)


def test_quotas_are_the_most_of_a_source_and_open_ones_fill_what_200_each_would() -> None:
    told = told_world(0, tastes=0.5)
    learner = learner_of(told, 30, {"search": 7})
    shares = learner.shares(learner.blends(), None)
    counts = [
        len(np.unique(np.concatenate([a[:30], b, c, d])))
        for a, b, c, d in told.lists.transpose(1, 0, 2)[told.known]
    ]  # fmt: skip
    assert shares.of[0].candidates == pytest.approx(np.mean(counts), abs=1)
    assert all(of.quotas["popular"] <= 30 for of in shares.of)
    assert all(of.quotas["near"] <= 7 for of in shares.of if of.surface == "search")
    alone = learner.blends(without=1)
    assert alone[Kind(True, ANY)].most[1] == 0  # type: ignore[union-attr]


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 9)), min_size=1, max_size=4))
def test_in_turn_sources_have_places_by_their_quotas_until_their_lists_may_have_no_more(
    of: list[tuple[int, int]],
) -> None:
    most, quota = map(list, zip(*of, strict=True))
    order, plain, own = in_turn(np.array(most), np.array(quota)), list[tuple[int, int]](), [0] * len(most)
    while more := [s for s in range(len(most)) if own[s] < most[s]]:
        s = min(more, key=lambda s: ((own[s] + 1) / quota[s], s))
        own[s] += 1
        plain.append((s, own[s]))
    assert list(zip(order.source.tolist(), order.depth.tolist(), strict=True)) == plain


def test_a_user_judges_once_what_others_taught_and_others_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    told, told_of, real = told_world(0, tastes=0.5), list[list[set[int]]](), judging._gains
    chose, choice = list[set[int]](), judging._choice

    def gains(learner: Learner, known: bool, learn: Bool, rows: Bool, k: int) -> dict[float, F64]:
        told_of.append([set(told.user[mask].tolist()) for mask in (learn, rows)])
        return real(learner, known, learn, rows, k)

    def chooses(user: I32, of: dict[float, F64], rows: Bool) -> float:
        chose.append(set(user[rows].tolist()))
        return choice(user, of, rows)

    monkeypatch.setattr(judging, "_gains", gains)
    monkeypatch.setattr(judging, "_choice", chooses)
    learner_of(told)
    assert len(told_of) == len(chose) == 2 * FOLDS
    for known, first in ((True, 0), (False, FOLDS)):
        own = set(told.user[told.known == known].tolist())
        if len(own) < LEAST:
            own = set(told.user.tolist())
        judges = list[int]()
        for (learned, others), choosing in zip(told_of[first : first + FOLDS], chose[first:], strict=False):
            assert not learned & others
            assert choosing < others
            judges += others - choosing
            assert learned | others == own
        assert sorted(judges) == sorted(own)
    assert len(np.unique(folds(told.user, 0))) == FOLDS
    assert (folds(told.user, 0) != folds(told.user, 1)).any()


def test_what_one_fold_wants_does_not_change_how_it_was_chosen_for() -> None:
    told = told_world(0, tastes=0.5)
    learner, fold = learner_of(told, old=ITEMS // 2), folds(told.user, 0)
    judge = np.repeat(fold == 2, np.diff(told.offsets))
    other = told._replace(item=np.where(judge, 0, told.item).astype(np.int32))
    changed = learner_of(other, old=ITEMS // 2)
    rows = told.known & (fold == 0), told.known & (fold == 1)
    of = [judging._gains(one, True, *rows, 100) for one in (learner, changed)]
    for new_weight in NEW_WEIGHTS:
        np.testing.assert_array_equal(of[0][new_weight], of[1][new_weight])


def test_few_users_without_history_are_served_by_what_others_wanted_of_sources_that_know_them() -> None:
    told = told_world(0, tastes=0.5, users=300)
    few = np.cumsum(~told.known) < LEAST
    told = told._replace(known=told.known | ~few)
    learner = learner_of(told)
    assert learner.judged[False].learned
    worth = learner.blends()[Kind(False, ANY)]
    assert isinstance(worth, Worth)
    assert worth.most[1] == 0  # of `near`, which knows nothing of them
    share = next(of for of in learner.shares(learner.blends(), 100).of if not of.known)
    assert first_worth(share)["popular"] > 1
    assert share.total == 100


def test_shares_that_find_no_more_or_fewer_new_items_give_way_to_the_configured_order() -> None:
    told = told_world(0, tastes=0.5)
    learner = learner_of(told)
    assert learner.judged[True].learned
    same = told._replace(lists=np.repeat(told.lists[:1], 4, axis=0))  # no source knows what another does not
    equal = learner_of(same)
    assert not equal.judged[True].learned
    assert {kind.surface for kind in equal.blends()} == {ANY}
    quotas = equal.shares(equal.blends(), 100).of[0].quotas
    assert max(quotas.values()) - min(quotas.values()) <= 1
    unseen = learner_of(told, old=ITEMS // 2).judged[True]
    assert unseen.new_items is not None
    assert learner.judged[True].new_items is None
    lost = Judged(True, 4.0, 100, (0.1, 0.05, 0.15), (-0.2, -0.3, -0.1))
    assert not lost.learned
    assert replace(lost, new_items=(-0.2, -0.5, 0.1)).learned
    assert replace(lost, new_items=None).learned
    assert not replace(lost, gain=None, new_items=None).learned
    assert not replace(lost, new_weight=NONE, new_items=(0.1, 0.0, 0.2)).learned
    kept = replace(learner, judged=learner.judged | {True: lost})
    assert {kind.known for kind in kept.blends() if kind.surface != ANY} <= {False}
    assert max(kept.shares(kept.blends(), 100).of[0].quotas.values()) < 60
    own = next(of for of in kept.shares(kept.blends(), None).of if of.known)  # as it is without shares
    assert (set(own.quotas.values()), own.total) == ({QUOTA}, 4 * QUOTA)
    turns = kept.configured(Kind(True, ANY))
    assert isinstance(turns, Order)
    assert turns.source[:4].tolist() == [0, 1, 2, 3]


def test_rows_that_are_left_out_teach_nothing() -> None:
    told = told_world(0, tastes=0.5)
    odd = told.user % 2 == 1
    other = told._replace(item=np.where(np.repeat(odd, np.diff(told.offsets)), 0, told.item).astype(np.int32))
    a = learner_of(told)
    b = replace(learner_of(other), judged=a.judged)
    assert a.shares(a.blends(~odd), 100, ~odd) == b.shares(b.blends(~odd), 100, ~odd)
    assert a.shares(a.blends(odd), 100, odd) != b.shares(b.blends(odd), 100, odd)


def shares_of(known: dict[str, int], new: dict[str, int]) -> Shares:
    judged = tuple(Judged(kind, 4.0, 10, (0.2, 0.1, 0.3), (0.0, -0.1, 0.1)) for kind in (True, False))
    totals = (sum(of.values()) for of in (known, new))
    return Shares((Share(True, ANY, 9, 9.5, known, next(totals)), Share(False, ANY, 9, 8.5, new, next(totals))), judged)


def test_shares_are_written_as_they_are_read(tmp_path: Path) -> None:
    shares = shares_of({"popular": 3}, {"popular": 8})
    shares = replace(shares, judged=(replace(shares.judged[0], new_items=None), shares.judged[1]))
    shares.write(tmp_path / "shares.json")
    assert Shares.read(tmp_path / "shares.json") == shares
    assert Shares.read(tmp_path / "none.json") is None
    assert [Judged.read(of) for of in shares.report()["judged"]] == list(shares.judged)
    assert "learned shares, a new item counts as 4 " in str(shares.judged[1])
    assert "of too few users to tell" in str(shares.judged[0])
    assert "as configured" in str(replace(shares.judged[0], new_weight=NONE))
    assert shares.report()["judged"][0] | {"learned": True} == shares.report()["judged"][0]


def test_shares_of_before_places_had_a_worth_are_served_as_they_were(tmp_path: Path) -> None:
    share = {"known": True, "surface": "", "users": 9, "candidates": 9.5, "quotas": {"popular": 3}, "total": 3}
    judged = {"known": True, "reserved": 0.25, "candidates": 10, "gain": [0.2, 0.1, 0.3], "new_items": None}
    found = {"of": [share, share | {"known": False}], "judged": [judged]}
    (tmp_path / "shares.json").write_text(json.dumps(found))
    shares = Shares.read(tmp_path / "shares.json")
    assert shares is not None
    assert shares.of[0] == Share(True, ANY, 9, 9.5, {"popular": 3}, 3)
    assert shares.judged == ()
    said = measured_lines({"shares": [judged, shares_of({}, {}).report()["judged"][0]]})
    assert len(said) == 1
    assert said[0].startswith("candidates of users with history: learned shares, a new item counts as 4 (")


def test_the_places_of_a_server_have_their_worth_and_each_source_its_floor(bundle: Bundle) -> None:
    shares = shares_of({"popular": 6, "cooccurrence": 9, "nearest": 30}, {"popular": 8})
    worth = {"popular": [[0, 2.0], [3, 1.0], [5, 0.0]], "cooccurrence": [[0, 0.0]], "nearest": [[0, 0.0]]}
    known = replace(shares.of[0], total=12, floor=2, worth=worth)
    pipeline = Pipeline(replace(bundle, shares=replace(shares, of=(known, shares.of[1]))))
    request = Request(3, bundle.state.end, state=bundle.state)
    places = pipeline.quotas(request)
    assert (places.quota, places.total, places.all) == ([6, 9, 20], 12, 12)
    assert places.worth is not None
    assert places.worth.shape == (3, 20)
    popular = np.interp(np.log1p(np.arange(6)), np.log1p([0, 3, 5]), [2.0, 1.0, 0.0])
    np.testing.assert_allclose(places.worth[0, :6] - np.where(np.arange(6) < 2, LEAD, 0), popular, atol=1e-3)
    assert (places.worth[1:] == np.where(np.arange(20) < 2, LEAD, 0)).all()
    answer = pipeline.recommend(request, 50)
    assert len(answer.item) == 12
    assert answer.reason.endswith(
        "; a request has 12 candidates, the best of what the sources propose ([sources] candidates)"
    )
    for bit in range(2):  # of those that its user has not met, each source has its first two at least
        assert (answer.sources >> bit & 1).sum() >= 2
    pipeline.close()


def test_what_is_pinned_is_a_candidate_though_nothing_was_learned_of_it(bundle: Bundle) -> None:
    worth = {name: [[0, 2.0], [5, 0.0]] for name in ("popular", "cooccurrence", "nearest")}
    shares = shares_of(dict.fromkeys(worth, 9), dict.fromkeys(worth, 9))
    shares = replace(shares, of=tuple(replace(of, total=6, floor=1, worth=worth) for of in shares.of))
    ids = bundle.state.catalog.item_ids
    items = f"item_id IN ({', '.join(repr(str(ids[k])) for k in range(8))})"
    pins = {"first": RuleSettings(items=items, pin=1), "one": RuleSettings(items=f"item_id = '{ids[9]}'", pin=2)}
    pipeline = Pipeline(replace(with_config(bundle, rules=pins), shares=shares))
    for user in (-1, *range(30)):
        answer = pipeline.recommend(Request(user, bundle.state.end, state=bundle.state), 9)
        seen = set(history(Request(user, bundle.state.end, state=bundle.state)).tolist())
        assert (9 in answer.item[:2]) == (9 not in seen)
    pipeline.close()


def test_surfaces_that_no_source_is_for_by_default_have_candidates_too() -> None:
    told = told_world(0, tastes=0.5)
    learner = learner_of(told)
    named = [SourceSettings(surfaces=["feed", "search"]) for _ in learner.settings]
    for of in (named, [SourceSettings(), *named[1:]]):
        shares = replace(learner, settings=of).shares(learner.blends(), None)
        plain = learner.shares(learner.blends(), None)
        for own, other in zip(shares.of, plain.of, strict=True):
            assert own.candidates == pytest.approx(other.candidates, rel=0.01)
            assert own.total > 100


def test_shares_are_judged_with_the_floor_that_they_are_served_with(monkeypatch: pytest.MonkeyPatch) -> None:
    told, asked = told_world(0, tastes=0.5), list[tuple[int, int]]()
    real = judging.blended

    def spied(*of: Any) -> I32:
        asked.append(of[3:])
        return real(*of)

    monkeypatch.setattr(judging, "blended", spied)
    learner = learner_of(told, budget=60)
    served = {of.known: (of.total, of.floor) for of in learner.shares(learner.blends(), 60).of if of.worth}
    assert served[True] == (60, 3)
    assert set(asked) == {(60, learner.floor(known, 60)) for known in (True, False)}


def test_a_server_gives_each_source_its_share(bundle: Bundle) -> None:
    shares = shares_of({"popular": 3, "cooccurrence": 2, "nearest": 30}, {"popular": 8})
    pipeline = Pipeline(replace(bundle, shares=shares))
    old, new = (Request(user, bundle.state.end, state=bundle.state) for user in (3, -1))
    assert pipeline.quotas(old) == Places([3, 2, 20], [20] * 3, 35)  # the TOML says 20 at most
    assert pipeline.quotas(new) == Places([8, 20, 20], [20] * 3, 8)
    assert 0 < (pipeline.recommend(old, 50).sources & 1 > 0).sum() <= 3  # of five times as many, some are seen
    assert (pipeline.recommend(new, 50).sources & 1 > 0).sum() == 8
    pipeline.close()
    assert Pipeline(bundle).quotas(old) == Places([20] * 3, [20] * 3, 60)


def test_places_that_sources_leave_of_a_new_user_go_to_those_that_know_something(bundle: Bundle) -> None:
    every = {name: of.model_copy(update={"quota": None}) for name, of in bundle.config.sources.limits.items()}
    open_config = bundle.config.model_copy(update={"sources": bundle.config.sources.model_copy(update=every)})
    shares = shares_of({"popular": 9}, {"popular": 9, "cooccurrence": 9, "nearest": 9})
    found = []
    for config in (bundle.config, open_config):
        pipeline = Pipeline(replace(bundle, config=config, shares=replace(shares, of=tuple(
            replace(of, total=27) for of in shares.of))))  # fmt: skip
        found.append(len(pipeline.recommend(Request(-1, bundle.state.end, state=bundle.state), 80).item))
        pipeline.close()
    assert found == [20, 27]  # `popular` alone says something: its quota at most, or all places


def test_quotas_by_surface_are_the_surfaces(bundle: Bundle) -> None:
    settings = SourceSettings(quota={"feed": 5})
    assert [settings.most(surface) for surface in ("feed", "", "search")] == [5, None, None]


@pytest.mark.parametrize("users", [1, 2, 3, 7])
def test_of_too_little_nothing_is_learned_and_shares_are_there_all_the_same(users: int) -> None:
    told = told_world(0, tastes=0.5, users=users)
    silent, unwanted = told._replace(lists=np.full_like(told.lists, -1)), told.only(np.zeros(ITEMS, bool))
    for of in (told, silent, unwanted, told._replace(known=np.zeros(users, bool))):
        learner = learner_of(of)
        shares = learner.shares(learner.blends(), None)
        assert {share.known for share in shares.of} == {True, False}
        assert not any(judged.learned for judged in shares.judged)
        assert all(set(share.quotas.values()) == {QUOTA} for share in shares.of)
