"""What is seen of a server: metrics count what happened, lines of the log name the call, spans reach a collector."""

import json
import logging
import math
import re
import threading
import time
import urllib.request
from concurrent import futures
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from pairlift.v1 import ranking_pb2 as pb
from pairlift.v1 import ranking_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from served import batch, pairlift, recording, serving, within

from features.errors import PairliftError
from ranker.cli.top import Page, quantile
from ranker.client import Client, ServerError
from ranker.lanes import Failures
from ranker.request import Answer, Trace
from ranker.serving.health import LIVE, SERVICE
from ranker.serving.listener import Listener
from ranker.serving.watching.calls import CURRENT, Call
from ranker.serving.watching.environment import telemetry_of, wanted_kinds
from ranker.serving.watching.logs import JsonLines, TextLines
from ranker.serving.watching.meters import BOUNDS, BUNDLES, Histogram, Meters
from ranker.serving.watching.watch import LINES, Sparing

DEPLOY = files("ranker.examples") / "deploy"


@contextmanager
def asked(bundle, **options):
    with serving(bundle, clock="snapshot", **options) as server, Client(server.address, timeout=20) as client:
        yield server, client


def samples(text):
    """Return the value of each sample by name and labels."""
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def value(text, name, **labels):
    """Return the sum of the samples of a name that have these labels."""
    return sum(v for (n, found), v in samples(text).items() if n == name and set(labels.items()) <= found)


def answered(**fields):
    trace = Trace()
    for name, given_ in fields.items():
        setattr(trace, name, given_)
    return Answer(
        index=np.arange(2),
        item=np.arange(2, dtype=np.int32),
        score=np.zeros(2),
        sources=np.zeros(2, np.uint32),
        source_names=("popular", "nearest"),
        degraded=("sources.nearest",),
        bundle_version="b",
        trace=trace,
    )


def test_metrics_count_each_call_with_its_status_bundle_stages_and_candidates(bundle):
    items = bundle.state.catalog.item_ids[:7].tolist()
    with asked(bundle) as (_, client):
        for _ in range(3):
            client.rank(None, items)
        proposed = client.recommend(int(bundle.state.catalog.user_ids[0]), k=2, explain=True)
        with pytest.raises(ServerError):
            client.recommend(1, k=-1)
        assert within(5, lambda: value(client.metrics(), "pairlift_calls_total", method="Recommend") == 2)
        page = client.metrics()
    assert value(page, "pairlift_calls_total", method="Rank", code="OK", bundle=bundle.version, arm="") == 3
    assert value(page, "pairlift_calls_total", method="Recommend", code="OK") == 1
    assert value(page, "pairlift_calls_total", method="Recommend", code="INVALID_ARGUMENT", bundle="") == 1
    assert value(page, "pairlift_call_seconds_count", method="Rank") == 3
    assert value(page, "pairlift_stage_seconds_count", method="Rank", stage="score") == 3
    assert value(page, "pairlift_stage_seconds_count", method="Recommend", stage="sources") == 1
    assert value(page, "pairlift_items_answered_total", method="Rank") == 21
    assert value(page, "pairlift_items_answered_total", method="Recommend") == 2
    for name, count, _, _ in proposed.proposed:
        assert value(page, "pairlift_candidates_proposed_total", source=name) == count
        assert value(page, "pairlift_part_seconds_count", part=f"sources.{name}") == 1
    for name, count in proposed.removed:
        assert value(page, "pairlift_candidates_removed_total", filter=name) == count
    assert value(page, "pairlift_candidates_scored_total", method="Rank") == 21
    assert value(page, "pairlift_bundle_info", bundle=bundle.version, role="active") == 1
    assert value(page, "pairlift_state_end_seconds") == pytest.approx(bundle.state.end / 1e6)
    assert value(page, "pairlift_at_work") >= 0
    assert value(page, "pairlift_limit") >= 1
    assert value(page, "process_resident_memory_bytes") > 1e6


def test_missing_features_are_counted_by_name(bundle):
    """An unknown item has no counters: each of its features that is missing counts once."""
    item = bundle.state.catalog.item_ids[0].item()
    with asked(bundle) as (server, client):
        unknown = -(10**9)
        reply = client.rank(None, [item, unknown], explain=True)
        assert within(5, lambda: value(client.metrics(), "pairlift_calls_total", method="Rank") == 1)
        page = client.metrics()
    assert not reply.degraded, server
    expected = {}
    for row in reply.items:
        for name, shown, _ in row.features:
            expected[name] = expected.get(name, 0) + math.isnan(shown)
    assert any(expected.values())
    for name, count in expected.items():
        assert value(page, "pairlift_features_missing_total", feature=name) == count, name


