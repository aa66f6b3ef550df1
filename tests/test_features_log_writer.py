import errno
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import PairliftError
from features.log import segments, tail
from features.log.dedupe import SeenIds, keys_of
from features.log.reader import LogReader
from features.log.segments import FRAME, SEGMENT, checksum_of, export_segment, frame_heads, segment_files, segment_name
from features.log.tail import LogError
from features.log.writer import LogWriter
from features.schema import DAY, HOUR

ROOT = Path(__file__).parent.parent
NOW = 20_000 * DAY


def table(ids, ts=0):
    kind = pa.string() if ids and isinstance(ids[0], str) else pa.int64()
    return pa.table({"event_id": pa.array(ids, kind), "ts": pa.array([ts] * len(ids), pa.int64())})


def opened(folder, after=0, **options):
    writer = LogWriter(folder, options.pop("keep", 7 * DAY), options.pop("clock", lambda: NOW), **options)
    writer.learn()
    frames = list(LogReader(folder, after).frames(after))
    writer.start()
    return writer, frames


def ids_in(frames):
    """The event ids of frames; integers as such, though the log has text."""
    ids = [i for frame in frames for i in frame.events["event_id"].to_pylist()]
    assert all(isinstance(i, str) for i in ids)
    return [int(i) if i.isdigit() else i for i in ids]


def test_what_is_acknowledged_is_read_again_in_order(tmp_path):
    writer, frames = opened(tmp_path)
    assert frames == []
    receipts = [writer.append(table([k, k + 1000])) for k in range(5)]
    assert [r.result().known.tolist() for r in receipts] == [[False, False]] * 5
    writer.close()
    writer, frames = opened(tmp_path)
    assert ids_in(frames) == [i for k in range(5) for i in (k, k + 1000)]
    last = writer.append(table([9])).result().number
    writer.close()
    assert [f.number for f in frames] == list(range(1, len(frames) + 1))
    writer, frames = opened(tmp_path, after=last - 1)
    writer.close()
    assert ids_in(frames) == [9]


@pytest.mark.parametrize("ids", [[1, 2, 3], ["a", "b", "c"]])
def test_a_resend_is_known_in_a_batch_in_the_log_and_after_a_restart(tmp_path, ids):
    writer, _ = opened(tmp_path)
    assert writer.append(table([*ids, ids[0]])).result().known.tolist() == [False, False, False, True]
    assert writer.append(table(ids[1:])).result().known.all()
    writer.close()
    writer, frames = opened(tmp_path)
    assert writer.append(table(ids)).result().known.all()
    writer.close()
    assert ids_in(frames) == ids


@given(
    batches=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), min_size=1, max_size=6),
    cut=st.floats(0, 1),
    garbage=st.binary(max_size=40),
    small=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_crash_at_any_byte_loses_nothing_acknowledged_and_counts_nothing_twice(
    tmp_path_factory, batches, cut, garbage, small
):
    folder = tmp_path_factory.mktemp("log")
    writer, _ = opened(folder, segment_bytes=200 if small else 1 << 20)
    for batch in batches[:-1]:
        writer.append(table(batch)).result()
    before = segment_files(folder)[-1].stat().st_size
    path = segment_files(folder)[-1]
    writer.append(table(batches[-1])).result()
    writer.close()
    # The crash: the last frame was on its way, and some of it, or something else, is on the disk.
    if segment_files(folder)[-1] == path and path.stat().st_size > before:
        whole = path.read_bytes()
        path.write_bytes(whole[: before + int(cut * (len(whole) - before - 1))] + garbage)
    writer, frames = opened(folder)
    acknowledged = list(dict.fromkeys(i for batch in batches[:-1] for i in batch))
    assert ids_in(frames)[: len(acknowledged)] == acknowledged
    for batch in batches:  # the clients send all again
        writer.append(table(batch)).result()
    writer.close()
    writer, frames = opened(folder)
    writer.close()
    assert sorted(ids_in(frames)) == sorted({i for batch in batches for i in batch})


def test_a_torn_end_is_told(tmp_path, caplog):
    writer, _ = opened(tmp_path)
    writer.append(table([1])).result()
    writer.close()
    path = segment_files(tmp_path)[0]
    with path.open("ab") as file:
        file.write(segments.MARK + b"half")
    with caplog.at_level(logging.WARNING):
        writer, frames = opened(tmp_path)
    writer.close()
    assert "a torn end of 8 bytes is dropped" in caplog.text
    assert ids_in(frames) == [1]


