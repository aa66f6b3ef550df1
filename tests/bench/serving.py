"""A server under load, against the bare stages, an ideal queue, and a plain stack of other people's parts.

`make bench WHAT=serving`, in small: make bench WHAT='serving --scale 0.01 --length 0.1'
The bundle (1 million items and users; `peers/serving_world.py`) is made once, below .pairlift/bench: some minutes and 7
GiB. The server is a `pairlift serve` of its own on one core, the generator of load this process on another: an open
loop, whose arrival times are fixed beforehand, so that waiting counts. All CPU time is what the kernel says of the
server's process; the floor is that of a bare server with the bare stages, asked as the server is. Sections (--only) can
be run alone; what others need of them is kept beside the bundle, and --resume goes on behind what is there. A figure
that cannot be had is null, and `why` says why.
"""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

PARTS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PARTS))

from bars import Bars, table  # noqa: E402
from serving_bench import Bench  # noqa: E402
from serving_life import compared, growth, swap, workers  # noqa: E402
from serving_sections import capacities, cost, overload, queue, quiet  # noqa: E402
from serving_traffic import Traffic  # noqa: E402

from neural.two_tower import FORMAT as TOWERS  # noqa: E402
from ranker.bundle import FORMAT  # noqa: E402

WORLD = PARTS / "serving_world.py"
KEPT = Path(".pairlift/bench")
CANDIDATES = 500
#: in the order in which they need each other
SECTIONS = {
    "cost": cost,
    "quiet": quiet,
    "capacity": capacities,
    "queue": queue,
    "overload": overload,
    "compared": compared,
    "swap": swap,
    "workers": workers,
    "growth": growth,
}
#: what a section reads of others
NEEDS = {
    "quiet": {"cost"},
    "capacity": {"cost"},
    "queue": {"cost", "capacity"},
    **{name: {"cost", "capacity"} for name in ("overload", "swap")},
}
#: the figures, and what each should be: at most, or at least
FIGURES: Bars = {
    "rank_cpu_vs_floor": ("<=", 1.4),
    "rank_cpu_vs_floor_cached": ("<=", 1.4),
    "recommend_cpu_vs_floor": ("<=", 1.5),
    "recommend_cpu_vs_floor_cached": ("<=", 1.5),
    "rank_p50_vs_floor": ("<=", 1.3),
    "rank_p99_vs_ideal_queue": ("<=", 1.5),
    "recommend_p99_vs_ideal_queue": ("<=", 1.7),
    "capacity_vs_floor": (">=", 0.6),
    "rank_per_second": ("", None),
    "recommend_per_second": ("", None),
    "overload_goodput_3x": (">=", 0.85),
    "overload_goodput_10x": (">=", 0.9),
    "recovery_seconds": ("<=", 2.0),
    "overload_answered_p99_ms": ("", None),
    "overload_answered_p99_vs_capacity": ("<=", 2.0),
    "throughput_vs_fastapi_feast": (">=", 60.0),
    "swap_failed_requests": ("<=", 0.0),
    "swap_p99_vs_steady": ("<=", 2.0),
    "worker_memory_share": ("<=", 0.2),
    "bytes_growth_100k_requests": ("<=", 5 * 2**20),
}


def world(scale: float) -> Path:
    """Return the folder of the bundle of a scale, which is made where it is missing."""
    said = f"{WORLD.read_text()} {scale} {FORMAT} {TOWERS}"
    folder = (KEPT / f"serving-{hashlib.sha256(said.encode()).hexdigest()[:12]}").resolve()
    if not (folder / "askers.npy").exists():
        click.echo(f"  a world of scale {scale} in {folder}")
        # -P: the folder of the parts must not hide a package of the same name.
        command = [sys.executable, "-P", str(WORLD), str(folder), str(scale)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_WAIT_POLICY": "passive"})
    return folder


def cores() -> tuple[set[int], set[int]]:
    """Return the core of the server and that of the generator; one for both where there is no other."""
    mine = sorted(os.sched_getaffinity(0))
    return {mine[0]}, {mine[-1]}


def measure(bench: Bench, wanted: list[str], kept: Path) -> None:
    """Run sections, and keep what each found."""
    for name in wanted:
        begun = time.monotonic()
        click.echo(f" {name}")
        bench.late = 0
        found = SECTIONS[name](bench)
        bench.found[name] = {**found, "late_runs": bench.late, "seconds": round(time.monotonic() - begun, 1)}
        if bench.late:
            click.echo(f"  ! the generator was late in {bench.late} runs, twice: the machine is busy")
        kept.write_text(json.dumps(bench.found, indent=1))


def finite(value: Any) -> Any:
    """Return a result with null for what is infinite, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@click.command()
@click.option("--scale", default=1.0, show_default=True, help="Size of the world: 1 has 1 million items and users.")
@click.option("--length", default=1.0, show_default=True, help="Of the runs: 0.1 lasts a tenth, for a try.")
@click.option("--only", type=click.Choice(list(SECTIONS)), multiple=True, help="Run these sections alone.")
@click.option("--resume", is_flag=True, help="Keep what sections found that are done.")
def main(scale: float, length: float, only: tuple[str, ...], resume: bool) -> None:
    """Print a table, and one line of JSON."""
    folder = world(scale)
    kept = folder / "sections.json"
    found = json.loads(kept.read_text()) if kept.exists() and (only or resume) else {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))  # the servers are ended too
    server, generator = cores()
    item_ids = np.load(folder / "bundle" / "snapshot" / "catalog" / "item_ids.npy", mmap_mode="r")
    bench = Bench(folder, Traffic(folder, item_ids, CANDIDATES), CANDIDATES, length, server, generator, found)
    os.sched_setaffinity(0, generator)
    asked = set(only or SECTIONS)
    needed = asked | {name for each in asked for name in NEEDS.get(each, ())}
    measure(bench, [name for name in SECTIONS if name in only or (name in needed and name not in found)], kept)
    why = {name: reason for part in found.values() for name, reason in part.get("why", {}).items()}
    measured = {name: value for part in found.values() for name, value in part.items()}
    figures = {name: measured.get(name) for name in FIGURES}
    for name in [name for name, value in figures.items() if value is not None and not math.isfinite(value)]:
        figures[name], why[name] = None, "it is infinite: more than 1 % had no answer"
    click.echo(table(FIGURES, figures, why))
    click.echo(
        json.dumps({"bench": "serving", "scale": scale, "length": length, **figures, "why": why, "parts": found})
    )


if __name__ == "__main__":
    main()
