"""Recorded events have the arm that their user was in then: in the log, in what is served, and in the next training."""

import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from logs import mapping_of
from served import batch, recording
from world import TOML, bundle_of, make_world, train_parts, with_config

from features.errors import PairliftError
from features.log.dataset import import_log
from features.log.loading import load_log
from features.log.writer import LogWriter
from features.schema import BY_ARM, DAY, OTHER_ARM, one_request
from features.settings import EventsSettings
from features.state.read import counter_values
from features.state.store import State
from ranker.bundle import Bundle
from ranker.config import Config, load_config
from ranker.ids import IdTable
from ranker.recording import numbering
from ranker.recording.batch import Batch, Outcome
from ranker.recording.follower import Follower
from ranker.recording.recorder import Recorder
from ranker.recording.snapshots import origin_of, with_snapshot
from ranker.request import Request
from ranker.settings import RecordSettings

COUNTED = """
[[counters]]
key = ["item"]
event = "impression"
stats = ["count"]
by_arm = true
[[counters]]
key = ["item"]
event = "impression"
stats = ["count"]
"""


@pytest.fixture(scope="module")
def counted(world) -> Bundle:
    """A bundle that was trained before there were arms, with a counter by arm."""
    return bundle_of(
        train_parts(world, Config(**tomllib.loads(TOML.replace("[events]", '[events]\narm = "arm"') + COUNTED)))
    )


class Recording:
    """A log that is written and followed, as a server does."""

    def __init__(self, bundle: Bundle, folder: Path, **options) -> None:
        known = bundle.state.catalog
        self.recorder = Recorder(bundle, folder, wall=lambda: bundle.state.end, past=True)
        users, items = IdTable(known.user_ids).find, IdTable(known.item_ids).find
        self.follower = Follower(bundle, folder, users=users, items=items, **options)
        self.follower.catch_up()
        self.recorder.use(self.follower)
        self.recorder.start(lambda _: None)

    def record(self, batch: Batch) -> Outcome:
        outcome = self.recorder.record(batch)
        self.follower.drain(20)
        return outcome

    @property
    def state(self) -> State:
        return self.follower.state

    def close(self) -> None:
        self.recorder.close()
        self.follower.close()


def split(users, ts):
    """Users by the last digit of their ids, from a time on: two arms and none."""
    return [("a", "b", None)[user % 3] for user in users]


def shown(recording: Recording, item: int, arm: str) -> list[float]:
    """The item's counts by arm and of all, as a request of that arm reads them."""
    state = recording.state
    request = one_request(0, state.end, -1, np.array([item], np.int32), arm=state.catalog.arm_code(arm))
    return counter_values(state, request)[0].tolist()


def events(bundle: Bundle, first: int, users: int, item: int):
    catalog = bundle.state.catalog
    ids = list(range(first, first + users))
    return batch(
        ids, catalog.user_ids[:users], [int(catalog.item_ids[item])] * users, bundle.state.end + np.arange(users)
    )


def test_an_experiment_that_began_after_the_training_is_counted_by_arm(counted, world, tmp_path):
    before = int((world.log.item == 7).sum())
    folder = tmp_path / "log"
    of = [("a", "b", None)[int(user) % 3] for user in world.catalog.user_ids[:30]]
    a, b, none = (before + of.count(arm) + (of.count(None) if arm else 0) for arm in ("a", "b", None))
    first = Recording(counted, folder, arm_of=split)
    assert shown(first, 7, "a") == [before, before]
    assert first.record(events(counted, 0, 30, 7)).recorded == 30
    want = {"a": [a, before + 30], "b": [b, before + 30], "": [none, before + 30], "unheard": [none, before + 30]}
    assert {arm: shown(first, 7, arm) for arm in want} == want
    taken, state, _ = first.follower.snapshot()
    assert sorted(state.catalog.new_arms.known) == ["a", "b"]
    first.close()
    # Read again, whatever the split is now; and from a snapshot.
    again = Recording(counted, folder, arm_of=lambda users, ts: ["b"] * len(users))
    assert {arm: shown(again, 7, arm) for arm in want} == want
    again.close()
    later = Recording(with_snapshot(counted, taken), folder, origin=origin_of(taken))
    assert {arm: shown(later, 7, arm) for arm in want} == want
    later.record(events(counted, 100, 30, 7))  # without a split: of no arm
    assert shown(later, 7, "a") == [a + 30, before + 60]
    later.close()


def test_what_one_arm_is_shown_moves_no_feature_of_the_other(counted, tmp_path):
    found = []
    for item in (7, 11):  # what arm b is shown
        one = Recording(counted, tmp_path / str(item), arm_of=split)
        one.record(events(counted, 0, 30, 5))
        told = events(counted, 50, 40, item)
        one.record(told._replace(feedback=told.feedback | {"arm": pa.array(["b"] * 40)}))
        found.append({arm: [shown(one, k, arm)[0] for k in range(80)] for arm in ("a", "b", "")})
        one.close()
    assert found[0]["a"] == found[1]["a"]
    assert found[0][""] == found[1][""]
    assert found[0]["b"] != found[1]["b"]


