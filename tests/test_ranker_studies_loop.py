"""The study `loop`: its arms, its users, its server, and what the report makes of them."""

import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from served import pairlift

from features.errors import PairliftError
from ranker.config import load_config
from ranker.recording.batch import Batch
from ranker.studies.loop.agreement import Agreement, agreement
from ranker.studies.loop.arms import Arm, arms_of, toml_text, with_log
from ranker.studies.loop.bounds import Bound, bounds_of
from ranker.studies.loop.report import as_csv, as_markdown, as_svg, loop_report
from ranker.studies.loop.run import LISTED, Life, Lived, in_rounds
from ranker.studies.loop.service import Received, Service
from ranker.studies.simulate import LIST, Lives
from ranker.studies.world import FIRST_ITEM, World, born_of, make_world


@pytest.fixture(scope="module")
def born() -> World:
    return born_of(np.random.default_rng(1), 0.01)


def lives(world: World) -> Lives:
    return Lives(world.catalogue.items, world.users, world.visits, world.after, 1)


def test_each_arm_lacks_one_thing_and_its_toml_can_be_read(tmp_path: Path) -> None:
    make_world(tmp_path / "world", 0.01)
    toml = tomllib.loads((tmp_path / "world" / "pairlift.toml").read_text())
    arms = {arm.name: arm for arm in arms_of(toml, "two_tower")}
    whole = arms["all of it"].toml
    assert "exploration" in whole
    assert "exploration" not in arms["without exploration"].toml
    assert arms["without two_tower"].toml["ranker"]["plugins"] == []
    assert arms["without re-tuning"].toml["booster"]["retune_minutes"] == 0
    assert [arm.name for arm in arms.values() if not arm.retrained] == ["never trained again"]
    assert [arm.name for arm in arms.values() if arm.by_rank] == ["in the order of Rank"]
    for arm in arms.values():
        for own in (arm.toml, with_log(arm.toml)):
            (tmp_path / "pairlift.toml").write_text(toml_text(own))
            assert tomllib.loads(toml_text(own)) == own
            load_config(tmp_path / "pairlift.toml")
    with pytest.raises(PairliftError, match=r"'als' among \[ranker\] plugins was expected, found \['two_tower'\]"):
        arms_of(toml, "als")


def test_a_log_that_is_no_world_is_refused(tmp_path: Path) -> None:
    make_world(tmp_path / "world", 0.01)
    (tmp_path / "world" / "world.json").unlink()
    code, said = pairlift("study", tmp_path / "world" / "pairlift.toml", "--study", "loop", "--out", tmp_path / "out")
    assert code == 2
    assert "was expected to be a folder of `pairlift world`, with world.json" in said


def test_rounds_keep_the_order_and_have_no_user_twice() -> None:
    user, requests = np.array([3, 1, 3, 3, 2, 1]), np.array([5, 0, 1, 2, 3, 4])
    rounds = [one.tolist() for one in in_rounds(requests, user)]
    assert rounds == [[5, 0], [1, 2], [3, 4]]  # users 1 and 3, 1 and 3, 3 and 2
    assert list(in_rounds(requests[:0], user)) == []


