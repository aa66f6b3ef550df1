"""What is checked of recorded events: what is refused, with index and reason, and what the rest becomes."""

import re
import tomllib
from dataclasses import replace

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import mapping_of
from served import batch, expected_state, exported, imported_from, recording, same, shown
from world import TOML, bundle_of, train_parts, with_config

from features.errors import PairliftError
from features.log.dataset import import_log
from features.log.loading import load_log, load_texts
from features.log.writer import LogWriter
from features.pairing.split import iso
from features.schema import DAY, HOUR, SECOND
from features.settings import EventsSettings, Grade
from ranker.client import ServerError
from ranker.config import Config
from ranker.recording.batch import Batch
from ranker.recording.events import EventReader
from ranker.recording.wire import batch_message, batch_of
from ranker.serving.clock import now_wall
from ranker.settings import RecordSettings


def test_bad_events_are_refused_with_index_and_reason_and_the_rest_is_kept(bundle, tmp_path):
    end, user, item = bundle.state.end, int(bundle.state.catalog.user_ids[0]), int(bundle.state.catalog.item_ids[0])
    n = 11
    ts = [end] * n
    ts[1], ts[2], ts[3] = -5, now_wall() + HOUR, end - 8 * DAY
    inf = [0.5] * n
    inf[4] = float("inf")
    extra = {"plya": pa.array([None] * 5 + [1.0] + [None] * 5, pa.float64())}
    grades = [""] * n
    grades[6], grades[7], grades[8] = "liek", "like", "listen"
    place = [None, *range(1, 10), 0]
    mixed = batch(
        [f"e{k}" for k in range(n)], [user] * n, [item] * n, ts, inf, feedback=extra, grades=grades, position=place
    )
    with recording(bundle, tmp_path / "log") as (_server, client):
        (outcome,) = client.record([mixed])
        assert outcome.recorded == 3  # 0, 8 and 9
        reasons = dict(outcome.refused)
        assert sorted(reasons) == [1, 2, 3, 4, 5, 6, 7, 10]
        for place, text in {
            1: "µs since 1970 were expected, found -5",
            2: "in the future, beyond",
            3: r"older than \[record\] dedupe_days = 7",
            4: "'play': a finite number was expected",
            5: r"^column 'plya' is unknown \(did you mean 'play'\?\)",
            6: r"grade 'liek' is unknown \(did you mean 'like'\?\)",
            7: r"grade 'like': the conditions of \[\[grades\]\] give 'listen'",
            10: r"position: 1 \(the first place\) or more was expected, found 0",
        }.items():
            assert re.search(text, reasons[place]), reasons[place]
        (outcome,) = client.record([batch(["x", "y"], ["one", "two"], [item] * 2, [end] * 2)])
        assert dict(outcome.refused) == dict.fromkeys(
            (0, 1), "user: integer ids were expected, as this bundle has them; found text"
        )
        (outcome,) = client.record([batch(["", "z"], [user] * 2, [item] * 2, [end] * 2)])
        assert (outcome.recorded, [k for k, _ in outcome.refused]) == (1, [0])
        whole = end // SECOND * SECOND
        units = {"milliseconds": whole // 1000, "seconds": whole // SECOND, "nanoseconds": whole * 1000}
        (outcome,) = client.record([batch(["m", "s", "n"], [user] * 3, [item] * 3, list(units.values()))])
        assert [reason for _, reason in outcome.refused] == [
            f"ts: µs since 1970 were expected, found {ts}, which is {iso(whole)} in {unit}: send {whole}"
            for unit, ts in units.items()
        ]
        text = {"play": pa.array(["much", None])}
        (outcome,) = client.record([batch(["t", "u"], [user] * 2, [item] * 2, [end] * 2, feedback=text)])
        assert outcome.refused == ((0, "feedback column 'play': numbers were expected, found texts"),)


SUMS = """
[[counters]]
key = ["item"]
event = "play"
spans = ["all", "w7d", "h3d"]
stats = ["sum", "mean"]
"""


def test_feedback_that_sums_cannot_bear_is_refused_and_later_windows_stay_right(world, tmp_path, monkeypatch):
    summing = bundle_of(train_parts(world, Config(**tomllib.loads(TOML + SUMS))))
    user, item, end = (
        int(summing.state.catalog.user_ids[0]),
        int(summing.state.catalog.item_ids[0]),
        summing.state.end,
    )
    now = [end]
    monkeypatch.setattr("ranker.serving.clock.now_wall", lambda: now[0])
    play = [3.3e38, 3.3e38, 1e17, -1e30, 1.0000001e12, 1e12, -1e12, 1e12]
    with recording(summing, tmp_path / "log", clock="wall") as (server, client):
        (outcome,) = client.record([batch(list("abcdefgh"), [user] * 8, [item] * 8, [end] * 8, play)])
        text = (
            "feedback column 'play': at most 1e+12 either way was expected, found {!r}: running sums would lose later "
        )
        text += "values beside a larger one; scale the column, for example seconds in place of microseconds"
        assert dict(outcome.refused) == {k: text.format(play[k]) for k in range(5)}
        server.follower.drain(5)
        now[0] = end + 1
        assert shown(client, user, item)["item__play__all__sum"] == pytest.approx(1e12, rel=1e-6)
        now[0] = end + 20 * DAY
        list(client.record([batch(["x", "y"], [user] * 2, [item] * 2, [now[0] - 1] * 2, [0.5, 0.25])]))
        server.follower.drain(5)
        found = shown(client, user, item)
        assert found["item__play__w7d__sum"] == pytest.approx(0.75, abs=1e-3)
        assert not any(np.isinf(list(found.values())))


def test_feedback_beyond_the_bound_in_an_older_log_is_not_known_and_told(bundle, world, tmp_path, caplog):
    user, item, end = int(bundle.state.catalog.user_ids[0]), int(bundle.state.catalog.item_ids[0]), bundle.state.end
    events = batch(["a", "b", "c"], [user] * 3, [item] * 3, [end] * 3, [1e300, 0.5, -1e13])
    writer = LogWriter(tmp_path / "log", DAY, lambda: end)
    writer.learn()
    writer.start()
    writer.append(events.events.append_column("play", events.feedback["play"])).result()
    writer.close()
    with recording(bundle, tmp_path / "log") as (server, _client):
        assert server.recorder.count == 3
        unknown = Batch(events.events, {"play": pa.array([None, 0.5, None], pa.float64())}, [])
        same(server.pipeline.state, expected_state(bundle, world, [unknown]))
    text = "recorded feedback 'play' is beyond 1e+12 in 2 events and counts as unknown: event id 'a' (1e+300), "
    assert (
        text + "'c' (-1e+13); running sums would lose later values beside a larger one; scale the column" in caplog.text
    )
    (file,) = exported(bundle, tmp_path / "log")
    for source, row in (
        ("log/events/*.parquet", f"row 3 of log/events/{file.name}: ("),
        ("(FROM 'log/events/*.parquet')", "row 3: ("),
    ):
        with pytest.raises(
            PairliftError, match=r"\[events.feedback\] play of .*: a number beyond .* in 2 rows"
        ) as caught:
            imported_from(bundle, tmp_path, source)
        assert row in str(caught.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.ts.append(3), "batch 0: ts: 2 entries were expected, one for each event id, found 3"),
        (lambda m: m.feedback.add(name="play", numbers=[1, 2]), "each column once was expected"),
        (lambda m: m.feedback.add(name="x", numbers=[1]), "feedback 'x': 2 entries were expected"),
        (lambda m: m.surfaces.extend([0, 9]) or m.surfaces.__delitem__(slice(0, 2)), "surfaces: at most 0"),
        (lambda m: m.grades.append("like"), "grades: 2 entries were expected"),
    ],
)
def test_a_batch_whose_arrays_are_not_parallel_ends_the_stream(bundle, tmp_path, change, text):
    message = batch_message(batch([1, 2], [1000, 1007], [10, 13], [bundle.state.end] * 2))
    change(message)
    with recording(bundle, tmp_path / "log") as (_server, client):
        with pytest.raises(grpc.RpcError) as caught:
            list(client._stub.RecordEvents(iter([message])))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert text in caught.value.details()


