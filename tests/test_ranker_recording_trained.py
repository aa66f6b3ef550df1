"""Each recorded event counts once in what a bundle serves, whatever its training read of the log."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from served import (
    ROOT,
    _columns,
    batch,
    expected_state,
    exported,
    imported_from,
    log_of,
    random_batches,
    record_and_export,
    recording,
    same,
    within,
)
from world import Parts, World, with_config, write_world, write_world_bundle

from features.errors import PairliftError
from features.log.loading import load_log
from features.log.recorded import Recorded, load_recorded
from features.log.segments import FRAME, SEGMENT, segment_files
from features.schema import DAY, HOUR, MINUTE, EventLog, merged
from features.state.store import State
from ranker.bundle import Bundle, load_bundle
from ranker.cli.main import cli
from ranker.client import Client
from ranker.config import load_config
from ranker.recording.batch import Batch
from ranker.recording.snapshots import origin_of, with_snapshot
from ranker.server import RecordTo, Server
from ranker.settings import RecordSettings


def test_closed_segments_can_be_trained_on(bundle, tmp_path):
    batches = list(random_batches(np.random.default_rng(6), bundle, [20] * 5))
    record_and_export(bundle, tmp_path / "log", batches)
    imported, _ = imported_from(bundle, tmp_path, "log/events/*.parquet")
    wanted = log_of(bundle, batches)
    assert imported.ts.tolist() == wanted.ts.tolist()
    assert sorted(imported.grade.tolist()) == sorted(wanted.grade.tolist())
    count = duckdb.sql(f"SELECT count(DISTINCT event_id) FROM '{tmp_path}/log/events/*.parquet'").fetchall()
    assert count == [(100,)]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (
            "read_parquet(['old.parquet', 'log/events/*.parquet'], union_by_name=true)",
            ["user_id", "item_id", "ts", "play"],
        ),
        (
            "(SELECT who AS user_id, what AS item_id, seen_at AS ts, share AS play FROM 'old.parquet'"
            " UNION ALL BY NAME FROM 'log/events/*.parquet')",
            ["who", "what", "seen_at", "share"],
        ),
    ],
)
def test_recorded_events_are_trained_on_behind_the_old_log(bundle, world, tmp_path, source, names):
    log, catalog = world.log, world.catalog
    utc = pa.array(log.ts, pa.timestamp("us", "UTC"))
    users, items = catalog.user_ids[log.user].astype(np.int32), catalog.item_ids[log.item]
    plays = pa.array(log.feedback[:, 0], from_pandas=True)
    wall = pc.local_timestamp(utc.cast(pa.timestamp("us", "America/New_York")))  # as the old log has it: without a zone
    pq.write_table(pa.table([users, items, wall, plays], names), tmp_path / "old.parquet")
    batches = list(random_batches(np.random.default_rng(7), bundle, [20] * 3))
    record_and_export(bundle, tmp_path / "log", batches)
    found, ids = imported_from(bundle, tmp_path, source, "America/New_York")

    recorded = [pa.table({**_columns(b.events), "play": b.feedback["play"]}) for b in batches]
    recorded = pa.concat_tables(recorded).select(["user_id", "item_id", "ts", "play", "surface"])
    old = {"user_id": users.astype(np.int64), "item_id": items, "ts": log.ts, "play": plays.cast(pa.float64())}
    both = pa.concat_tables([pa.table(old), recorded], promote_options="default")
    both = both.set_column(2, "ts", both["ts"].cast(pa.timestamp("us", "UTC")))
    pq.write_table(both, tmp_path / "both.parquet")
    wanted, wanted_ids = imported_from(bundle, tmp_path, "both.parquet")
    assert len(found) == len(log) + 60
    for name in ("user", "item", "ts", "grade", "surface", "feedback"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    np.testing.assert_array_equal(ids.item_ids, wanted_ids.item_ids)


def test_old_segments_that_a_bundle_was_trained_on_may_be_deleted(bundle, tmp_path):
    batches = list(random_batches(np.random.default_rng(8), bundle, [20] * 4, low=0))
    record_and_export(bundle, tmp_path / "log", batches)
    first, second = sorted((tmp_path / "log" / "events").glob("*.parquet"))[:2]
    imported_from(bundle, tmp_path, f"read_parquet(['{first}', '{second}'])")
    trained = replace(bundle, recorded=load_recorded(tmp_path / "log.duckdb"), state=State.build(
        merged([bundle.state.histories.log(("play",)), log_of(bundle, batches[:2])]),
        bundle.state.catalog, bundle.state.counters, bundle.state.grades,
    ))  # fmt: skip
    for path in segment_files(tmp_path / "log")[:2]:
        path.unlink()
    with recording(trained, tmp_path / "log") as (server, client):
        assert server.recorder.count == 40
        assert next(iter(client.record([batches[3]]))).recorded == 0  # its ids are known still


OLD = "SELECT user_id, item_id, make_timestamp(ts) AS ts, play FROM 'log.parquet'"


def trained(folder: Path, source: str, out: str) -> Bundle:
    """What `pairlift train` makes of a source."""
    toml = folder / "pairlift.toml"
    toml.write_text(toml.read_text().replace('"make_timestamp(ts)"', '"ts"'))
    lines = [f'source = "{source}"' if line.startswith("source") else line for line in toml.read_text().split("\n")]
    toml.write_text("\n".join(lines))
    done = CliRunner().invoke(cli, ["train", str(toml), "--out", str(folder / out)])
    assert done.exit_code == 0, done.output
    return load_bundle(folder / out)


def known_batches(rng: np.random.Generator, bundle: Bundle, sizes: list[int], first: int, low: int) -> list[Batch]:
    """Batches of users and items that the bundle knows, from `low` µs before its end on."""
    made = []
    for n in sizes:
        users, items = (rng.choice(ids, n) for ids in (bundle.state.catalog.user_ids, bundle.state.catalog.item_ids))
        ts = bundle.state.end + rng.integers(-low // MINUTE, HOUR // MINUTE, n) * MINUTE
        made.append(batch(list(range(first, first + n)), users, items, ts, rng.choice([0.1, 0.5, 1.0], n).tolist()))
        first += n
    return made


def state_of(bundle: Bundle, old: EventLog, batches: list[Batch]) -> State:
    """Each event once, by another way."""
    log = merged([old, log_of(bundle, batches)])
    return State.build(log, bundle.state.catalog, bundle.state.counters, bundle.state.grades)


@contextlib.contextmanager
def served_by_command(folder: Path, bundle: str) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """`pairlift serve` with the log of the folder."""
    command = [sys.executable, "-m", "ranker.cli", "serve", str(folder / bundle), "--log", str(folder / "log")]
    command += ["--port", "0", "--clock", "snapshot"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])}
    with (folder / "serve.err").open("a") as result:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=result, text=True, env=environment)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            with Client(line.split()[-1], timeout=20) as client:
                yield process, client
        finally:
            process.kill()
            process.communicate()


def test_what_a_training_did_not_read_is_folded_in(tmp_path: Path) -> None:
    """Train on the exported files, serve, record late events, restart, kill: each event is there once."""
    write_world(tmp_path)
    rng = np.random.default_rng(0)
    first = trained(tmp_path, f"({OLD})", "first")
    old, _ = load_log(load_config(tmp_path / "pairlift.toml").work / "import" / "log.duckdb")
    batches = known_batches(rng, first, [30, 30, 17], 0, DAY)
    record_and_export(first, tmp_path / "log", batches)
    late = known_batches(rng, first, [5, 5], 77, 2 * DAY)
    with recording(first, tmp_path / "log") as (_, client):
        list(client.record(late[:1]))  # in a segment that is open while the training reads
        second = trained(tmp_path, f"({OLD} UNION ALL BY NAME FROM 'log/events/*.parquet')", "second")
        list(client.record(late[1:]))  # recorded behind the training, and before the bundle is first served
    assert len(second.state.histories.ts) == len(old) + 77

    def check(batches: list[Batch]) -> None:
        with recording(second, tmp_path / "log") as (server, client):
            assert client.describe().recorded_events == sum(len(b.events) for b in batches) - 77
            same(server.pipeline.state, state_of(second, old, batches))

    with served_by_command(tmp_path, "second") as (process, client):
        assert client.describe().recorded_events == 10
        later = known_batches(rng, second, [9], 87, 3 * DAY)
        assert [o.recorded for o in client.record(later)] == [9]
        process.send_signal(signal.SIGKILL)
    for _ in range(2):
        check([*batches, *late, *later])


@pytest.fixture(scope="module")
def log(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Batch]]:
    """A log whose segments hold a batch each, all but the last exported."""
    folder = tmp_path_factory.mktemp("recorded")
    batches = known_batches(np.random.default_rng(11), bundle, [20] * 6, 0, 2 * DAY)
    record_and_export(bundle, folder / "log", batches[:5])
    with recording(bundle, folder / "log") as (_, client):
        list(client.record(batches[5:]))
    return folder, batches


def read_by(bundle: Bundle, folder: Path, source: str) -> tuple[EventLog, Recorded]:
    found, _ = imported_from(bundle, folder, source)
    return found, load_recorded(folder / "log.duckdb")


def files_of(folder: Path, name: str = "log") -> list[Path]:
    return sorted((folder / name / "events").glob("*.parquet"))


def next_bundle(bundle: Bundle, world: World, batches: list[Batch], recorded: Recorded) -> Bundle:
    """What a training on the world and these batches would make."""
    return replace(bundle, version="next", state=expected_state(bundle, world, batches), recorded=recorded)


STAR = "read_parquet([{files}])"
NAMED = "(SELECT user_id, item_id, ts, play, surface FROM read_parquet([{files}]))"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("source", [STAR, NAMED])
def test_any_part_of_a_log_may_have_been_read_wherever_it_lies(
    bundle: Bundle, world: World, log: tuple[Path, list[Batch]], tmp_path: Path, seed: int, source: str
) -> None:
    """Two servings and a snapshot each count every event once, late or not, trained or not."""
    folder, batches = log
    shutil.copytree(folder / "log", tmp_path / "log")
    rng = np.random.default_rng(seed)
    chosen = [k for k in range(5) if rng.random() < 0.5] or [seed % 5]
    files = [files_of(folder)[k] for k in chosen]
    for number, path in enumerate(files):
        shutil.copy(path, tmp_path / f"moved-{number}.parquet")
    names = ", ".join(f"'moved-{number}.parquet'" for number in range(len(files)))
    found, recorded = read_by(bundle, tmp_path, source.format(files=names))
    assert len(found) == 20 * len(chosen)
    assert [name[:20] for name in recorded] == [path.stem for path in files]
    trained = next_bundle(bundle, world, [batches[k] for k in chosen], recorded)
    for _ in range(2):
        with recording(trained, tmp_path / "log") as (server, client):
            assert server.recorder.count == 120 - 20 * len(chosen)
            same(server.pipeline.state, expected_state(bundle, world, batches))
            taken = Path(client.snapshot().folder)
    later = with_snapshot(trained, taken)
    with recording(later, tmp_path / "log", origin=origin_of(taken)) as (server, _):
        assert server.recorder.count == 0
        same(server.pipeline.state, expected_state(bundle, world, batches))


def test_what_is_cut_off_by_time_was_not_read(
    bundle: Bundle, world: World, log: tuple[Path, list[Batch]], tmp_path: Path
) -> None:
    """`WHERE` on frames or times leaves out the ends of segments; those frames are folded in."""
    folder, batches = log
    shutil.copytree(folder / "log", tmp_path / "log")
    _, recorded = read_by(bundle, tmp_path, f"(SELECT * FROM 'log/events/*.parquet' WHERE {FRAME} < 4)")
    assert list(recorded.values()) == [[(1, 1)], [(2, 2)], [(3, 3)]]
    with recording(next_bundle(bundle, world, batches[:3], recorded), tmp_path / "log") as (server, _):
        same(server.pipeline.state, expected_state(bundle, world, batches))


def test_files_that_were_exported_before_they_said_so(
    bundle: Bundle, world: World, log: tuple[Path, list[Batch]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their name is their segment's, above them; elsewhere nobody can tell, and that is said."""
    folder, batches = log
    shutil.copytree(folder / "log", tmp_path / "log")
    for path in files_of(tmp_path)[:2]:
        pq.write_table(pq.read_table(path).drop_columns([SEGMENT, FRAME]), path)
    for source in ("log/events/*.parquet", "read_parquet('log/events/*.parquet', union_by_name=true)"):
        _, recorded = read_by(bundle, tmp_path, source)
        read = len(files_of(tmp_path))  # a server that starts exports what was open
        assert list(recorded.values()) == [[(k + 1, k + 1)] for k in range(read)]
        with recording(next_bundle(bundle, world, batches[:read], recorded), tmp_path / "log") as (server, _):
            same(server.pipeline.state, expected_state(bundle, world, batches))
    (tmp_path / "log" / f"{'0' * 19}1.log").unlink()  # as the README allows: no server has its events any more
    assert len(read_by(bundle, tmp_path, f"log/events/{'0' * 19}1.parquet")[0]) == 20
    assert not caplog.text.count("does not say of which log")
    shutil.move(files_of(tmp_path)[0], tmp_path)
    assert not read_by(bundle, tmp_path, f"{'0' * 19}1.parquet")[1]
    assert "does not say of which log" in caplog.text
    assert "delete" not in caplog.text  # it may be the only copy


