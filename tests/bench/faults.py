"""Does a server keep its word on a bad day? Kills and power cuts of what records, and messages that nobody should send.

Run from the repository: python tests/bench/faults.py [--kills 1000] [--cuts 1000] [--messages 1000000] [--processes 2]

kill_lost_events       acknowledged events that are not in the log, or not exported, behind `kill -9` at random moments
power_cut_lost_events  likewise behind power cuts: what was not fsynced is dropped, in part or whole
twice_counted_events   events that are in the log, or exported, more than once behind either
fuzz_crashes           servers that ended while malformed and hostile messages came through their port
fuzz_hangs             calls, and good requests in between, that were not answered
fuzz_without_status    calls that did not end with the server's status
fuzz_internal          calls that ended with INTERNAL or UNKNOWN: what the caller must change is INVALID_ARGUMENT
problems               what else was wrong: a recorder that does not start, a served state that is not that of the
                       events, a snapshot that was acknowledged and is not there

One in twenty of the kills is of `pairlift serve`, through its port; the others are of its recorder alone. What is
finished is kept in .pairlift/bench/faults under a hash of the code, and is not run again: a run that was stopped goes
on.
"""

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# Read once, when the libraries are loaded: each process has one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
if __name__ in ("__main__", "__mp_main__"):
    # This file's own folder would hide the package `features`.
    sys.path[:] = [str(HERE / "peers"), str(HERE.parent), *(path for path in sys.path if Path(path) != HERE)]

import click  # noqa: E402
from faults_cut import cut  # noqa: E402
from faults_events import prepared  # noqa: E402
from faults_fuzz import fuzzed  # noqa: E402
from faults_kill import killed, killed_servers  # noqa: E402
from results_store import Store, Task  # noqa: E402
from tqdm import tqdm  # noqa: E402

from ranker.hashes import hash_file, hash_value  # noqa: E402

#: kills, and cuts, of one log
EACH = 10
#: one in so many kills is of a server
SERVERS = 20
#: messages that one server gets
MESSAGES = 20_000
#: what runs the tasks of each part
PARTS: dict[str, Callable[..., dict[str, Any]]] = {"kill": killed, "serve": killed_servers, "cut": cut, "fuzz": fuzzed}


#: figures of the fuzzing, by their names there
FUZZ = ("messages", "crashes", "hangs", "without_status", "internal")


def tasks_of(kills: int, cuts: int, messages: int, folder: Path) -> list[Task]:
    """Return all that is to be run. folder: of the bundle."""
    servers = kills // SERVERS
    wanted = {
        "serve": (servers, EACH),
        "kill": (kills - servers, EACH),
        "cut": (cuts, EACH),
        "fuzz": (messages, MESSAGES),
    }
    return [
        (part, (first // each, min(each, trials - first), str(folder)))
        for part, (trials, each) in wanted.items()
        for first in range(0, trials, each)
    ]


def run_task(task: Task) -> tuple[Task, dict[str, Any]]:
    """Run one."""
    part, arguments = task
    return task, PARTS[part](*arguments)


def code_key() -> str:
    """Return a hash of all our modules that are loaded: what is measured."""
    ours = ("ranker", "features", "faults_cut", "faults_disk", "faults_events", "faults_fuzz", "faults_kill")
    ours += ("faults_messages", "served", "world")
    files = {name: module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] in ours}
    return hash_value([(name, hash_file(Path(path))) for name, path in sorted(files.items()) if path])[:16]


def run(tasks: list[Task], store: Store, processes: int) -> None:
    """Run what the store lacks."""
    left = [task for task in tasks if task not in store.found]
    with tqdm(total=len(tasks), initial=len(tasks) - len(left), desc="faults", unit="log") as bar:
        for task, result in _results(left, processes):
            store.add(task, result)
            bar.update()


def _results(tasks: list[Task], processes: int) -> Iterator[tuple[Task, dict[str, Any]]]:
    if processes < 2:
        yield from map(run_task, tasks)
        return
    with get_context("spawn").Pool(processes, logging.disable, (logging.WARNING,)) as pool:
        yield from pool.imap_unordered(run_task, tasks)


def summary(found: dict[Task, dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of all results."""

    def total(parts: tuple[str, ...], key: str) -> int:
        return sum(result.get(key, 0) for (part, _), result in found.items() if part in parts)

    return {
        "kill_lost_events": total(("kill", "serve"), "lost"),
        "power_cut_lost_events": total(("cut",), "lost"),
        "twice_counted_events": total(("kill", "serve", "cut"), "twice"),
        "kill_trials": total(("kill", "serve"), "trials"),
        "kill_trials_of_servers": total(("serve",), "trials"),
        "kill_trials_midway": total(("kill", "serve"), "midway"),
        "power_cut_trials": total(("cut",), "trials"),
        **{f"fuzz_{name}": total(("fuzz",), name) for name in FUZZ},
        "fuzz_codes": dict(sum((Counter(r.get("codes", {})) for r in found.values()), Counter[str]()).most_common()),
        "problems": sorted({problem for result in found.values() for problem in result["problems"]}),
    }


def table(figures: dict[str, Any]) -> str:
    """Return the figures as text."""
    lines = [f"{name:28}{value:>10,}" for name, value in figures.items() if isinstance(value, int)]
    lines += [f"  ended with {name:15}{count:>10,}" for name, count in figures["fuzz_codes"].items()]
    return "\n".join([*lines, *(f"problem: {one}" for one in figures["problems"])])


@click.command()
@click.option("--kills", default=1000, show_default=True, help="Kills of what records.")
@click.option("--cuts", default=1000, show_default=True, help="Simulated power cuts.")
@click.option("--messages", default=1_000_000, show_default=True, help="Malformed and hostile messages.")
@click.option("--processes", default=2, show_default=True, help="Each of one thread.")
def main(kills: int, cuts: int, messages: int, processes: int) -> None:
    """Print a table, then the JSON."""
    logging.disable(logging.WARNING)  # of what is to be expected on such a day; errors are shown
    folder = ROOT / ".pairlift" / "bench" / "faults" / code_key()
    prepared(folder)
    store = Store(folder / "results.jsonl")
    tasks = tasks_of(kills, cuts, messages, folder)
    run(tasks, store, processes)
    figures = summary({task: store.found[task] for task in tasks})
    print(table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
