"""A request reads one state, the one that it carries, also where the state of now moves on while it is under way."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from served import batch
from world import World

from features.newcomers import Newcomers
from features.schema import I32, SECOND, EventLog, empty_log
from features.state.live import Live
from features.state.store import State
from ranker.bundle import Bundle
from ranker.candidates.source import Proposal
from ranker.client import Client, Reply
from ranker.pipeline import Pipeline
from ranker.recording.numbering import with_room
from ranker.request import Answer, Request
from ranker.server import RecordTo, Server
from ranker.settings import SourceSettings

USER = 3
ITEMS = np.arange(20, dtype=np.int32)
PATIENT = SourceSettings.model_construct(quota=80, deadline=20 * SECOND)


class Moving:
    """A source of all items that first has the state move on, as often as it is asked."""

    name = "moving"

    def __init__(self, move: Callable[[], None], items: I32) -> None:
        self.move, self.items = move, items

    def propose(self, request: Request, limit: int) -> Proposal:
        self.move()
        return Proposal(self.items)


class MovingPlugin:
    """The bundle's plugin; before it gives its values, the state moves on."""

    def __init__(self, move: Callable[[], None], plugin: object) -> None:
        self.move, self.plugin, self.columns = move, plugin, plugin.columns  # type: ignore[attr-defined]

    def values(self, requests: object, histories: object) -> object:
        self.move()
        return self.plugin.values(requests, histories)  # type: ignore[attr-defined]


@pytest.fixture
def live(bundle: Bundle) -> Iterator[Live]:
    live = Live(with_room(bundle.state, empty_log(("play",)), 5, 5), ("play",), every=0.001)
    yield live
    live.close()


def mover(live: Live) -> Callable[[], None]:
    """What records that USER liked all of ITEMS and one new item, an hour after all that is known."""

    def move() -> None:
        state = live.state
        item = np.append(ITEMS, np.int32(state.catalog.n_items))
        n = len(item)
        one = empty_log(("play",), n)
        events: EventLog = replace(
            one,
            user=np.full(n, USER, np.int32),
            item=item,
            ts=state.end + 3600 * SECOND + np.arange(n),
            grade=np.full(n, 2, np.int8),
            feedback=np.ones((n, 1), np.float32),
        )
        live.add(events, live.frame + 1, state.catalog.new._replace(items=Newcomers.of([-5], 5)))
        live.drain(20)
        assert live.state.end > state.end

    return move


def with_new_item_first(bundle: Bundle) -> I32:
    return np.roll(np.arange(bundle.state.catalog.n_items + 1, dtype=np.int32), 1)


def same(one: Answer, other: Answer) -> None:
    assert one.item.tolist() == other.item.tolist()
    assert one.score.tolist() == other.score.tolist()
    assert one.values is not None
    assert other.values is not None
    assert np.array_equal(one.values, other.values, equal_nan=True)
    assert one.degraded == other.degraded == ()


def asked(state: State, later: int = 0) -> Request:
    return Request(USER, state.end + later, state=state, keep_values=True)


# As of a time behind the new events: no `as_of` hides them, only the state does.
LATER = 7200 * SECOND


def test_a_list_is_of_the_state_that_the_request_began_with(bundle: Bundle, live: Live) -> None:
    every = with_new_item_first(bundle)
    moving = Pipeline(bundle, [(Moving(mover(live), every), PATIENT)], lambda: live.state)
    still = Pipeline(bundle, [(Moving(lambda: None, every), PATIENT)])
    began = moving.state
    try:
        answer = moving.recommend(asked(began, LATER), 80)
        same(answer, still.recommend(asked(began, LATER), 80))
        assert began.catalog.n_items not in answer.item  # not known yet
        unseen = np.setdiff1d(ITEMS, _items_of(began))
        assert len(unseen)
        assert set(unseen.tolist()) <= set(answer.item.tolist())  # not seen yet
        assert moving.state.end > began.end
        after = moving.recommend(asked(moving.state, LATER), 80)
        assert not set(unseen.tolist()) & set(after.item.tolist())
        assert began.catalog.n_items in _items_of(moving.state)
    finally:
        moving.close()
        still.close()


