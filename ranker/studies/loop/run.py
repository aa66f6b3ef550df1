"""The loop, run: for each arm the days of a world, each begun with a training of what was recorded before it.

run_loop
    first_days      what users did before the first served day: the log that the first training has
    _arm            one arm                                       (resumed, whole)
      _begin        train and deploy
      _day        serve and record the requests of one day
        in_rounds  requests in time order, cut where a user would come twice
"""

import json
import os
import shutil
import tomllib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import PairliftError
from features.files import written
from features.progress import progress_bar
from features.schema import DAY, F64, I8, I32, I64, SECOND
from ranker.client import Reply
from ranker.code_hash import code_hash
from ranker.config import Config, load_config
from ranker.recording.batch import Batch
from ranker.studies.loop.agreement import Agreement, agreement
from ranker.studies.loop.arms import OLD, Arm, Toml, arms_of, toml_text, with_log
from ranker.studies.loop.service import Received, Service
from ranker.studies.simulate import LIST, Lives
from ranker.studies.world import FIRST_ITEM, FIRST_USER, MADE_OF, START, World, born_of, item_table, told_of, user_table
from ranker.train import train
from ranker.training.plugins import goes_on
from ranker.training.stages import run_stage

#: day of the world that is served first: before it, its own policy shows lists
FIRST_DAY = 30
#: what an arm is read from, beside the world and its TOML
CODE = ("features", "ranker")
#: time between two events of a list
STEP = 12 * SECOND
#: items of the list that `Rank` orders, where it does
LISTED = 100
#: events of a request have ids from this many times its number on
EVENTS_OF_A_REQUEST = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Lived:
    """What an arm's days were worth: float64[days, users] each."""

    reward: F64  # sum over the user's lists of the expected grades of what was shown, by places of a list
    lists: F64  # the user's lists
    sent: int  # events that were sent
    recorded: int  # of them, that the server says it recorded
    duplicates: int  # that came again after a crash, and were known
    degraded: int  # lists that a source or plugin was too late for
    refused: list[str]  # deployments that a server refused, and why
    compared: Agreement  # what was served, with what the log gives


def run_loop(config: Config, plugin: str, days: int) -> dict[str, Lived]:
    """Run all arms; return what each was worth, by name. An arm that ended is not run again.

    config: of a folder of `pairlift world`. PairliftError where it is none.
    """
    of = made_of(config)
    toml = tomllib.loads(config.text)
    found = {}
    arms = arms_of(toml, plugin)
    for arm in progress_bar(arms, desc="loop", unit="arm"):
        inputs = [of, arm.toml, arm.retrained, days, code_hash(*CODE)]
        name = arm.name.replace(" ", "-")

        def make(folder: Path, arm: Arm = arm) -> None:
            _save(folder, Life(of["scale"], of["seed"], arm, config.work / "loop-running").lived(days))

        found[arm.name] = _load(run_stage(config.work / "loop", name, inputs, make))
    return found


def made_of(config: Config) -> dict[str, Any]:
    """Return scale and seed of the world that a TOML is of. PairliftError where it is of none."""
    made = config.path.parent / MADE_OF
    if not made.is_file():
        raise PairliftError(
            f"study loop: {config.path.parent} was expected to be a folder of `pairlift world`, with {MADE_OF}, whose "
            "users can be asked; make one"
        )
    return dict(json.loads(made.read_text()))


