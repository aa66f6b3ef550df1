"""What users have on disk still loads, as an earlier version wrote it: a bundle, a recorded log and a snapshot of it.

`golden/bundle-3-log-1.tar.xz` has a bundle of format 3, which was trained on a small world; a log of four batches of
eight events, among them new users (there is room for one) and items, exported; a snapshot of its end; and in
`expected.json` the scores that the version which wrote them gave.
"""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import pairlift, recording, serving
from world import Parts, full_matrix, write_world_bundle

from features.errors import PairliftError
from features.log.dataset import Mapping, import_log
from features.log.loading import load_log
from features.log.recorded import load_recorded
from features.log.segments import check_export, segment_files
from features.schema import F64, Requests, empty_log
from features.state.live import Frozen
from features.state.store import State
from ranker.bundle import Bundle, load_bundle
from ranker.client import Client
from ranker.recording.snapshots import origin_of, with_snapshot, write_snapshot

GOLDEN = Path(__file__).parent / "golden" / "bundle-3-log-1.tar.xz"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(GOLDEN) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def expected(old: Path) -> Any:
    return json.loads((old / "expected.json").read_text())


def scores(bundle: Bundle, state: State) -> F64:
    """Of ten items for each of six users."""
    requests = Requests(
        user=np.arange(6, dtype=np.int32),
        as_of=np.full(6, state.end),
        surface=np.array([0, 1, -1, 0, 1, -1], np.int16),
        offsets=np.arange(7) * 10,
        item=np.tile(np.arange(10, dtype=np.int32), 6),
    )
    return bundle.score(full_matrix(state, bundle.spec, bundle.plugins, requests))


def test_a_bundle_of_format_3_loads_and_scores_as_it_did(old: Path, expected: Any) -> None:
    bundle = load_bundle(old / "bundle")
    assert (bundle.version, bundle.state.end) == (expected["version"], expected["end"])
    assert bundle.recorded == {"00000000000000000001-0123": [(1, 2), (4, 4)]}
    np.testing.assert_allclose(scores(bundle, bundle.state), expected["scores"], rtol=1e-6)


def test_a_bundle_of_format_3_is_served_and_orders_recommend_as_rank(
    old: Path, expected: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = load_bundle(old / "bundle")
    with serving(bundle, clock="snapshot") as server, Client(server.address, timeout=20) as client:
        listed = client.recommend(None, 5)
        assert len(listed.items) == 5
        ranked = client.rank(None, [item.item for item in listed.items])
        assert [(item.item, item.score) for item in listed.items] == [(item.item, item.score) for item in ranked.items]
    assert caplog.text.count("Recommend is ordered as Rank") == 1


def test_a_bundle_of_format_3_is_shown_and_has_one_part(old: Path, tmp_path: Path) -> None:
    code, said = pairlift("bundle", "show", old / "bundle")
    assert (code, "liked: column" in said, "wanted" in said) == (0, True, False), said
    code, said = pairlift("bundle", "onnx", old / "bundle", "--part", "wanted", "--out", tmp_path / "wanted.onnx")
    assert (code, "has no part wanted: wanted.txt is not there" in said) == (2, True), said


def test_a_bundle_of_another_format_says_what_to_do(old: Path) -> None:
    path = old / "bundle" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(PairliftError, match="a format from 3 to 6 was expected, found 2; train it again"):
        load_bundle(old / "bundle")


def test_a_snapshot_of_format_1_loads_and_scores_as_it_did(old: Path, expected: Any) -> None:
    wanted = expected["snapshot"]
    folder = old / "log" / "snapshots" / wanted["name"]
    bundle, origin = with_snapshot(load_bundle(old / "bundle"), folder), origin_of(folder)
    assert origin is not None
    assert (origin.frame, len(origin.unplaced), bundle.state.end) == (
        wanted["frame"],
        wanted["unplaced"],
        wanted["end"],
    )
    np.testing.assert_allclose(scores(bundle, bundle.state), wanted["scores"], rtol=1e-6)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 0}))
    with pytest.raises(PairliftError, match=r"format 1 was expected, found 0; .* take a new snapshot"):
        origin_of(folder)


def test_a_log_is_read_again_with_and_without_its_snapshot(old: Path, expected: Any) -> None:
    bundle, wanted = load_bundle(old / "bundle"), expected["snapshot"]
    with recording(bundle, old / "log") as (server, _):
        assert server.recorder.count == expected["events"]
        np.testing.assert_allclose(scores(bundle, server.pipeline.state), wanted["scores"], rtol=1e-6)
    folder = old / "log" / "snapshots" / wanted["name"]
    with recording(with_snapshot(bundle, folder), old / "log", origin=origin_of(folder)) as (server, client):
        assert (server.recorder.count, server.follower.frame) == (0, wanted["frame"])
        np.testing.assert_allclose(scores(bundle, server.pipeline.state), wanted["scores"], rtol=1e-6)
        assert client.snapshot().frame == wanted["frame"]


def test_exported_segments_are_theirs_and_are_trained_on(old: Path, expected: Any) -> None:
    exported = sorted((old / "log" / "events").iterdir())
    for path, file in zip(segment_files(old / "log"), exported, strict=False):  # the last segment was open
        check_export(path, file)
    bundle = load_bundle(old / "bundle")
    events = bundle.config.events.model_copy(update={"source": "log/events/*.parquet"})
    grades = tuple(bundle.config.grades)
    mapping = Mapping(data=old, zone="UTC", events=events, items=None, users=None, grades=grades, pairing_where=None)
    import_log(mapping, old / "log.duckdb")
    log, _ = load_log(old / "log.duckdb")
    assert len(log) == expected["events"]
    ranges = list(load_recorded(old / "log.duckdb").values())
    assert [(first, last) for frames in ranges for first, last in frames] == [(1, 1), (2, 2), (3, 3), (4, 4)]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Places of what was synced, as they were then."""
    places: set[str] = set()
    fsync = os.fsync

    def noted(handle: int) -> None:
        fsync(handle)
        places.add(os.readlink(f"/proc/self/fd/{handle}"))

    monkeypatch.setattr(os, "fsync", noted)
    return places


def test_all_of_a_bundle_is_synced(parts: Parts, tmp_path: Path, synced: set[str]) -> None:
    folder = tmp_path / "b"
    write_world_bundle(parts, folder)
    partial = tmp_path / f".b.{os.getpid()}.partial"
    files = {str(partial / p.relative_to(folder)) for p in folder.rglob("*")}
    assert synced == {str(tmp_path), str(partial), *files}


def test_all_of_a_snapshot_is_synced(parts: Parts, tmp_path: Path, synced: set[str]) -> None:
    folder = write_snapshot(tmp_path, Frozen(parts.state, empty_log(("play",)), 7), "log", "v")
    (partial,) = (Path(place) for place in synced if place.endswith(".partial"))
    files = {str(partial / p.relative_to(folder)) for p in folder.rglob("*")}
    assert synced == {str(tmp_path.parent), str(tmp_path), str(partial), *files}
