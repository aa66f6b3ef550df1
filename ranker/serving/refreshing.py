"""What plugins compute of users' histories ahead of requests: one refresh at a time, at low priority, with rests."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from features.errors import PairliftError
from features.pace import at_low_priority
from features.plugin import AheadPlugin
from features.state.refreshed import Ahead, RefreshedStates
from ranker.serving.deployment import Deployment
from ranker.serving.rollout.deployer import BusyError
from ranker.serving.rollout.store import RefreshAsked, Store
from ranker.serving.served import Served

log = logging.getLogger(__name__)

#: seconds that a refresh that was told to end may take for it
PATIENCE = 10.0
#: more users than any server has
ALL = 2**31


class Refreshed(NamedTuple):
    """What was computed of one plugin."""

    version: str  # of the bundle
    plugin: str
    states: RefreshedStates


class Refresher:
    """Refreshes what the plugins of the bundles that answer computed ahead, in all processes of a server."""

    def __init__(self, deployment: Deployment, store: Store | None) -> None:
        """store: by which the processes of a server tell each other; None: there are no others."""
        self._deployment, self._store = deployment, store
        self._applied = None if store is None else store.refresh_changed()
        self._alone, self._stopped = threading.Lock(), threading.Event()

    def refresh(self, asked: RefreshAsked, told: Callable[[int, int], None]) -> list[Refreshed]:
        """Refresh here, on a thread of low priority, and have the other processes do so.

        told: as `Ahead.told`. PairliftError where no plugin can, there is no room, or a bundle or the server goes
        meanwhile; BusyError where a refresh is under way.
        """
        if not self._alone.acquire(blocking=False):
            raise BusyError("another refresh is under way on this server: try again when it is done")
        try:
            wanted = self._wanted()
            if not wanted:
                raise PairliftError(
                    "no plugin of the bundles that answer computes anything ahead: one with a method `refresh` was "
                    "expected (features.plugin.AheadPlugin), such as neural.two_tower:TwoTower"
                )
            if self._store is not None:
                self._store.ask_refresh(asked)
                self._applied = self._store.refresh_changed()
            return self._refreshed(wanted, asked, told)
        finally:
            self._alone.release()

    def poll(self) -> None:
        """Refresh where another process was asked to; a server calls it twice a second."""
        if self._store is None or (changed := self._store.refresh_changed()) == self._applied:
            return
        if not self._alone.acquire(blocking=False):
            return  # the next look finds it too
        try:
            self._applied = changed
            self._refreshed(self._wanted(), self._store.refresh_asked(), lambda done, total: None)
        except PairliftError as error:  # too little memory, or the bundle or the server goes: its caller is told so too
            log.warning("the refresh that another process was asked for was not done here: %s", error)
        finally:
            self._alone.release()

    def close(self) -> None:
        """End a refresh that is under way; any other ends with its first step."""
        self._stopped.set()
        if self._alone.acquire(timeout=PATIENCE):
            self._alone.release()

    def _wanted(self) -> list[tuple[Served, str, AheadPlugin]]:
        """Return the plugins of the bundles that answer that compute ahead, each with its bundle and name."""
        standing = self._deployment.standing
        answering = {id(served): served for served in (standing.active, *standing.arms.values())}
        return [
            (served, name, plugin)
            for served in answering.values()
            for name, plugin in served.bundle.plugins.items()
            if isinstance(plugin, AheadPlugin)
        ]

    def _refreshed(
        self, wanted: list[tuple[Served, str, AheadPlugin]], asked: RefreshAsked, told: Callable[[int, int], None]
    ) -> list[Refreshed]:
        found = []
        for served, name, plugin in wanted:
            states = at_low_priority(partial(plugin.refresh, self._ahead(served, asked, told)))
            found.append(Refreshed(served.bundle.version, name, states))
            log.info(
                "bundle %s: %s has states of %s users ahead of requests, %s of them computed anew (%.0f MB)",
                *(served.bundle.version, name, f"{len(states):,}", f"{states.computed:,}", states.bytes / 1e6),
            )
        return found

    def _ahead(self, served: Served, asked: RefreshAsked, told: Callable[[int, int], None]) -> Ahead:
        def check(done: int, total: int) -> None:
            if self._stopped.is_set():
                raise PairliftError("the server is stopping: the refresh is not done")
            if all(served is not one for one in self._deployment.standing.all):
                raise PairliftError(f"bundle {served.bundle.version} was replaced meanwhile: refresh again")
            told(done, total)

        as_of = served.clock(served.pipeline.state)
        return Ahead(lambda: served.pipeline.state.histories, as_of, asked.users or ALL, asked.memory, check)
