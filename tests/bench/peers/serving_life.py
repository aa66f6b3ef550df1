"""The sections of `make bench WHAT=serving` about what changes while a server runs: bundles, workers, memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from serving_bench import Bench, Result, say
from serving_load import drive, percentile
from serving_peer import AT_ONCE, peer
from serving_process import Process
from serving_traffic import RANK, RECOMMEND

from ranker.cli.main import cli
from ranker.hashes import MANIFEST, hash_value

#: bundles that are deployed, and how often the server goes back and forth behind each: 50 swaps in all
DEPLOYS, ROLLBACKS = 10, 4
REFUSED = "refused"
#: requests of a closed loop
CLOSED = 3000
#: seconds that a caller waits while bundles change, and the longest that this may take
PATIENT, LONGEST = 1.0, 1200.0


def compared(bench: Bench) -> Result:
    """How many requests/s the plain stack answers, and this server in its place: both in a closed loop."""
    found = peer(bench.folder, bench.candidates, bench.server, bench.generator, bench.length)
    if "why" in found:
        return found
    n = max(100, int(CLOSED * bench.length))
    with bench.pairlift() as server:
        bench.warmed(server)
        runs = [_closed(bench, server, n, at_once) for at_once in AT_ONCE]
    rate, p99 = max(runs)
    return {
        "throughput_vs_fastapi_feast": rate / found["per_second"],
        "closed_loop": {"per_second": rate, "p99_ms": p99},
        "fastapi_feast": found,
        "p99_vs_fastapi_feast": p99 / found["p99_ms"],
    }


def _closed(bench: Bench, server: Process, n: int, at_once: int) -> tuple[float, float]:
    """Return requests/s and the 99th percentile in ms of n Ranks, so many under way at a time."""
    outcome = drive(server.address, bench.traffic.calls(RANK, np.zeros(n), at_once=at_once))
    if outcome.counts()["ok"] < n:
        raise SystemExit(f"a closed loop of {at_once} calls was not answered: {outcome.counts()}")
    took = (outcome.done - outcome.sent) * 1e3
    return n / float(outcome.done.max() - outcome.sent.min()), percentile(took, 99)


def swap(bench: Bench) -> Result:
    """50 swaps at half of the capacity: another bundle is deployed, then the two change places."""
    if missing := [name for name in ("deploy", "rollback") if name not in cli.commands]:
        reason = f"`pairlift {missing[0]}` is not there"
        return {"why": dict.fromkeys(("swap_failed_requests", "swap_p99_vs_steady"), reason)}
    other, rate = another(bench.folder / "bundle"), bench.found["capacity"]["rank_per_second"] / 2
    deploys = max(1, round(DEPLOYS * bench.length))
    with bench.pairlift() as server:
        bench.warmed(server)
        steady = bench.ask(server, RANK, bench.due(rate, 20), deadline=PATIENT)
        swaps = begin_swaps(server, [other, bench.folder / "bundle"], deploys)
        due = bench.due(rate, LONGEST / bench.length)
        during = bench.ask(server, RANK, due, deadline=PATIENT, until=lambda: swaps.poll() is not None)
        said, errors = swaps.communicate()
    if swaps.returncode:
        raise SystemExit(f"a swap failed: {errors.splitlines()[-1:]}")
    before, p99 = percentile(steady.latency_ms, 99), percentile(during.latency_ms, 99)
    say(f"{deploys * (1 + ROLLBACKS)} swaps in {during.due[-1]:.0f} s: {during.counts()}")
    return {
        "swap_failed_requests": len(during.due) - during.good,
        "swap_p99_vs_steady": p99 / before,
        "swaps": deploys * (1 + ROLLBACKS),
        "swaps_forced": said.count(REFUSED),
        "steady_p99_ms": before,
        "swap_p99_ms": p99,
        "swap_counts": during.counts(),
        "swap_run_seconds": float(during.due[-1]),
    }


def begin_swaps(server: Process, bundles: list[Path], deploys: int) -> "subprocess.Popen[str]":
    """Start the commands, one after another, with low priority: they share the generator's core.

    A bundle that is refused, as one that looked slow beside the load may be, is told (`REFUSED`) and then forced.
    """
    pairlift = f"{sys.executable} -P -m ranker.cli"
    script = ["set -e"]
    for number in range(deploys):
        deploy = f"{pairlift} deploy {bundles[number % 2]} --to {server.address}"
        script.append(f"{deploy} > /dev/null || {{ echo {REFUSED}; {deploy} --force > /dev/null; }}")
        script += [f"{pairlift} rollback --to {server.address} > /dev/null"] * ROLLBACKS
    return subprocess.Popen(
        ["nice", "-n", "19", "bash", "-c", "\n".join(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def another(bundle: Path) -> Path:
    """Return the same bundle by another version: its files are the same ones."""
    copy = bundle.parent / "again"
    for path in bundle.rglob("*"):
        place = copy / path.relative_to(bundle)
        if path.is_file() and path.name != MANIFEST and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)
    manifest = json.loads((bundle / MANIFEST).read_text()) | {"measured": {"again": 1}}
    del manifest["version"]
    (copy / MANIFEST).write_text(json.dumps(manifest | {"version": hash_value(manifest)[:12]}, indent=1))
    return copy


def workers(bench: Bench) -> Result:
    """What one more worker process takes, over what a server of one process takes: proportional memory."""
    if "--processes" not in {name for option in cli.commands["serve"].params for name in option.opts}:
        return {"why": {"worker_memory_share": "`pairlift serve --processes` is not there"}}
    taken: dict[int, int] = {}
    for processes in (1, 2, 3):
        with bench.pairlift("--processes", str(processes)) as server:
            for _ in range(processes):
                bench.warmed(server)
            taken[processes] = sum(server.memory(pid)["Pss"] for pid in server.pids)
    say(", ".join(f"{n}: {size / 2**20:.0f} MiB" for n, size in taken.items()))
    return {"worker_memory_share": (taken[3] - taken[2]) / taken[1], "pss_bytes": taken}


def growth(bench: Bench) -> Result:
    """What 100,000 requests leave in memory: anonymous pages, after 10,000 that fill what is kept."""

    def ask(server: Process, n: int) -> None:
        for method, count in ((RANK, n * 9 // 10), (RECOMMEND, n // 10)):
            drive(server.address, bench.traffic.calls(method, np.zeros(count), cached=True, at_once=4))

    n = max(int(100_000 * bench.length), 1000)
    with bench.pairlift() as server:
        server.move(bench.everywhere)
        bench.warmed(server)
        ask(server, n // 10)
        begun = server.memory()["Anonymous"]
        ask(server, n)
        grown = server.memory()["Anonymous"] - begun
    return {"bytes_growth_100k_requests": grown, "growth_requests": n, "bytes_before": begun}
