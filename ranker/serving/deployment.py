"""Which bundle answers a request."""

from pairlift.v1 import ranking_pb2 as pb

from ranker.serving.served import Served


class Deployment:
    """The bundles of a server: a request is answered by one of them, and a swap is one reference."""

    def __init__(self, active: Served) -> None:
        self.active = active

    def of(self, user: pb.Id) -> Served:
        """Return what answers the requests of a user."""
        return self.active

    def close(self) -> None:
        """Let the threads of all bundles end."""
        self.active.close()
