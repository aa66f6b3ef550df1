"""The sections of `make bench WHAT=serving` that ask for more and more, by servers that they start and end."""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from last_line import last_line
from serving_bench import NAMES, Bench, Result, say
from serving_load import Outcome, drive, percentile, phases
from serving_process import HERE, Process, bare, stages
from serving_queue import capacity, fifo, recovery, refused_ceiling
from serving_traffic import RANK

#: the answers' limit of a capacity, ms
MOST_MS = 20.0
#: requests/s at which CPU time is taken, and at which p50 is
STEADY, QUIET = 100.0, 20.0
ROUNDS = 3
#: seconds that a caller waits where servers are asked for too much
DEADLINE = 0.1
#: seconds before, during and after an overload
BEFORE, DURING, AFTER = 5.0, 30.0, 8.0


def cost(bench: Bench) -> Result:
    """CPU time of a request, and of the bare stages behind a bare server; in turns, so that a busy moment hits all.

    Beside these, for what they say of where the time goes: the echo, and each stage when it is run again and again.
    """
    took: dict[str, list[float]] = {}
    degraded: dict[str, float] = {}
    alone = floors(bench)
    with ExitStack() as stack:
        server = bench.warmed(stack.enter_context(bench.pairlift()))
        others = {
            "echo": stack.enter_context(bare("echo", bench.server)),
            "floor": stack.enter_context(stages(bench.folder, bench.candidates, bench.server)),
            "floor_kept": stack.enter_context(stages(bench.folder, bench.candidates, bench.server, kept=True)),
        }
        for _ in range(ROUNDS):
            for name, (process, method, cached) in runs(server, others).items():
                drive(process.address, bench.traffic.calls(method, bench.due(STEADY, 1), cached=cached))
                calls = bench.traffic.calls(method, bench.due(STEADY, 4), cached=cached)
                begun = process.cpu
                outcome = drive(process.address, calls)
                took.setdefault(name, []).append((process.cpu - begun) / len(calls) * 1e6)
                if process is server:
                    degraded[name] = bench.degraded(outcome, method)
    us = {name: float(np.median(each)) for name, each in took.items()}
    return {"us": us, "degraded": degraded, "alone": alone, **against_floor(us)}


def runs(server: Process, others: dict[str, Process]) -> dict[str, tuple[Process, str, bool]]:
    """Return what CPU time is taken of: a server, a method, and whether of the users who ask all the time."""
    found: dict[str, tuple[Process, str, bool]] = {}
    for method, name in NAMES.items():
        found |= {f"{other}_{name}": (process, method, False) for other, process in others.items()}
        found |= {name: (server, method, False), f"{name}_cached": (server, method, True)}
    return found


def floors(bench: Bench) -> Result:
    """Run the bare stages on the server's core."""
    core = ",".join(map(str, sorted(bench.server)))
    script = [sys.executable, "-P", str(HERE / "serving_floors.py"), str(bench.folder), str(bench.candidates)]
    found: Result = json.loads(last_line(["taskset", "-c", core, *script]))
    return found


def floor_us(us: dict[str, float], method: str, cached: bool = False) -> float:
    """Return the CPU time of the bare stages of a request."""
    return us[f"floor_{'kept_' if cached else ''}{NAMES[method]}"]


def against_floor(us: dict[str, float]) -> Result:
    """Return the figures of CPU time."""
    found = {}
    for method, name in NAMES.items():
        found[f"{name}_cpu_vs_floor"] = us[name] / floor_us(us, method)
        found[f"{name}_cpu_vs_floor_cached"] = us[f"{name}_cached"] / floor_us(us, method, cached=True)
    return found


def quiet(bench: Bench) -> Result:
    """p50 at 20 requests/s, against that of the bare stages behind a bare server."""
    p50: dict[str, list[float]] = {"rank": [], "floor": []}
    with bench.pairlift() as server, stages(bench.folder, bench.candidates, bench.server) as floor:
        bench.warmed(server)
        bench.warmed(floor)
        for _ in range(ROUNDS):
            for name, process in (("floor", floor), ("rank", server)):
                p50[name].append(percentile(bench.ask(process, RANK, bench.due(QUIET, 6)).latency_ms, 50))
    floor_ms, rank_ms = (float(np.median(p50[name])) for name in ("floor", "rank"))
    return {"rank_p50_vs_floor": rank_ms / floor_ms, "rank_p50_ms": rank_ms, "floor_p50_ms": floor_ms}