class Life:
    """One arm: its world, its folder, its server."""

    def __init__(self, scale: float, seed: int, arm: Arm, folder: Path) -> None:
        self._rng = np.random.default_rng(seed)
        self._world = born_of(self._rng, scale)
        w = self._world
        self._lives = Lives(w.catalogue.items, w.users, w.visits, w.after, seed)
        self._arm, self._folder, self._service = arm, folder, Service(folder)
        self._bundles: list[Path] = []
        self._received = Received(0, 0)
        self._sent, self._refused = 0, list[str]()
        self._degraded, self._logged = 0, 0  # lists that something was late for; rows of all lists
        self._firsts = dict[str, _First]()  # by id, requests that begin a round: all events before them were known

    def lived(self, days: int) -> Lived:
        """Run so many days, with a crash in the middle one."""
        _emptied(self._folder)
        _first_days(self._folder, self._rng, self._world, self._lives)
        users = len(self._world.users.taste)
        reward, lists = np.zeros((days, users)), np.zeros((days, users))
        try:
            for day in range(days):
                self._begin(day)
                self._day(FIRST_DAY + day, reward[day], lists[day], crash=day == days // 2)
            self._service.exported()
        finally:
            self._service.stop()
        r = self._received
        return Lived(
            reward=reward,
            lists=lists,
            sent=self._sent,
            recorded=r.recorded,
            duplicates=r.duplicates,
            degraded=self._degraded,
            refused=self._refused,
            compared=self.compared(),
        )

    def compared(self) -> Agreement:
        """Compare what was served with what is exported by now."""
        return agreement(*self.record())

    def record(self) -> tuple[Config, list[Path], Path, dict[str, Reply]]:
        """Return what `agreement` takes, with the answers to requests before which all is exported."""
        told = self._service.exported_events
        known = {name: first.reply for name, first in self._firsts.items() if first.sent <= told}
        replies = {name: reply for name, reply in known.items() if reply is not None and not reply.degraded}
        return self._config(with_log(self._arm.toml)), self._bundles, self._service.features, replies

    def _config(self, toml: Toml) -> Config:
        path = self._folder / "pairlift.toml"
        path.write_text(toml_text(toml))
        return load_config(path)

    def _begin(self, day: int) -> None:
        """Train and deploy the day's bundle."""
        if day and not self._arm.retrained:
            return
        if day:
            self._service.exported()
        out = self._folder / f"bundle-{day}"
        config = self._config(with_log(self._arm.toml) if day else self._arm.toml)
        warm = bool(self._bundles) and all(goes_on(config, plugin) for plugin in config.ranker.plugins)
        train(config, out, earlier=self._bundles[-1] if warm and config.ranker.plugins else None)
        self._bundles.append(out)
        if day:
            try:
                self._service.deploy(out)
            except PairliftError as error:
                self._refused.append(str(error))
        else:
            self._service.start(out)

    def _day(self, day: int, reward: F64, lists: F64, crash: bool) -> None:
        requests = np.flatnonzero(self._world.visits.day == day)
        requests = requests[np.argsort(self._world.begun[requests], kind="stable")]
        rounds = list(in_rounds(requests, self._world.visits.user))
        for k, some in enumerate(progress_bar(rounds, desc=f"{self._arm.name}, day {day}", unit="round")):
            met = [self._met(int(request), reward, lists) for request in some]
            self._firsts[str(some[0])] = _First(self._sent, met[0].reply)
            batch = _batch(self._rng, self._world, some, met)
            self._sent += len(batch.events)
            if crash and k == len(rounds) // 2:
                self._service.written(self._logged)
                received = self._service.crash_while_recording(batch, self._bundles[0])
            else:
                received = self._service.record(batch)
            self._received = Received(*(np.add(self._received, received).tolist()))

    def _met(self, request: int, reward: F64, lists: F64) -> "_Met":
        """Ask for a user's list and let the user meet it."""
        visits, user = self._world.visits, int(self._world.visits.user[request])
        who, at, device = user + FIRST_USER, int(self._world.begun[request]), "tv" if visits.large[request] else "phone"
        by_rank = self._arm.by_rank
        reply = self._service.recommend(who, LISTED if by_rank else LIST, at, device, str(request))
        ordered = self._service.by_rank(who, reply, at, device) if by_rank else reply
        shown = np.array([(int(one.item) - FIRST_ITEM) // 3 for one in ordered.items[:LIST]], np.int32)
        item, grade, expected = self._lives.meet(request, shown)
        reward[user] += expected[: len(shown)].sum() / LIST
        lists[user] += 1
        self._degraded += bool(reply.degraded)
        self._logged += len(reply.items)
        return _Met(item, grade, len(shown), reply)


class _Met(NamedTuple):
    """What a request brought."""

    item: I32  # [n]
    grade: I8  # [n]
    shown: int  # of the list; behind it is what was looked for
    reply: Reply | None = None  # what showed the list; None: the world's own policy


class _First(NamedTuple):
    """A request that begins a round."""

    sent: int  # events that were sent before it
    reply: Reply | None


def in_rounds(requests: I64, user: I64) -> Iterator[I64]:
    """Yield requests, in their order, cut before a user comes again: a list follows from what the one before brought.

    user: of each request of the world.
    """
    start, met = 0, set[int]()
    for k, who in enumerate(user[requests].tolist()):
        if who in met:
            yield requests[start:k]
            start, met = k, set()
        met.add(who)
    if len(requests):
        yield requests[start:]


def _told(rng: np.random.Generator, world: World, requests: I64, met: list[_Met]) -> dict[str, Any]:
    """Return the columns of the log of what some requests brought, and `event_id`."""
    sizes = np.array([len(one.item) for one in met])
    request, shown = np.repeat(requests, sizes), np.repeat([one.shown for one in met], sizes)
    place = np.arange(len(request)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    item, grade = (np.concatenate([one[k] for one in met]) for k in (0, 1))
    ts = world.begun[request] + place * STEP
    told = told_of(rng, world, ts, request, place, place >= shown, item, grade)
    ids = {"event_id": request * EVENTS_OF_A_REQUEST + place}
    return ids | told | {"request_id": pa.array(told["request_id"].to_pylist(), pa.int64()).cast(pa.string())}


def _batch(rng: np.random.Generator, world: World, requests: I64, met: list[_Met]) -> Batch:
    told = _told(rng, world, requests, met)
    ts = pa.array(told["ts"]).cast(pa.int64())
    names = ("event_id", "user_id", "item_id", "surface", "organic", "request_id")
    events = {name: told[name] for name in names} | {"ts": ts, "position": told["position"].cast(pa.int32())}
    numbers = {name: pa.array(told[name]).cast(pa.float64()) for name in ("watched", "replays")}
    liked = pa.array(told["liked"].astype(np.float64))
    return Batch(pa.table(events), {**numbers, "liked": liked, "device": told["device"]}, [])


def _first_days(folder: Path, rng: np.random.Generator, world: World, lives: Lives) -> None:
    """Write what the users did before the first served day, and who and what they and the items are."""
    before = np.flatnonzero(world.visits.day < FIRST_DAY)
    before = before[np.argsort(world.begun[before], kind="stable")]
    met = [_Met(*lives.meet(int(request))[:2], LIST) for request in before]
    items = item_table(world.catalogue) | {"born": START / SECOND + world.catalogue.born * (DAY / SECOND)}
    tables = {OLD: _told(rng, world, before, met), "items.parquet": items}
    tables["users.parquet"] = user_table(rng, world.interest)
    for name, columns in tables.items():
        with written(folder / name) as partial:
            pq.write_table(pa.table(columns), partial)
            # A stage's key has a file's time: of the same bytes it must be the same, or no arm finds another's fit.
            os.utime(partial, (0, zlib.crc32(partial.read_bytes())))


def _emptied(folder: Path) -> None:
    """Make or empty an arm's folder, but for the plugins that others fitted: those of the first day are the same."""
    fitted, kept = folder / "work" / "plugins", folder.with_name(f"{folder.name}-plugins")
    if fitted.exists():
        shutil.rmtree(kept, ignore_errors=True)
        fitted.rename(kept)
    shutil.rmtree(folder, ignore_errors=True)
    fitted.parent.mkdir(parents=True)
    if kept.exists():
        kept.rename(fitted)


def _save(folder: Path, lived: Lived) -> None:
    np.savez(folder / "lived.npz", reward=lived.reward, lists=lived.lists)
    counts = {
        name: getattr(lived, name) for name in ("sent", "recorded", "duplicates", "degraded", "refused", "compared")
    }
    (folder / "lived.json").write_text(json.dumps(counts))


def _load(folder: Path) -> Lived:
    with np.load(folder / "lived.npz") as arrays:
        counts = json.loads((folder / "lived.json").read_text())
        return Lived(**arrays, **counts | {"compared": Agreement(*counts["compared"])})