def _items_of(state: State) -> list[int]:
    """Return what USER's history has."""
    start, stop = state.histories.before(np.array([USER], np.int32), np.array([2**62]))
    items: list[int] = state.histories.item[int(start[0]) : int(stop[0])].tolist()
    return items


def test_counters_and_histories_are_of_the_state_that_the_request_began_with(bundle: Bundle, live: Live) -> None:
    plugins = {name: MovingPlugin(mover(live), plugin) for name, plugin in bundle.plugins.items()}
    moving = Pipeline(replace(bundle, plugins=plugins), [], lambda: live.state)  # type: ignore[arg-type]
    still = Pipeline(bundle, [])
    began = moving.state
    try:
        same(moving.rank(asked(began, LATER), ITEMS), still.rank(asked(began, LATER), ITEMS))
        ended = moving.state
        assert ended.end > began.end
        one, other = still.rank(asked(began, LATER), ITEMS), still.rank(asked(ended, LATER), ITEMS)
        assert one.values is not None
        assert other.values is not None
        assert not np.array_equal(one.values, other.values, equal_nan=True)  # the test would see another state
    finally:
        moving.close()
        still.close()


def test_the_answer_over_the_wire_is_of_the_state_that_the_request_began_with(
    bundle: Bundle, world: World, tmp_path: Path
) -> None:
    """ids, filters, snapshot_time and the as_of that a clock gives; a user and an item that come while it runs."""
    user, new = int(world.catalog.user_ids[USER]), [-5, -6]
    every = with_new_item_first(bundle)
    server = Server(bundle, clock="snapshot", record_to=RecordTo(tmp_path / "log"))
    recorder = server.recorder
    assert recorder is not None
    number = 0

    def move() -> None:
        nonlocal number
        first = server.pipeline.state.end
        ids = [int(world.catalog.item_ids[k]) for k in ITEMS] + new[1:]
        for who in (user, new[0]):
            n = len(ids)
            recorder.record(batch(list(range(number, number + n)), [who] * n, ids, [first + SECOND] * n, [1.0] * n))
            number += n
        server.follower.drain(20)

    # In the place of a source, so that it has a lane.
    popular, settings = server.pipeline.sources[0]
    source = Moving(move, every)
    source.name = popular.name
    server.pipeline.sources[0] = (source, settings)
    began = server.pipeline.state
    server.start()
    try:
        with Client(server.address, timeout=60) as client:
            known = client.recommend(user, 50)
            assert known.snapshot_time == known.as_of == began.end < server.pipeline.state.end
            assert new[1] not in _items(known)
            assert known.degraded == ()
            ids = {int(world.catalog.item_ids[k]) for k in ITEMS}
            assert ids & set(_items(known))
            source.move = lambda: None
            again = client.recommend(user, 50)
            assert again.snapshot_time == again.as_of == server.pipeline.state.end
            assert not ids & set(_items(again))
            ranked = client.rank(new[0], [new[1], *sorted(ids)])
            assert ranked.snapshot_time == server.pipeline.state.end
    finally:
        server.stop(0)


def _items(reply: Reply) -> list[int | str]:
    return [one.item for one in reply.items]


def test_what_is_told_of_a_state_is_told_of_one(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that is another whenever one looks: all of an answer is of one look."""
    server = Server(bundle, clock="snapshot")
    states = [bundle.state]

    def moves() -> State:
        states.append(replace(states[-1], end=states[-1].end + SECOND))
        return states[-1]

    monkeypatch.setattr(server.pipeline, "_state", moves)
    server.start()
    try:
        with Client(server.address, timeout=20) as client:
            for reply in (client.recommend(None, 3), client.rank(None, [10])):
                assert reply.snapshot_time == reply.as_of > bundle.state.end
                assert reply.bundle_version == bundle.version
            result = client.describe()
            assert result.snapshot_time == result.clock > bundle.state.end
    finally:
        server.stop(0)
    assert len(states) == 4  # each of the three calls looked once


def test_the_version_is_of_the_bundle_that_answered(bundle: Bundle) -> None:
    for version in ("one", "two"):
        pipeline = Pipeline(replace(bundle, version=version), [])
        assert pipeline.rank(asked(bundle.state), ITEMS).bundle_version == version
        pipeline.close()