def test_a_copy_of_a_log_that_went_on_by_itself_is_another(
    bundle: Bundle, world: World, log: tuple[Path, list[Batch]], tmp_path: Path
) -> None:
    """Two servers went on from one log: frame 7 of the one is not frame 7 of the other."""
    folder, batches = log
    further = known_batches(np.random.default_rng(12), bundle, [20, 20], 200, DAY)
    small = with_config(bundle, record=RecordSettings(segment_mb=0.001))
    for name, more in zip(("one", "two"), further, strict=True):
        shutil.copytree(folder / "log", tmp_path / name)
        with recording(small, tmp_path / name) as (_, client):
            list(client.record([more]))
    with recording(bundle, tmp_path / "one"):
        until = time.monotonic() + 5
        while len(files_of(tmp_path, "one")) < 7 and time.monotonic() < until:
            time.sleep(0.05)
    _, recorded = read_by(bundle, tmp_path, "one/events/*.parquet")
    assert list(recorded.values()) == [[(k, k)] for k in range(1, 8)]
    trained = next_bundle(bundle, world, [*batches, further[0]], recorded)
    with recording(trained, tmp_path / "two") as (server, _):
        assert server.recorder.count == 20
        same(server.pipeline.state, expected_state(bundle, world, [*batches, *further]))