def test_an_event_may_say_its_arm_and_bad_ones_are_refused(counted, tmp_path):
    one = Recording(counted, tmp_path / "log", arm_of=split)
    base = events(counted, 0, 4, 3)
    outcome = one.record(base._replace(feedback=base.feedback | {"arm": pa.array(["mine", None, "", "x" * 300])}))
    assert dict(outcome.refused) == {
        3: "arm: an id of at most 256 bytes in UTF-8 ([record] max_id_bytes) was expected, found one of 300"
    }
    (outcome,) = [one.record(events(counted, 10, 2, 3)._replace(feedback={"arm": pa.array([1.0, None])}))]
    assert dict(outcome.refused) == {0: "event column 'arm': texts were expected, found numbers"}
    assert "mine" in one.state.catalog.new_arms.known
    one.close()


def test_arms_beyond_the_room_count_for_no_request(counted, world, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(numbering, "NEW_ARMS", 1)
    before = int((world.log.item == 3).sum())
    one = Recording(counted, tmp_path / "log")
    base = events(counted, 0, 4, 3)
    one.record(base._replace(feedback=base.feedback | {"arm": pa.array(["x", "y", "x", "z"])}))
    assert [shown(one, 3, arm) for arm in ("x", "y", "")] == [
        [before + 2, before + 4], [before, before + 4], [before, before + 4],
    ]  # fmt: skip
    assert (one.state.histories.arm == OTHER_ARM).sum() == 2
    assert caplog.text.count("events of more than 1 arms that the bundle does not know are recorded") == 1
    one.close()


def test_the_next_training_reads_the_arms_and_the_server_of_then_knows_them(counted, tmp_path):
    folder, small = tmp_path / "log", with_config(counted, record=RecordSettings(segment_mb=0.001))
    for _ in range(2):  # what was open is closed by the next start
        one = Recording(small, folder, arm_of=split)
        one.record(events(counted, 0, 30, 7))
        one.close()
    with recording(counted, folder):  # and written as Parquet
        (file,) = list((folder / "events").glob("*.parquet"))
    assert sorted(set(pq.read_table(file)["arm"].to_pylist()), key=str) == [None, "a", "b"]
    settings = EventsSettings(source=str(file), arm="arm", feedback={"play": "play"})
    import_log(mapping_of(tmp_path, settings, tuple(counted.config.grades)), tmp_path / "log.duckdb")
    log, catalog = load_log(tmp_path / "log.duckdb")
    assert catalog.arms == ("a", "b")
    users = catalog.user_ids[log.user].tolist()
    assert [(*catalog.arms, None)[code] for code in log.arm] == split(users, log.ts)
    assert [catalog.arm_code(name) for name in ("a", "b", "c", "")] == [0, 1, -1, -1]


def test_a_log_from_before_there_were_arms_is_read_without(counted, tmp_path):
    base = events(counted, 0, 20, 7)
    writer = LogWriter(tmp_path / "log", DAY, lambda: counted.state.end)
    writer.learn()
    writer.start()
    writer.append(base.events.append_column("play", base.feedback["play"])).result()
    writer.close()
    with recording(counted, tmp_path / "log") as (server, _):
        assert server.recorder.count == 20
        assert set(server.pipeline.state.histories.compact().arm.tolist()) == {-1}


def test_a_table_of_the_toml_may_have_the_name_where_arms_are_not_mapped(tmp_path):
    text = TOML.replace("feedback = {", 'columns = {arm = "variant"}\nfeedback = {')
    world = make_world(n_users=12, n_items=20)
    named = bundle_of(train_parts(world, Config(**tomllib.loads(text))))
    one = Recording(named, tmp_path / "log", arm_of=split)
    base = events(named, 0, 4, 3)
    assert one.record(base._replace(feedback=base.feedback | {"arm": pa.array([1.0, 2.0, None, 4.0])})).recorded == 4
    assert set(one.state.histories.compact().arm.tolist()) == {-1}
    one.close()


def test_by_arm_needs_an_arm(tmp_path):
    (tmp_path / "pairlift.toml").write_text(TOML + COUNTED)
    with pytest.raises(PairliftError, match=r"\[\[counters\]\] by_arm needs \[events\] arm"):
        load_config(tmp_path / "pairlift.toml")


def test_the_counter_is_by_arm(counted):
    assert [counter.key[0] == BY_ARM for counter in counted.state.counters] == [True, False]


def test_a_request_carries_its_arm_to_its_features(counted):
    item, end = np.arange(5, dtype=np.int32), counted.state.end
    of_log = one_request(2, end, -1, item, arm=1)
    assert Request.of(of_log, 0, counted.state).requests(item).arm.tolist() == [1]
    assert Request(2, end, state=counted.state, arm=1).requests(item).arm.tolist() == [1]
    assert Request(2, end, state=counted.state).requests(item).arm.tolist() == [-1]
