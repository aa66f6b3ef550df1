"""A port that answers from the first moment: health says that the process lives, and our services that they load."""

from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection
from pairlift.v1 import admin_pb2, admin_pb2_grpc, ranking_pb2_grpc

from ranker.serving.access import ANYBODY_HERE, Access
from ranker.serving.gate import Gate
from ranker.serving.health import SERVICE, Health
from ranker.serving.port import bind, grpc_server
from ranker.serving.reflection import add_reflection
from ranker.serving.rollout.admin import AdminService
from ranker.serving.service import RankingService
from ranker.settings import ServeSettings

ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
#: unary methods that the gate limits
LIMITED = tuple(f"/{SERVICE}/{method}" for method in ("Rank", "Recommend", "Describe"))


class Listener:
    """The gRPC server with its services, whose gate is shut until there is a bundle."""

    def __init__(self, host: str, port: int, settings: ServeSettings, access: Access = ANYBODY_HERE) -> None:
        """Bind the port (0: any free one) and answer; PairliftError where it cannot be bound, or may not be."""
        access.check(host)
        self.health, self.gate = Health(), Gate(LIMITED)
        self.service, self.admin = RankingService(), AdminService()
        self._server = grpc_server(
            # Rights are asked before the gate, which remembers the handler of a method.
            (*access.interceptors(settings.calls_per_caller), self.gate),
            settings.connection_age // 1000,
        )
        self.address = bind(self._server, host, port, access.credentials())
        ranking_pb2_grpc.add_RankingServiceServicer_to_server(self.service, self._server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self.admin, self._server)
        self.health.add_to(self._server)
        add_reflection((SERVICE, ADMIN, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self._server.start()

    def stop(self, grace: float) -> None:
        """Refuse new calls, give those under way `grace` seconds, and end the threads."""
        self.gate.shut()
        self._server.stop(grace).wait()
        self.gate.close()
