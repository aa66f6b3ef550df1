"""Bare servers over the contract: one that echoes, and one that refuses everything.

Run by `serving.py` in a process of its own: echo or refuse, on a free port, which is the first line that it prints.
Python's synchronous gRPC server, as Pairlift's, with the messages of the contract read and written as they must be: the
ids of a Rank as an array, an answer from arrays. Nothing else is done. `refuse` is gRPC's own limit of calls, 0.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from pairlift.v1 import ranking_pb2 as pb
from pairlift.v1 import ranking_pb2_grpc

K = 10
SCORES = np.random.default_rng(0).normal(size=4096)


class Echo(ranking_pb2_grpc.RankingServiceServicer):
    """Answers with what it was asked, and with some scores."""

    def Rank(self, request: Any, context: Any) -> Any:  # noqa: N802
        ids = np.array(request.items.integers.values, np.int64)
        n = len(ids)
        return pb.RankResponse(
            items=pb.Ids(integers=pb.IntegerIds(values=ids.tolist())),
            indexes=np.arange(n).tolist(),
            scores=SCORES[:n].tolist(),
            **common(request, n),
        )

    def Recommend(self, request: Any, context: Any) -> Any:  # noqa: N802
        k = request.k or K
        ids = np.full(k, request.user.integer)
        return pb.RecommendResponse(
            items=pb.Ids(integers=pb.IntegerIds(values=ids.tolist())), scores=SCORES[:k].tolist(), **common(request, k)
        )


def common(request: Any, n: int) -> dict[str, Any]:
    return {
        "request_id": request.request_id,
        "bundle_version": "0123456789ab",
        "snapshot_time": 1,
        "as_of": 1,
        "sources": np.ones(n, np.uint32).tolist(),
        "source_names": ("caller",),
    }


def main() -> None:
    kind, threads = sys.argv[1], int(sys.argv[2])
    most = 0 if kind == "refuse" else None
    server = grpc.server(ThreadPoolExecutor(threads), maximum_concurrent_rpcs=most)
    ranking_pb2_grpc.add_RankingServiceServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
