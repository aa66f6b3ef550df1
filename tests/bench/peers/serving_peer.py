"""How much the plain stack of `serving_fastapi.py` answers, in a closed loop: the most that can be said for it."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from serving_load import percentile
from serving_process import HERE, started

#: Feast's Python
PYTHON = HERE.parents[2] / ".venv-bench" / "bin" / "python"
ITEMS, FEATURES = 20_000, 50
#: requests under way at a time, and how many are asked in all
AT_ONCE, ASKED = (1, 2), 120


def peer(folder: Path, candidates: int, server: set[int], generator: set[int], length: float) -> dict[str, Any]:
    """Return the requests/s of the plain stack, the most of AT_ONCE, and its 99th percentile where it is least."""
    if not PYTHON.exists():
        reason = f"{PYTHON} is missing: `make bench WHAT=serving` makes it"
        return {"why": {"throughput_vs_fastapi_feast": reason}}
    stack = folder / "fastapi"
    shutil.rmtree(stack, ignore_errors=True)
    stack.mkdir()
    shutil.copyfile(folder / "bundle" / "booster.txt", stack / "booster.txt")
    _write(stack / "values.parquet")
    command = [str(PYTHON), str(HERE / "serving_fastapi.py"), str(stack), str(min(generator))]
    with started(command, server, "fastapi", stack / "log") as process:
        runs = [_loop(process.address, candidates, at_once, max(10, int(ASKED * length))) for at_once in AT_ONCE]
    return {"per_second": max(rate for rate, _ in runs), "p99_ms": min(p99 for _, p99 in runs), "items": ITEMS}


def _write(path: Path) -> None:
    """Write FEATURES numbers of each item."""
    columns = ", ".join(f"random()::FLOAT AS f{k:02}" for k in range(FEATURES))
    duckdb.sql(f"COPY (SELECT range AS item_id, now()::TIMESTAMP AS at, {columns} FROM range({ITEMS})) TO '{path}'")


def _loop(address: str, candidates: int, at_once: int, asked: int) -> tuple[float, float]:
    """Return requests/s and the 99th percentile in ms."""
    rng = np.random.default_rng(4)
    bodies = [json.dumps({"items": rng.choice(ITEMS, candidates, replace=False).tolist()}) for _ in range(asked)]

    def ask(some: list[str]) -> list[float]:
        connection, took = HTTPConnection(address), []
        for body in some:
            begun = time.perf_counter()
            connection.request("POST", "/rank", body, {"content-type": "application/json"})
            reply = connection.getresponse()
            answer = json.loads(reply.read())
            took.append((time.perf_counter() - begun) * 1e3)
            if reply.status != 200 or len(answer["scores"]) != candidates:
                raise SystemExit(f"the plain stack answered {reply.status}: {answer}")
        connection.close()
        return took

    ask(bodies[:5])
    with ThreadPoolExecutor(at_once) as pool:
        begun = time.perf_counter()
        took = [ms for part in pool.map(ask, [bodies[k::at_once] for k in range(at_once)]) for ms in part]
        return asked / (time.perf_counter() - begun), percentile(np.array(took), 99)
