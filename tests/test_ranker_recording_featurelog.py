"""What was served is logged, learned from, and compared with what is recomputed."""

import re
import threading
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from served import serving
from world import write_world

from features.errors import PairliftError
from features.log.loading import load_request_codes
from features.pairing.groups import Groups
from features.rows import assemble
from features.schema import one_request
from ranker.bundle import Bundle, load_bundle
from ranker.cli.main import cli
from ranker.client import Client
from ranker.config import Config, load_config
from ranker.pipeline import Pipeline
from ranker.recording.featurelog import FeatureLog, write_part
from ranker.recording.logged import Logged, drift, read_features
from ranker.request import Answer, Request
from ranker.server import Server
from ranker.serving.served import FeaturesTo
from ranker.train import drift_report, train
from ranker.training.arms import Arms
from ranker.training.prepared import prepare

CONTEXT = """request_id = "request"
surface = "case user_id % 3 when 0 then 'home' when 1 then 'search' end"
[events.context]
device = "case request % 3 when 0 then 'tv' when 1 then 'phone' end"
battery = "nullif(request % 5, 4) / 10.0"
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Bundle]:
    folder = tmp_path_factory.mktemp("features")
    config = load_config(write_world(folder, request=CONTEXT, request_ids=True))
    train(config, folder / "bundle")
    return config, load_bundle(folder / "bundle")


def serve_groups(config: Config, bundle: Bundle, folder: Path, shift: float = 0.0) -> Groups:
    """Ask a pipeline for every group of the booster's period, as the log names the requests, and log all of it."""
    prepared = prepare(config)
    groups, pipeline = prepared.groups.of("booster"), Pipeline(bundle)
    names = {code: name for name, code in load_request_codes(config.work / "import" / "log.duckdb").items()}
    log = FeatureLog(folder, columns=bundle.columns, version=bundle.version, share=1.0)
    r = groups.requests
    for g in range(len(r)):
        rows = slice(int(r.offsets[g]), int(r.offsets[g + 1]))
        said = r.context[g : g + 1]
        request = Request(
            int(r.user[g]),
            int(r.as_of[g]),
            state=bundle.state,
            surface=int(r.surface[g]),
            context=said,
            keep_values=True,
            request_id=names[int(prepared.log.request[groups.event[rows][0]])],
        )
        found = pipeline.rank(request, r.item[rows])
        assert found.values is not None
        log.offer(request, found, found.values + np.float32(shift))
    log.close()
    pipeline.close()
    assert log.dropped == 0
    return groups


def test_served_values_equal_recomputed_ones_up_to_rounding(trained: tuple[Config, Bundle], tmp_path: Path) -> None:
    config, bundle = trained
    groups = serve_groups(config, bundle, tmp_path / "log")
    logged = read_features(tmp_path / "log", bundle.state.catalog, bundle.spec.listed)
    assert len(logged.values) == len(groups.grade)
    report = drift_report(config, tmp_path / "log")
    assert {row["column"] for row in report} == set(bundle.columns)
    assert all(row["differs"] == 0 for row in report), report[0]