@pytest.mark.parametrize("copied", [1, 2, 3])
def test_a_backup_of_a_live_log_has_less_of_the_segment_and_counts_it_once(
    bundle: Bundle, world: World, tmp_path: Path, copied: int
) -> None:
    """Copied while the server wrote a segment; a bundle trained on the one is served on the other, and the reverse."""
    batches = known_batches(np.random.default_rng(13), bundle, [20, 15, 13], 0, 2 * DAY)
    with recording(bundle, tmp_path / "log") as (_, client):
        list(client.record(batches[:copied]))
        shutil.copytree(tmp_path / "log", tmp_path / "copy")
        list(client.record(batches[copied:]))
    further = known_batches(np.random.default_rng(14), bundle, [11, 9], 100, DAY)
    with recording(bundle, tmp_path / "copy") as (_, client):
        list(client.record(further))  # its frames have numbers that the log has too
    has = {"log": batches, "copy": [*batches[:copied], *further]}
    for read, on in (("log", "copy"), ("copy", "log")):
        assert exported(bundle, tmp_path / read)
        _, recorded = read_by(bundle, tmp_path, f"{read}/events/*.parquet")
        missing = [batch for batch in has[on] if not any(batch is one for one in has[read])]
        with recording(next_bundle(bundle, world, has[read], recorded), tmp_path / on) as (server, _):
            assert server.recorder.count == sum(len(batch.events) for batch in missing)
            same(server.pipeline.state, expected_state(bundle, world, [*has[read], *missing]))
    exported(bundle, tmp_path / "copy")
    both = "'log/events/*.parquet', 'copy/events/*.parquet'"
    found, recorded = read_by(bundle, tmp_path, STAR.format(files=both))
    assert len(found) == 48 + 20
    assert [(1, 3)] in recorded.values()
    assert read_by(bundle, tmp_path, NAMED.format(files=both))[1] == recorded


