"""The bare stages of a request behind a bare server: the floor of what a request costs, under the same load.

Run by `serving.py` in a process of its own: FOLDER (of `serving_world.py`) CANDIDATES [kept], on a free port, which is
the last word of the line that it prints. Each answer is that of the echo of `serving_bare.py`, behind the stages of
`serving_floors.py`, each with its inputs ready in memory: for a Rank tower, gather and scorer; for a Recommend tower,
retrieval, gather and the scorer of the wanted part. kept: without the tower. A sum of stages that are run again and
again is no floor: a server that waits for requests finds its caches cold, whatever it does.
"""

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from pairlift.v1 import ranking_pb2_grpc
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parent))

from serving_bare import Echo
from serving_floors import Stage, stages_of


class Bare(Echo):
    """Runs the stages, and answers as the echo does."""

    def __init__(self, rank: list[Stage], recommend: list[Stage]) -> None:
        self._rank, self._recommend, self._turn = rank, recommend, itertools.count()

    def Rank(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._run(self._rank)
        return super().Rank(request, context)

    def Recommend(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._run(self._recommend)
        return super().Recommend(request, context)

    def _run(self, stages: list[Stage]) -> None:
        turn = next(self._turn)
        for stage in stages:
            stage(turn)


def main() -> None:
    folder, candidates, kept = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] == ["kept"]
    threadpool_limits(1)
    stages, _ = stages_of(folder, candidates)
    tower = [] if kept else [stages["tower"]]
    rank = [*tower, stages["gather"], stages["scorer"]]
    recommend = [*tower, stages["retrieval"], stages["gather"], stages["scorer_wanted"]]
    for stage in (*rank, *recommend):
        stage(0)
    server = grpc.server(ThreadPoolExecutor(1))  # on one core, one after another is the least
    ranking_pb2_grpc.add_RankingServiceServicer_to_server(Bare(rank, recommend), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"stages at 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