def test_a_tower_that_sums_in_another_order_has_not_drifted_and_a_counter_may_not() -> None:
    """The gaps are those that were measured between towers' dots in a batch and one at a time."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 7, (500, 2)).astype(np.float32)
    values[:9] = 1e-3
    logged = Logged(
        np.array(["r"], object),
        one_request(0, 5, 0, np.arange(500, dtype=np.int32)),
        values,
        ("towers__dot", "counter"),
    )
    moved = values + np.float32(1e-5) * rng.choice([-1, 1], values.shape).astype(np.float32)
    found = {row["column"]: row["differs"] for row in drift(logged, moved, ["towers__dot"])}
    assert found["towers__dot"] == 0
    assert found["counter"] > 0.3
    (row,) = [row for row in drift(logged, values * np.float32(1.001), ["towers__dot"]) if "dot" in row["column"]]
    assert row["differs"] > 0.9


def test_infinities_that_are_equal_have_not_drifted_and_make_no_figure_nan() -> None:
    was, now = (np.array([[np.inf, last, np.nan]], np.float32).T for last in (1.0, np.inf))
    logged = Logged(np.array(["r"], object), one_request(0, 5, 0, np.arange(3, dtype=np.int32)), was, ("counter",))
    (same,), (other,) = drift(logged, was), drift(logged, now)
    assert (same["differs"], same["mean_gap"], same["largest_gap"], same["example"]) == (0, 0, 0, None)
    assert (other["differs"], other["largest_gap"], other["example"]) == (pytest.approx(1 / 3), np.inf, "r")


def test_what_a_request_says_of_itself_is_a_feature_as_in_the_log(trained: tuple[Config, Bundle]) -> None:
    config, bundle = trained
    prepared = prepare(config)
    assert {"context_device", "context_battery"} <= set(bundle.columns)
    assert "context_device" in bundle.spec.categorical
    groups = prepared.groups
    first = groups.event[groups.requests.offsets[:-1]]
    matrix = assemble(prepared.state, prepared.spec, groups.requests)[groups.requests.offsets[:-1]]
    device, battery = (matrix[:, bundle.columns.index(f"context_{name}")] for name in ("device", "battery"))
    names = load_request_codes(config.work / "import" / "log.duckdb")
    number = {code: int(name) for name, code in names.items()}
    wanted = np.array([number[code] for code in prepared.log.request[first].tolist()])
    np.testing.assert_array_equal(device, np.array([1, 0, np.nan])[wanted % 3])  # phone before tv
    np.testing.assert_allclose(battery, np.array([0, 0.1, 0.2, 0.3, np.nan])[wanted % 5], rtol=1e-6)


def test_a_request_on_the_wire_says_it_too(trained: tuple[Config, Bundle]) -> None:
    _, bundle = trained
    server = Server(bundle, clock="snapshot")
    server.start()
    try:
        with Client(server.address) as client:
            seen = []
            for said in ({"device": "tv", "battery": "0.25"}, {"device": "fridge", "other": "x"}, {}):
                answer = client.rank(1000, [10], attributes=said, explain=True)
                row = {name: value for name, value, _ in answer.items[0].features}
                seen.append((row["context_device"], row["context_battery"]))
            np.testing.assert_array_equal(seen, [(1, 0.25), (np.nan, np.nan), (np.nan, np.nan)])
            with pytest.raises(PairliftError, match="'battery': a finite number was expected, found 'full'"):
                client.rank(1000, [10], attributes={"battery": "full"})
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                for far in ("1e300", "-3.5e38"):
                    result = f"'battery': a number within a 32-bit float (at most 3.4e+38) was expected, found '{far}'"
                    with pytest.raises(PairliftError, match=re.escape(result)):
                        client.rank(1000, [10], attributes={"battery": far})
                for none in ("inf", "-inf"):
                    with pytest.raises(PairliftError, match=f"'battery': a finite number was expected, found '{none}'"):
                        client.rank(1000, [10], attributes={"battery": none})
                client.rank(1000, [10], attributes={"battery": "-3.4e38"})
                client.rank(1000, [10], attributes={"battery": "nan"})
            assert not [str(one.message) for one in warned if issubclass(one.category, RuntimeWarning)]
    finally:
        server.stop()


def test_a_booster_learns_from_what_was_served(trained: tuple[Config, Bundle], tmp_path: Path) -> None:
    config, bundle = trained
    serve_groups(config, bundle, tmp_path / "log", shift=1.0)
    logged = read_features(tmp_path / "log", bundle.state.catalog, bundle.spec.listed)
    prepared = prepare(config)
    served, plain = Arms.of(prepared, logged), Arms.of(prepared)
    for part in ("train", "validation"):
        np.testing.assert_allclose(served.base.values[part], plain.base.values[part] + np.float32(1), rtol=1e-6)
    np.testing.assert_array_equal(served.base.values["test"], plain.base.values["test"])
    report = drift(logged, logged.values - np.float32(1))
    known = dict(zip(logged.columns, np.isfinite(logged.values).mean(axis=0).tolist(), strict=True))
    assert all(row["differs"] > 0.6 * known[row["column"]] for row in report if row["largest_gap"] > 0.5)
    done = CliRunner().invoke(
        cli, ["train", str(config.path), "--out", str(tmp_path / "b"), "--features", str(tmp_path / "log")]
    )
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(cli, ["drift", str(config.path), "--features", str(tmp_path / "log")])
    assert done.exit_code == 0
    assert "100.00 %" in done.output


def test_a_server_logs_the_requests_of_the_share(trained: tuple[Config, Bundle], tmp_path: Path) -> None:
    _, bundle = trained
    server = Server(bundle, clock="snapshot", features_to=FeaturesTo(tmp_path / "log", 0.5))
    server.start()
    try:
        with Client(server.address) as client:
            for k in range(40):
                client.rank(1000, [10, 13, 99999], request_id=f"r{k}")
                client.recommend(1000, k=3, request_id=f"s{k}")
                client.rank(1000, [10])
    finally:
        server.stop()
    logged = read_features(tmp_path / "log", bundle.state.catalog, bundle.spec.listed)
    assert 20 < len(logged.request_id) < 60
    assert server.feature_log is not None
    assert all(server.feature_log.wants(str(name)) for name in logged.request_id)
    assert -1 in logged.requests.item.tolist()  # an item that the bundle does not know


def test_a_list_is_logged_by_the_columns_of_the_liked_part_and_has_not_drifted(
    trained: tuple[Config, Bundle], tmp_path: Path
) -> None:
    config, bundle = trained
    assert bundle.wanted is not None
    answers = {}
    to = FeaturesTo(tmp_path / "log", 1.0)
    with (
        serving(bundle, clock="snapshot", features_to=to) as server,
        Client(server.address, timeout=20) as client,
    ):
        for k in range(5):
            answers[f"s{k}"] = client.recommend(int(bundle.state.catalog.user_ids[k]), k=7, request_id=f"s{k}")
    rows = [row for path in (tmp_path / "log").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    logged = read_features(tmp_path / "log", bundle.state.catalog, bundle.spec.listed)
    assert logged.columns == bundle.columns
    liked = bundle.score(logged.values)
    assert len(rows) == len(liked) == 35
    for row in rows:
        item = answers[row["request_id"]].items[row["rank"]]
        assert (row["item_id"], row["score"]) == (item.item, item.score)
    assert not np.isin([row["score"] for row in rows], liked).any()
    report = drift_report(config, tmp_path / "log")
    assert {row["column"] for row in report} == set(bundle.columns)
    assert all(row["differs"] == 0 for row in report), report[0]


def rows_in(folder: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("part-*.parquet"))


def test_a_part_never_takes_the_place_of_another(
    trained: tuple[Config, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers on one folder that write in the same moment, and files that were deleted."""
    _, bundle = trained
    user, items = int(bundle.state.catalog.user_ids[0]), [int(i) for i in bundle.state.catalog.item_ids[:3]]
    both, write = threading.Barrier(2), pq.write_table

    def together(*args: Any, **options: Any) -> None:
        both.wait(20)
        write(*args, **options)

    def asked(*servers: Server) -> None:
        for number, server in enumerate(servers):
            server.start()
            with Client(server.address, timeout=20) as client:
                client.rank(user, items[: number + 1], request_id="r")
        stopping = [threading.Thread(target=server.stop, args=(0,)) for server in servers]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()

    monkeypatch.setattr(pq, "write_table", together)
    asked(*(Server(bundle, features_to=FeaturesTo(tmp_path, 1.0)) for _ in range(2)))
    monkeypatch.setattr(pq, "write_table", write)
    assert rows_in(tmp_path) == 3
    first = min(tmp_path.glob("part-*.parquet"))
    left = rows_in(tmp_path) - pq.read_metadata(first).num_rows
    first.unlink()
    asked(Server(bundle, features_to=FeaturesTo(tmp_path, 1.0)))
    assert rows_in(tmp_path) == left + 1
    assert all(bundle.version in path.name for path in tmp_path.iterdir())
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}