def test_logs_that_begin_with_one_batch_are_two(bundle: Bundle, world: World, tmp_path: Path) -> None:
    """Sent to both, in a server's time that stands still: only what was read of the one is left out, of the one."""
    batches = known_batches(np.random.default_rng(15), bundle, [20, 15, 13], 0, 2 * DAY)
    for name, sent in (("one", batches[:2]), ("two", [batches[0], batches[2]])):
        with recording(bundle, tmp_path / name) as (_, client):
            list(client.record(sent))
    exported(bundle, tmp_path / "one")
    _, recorded = read_by(bundle, tmp_path, "one/events/*.parquet")
    with recording(next_bundle(bundle, world, batches[:2], recorded), tmp_path / "two") as (server, _):
        assert server.recorder.count == 33


@pytest.mark.parametrize("old", [False, True])
def test_a_log_whose_segments_were_all_deleted_goes_on_behind_them(
    bundle: Bundle, world: World, tmp_path: Path, old: bool
) -> None:
    """Its next segments are exported too, and a snapshot from before lacks none of their events."""
    batches = known_batches(np.random.default_rng(16), bundle, [20, 15, 13], 0, 2 * DAY)
    with recording(bundle, tmp_path / "log") as (_, client):
        list(client.record(batches[:1]))
        taken = Path(client.snapshot().folder)
    (file,) = exported(bundle, tmp_path / "log")
    if old:
        pq.write_table(pq.read_table(file).drop_columns([SEGMENT, FRAME]), file)
    for path in segment_files(tmp_path / "log"):
        path.unlink()
    for one in batches[1:]:
        with recording(bundle, tmp_path / "log") as (_, client):
            assert [o.recorded for o in client.record([one])] == [len(one.events)]
    files = exported(bundle, tmp_path / "log")
    assert [pq.read_metadata(path).num_rows for path in files] == [20, 15, 13]
    if old:  # such a file does not say its last frame: one for each row is the most
        return
    with recording(with_snapshot(bundle, taken), tmp_path / "log", origin=origin_of(taken)) as (server, _):
        assert server.recorder.count == 28
        same(server.pipeline.state, expected_state(bundle, world, batches))
    segment_files(tmp_path / "log")[0].unlink()
    with pytest.raises(PairliftError, match=r"begins with frame 3, but the snapshot is of frame 1: what lies between"):
        Server(with_snapshot(bundle, taken), record_to=RecordTo(tmp_path / "log", origin_of(taken)), clock="snapshot")


