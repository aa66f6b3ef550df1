"""Swaps while events are recorded: none is lost, none counts twice, and each has the arm of its user."""

import threading

import numpy as np
import pyarrow as pa
import pytest
from served import batch, expected_state, pairlift, random_batches, recording, same
from world import TOML, write_world_bundle

from features.log.segments import read_segment, segment_files
from ranker.administrator import Admin
from ranker.bundle import load_bundle
from ranker.client import Client
from ranker.serving.rollout.split import CONTROL, Split


@pytest.fixture(scope="module")
def folders(parts, tmp_path_factory):
    """Bundles of one log, in two versions."""
    place = tmp_path_factory.mktemp("recorded")
    write_world_bundle(parts, place / "one")
    write_world_bundle(parts, place / "two", toml=TOML.replace('"world"', '"world_again"'))
    return place


def test_no_event_is_lost_or_counted_twice_over_twenty_swaps(folders, world, tmp_path):
    first = load_bundle(folders / "one")
    batches = list(random_batches(np.random.default_rng(3), first, [40] * 60))
    answered, stop = [], threading.Event()
    with recording(first, tmp_path / "log") as (server, client):

        def record():
            with Client(server.address, timeout=60) as other:
                for one in batches:
                    if stop.is_set():
                        return
                    outcome = next(iter(other.record([one])))
                    answered.append(outcome.recorded + outcome.duplicates)

        thread = threading.Thread(target=record)
        thread.start()
        admin = Admin(client)
        for turn in range(20):
            if turn % 5 == 0:
                admin.deploy(folders / ("two", "one")[turn // 5 % 2], lambda _: None)
            else:
                admin.rollback()
        thread.join()
        assert answered == [40] * 60
        standing = server.deployment.standing
        want = expected_state(first, world, batches)
        versions = set()
        for served in (standing.active, standing.previous):
            served.follower.drain(30)
            versions.add(served.bundle.version)
            same(served.follower.state, want)
        assert len(versions) == 2
        assert server.recorder.count == client.describe().recorded_events == 60 * 40
        assert pairlift("rollback", "--to", server.address)[0] == 0
        again = next(iter(client.record(batches[:1])))
        assert (again.recorded, again.duplicates) == (0, 40)


def test_a_bundle_whose_event_ids_live_longer_is_refused_and_the_one_before_records_on(folders, parts, tmp_path):
    write_world_bundle(parts, tmp_path / "longer", toml=TOML + "\n[record]\ndedupe_days = 30\n")
    first = load_bundle(folders / "one")
    with recording(first, tmp_path / "log") as (server, client):
        code, said = pairlift("deploy", tmp_path / "longer", "--to", server.address)
        assert (code, "dedupe_days" in said) == (2, True)
        assert server.deployment.active.bundle.version == first.version
        assert next(iter(client.record([batch([1], [1000], [10], [first.state.end])]))).recorded == 1


def test_recorded_events_have_the_arm_of_their_user_then(folders, tmp_path):
    first = load_bundle(folders / "one")
    users, end = first.state.catalog.user_ids.tolist(), first.state.end
    n = len(users)

    def events(number):
        return batch(range(number * n, number * n + n), users, [10] * n, [end + number] * n)

    with recording(first, tmp_path / "log") as (server, client):
        list(client.record([events(0)]))
        server.follower.drain(10)
        admin = Admin(client)
        admin.deploy(folders / "two", lambda _: None, arm="b", share=0.5, experiment="x")
        list(client.record([events(1)]))
        server.follower.drain(10)
        admin.drop("b")
        list(client.record([events(2)]))
        server.follower.drain(10)
        assert client.rank(users[0], [10]).arm == ""
    split = Split("x").with_arm("b", 0.5)
    arms = [split.arm_of(user) for user in users]
    assert set(arms) == {"b", CONTROL}
    frames = [frame for path in segment_files(tmp_path / "log") for frame in read_segment(path, last=True)]
    table = pa.concat_tables([frame.events for frame in frames])
    assert dict(zip(table["event_id"].to_pylist(), table["arm"].to_pylist(), strict=True)) == {
        str(number * n + k): [None, arms[k], None][number] for number in range(3) for k in range(n)
    }
