"""What is recorded while faults happen, and how one tells that nothing was lost and nothing counts twice.

A client sends batches, keeps which of them were acknowledged, and sends the rest again, as clients must. What was
acknowledged must be on disk and in the served state, once; what was sent and not acknowledged may be.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from served import expected_state, random_batches, same, within
from world import World, make_world, train_parts, with_config, write_world_bundle

from features.errors import PairliftError
from features.log.reader import EVENTS
from features.log.segments import read_segment, segment_files
from ranker.bundle import Bundle, load_bundle
from ranker.ids import IdTable
from ranker.recording.batch import Batch
from ranker.recording.follower import SNAPSHOTS, Follower
from ranker.recording.recorder import Recorder
from ranker.recording.snapshots import origin_of, with_snapshot
from ranker.serving.clock import now_wall
from ranker.settings import RecordSettings

#: MB of a segment: some batches, so that files of the log end, and are exported, all the time
SEGMENT_MB = 0.02
#: events of a batch, at most
LARGEST = 12
#: seconds that the last events may take to be served, and the last segment to be exported
PATIENCE = 20.0


class Verdict(NamedTuple):
    """What became of the events of a client."""

    lost: frozenset[str]  # ids of acknowledged events that are not on disk, or not exported
    twice: frozenset[str]  # ids of events that are on disk or exported more than once
    problems: tuple[str, ...]  # anything else that is wrong, such as a recorder that does not start


class Served(NamedTuple):
    """What is served, and the log of it."""

    world: World
    bundle: Bundle  # of small segments


def prepared(folder: Path) -> Served:
    """Return the small world's bundle, from a folder where it is made once."""
    world = make_world(surfaces=("feed", "search"))
    if not (folder / "bundle" / "manifest.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_world_bundle(train_parts(world), folder / "bundle")
    return Served(world, with_config(load_bundle(folder / "bundle"), record=RecordSettings(segment_mb=SEGMENT_MB)))


class Recording:
    """What records into a log, and follows it."""

    def __init__(self, bundle: Bundle, log: Path, snapshot: Path | None = None) -> None:
        """Open the log, on top of the bundle's state or of a snapshot."""
        bundle = bundle if snapshot is None else with_snapshot(bundle, snapshot)
        users, items = IdTable(bundle.state.catalog.user_ids), IdTable(bundle.state.catalog.item_ids)
        self.recorder = Recorder(bundle, log, wall=now_wall, past=True)
        try:
            origin = None if snapshot is None else origin_of(snapshot)
            self.follower = Follower(bundle, log, users=users.find, items=items.find, origin=origin)
            self.follower.catch_up()
            self.recorder.use(self.follower)
            self.recorder.start(lambda _: None)
        except BaseException:
            self.recorder.close()
            raise

    def close(self) -> None:
        """Let the log go."""
        self.recorder.close()
        self.follower.close()


@contextmanager
def recording(bundle: Bundle, log: Path, snapshot: Path | None = None) -> Iterator[Recording]:
    """Give what records into a log, and close it."""
    opened = Recording(bundle, log, snapshot)
    try:
        yield opened
    finally:
        opened.close()


def snapshots_of(log: Path) -> list[Path]:
    """Return the snapshots of a log that can be served, in no order."""
    return [path for path in (log / SNAPSHOTS).glob("*") if not path.name.startswith(".")]


class Sender:
    """A client: what it sent, and what was acknowledged."""

    def __init__(self, bundle: Bundle, seed: int, batches: int) -> None:
        """batches: that it can send, at most."""
        self.rng = np.random.default_rng(seed)
        sizes = self.rng.integers(1, LARGEST + 1, batches).tolist()
        self.batches: list[Batch] = list(random_batches(self.rng, bundle, sizes))
        self.acknowledged: set[int] = set()  # numbers of batches
        self.sent = 0  # the first so many batches were sent, some of them perhaps in vain

    def wanted(self, more: int, again: float = 0.1) -> list[int]:
        """Return the numbers of what to send now: what was not acknowledged, some of the rest once more, and new ones.

        more: new ones. again: the share of what was acknowledged.
        """
        old = [k for k in range(self.sent) if k not in self.acknowledged or self.rng.random() < again]
        new = range(self.sent, min(self.sent + more, len(self.batches)))
        self.sent = new.stop
        return [*old, *new]

    def ids(self, numbers: set[int]) -> set[str]:
        """Return the event ids of batches, as the log has them."""
        return {str(one) for k in numbers for one in self.batches[k].events["event_id"].to_pylist()}


def ids_on_disk(log: Path) -> list[str]:
    """Return the ids of all events in a log, in its order; nothing is mended."""
    found: list[str] = []
    for path in segment_files(log):
        try:
            for frame in read_segment(path, last=False):
                found += frame.events["event_id"].to_pylist()
        except PairliftError:  # a torn end; or damage, which the next start tells
            continue
    return found


def on_disk(sender: Sender, log: Path) -> Verdict:
    """Compare what was acknowledged with the log's files."""
    return _compared(sender.ids(sender.acknowledged), Counter(ids_on_disk(log)), ())


def _compared(wanted: set[str], found: Counter[str], problems: tuple[str, ...]) -> Verdict:
    return Verdict(frozenset(wanted - found.keys()), frozenset(k for k, n in found.items() if n > 1), problems)


def failed(problem: str) -> Verdict:
    """Return that something else is wrong."""
    return Verdict(frozenset(), frozenset(), (problem,))


def settled(served: Served, sender: Sender, log: Path) -> Verdict:
    """Send all again until it is acknowledged, and compare the log, the served state and the exported files with it."""
    world, bundle = served
    try:
        with recording(bundle, log) as opened:
            for k in range(sender.sent):
                outcome = opened.recorder.record(sender.batches[k])
                sender.acknowledged.add(k)
                if outcome.refused:
                    return failed(f"refused: {outcome.refused[0][1]}")
            opened.follower.drain(PATIENCE)
            disk = on_disk(sender, log)
            wrong = _state_problem(lambda: same(opened.follower.state, _expected(world, bundle, sender, log)))
            exported = _exported(opened.recorder, log)
            problems = tuple(filter(None, [opened.recorder.problem, wrong]))
    except (PairliftError, OSError, pa.ArrowException) as error:
        return failed(f"{type(error).__name__}: {error}")
    return Verdict(disk.lost | exported.lost, disk.twice | exported.twice, problems + exported.problems)


def _expected(world: World, bundle: Bundle, sender: Sender, log: Path) -> Any:
    """Return the state of all that was sent, built at once. New users and items are numbered in the log's order."""
    place = {one: k for k, one in enumerate(ids_on_disk(log))}
    first = [(place.get(str(sender.batches[k].events["event_id"][0].as_py()), -1), k) for k in range(sender.sent)]
    return expected_state(bundle, world, [sender.batches[k] for _, k in sorted(first)])


def _state_problem(check: Callable[[], None]) -> str:
    """Return what a comparison of states found, empty where they are equal."""
    try:
        check()
    except AssertionError as error:
        return f"the served state differs: {str(error).strip().splitlines()[0]}"
    return ""


def _exported(recorder: Recorder, log: Path) -> Verdict:
    """Compare the Parquet files with the closed segments, once all are there."""
    closed = recorder._writer.closed_segments()
    files = [log / EVENTS / f"{path.stem}.parquet" for path in closed]
    if not within(PATIENCE, lambda: all(path.exists() for path in files)):
        return failed("closed segments were not exported")
    wanted = {
        one for path in closed for f in read_segment(path, last=False) for one in f.events["event_id"].to_pylist()
    }
    there = sorted((log / EVENTS).glob("*.parquet"))
    found = Counter(one for path in there for one in pq.read_table(path, columns=["event_id"])["event_id"].to_pylist())
    return _compared(wanted, found, () if set(there) == set(files) else ("a Parquet file is of no segment",))


def summed(verdicts: list[Verdict]) -> dict[str, Any]:
    """Return how many events were lost and how many were counted twice, each once, and all problems."""
    return {
        "lost": len({one for verdict in verdicts for one in verdict.lost}),
        "twice": len({one for verdict in verdicts for one in verdict.twice}),
        "problems": list(dict.fromkeys(problem for verdict in verdicts for problem in verdict.problems)),
    }


def wait(seconds: float, true: Callable[[], bool]) -> bool:
    """Wait until something is true; tell whether it is."""
    until = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < until:
        time.sleep(0.01)
    return found
