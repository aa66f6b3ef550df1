"""Files of events to record: times without a zone are what the training reads them as."""

from datetime import UTC, datetime
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served import pairlift, recording
from world import with_config

from features.errors import PairliftError
from features.log.expressions import utc
from features.schema import DAY, MINUTE, SECOND
from ranker.cli.ask import micros
from ranker.cli.record import _zone
from ranker.recording.batch import read_batches
from ranker.settings import TimeSettings

BERLIN = "Europe/Berlin"


def events(path, ts, kind, user="0", item="0"):
    n = len(ts)
    ids = {"event_id": range(n), "user_id": [user] * n, "item_id": [item] * n}
    pq.write_table(pa.table({**{name: list(of) for name, of in ids.items()}, "ts": pa.array(ts, kind)}), path)
    return path


def read(path, zone):
    return [ts for batch in read_batches(path, 1000, zone) for ts in batch.events["ts"].to_pylist()]


@pytest.mark.parametrize("zone", ["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe"])
@pytest.mark.parametrize("unit", ["us", "ns"])
def test_a_time_without_a_zone_is_the_instant_that_the_training_reads(tmp_path, zone, unit):
    """Against the SQL of an import, on random times and on each half hour of a year."""
    rng, year = np.random.default_rng(0), int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * SECOND
    local = np.concatenate(
        [year + rng.integers(-3000 * DAY, 3000 * DAY, 300), year + np.arange(0, 366 * DAY, 30 * MINUTE)]
    )
    path = events(tmp_path / "events.parquet", local * (1000 if unit == "ns" else 1), pa.timestamp(unit))
    con = duckdb.connect()
    kind = con.execute(f"DESCRIBE SELECT ts FROM '{path}'").fetchone()[1]
    expected = con.execute(f"SELECT epoch_us({utc('ts', 'ts', kind, zone)}) FROM '{path}'").fetchall()
    assert read(path, zone) == [ts for (ts,) in expected]


def test_an_instant_stays_what_it_is(tmp_path):
    ts = [-(10**15), 0, 10**15]
    for kind in (pa.int64(), pa.timestamp("us", "UTC"), pa.timestamp("us", BERLIN)):
        assert read(events(tmp_path / "events.parquet", ts, kind), "America/New_York") == ts


@pytest.mark.parametrize("kind", [pa.date32(), pa.string(), pa.float64()])
def test_a_ts_of_another_type_is_refused(tmp_path, kind):
    path = events(tmp_path / "events.parquet", pa.array([0], pa.int32()).cast(kind), kind)
    with pytest.raises(PairliftError, match="ts of timestamps or integers"):
        read(path, BERLIN)


def test_a_zone_that_is_not_told_is_not_guessed(tmp_path):
    local, aware = datetime(2024, 3, 1), datetime(2024, 3, 1, tzinfo=UTC)
    with pytest.raises(PairliftError, match="older"):
        micros(local, "")
    assert micros(aware, "") == micros(aware, BERLIN) == micros(local, "UTC")
    with pytest.raises(PairliftError, match="years 1 to 9999"):
        micros(datetime(1, 1, 1), BERLIN)
    old = SimpleNamespace(describe=lambda: SimpleNamespace(time_zone=""))
    with pytest.raises(PairliftError, match="this server is older"):
        _zone(old)


def test_commands_read_a_time_without_a_zone_in_that_of_the_bundle(bundle, tmp_path):
    catalog = bundle.state.catalog
    user, item = int(catalog.user_ids[0]), int(catalog.item_ids[0])
    moment = datetime.fromtimestamp(bundle.state.end // SECOND, ZoneInfo(BERLIN))
    local = (int(moment.replace(tzinfo=UTC).timestamp()) * SECOND) + MINUTE
    path = events(tmp_path / "events.parquet", [local], pa.timestamp("us"), user, item)
    there = with_config(bundle, time=TimeSettings(zone=BERLIN))
    with recording(there, tmp_path / "log") as (server, client):
        code, text = pairlift("record", path, "--address", server.address)
        assert (code, "read as Europe/Berlin" in text) == (0, True), text
        assert client.describe().time_zone == BERLIN
        server.follower.drain(20)
        assert server.follower.state.end - 1 - bundle.state.end // SECOND * SECOND in (MINUTE, MINUTE - 1)
        at = moment.replace(tzinfo=None).isoformat()
        for said, expected in ((at, moment), (f"{at}Z", moment.replace(tzinfo=UTC))):
            code, text = pairlift("recommend", "--user", user, "--as-of", said, "--address", server.address)
            shown = expected.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
            assert (code, shown in text.replace(" ", "T")) == (0, True), text