@pytest.mark.parametrize("last", [True, False])
def test_damage_before_acknowledged_events_is_refused_with_its_place(tmp_path, last):
    writer, _ = opened(tmp_path, segment_bytes=1 << 20 if last else 1)
    for k in range(3):
        writer.append(table([k])).result()
    writer.close()
    path = segment_files(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[len(segments.MAGIC) + segments.HEAD.size + 5] ^= 1
    path.write_bytes(data)
    writer = LogWriter(tmp_path, DAY, lambda: NOW)
    with pytest.raises(PairliftError, match=rf"{path.name} is damaged at byte 16"):
        writer.learn()
    writer.close()


def test_a_missing_segment_is_refused(tmp_path):
    writer, _ = opened(tmp_path, segment_bytes=1)
    for k in range(4):
        writer.append(table([k])).result()
    writer.close()
    segment_files(tmp_path)[1].unlink()
    writer = LogWriter(tmp_path, DAY, lambda: NOW)
    with pytest.raises(PairliftError, match="frame 2 was expected"):
        writer.learn()
    writer.close()


def test_numbers_go_on_where_old_segments_were_deleted(tmp_path):
    """All but the newest, in which nothing is; and all."""
    writer, _ = opened(tmp_path, segment_bytes=1)
    for k in range(4):
        writer.append(table([k], ts=NOW)).result()
    for path in writer.closed_segments():
        export_segment(path, tmp_path / "events")
    writer.close()
    opened(tmp_path)[0].close()
    for path in segment_files(tmp_path)[:-1]:
        path.unlink()
    for want in (5, 4):  # then all go, of which frames 1 to 3 were exported
        writer, _ = opened(tmp_path)
        assert writer.append(table([9], ts=NOW)).result().number == want
        writer.close()
        for path in segment_files(tmp_path):
            path.unlink()


def test_a_torn_first_frame_has_a_name_and_no_head(tmp_path):
    writer, _ = opened(tmp_path)
    writer.append(table([1])).result()
    writer.append(table([2])).result()
    writer.close()
    (path,) = segment_files(tmp_path)
    whole, name = path.read_bytes(), segment_name(path)
    (_, first), (_, second) = frame_heads(path)
    assert [checksum_of(tmp_path, k) for k in range(4)] == [None, first, second, None]
    names = set()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        heads = [checksum for _, checksum in frame_heads(path)]
        assert heads == [first][: len(heads)]
        names.add(segment_name(path))
        assert (segment_name(path) == name) == bool(heads)
    assert name in names


@pytest.mark.parametrize("size", [0, 7, 16])
def test_a_segment_whose_beginning_never_came_to_the_disk_is_begun_anew(tmp_path, size):
    """Its size is there and its bytes are not, as a power cut may leave it: nothing of it was acknowledged."""
    writer, _ = opened(tmp_path, segment_bytes=1)
    writer.append(table([1])).result()
    writer.close()
    (tmp_path / f"{2:020d}.log").write_bytes(bytes(size))
    writer, frames = opened(tmp_path)
    assert ids_in(frames) == [1]
    assert writer.append(table([2])).result().number == 2
    writer.close()
    (tmp_path / f"{3:020d}.log").write_bytes(bytes(17))  # more than that never comes without it
    with pytest.raises(PairliftError, match="not a segment of a recorded log, or a damaged one"):
        opened(tmp_path)


def test_what_a_killed_process_wrote_is_durable_before_it_is_acknowledged(tmp_path, monkeypatch):
    writer, _ = opened(tmp_path)
    writer.append(table([1])).result()
    writer.close()
    synced, fsync = [], os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "fsync", lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
        )
        writer, frames = opened(tmp_path)
    writer.close()
    assert ids_in(frames) == [1]
    segment, following = map(str, segment_files(tmp_path))
    # First the log's own name, then what was read again, and then what makes the segment an earlier one.
    assert synced == [str(tmp_path.parent), segment, str(tmp_path), following, str(tmp_path)]


def test_one_process_at_a_time(tmp_path):
    writer, _ = opened(tmp_path)
    with pytest.raises(PairliftError, match=rf"locked: process {os.getpid()} records into it"):
        LogWriter(tmp_path, DAY, lambda: NOW)
    writer.close()
    LogWriter(tmp_path, DAY, lambda: NOW).close()


def test_a_full_disk_is_an_error_and_the_log_goes_on_when_there_is_room(tmp_path, monkeypatch):
    writer, _ = opened(tmp_path)
    writer.append(table([1])).result()
    synced, fsync, whole = [], os.fsync, segment_files(tmp_path)[0].stat().st_size
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_size), fsync(handle)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (segment_files(tmp_path)[0].stat().st_size + 100, hard))
    try:
        with pytest.raises(LogError, match=r"cannot be written .*; make room") as caught:
            writer.append(table([2, 3])).result()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.full
    assert synced == [whole]  # what came of the batch is cut off, and durably so
    assert writer.append(table([3, 4])).result().known.tolist() == [False, False]
    writer.close()
    writer, frames = opened(tmp_path)
    writer.close()
    assert ids_in(frames) == [1, 3, 4]


