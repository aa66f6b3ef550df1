"""Metrics of what a server holds anyway, read when somebody asks: limits, bundles, states, failures, recording."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from features.schema import SECOND
from ranker.recording.recorder import Recorder
from ranker.serving import clock
from ranker.serving.deployment import Deployment
from ranker.serving.gate import Gate
from ranker.serving.processes.elsewhere import Elsewhere


def of_server(deployment: Deployment, recorder: Recorder | Elsewhere | None) -> Iterator[Metric]:
    """Yield what is to be read of bundles, their states and their parts, and of the recording."""
    yield from _of_bundles(deployment)
    if recorder is not None:
        yield from _of_recording(deployment, recorder)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _of_bundles(deployment: Deployment) -> Iterator[Metric]:
    standing = deployment.standing
    served = standing.active
    labels = ("bundle", "name", "role", "arm")
    info = GaugeMetricFamily("pairlift_bundle_info", "Which bundles are deployed, and whom they answer.", labels=labels)
    for role, arm, one in standing.roles:
        info.add_metric((one.bundle.version, one.bundle.config.name, role, arm), 1)
    yield info
    end = served.pipeline.state.end
    yield _gauge("pairlift_state_end_seconds", "Time of the last event that answers know, since 1970.", end / SECOND)
    age = (clock.now_wall() - end) / SECOND
    yield _gauge("pairlift_state_age_seconds", "How long ago that was, by the server's clock.", age)
    failures = CounterMetricFamily("pairlift_failures", "Failures of sources and plugins.", labels=("part",))
    for part, count in sorted(served.pipeline.failures.counts().items()):
        failures.add_metric((part,), count)
    yield failures
    breakers = GaugeMetricFamily(
        "pairlift_breaker_open",
        "1 where a source or plugin failed too often and is not asked for a while.",
        labels=("part",),
    )
    for lane in served.pipeline.lanes:
        breakers.add_metric((lane.name,), lane.state != "closed")
    yield breakers


def of_gate(gate: Gate) -> Iterator[Metric]:
    """Yield what is to be read of the limit and the queue."""
    yield _gauge("pairlift_limit", "Requests that may be at work at once.", gate.limit)
    yield _gauge("pairlift_at_work", "Requests at work.", gate.at_work)
    yield _gauge("pairlift_waiting", "Requests that wait for a place.", gate.waiting)
    refused = CounterMetricFamily("pairlift_refused", "Calls that were refused before any work.", labels=("reason",))
    for reason, count in sorted(gate.refused.items()):
        refused.add_metric((reason,), count)
    yield refused


def _of_recording(deployment: Deployment, recorder: Recorder | Elsewhere) -> Iterator[Metric]:
    yield CounterMetricFamily("pairlift_recorded_events", "Events that are recorded.", value=recorder.count)
    yield _gauge("pairlift_recording_ok", "1, or 0 where there is a recording_problem.", not recorder.problem)
    follower = deployment.active.follower
    if follower is not None:
        text = "Commits of the log that answers do not know yet."
        yield _gauge("pairlift_recording_lag_frames", text, follower.behind)
