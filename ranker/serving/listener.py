"""A port that answers from the first moment: health says that the process lives, and our services that they load."""

from collections.abc import Callable
from typing import Self

from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection
from pairlift.v1 import admin_pb2, admin_pb2_grpc, metrics_pb2, metrics_pb2_grpc, ranking_pb2_grpc

from ranker.serving.callers.access import ANYBODY_HERE, Access
from ranker.serving.gate import Gate
from ranker.serving.health import SERVICE, Health
from ranker.serving.port import bind, grpc_server
from ranker.serving.reflection import add_reflection
from ranker.serving.rollout.admin import AdminService
from ranker.serving.service import MetricsService, RankingService
from ranker.serving.status import Decoding
from ranker.serving.underway import UnderWay
from ranker.serving.watching.environment import telemetry_of
from ranker.serving.watching.meters import Meters
from ranker.serving.watching.readings import of_gate
from ranker.serving.watching.watch import Watch
from ranker.settings import ServeSettings

ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
#: unary methods that the gate limits
LIMITED = tuple(f"/{SERVICE}/{method}" for method in ("Rank", "Recommend", "Describe"))
#: seconds
LAST = 0.5
METRICS = metrics_pb2.DESCRIPTOR.services_by_name["MetricsService"].full_name
CHANNELZ = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name


class Listener:
    """The gRPC server with its services, whose gate is shut until there is a bundle."""

    def __init__(
        self,
        host: str,
        port: int,
        settings: ServeSettings,
        access: Access = ANYBODY_HERE,
        metrics_port: int | None = None,
        shared: bool = False,
    ) -> None:
        """Bind the port (0: any free one) and answer; PairliftError where it cannot be bound, or may not be.

        metrics_port: where GET /metrics is answered on the same host (0: any free one); None: nowhere.
        host, shared: as for `ranker.serving.port`.
        """
        access.check(host)
        self._under_way = UnderWay()
        self.health, self.gate, self.meters = Health(), Gate(LIMITED, settings, self._under_way), Meters()
        self.meters.read(lambda: of_gate(self.gate))
        self.service, self.admin = RankingService(), AdminService()
        self._telemetry = telemetry_of(self.meters)
        watch = Watch(self.meters, None if self._telemetry is None else self._telemetry.ended)
        # What rights and the gate refuse is not watched: they count it.
        passed = (*access.around(self.gate, settings.calls_per_caller), watch)
        self._decoding = Decoding(self._under_way)
        self._server = grpc_server((self._decoding, *passed), settings.connection_age // 1000, shared)
        self.address = bind(self._server, host, port, access.credentials())
        self._stop_metrics: Callable[[], None] | None = None
        #: where GET /metrics is answered; empty: nowhere
        self.metrics_address = ""
        if metrics_port is not None:
            bound, self._stop_metrics = self.meters.serve(host, metrics_port)
            self.metrics_address = f"{host}:{bound}"
        ranking_pb2_grpc.add_RankingServiceServicer_to_server(self.service, self._server)
        metrics_pb2_grpc.add_MetricsServiceServicer_to_server(MetricsService(self.meters), self._server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self.admin, self._server)
        self.health.add_to(self._server)
        channelz.add_channelz_servicer(self._server)
        names = (SERVICE, METRICS, ADMIN, health.SERVICE_NAME, CHANNELZ, reflection.SERVICE_NAME)
        add_reflection(names, self._server)
        self._stopped = False
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(0)

    def stop(self, grace: float) -> None:
        """Refuse new calls, give those under way `grace` seconds, and end the threads; once.

        What is not finished then is UNAVAILABLE: `LAST` seconds before gRPC would say CANCELLED.
        """
        if self._stopped:
            return
        self._stopped = True
        self.gate.shut()
        stopped = self._server.stop(grace)
        if not stopped.wait(grace - min(LAST, grace / 2)):
            self._under_way.end()
        stopped.wait()
        self.gate.close()
        self._decoding.close()
        if self._stop_metrics is not None:
            self._stop_metrics()
        if self._telemetry is not None:
            self._telemetry.close()
        self._stop_metrics = self._telemetry = None