def test_a_start_on_a_full_disk_records_once_there_is_room(tmp_path, monkeypatch):
    opened(tmp_path)[0].close()
    monkeypatch.setattr("features.log.writer.LOOK_EVERY", 0.02)
    code, written = [errno.ENOSPC], tail._write

    def write(handle, data):
        if code[0]:
            raise OSError(code[0], os.strerror(code[0]))
        written(handle, data)

    def allocate(*_):
        if code[0]:
            raise OSError(code[0], os.strerror(code[0]))

    monkeypatch.setattr("features.log.tail._write", write)
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    writer, _ = opened(tmp_path)
    assert writer.problem.endswith("make room, then send the batch again")
    with pytest.raises(LogError, match="No space left on device"):
        writer.append(table([1])).result()
    time.sleep(0.1)
    assert writer.problem
    code[0] = 0
    until = time.monotonic() + 5
    while writer.problem and time.monotonic() < until:
        time.sleep(0.01)
    assert not writer.problem
    assert writer.append(table([1])).result().number == 1
    writer.close()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".log"] == [f"{1:020d}.log"]
    code[0] = errno.EIO  # another fault of the disk keeps the server from starting
    with pytest.raises(LogError, match="Input/output error"):
        opened(tmp_path)


def test_after_a_failed_fsync_nothing_more_is_acknowledged(tmp_path, monkeypatch):
    writer, _ = opened(tmp_path)
    writer.append(table([1])).result()

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("features.log.writer.os.fsync", fail)
        with pytest.raises(LogError, match="fsync failed"):
            writer.append(table([2])).result()
    with pytest.raises(LogError, match="fsync failed"):
        writer.append(table([3])).result()
    assert writer.append(table([1])).result().known.all()  # that one is on disk
    writer.close()
    writer, frames = opened(tmp_path)
    writer.close()
    assert ids_in(frames) == [1]


def test_a_closed_log_refuses(tmp_path):
    writer, _ = opened(tmp_path)
    writer.close()
    with pytest.raises(LogError, match="stopping"):
        writer.append(table([1])).result()


def test_a_snapshot_of_another_log_is_refused(tmp_path):
    writer = LogWriter(tmp_path, DAY, lambda: NOW)
    writer.learn()
    with pytest.raises(PairliftError, match="ends with frame 0, but the snapshot is of frame 5"):
        LogReader(tmp_path, 5)
    writer.close()


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_segments_may_be_deleted_up_to_the_snapshot(tmp_path, after):
    writer, _ = opened(tmp_path, segment_bytes=1)
    for k in range(1, 5):
        writer.append(table([k])).result()
    writer.close()
    for path in segment_files(tmp_path)[:2]:
        path.unlink()
    if after == 1:
        with pytest.raises(PairliftError, match="what lies between was deleted"):
            opened(tmp_path, after)
        return
    writer, frames = opened(tmp_path, after)
    writer.close()
    assert ids_in(frames) == [k for k in (3, 4) if k > after]