def test_what_fails_is_counted_and_its_breaker_seen(bundle, monkeypatch):
    with asked(bundle) as (server, client):
        source = server.pipeline.sources[0][0]

        def broken(*_):
            raise RuntimeError("broken")

        monkeypatch.setattr(type(source), "propose", broken)
        for _ in range(12):
            assert client.recommend(None, k=3).degraded
        page = client.metrics()
    part = f"sources.{source.name}"
    assert value(page, "pairlift_degraded_answers_total", part=part) == 12
    assert 0 < value(page, "pairlift_failures_total", part=part) <= 12
    assert value(page, "pairlift_breaker_open", part=part) == 1


def test_recording_is_seen(bundle, tmp_path):
    user, item = int(bundle.state.catalog.user_ids[0]), int(bundle.state.catalog.item_ids[0])
    with recording(bundle, tmp_path / "log") as (server, client):
        list(client.record([batch(["a", "b"], [user] * 2, [item] * 2, [bundle.state.end] * 2)]))
        server.follower.drain(5)
        page = client.metrics()
        assert within(5, lambda: value(client.metrics(), "pairlift_calls_total", method="RecordEvents", code="OK") == 1)
    assert value(page, "pairlift_recorded_events_total") == 2
    assert value(page, "pairlift_recording_ok") == 1
    assert value(page, "pairlift_recording_lag_frames") == 0


def test_the_metrics_port_answers_before_the_bundle_is_loaded_and_a_taken_one_is_a_sentence(bundle):
    listener = Listener("127.0.0.1", 0, bundle.config.serve, metrics_port=0)
    try:
        with urllib.request.urlopen(f"http://{listener.metrics_address}/metrics", timeout=10) as page:
            assert value(page.read().decode(), "pairlift_waiting") == 0
        taken = int(listener.metrics_address.rpartition(":")[2])
        with pytest.raises(PairliftError, match="another --metrics-port"):
            Listener("127.0.0.1", 0, bundle.config.serve, metrics_port=taken)
    finally:
        listener.stop(0)


@given(st.lists(st.floats(0, 20), max_size=60))
def test_a_histogram_counts_what_is_at_most_each_bound(seconds):
    histogram = Histogram()
    for one in seconds:
        histogram.add(one)
    for bound, count in histogram.buckets():
        assert count == sum(one <= float(bound) for one in seconds)
    assert histogram.total == pytest.approx(sum(seconds))


@given(st.lists(st.sampled_from(BOUNDS), min_size=1, max_size=60), st.floats(0.01, 1))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(seconds, q):
    histogram = Histogram()
    for one in seconds:
        histogram.add(one)
    true = sorted(seconds)[max(math.ceil(q * len(seconds) - 1e-9), 1) - 1]
    found = quantile({float(bound): count for bound, count in histogram.buckets()}, q)
    below = max((b for b in BOUNDS if b < true), default=0.0)
    assert below <= found <= true + 1e-12
    assert math.isnan(quantile({1.0: 0.0, math.inf: 0.0}, 0.5))


def test_series_of_bundles_that_are_long_gone_are_forgotten():
    meters = Meters()
    for k in range(BUNDLES + 3):
        call = Call("Rank", bundle=f"b{k}", columns=("x",), answer=answered(missing=np.array([2]), candidates=3))
        meters.called(call, "OK", 0.001)
        meters.called(Call("Rank", bundle="stays"), "OK", 0.001)
    page = meters.page()
    bundles = {dict(labels)["bundle"] for (name, labels) in samples(page) if name == "pairlift_calls_total"}
    assert bundles == {"stays", *(f"b{k}" for k in range(4, BUNDLES + 3))}
    assert value(page, "pairlift_features_missing_total", bundle="b0") == 0
    assert value(page, "pairlift_features_missing_total", bundle=f"b{BUNDLES}") == 2
    assert value(page, "pairlift_candidates_scored_total") == 3 * (BUNDLES + 3), "totals without a bundle stay"


def test_calls_from_many_threads_are_all_counted():
    meters = Meters()

    def work():
        for _ in range(500):
            meters.called(Call("Rank", answer=answered(stages=[("score", 7)], proposed=[1, 2])), "OK", 0.001)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    page = meters.page()
    assert value(page, "pairlift_calls_total") == 4000
    assert value(page, "pairlift_stage_seconds_count", stage="score") == 4000
    assert value(page, "pairlift_candidates_proposed_total", source="nearest") == 8000


