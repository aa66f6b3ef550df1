"""What is counted and timed of a server, as Prometheus metrics.

A call adds to plain lists and dictionaries under one lock, some microseconds in all; names, labels and buckets are put
together when somebody asks. What others hold anyway (limits, queues, states, failures) is read only then: `readings`.
"""

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from features.errors import PairliftError
from features.schema import I64
from ranker.request import Answer
from ranker.serving.watching.calls import Call

#: upper bounds of the buckets, seconds; the last bucket has no bound
BOUNDS = (0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
#: bundles whose series are kept: those of bundles that answered before are forgotten, the oldest first
BUNDLES = 8
Labels = tuple[str, ...]


class Family(NamedTuple):
    """A metric: its name on the page, what it means and the names of its labels."""

    name: str
    help: str
    labels: Labels


CALLS = Family("pairlift_calls", "Calls that ended, by gRPC status.", ("method", "code", "bundle", "arm"))
DEGRADED = Family(
    "pairlift_degraded_answers", "Answers without a source or plugin that failed, was late or was not asked.", ("part",)
)
PROPOSED = Family("pairlift_candidates_proposed", "Items that a source proposed.", ("source",))
REMOVED = Family("pairlift_candidates_removed", "Candidates that a filter removed.", ("filter",))
SCORED = Family("pairlift_candidates_scored", "Candidates that were scored.", ("method",))
ANSWERED = Family("pairlift_items_answered", "Items in answers.", ("method",))
RULED = Family("pairlift_candidates_ruled", "Candidates that a rule pinned, boosted or buried.", ("rule",))
COUNTERS = (CALLS, DEGRADED, PROPOSED, REMOVED, SCORED, ANSWERED, RULED)
MISSING = Family(
    "pairlift_features_missing", "Candidates that lacked a feature; of all that were scored.", ("feature", "bundle")
)

CALL_SECONDS = Family("pairlift_call_seconds", "How long calls took within the server.", ("method", "bundle", "arm"))
STAGE_SECONDS = Family("pairlift_stage_seconds", "How long the stages of a request took.", ("method", "stage"))
PART_SECONDS = Family("pairlift_part_seconds", "How long sources and plugins took.", ("part",))
HISTOGRAMS = (CALL_SECONDS, STAGE_SECONDS, PART_SECONDS)


class Histogram:
    """Counts of seconds by bucket, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return (bound, how many were at most that) as Prometheus has them."""
        running, out = 0, []
        for bound, count in zip([*map(str, map(float, BOUNDS)), "+Inf"], self.counts, strict=True):
            running += count
            out.append((bound, float(running)))
        return out


class Meters:
    """Counts calls and answers; safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Family, Counter[Labels]] = {family: Counter() for family in COUNTERS}
        self._times: dict[Family, defaultdict[Labels, Histogram]] = {f: defaultdict(Histogram) for f in HISTOGRAMS}
        self._missing: dict[str, tuple[tuple[str, ...], I64]] = {}  # by bundle: its features, and how often each lacked
        self._bundles: list[str] = []  # that answered, the latest last
        self._readings: list[Callable[[], Iterable[Metric]]] = []
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def read(self, readings: Callable[[], Iterable[Metric]]) -> None:
        """Add metrics that are read when somebody asks."""
        self._readings.append(readings)

    def called(self, call: Call, code: str, seconds: float) -> None:
        """Count a call that has ended, and what its answer tells."""
        with self._lock:
            if call.bundle:
                self._know(call.bundle)
            self._counts[CALLS][call.method, code, call.bundle, call.arm] += 1
            self._times[CALL_SECONDS][call.method, call.bundle, call.arm].add(seconds)
            if call.answer is not None:
                self._answered(call, call.answer)

    def _answered(self, call: Call, answer: Answer) -> None:
        counts, trace, method = self._counts, answer.trace, call.method
        stages, parts = self._times[STAGE_SECONDS], self._times[PART_SECONDS]
        for stage, took in trace.stages:
            stages[method, stage].add(took * 1e-6)
        for part, took in trace.took.items():
            parts[(part,)].add(took * 1e-6)
        for part in answer.degraded:
            counts[DEGRADED][(part,)] += 1
        for source, proposed in zip(answer.source_names, trace.proposed, strict=False):  # a Rank asks no source
            counts[PROPOSED][(source,)] += proposed
        for name, removed in trace.removed:
            counts[REMOVED][(name,)] += removed
        for name, changed in trace.ruled:
            counts[RULED][(name,)] += len(changed)
        counts[SCORED][(method,)] += trace.candidates
        counts[ANSWERED][(method,)] += len(answer.item)
        if trace.missing is not None:
            known = self._missing.get(call.bundle)
            if known is None:
                known = self._missing[call.bundle] = (call.columns, np.zeros(len(call.columns), np.int64))
            known[1][:] += trace.missing

    def _know(self, bundle: str) -> None:
        """Forget the series of the bundle that has not answered for longest, where there are too many."""
        if self._bundles and self._bundles[-1] == bundle:
            return
        if bundle in self._bundles:
            self._bundles.remove(bundle)
        self._bundles.append(bundle)
        if len(self._bundles) > BUNDLES:
            gone = self._bundles.pop(0)
            self._missing.pop(gone, None)
            for series, place in ((self._counts[CALLS], 2), (self._times[CALL_SECONDS], 1)):
                for labels in [labels for labels in series if labels[place] == gone]:
                    del series[labels]

    def collect(self) -> Iterator[Metric]:
        """Yield all families: what `prometheus_client` asks a collector for."""
        with self._lock:
            counts: dict[Family, dict[Labels, float]] = {f: dict(series) for f, series in self._counts.items()}
            times = {
                family: {labels: (one.buckets(), one.total) for labels, one in series.items()}
                for family, series in self._times.items()
            }
            counts[MISSING] = {
                (feature, bundle): count
                for bundle, (features, lacked) in self._missing.items()
                for feature, count in zip(features, lacked.tolist(), strict=True)
            }
        for family, series in counts.items():
            counter = CounterMetricFamily(family.name, family.help, labels=family.labels)
            for labels, number in sorted(series.items()):
                counter.add_metric(labels, number)
            yield counter
        for family, found in times.items():
            histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
            for labels, (buckets, total) in sorted(found.items()):
                histogram.add_metric(labels, buckets, total)
            yield histogram
        for readings in self._readings:
            yield from readings()

    def page(self) -> str:
        """Return all of it in Prometheus' text format."""
        text: str = generate_latest(self.registry).decode()
        return text

    def serve(self, host: str, port: int) -> tuple[int, Callable[[], None]]:
        """Answer GET /metrics on a port of its own (0: any free one); return the port, and what stops it.

        PairliftError where it cannot be listened on.
        """
        try:
            server, thread = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise PairliftError(
                f"{host}:{port} cannot be listened on for metrics ({error.strerror}): choose another --metrics-port "
                "(0: any free one), or none"
            ) from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return server.server_port, stop