def test_closed_segments_as_parquet_hold_the_same_events(tmp_path):
    writer, _ = opened(tmp_path, segment_bytes=400)
    for k in range(6):
        writer.append(table([2 * k, 2 * k + 1], ts=NOW + k)).result()
    closed = writer.closed_segments()
    assert closed
    files = [export_segment(path, tmp_path / "events") for path in closed]
    writer.close()
    rows = pa.concat_tables([pq.read_table(path) for path in files])
    assert rows["event_id"].to_pylist() == [str(k) for k in range(rows.num_rows)]
    assert rows.schema.field("ts").type == pa.timestamp("us", "UTC")
    assert rows["ts"].cast(pa.int64()).to_pylist() == [NOW + k // 2 for k in range(rows.num_rows)]
    assert rows[FRAME].to_pylist() == [k // 2 + 1 for k in range(rows.num_rows)]
    assert rows[SEGMENT].unique().to_pylist() == [segment_name(path) for path in closed]


def test_files_of_other_names_are_no_segments(tmp_path):
    writer, _ = opened(tmp_path, segment_bytes=1)
    for k in range(3):
        writer.append(table([k], ts=NOW)).result()
    for name in ("00000000000000000001-backup.log", "1.log", "2024-01-01.log"):
        (tmp_path / name).write_bytes(b"stray")
    assert [path.stem for path in writer.closed_segments()] == [f"{k:020d}" for k in (1, 2)]
    writer.close()
    writer, frames = opened(tmp_path)
    writer.close()
    assert ids_in(frames) == [0, 1, 2]


def test_a_segment_that_is_being_opened_is_not_closed(tmp_path, monkeypatch):
    """Its file is there before the writer knows it as its own: an export of it would lack what is written next."""
    writer, _ = opened(tmp_path, segment_bytes=1)
    seen = []
    monkeypatch.setattr("features.log.tail.sync", lambda _: seen.append(writer.closed_segments()))
    for k in range(3):
        writer.append(table([k])).result()
    writer.close()
    assert [[int(path.stem) for path in closed] for closed in seen] == [[], [1]]


def test_a_segment_ends_by_its_age_so_that_quiet_logs_are_exported_too(tmp_path, monkeypatch):
    now, clock = [1000.0], [NOW]
    monkeypatch.setattr("features.log.tail.monotonic", lambda: now[0])
    writer, _ = opened(tmp_path, segment_time=HOUR, clock=lambda: clock[0])
    now[0] += 5 * 3600  # an empty segment does not age
    for k in range(5):
        writer.append(table([k])).result()
        now[0] += 1800
        clock[0] += DAY  # an old log's time: the events', not the segment's
    closed = [export_segment(path, tmp_path / "events") for path in writer.closed_segments()]
    writer.close()
    assert [pq.read_table(path)["event_id"].to_pylist() for path in closed] == [["0", "1"], ["2", "3"]]


def test_old_segments_are_not_read_where_nothing_of_them_is_wanted(tmp_path):
    now = [NOW]
    writer, _ = opened(tmp_path, segment_bytes=1, clock=lambda: now[0], keep=DAY)
    for k in range(4):
        writer.append(table([k])).result()
        now[0] += DAY
    writer.close()
    segment_files(tmp_path)[0].write_bytes(segment_files(tmp_path)[0].read_bytes()[:60])
    writer, frames = opened(tmp_path, after=2, clock=lambda: now[0], keep=DAY)
    writer.close()
    assert ids_in(frames) == [2, 3]


@given(
    adds=st.lists(st.tuples(st.integers(0, 20), st.lists(st.integers(-5, 30), min_size=1, max_size=8)), max_size=12),
    text=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_ids_are_known_for_as_long_as_was_asked(adds, text):
    keep = 3 * DAY
    seen, model, now = SeenIds(keep), {}, NOW
    for half_days, ids in adds:
        now += half_days * DAY // 2
        keys = keys_of(pa.array([f"e{i}" if text else str(i) for i in ids]))
        known = seen.known(keys)
        for place, i in enumerate(ids):
            if i in ids[:place] or (i in model and now < model[i] + keep):
                assert known[place]
            elif i not in model:
                assert not known[place]
        seen.add(keys[~known], now)
        seen.forget(now)
        assert seen.since <= now - keep
        model |= {i: now for i, was in zip(ids, known, strict=True) if not was}


@given(
    ids=st.lists(
        st.integers(-(2**63), 2**63 - 1).map(str)
        | st.integers(-20, 20).map(str)
        | st.from_regex(r"-?0?[0-9]{1,3}\n?", fullmatch=True)
        | st.text(max_size=4)
    )
)
@settings(max_examples=100, deadline=None)
def test_ids_share_a_key_where_they_are_the_same_text_and_nowhere_else(ids):
    keys = [tuple(key) for key in keys_of(pa.array(ids, pa.string())).tolist()]
    assert (0, 0) not in keys
    assert len(set(keys)) == len(set(ids)) == len(set(zip(ids, keys, strict=True)))


def test_many_ids_are_all_known_and_their_bytes_are_bounded():
    seen = SeenIds(7 * DAY)
    keys = keys_of(pa.array([str(k) for k in range(50_000)]))
    for part in np.array_split(keys, 50):
        assert not seen.known(part).any()
        seen.add(part, NOW)
    assert seen.known(keys).all()
    assert not seen.known(keys_of(pa.array([f"0{k}" for k in range(2000)]))).any()
    assert len(seen) == 50_000
    assert seen.bytes_used <= 50_000 * 2 * 64


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_features_log_writer import opened, table
writer, _ = opened(Path(sys.argv[1]), segment_bytes=3000)
for k in range(10**9):
    writer.append(table([3 * k, 3 * k + 1, 3 * k + 2])).result()
    print(3 * k + 2, flush=True)
"""


def test_kill_9_while_writing(tmp_path):
    acknowledged = -1
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split("\n")
        acknowledged = max([2, *(int(line) for line in rest[:-1])])
    writer, frames = opened(tmp_path)
    found = ids_in(frames)
    assert found == list(range(len(found)))
    assert len(found) > acknowledged
    assert writer.append(table(found)).result().known.all()
    writer.close()


def test_a_folder_of_other_files_is_not_taken_for_a_log(tmp_path):
    (tmp_path / "stage.json").write_text("{}")
    with pytest.raises(PairliftError, match="a folder of its own"):
        LogWriter(tmp_path, DAY, lambda: 0)
    assert [path.name for path in tmp_path.iterdir()] == ["stage.json"]
