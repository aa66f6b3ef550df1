"""What was asked and shown is recorded beside what the user did: served at once, and trained on by the TOML's names."""

import json
import re
import shutil
import tomllib
from dataclasses import replace
from itertools import chain

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from priced import write_priced
from served import batch, exported, pairlift, recording, same, shown
from world import with_config

from features.errors import PairliftError
from features.log.dataset import import_log
from features.log.loading import load_given, load_log
from features.state.store import State
from ranker.bundle import _version_of, load_bundle
from ranker.config import load_config
from ranker.hashes import MANIFEST, hash_files
from ranker.recording.batch import read_batches
from ranker.recording.columns import Column, recorded_columns
from ranker.recording.snapshots import origin_of, with_snapshot
from ranker.settings import RecordSettings
from ranker.train import train
from ranker.training.prepared import prepare

OLD = "SELECT * REPLACE (make_timestamp(ts) AS ts) FROM 'log.parquet'"
BOTH = f"source = \"({OLD} UNION ALL BY NAME FROM 'log/events/*.parquet')\""

#: the old log, with another name for the price
RENAMED = "(SELECT * EXCLUDE (price), price AS eur FROM 'log.parquet')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    path = write_priced(folder)
    path.write_text(
        path.read_text()
        .replace('"make_timestamp(ts)"', '"ts"')
        .replace('source = "log.parquet"', f'source = "({OLD})"')
    )
    train(load_config(path), folder / "bundle")
    return folder


@pytest.fixture(scope="module")
def priced(folder):
    return load_bundle(folder / "bundle")


