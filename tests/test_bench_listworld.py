"""The generated world for lists: its truth is what it says, and its log is neither random nor perfect."""

import tomllib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from listtruth import DAYS, NEVER, START, T1, T2, WANTED, ListWorld, future, taste_of
from listworld import PER_REQUEST, make_list_world, world_case, write_list_world
from world import GRADES

from features.schema import DAY, HOUR, I32, SECOND
from ranker.cli.main import cli
from ranker.config import load_config
from ranker.training.prepared import prepare

SMALL = {"n_users": 400, "n_items": 300, "per_user": 5.0}


@pytest.fixture(scope="module")
def lists_world() -> ListWorld:
    return make_list_world(3, **SMALL)  # type: ignore[arg-type]


def ranked(world: ListWorld, score: np.ndarray) -> I32:
    """The ten items of highest score for each user of `future` that are born, and new to the user."""
    users, when = future(world)
    every = np.arange(len(world.items.ids), dtype=np.int32)
    barred = world.met(users[:, None], every, when[:, None]) | (world.items.born > when[:, None])
    return np.argsort(np.where(barred, np.inf, -score), axis=1)[:, :10].astype(np.int32)


def test_the_grade_that_is_wanted_is_the_default_one() -> None:
    assert GRADES[WANTED] == "listen"
    assert -(-(len(GRADES) - 1) // 2) == WANTED


def test_the_same_seed_gives_the_same_world(lists_world: ListWorld) -> None:
    again = make_list_world(3, **SMALL)  # type: ignore[arg-type]
    other = make_list_world(4, **SMALL)  # type: ignore[arg-type]
    for name in ("user", "item", "ts", "grade", "request", "feedback"):
        np.testing.assert_array_equal(getattr(lists_world.log, name), getattr(again.log, name))
    assert not np.array_equal(lists_world.log.item[:1000], other.log.item[:1000])


def test_a_list_shows_born_items_that_are_new_to_the_user(lists_world: ListWorld) -> None:
    log = lists_world.log
    assert (np.diff(log.ts) >= 0).all()
    assert log.ts[0] >= START
    assert log.ts[-1] < START + DAYS * DAY
    assert (lists_world.items.born[log.item] <= log.ts).all()
    assert (log.ts >= lists_world.users.joined[log.user]).all()
    assert len(np.unique(log.user.astype(np.int64) * len(lists_world.items.ids) + log.item)) == len(log)
    size, place = np.bincount(log.request), lists_world.place
    assert size.max() == PER_REQUEST
    assert place.min() == 1
    assert (np.bincount(log.request, place) == size * (size + 1) / 2).all()


def test_a_world_has_users_and_items_that_its_past_does_not_know(lists_world: ListWorld) -> None:
    past, (users, when) = lists_world.log.until(T2), future(lists_world)
    assert (when >= T2).all()
    assert 0.02 < 1 - np.isin(users, past.user).mean() < 0.4
    later = lists_world.log.item[len(past) :]
    assert 0.02 < 1 - np.isin(later, past.item).mean() < 0.4


def test_grades_follow_the_chances_and_the_places(lists_world: ListWorld) -> None:
    log = lists_world.log
    chance, wanted = lists_world.chance(log.user, log.item, log.ts), log.grade >= WANTED
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
        rows = (lists_world.place == 1) & (chance >= low) & (chance < high)  # the first place is always looked at
        error = np.sqrt((chance * (1 - chance))[rows].mean() / rows.sum())
        assert abs(wanted[rows].mean() - chance[rows].mean()) < 4 * error
    last = lists_world.place == PER_REQUEST
    assert wanted[last].mean() < 0.8 * chance[last].mean()
    play = log.feedback[:, 0]
    np.testing.assert_array_equal((play >= 0.3).astype(int) + (play >= 0.9), log.grade)


def test_a_reward_is_of_its_time(lists_world: ListWorld) -> None:
    log, items = lists_world.log, lists_world.items
    user, item, ts = log.user[500], log.item[500], int(log.ts[500])
    assert lists_world.reward(user, item, ts) == lists_world.chance(user, item, ts) > 0  # the event itself is not past
    assert lists_world.reward(user, item, ts + 1) == 0
    late = np.int32(items.born.argmax())
    assert lists_world.reward(user, late, int(items.born[late]) - 1) == 0
    fresh = lists_world.chance(user, late, int(items.born[late]))
    assert fresh > 0
    assert lists_world.reward(user, np.int32(-1), ts) == 0
    turned = np.flatnonzero(lists_world.users.turn < NEVER)[0]
    turn = lists_world.users.turn[turned]
    before, then = (taste_of(lists_world.users, turned, t) for t in (turn - 1, turn))
    np.testing.assert_array_equal(before, lists_world.users.taste[0, turned])
    np.testing.assert_array_equal(then, lists_world.users.taste[1, turned])


def test_chance_is_the_formula_of_the_docstring(lists_world: ListWorld) -> None:
    users, items = lists_world.users, lists_world.items
    rng, n = np.random.default_rng(0), 50
    for user, item in zip(rng.integers(0, 400, n).tolist(), rng.integers(0, 300, n).tolist(), strict=True):
        when = int(max(items.born[item], START)) + 5 * HOUR
        taste = users.taste[1 if when >= users.turn[user] else 0, user]
        u = users.mood[user] + sum(a * b for a, b in zip(taste, items.vector[item], strict=True)) + items.quality[item]
        u += 1.2 * 0.5 ** ((when - items.born[item]) / DAY / items.fades[item])
        u += np.interp((when - START) / DAY, np.arange(DAYS + 1), lists_world.demand[items.genre[item]])
        got = lists_world.chance(np.int32(user), np.int32(item), when)
        np.testing.assert_allclose(got, 1 / (1 + np.exp(-u)), rtol=1e-9)


def test_the_worth_of_a_list_counts_places_and_forgives_no_gap(lists_world: ListWorld) -> None:
    users, when = future(lists_world)
    best = lists_world.best_lists(users, when)
    reward = lists_world.reward(users[:, None], best, when[:, None])
    assert (np.diff(reward, axis=1) <= 0).all()
    assert lists_world.true_reward(best, users, when, k=1) == pytest.approx(reward[:, 0])
    discount = 1 / np.log2(np.arange(2, 12))
    half = np.where(np.arange(10) < 5, best, -1)
    expected = reward[:, :5] @ discount[:5] / discount.sum()
    for short in (half, best[:, :5]):
        assert lists_world.true_reward(short, users, when) == pytest.approx(expected)
    long = np.concatenate([best, best], axis=1)
    assert lists_world.true_reward(long, users, when) == pytest.approx(lists_world.true_reward(best, users, when))
    twice = np.repeat(best[:, :1], 10, axis=1)
    assert lists_world.true_reward(twice, users, when) == pytest.approx(reward[:, 0] / discount.sum())
    assert (lists_world.true_reward(best[:, :0], users, when) == 0).all()
    backwards = lists_world.true_reward(best[:, ::-1], users, when)
    assert (backwards < lists_world.true_reward(best, users, when)).all()


def test_no_list_beats_the_best_and_the_log_is_neither_random_nor_perfect(lists_world: ListWorld) -> None:
    users, when = future(lists_world)
    past = lists_world.log.until(T2)
    wanted = past.item[past.grade >= WANTED]
    weight = 0.5 ** ((T2 - past.ts[past.grade >= WANTED]) / (3 * DAY))
    popular = np.bincount(wanted, weight, minlength=300)
    taste = taste_of(lists_world.users, users, when) @ lists_world.items.vector.T
    lists = {
        "random": ranked(lists_world, np.random.default_rng(0).random((len(users), 300))),
        "popular": ranked(lists_world, np.tile(popular, (len(users), 1))),
        "taste": ranked(lists_world, taste),
        "best": lists_world.best_lists(users, when),
        "logged": np.full((len(users), 10), -1, np.int32),
    }
    log, first = lists_world.log, np.searchsorted(lists_world.log.ts, T2)
    row = np.searchsorted(users, log.user[first:])
    shown = log.ts[first:] < when[row] + PER_REQUEST * 10 * SECOND
    lists["logged"][row[shown], lists_world.place[first:][shown] - 1] = log.item[first:][shown]
    worth = {name: lists_world.true_reward(found, users, when) for name, found in lists.items()}
    for found in worth.values():
        assert (found <= worth["best"] + 1e-12).all()
    mean = {name: found.mean() for name, found in worth.items()}
    assert 1.2 * mean["random"] < mean["popular"] < 0.8 * mean["taste"] < 0.8 * mean["best"]
    assert 1.2 * mean["random"] < mean["logged"] < 0.7 * mean["best"]


def test_random_traffic_shows_all_items_alike_and_positives_only_hide_what_was_skipped() -> None:
    random = make_list_world(3, **SMALL, uniform=1.0)  # type: ignore[arg-type]
    assert random.uniform.all()
    early = random.items.born < START
    shown = np.bincount(random.log.item, minlength=300)[early]
    chosen = np.bincount(make_list_world(3, **SMALL).log.item, minlength=300)[early]  # type: ignore[arg-type]
    assert shown.std() / shown.mean() < 0.2
    assert chosen.std() / chosen.mean() > 0.4
    some = make_list_world(3, **SMALL, uniform=0.1)  # type: ignore[arg-type]
    lists = np.unique(some.log.request, return_index=True)[1]
    assert 0.07 < some.uniform[lists].mean() < 0.13
    wanted = make_list_world(3, **SMALL, positives_only=True)  # type: ignore[arg-type]
    whole = make_list_world(3, **SMALL)  # type: ignore[arg-type]
    assert wanted.log.grade.min() == WANTED
    assert len(wanted.log) == len(wanted.place) == (whole.log.grade >= WANTED).sum()
    skipped = whole.log.select(whole.log.grade < WANTED)
    assert not wanted.met(skipped.user, skipped.item, NEVER).any()


def test_the_written_world_is_the_one_in_memory(lists_world: ListWorld, tmp_path: Path) -> None:
    config = load_config(write_list_world(tmp_path, lists_world))
    prepared = prepare(config)
    log, ours = prepared.log, lists_world.log
    np.testing.assert_array_equal(log.ts, ours.ts)
    np.testing.assert_array_equal(log.grade, ours.grade)
    catalog = prepared.catalog
    np.testing.assert_array_equal(lists_world.items_of(catalog.item_ids, log.item), ours.item)
    np.testing.assert_array_equal(lists_world.users_of(catalog.user_ids)[log.user], ours.user)
    assert lists_world.items_of(catalog.item_ids, np.array([[-1]], np.int32)) == -1
    with pytest.raises(ValueError, match="ids of the world"):
        lists_world.users_of(np.array([1000, 1001]))
    assert (prepared.split.t1, prepared.split.t2) == (T1, T2)
    assert [a.name for a in catalog.item_attributes] == ["genre", "author", "length"]


@pytest.mark.parametrize(("options", "more"), [({}, ""), ({"positives_only": True}, "[pairing]\nnegatives = 2")])
def test_a_ranker_is_trained_on_it(options: dict[str, bool], more: str, tmp_path: Path) -> None:
    world = make_list_world(5, **SMALL, **options)  # type: ignore[arg-type]
    toml = write_list_world(tmp_path, world, more=more + "\n[booster]\ntrees = 5")
    done = CliRunner().invoke(cli, ["train", str(toml), "--out", str(tmp_path / "bundle")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "bundle" / "manifest.json").exists()


def test_the_case_of_the_benchmark_is_written_whole(tmp_path: Path) -> None:
    toml, world = world_case(tmp_path / "case", 0)
    assert tomllib.loads(toml.read_text())["ranker"]["plugins"] == ["two_tower"]
    rows = pq.ParquetFile(tmp_path / "case" / "events.parquet").metadata.num_rows
    assert rows == len(world.log) > 200_000
