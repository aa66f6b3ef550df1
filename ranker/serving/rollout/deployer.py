"""Changes of what is deployed: one at a time, each a function from a plan to the next (`ranker.serving.rollout.plan`).

A bundle is loaded on a thread of low priority that rests between its steps, warmed and tried; then the plan is written,
and one reference swapped. Where anything fails before that, what answered goes on, and nothing is written.
"""

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pairlift.v1 import admin_pb2 as admin

from features.errors import PairliftError, told
from features.pace import at_low_priority
from ranker.bundle import Bundle, load_bundle, read_manifest
from ranker.serving.deployment import Aside, Deployment, Standing
from ranker.serving.rollout.plan import Place, Plan
from ranker.serving.rollout.shadow import Shadow
from ranker.serving.rollout.split import CONTROL
from ranker.serving.rollout.store import Store
from ranker.serving.rollout.trial import tried
from ranker.serving.served import Served

log = logging.getLogger(__name__)

ARM = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: makes what answers from a bundle, its state up to date
Make = Callable[[Bundle], Served]


class NotSeenError(PairliftError):
    """This process does not see the bundle that was named: it may be uploaded."""


class BusyError(PairliftError):
    """Another change is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A deployment that is asked for; with neither arm nor shadow in the place of the active bundle."""

    folder: Path | None  # None: `version` was uploaded
    version: str = ""  # that the bundle must have; empty: any, or without a folder none: the arm keeps its own
    arm: str = ""
    share: float = 0.0
    experiment: str = ""
    shadow: bool = False
    force: bool = False

    def check(self) -> None:
        """Raise PairliftError for what contradicts itself."""
        if self.arm and self.shadow:
            raise PairliftError("--arm and --shadow: one of them was expected: an arm answers, a shadow does not")
        if self.share and not (self.arm or self.shadow):
            raise PairliftError("--share: say of what, with --arm NAME or --shadow")
        if self.arm and (not ARM.fullmatch(self.arm) or self.arm == CONTROL):
            raise PairliftError(f"--arm '{self.arm}': letters, digits, - and _ were expected, and not '{CONTROL}'")
        if not (self.folder or self.version or self.arm):
            raise PairliftError("a bundle was expected; without one, only the share of an arm can change")