def test_the_same_lists_bring_the_same_and_another_list_another(born: World) -> None:
    """What a user meets follows from what was shown before, and from nothing else that differs between two runs."""
    user = born.visits.user[0]
    requests = np.flatnonzero(born.visits.user == user)[:6]
    liked = np.argsort(-born.catalogue.items.vector @ born.users.taste[user])[:LIST].astype(np.int32)
    disliked = np.argsort(born.catalogue.items.vector @ born.users.taste[user])[:LIST].astype(np.int32)
    runs = []
    for shown in (None, None, liked, disliked):
        own = lives(born)
        runs.append([own.meet(int(request), shown) for request in requests])
    for one, other in zip(runs[0], runs[1], strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    worth = [np.mean([expected[:LIST].mean() for _, _, expected in run]) for run in runs]
    assert worth[2] > worth[0] > worth[3]
    assert all((item[:LIST] == liked).all() for item, _, _ in runs[2])


def test_what_items_are_worth_is_what_showing_them_gives_and_changes_nothing(born: World) -> None:
    requests = np.flatnonzero(born.visits.user == born.visits.user[0])[:5]
    asked, other = lives(born), lives(born)
    items = np.arange(40, dtype=np.int32)
    for request in requests.tolist():
        worth = asked.worth(request, items)
        shown = items[np.argsort(-worth)[:LIST]]
        met, same = asked.meet(request, shown), other.meet(request, shown)
        np.testing.assert_allclose(worth[shown], met[2][:LIST])
        for a, b in zip(met, same, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_bounds_are_in_their_order_and_a_random_list_is_of_born_items(tmp_path: Path) -> None:
    make_world(tmp_path / "world", 0.01)
    found = bounds_of(load_config(tmp_path / "world" / "pairlift.toml"), 2)
    best, own, random = (of.reward.sum() / of.lists.sum() for of in found.values())
    assert 2 > best > own > random > 0
    for of in found.values():
        np.testing.assert_array_equal(of.lists, found["random"].lists)


class Resent(Service):
    """A service that all events are sent to again before it is stopped."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.again = list[Received]()
        self._batches = list[Batch]()

    def record(self, batch: Batch) -> Received:
        self._batches.append(batch)
        return super().record(batch)

    def stop(self) -> None:
        self.again = [super(Resent, self).record(batch) for batch in self._batches]
        super().stop()


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> tuple[Life, Lived]:
    """Two days of a service without towers and re-tuning, with the kill in the second one."""
    folder = tmp_path_factory.mktemp("loop")
    make_world(folder / "world", 0.01)
    toml = tomllib.loads((folder / "world" / "pairlift.toml").read_text())
    toml["booster"] = {"trees": 20, "retune_minutes": 0}
    arm = {arm.name: arm for arm in arms_of(toml, "two_tower")}["without two_tower"]
    life = Life(0.01, 0, arm, folder / "running")
    life._service = Resent(folder / "running")
    return life, life.lived(2)


def test_a_life_has_what_was_served_and_what_was_recorded_agree(life: tuple[Life, Lived]) -> None:
    lived = life[1]
    assert lived.lists.sum(axis=1).tolist() == [45, 27]
    assert lived.sent == lived.recorded + lived.duplicates > 0
    assert lived.refused == []
    assert 0.3 < lived.reward.sum() / lived.lists.sum() < 1.5
    compared = lived.compared
    assert compared.requests > 25  # of 38 rounds, but for those of the last file of the log
    assert compared.scores == compared.requests * LIST
    assert compared.values > compared.scores
    assert (compared.differing, compared.other_scores) == ({}, 0)


def test_a_value_and_a_score_that_are_not_the_records_are_found(life: tuple[Life, Lived], tmp_path: Path) -> None:
    own, lived = life
    config, bundles, features, replies = own.record()
    for path in features.glob("part-*.parquet"):
        table = pq.read_table(path)
        at = table.column_names.index("hour")
        pq.write_table(
            table.set_column(at, "hour", pc.add(table["hour"], pa.scalar(1, pa.float32()))), tmp_path / path.name
        )
    name, reply = next(iter(replies.items()))
    worse = replace(reply, items=(replace(reply.items[0], score=reply.items[0].score + 0.1), *reply.items[1:]))
    assert agreement(config, bundles, tmp_path, replies).differing == {"hour": 1.0}
    found = agreement(config, bundles, features, replies | {name: worse})
    assert found == lived.compared._replace(other_scores=1)


class Ordering:
    """A service whose `Rank` turns its lists around."""

    def recommend(self, user: int, k: int, as_of: int, device: str, request_id: str) -> SimpleNamespace:
        items = tuple(SimpleNamespace(item=FIRST_ITEM + 3 * place) for place in range(k))
        return SimpleNamespace(items=items, degraded=())

    def by_rank(self, user: int, listed: SimpleNamespace, as_of: int, device: str) -> SimpleNamespace:
        return SimpleNamespace(items=listed.items[::-1])


@pytest.mark.parametrize(("by_rank", "first"), [(False, 0), (True, LISTED - 1)])
def test_users_are_shown_the_list_or_what_rank_puts_first_of_a_long_one(
    tmp_path: Path, by_rank: bool, first: int
) -> None:
    life = Life(0.01, 1, Arm("a", {}, by_rank=by_rank), tmp_path)
    life._service = Ordering()  # type: ignore[assignment]
    users = np.zeros(200), np.zeros(200)
    item = life._met(0, *users).item[:LIST]
    assert abs(item - first).tolist() == list(range(LIST))
    assert life._logged == (LISTED if by_rank else LIST)


def test_an_empty_list_brings_only_what_the_user_looks_for(born: World) -> None:
    rest = int(born.visits.first[1] - born.visits.first[0]) - LIST
    item, grade, expected = lives(born).meet(0, np.empty(0, np.int32))
    assert len(item) == len(grade) == len(expected) == rest


def test_a_killed_server_has_what_it_acknowledged_and_takes_a_resend_once(life: tuple[Life, Lived]) -> None:
    service = life[0]._service
    assert isinstance(service, Resent)
    assert sum(one.duplicates for one in service.again) == life[1].sent
    assert not any(one.recorded for one in service.again)


def lived(rng: np.random.Generator, plus: float, differing: dict[str, float]) -> Lived:
    compared = Agreement(10, 400, differing, 80, 3 * bool(differing))
    lists = rng.integers(0, 4, (3, 50)).astype(float)
    reward = lists * (0.5 + plus + 0.1 * rng.random((3, 50)))
    counts = {"sent": 100, "recorded": 96, "duplicates": 4, "degraded": 0, "refused": []}
    return Lived(reward=reward, lists=lists, compared=compared, **counts)


def test_the_report_compares_with_the_first_arm() -> None:
    first = lived(np.random.default_rng(0), 0.2, {})
    less = lived(np.random.default_rng(0), 0.0, {"hour": 0.25})
    bounds = {"best by the truth": Bound(2 * first.lists, first.lists)}
    report = loop_report("world", "two_tower", {"all of it": first, "without exploration": less}, bounds)
    report |= {"command": "pairlift study", "date": "2026-11-27", "minutes": 1.0}
    a, b = report["arms"]
    assert a["over_first"] is None
    assert a["reward"] == pytest.approx(first.reward.sum() / first.lists.sum())
    assert b["over_first"]["relative_uplift"] == pytest.approx(less.reward.sum() / first.reward.sum() - 1)
    assert b["over_first"]["ci95"][1] < 0
    assert report["events_lost"] == 0
    assert report["values_compared"] == 800
    assert report["bounds"][0]["reward"] == 2
    assert (
        "800 values of 20 requests, of which some differ (hour 25 %); 160 scores of their items, 3 of which differ"
        in (as_markdown(report))
    )
    assert "all equal up to rounding" in as_markdown(report | {"values_differing": {}})
    assert "Nothing could be" not in as_markdown(report)
    a["requests_compared"] = 0
    assert "Nothing could be compared of: all of it." in as_markdown(report)
    assert "too late" not in as_markdown(report)
    assert "too late for 5 of all lists" in as_markdown(report | {"lists_degraded": 5})
    assert len(as_csv(report).splitlines()) == 1 + 3 * 3
    assert "without exploration" in as_markdown(report)
    assert "without exploration" in as_svg(report)
