"""Whether the environment asks for OpenTelemetry: without it, none of its packages is imported."""

import importlib.util
import logging
import os
from typing import TYPE_CHECKING

from ranker.serving.watching.meters import Meters

if TYPE_CHECKING:
    from ranker.serving.watching.telemetry import Telemetry

log = logging.getLogger(__name__)

KINDS = ("TRACES", "METRICS", "LOGS")


def wanted_kinds() -> list[str]:
    """Return which of KINDS the environment names a collector for; none where OTEL_SDK_DISABLED is true."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return []
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_{}_ENDPOINT")
    named = [kind for kind in KINDS if any(os.environ.get(name.format(kind)) for name in names)]
    return [kind for kind in named if os.environ.get(f"OTEL_{kind}_EXPORTER", "otlp") != "none"]


def telemetry_of(meters: Meters) -> "Telemetry | None":
    """Return what the environment asks for, None where that is nothing; a warning where the extra is not installed."""
    kinds = wanted_kinds()
    if kinds and importlib.util.find_spec("opentelemetry.exporter") is None:
        log.warning("OTEL_EXPORTER_OTLP_… is set and nothing is sent: `pip install 'pairlift[otel]'` has what sends it")
        return None
    if not kinds:
        return None
    from ranker.serving.watching.telemetry import Telemetry  # noqa: PLC0415

    return Telemetry(kinds, meters)