def test_a_name_that_is_taken_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed:
        hex = "0" * 32

    names = iter([Fixed, Fixed, uuid.uuid4()])
    monkeypatch.setattr("ranker.recording.featurelog.uuid.uuid4", lambda: next(names))
    monkeypatch.setattr(
        "ranker.recording.featurelog.time.gmtime", lambda: time.struct_time((2020, 1, 1, 0, 0, 0, 0, 1, 0))
    )
    for k in range(2):
        write_part(tmp_path, pa.table({"k": [k]}), "v")
    assert sorted(pq.read_table(path)["k"][0].as_py() for path in tmp_path.glob("part-*.parquet")) == [0, 1]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_partial_file_of_another_server_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed:
        hex = "0" * 32

    names = iter([Fixed, uuid.uuid4()])
    monkeypatch.setattr("ranker.recording.featurelog.uuid.uuid4", lambda: next(names))
    monkeypatch.setattr(
        "ranker.recording.featurelog.time.gmtime", lambda: time.struct_time((2020, 1, 1, 0, 0, 0, 0, 1, 0))
    )
    theirs = tmp_path / f"part-20200101T000000-{Fixed.hex[:16]}-v.partial"
    theirs.write_bytes(b"half")
    write_part(tmp_path, pa.table({"k": [1]}), "v")
    assert theirs.read_bytes() == b"half"
    assert rows_in(tmp_path) == 1


