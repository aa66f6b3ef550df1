"""Between what the reward of an arm must lie: the same users and requests, with lists that need no server.

Random lists and the best ones are of the items that are born and that the user has not met, as the service's are by its
filter `seen`; the world's own policy shows the others too. The best list by the truth is the best for its request: what
a list does to later moods is not looked ahead to.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from features.schema import DAY, F64, I32, Bool
from ranker.config import Config
from ranker.studies.loop.run import FIRST_DAY, made_of
from ranker.studies.simulate import LIST, Lives
from ranker.studies.world import START, World, born_of

#: gives the list of a request from the items that are born and that its user has not met; None: the world's own
Policy = Callable[[Lives, int, I32], I32 | None]


@dataclass(frozen=True, slots=True)
class Bound:
    """What lists of one kind were worth: float64[days, users], as in `Lived`."""

    reward: F64
    lists: F64


def bounds_of(config: Config, days: int) -> dict[str, Bound]:
    """Return by name what the best lists are worth, those of the world's own policy, and random ones.

    config: of a folder of `pairlift world`; PairliftError where it is none.
    """
    of = made_of(config)
    world, rng = born_of(np.random.default_rng(of["seed"]), of["scale"]), np.random.default_rng([of["seed"], 1])

    def random(_: Lives, request: int, new: I32) -> I32:
        return rng.choice(new, min(LIST, len(new)), replace=False)

    policies: dict[str, Policy] = {"best by the truth": _best, "the world's own": lambda *_: None, "random": random}
    return {name: _bound(world, of["seed"], days, policy) for name, policy in policies.items()}


def _bound(world: World, seed: int, days: int, policy: Policy) -> Bound:
    visits, w = world.visits, world
    lives = Lives(w.catalogue.items, w.users, w.visits, w.after, seed)
    shape = days, len(w.users.taste)
    found = Bound(np.zeros(shape), np.zeros(shape))
    met = np.zeros((len(w.users.taste), len(w.catalogue.born)), bool)
    requests = np.flatnonzero(visits.day < FIRST_DAY + days)
    for request in requests[np.argsort(w.begun[requests], kind="stable")].tolist():
        day, user = int(visits.day[request]) - FIRST_DAY, int(visits.user[request])
        shown = policy(lives, request, _new(world, request, met[user])) if day >= 0 else None
        item, _, expected = lives.meet(request, shown)
        met[user, item] = True
        if day >= 0:
            found.reward[day, user] += expected[: LIST if shown is None else len(shown)].sum() / LIST
            found.lists[day, user] += 1
    return found


def _new(world: World, request: int, met: Bool) -> I32:
    """Return the items that are there when a request is made, without those that bool[items] has."""
    born = world.catalogue.born * DAY <= world.begun[request] - START
    return np.flatnonzero(born & ~met).astype(np.int32)


def _best(lives: Lives, request: int, new: I32) -> I32:
    return new[np.argsort(-lives.worth(request, new), kind="stable")[:LIST]]
