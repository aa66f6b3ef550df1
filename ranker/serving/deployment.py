"""Which bundle answers a request."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from pairlift.v1 import ranking_pb2 as pb

from features.schema import I64
from ranker.request import Check, awaited
from ranker.serving.rollout.recent import Asked, Recent
from ranker.serving.rollout.split import I16, Split
from ranker.serving.served import Served

Reply = pb.RecommendResponse | pb.RankResponse


class Aside(Protocol):
    """What takes a share of the requests aside: `ranker.serving.rollout.shadow`."""

    served: Served
    share: float

    def offer(self, message: Asked, reply: Reply, seconds: float) -> None:
        """Take a request that the active bundle answered; never waits."""

    def close(self) -> None:
        """Let the thread end."""


@dataclass(frozen=True)
class Standing:
    """The bundles that stand at one moment: swapped as one."""

    active: Served
    previous: Served | None = None  # what a rollback makes active
    arms: dict[str, Served] = field(default_factory=dict)  # of the experiment, by name
    splits: tuple[tuple[int, Split], ...] = ()  # the latest, each with the time (µs UTC) from which it holds
    shadow: Aside | None = None

    @property
    def split(self) -> Split:
        """The split that holds now."""
        return self.splits[-1][1] if self.splits else Split()

    @property
    def roles(self) -> list[tuple[str, str, Served]]:
        """(role, name of the arm, bundle) of all, the active one first and the shadow last; role: as in admin.proto."""
        found = [("active", "", self.active)]
        if self.previous is not None:
            found.append(("previous", "", self.previous))
        found += [("arm", name, served) for name, served in self.arms.items()]
        if self.shadow is not None:
            found.append(("shadow", "", self.shadow.served))
        return found

    @property
    def all(self) -> list[Served]:
        """Each bundle once, the active one first."""
        return list({id(served): served for _, _, served in self.roles}.values())


class Deployment:
    """The bundles of a server: a request is answered by one of them, and a swap is one reference.

    A bundle that is replaced closes when the last request that reads it has ended (`Served` sees to that).
    """

    def __init__(self, active: Served) -> None:
        self.standing = Standing(active)
        self.recent = Recent()

    @property
    def active(self) -> Served:
        """What answers the users that are in no arm."""
        return self.standing.active

    def of(self, message: Asked) -> tuple[Served, str]:
        """Return what answers a request, and the name of its user's arm; empty where there is no experiment."""
        standing = self.standing
        if not standing.arms:
            return standing.active, ""
        kind = message.user.WhichOneof("kind")
        arm = standing.split.arm_of(None if kind is None else getattr(message.user, kind))
        return standing.arms.get(arm, standing.active), arm

    def recommend(self, message: pb.RecommendRequest, check: Check = awaited) -> pb.RecommendResponse:
        """Answer a Recommend by the bundle of its user. check: as `Request.check`."""
        begun = time.perf_counter()
        served, arm = self.of(message)
        reply = served.recommend(message, check, arm=arm)
        self._after(message, reply, served, begun)
        return reply

    def rank(self, message: pb.RankRequest, check: Check = awaited) -> pb.RankResponse:
        """Answer a Rank likewise."""
        begun = time.perf_counter()
        served, arm = self.of(message)
        reply = served.rank(message, check, arm=arm)
        self._after(message, reply, served, begun)
        return reply

    def _after(self, message: Asked, reply: Reply, served: Served, begun: float) -> None:
        """Keep what a new bundle is tried on, and let the shadow have what it is compared on."""
        self.recent.offer(message)
        standing = self.standing
        shadow = standing.shadow
        # Of the active bundle's own answers: what the shadow would replace, but where luck made the order.
        if shadow is None or served is not standing.active or _is_drawn(reply):
            return
        if random.random() < shadow.share:
            shadow.offer(message, reply, time.perf_counter() - begun)

    def arms_of(self, users: Sequence[Any], times: I64) -> list[str | None]:
        """Return the name of the arm that each user was in at a time, int64[n] µs UTC; None: no experiment then."""
        splits = self.standing.splits
        if not splits:
            return [None] * len(users)
        since = np.searchsorted(np.array([begun for begun, _ in splits]), times, "right") - 1
        names = np.full(len(users), None, object)
        for place in np.unique(since[since >= 0]).tolist():
            rows = np.flatnonzero(since == place)
            names[rows] = _names(splits[place][1], [users[row] for row in rows.tolist()])
        return list(names.tolist())

    def swap(self, standing: Standing) -> None:
        """Let other bundles answer the requests that begin from now on."""
        old, self.standing = self.standing, standing
        if old.shadow is not None and old.shadow is not standing.shadow:
            old.shadow.close()
        for served in old.all:
            if served not in standing.all:
                served.retire()

    def close(self) -> None:
        """Let the threads of all bundles end."""
        standing = self.standing
        if standing.shadow is not None:
            standing.shadow.close()
        for served in standing.all:
            served.close()


def _is_drawn(reply: Reply) -> bool:
    return isinstance(reply, pb.RecommendResponse) and reply.HasField("exploration")


def _names(split: Split, users: list[int | str]) -> Any:
    codes: I16 = split.arms_of(users)
    return np.array([*split.names, None], object)[codes]  # -1 is the last
