"""Seconds and peak memory of each stage of the main job, on MovieLens-100K in a new folder.

Every stage is the command that a user types, so start-up counts too. The last request is checked to answer ten items.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ranker.demo import last_user, server_of


def timed(*command: str) -> dict[str, float]:
    """Run a command in a process of its own; return its seconds and the peak resident MiB of its largest process."""
    code = (
        "import resource, subprocess, sys; "
        "done = subprocess.run(sys.argv[1:], stdout=sys.stderr); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *command], stdout=subprocess.PIPE, text=True, check=True)
    return {"seconds": round(time.monotonic() - started, 1), "peak_mib": round(int(done.stdout) / 1024)}


def pairlift(*words: str) -> dict[str, float]:
    """Time a verb."""
    return timed(sys.executable, "-m", "ranker.cli", *words)


def serve_and_ask(bundle: Path, user: str) -> None:
    """Start the server, ask it once, stop it."""
    with server_of(bundle) as address:
        command = [sys.executable, "-m", "ranker.cli", "recommend", "--user", user, "--k", "10", "--json"]
        done = subprocess.run([*command, "--address", address], capture_output=True, text=True, check=True)
    items = json.loads(done.stdout)["items"]
    assert len(items) == 10, done.stdout


def main() -> None:
    """Run the stages and print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, bundle = str(folder / "pairlift.toml"), folder / "bundle"
        rows = {"init": pairlift("init", name, "--example", "movielens")}
        rows["validate (fetch, import)"] = pairlift("validate", config)
        rows["train"] = pairlift("train", config, "--out", str(bundle))
        rows["uplift"] = pairlift("uplift", config, "--plugin", "two_tower", "--out", name)
        user = last_user(folder / "work" / "import" / "log.duckdb")
        rows["serve, recommend, stop"] = timed(sys.executable, "-P", __file__, "--serve", str(bundle), user)
        rows["train again, resumed"] = pairlift("train", config, "--out", str(bundle))
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
    if sys.argv[1:2] == ["--serve"]:
        serve_and_ask(Path(sys.argv[2]), sys.argv[3])
    else:
        main()
