"""Health (grpc.health.v1) by name: whether the process lives, whether it is ready, and whether it records.

    pairlift.v1.Live              liveness: SERVING from the first moment to the last
    pairlift.v1.RankingService    readiness: SERVING once bundle and log are loaded and warm, until it drains
    (no name)                     as readiness
    pairlift.v1.Recording         only where events are recorded: NOT_SERVING while they cannot be

Health answers on threads of its own, beside calls that wait or are refused.
"""

import threading
from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from pairlift.v1 import ranking_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["RankingService"].full_name
LIVE = "pairlift.v1.Live"
RECORDING = "pairlift.v1.Recording"


class Health:
    """What health says by each name."""

    def __init__(self) -> None:
        self._servicer = health.HealthServicer()
        self._lock = threading.Lock()
        self._drains = False
        self._set(LIVE, True)
        self.report_ready(False)

    def add_to(self, server: Any) -> None:
        """Add the service to a gRPC server."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    def report_ready(self, ready: bool) -> None:
        """Report whether requests are answered."""
        self._set("", ready)
        self._set(SERVICE, ready)

    def report_recording(self, well: bool) -> None:
        """Report whether events can be recorded."""
        with self._lock:
            self._set(RECORDING, well and not self._drains)

    def drain(self, records: bool) -> None:
        """Report that others are to be asked, from now on. records: whether events are recorded here."""
        with self._lock:
            self._drains = True
            self.report_ready(False)
            if records:
                self._set(RECORDING, False)

    def _set(self, name: str, well: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self._servicer.set(name, status.SERVING if well else status.NOT_SERVING)
