"""The plain stack that Pairlift is compared with: FastAPI, Feast over Redis, and LightGBM's own predict.

Run by `serving.py` with the Python of .venv-bench, where these are: FOLDER CORE. FOLDER/values.parquet has the columns
item_id, at and one for each of 50 features, FOLDER/booster.txt the booster. They are materialised into a Redis of our
own, which is put on CORE, beside the generator of load: all of the server's core is FastAPI's. The last line that it
prints ends with the address. POST /rank with {"items": [...]} reads the features of the items by Feast, as its guide
has it, scores them on one thread and gives items and scores, best first.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
import uvicorn
from fastapi import FastAPI
from feast import FeatureStore
from feature_feast import filled, redis_server
from pydantic import BaseModel


class Asked(BaseModel):
    """A list to be ranked."""

    items: list[int]


def app_of(store: FeatureStore, booster: lgb.Booster, names: list[str]) -> FastAPI:
    """Return the service."""
    app, read = FastAPI(), store.get_feature_service("read")
    missing = np.zeros(booster.num_feature() - len(names), np.float32)

    @app.post("/rank")
    def rank(asked: Asked) -> dict[str, Any]:
        found = store.get_online_features(features=read, entity_rows={"item_id": asked.items}).to_dict()
        values = np.array([found[name] for name in names], np.float32).T
        matrix = np.hstack([values, np.tile(missing, (len(values), 1))])
        scores = np.asarray(booster.predict(matrix, num_threads=1))
        order = np.argsort(-scores, kind="stable")
        return {"items": np.array(asked.items)[order].tolist(), "scores": scores[order].tolist()}

    return app


async def serve(app: FastAPI) -> None:
    """Answer on a free port until told to stop."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.05)
    host, port = server.servers[0].sockets[0].getsockname()
    print(f"fastapi answers on {host}:{port}", flush=True)
    await running


def main() -> None:
    """Fill the store and serve."""
    folder, core = Path(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # uvicorn passes it on, and Redis is to end too
    values = pd.read_parquet(folder / "values.parquet")
    with redis_server() as address:
        for pid in map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()):
            os.sched_setaffinity(pid, {core})
        store = filled(folder, {"type": "redis", "connection_string": address}, values)
        names = [n for n in values.columns if n not in ("item_id", "at")]
        asyncio.run(serve(app_of(store, lgb.Booster(model_file=str(folder / "booster.txt")), names)))


if __name__ == "__main__":
    main()
