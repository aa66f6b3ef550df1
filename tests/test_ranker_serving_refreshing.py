"""States that a running server computes ahead: used by its answers, kept to the log, and one refresh at a time."""

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from served import batch, pairlift, recording, serving, user_id, within
from world import bundle_of

from features.baselines import ALS
from features.errors import PairliftError
from features.schema import DAY
from features.state.histories import ALL
from features.state.kept import KeptStates, key_of
from features.state.refreshed import RefreshedStates, refreshed
from ranker.administrator import Admin
from ranker.client import Client, ServerError
from ranker.serving.deployment import Deployment
from ranker.serving.refreshing import Refresher
from ranker.serving.rollout.deployer import BusyError
from ranker.serving.rollout.store import RefreshAsked, Store

ROOM = RefreshAsked(0, 2**24)


class AheadALS(ALS):
    """ALS whose users are folded in ahead of requests too; `.calls` has who was folded in, `.wait` comes before it."""

    refreshed: RefreshedStates | None = None

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.calls: list[slice] = []
        self.wait: Callable[[], None] = lambda: None

    def _one_vector(self, histories, user, start, stop):
        key = key_of(histories, user, start, stop)
        found = None if self.refreshed is None else self.refreshed.find(histories, key)
        return super()._one_vector(histories, user, start, stop) if found is None else found

    def _fold_in(self, histories, rows):
        self.calls.append(rows)
        self.wait()
        return super()._fold_in(histories, rows)

    def refresh(self, ahead):
        def compute(histories, user, start, stop):
            return np.stack([self._fold_in(histories, slice(a, b)) for a, b in zip(start, stop, strict=True)])

        cut, width = ahead.as_of - self.settings.lag, self.settings.factors
        self.refreshed = refreshed(ahead, cut, ALL, width, compute, self.refreshed)
        return self.refreshed


@pytest.fixture
def als(parts):
    """The world's ALS, a day late."""
    trained = parts.plugins["als"]
    plugin = AheadALS(**trained.settings.model_dump() | {"lag": "1d"})
    plugin.best_grade = trained.best_grade
    plugin._take(trained.item_vectors)
    return plugin


@pytest.fixture
def ahead(parts, als):
    """A bundle whose plugin computes ahead."""
    return bundle_of(parts._replace(plugins={"als": als}))


def scores(client, world, users=range(12), as_of=None):
    items = world.catalog.item_ids[:30].tolist()
    return np.array([[one.score for one in client.rank(user_id(world, u), items, as_of=as_of).items] for u in users])


def test_answers_are_of_the_refreshed_states_until_the_log_says_otherwise(ahead, als, world, tmp_path):
    with recording(ahead, tmp_path / "log") as (server, client):
        before = scores(client, world)
        als.kept = KeptStates()
        code, said = pairlift("refresh", "--to", server.address, "--memory", 0.01, "--json")
        assert code == 0, said
        (made,) = json.loads(said[said.index("{") :])["plugins"]
        end = ahead.state.end
        visible = len(np.unique(world.log.user[world.log.ts < end - DAY]))
        assert made["plugin"] == "als"
        assert made["bundle_version"] == "world"
        assert made["users"] == made["computed"] == visible
        assert made["as_of"] == end
        assert 0 < made["bytes"] < 0.01 * 2**30
        del als.calls[:]
        np.testing.assert_array_equal(scores(client, world), before)
        assert not als.calls
        # The world's snapshot time moves with the events: as of then, what they say is not a day old.
        late, ids = user_id(world, 3), world.catalog.item_ids
        list(client.record([batch([1], [late], ids[:1], [end])]))
        assert within(5, lambda: client.describe().snapshot_time > end)
        scores(client, world, as_of=end)
        assert not als.calls
        list(client.record([batch([2], [late], ids[:1], [end - 2 * DAY])]))
        assert within(5, lambda: server.follower.position.served == 2)
        scores(client, world, as_of=end)
        assert len(als.calls) == 1
        code, said = pairlift("refresh", "--to", server.address)
        assert code == 0, said
        assert f"als of bundle world: states of {visible} users as of " in said
        assert ", 1 of them computed now, " in said
        del als.calls[:]
        scores(client, world, users=[3], as_of=end)
        assert not als.calls


def test_what_cannot_be_refreshed_is_a_sentence(ahead, bundle):
    with serving(bundle, clock="snapshot") as server:
        code, said = pairlift("refresh", "--to", server.address)
        assert code == 2
        assert "no plugin of the bundles that answer computes anything ahead" in said
    with serving(ahead, clock="snapshot") as server:
        code, said = pairlift("refresh", "--to", server.address, "--memory", 1e-9)
        assert code == 2
        assert "bytes are too few for a state" in said
        server._refresher._alone.acquire()
        with Client(server.address) as client, pytest.raises(ServerError, match="another refresh") as error:
            Admin(client).refresh(0, 2**20)
        assert error.value.code == "ABORTED"
        server._refresher._alone.release()


def test_a_refresh_goes_on_beside_requests_and_ends_with_the_server(ahead, als, world, monkeypatch):
    monkeypatch.setattr("features.state.refreshed.SOME", 4)
    begun, go_on, said = threading.Event(), threading.Event(), []

    def call(address):
        with Client(address, timeout=20) as client:
            try:
                said.append(Admin(client).refresh(0, 2**20))
            except PairliftError as error:
                said.append(str(error))

    with serving(ahead, clock="snapshot") as server, Client(server.address, timeout=20) as client:
        scores(client, world)  # so that their states are kept
        als.wait = lambda: (begun.set(), go_on.wait(20))
        thread = threading.Thread(target=call, args=(server.address,))
        thread.start()
        assert begun.wait(20)
        scores(client, world)
        with pytest.raises(BusyError):
            server._refresher.refresh(ROOM, lambda done, total: None)
        threading.Timer(0.2, go_on.set).start()
    thread.join(20)
    assert len(said) == 1
    assert isinstance(said[0], str), said
    assert als.refreshed is None


def test_a_bundle_that_is_replaced_is_not_refreshed_to_the_end(ahead, als, bundle):
    with serving(ahead, clock="snapshot") as server, serving(bundle, clock="snapshot") as other:
        refresher, served = Refresher(server.deployment, None), server.deployment.active

        def told(done, total):
            server.deployment.standing = Deployment(other.deployment.active).standing

        with pytest.raises(PairliftError, match="bundle world was replaced meanwhile"):
            refresher.refresh(ROOM, told)
        server.deployment.standing = Deployment(served).standing
        assert als.refreshed is None


def test_other_processes_of_the_server_follow(ahead, als, tmp_path, caplog):
    store = Store(tmp_path / "kept")
    with serving(ahead, clock="snapshot") as server:
        one, two = Refresher(server.deployment, store), Refresher(server.deployment, store)
        two.poll()
        assert als.refreshed is None
        (made,) = one.refresh(RefreshAsked(3, 2**20), lambda done, total: None)
        als.refreshed = None
        one.poll()
        assert als.refreshed is None
        two.poll()
        assert len(als.refreshed) == len(made.states) == 3
        store.ask_refresh(RefreshAsked(3, 1))
        two.poll()  # what is wrong with it is a sentence of the log, once
        two.poll()
        warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert [message.count("1 bytes are too few") for message in warned] == [1]
        again = Refresher(server.deployment, store)  # as after a restart: what was asked for before is over
        als.refreshed = None
        again.poll()
        assert als.refreshed is None
