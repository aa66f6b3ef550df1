"""The requests of `make bench WHAT=serving`, as the bytes of their messages."""

from itertools import cycle, islice
from pathlib import Path

import numpy as np
from pairlift.v1 import ranking_pb2 as pb
from serving_load import Calls

from features.schema import F64

RANK, RECOMMEND = "/pairlift.v1.RankingService/Rank", "/pairlift.v1.RankingService/Recommend"
#: distinct lists of candidates
LISTS = 256
#: users who ask again and again, where what a server keeps of a user counts
REGULARS = 200
K = 10


class Traffic:
    """Requests of the users who ask, one after another, so that none comes again before all have asked."""

    def __init__(self, folder: Path, item_ids: np.ndarray, candidates: int) -> None:
        """folder: of `serving_world.py`. item_ids: int64[n_items]."""
        rng = np.random.default_rng(3)
        users = rng.permutation(np.load(folder / "askers.npy")).tolist()
        context = pb.Context(surface="feed")
        # Messages of one type that stand one behind the other are read as one.
        self._head = [pb.RankRequest(user=pb.Id(integer=user), context=context).SerializeToString() for user in users]
        chosen = [rng.choice(item_ids, candidates, replace=False) for _ in range(LISTS)]
        ids = [pb.Ids(integers=pb.IntegerIds(values=items.tolist())) for items in chosen]
        self._lists = [pb.RankRequest(items=items).SerializeToString() for items in ids]
        self._tail = pb.RecommendRequest(k=K).SerializeToString()
        self._turn, self._list = cycle(range(REGULARS, len(users))), cycle(range(LISTS))

    def calls(
        self, method: str, due: F64, *, cached: bool = False, deadline: float | None = None, at_once: int | None = None
    ) -> Calls:
        """Return the calls that are due then. cached: of the users who ask all the time, else of all others."""
        turn = cycle(range(REGULARS)) if cached else self._turn
        heads = [self._head[user] for user in islice(turn, len(due))]
        tails = (self._lists[place] for place in self._list)
        messages = [head + (next(tails) if method == RANK else self._tail) for head in heads]
        return Calls(due, [method] * len(due), messages, deadline, at_once)
