"""OpenTelemetry, where `pairlift[otel]` is installed and the usual environment variables name a collector.

Traces, metrics and logs go out by OTLP over gRPC. The SDK reads its variables itself: OTEL_EXPORTER_OTLP_ENDPOINT (or
those of one kind, such as OTEL_EXPORTER_OTLP_TRACES_ENDPOINT), OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES,
OTEL_TRACES_SAMPLER, OTEL_METRIC_EXPORT_INTERVAL and the others. A span is made of a call that has ended, with its
stages as children, and metrics are those of `ranker.serving.watching.meters`: on its way a call does nothing more.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ranker.serving.watching.calls import CURRENT, Call
from ranker.serving.watching.logs import Lines, of_call
from ranker.serving.watching.meters import Meters
from ranker.serving.watching.otlp import metrics_data

log = logging.getLogger(__name__)

NAME = "pairlift"
#: milliseconds between exports of metrics, where OTEL_METRIC_EXPORT_INTERVAL says nothing: the SDK's own default
INTERVAL = "60000"
#: seconds that what is left may take at the end
PATIENCE = 3.0
#: OpenTelemetry's number of each level of `logging` (Logs Data Model, SeverityNumber)
SEVERITIES = {logging.DEBUG: 5, logging.INFO: 9, logging.WARNING: 13, logging.ERROR: 17, logging.CRITICAL: 21}


class Telemetry:
    """What is sent to a collector. `ended` from any thread."""

    def __init__(self, kinds: Iterable[str], meters: Meters) -> None:
        """kinds: of `KINDS` (`ranker.serving.watching.environment`)."""

        # The SDK's own default is "unknown_service".
        self._resource = Resource.create({} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": NAME})
        self._closing: list[Callable[[], Any]] = []
        self._tracer: Any = None
        if "TRACES" in kinds:
            self._send_traces()
        if "METRICS" in kinds:
            self._send_metrics(meters)
        if "LOGS" in kinds:
            self._send_logs()
        log.info("OpenTelemetry: %s go to the collector of OTEL_EXPORTER_OTLP_…", ", ".join(kinds).lower())

    def close(self) -> None:
        """Send what is left, where a collector takes it at once: the exporters would try again for half a minute."""

        def work() -> None:
            for close in self._closing:
                close()

        thread = threading.Thread(target=work, name="otlp-close", daemon=True)
        thread.start()
        thread.join(PATIENCE)

    def ended(self, call: Call, code: str, took: int) -> None:
        """Make a span of a call that has ended. took: ns."""
        if self._tracer is None:
            return

        named = {"rpc.system": "grpc", "rpc.method": call.method, "rpc.grpc.status_code": code}
        told = {"pairlift.request_id": call.request_id, "pairlift.bundle": call.bundle, "pairlift.arm": call.arm}
        span = self._tracer.start_span(
            f"pairlift.v1/{call.method}",
            context=_parent(call),
            kind=SpanKind.SERVER,
            attributes=named | {name: value for name, value in told.items() if value},
            start_time=call.began_at,
        )
        if span.is_recording():
            if code != "OK":
                span.set_status(Status(StatusCode.ERROR, code))
            within, at = set_span_in_context(span), call.began_at
            for stage, micros in call.answer.trace.stages if call.answer is not None else ():
                self._tracer.start_span(stage, context=within, start_time=at).end(at := at + 1000 * micros)
        span.end(call.began_at + took)

    def _send_traces(self) -> None:

        provider = TracerProvider(resource=self._resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = provider.get_tracer(NAME)
        self._closing.append(provider.shutdown)

    def _send_metrics(self, meters: Meters) -> None:

        exporter, stopped, began = OTLPMetricExporter(), threading.Event(), time.time_ns()
        interval = float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", INTERVAL)) / 1000

        def work() -> None:
            over = False
            while not over:
                over = stopped.wait(interval)
                exporter.export(metrics_data(meters.registry.collect(), self._resource, began))

        thread = threading.Thread(target=work, name="otlp-metrics", daemon=True)
        thread.start()
        self._closing += [stopped.set, lambda: thread.join(10), exporter.shutdown]

    def _send_logs(self) -> None:

        provider = LoggerProvider(resource=self._resource, shutdown_on_exit=False)
        provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
        handler = _Handler(provider)
        logging.getLogger().addHandler(handler)
        self._closing += [lambda: logging.getLogger().removeHandler(handler), provider.shutdown]


class _Handler(logging.Handler):
    """Sends lines of the log, with what names the call."""

    def __init__(self, provider: Any) -> None:
        super().__init__(logging.INFO)
        self._provider = provider

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line; the exporter's own would come back here for ever."""

        if record.name.startswith("opentelemetry"):
            return
        attributes: dict[str, Any] = {f"pairlift.{name}": value for name, value in of_call().items()}
        if record.exc_info and record.exc_info[1] is not None:
            attributes["exception.type"] = type(record.exc_info[1]).__name__
            attributes["exception.stacktrace"] = Lines().formatException(record.exc_info)
        self._provider.get_logger(record.name).emit(
            LogRecord(
                timestamp=int(record.created * 1e9),
                context=_parent(CURRENT.get()),
                severity_text=record.levelname,
                severity_number=SeverityNumber(SEVERITIES.get(record.levelno, 9)),
                body=record.getMessage(),
                attributes=attributes,
            )
        )


def _parent(call: Call | None) -> Any:
    """Return the context of the caller's span, from the metadata `traceparent`; an empty one without it."""

    return TraceContextTextMapPropagator().extract({"traceparent": call.traceparent} if call else {})