CONDITIONS = [
    "play < 0.3",
    "NOT liked",
    "liked AND play >= 0.5",
    "liked OR tab = 'x'",
    "play IS NULL AND ts >= TIMESTAMP '2020-01-01'",
    "context_tab = 'y'",
    "candidate_price > 0.3 OR price < 0.2",  # 0.3 as a 32-bit float, and 0.1 as it came
]
PRICES = [None, 0.1, 0.3]
maybe = st.none() | st.sampled_from([0.0, 0.3, 0.5, 1.0])


@given(
    rows=st.lists(
        st.tuples(
            maybe, st.none() | st.booleans(), st.sampled_from([None, "x", "y"]), st.sampled_from([None, 0.1, 0.3])
        ),
        min_size=1,
        max_size=12,
    ),
    whens=st.lists(st.sampled_from(CONDITIONS), min_size=1, max_size=3),
)
@settings(max_examples=20, deadline=None)
def test_grades_are_those_of_the_import(bundle, tmp_path_factory, rows, whens):
    folder = tmp_path_factory.mktemp("parity")
    play, liked, tab, price = zip(*rows, strict=True)
    ts = pa.array(1_600_000_000_000_000 + np.arange(len(rows)) * HOUR)
    users, items = [1000] * len(rows), [10] * len(rows)
    columns = {
        "user_id": users,
        "item_id": items,
        "play": pa.array(play, pa.float64()),
        "tab": pa.array(tab, pa.string()),
        "price": pa.array(price, pa.float64()),
    }
    pq.write_table(
        pa.table({**columns, "ts": ts.cast(pa.timestamp("us")), "liked": pa.array(liked, pa.bool_())}),
        folder / "e.parquet",
    )
    grades = tuple(Grade(name=f"g{k}", when=when) for k, when in enumerate(whens))
    events = EventsSettings(
        source="e.parquet",
        feedback={"play": "play", "liked": "liked"},
        columns={"tab": "tab", "price": "price"},
        context={"tab": "tab"},
        candidate={"price": "price"},
    )
    import_log(mapping_of(folder, events, grades), folder / "log.duckdb")
    imported, catalog = load_log(folder / "log.duckdb")
    assert load_texts(folder / "log.duckdb") == ("tab",)
    config = bundle.config.model_copy(update={"events": events, "grades": list(grades)})
    catalog = replace(bundle.state.catalog, contexts=catalog.contexts, candidates=catalog.candidates)
    reader = EventReader(
        replace(bundle, config=config, texts=("tab",), state=replace(bundle.state, catalog=catalog)),
        lambda ids: np.zeros(len(ids), np.int32),
        lambda ids: np.zeros(len(ids), np.int32),
    )
    feedback = {
        "liked": pa.array(liked, pa.bool_()).cast(pa.int8()).cast(pa.float64()),
        "tab": pa.array(tab, pa.string()),
        "price": pa.array(price, pa.float64()),
    }
    given_ = batch(list(range(len(rows))), users, items, ts.to_numpy(), list(play), feedback=feedback)
    checked = reader.checked(batch_of(batch_message(given_)), 1_600_000_000_000_000, 2**60)
    assert not checked.refused
    log = reader.read(checked.table)
    assert log.grade.tolist() == imported.grade.tolist()
    np.testing.assert_array_equal(log.feedback, imported.feedback)