class Deployer:
    """Holds the plan, and lets the deployment follow it."""

    def __init__(
        self, deployment: Deployment, make: Make, before: Callable[[Served], None], store: Store | None
    ) -> None:
        """before: takes what is about to become active, just before it does; PairliftError where it must not.

        store: None keeps nothing: after a restart the server is what it was started with.
        """
        active = deployment.active.bundle
        place = Place(folder=str(active.folder.resolve()), version=active.version)
        if store is not None and _is_there(place):
            place = store.keep(active.folder)
        self.deployment, self.plan, self.store = deployment, Plan(known=(place.version,), active=place), store
        self._make, self._before = make, before
        self._served = {place.version: deployment.active}  # of the plan, by version
        self._applied = None if store is None else store.changed()
        self._changing = threading.Lock()

    def resume(self) -> None:
        """Go on with the plan of the store, unless the server is started with a bundle that it has never had."""
        plan = None if self.store is None else self.store.plan()
        if plan is None:
            return
        if self.plan.active.version not in plan.known:
            log.warning(
                "bundle %s is new to the deployment in --bundles, where %s was active: it begins anew",
                *(self.plan.active.version, plan.active.version),
            )
            return
        if plan.previous is not None and not _is_there(plan.previous):
            log.warning("the previous bundle %s is gone: there is nothing to roll back to", plan.previous.folder)
            plan = plan.model_copy(update={"previous": None})
        missing = [place for place in plan.places if place.version not in self._served]
        self._apply(plan, {place.version: self._loaded(place, log.info, aside=False) for place in missing})
        log.info("the deployment of before goes on: bundle %s is active", plan.active.version)

    def deploy(self, wanted: Wanted, say: Callable[[str], None]) -> admin.Comparison | None:
        """Try a bundle and put it where it is wanted; None where there was none to try.

        say: takes a sentence for each step. PairliftError where it is refused; then all is as before.
        """
        wanted.check()
        with self._alone():
            place, figures, loaded = self._place(wanted), None, {}
            # What cannot be is refused now, and not after the loading.
            if self._planned(wanted, place) is self.plan:
                say(f"bundle {self.plan.active.version} is active already: nothing has changed")
                return None
            self._tell_replaced(wanted.arm, place, say)
            if place is not None and place.version not in self._served:
                loaded[place.version] = self._loaded(place, say)
                try:
                    active = self.deployment.active
                    figures = tried(active, loaded[place.version], self.deployment.recent.newest(64), wanted.force, say)
                except BaseException:
                    loaded[place.version].close()
                    raise
            self._commit(self._planned(wanted, place), loaded)
        say("deployed: requests that begin from now on are answered accordingly")
        return figures

    def _tell_replaced(self, arm: str, place: Place | None, say: Callable[[str], None]) -> None:
        """Say where an arm that is under way gets another bundle."""
        before = self.plan.arms.get(arm)
        if before is not None and place is not None and before.version != place.version:
            say(
                f"arm {arm} answers with bundle {before.version}, in whose place {place.version} comes: what the arm's "
                "users did before and after is of two bundles"
            )

    def _planned(self, wanted: Wanted, place: Place | None) -> Plan:
        plan = self.plan
        if wanted.arm:
            share = wanted.share or plan.split.share(wanted.arm)
            return plan.with_arm(wanted.arm, place, share, wanted.experiment, self._now())
        assert place is not None
        return plan.shadowed(place, wanted.share or 1.0) if wanted.shadow else plan.deployed(place)

    def _now(self) -> int:
        """Return the server's time (µs UTC), which is that of the events that it records."""
        active = self.deployment.active
        return active.clock(active.pipeline.state)

    def change(self, step: Callable[[Plan], Plan]) -> None:
        """Take another plan, of bundles that are there. Raises what the step raises."""
        with self._alone():
            self._commit(step(self.plan), {})

    def rollback(self) -> None:
        """Exchange the active and the previous bundle."""
        self.change(Plan.rolled_back)

    def promote(self, arm: str) -> None:
        """Let an arm's bundle answer all, and end the arm."""
        self.change(lambda plan: plan.promoted(arm, self._now()))

    def drop(self, arm: str) -> None:
        """End an arm, or with an empty name the shadow."""
        self.change(lambda plan: plan.dropped(arm, self._now()))

    def poll(self) -> None:
        """Follow a plan that another process wrote; a server calls it twice a second."""
        if self.store is None or self.store.changed() == self._applied:
            return
        if not self._changing.acquire(blocking=False):
            return  # a change of our own is under way, and looks at the file itself
        try:
            self._read()
        finally:
            self._changing.release()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other changes out, those of other processes too, and begin from the latest plan."""
        with contextlib.ExitStack() as held:
            free = self._changing.acquire(blocking=False)
            if free:
                held.callback(self._changing.release)
                free = self.store is None or held.enter_context(self.store.locked())
            if not free:
                raise BusyError("another deployment is under way on this server: try again when it is done")
            self._read()
            yield

    def _read(self) -> None:
        """Take over the plan of the file, where another process changed it."""
        if self.store is None or (changed := self.store.changed()) == self._applied:
            return
        plan = self.store.plan()
        if plan is not None and plan != self.plan:
            self._apply(plan, {})
        self._applied = changed

    def _commit(self, plan: Plan, loaded: dict[str, Served]) -> None:
        """Write a plan, and let the deployment follow it."""
        if plan is self.plan:
            return
        self._apply(plan, loaded, self._save)
        log.info("deployment %d: %s", plan.number, _told(plan))

    def _save(self, plan: Plan) -> None:
        if self.store is not None:
            self.store.save(plan)
            self._applied = self.store.changed()

    def _apply(self, plan: Plan, loaded: dict[str, Served], write: Callable[[Plan], None] = lambda plan: None) -> None:
        """Let the deployment follow a plan. write: keeps it, just before; where that fails, what answered goes on."""
        known = {**self._served, **loaded}
        # One that an earlier version stood for: `_loaded` for those that another process tried.
        served = {p.version: known.get(p.version) or self._loaded(p, log.info) for p in plan.places}
        before, active = self.deployment.active, served[plan.active.version]
        if active is not before:
            self._before(active)
        try:
            write(plan)
        except BaseException:
            self._before(before)
            raise
        self.deployment.swap(
            Standing(
                active=active,
                previous=None if plan.previous is None else served[plan.previous.version],
                arms={name: served[place.version] for name, place in plan.arms.items()},
                splits=tuple((since.time, since.split) for since in plan.splits),
                shadow=self._shadow(plan, served),
            )
        )
        self._served, self.plan = served, plan

    def _shadow(self, plan: Plan, served: dict[str, Served]) -> Aside | None:
        """Return the shadow of a plan: the one that runs, where the plan has it already, so that its figures go on."""
        if plan.shadow is None:
            return None
        wanted, running = served[plan.shadow.version], self.deployment.standing.shadow
        if running is not None and running.served is wanted and running.share == plan.shadow_share:
            return running
        return Shadow(wanted, plan.shadow_share)

    def _place(self, wanted: Wanted) -> Place | None:
        """Return where the wanted bundle is read from; NotSeenError where this process does not see it."""
        if wanted.folder is None:
            if not wanted.version:
                return None
            if self.store is None:
                raise PairliftError("this server keeps no bundles: start it with --bundles DIR")
            return self.store.uploaded(wanted.version)
        try:
            found = str(read_manifest(wanted.folder)["version"])
        except PairliftError as error:
            raise NotSeenError(f"the server sees no bundle at {wanted.folder}: {error}") from error
        if wanted.version not in ("", found):
            raise NotSeenError(f"at {wanted.folder} the server sees bundle {found}, not {wanted.version}")
        if self.store is not None:
            return self.store.keep(wanted.folder)
        return Place(folder=str(wanted.folder.resolve()), version=found)

    def _loaded(self, place: Place, say: Callable[[str], None], aside: bool = True) -> Served:
        """Return what serves a bundle, verified and warm; PairliftError where that cannot be.

        aside: requests are answered meanwhile.
        """
        say(f"loading bundle {place.version}{' beside the one that answers' if aside else ''}")
        try:
            load = partial(load_bundle, Path(place.folder))
            bundle = at_low_priority(load) if aside else load()
            if bundle.version != place.version:
                raise PairliftError(f"{place.folder} is bundle {bundle.version} by now, not {place.version}")
            served = self._make(bundle)
            failed = served.warm()
        except PairliftError:
            raise
        except Exception as error:
            log.exception("bundle %s cannot be loaded", place.version)
            raise PairliftError(
                f"bundle {place.version} is refused, and the one before goes on: it cannot be loaded "
                f"({told(error)}); the server's log has more"
            ) from error
        if failed:
            served.close()
            raise PairliftError(
                f"bundle {place.version} is refused, and the one before goes on: {', '.join(failed)} failed while "
                "warming up; the server's log has more"
            )
        say(f"bundle {place.version} is verified, loaded and warm")
        return served


def _told(plan: Plan) -> str:
    """Return what a plan lets answer, for a line of the log."""
    arms = [
        f", {place.version} answers {plan.split.share(name):.2%} as arm {name}" for name, place in plan.arms.items()
    ]
    shadow = "" if plan.shadow is None else f", {plan.shadow.version} is the shadow"
    return f"bundle {plan.active.version} is active{''.join(arms)}{shadow}"


def _is_there(place: Place) -> bool:
    try:
        return str(read_manifest(Path(place.folder))["version"]) == place.version
    except PairliftError:
        return False
