"""One bundle that answers: messages in, messages out."""

import atexit
import gc
import threading
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pairlift.v1 import ranking_pb2 as pb

from features.state.store import State
from ranker.asking.messages import id_message, ids_message
from ranker.bundle import Bundle
from ranker.ids import IdTable
from ranker.pipeline import Pipeline
from ranker.recording.events import ArmOf, no_arm
from ranker.recording.featurelog import SECONDS, FeatureLog
from ranker.recording.follower import Follower
from ranker.recording.snapshots import Origin
from ranker.request import Answer, Check, Request, awaited
from ranker.serving import clock
from ranker.serving.watching.calls import CURRENT
from ranker.wire import Wire, attribute_messages

#: items of a request that warms up
SOME = 100

# `Served.warm` freezes what is loaded: at the end of the process, modules clean up only what is not.
atexit.register(gc.unfreeze)


@dataclass(frozen=True, slots=True)
class FeaturesTo:
    """Where the feature values that requests used are logged."""

    folder: Path
    share: float  # of the requests that are taken, in (0, 1]
    seconds: float = SECONDS  # that an answer waits at most before it is written: what a crash may lose


class Served:
    """A bundle, the state that its answers are of, and what turns one call into an answer.

    It raises what `ranker.serving.status` knows, and knows nothing of gRPC: who may call, and when, is settled before.

    Its threads end and its feature log is written once nothing refers to it any more: a request that is under way does,
    so a bundle is replaced without a look at who still reads it, and no request pays for a count.
    """

    def __init__(
        self,
        bundle: Bundle,
        wire: Wire,
        *,
        past: bool = False,
        follower: Follower | None = None,
        features_to: FeaturesTo | None = None,
    ) -> None:
        """past: a request without an as_of is as of the end of the state, not of now. follower: of the log whose events
        the answers are to know, started; None: the state is the bundle's.

        features_to: None logs no feature values.
        """
        self.bundle, self.wire, self.past, self.follower = bundle, wire, past, follower
        self.pipeline = Pipeline(bundle, state=None if follower is None else lambda: follower.state)
        self.feature_log = None
        if features_to is not None:
            self.feature_log = FeatureLog(
                features_to.folder,
                columns=bundle.columns,
                version=bundle.version,
                share=features_to.share,
                seconds=features_to.seconds,
            )

        # Aside: the last reference may go on a request's thread, and that must not wait for a disk.
        self._end = weakref.finalize(self, _close_aside, self.pipeline, follower, self.feature_log)
        self._end.atexit = False

    def clock(self, state: State) -> int:
        """Return the as_of (µs UTC) of a request that has none."""
        return state.end if self.past else clock.now_wall()

    def recommend(
        self, message: pb.RecommendRequest, check: Check = awaited, *, arm: str = "", aside: bool = False
    ) -> pb.RecommendResponse:
        """Propose and rank. check: as `Request.check`. arm: of the user, empty for none.

        aside: nobody gets the answer, so nothing of it is logged or counted.
        """
        k = self.wire.k(message)
        asked = self._asked(message, check, arm, aside)
        found = self.pipeline.recommend(asked, k)
        self._answered(asked, found, arm)
        reply = self.wire.recommended(found, asked)
        reply.arm = arm
        return reply

    def rank(
        self, message: pb.RankRequest, check: Check = awaited, *, arm: str = "", aside: bool = False
    ) -> pb.RankResponse:
        """Rank the caller's items. check, arm, aside: as for `recommend`."""
        items = self.wire.values("items", message.items)
        asked = self._asked(message, check, arm, aside)
        given = self.wire.given(message.columns, len(items))
        found = self.pipeline.rank(asked, self.wire.candidates(items, asked.state), given)
        self._answered(asked, found, arm)
        reply = self.wire.ranked(found, asked, items)
        reply.arm = arm
        return reply

    def _asked(self, message: pb.RecommendRequest | pb.RankRequest, check: Check, arm: str, aside: bool) -> Request:
        """Read a request. The state of now is taken here, once: the request carries it, and the answer is of it.

        What is asked aside explores nothing: it is compared. The feature log keeps all that does, for it is little, and
        what other bundles are judged by.
        """
        state, log, exploration = self.pipeline.state, self.feature_log, self.pipeline.exploration
        wanted = not aside and log is not None and log.wants(message.request_id)
        code = state.catalog.arm_code(arm) if arm else -1
        explores = exploration is not None and not aside and isinstance(message, pb.RecommendRequest)
        asked = self.wire.request(
            message, self.clock(state), state, arm=code, keep_values=wanted, may_explore=explores, check=check
        )
        if exploration is None or log is None or wanted or not asked.request_id or exploration.key(asked) is None:
            return asked
        return replace(asked, keep_values=True)

    def _answered(self, asked: Request, found: Answer, arm: str) -> None:
        """Tell metrics and traces which bundle answered and how, and the feature log what it is to keep."""
        call = CURRENT.get()  # none for what is asked aside: it runs on a thread of its own
        if call is not None:
            call.bundle, call.columns, call.arm, call.answer = self.bundle.version, self.bundle.columns, arm, found
        if self.feature_log is not None and found.values is not None:
            self.feature_log.offer(asked, found, found.values, arm)

    def warm(self) -> list[str]:
        """Do all that requests do, so that none waits for a compiler; return the sources and plugins that failed."""
        failed = self.pipeline.warm()
        catalog = self.pipeline.state.catalog
        items, user = catalog.item_ids[:SOME].tolist(), catalog.user_ids[:1].tolist()
        for who in (None, *map(id_message, user)):
            self.rank(pb.RankRequest(user=who, items=ids_message([*items, *items[:1]])), aside=True)
            self.recommend(pb.RecommendRequest(user=who, k=1, exclude=ids_message(items[:1])), aside=True)
        # What is loaded stays: a full collection would look at each of its objects, 0.2 s in which no call is answered.
        # It has no cycles, so that it goes with its last reference all the same.
        gc.freeze()
        return failed

    def described(self) -> dict[str, Any]:
        """Return the fields of a DescribeResponse that are of the bundle and its state."""
        bundle, wire, state = self.bundle, self.wire, self.pipeline.state
        catalog = state.catalog
        kinds = {False: pb.ID_KIND_INTEGER, True: pb.ID_KIND_TEXT}
        return {
            "bundle_version": bundle.version,
            "name": bundle.config.name,
            "snapshot_time": state.end,
            "clock": self.clock(state),
            "time_zone": bundle.config.time.zone,
            "user_ids": kinds[wire.users.text],
            "item_ids": kinds[wire.items.text],
            "users": catalog.all_users,
            "items": catalog.all_items,
            "surfaces": catalog.surfaces,
            "source_names": self.pipeline.source_names,
            "feature_names": bundle.columns,
            "wanted_feature_names": bundle.wanted_columns,
            "context_attributes": attribute_messages(catalog.contexts),
            "candidate_columns": attribute_messages(catalog.candidates),
            "list_features": bundle.spec.listed,
            "max_k": wire.limits.max_k,
            "default_k": wire.default_k,
            "max_items": wire.limits.max_items,
            "failures": self.pipeline.failures.counts(),
        }

    def retire(self) -> None:
        """Follow the log no longer: no request begins here any more, and what is under way has its state."""
        if self.follower is not None:
            threading.Thread(target=self.follower.pause, name="retire", daemon=True).start()

    def close(self) -> None:
        """Let the threads end, and write what the feature log still holds."""
        if self._end.detach() is not None:
            _close(self.pipeline, self.follower, self.feature_log)


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes what answers from a bundle, for one server."""

    past: bool  # as for `Served`
    features_to: FeaturesTo | None  # likewise
    log: Path | None  # the folder of the log whose events the answers are to know; None: there is none
    arm_of: ArmOf = no_arm  # the arms of the users of recorded events

    def served(self, bundle: Bundle, origin: Origin | None = None) -> Served:
        """Return what answers from a bundle, its state caught up with the log; PairliftError where that cannot be.

        origin: of the snapshot that its state is; None: the state is of the bundle's training.
        """
        catalog, config = bundle.state.catalog, bundle.config
        users, items = IdTable(catalog.user_ids), IdTable(catalog.item_ids)
        ks = {name: profile.k for name, profile in config.surfaces.items() if profile.k}
        wire = Wire(catalog, users, items, limits=config.serve, max_id_bytes=config.record.max_id_bytes, ks=ks)
        follower = None
        if self.log is not None:
            follower = Follower(bundle, self.log, users=users.find, items=items.find, origin=origin, arm_of=self.arm_of)
        try:
            if follower is not None:
                follower.catch_up()
            return Served(bundle, wire, past=self.past, follower=follower, features_to=self.features_to)
        except BaseException:
            if follower is not None:
                follower.close()
            raise


def _close_aside(*parts: Any) -> None:
    threading.Thread(target=_close, args=parts, name="retire", daemon=True).start()


def _close(pipeline: Pipeline, follower: Follower | None, feature_log: FeatureLog | None) -> None:
    pipeline.close()
    if follower is not None:
        follower.close()
    if feature_log is not None:
        feature_log.close()