LIMIT = 64


def test_ids_beyond_the_limit_are_refused_one_by_one_with_a_reason(text_bundle, tmp_path):
    short = with_config(text_bundle, record=RecordSettings(max_id_bytes=LIMIT))
    fits, long = "é" * (LIMIT // 2), "é" * (LIMIT // 2) + "x"
    users, items, end = ["user-0001"] * 6, ["item-0001"] * 6, text_bundle.state.end
    ids, requests = [f"e{k}" for k in range(6)], [None] * 6
    users[1], items[2], ids[3], requests[4], users[5] = long, long, long, long, fits
    requests[0] = items[0] = fits
    with recording(short, tmp_path / "log") as (server, client):
        (outcome,) = client.record([batch(ids, users, items, end + np.arange(6), request_id=requests)])
        assert outcome.recorded == 2
        text = f"an id of at most {LIMIT} bytes in UTF-8 ([record] max_id_bytes) was expected, found one of {LIMIT + 1}"
        assert dict(outcome.refused) == {
            1: f"user: {text}", 2: f"item: {text}", 3: f"event id: {text}", 4: f"request id: {text}",
        }  # fmt: skip
        server.follower.drain(5)
        assert server.pipeline.state.catalog.new_users.known == [fits]
        assert server.pipeline.state.catalog.new_items.known == [fits]


@pytest.mark.parametrize(
    ("ask", "place"),
    [
        (lambda c, i: c.rank(i, ["item-0001"]), "user"),
        (lambda c, i: c.rank("user-0001", ["item-0001", i]), "items"),
        (lambda c, i: c.recommend(i), "user"),
        (lambda c, i: c.recommend("user-0001", exclude=[i]), "exclude"),
        (lambda c, i: c.recommend("user-0001", source_item=i), "context.source_item"),
        (lambda c, i: c.rank("user-0001", ["item-0001"], request_id=i), "request_id"),
    ],
)
def test_ids_beyond_the_limit_are_refused_in_requests_too(limited, ask, place):
    ask(limited, "é" * (LIMIT // 2))
    text = rf"^{place}: an id of at most 64 bytes in UTF-8 \(\[record\] max_id_bytes\) was expected, found one of 65$"
    with pytest.raises(ServerError, match=text) as caught:
        ask(limited, "é" * (LIMIT // 2) + "x")
    assert caught.value.code == "INVALID_ARGUMENT"


@pytest.fixture(scope="module")
def limited(text_bundle, tmp_path_factory):
    short = with_config(text_bundle, record=RecordSettings(max_id_bytes=LIMIT))
    with recording(short, tmp_path_factory.mktemp("log")) as (_, client):
        yield client


def test_an_id_that_the_bundle_knows_is_never_too_long(text_bundle, tmp_path):
    tiny = with_config(text_bundle, record=RecordSettings(max_id_bytes=4))
    with recording(tiny, tmp_path / "log") as (_, client):
        assert len(client.rank("user-0001", ["item-0001", "item-0002"]).items) == 2
        (outcome,) = client.record([batch(["e"], ["user-0001"], ["item-0001"], [text_bundle.state.end])])
        assert outcome.recorded == 1