def asked(bundle, n, seed=0, first=0):
    """n events behind the bundle's end, of requests of four, with what was asked and shown."""
    rng, end = np.random.default_rng(seed), bundle.state.end
    some = lambda values: rng.choice(np.array(values, object), n).tolist()  # noqa: E731
    request = np.arange(n) // 4
    device = np.array([None, "phone", "tv", "fridge"], object)[request % 4]
    feedback = {
        "device": pa.array(device.tolist(), pa.string()),
        "shop": pa.array(some(["shop-0", None]), pa.string()),
        "price": pa.array(some([None, 1.1, 2.5, 1e4]), pa.float64()),
        "badge": pa.array(some([None, "new", "sale", "free"]), pa.string()),
        "match": pa.array(some([None, 0.25]), pa.float64()),
    }
    return batch(
        list(range(first, first + n)),
        rng.choice(bundle.state.catalog.user_ids, (n + 3) // 4)[request],
        rng.choice(bundle.state.catalog.item_ids, n),
        end + (first + np.arange(n)) * 1000,
        rng.choice([0.1, 0.5, 1.0], n).tolist(),
        request_id=[f"r{first + r}" for r in request],
        feedback=feedback,
    )


def test_what_was_asked_is_trained_on_from_the_exported_log(folder, priced, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "own")
    own, batches = tmp_path / "own", [asked(priced, 40, k, 40 * k) for k in range(3)]
    small = with_config(priced, record=RecordSettings(segment_mb=0.001))
    with recording(small, own / "log") as (_, client):
        for outcome in client.record(batches):
            assert outcome == (40, 0, ())
    assert exported(small, own / "log")
    path = own / "pairlift.toml"
    path.write_text(re.sub(r'source = "\(SELECT.*\)"', lambda _: BOTH, path.read_text()))
    config = load_config(path)
    import_log(config.mapping(), own / "log.duckdb")
    log, catalog = load_log(own / "log.duckdb")
    late = log.ts >= priced.state.end
    assert late.sum() == 120
    given, context = load_given(own / "log.duckdb", catalog)[late], log.context[late]
    sent = {name: pa.concat_arrays([b.feedback[name] for b in batches]) for name in batches[0].feedback}
    for k, known in enumerate(catalog.candidates):
        np.testing.assert_array_equal(given[:, k], coded(sent[known.name], known))
    np.testing.assert_array_equal(context[:, 0], coded(sent["device"], catalog.contexts[0]))
    assert catalog.candidates[1].values == ("free", "new", "sale")  # one that was recorded is known from then on
    assert "no recorded event has a value" not in caplog.text
    other = config.events.model_copy(update={"source": BOTH[10:-1].replace("'log.parquet'", RENAMED)})
    lost = other.model_copy(update={"candidate": {**other.candidate, "price": "eur"}})
    import_log(replace(config.mapping(), events=lost), own / "lost.duckdb")
    assert "no recorded event has a value of [events.candidate] price = 'eur', though the source has" in caplog.text
    # A server of the log, by the old bundle, counts what this training counts.
    with recording(priced, own / "log") as (server, _):
        state, prepared = server.pipeline.state, prepare(config)
        counters = priced.state.counters  # with its priors
        same(state, State.build(prepared.log, prepared.catalog, counters, priced.state.grades))


def coded(values, known):
    """Numbers and codes of a recorded column as the import has them."""
    plain = values.to_pylist()
    if known.kind == "numeric":
        return np.array(plain, np.float32)
    return np.array([np.nan if value is None else known.values.index(value) for value in plain], np.float32)


def test_recorded_values_are_counted_at_once_and_after_a_rebuild(priced, tmp_path):
    user, item = int(priced.state.catalog.user_ids[3]), int(priced.state.catalog.item_ids[5])
    item_mean, user_mean = "item__candidate_price_of_like__all__mean", "user__candidate_price__w7d__mean"
    before = priced.state.end
    with recording(priced, tmp_path / "log") as (server, client):
        old = shown(client, user, item)
        prices = pa.array([20.0, 30.0, None, 40.0, 50.0], pa.float64())
        plays = [1.0, 1.0, 1.0, 0.1, None]  # the last but one is no like, the last has no grade
        list(
            client.record(
                [batch(list("abcde"), [user] * 5, [item] * 5, [before] * 5, plays, feedback={"price": prices})]
            )
        )
        server.follower.drain(5)
        counter = next(c for c in priced.state.counters if c.column == item_mean)
        count = old["item__candidate_price_of_like__all__count"]
        new = shown(client, user, item)
        assert new["item__candidate_price_of_like__all__count"] == count + 2
        total = old[item_mean] * (count + counter.strength) + 50
        assert new[item_mean] == pytest.approx(total / (count + 2 + counter.strength), rel=1e-5)
        assert new[user_mean] > old[user_mean]
        server.follower.live.freeze().result(20)
        assert shown(client, user, item) == pytest.approx(new, rel=1e-6, nan_ok=True)
        assert server.pipeline.state.histories.feedback.shape[1] == 3  # play, and the two that are counted


def said_since(histories, start):
    """The devices' codes of the events from a time on, in the order of their times."""
    late = np.flatnonzero(histories.ts >= start)
    return histories.context[late[np.argsort(histories.ts[late])], 0]


def test_what_a_request_said_is_in_the_history_with_its_event(priced, tmp_path):
    device, end = priced.state.catalog.contexts[0], priced.state.end
    known = np.unique(priced.state.histories.context)
    assert (device.values, known.tolist()) == (("phone", "tv"), pytest.approx([0, 1, np.nan], nan_ok=True))
    events, silent = asked(priced, 40), asked(priced, 8, first=40)
    del silent.feedback["device"]
    with recording(priced, tmp_path / "log") as (server, client):
        list(client.record([events, silent]))
        server.follower.drain(5)
        live = server.pipeline.state.histories.compact()
        folder, frozen, _ = server.follower.snapshot()
    sent = events.feedback["device"].to_pylist() + [None] * 8
    want = [device.values.index(value) if value in device.values else np.nan for value in sent]  # no fridge was known
    assert {"phone", "tv", "fridge", None} == set(sent)
    for histories in (live, frozen.histories, with_snapshot(priced, folder).state.histories):
        np.testing.assert_array_equal(said_since(histories, end), np.array(want, np.float32))


def test_a_snapshot_of_recorded_candidates_is_served(priced, tmp_path):
    events = asked(priced, 40)
    with recording(priced, tmp_path / "log") as (server, client):
        list(client.record([events]))
        folder, state, _ = server.follower.snapshot()
    with recording(with_snapshot(priced, folder), tmp_path / "log", origin_of(folder)) as (server, _):
        assert server.recorder.count == 0
        np.testing.assert_array_equal(
            server.pipeline.state.histories.compact().feedback, state.histories.compact().feedback
        )


def test_what_does_not_fit_is_refused_with_its_table(priced, tmp_path):
    n, user, item = 6, int(priced.state.catalog.user_ids[0]), int(priced.state.catalog.item_ids[0])
    columns = {
        "price": pa.array([1e13, None, 1.0, 1.0, 1.0, 1.0]),
        "match": pa.array([None, 1e39, float("inf"), None, 3e38, None], pa.float64()),
        "device": pa.array([None, None, None, 7.0, None, None]),
        "badge": pa.array([None] * 6, pa.string()),
        "pricey": pa.array([None, None, None, None, None, 1.0]),
    }
    with recording(priced, tmp_path / "log") as (_, client):
        events = batch(list(range(n)), [user] * n, [item] * n, [priced.state.end] * n, feedback=columns)
        (outcome,) = client.record([events])
    reasons = dict(outcome.refused)
    assert outcome.recorded == 1
    assert reasons[0].startswith(
        "candidate column 'price': at most 1e+12 either way was expected, found 10000000000000.0: "
    )
    assert reasons[1] == "candidate column 'match': at most 3.40282e+38 either way was expected, found 1e+39"
    assert reasons[2] == "candidate column 'match': a finite number was expected, found an infinite one"
    assert reasons[3] == "context column 'device': texts were expected, found numbers"
    assert reasons[5] == "column 'pricey' is unknown (did you mean 'price'?)"


def test_a_request_has_one_context(priced, tmp_path):
    user, item, n = int(priced.state.catalog.user_ids[0]), int(priced.state.catalog.item_ids[0]), 7
    device = pa.array(["tv", None, "phone", "tv", "phone", "tv", "phone"])
    requests = ["a", "a", "b", "b", None, None, "b"]
    with recording(priced, tmp_path / "log") as (_, client):
        columns = [list(range(n)), [user] * n, [item] * n, [priced.state.end] * n]
        (outcome,) = client.record([batch(*columns, request_id=requests, feedback={"device": device})])
    reason = "context column 'device': one value for a request was expected, request 'b' has 'phone' and 'tv'"
    assert outcome == (6, 0, ((3, reason),))


def test_a_file_with_what_was_asked_is_recorded(priced, tmp_path):
    events = asked(priced, 8)
    table = events.events
    for name, values in events.feedback.items():
        text = pa.types.is_string(values.type)
        # As other libraries write text.
        table = table.append_column(name, values.cast(pa.large_string()).dictionary_encode() if text else values)
    pq.write_table(table, tmp_path / "events.parquet")
    with recording(priced, tmp_path / "log") as (server, _):
        code, text = pairlift("record", tmp_path / "events.parquet", "--address", server.address)
        assert (code, "8 events recorded" in text) == (0, True), text
    (read,) = read_batches(tmp_path / "events.parquet", 100)
    assert {name: values.to_pylist() for name, values in read.feedback.items()} == {
        name: values.to_pylist() for name, values in events.feedback.items()
    }


def test_a_file_that_cannot_be_read_is_told_in_a_sentence_behind_what_was_recorded(priced, tmp_path, caplog):
    table = asked(priced, 8).events
    pq.write_table(table.drop_columns("event_id"), tmp_path / "lacks.parquet")
    pq.write_table(table.slice(0, 4), tmp_path / "ahead.parquet")
    batches = chain(read_batches(tmp_path / "ahead.parquet", 4), read_batches(tmp_path / "lacks.parquet", 4))
    recorded = []
    with recording(priced, tmp_path / "log") as (_, client):
        with pytest.raises(PairliftError, match="the column 'event_id' was expected"):
            recorded.extend(outcome.recorded for outcome in client.record(batches))
        assert recorded == [4]
        assert "Traceback" not in caplog.text  # gRPC logs what its iterator of requests raises


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        (
            {"feedback": {"play": "play", "price": "paid"}},
            "[events.feedback] price = 'paid' and [events.candidate] price",
        ),
        (
            {"context": {"position": "rank"}},
            "[events.context] position: a recorded event has another column of that name",
        ),
    ],
)
def test_names_that_would_stand_for_two_columns_are_refused(priced, tables, text):
    events = priced.config.events.model_copy(update=tables)
    with pytest.raises(PairliftError, match=re.escape(text)):
        recorded_columns(with_config(priced, events=events))


