"""One bundle that answers: messages in, messages out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pairlift.v1 import ranking_pb2 as pb

from features.state.store import State
from ranker.bundle import Bundle
from ranker.pipeline import Pipeline
from ranker.recording.featurelog import FeatureLog
from ranker.recording.follower import Follower
from ranker.request import Answer, Request, awaited
from ranker.serving import clock
from ranker.serving.watching.calls import CURRENT
from ranker.wire import Wire, attribute_messages


@dataclass(frozen=True, slots=True)
class FeaturesTo:
    """Where the feature values that requests used are logged."""

    folder: Path
    share: float  # of the requests that are taken, in (0, 1]


class Served:
    """A bundle, the state that its answers are of, and what turns one call into an answer.

    It raises what `ranker.serving.status` knows, and knows nothing of gRPC: who may call, and when, is settled before.
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
                features_to.folder, columns=bundle.columns, version=bundle.version, share=features_to.share
            )

    def clock(self, state: State) -> int:
        """Return the as_of (µs UTC) of a request that has none."""
        return state.end if self.past else clock.now_wall()

    def recommend(self, message: pb.RecommendRequest, check: Callable[[], None] = awaited) -> pb.RecommendResponse:
        """Propose and rank. check: as `Request.check`."""
        k = self.wire.k(message)
        asked = self._asked(message, check)
        found = self.pipeline.recommend(asked, k)
        self._answered(asked, found)
        return self.wire.recommended(found, asked)

    def rank(self, message: pb.RankRequest, check: Callable[[], None] = awaited) -> pb.RankResponse:
        """Rank the caller's items. check: as `Request.check`."""
        items = self.wire.values("items", message.items)
        asked = self._asked(message, check)
        given = self.wire.given(message.columns, len(items))
        found = self.pipeline.rank(asked, self.wire.candidates(items, asked.state), given)
        self._answered(asked, found)
        return self.wire.ranked(found, asked, items)

    def _asked(self, message: pb.RecommendRequest | pb.RankRequest, check: Callable[[], None]) -> Request:
        """Read a request. The state of now is taken here, once: the request carries it, and the answer is of it."""
        state = self.pipeline.state
        asked = self.wire.request(message, self.clock(state), state)
        wanted = self.feature_log is not None and self.feature_log.wants(asked.request_id)
        return replace(asked, check=check, keep_values=wanted)

    def _answered(self, asked: Request, found: Answer) -> None:
        """Tell metrics and traces which bundle answered and how, and the feature log what it is to keep."""
        call = CURRENT.get()
        if call is not None:
            call.bundle, call.columns, call.answer = self.bundle.version, self.bundle.columns, found
        if self.feature_log is not None and found.values is not None:
            self.feature_log.offer(asked, found, found.values)

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

    def close(self) -> None:
        """Let the threads end, and write what the feature log still holds."""
        self.pipeline.close()
        if self.follower is not None:
            self.follower.close()
        if self.feature_log is not None:
            self.feature_log.close()
