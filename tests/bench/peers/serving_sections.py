"""The sections of `make bench WHAT=serving`: each measures some of the figures, by servers that it starts and ends."""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from last_line import last_line
from pairlift.v1 import ranking_pb2 as pb
from serving_load import Outcome, drive, percentile, phases, poisson
from serving_process import HERE, Process, bare, pairlift
from serving_queue import capacity, fifo, recovery, refused_ceiling
from serving_traffic import RANK, RECOMMEND, Traffic

#: the answers' limit of a capacity, ms
MOST_MS = 20.0
#: requests/s at which CPU time is taken, and at which p50 is
STEADY, QUIET = 100.0, 20.0
ROUNDS = 3
#: seconds that a caller waits where servers are asked for too much
DEADLINE = 0.1
#: a run in which the generator sent so much too late says nothing, ms
MOST_LAG = 5.0
NAMES = {RANK: "rank", RECOMMEND: "recommend"}
REPLIES: dict[str, Any] = {RANK: pb.RankResponse, RECOMMEND: pb.RecommendResponse}

Result = dict[str, Any]


@dataclass
class Bench:
    """What all sections need, and what those before have found."""

    folder: Path  # of `serving_world.py`
    traffic: Traffic
    candidates: int
    length: float  # of what the runs last by default
    server: set[int]  # its cores
    generator: set[int]
    found: dict[str, Result] = field(default_factory=dict)  # by section
    seed: int = 0

    @property
    def log(self) -> Path:
        """What the servers write to stderr."""
        return self.folder / "server.log"

    def due(self, rate: float, seconds: float) -> np.ndarray:
        """Return arrival times, other ones each time."""
        self.seed += 1
        return poisson(rate, seconds * self.length, self.seed)

    def pairlift(self, *options: str) -> Any:
        """Start a server of the bundle."""
        return pairlift(self.folder / "bundle", self.server, *options, log=self.log)

    def warmed(self, server: Process) -> Process:
        """Ask a new server a little of everything."""
        for method in NAMES:
            drive(server.address, self.traffic.calls(method, self.due(50, 1.0)))
        return server


def say(text: str) -> None:
    """Print a line at once."""
    print(f"  {text}", flush=True)


def kept_up(outcome: Outcome) -> Outcome:
    """Return what was measured; say where the generator did not keep up."""
    if outcome.lag_ms > MOST_LAG:
        say(f"! the generator was late by {outcome.lag_ms:.1f} ms (99th percentile): the machine is busy")
    return outcome


def checked(outcome: Outcome, method: str, candidates: int) -> float:
    """Return the share of the kept answers that are degraded; all have as many items as they should."""
    answers = [REPLIES[method].FromString(body) for body in outcome.bodies]
    short = [len(answer.scores) for answer in answers if method == RANK and len(answer.scores) != candidates]
    if short:
        raise SystemExit(f"answers of {candidates} items were expected, found {short[0]}")
    return float(np.mean([bool(answer.degraded) for answer in answers])) if answers else 0.0


def cost(bench: Bench) -> Result:
    """CPU time of a request against the bare stages; in turns, so that a busy moment hits all alike."""
    runs: dict[str, tuple[Process, str, bool]] = {}
    took: dict[str, list[float]] = {}
    degraded: dict[str, float] = {}
    stages = [floors(bench)]
    with ExitStack() as stack:
        echo = stack.enter_context(bare("echo", bench.server))
        server = bench.warmed(stack.enter_context(bench.pairlift()))
        for method, name in NAMES.items():
            runs |= {f"echo_{name}": (echo, method, False), name: (server, method, False)}
            runs[f"{name}_cached"] = (server, method, True)
        for _ in range(ROUNDS):
            for name, (process, method, cached) in runs.items():
                calls = bench.traffic.calls(method, bench.due(STEADY, 4), cached=cached)
                drive(process.address, bench.traffic.calls(method, bench.due(STEADY, 1), cached=cached))
                begun = process.cpu
                outcome = kept_up(drive(process.address, calls))
                took.setdefault(name, []).append((process.cpu - begun) / len(calls) * 1e6)
                if process is server:
                    degraded[name] = checked(outcome, method, bench.candidates)
    stages.append(floors(bench))
    us = {name: float(np.median(each)) for name, each in took.items()}
    us |= {name: float(np.mean([found["us"][name] for found in stages])) for name in stages[0]["us"]}
    how = {name: stages[0][name] for name in ("probes", "recall")}
    return {"us": us, "degraded": degraded, "retrieval": how, **against_floor(us)}


