"""Ids of events on the wire, on disk and at the import: integers, texts, repeats."""

import struct
import threading
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served import batch, exported, imported_from, recording

from features.log.loading import load_repeats
from features.log.segments import segment_files
from features.schema import DAY, MINUTE

KINDS = ([0, 1, -5, 10**18, 2**63 - 1, -(2**63)], ["a", "é-日本", "007", "-0", "1e3", "9223372036854775808"])


def events(bundle, ids, start=0):
    """A batch with the ids, of known users and items."""
    catalog, n = bundle.state.catalog, len(ids)
    users, items = catalog.user_ids[np.arange(n) % 20], catalog.item_ids[np.arange(n) % 40]
    return batch(ids, users, items, bundle.state.end + (start + np.arange(n)) * MINUTE)


def test_integer_and_text_event_ids_of_one_segment_are_exported_replayed_and_known(bundle, tmp_path):
    first, second = (events(bundle, ids, 10 * k) for k, ids in enumerate(KINDS))
    with recording(bundle, tmp_path / "log") as (_, client):
        assert [o.recorded for o in client.record([first, second])] == [6, 6]
        assert len(segment_files(tmp_path / "log")) == 1
    files = exported(bundle, tmp_path / "log")
    assert len(files) == 1
    assert pq.read_table(files[0])["event_id"].to_pylist() == [*map(str, KINDS[0]), *KINDS[1]]
    with recording(bundle, tmp_path / "log") as (server, client):
        assert server.recorder.count == 12
        assert [o.duplicates for o in client.record([first, second])] == [6, 6]


def test_an_integer_and_its_text_are_one_event_id(bundle, tmp_path):
    with recording(bundle, tmp_path / "log") as (_, client):
        assert [o.recorded for o in client.record([events(bundle, KINDS[0])])] == [6]
        (again,) = client.record([events(bundle, [str(i) for i in KINDS[0]])])
        assert (again.recorded, again.duplicates) == (0, 6)
        (others,) = client.record([events(bundle, ["00", "+1", "1.0", " 1", "-05", "1000000000000000000 "])])
        assert (others.recorded, others.duplicates) == (6, 0)


def test_two_clients_of_different_kinds_in_one_commit_are_both_recorded(bundle, tmp_path, monkeypatch):
    with recording(bundle, tmp_path / "log") as (server, client):
        writer, taken, done = server.recorder._writer, [], []
        one = writer._group

        def two():
            """Take the next two batches for one commit."""
            first, last = one()
            if last or len(first[0].keys) == 1:  # the end; or the one event below, where the thread did not wait yet
                return first, last
            # Both batches may have come before the thread looked: then they are taken together already.
            second, last = ([], False) if len(first) > 1 else one()
            taken.append(len(first) + len(second))
            return first + second, last

        monkeypatch.setattr(writer, "_group", two)
        list(client.record([events(bundle, [99])]))  # the thread may have waited for this one before it was patched
        threads = [
            threading.Thread(target=lambda ids=ids: done.extend(client.record([events(bundle, ids)]))) for ids in KINDS
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert [o.recorded for o in done] == [6, 6]
        assert taken == [2]
    rows = pq.read_table(exported(bundle, tmp_path / "log")[0])
    assert sorted(rows["event_id"].to_pylist()) == sorted([*map(str, KINDS[0]), *KINDS[1], "99"])


def old_segment(folder, tables, arrival):
    """Write the log's first segment as Pairlift 0.1 wrote it: a frame for each table, event ids of the wire's kind."""
    folder.mkdir(parents=True)
    data = b"pairlift-log-1\n\0"
    for number, table in enumerate(tables, 1):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        payload = bytes(sink.getvalue())
        rest = struct.pack("<QqQ", number, arrival, len(payload))
        data += struct.pack("<4sIQqQ", b"\xf6PLf", zlib.crc32(rest + payload), number, arrival, len(payload)) + payload
    (folder / f"{1:020d}.log").write_bytes(data)


def test_a_segment_with_ids_of_both_kinds_is_still_read(bundle, tmp_path):
    batches = [events(bundle, ids, 10 * k) for k, ids in enumerate((*KINDS, [7, 8]))]
    tables = [b.events.append_column("play", b.feedback["play"]).combine_chunks() for b in batches]
    assert [t.schema.field("event_id").type for t in tables] == [pa.int64(), pa.string(), pa.int64()]
    old_segment(tmp_path / "log", tables, bundle.state.end)
    with recording(bundle, tmp_path / "log") as (server, client):
        assert server.recorder.count == 14
        assert [o.duplicates for o in client.record(batches)] == [6, 6, 2]
        (again,) = client.record([events(bundle, ["7", "8", "9"])])
        assert (again.recorded, again.duplicates) == (1, 2)
    files = exported(bundle, tmp_path / "log")
    ids = [i for file in files for i in pq.read_table(file)["event_id"].to_pylist()]
    assert ids == [*map(str, KINDS[0]), *KINDS[1], "7", "8", "9"]


@pytest.mark.parametrize("days", [0, 30])
def test_an_integer_and_its_text_in_an_old_log_are_served_once_as_they_are_trained_on(bundle, tmp_path, days):
    """Also where the log is older than ids are known for."""
    one, other = (events(bundle, ids) for ids in ([7, 8], ["7", "9"]))
    tables = [b.events.append_column("play", b.feedback["play"]).combine_chunks() for b in (one, other)]
    old_segment(tmp_path / "log", tables, bundle.state.end - days * DAY)
    with recording(bundle, tmp_path / "log") as (server, _):
        assert server.recorder.count == 3
    exported(bundle, tmp_path / "log")
    assert len(imported_from(bundle, tmp_path, "log/events/*.parquet")[0]) == 3


def test_old_files_with_integer_ids_and_new_ones_are_read_together(bundle, tmp_path):
    with recording(bundle, tmp_path / "log") as (_, client):
        list(client.record([events(bundle, [1]), events(bundle, ["x"], 1)]))
    (new,) = exported(bundle, tmp_path / "log")
    old = pq.read_table(new)
    old = old.set_column(0, "event_id", pa.array([1, 2]))  # as it was exported before: event 1 is in both
    pq.write_table(old, tmp_path / "log" / "events" / f"{0:020d}.parquet")
    source = "read_parquet('log/events/*.parquet', union_by_name=true)"
    log, _ = imported_from(bundle, tmp_path, source)
    assert len(log) == 3


def test_a_batch_sent_again_to_another_servers_log_trains_once(bundle, tmp_path):
    sent = [events(bundle, ids, 10 * k) for k, ids in enumerate(KINDS)]
    again = [events(bundle, [str(i) for i in KINDS[0]]), events(bundle, ["other"], 40)]
    for name, batches in (("one", sent), ("two", again)):
        with recording(bundle, tmp_path / name) as (_, client):
            list(client.record(batches))
        exported(bundle, tmp_path / name)
    source = "read_parquet(['one/events/*.parquet', 'two/events/*.parquet'], union_by_name=true)"
    log, _ = imported_from(bundle, tmp_path, source)
    assert len(log) == 13
    assert load_repeats(tmp_path / "log.duckdb") == 6
