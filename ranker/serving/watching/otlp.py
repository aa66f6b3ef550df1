"""Prometheus metric families as OpenTelemetry's: the same counts, for a collector that is sent them."""

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.core import Metric


def metrics_data(families: Iterable[Metric], resource: Any, began: int) -> Any:
    """Return the SDK's `MetricsData` of metric families. began: ns since 1970, since when they are counted."""
    now, metrics = time.time_ns(), []
    for family in families:
        if family.type == "counter":
            points = [_number(s.labels, s.value, began, now) for s in family.samples if s.name.endswith("_total")]
            data: Any = sdk.Sum(points, sdk.AggregationTemporality.CUMULATIVE, is_monotonic=True)
        elif family.type == "histogram":
            points = _histogram_points(family, began, now)
            data = sdk.Histogram(points, sdk.AggregationTemporality.CUMULATIVE)
        else:
            points = [_number(s.labels, s.value, began, now) for s in family.samples]
            data = sdk.Gauge(points)
        if points:
            unit = "s" if family.name.endswith("_seconds") else ""
            metrics.append(sdk.Metric(family.name, family.documentation, unit, data))
    scope = sdk.ScopeMetrics(InstrumentationScope("pairlift"), metrics, "")
    return sdk.MetricsData([sdk.ResourceMetrics(resource, [scope], "")])


def _number(labels: dict[str, str], value: float, began: int, now: int) -> Any:

    return sdk.NumberDataPoint(labels, began, now, float(value))


def _histogram_points(family: Metric, began: int, now: int) -> list[Any]:
    """Return a point for each series; Prometheus' buckets are cumulative, OpenTelemetry's are not."""

    series: dict[tuple[tuple[str, str], ...], dict[str, float]] = defaultdict(dict)
    for sample in family.samples:
        labels = tuple((name, value) for name, value in sample.labels.items() if name != "le")
        series[labels][sample.labels.get("le", sample.name.rpartition("_")[2])] = sample.value
    points = []
    for labels, found in series.items():
        bounds = sorted(float(bound) for bound in found if bound not in ("+Inf", "count", "sum"))
        running = [found[str(bound)] for bound in bounds] + [found["+Inf"]]
        counts = [int(after - before) for before, after in zip([0.0, *running], running, strict=False)]
        points.append(
            sdk.HistogramDataPoint(
                attributes=dict(labels),
                start_time_unix_nano=began,
                time_unix_nano=now,
                count=int(found["count"]),
                sum=found["sum"],
                bucket_counts=counts,
                explicit_bounds=bounds,
                min=0.0,
                max=0.0,
            )
        )
    return points