def answer_of(n: int) -> Answer:
    return Answer(
        index=np.zeros(n, np.int64),
        item=np.zeros(n, np.int32),
        score=np.zeros(n),
        sources=np.ones(n, np.uint32),
        source_names=("caller",),
        degraded=(),
        bundle_version="v",
    )


def test_what_is_no_feature_log_is_told(trained: tuple[Config, Bundle], tmp_path: Path) -> None:
    config, bundle = trained
    with pytest.raises(PairliftError, match="--feature-log"):
        read_features(tmp_path, bundle.state.catalog, bundle.spec.listed)
    with pytest.raises(PairliftError, match="a share above 0"):
        FeatureLog(tmp_path, columns=bundle.columns, version="v", share=0.0)
    log = FeatureLog(tmp_path / "other", columns=("strange",), version="v", share=1.0)
    request = Request(0, 5, state=bundle.state, request_id="r")
    log.offer(request, answer_of(1), np.ones((1, 1), np.float32))
    log.close()
    with pytest.raises(PairliftError, match="disagree about the columns"):
        drift_report(config, tmp_path / "other")
    with pytest.raises(PairliftError, match="the feature log lacks"):
        Arms.of(prepare(config), read_features(tmp_path / "other", bundle.state.catalog, bundle.spec.listed))


def test_a_slow_disk_drops_and_counts(
    trained: tuple[Config, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, bundle = trained
    monkeypatch.setattr("ranker.recording.featurelog.WAITING", 1)
    monkeypatch.setattr("ranker.recording.featurelog.FeatureLog._run", lambda self: None)
    log = FeatureLog(tmp_path, columns=bundle.columns, version="v", share=1.0)
    for _ in range(3):
        log.offer(Request(0, 5, state=bundle.state, request_id="r"), answer_of(0), np.zeros((0, 1), np.float32))
    assert log.dropped == 2
    assert "feature log: 1 answers lost so far: they come faster than the disk takes them" in caplog.text


@pytest.mark.parametrize("failure", [OSError(5, "Input/output error"), pa.ArrowInvalid("odd")])
def test_answers_that_a_failing_disk_loses_are_counted_as_answers(
    trained: tuple[Config, Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
) -> None:
    _, bundle = trained
    user, items = int(bundle.state.catalog.user_ids[0]), [int(i) for i in bundle.state.catalog.item_ids[:5]]
    write, failing = pq.write_table, threading.Event()
    failing.set()

    def written(*args: Any, **options: Any) -> None:
        if failing.is_set():
            raise failure
        write(*args, **options)

    monkeypatch.setattr(pq, "write_table", written)
    server = Server(bundle, features_to=FeaturesTo(tmp_path, 1.0, seconds=0.1))
    server.start()
    with Client(server.address, timeout=20) as client:
        for k in range(3):
            client.rank(user, items, request_id=f"lost {k}")
        assert server.feature_log is not None
        until = time.monotonic() + 20
        while server.feature_log.dropped < 3 and time.monotonic() < until:
            time.sleep(0.02)
        failing.clear()
        client.rank(user, items, request_id="kept")
    server.stop(0)
    assert server.feature_log.dropped == 3
    assert rows_in(tmp_path) == 5  # the thread goes on
    assert "feature log: 3 answers lost so far: they could not be written to" in caplog.text
    assert str(failure) in caplog.text
    assert "faster than the disk" not in caplog.text


def test_steady_traffic_does_not_keep_answers_from_being_written(
    trained: tuple[Config, Bundle], tmp_path: Path
) -> None:
    _, bundle = trained
    log = FeatureLog(tmp_path, columns=("hour",), version="v", share=1.0, seconds=0.2)
    until = time.monotonic() + 20
    while not list(tmp_path.glob("part-*.parquet")) and time.monotonic() < until:
        request = Request(0, 5, state=bundle.state, request_id="r")
        log.offer(request, answer_of(1), np.zeros((1, 1), np.float32))
        time.sleep(0.02)
    found = len(list(tmp_path.glob("part-*.parquet")))
    log.close()
    assert found