def floors(bench: Bench) -> Result:
    """Run the bare stages on the server's core."""
    core = ",".join(map(str, sorted(bench.server)))
    script = [sys.executable, "-P", str(HERE / "serving_floors.py"), str(bench.folder), str(bench.candidates)]
    found: Result = json.loads(last_line(["taskset", "-c", core, *script]))
    return found


def floor_us(us: dict[str, float], method: str, cached: bool = False) -> float:
    """Return the sum of the bare stages of a request."""
    stages = ["echo_rank", "gather", "scorer"]
    if method == RECOMMEND:
        stages = ["echo_recommend", "gather", "scorer_wanted", "retrieval"]
    return sum(us[name] for name in (*stages, *(() if cached else ("tower",))))


def against_floor(us: dict[str, float]) -> Result:
    """Return the figures of CPU time."""
    found = {}
    for method, name in NAMES.items():
        found[f"{name}_cpu_vs_floor"] = us[name] / floor_us(us, method)
        found[f"{name}_cpu_vs_floor_cached"] = us[f"{name}_cached"] / floor_us(us, method, cached=True)
    return found


def quiet(bench: Bench) -> Result:
    """p50 at 20 requests/s: the floor is the echo's own p50, and the CPU time of the other stages."""
    us, p50 = bench.found["cost"]["us"], {"echo": [], "rank": []}
    with bare("echo", bench.server) as echo, bench.pairlift() as server:
        bench.warmed(server)
        for _ in range(ROUNDS):
            for name, process in (("echo", echo), ("rank", server)):
                outcome = kept_up(drive(process.address, bench.traffic.calls(RANK, bench.due(QUIET, 6))))
                p50[name].append(percentile(outcome.latency_ms, 50))
    echo_ms, rank_ms = (float(np.median(p50[name])) for name in ("echo", "rank"))
    floor = echo_ms + (floor_us(us, RANK) - us["echo_rank"]) / 1e3
    return {"rank_p50_vs_floor": rank_ms / floor, "rank_p50_ms": rank_ms, "floor_p50_ms": floor, "echo_p50_ms": echo_ms}


def capacities(bench: Bench) -> Result:
    """The highest rates with p99 under 20 ms, on the server's core, and for Rank also on all cores."""
    us, found = bench.found["cost"]["us"], {}
    everywhere = bench.server | bench.generator
    with bench.pairlift() as server:
        bench.warmed(server)
        for method, cached, cores in (
            *((RANK, False, bench.server), (RECOMMEND, False, bench.server)),
            *((RANK, True, bench.server), (RECOMMEND, True, bench.server), (RANK, False, everywhere)),
        ):
            server.move(cores)
            ideal = len(cores) / floor_us(us, method, cached) * 1e6
            best = capacity(prober(bench, server, method, cached), MOST_MS, ideal * 0.7 / len(cores))
            name = NAMES[method] + ("_cached" if cached else "") + ("_all_cores" if cores != bench.server else "")
            say(f"{name}: {best.rate:.0f}/s, p99 {best.p99_ms:.1f} ms ({best.rate / ideal:.2f} of the floor's)")
            found |= {f"{name}_per_second": best.rate, f"{name}_p99_ms": best.p99_ms}
            found[f"{name}_capacity_vs_floor"] = best.rate / ideal
    return {**found, "capacity_vs_floor": found["rank_capacity_vs_floor"]}


def prober(bench: Bench, server: Process, method: str, cached: bool) -> Callable[[float], float]:
    """Return what measures the 99th percentile at a rate, of at least 1,000 requests."""

    def p99_ms(rate: float) -> float:
        seconds = max(4.0, 1000 / rate / bench.length)
        outcome = drive(server.address, bench.traffic.calls(method, bench.due(rate, seconds + 1), cached=cached))
        return percentile(kept_up(outcome).part(bench.length, np.inf).latency_ms, 99)

    return p99_ms