def test_lines_of_a_call_name_it(bundle, caplog):
    caplog.set_level(logging.INFO, "ranker")
    record = logging.LogRecord("ranker", logging.WARNING, __file__, 1, "x %s", ("y",), None)
    plain = json.loads(JsonLines().format(record))
    assert plain["message"] == "x y"
    assert "request_id" not in plain
    token = CURRENT.set(
        Call("Rank", request_id="r1", traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01", bundle="v")
    )
    try:
        line = json.loads(JsonLines().format(record))
        assert {"method": "Rank", "request_id": "r1", "bundle": "v", "trace_id": "a" * 32}.items() <= line.items()
        assert TextLines("%(message)s").format(record) == "x y [request r1]"
    finally:
        CURRENT.reset(token)
    seen = []
    handler = logging.Handler()
    handler.emit = lambda r: seen.append(json.loads(JsonLines().format(r)))
    logging.getLogger("ranker").addHandler(handler)
    try:
        with asked(bundle) as (server, client):
            with grpc.insecure_channel(server.address) as channel:
                call = ranking_pb2_grpc.RankingServiceStub(channel).Recommend
                with pytest.raises(grpc.RpcError):
                    call(pb.RecommendRequest(k=-1), metadata=(("x-request-id", "from-metadata"),), timeout=20)
            assert within(5, lambda: any(line.get("code") == "INVALID_ARGUMENT" for line in seen))
            client.recommend(None, k=1)
    finally:
        logging.getLogger("ranker").removeHandler(handler)
    (line,) = [line for line in seen if line.get("code") == "INVALID_ARGUMENT"]
    assert line["request_id"] == "from-metadata"
    assert line["method"] == "Recommend"
    assert not [line for line in seen if line.get("code") == "OK"]


@pytest.mark.parametrize("text", ["x" * 1_000_000, "x\n" * 500_000], ids=["one line", "many lines"])
def test_a_line_holds_no_megabytes_of_a_caller_or_an_exception(bundle, text, caplog):
    caplog.set_level(logging.INFO, "ranker")
    seen, handler = [], logging.Handler()
    handler.emit = lambda record: seen.extend(form.format(record) for form in (JsonLines(), TextLines("%(message)s")))
    logging.getLogger("ranker").addHandler(handler)
    try:
        with serving(bundle) as server, grpc.insecure_channel(server.address) as channel:
            with pytest.raises(grpc.RpcError, match="request_id"):
                ranking_pb2_grpc.RankingServiceStub(channel).Recommend(pb.RecommendRequest(request_id=text), timeout=20)
            assert within(5, lambda: any("INVALID_ARGUMENT" in line for line in seen))
        try:
            raise ValueError(text)
        except ValueError as error:
            Failures().add("sources.x", error)
    finally:
        logging.getLogger("ranker").removeHandler(handler)
    assert "Traceback" in seen[-1]
    assert max(map(len, seen)) < 20_000


def test_a_line_about_the_same_is_written_so_often_a_second():
    sparing, began = Sparing(LINES), int(time.monotonic())
    counts = [sum(sparing.may(key) for _ in range(100)) for key in ("a", "b")]
    if int(time.monotonic()) == began:
        assert counts == [LINES, LINES]


class Collector(
    trace_service_pb2_grpc.TraceServiceServicer,
    metrics_service_pb2_grpc.MetricsServiceServicer,
    logs_service_pb2_grpc.LogsServiceServicer,
):
    """Keeps what it is sent."""

    def __init__(self):
        self.sent = []

    def Export(self, request, context):  # noqa: N802
        self.sent.append(request)
        kinds = {
            "ExportTraceServiceRequest": trace_service_pb2.ExportTraceServiceResponse,
            "ExportMetricsServiceRequest": metrics_service_pb2.ExportMetricsServiceResponse,
            "ExportLogsServiceRequest": logs_service_pb2.ExportLogsServiceResponse,
        }
        return kinds[type(request).__name__]()


@pytest.fixture
def collector(monkeypatch):
    """A collector that the environment names."""
    server, collector = grpc.server(futures.ThreadPoolExecutor(3)), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    yield collector
    server.stop(0)


def test_traces_metrics_and_logs_reach_a_collector(bundle, collector, caplog):
    caplog.set_level(logging.INFO, "ranker")
    trace, span = "1" * 32, "2" * 16
    with asked(bundle) as (server, client):
        with grpc.insecure_channel(server.address) as channel:
            stub = ranking_pb2_grpc.RankingServiceStub(channel)
            metadata = (("traceparent", f"00-{trace}-{span}-01"),)
            stub.Recommend(pb.RecommendRequest(k=2, request_id="r7"), metadata=metadata, timeout=20)
            with pytest.raises(grpc.RpcError):
                stub.Recommend(pb.RecommendRequest(k=-1), metadata=metadata, timeout=20)
        assert within(5, lambda: value(client.metrics(), "pairlift_calls_total", method="Recommend") == 2)
    spans = [
        s
        for r in collector.sent
        if hasattr(r, "resource_spans")
        for rs in r.resource_spans
        for ss in rs.scope_spans
        for s in ss.spans
    ]
    roots = {s.status.code: s for s in spans if s.name == "pairlift.v1/Recommend"}
    good, bad = roots[0], roots[2]
    assert good.trace_id.hex() == bad.trace_id.hex() == trace
    assert good.parent_span_id.hex() == span
    told = {a.key: a.value.string_value for a in good.attributes}
    assert told["pairlift.request_id"] == "r7"
    assert told["pairlift.bundle"] == bundle.version
    stages = [s for s in spans if s.parent_span_id == good.span_id]
    assert {"sources", "features", "score"} <= {s.name for s in stages}
    assert all(good.start_time_unix_nano <= s.start_time_unix_nano <= s.end_time_unix_nano for s in stages)
    metrics = {
        m.name: m
        for r in collector.sent
        if hasattr(r, "resource_metrics")
        for rm in r.resource_metrics
        for sm in rm.scope_metrics
        for m in sm.metrics
    }
    calls = metrics["pairlift_calls"].sum.data_points
    assert sum(p.as_double for p in calls for a in p.attributes if (a.key, a.value.string_value) == ("code", "OK")) >= 1
    point = metrics["pairlift_call_seconds"].histogram.data_points[0]
    assert sum(point.bucket_counts) == point.count
    logs = [
        one
        for r in collector.sent
        if hasattr(r, "resource_logs")
        for rl in r.resource_logs
        for sl in rl.scope_logs
        for one in sl.log_records
    ]
    (line,) = [one for one in logs if "INVALID_ARGUMENT" in one.body.string_value]
    assert line.trace_id.hex() == trace


def test_without_the_variables_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert telemetry_of(Meters()) is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://127.0.0.1:1")
    assert wanted_kinds() == ["LOGS"]
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    assert wanted_kinds() == []
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert wanted_kinds() == ["TRACES", "METRICS"]
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert wanted_kinds() == []


def test_channelz_tells_of_connections(bundle):
    with asked(bundle) as (server, client):
        client.describe()
        with grpc.insecure_channel(server.address) as channel:
            stub = channelz_pb2_grpc.ChannelzStub(channel)
            found = stub.GetServers(channelz_pb2.GetServersRequest(), timeout=20).server
    assert any(s.data.calls_started > 0 for s in found)


def test_top_shows_a_running_server(bundle):
    with asked(bundle) as (server, client):
        stop = threading.Event()

        def ask():
            while not stop.wait(0.01):
                client.recommend(None, k=3)

        thread = threading.Thread(target=ask)
        thread.start()
        code, text = pairlift("top", server.address, "--once", "--every", "0.5")
        stop.set()
        thread.join()
    assert code == 0, text
    assert f"bundle {bundle.version}" in text
    row = re.search(r"^  Recommend +([\d.]+) +([\d.]+) +([\d.]+)$", text, re.M)
    assert row is not None, text
    rate, p50, p99 = map(float, row.groups())
    assert rate > 0
    assert 0 < p50 <= p99
    assert re.search(r"^  Recommend score ", text, re.M)
    assert "ended with: OK" in text
    code, text = pairlift("top", "127.0.0.1:1", "--once")
    assert code == 2
    assert "no server answers" in text


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(bundle, tmp_path):
    user, item = int(bundle.state.catalog.user_ids[0]), int(bundle.state.catalog.item_ids[0])
    with recording(bundle, tmp_path / "log") as (_, client):
        list(client.record([batch(["a"], [user], [item], [bundle.state.end])]))
        client.recommend(user, k=3)
        client.rank(user, [item])
        assert within(5, lambda: value(client.metrics(), "pairlift_calls_total", method="Rank") == 1)
        page = Page(client.metrics())
    labels = {name: {key for found in series for key, _ in found} for name, series in page.samples.items()}
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) > 15
    for query in queries:
        names = re.findall(r"\b(?:pairlift|process)_\w+", query)
        assert names, query
        for name in names:
            assert name in labels or name in EMPTY, (name, query)
        wanted = {label.strip() for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(",")} - {
            "le",
            "instance",
        }
        if all(name in labels for name in names):
            assert wanted <= set.union(*(labels[name] for name in names)), query


#: families without a sample while all is well
EMPTY = {"pairlift_failures_total", "pairlift_degraded_answers_total", "pairlift_refused_total"}


def test_kubernetes_asks_for_the_services_that_health_knows(bundle):
    manifest = (DEPLOY / "kubernetes.yaml").read_text()
    probed = re.findall(r"service: (pairlift\S+)}", manifest)
    assert probed == [LIVE, SERVICE, SERVICE]
    drain, grace = (int(re.search(p, manifest).group(1)) for p in (r'"--drain", "(\d+)"', r"GracePeriodSeconds: (\d+)"))
    assert grace >= drain + 10


def test_files_of_deployment_are_in_the_wheel():
    names = {Path(str(f)).name for f in DEPLOY.iterdir()}
    assert {"Dockerfile", "grafana.json", "kubernetes.yaml"} <= names
