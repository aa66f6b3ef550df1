"""What is deployed, as a value: which bundle stands where. Small, immutable, and written as JSON.

A change is a function from a plan to the next; what it needs to be loaded follows from the plan alone, so that every
process of a server, and a restarted one, comes to the same from the same file.
"""

from typing import Self

from pydantic import BaseModel, ConfigDict

from features.errors import PairliftError
from ranker.serving.rollout.split import Split

#: splits of the past that are kept, for events that come late, and versions of bundles that were active
SPLITS, KNOWN = 50, 50


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Place(_Value):
    """A bundle, and where it is read from."""

    folder: str  # absolute
    version: str  # of its manifest


class Since(_Value):
    """A split, and from when it holds."""

    time: int  # µs UTC
    experiment: str = ""
    arms: dict[str, tuple[tuple[int, int], ...]] = {}

    @property
    def split(self) -> Split:
        """The split."""
        return Split(self.experiment, self.arms)


class Plan(_Value):
    """Which bundle stands where."""

    #: versions of the bundle that the server was started with, and of those that were active since: a server that is
    #: started with one of them goes on with the plan, one that is started with another begins anew
    known: tuple[str, ...]
    number: int = 0  # of the change that led to it
    active: Place
    previous: Place | None = None
    arms: dict[str, Place] = {}
    shadow: Place | None = None
    shadow_share: float = 0.0  # of the requests
    splits: tuple[Since, ...] = ()  # the last holds now

    @property
    def split(self) -> Split:
        """The split that holds now."""
        return self.splits[-1].split if self.splits else Split()

    @property
    def places(self) -> list[Place]:
        """All bundles of the plan."""
        standing = (self.active, self.previous, *self.arms.values(), self.shadow)
        return [place for place in standing if place is not None]

    def _next(self, **changed: object) -> Self:
        return self.model_copy(update={**changed, "number": self.number + 1})

    def _active(self, place: Place) -> Self:
        """Return the plan with another active bundle; what was active is the previous one."""
        known = tuple(dict.fromkeys((place.version, *self.known)))
        # The oldest stays: with what the server was started with, a process that is started again begins.
        return self._next(active=place, previous=self.active, known=(*known[: KNOWN - 1], *known[KNOWN - 1 :][-1:]))

    def _split(self, split: Split, now: int) -> tuple[Since, ...]:
        # Where the clock was set back they stay in order, for the split of a time is searched for.
        time = max([now, *(before.time for before in self.splits[-1:])])
        since = Since(time=time, experiment=split.experiment, arms=split.arms)
        return (*self.splits, since)[-SPLITS:]

    def deployed(self, place: Place) -> "Plan":
        """Return the plan with another active bundle; what was active is the previous one. Itself if it is so.

        The same bundle in another folder takes the place of its copy alone: the previous one stays.
        """
        if place.version == self.active.version:
            return self if place == self.active else self._next(active=place)
        return self._active(place)

    def rolled_back(self) -> "Plan":
        """Return the plan with the previous bundle in the place of the active one, and the other way round."""
        if self.previous is None:
            raise PairliftError("there is no previous bundle to roll back to: nothing was deployed on this server yet")
        return self._active(self.previous)

    def with_arm(self, name: str, place: Place | None, share: float, experiment: str, now: int) -> "Plan":
        """Return the plan in which an arm answers a share of the users. place: None keeps the bundle that it has.

        experiment: empty for the one under way, or for a new one named after the bundle. now: µs UTC.
        """
        split, place = self.split, place or self.arms.get(name)
        if place is None:
            raise PairliftError(f"there is no arm '{name}' whose share could change: name a bundle for it")
        if experiment and split.experiment and experiment != split.experiment:
            raise PairliftError(
                f"the experiment '{split.experiment}' is under way: end its arms ({', '.join(self.arms)}) with "
                "`pairlift promote` or `pairlift drop` before another begins, or leave --experiment out"
            )
        if not split.arms:
            split = Split(experiment or f"{name}-{place.version}")
        split = split.with_arm(name, share)
        return self._next(arms={**self.arms, name: place}, splits=self._split(split, now))

    def promoted(self, name: str, now: int) -> "Plan":
        """Return the plan with an arm's bundle in the place of the active one, and without the arm."""
        return self._without(name, now)._active(self._arm(name))

    def dropped(self, name: str, now: int) -> "Plan":
        """Return the plan without an arm, or with an empty name without the shadow."""
        if name:
            self._arm(name)
            return self._without(name, now)
        if self.shadow is None:
            raise PairliftError("there is no shadow to drop; `pairlift deployed` shows what is deployed")
        return self._next(shadow=None, shadow_share=0.0)

    def shadowed(self, place: Place, share: float) -> "Plan":
        """Return the plan in which a bundle scores a share of the requests aside."""
        if not 0 < share <= 1:
            raise PairliftError(f"--share {share:g}: a share of the requests above 0 and up to 1 was expected")
        return self._next(shadow=place, shadow_share=share)

    def _arm(self, name: str) -> Place:
        if name not in self.arms:
            known = f"the arms are {', '.join(self.arms)}" if self.arms else "there are none"
            raise PairliftError(f"there is no arm '{name}': {known}")
        return self.arms[name]

    def _without(self, name: str, now: int) -> "Plan":
        arms = {other: place for other, place in self.arms.items() if other != name}
        return self._next(arms=arms, splits=self._split(self.split.without(name), now))
