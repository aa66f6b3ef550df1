"""Does the uplift report keep its word? Simulated plugins of known effect on generated logs of known truth.

Run from the repository: python tests/bench/trust.py [--reports 1000] [--processes 2] [--only-families | --only-ab]

coverage      share of reports whose `ci95` holds the uplift over new users, fits and seeds of that training log
slice_coverage  likewise of the shrunk intervals of all slices, their truths being those of the slices
false_useful  share of reports that call a column useful that knows nothing: the largest of the three kinds
family_false_useful  share of reports of ten plugins that know nothing, corrected by Holm, that call one useful or say
              that it adds to the rest
ab_coverage   share of simulated experiments whose interval of one planned look holds the effect (`pairlift ab`)
ab_false_positive  share of experiments without an effect of which any of ten looks says that there is one
leaks_found   share of the planted leaks that the report tells; false_leaks: how many honest reports tell one

--reports is for the coverage and for each kind of column; a fifth of it are honest reports, and a fifth families, which
take about 15 minutes on one core and are run alone with --only-families; so are with --only-ab the experiments, in half
a minute, --reports of each kind. What is finished is kept in
.pairlift/bench/trust under a hash of the settings and of the code that it ran, and is not run again: a run that was
stopped goes on. The whole takes about 55 minutes on 2 free cores.
"""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# Read once, when the libraries are loaded: each process has one thread, and a report's own bars stay silent.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
if __name__ in ("__main__", "__mp_main__"):
    # This file's own folder would hide the package `features`.
    sys.path[:] = [str(HERE / "peers"), str(HERE.parent), *(path for path in sys.path if Path(path) != HERE)]

import click  # noqa: E402
import numpy as np  # noqa: E402
import trust_ab as experiments  # noqa: E402
import trust_reports as reports  # noqa: E402
from results_store import Store, Task  # noqa: E402
from trust_plugins import HONEST, USELESS  # noqa: E402

from ranker.hashes import hash_file, hash_value  # noqa: E402

#: training logs of each setting of the coverage, and of each kind of useless column
WORLDS, USELESS_WORLDS = 2, 50
LEAKING_WORLDS = 2
#: reports of the coverage, and of families, from which their shares tell something
ENOUGH, ENOUGH_FAMILIES = 1000, 200
#: the largest shares of reports, and of families, that call useful what knows nothing
MOST_USEFUL, MOST_FAMILIES = 0.035, 0.065
TARGETS = (
    f"coverage and slice_coverage within .93 and .97, false_useful at most {MOST_USEFUL}, family_false_useful at most "
    f"{MOST_FAMILIES}, ab_coverage within .93 and .97, ab_false_positive at most .05, leaks_found 1, false_leaks 0"
)

#: what runs the tasks of each part
PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "truth": reports.truth,
    "covered": reports.covered,
    "useless": reports.useless,
    "family": reports.family,
    "honest": reports.honest,
    "leaking": reports.leaking,
    **experiments.PARTS,
}


