"""Seconds and peak memory of each stage of the main job, on MovieLens-100K in a new folder.

Every stage is the command that a user types, so start-up counts too. The last request is checked to answer ten items.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ranker.demo import last_user, server_of


def timed(*words: str) -> dict[str, float]:
    """Run a `pairlift` verb in a process of its own; return its seconds and its peak resident MiB."""
    code = (
        "import resource, subprocess, sys; "
        "done = subprocess.run(sys.argv[1:], stdout=sys.stderr); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )
    started = time.monotonic()
    command = [sys.executable, "-c", code, sys.executable, "-m", "ranker.cli", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"seconds": round(time.monotonic() - started, 1), "peak_mib": round(int(done.stdout) / 1024)}


def serve_and_ask(bundle: Path, user: str) -> dict[str, float]:
    """Start the server, ask it once, stop it."""
    started = time.monotonic()
    with server_of(bundle) as address:
        command = [sys.executable, "-m", "ranker.cli", "recommend", "--user", user, "--k", "10", "--json"]
        done = subprocess.run([*command, "--address", address], capture_output=True, text=True, check=True)
        items = json.loads(done.stdout)["items"]
        assert len(items) == 10, done.stdout
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"seconds": round(time.monotonic() - started, 1), "peak_mib": round(peak / 1024)}


def main() -> None:
    """Run the stages and print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, bundle = str(folder / "pairlift.toml"), folder / "bundle"
        rows = {"init": timed("init", name, "--example", "movielens")}
        rows["validate (fetch, import)"] = timed("validate", config)
        rows["train"] = timed("train", config, "--out", str(bundle))
        rows["uplift"] = timed("uplift", config, "--plugin", "two_tower", "--out", name)
        rows["serve, recommend, stop"] = serve_and_ask(bundle, last_user(folder / "work" / "import" / "log.duckdb"))
        rows["train again, resumed"] = timed("train", config, "--out", str(bundle))
    first = [row["seconds"] for stage, row in rows.items() if "again" not in stage]
    rows["all but the resumed"] = {
        "seconds": round(sum(first), 1),
        "peak_mib": max(r["peak_mib"] for r in rows.values()),
    }
    print(f"{'stage':28}{'seconds':>9}{'peak MiB':>10}")
    for stage, row in rows.items():
        print(f"{stage:28}{row['seconds']:9.1f}{row['peak_mib']:10.0f}")
    print(json.dumps({"data": "movielens", "stages": rows}))


if __name__ == "__main__":
    main()