def test_a_name_that_means_one_column_in_two_tables_is_one(priced):
    events = priced.config.events.model_copy(update={"columns": {"price": "price", "badge": "badge"}})
    both = replace(with_config(priced, events=events), texts=("badge",))
    found = recorded_columns(both)
    assert found["price"] == Column("feedback", False, 1e12)
    assert found["badge"].text


def test_text_of_an_earlier_bundle_is_what_its_toml_named(folder, priced, tmp_path):
    assert priced.texts == ("shop",)
    assert load_config(folder / "pairlift.toml").record == RecordSettings()
    earlier = without_texts(folder / "bundle", tmp_path / "bundle", '\n[record]\ntexts = ["shop"]\nstreams = 3\n')
    assert load_bundle(earlier).texts == ("shop",)
    assert load_bundle(earlier).config.record.streams == 3
    assert load_bundle(without_texts(folder / "bundle", tmp_path / "other", "")).texts == ()
    with pytest.raises(PairliftError, match=r"record\.texts: unknown key"):
        load_config(earlier / "pairlift.toml")


def without_texts(bundle, target, lines):
    """The bundle as an earlier version wrote it: its TOML said which columns are text."""
    shutil.copytree(bundle, target)
    (target / "pairlift.toml").write_text((target / "pairlift.toml").read_text() + lines)
    assert "record" in tomllib.loads((target / "pairlift.toml").read_text()) or not lines
    manifest = json.loads((target / MANIFEST).read_text())
    (target / MANIFEST).unlink()
    del manifest["texts"], manifest["version"]
    manifest["files"] = hash_files(target)
    (target / MANIFEST).write_text(json.dumps(manifest | {"version": _version_of(manifest)}))
    return target


def test_the_export_has_the_names_of_the_toml(priced, tmp_path):
    small = with_config(priced, record=RecordSettings(segment_mb=0.0001))
    with recording(small, tmp_path / "log") as (_, client):
        list(client.record([asked(priced, 8), asked(priced, 8, 1, 8)]))
    files = exported(small, tmp_path / "log")
    described = duckdb.sql(f"DESCRIBE FROM read_parquet({[str(f) for f in files]})").fetchall()
    kinds = {row[0]: row[1] for row in described}
    assert {kinds[name] for name in ("play", "price", "match")} == {"DOUBLE"}
    assert {kinds[name] for name in ("shop", "device", "badge")} == {"VARCHAR"}