def tasks_of(n: int) -> list[Task]:
    """Return all that is to be run for n reports of each kind."""
    places = [(setting, seed) for seed in range(WORLDS) for setting in reports.SETTINGS]
    worlds = range(-(-n // 5 // len(HONEST)))
    tasks: list[Task] = [("leaking", (seed,)) for seed in range(LEAKING_WORLDS)]
    tasks += [("honest", (seed,)) for seed in worlds]
    tasks += [("truth", place) for place in places[:n]]
    tasks += [("covered", (*places[k % len(places)], k)) for k in range(n)]
    tasks += [("useless", (kind, k % USELESS_WORLDS, k)) for k in range(n) for kind in USELESS]
    return tasks + families_of(n) + experiments.tasks_of(n)


def families_of(n: int) -> list[Task]:
    """Return the reports of several plugins at once."""
    return [("family", (k % USELESS_WORLDS, k)) for k in range(-(-n // 5))]


def run_task(task: Task) -> tuple[Task, dict[str, Any]]:
    """Run one."""
    part, arguments = task
    return task, PARTS[part](*arguments)


def code_key() -> str:
    """Return a hash of the settings and of all our modules that are loaded: what the reports run."""
    ours = ("ranker", "features", "trust_world", "trust_plugins", "trust_reports", "trust_ab", "leaky", "world")
    files = {name: module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] in ours}
    return hash_value([(name, hash_file(Path(path))) for name, path in sorted(files.items()) if path])


def run(tasks: list[Task], store: Store, processes: int) -> None:
    """Run what the store lacks, and say how far it is."""
    left = [task for task in tasks if task not in store.found]
    for k, (task, result) in enumerate(_results(left, processes), 1):
        store.add(task, result)
        if k % 50 == 0 or k == len(left):
            print(f"{len(tasks) - len(left) + k} of {len(tasks)}", file=sys.stderr, flush=True)


def _results(tasks: list[Task], processes: int) -> Iterator[tuple[Task, dict[str, Any]]]:
    if processes < 2:
        yield from map(run_task, tasks)
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(run_task, tasks)


def summary(found: dict[Task, dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of all results."""
    of: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = defaultdict(list)
    for (part, arguments), result in found.items():
        of[part].append((arguments, result))
    truths = {arguments: result["uplift"] for arguments, result in of["truth"]}
    hits = defaultdict(list)
    for (setting, seed, _), result in of["covered"]:
        low, high = result["ci95"]
        hits[setting].append(bool(low <= truths[setting, seed] <= high))
    slices = _slice_hits(of["covered"], {arguments: result["slices"] for arguments, result in of["truth"]})
    called = defaultdict(list)
    for (kind, _, _), result in of["useless"]:
        called[kind].append(result["useful"])
    by_setting = {setting: _share(hits[setting]) for setting in hits}
    useless = {kind: _share(called[kind]) for kind in called}
    honest = [leaks for _, result in of["honest"] for leaks in result.values()]
    planted = [leak for _, result in of["leaking"] for leak in result.items()]
    families = family_figures(found)
    return {
        "coverage": _share(hit for setting in hits.values() for hit in setting),
        "slice_coverage": _share(hit for hits in slices["shrunk"].values() for hit in hits),
        "false_useful": max(useless.values()),
        "family_false_useful": families["family_false_useful"],
        "leaks_found": _share(figures["leaks"] > 0 for _, figures in planted),
        "false_leaks": sum(figures["leaks"] > 0 for figures in honest),
        "coverage_by_setting": by_setting,
        "smallest_coverage": min(by_setting.values()),
        "largest_coverage": max(by_setting.values()),
        "slice_coverage_by_kind": {kind: _share(hits) for kind, hits in slices["shrunk"].items()},
        "slice_coverage_unshrunk": _share(hit for hits in slices["raw"].values() for hit in hits),
        "false_useful_by_kind": useless,
        "family_by_question": families["by_question"],
        "reports": {
            "coverage": sum(map(len, hits.values())),
            "slices": sum(map(len, slices["shrunk"].values())),
            "useless": {kind: len(called[kind]) for kind in called},
            "families": families["reports"],
            "honest": len(honest),
            "leaks": len(planted),
        },
        "leaks": sorted({name for name, _ in planted}),
        "unsteady_largest_ratio": max((figures["ratio"] or 0.0 for figures in honest), default=0.0),
        **experiments.summary(found),
        "truth_largest_error": max(result["error"] for _, result in of["truth"]),
    }


def family_figures(found: dict[Task, dict[str, Any]]) -> dict[str, Any]:
    """Return the shares of families that have a false yes: of any of both questions, of each, and uncorrected."""
    of = [result for (part, _), result in found.items() if part == "family"]
    questions = {"useful": "alone", "more": "adds", "uncorrected": "alone, uncorrected"}
    return {
        "family_false_useful": _share(result["useful"] + result["more"] > 0 for result in of),
        "by_question": {name: _share(result[key] > 0 for result in of) for key, name in questions.items()},
        "reports": len(of),
    }


def family_table(figures: dict[str, Any]) -> str:
    """Return the figures of families as text."""
    lines = [f"{'one of ten called useful, and none knows':44}{figures['family_false_useful']:8.3f}"]
    lines += [f"  {name:42}{share:8.3f}" for name, share in figures["by_question"].items()]
    return "\n".join(lines)


def _slice_hits(covered: list[Any], truths: dict[Any, Any]) -> dict[str, dict[str, list[bool]]]:
    """Return, shrunk and raw and by kind, whether each slice's interval holds the slice's truth."""
    hits: dict[str, dict[str, list[bool]]] = {"shrunk": defaultdict(list), "raw": defaultdict(list)}
    for (setting, seed, _), result in covered:
        for kind, values in result["slices"].items():
            for name, of in values.items():
                true = truths[setting, seed].get(kind, {}).get(name)
                if true is None or None in of["raw"]:
                    continue  # one user, or a slice so rare that no draw has it
                for which, found in hits.items():
                    low, high = of[which]
                    found[kind].append(bool(low <= true <= high))
    return hits


def _share(of: Iterable[bool]) -> float:
    return round(float(np.mean(list(of))), 4)


def table(figures: dict[str, Any]) -> str:
    """Return the figures as text."""
    lines = [f"{'coverage of ci95':44}{figures['coverage']:8.3f}"]
    lines += [f"  {name:42}{share:8.3f}" for name, share in figures["coverage_by_setting"].items()]
    lines += [f"{'coverage of slices, shrunk':44}{figures['slice_coverage']:8.3f}"]
    lines += [f"  {name:42}{share:8.3f}" for name, share in figures["slice_coverage_by_kind"].items()]
    lines += [f"  {'unshrunk':42}{figures['slice_coverage_unshrunk']:8.3f}"]
    lines += [f"{'called useful, and knows nothing (largest)':44}{figures['false_useful']:8.3f}"]
    lines += [f"  {name:42}{share:8.3f}" for name, share in figures["false_useful_by_kind"].items()]
    of_families = {"family_false_useful": figures["family_false_useful"], "by_question": figures["family_by_question"]}
    lines += [family_table(of_families)]
    lines += experiments.lines(figures)
    lines += [f"{'planted leaks found':44}{figures['leaks_found']:8.3f}"]
    lines += [f"{'leaks reported of honest plugins':44}{figures['false_leaks']:8d}   of {figures['reports']['honest']}"]
    good = (
        all(0.93 <= figures[name] <= 0.97 for name in ("coverage", "slice_coverage"))
        and figures["false_useful"] <= MOST_USEFUL
        and figures["family_false_useful"] <= MOST_FAMILIES
    )
    good = good and experiments.kept(figures) and figures["leaks_found"] == 1 and figures["false_leaks"] == 0
    enough = figures["reports"]["coverage"] >= ENOUGH
    verdict = ("kept" if good else "NOT KEPT") if enough else f"a try, for fewer than {ENOUGH:,} reports tell little"
    return "\n".join([*lines, f"{verdict}: {TARGETS}"])


@click.command()
@click.option("--reports", "n", default=1000, show_default=True, help="Reports of the coverage and of each column.")
@click.option("--processes", default=2, show_default=True, help="Each of one thread.")
@click.option("--only-families", is_flag=True, help="Only reports of ten plugins at once.")
@click.option("--only-ab", is_flag=True, help="Only experiments of arms.")
def main(n: int, processes: int, only_families: bool, only_ab: bool) -> None:
    """Print a table, then the JSON."""
    store = Store(ROOT / ".pairlift" / "bench" / "trust" / f"{code_key()[:16]}.jsonl")
    if only_ab:
        tasks = experiments.tasks_of(n)
        run(tasks, store, processes)
        figures = experiments.summary({task: store.found[task] for task in tasks})
        print("\n".join(experiments.lines(figures)))
        kept = "kept" if experiments.kept(figures) else "NOT KEPT"
        print(f"{kept}: of {figures['ab_experiments']:,} experiments with an effect, and as many without")
        print(json.dumps(figures))
        return
    if only_families:
        tasks = families_of(n)
        run(tasks, store, processes)
        only = family_figures({task: store.found[task] for task in tasks})
        good = only["family_false_useful"] <= MOST_FAMILIES
        enough = only["reports"] >= ENOUGH_FAMILIES
        print(family_table(only))
        print(f"{('kept' if good else 'NOT KEPT') if enough else 'a try'}: at most {MOST_FAMILIES}")
        print(json.dumps(only))
        return
    tasks = tasks_of(n)
    run(tasks, store, processes)
    figures = summary({task: store.found[task] for task in tasks})
    print(table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