def queue(bench: Bench) -> Result:
    """p99 at half of the capacity, against the same arrivals in an ideal queue."""
    us, rates, found = bench.found["cost"]["us"], bench.found["capacity"], {}
    with bench.pairlift() as server:
        bench.warmed(server)
        for method, name in NAMES.items():
            due = bench.due(rates[f"{name}_per_second"] / 2, 20)
            outcome = kept_up(drive(server.address, bench.traffic.calls(method, due)))
            ideal = percentile(fifo(due, floor_us(us, method) / 1e6, len(bench.server)) * 1e3, 99)
            p99 = percentile(outcome.latency_ms, 99)
            found |= {f"{name}_p99_vs_ideal_queue": p99 / ideal, f"{name}_p99_ms": p99, f"{name}_ideal_p99_ms": ideal}
    return found


def overload(bench: Bench) -> Result:
    """3 and 10 times the capacity of Rank for 30 s, each with what comes before and after it."""
    rate, p99 = bench.found["capacity"]["rank_per_second"], bench.found["capacity"]["rank_p99_ms"]
    refusal = refusal_us(bench, 10 * rate)
    found: Result = {"refusal_us": refusal}
    with bench.pairlift() as server:
        bench.warmed(server)
        for times in (3, 10):
            before, during, after = (seconds * bench.length for seconds in (5, 30, 8))
            bench.seed += 10
            due = phases([(rate / 2, before), (times * rate, during), (rate / 2, after)], bench.seed)
            outcome = kept_up(drive(server.address, bench.traffic.calls(RANK, due, deadline=DEADLINE)))
            part, end = outcome.part(before, before + during), before + during
            answered = part.latency_ms[np.isfinite(part.latency_ms)]
            ceiling = rate if times == 3 else refused_ceiling(times * rate, rate, refusal / 1e6, len(bench.server))
            found |= {
                f"goodput_{times}x": part.good / during / ceiling,
                f"goodput_{times}x_per_second": part.good / during,
                f"answered_p99_ms_{times}x": percentile(answered, 99),
                f"recovery_seconds_{times}x": recovery(due, outcome.latency_ms, end, MOST_MS),
                f"counts_{times}x": part.counts(),
            }
            say(f"{times}x: {found[f'goodput_{times}x']:.2f}, {part.counts()}")
    return found | {
        "overload_goodput_3x": found["goodput_3x"],
        "overload_goodput_10x": found["goodput_10x"],
        "overload_answered_p99_ms": found["answered_p99_ms_3x"],
        "overload_answered_p99_vs_capacity": found["answered_p99_ms_3x"] / p99,
        "recovery_seconds": max(found["recovery_seconds_3x"], found["recovery_seconds_10x"]),
    }


def refusal_us(bench: Bench, rate: float) -> float:
    """Return the CPU time of a bare refusal at such a rate."""
    with bare("refuse", bench.server) as server:
        calls = bench.traffic.calls(RANK, bench.due(rate, 5), deadline=DEADLINE)
        drive(server.address, bench.traffic.calls(RANK, bench.due(rate, 1), deadline=DEADLINE))
        begun = server.cpu
        drive(server.address, calls)
        return (server.cpu - begun) / len(calls) * 1e6


def growth(bench: Bench) -> Result:
    """What 100,000 requests leave in memory: anonymous pages, after 10,000 that fill what is kept."""

    def ask(server: Process, n: int) -> None:
        share = {RANK: n * 9 // 10, RECOMMEND: n // 10}
        for method, count in share.items():
            drive(server.address, bench.traffic.calls(method, np.zeros(count), cached=True, at_once=4))

    n = max(int(100_000 * bench.length), 1000)
    with bench.pairlift() as server:
        server.move(bench.server | bench.generator)
        bench.warmed(server)
        ask(server, n // 10)
        begun = server.memory()["Anonymous"]
        ask(server, n)
        grown = server.memory()["Anonymous"] - begun
    return {"bytes_growth_100k_requests": grown, "requests": n, "bytes_before": begun}

