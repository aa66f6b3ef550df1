"""Shares of candidates learned of the booster's two slices, so that no slice is asked by what was learned of it.

Else the wanted part would meet more of what was wanted than it ever does when it is served.
"""

import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np

from features.schema import Bool
from features.state.store import State
from ranker.blend.learned import DEEPER, Learner
from ranker.blend.shares import Shares
from ranker.candidates.configured import Sources
from ranker.candidates.filters import filters_of
from ranker.candidates.gathering import Quotas, own_quotas
from ranker.candidates.merge import Places
from ranker.config import Config
from ranker.lists.alone import told_of
from ranker.lists.asked import Asked
from ranker.lists.judging import judged
from ranker.request import Request
from ranker.settings import QUOTA

logger = logging.getLogger(__name__)

#: requests that shares are learned of, in the mean of both slices
REQUESTS = 1500
#: items of all lists together that are held, some 8 bytes each; there are fewer requests then
HELD = 15_000_000
#: the longest lists that are learned of
LONGEST = 1000


@dataclass(frozen=True, slots=True)
class SlicedShares:
    """The shares of all that is done with the two slices."""

    folds: tuple[Shares, Shares]  # for users of even and of odd number, learned of the others in the train slice
    train: Shares  # learned of the train slice
    served: Shares  # of both

    def of_train(self, sources: Sources) -> Quotas:
        """Return the quotas of requests of the train slice: learned of other users, or the sources' own.

        Each second user has the sources' own: an order that only met the best candidates is worse even among these.
        """
        folds, own = [shares.quotas(sources) for shares in self.folds], own_quotas(sources)

        def of(request: Request) -> Places:
            return own(request) if request.user // 2 % 2 else folds[request.user % 2](request)

        return of

    def of_validation(self, sources: Sources) -> Quotas:
        """Return the quotas of requests of the validation slice: learned of what came before."""
        return self.train.quotas(sources)


def learner_of(
    sources: Sources,
    slices: tuple[Asked, Asked],
    state: State,
    config: Config,
    least: int = 1,
    failed: Counter[str] | None = None,
) -> tuple[Learner, Bool]:
    """Ask the sources, which know what is before t1, for requests of both slices; return which are the train slice's.

    The lists are as long as the budget can want, and `least` at least. failed: as of `told_of`.
    """
    length = max(least, list_length(config))
    most = max(2, min(2 * REQUESTS, HELD // (max(len(sources), 1) * length)))
    train, validation = slices
    validation = validation.drawn(most // 2, 0)
    train = train.drawn(most - len(validation), 0)
    told = told_of(sources, (train, validation), state, filters_of(config, state), length, failed)
    new = state.first_seen >= min(slice.requests.as_of.min(initial=state.end) for slice in slices)
    learner = Learner.of(told, sources, state.catalog.surfaces, new)
    if config.sources.shared and sources:
        learner = judged(learner, config.sources.candidates)
        for of in learner.judged.values():
            logger.info("%s", of)
    return learner, np.arange(len(told.user)) < len(train)


def list_length(config: Config) -> int:
    """Return how long lists are of which shares are learned."""
    own = [of.quota for of in config.sources.limits.values() if isinstance(of.quota, int)]
    budget = config.sources.candidates
    most = int(DEEPER * budget) if budget else sum(own) + QUOTA * (len(config.sources.limits) - len(own))
    return min(max([most, QUOTA, *own]), LONGEST)


def shares_in_slices(sources: Sources, slices: tuple[Asked, Asked], state: State, config: Config) -> SlicedShares:
    """Return the shares that the sources' lists teach. Arguments as of `learner_of`."""
    learner, of_train = learner_of(sources, slices, state, config)
    fold = learner.told.user % 2

    def shares(rows: Bool | None) -> Shares:
        return learner.shares(learner.blends(rows), config.sources.candidates, rows)

    even, odd = (shares(of_train & (fold != own)) for own in (0, 1))
    return SlicedShares(folds=(even, odd), train=shares(of_train), served=shares(None))