def test_a_file_of_another_segment_is_a_problem_and_not_an_export(
    bundle: Bundle, log: tuple[Path, list[Batch]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another log, or of a copy that had less of the segment."""
    monkeypatch.setattr("ranker.recording.exports.EXPORT_EVERY", 0.02)
    folder, _ = log
    batches = known_batches(np.random.default_rng(17), bundle, [5, 4], 0, DAY)
    with recording(bundle, tmp_path / "log") as (_, client):
        list(client.record(batches[:1]))
        shutil.copytree(tmp_path / "log", tmp_path / "copy")
        list(client.record(batches[1:]))
    (short,) = exported(bundle, tmp_path / "copy")
    (tmp_path / "log" / "events").mkdir()
    for file in (files_of(folder)[0], short):
        shutil.copy(file, tmp_path / "log" / "events" / short.name)
        with recording(bundle, tmp_path / "log") as (_, client):
            assert within(5, lambda: "has other events, or not all" in client.describe().recording_problem)
            (tmp_path / "log" / "events" / short.name).unlink()
            assert within(5, lambda: not client.describe().recording_problem)
        assert pq.read_metadata(files_of(tmp_path)[0]).num_rows == 9


def test_what_a_where_leaves_out_beside_dropped_columns_is_warned_of(
    bundle: Bundle, log: tuple[Path, list[Batch]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Which rows were read nobody can tell: all count as read."""
    shutil.copytree(log[0] / "log", tmp_path / "log")
    for source, warned in ((NAMED, 0), (STAR, 0), (NAMED.replace(")", ") WHERE play < 1", 1), 1)):
        read_by(bundle, tmp_path, source.format(files="'log/events/*.parquet'"))
        assert caplog.text.count("the others are neither trained on nor served") == warned


@pytest.mark.parametrize("seed", range(5))
def test_commits_that_a_where_leaves_out_are_added(bundle: Bundle, tmp_path: Path, seed: int) -> None:
    """By time, with late events, or by anything: each event is trained on, or served, or left out beside one read."""
    rng, end = np.random.default_rng(seed), bundle.state.end
    users, items = bundle.state.catalog.user_ids, bundle.state.catalog.item_ids
    batches = []
    for k in range(12):
        n, late = int(rng.integers(1, 4)), rng.random() < 0.3
        ts = end + (0 if late else k) * MINUTE + np.arange(n)
        batches.append(batch([f"{k}-{j}" for j in range(n)], rng.choice(users, n), rng.choice(items, n), ts))
    with recording(bundle, tmp_path / "log") as (_, client):
        list(client.record(batches))
    exported(bundle, tmp_path / "log")
    for where in (f"epoch_us(ts) < {end + 5 * MINUTE}", f"{FRAME} % 4 = 1 OR item_id % 3 = 0", "true"):
        kept = duckdb.sql(f"SELECT {FRAME} - 1 FROM '{tmp_path}/log/events/*.parquet' WHERE {where}").fetchall()
        found, recorded = read_by(bundle, tmp_path, f"(SELECT * FROM 'log/events/*.parquet' WHERE {where})")
        assert len(found) == len(kept)
        added = [len(batch.events) for k, batch in enumerate(batches) if (k,) not in kept]
        with recording(replace(bundle, version="next", recorded=recorded), tmp_path / "log") as (server, _):
            assert server.recorder.count == sum(added)


def test_a_log_that_may_count_twice_is_warned_of(
    bundle: Bundle, world: World, log: tuple[Path, list[Batch]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A training that read the same events from elsewhere cannot be known; a few late events are nothing to tell."""
    folder, batches = log
    shutil.copytree(folder / "log", tmp_path / "log")
    later = replace(bundle.state, end=min(b.events["ts"].to_numpy().min() for b in batches) + 1)
    for state, warned in ((later, 0), (next_bundle(bundle, world, batches, {}).state, 1)):
        with recording(replace(bundle, state=state), tmp_path / "log"):
            assert caplog.text.count("If it read the same events from elsewhere, they count twice") == warned
    _, recorded = read_by(
        bundle, tmp_path, f"log/events/{'0' * 19}1.parquet"
    )  # of one file it is known, of the rest not
    with recording(next_bundle(bundle, world, batches, recorded), tmp_path / "log"):
        assert caplog.text.count("If it read the same events from elsewhere, they count twice") == 2


def test_a_compacted_log_and_one_sent_on_to_another_server(
    bundle: Bundle, log: tuple[Path, list[Batch]], tmp_path: Path
) -> None:
    """DuckDB's own COPY keeps what rows say of themselves; `pairlift record` takes such a file."""
    folder, _ = log
    duckdb.sql(f"COPY (FROM '{folder}/log/events/*.parquet') TO '{tmp_path}/all.parquet'")
    assert read_by(bundle, tmp_path, "all.parquet")[1] == read_by(bundle, folder, "log/events/*.parquet")[1]
    with recording(bundle, tmp_path / "log") as (server, _):
        done = CliRunner().invoke(cli, ["record", str(tmp_path / "all.parquet"), "--address", server.address])
        assert "100 events recorded, 0 were recorded before, 0 refused" in done.output


def test_a_file_that_comes_while_the_log_is_read(
    bundle: Bundle, log: tuple[Path, list[Batch]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = log
    shutil.copytree(folder / "log" / "events", tmp_path / "events")
    late = shutil.move(tmp_path / "events" / files_of(folder)[-1].name, tmp_path)
    monkeypatch.setattr("features.log.dataset._refuse_nulls", lambda *_: shutil.move(late, tmp_path / "events"))
    with pytest.raises(PairliftError, match="files came or went while they were read; run it again"):
        read_by(bundle, tmp_path, "(SELECT user_id, item_id, ts, play, surface FROM 'events/*.parquet')")


def test_a_bundles_own_snapshot_says_what_it_has_read(folder_of: Path, tmp_path: Path) -> None:
    """`--snapshot OTHER/snapshot` brings along what the training of OTHER read."""
    bundle = load_bundle(folder_of)
    assert with_snapshot(replace(bundle, recorded={}), folder_of / "snapshot").recorded == {"a-b": [(1, 2)]}
    shutil.copytree(folder_of / "snapshot", tmp_path / "alone")
    assert with_snapshot(bundle, tmp_path / "alone").recorded == {}


@pytest.fixture
def folder_of(parts: Parts, tmp_path: Path) -> Path:
    """A bundle whose training read two frames of a log."""
    write_world_bundle(parts, tmp_path / "bundle", {"a-b": [(1, 2)]})
    return tmp_path / "bundle"