def capacities(bench: Bench) -> Result:
    """The highest rates with p99 under 20 ms, on the server's core; of Rank also with both on all cores."""
    us = bench.found["cost"]["us"]
    found: Result = {}
    kinds = [(method, cached, bench.server) for cached in (False, True) for method in NAMES]
    with bench.pairlift() as server:
        bench.warmed(server)
        for method, cached, cores in (*kinds, (RANK, False, bench.everywhere)):
            server.move(cores)
            ideal = len(cores) / floor_us(us, method, cached) * 1e6
            best = capacity(prober(bench, server, method, cached), MOST_MS, ideal * 0.7 / len(cores))
            name = NAMES[method] + ("_cached" if cached else "") + ("_all_cores" if cores != bench.server else "")
            say(f"{name}: {best.rate:.0f}/s, p99 {best.p99_ms:.1f} ms ({best.rate / ideal:.2f} of the floor's)")
            found |= {f"{name}_per_second": best.rate, f"{name}_capacity_p99_ms": best.p99_ms}
            found[f"{name}_capacity_vs_floor"] = best.rate / ideal
    return {**found, "capacity_vs_floor": found["rank_capacity_vs_floor"]}


def prober(bench: Bench, server: Process, method: str, cached: bool) -> Callable[[float], float]:
    """Return what measures the 99th percentile at a rate, of at least 1,000 requests, behind a first second."""

    def p99_ms(rate: float) -> float:
        due = bench.due(rate, 1 + max(4.0, 1000 / rate))
        return percentile(bench.ask(server, method, due, cached=cached).part(bench.length, np.inf).latency_ms, 99)

    return p99_ms


def queue(bench: Bench) -> Result:
    """p99 at half of the capacity, against the same arrivals in an ideal queue."""
    us, rates = bench.found["cost"]["us"], bench.found["capacity"]
    found: Result = {}
    with bench.pairlift() as server:
        bench.warmed(server)
        for method, name in NAMES.items():
            due = bench.due(rates[f"{name}_per_second"] / 2, 20)
            p99 = percentile(bench.ask(server, method, due).latency_ms, 99)
            ideal = percentile(fifo(due, floor_us(us, method) / 1e6, len(bench.server)) * 1e3, 99)
            found |= {f"{name}_p99_vs_ideal_queue": p99 / ideal, f"{name}_p99_ms": p99, f"{name}_ideal_p99_ms": ideal}
    return found


def overload(bench: Bench) -> Result:
    """3 and 10 times the capacity of Rank for 30 s, each with what comes before and after it."""
    rate, p99 = (bench.found["capacity"][f"rank_{name}"] for name in ("per_second", "capacity_p99_ms"))
    refusal = refusal_us(bench, 10 * rate)
    found: Result = {"refusal_us": refusal}
    with bench.pairlift() as server:
        bench.warmed(server)
        for times in (3, 10):
            ceiling = rate if times == 3 else refused_ceiling(times * rate, rate, refusal / 1e6, len(bench.server))
            for name, value in overloaded(bench, server, rate, times, ceiling).items():
                found[f"{name}_{times}x"] = value
            say(f"{times}x: {found[f'goodput_{times}x']:.2f} of {ceiling:.0f}/s, {found[f'counts_{times}x']}")
    return found | {
        "overload_goodput_3x": found["goodput_3x"],
        "overload_goodput_10x": found["goodput_10x"],
        "overload_answered_p99_ms": found["answered_p99_ms_3x"],
        "overload_answered_p99_vs_capacity": found["answered_p99_ms_3x"] / p99,
        "recovery_seconds": max(found["recovery_3x"], found["recovery_10x"]),
    }


def overloaded(bench: Bench, server: Process, rate: float, times: int, ceiling: float) -> dict[str, Any]:
    """Return what an overload of so many times the capacity gave. ceiling: the answers a second that are to be had."""
    before, during, after = (seconds * bench.length for seconds in (BEFORE, DURING, AFTER))
    bench.seed += 10
    due = phases([(rate / 2, before), (times * rate, during), (rate / 2, after)], bench.seed)
    outcome: Outcome = bench.ask(server, RANK, due, deadline=DEADLINE)
    part = outcome.part(before, before + during)
    return {
        "goodput": part.good / during / ceiling,
        "per_second": part.good / during,
        "answered_p99_ms": percentile(part.latency_ms[np.isfinite(part.latency_ms)], 99),
        "recovery": recovery(outcome.due, outcome.latency_ms, before + during, MOST_MS),
        "counts": part.counts(),
    }


def refusal_us(bench: Bench, rate: float) -> float:
    """Return the CPU time of a bare refusal at such a rate."""
    with bare("refuse", bench.server) as server:
        bench.ask(server, RANK, bench.due(rate, 1), deadline=DEADLINE)
        calls = bench.traffic.calls(RANK, bench.due(rate, 5), deadline=DEADLINE)
        begun = server.cpu
        drive(server.address, calls)
        return (server.cpu - begun) / len(calls) * 1e6
