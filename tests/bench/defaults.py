"""Which columns the default features have, and what each family of candidates brings and costs.

Each family is added to the old defaults, and the present defaults stand in their place, on the example data sets and
on a generated log of each shape (`tests/shapes.py`). Printed are the gain in PairAccuracy, ties as one half, in the
booster's period alone (`peers/defaults_study.py`: nothing of a test is read), and its mean over the logs, each of
which weighs one; beside it GiB of the state at 10 million events and µs of a request of 500 candidates
(`peers/defaults_cost.py`), over those of the old defaults. Trees are learned faster than by default, for all arms
alike. What the chosen defaults are worth is measured by `shapes`, on the tests of logs generated with other seeds.
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

# With -P, this file's own folder is not on the path.
sys.path[:0] = [str(Path(__file__).parent / "peers"), str(Path(__file__).parents[1])]

from defaults_cost import GRADES, cost_of, make_log  # noqa: E402
from defaults_families import FAMILIES, NEW, OLD, joined  # noqa: E402
from defaults_study import Study  # noqa: E402
from shapes import SHAPES  # noqa: E402

from features.errors import PairliftError  # noqa: E402
from ranker.config import Config, load_config  # noqa: E402
from ranker.examples import example_names, example_text  # noqa: E402
from ranker.metrics.interval import NAN  # noqa: E402

WORK = Path(__file__).parents[2] / ".pairlift" / "bench" / "defaults"
#: of the generated logs that the defaults were chosen by
SEED, EVENTS = 11, 100_000
#: faster than the booster's own, to compare many arms
FAST = {"learning_rate": 0.06, "max_bin": 127}
STOP_AFTER = 60
Found = dict[str, dict[str, Any]]


def logs(names: tuple[str, ...]) -> Iterator[tuple[str, Config]]:
    """Give the settings of the example data sets and of the generated logs, or of those that are named."""
    for name in [*example_names(), *SHAPES]:
        if names and name not in names:
            continue
        if name in SHAPES:
            options = {"candidate": False} if name == "search" else {}
            config = load_config(SHAPES[name](WORK / name, EVENTS, SEED, **options))
        else:
            folder = WORK.parent / name  # where other benchmarks keep the data that they fetch, too
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "defaults.toml").write_text(example_text(name))
            config = load_config(folder / "defaults.toml")
        params = config.booster.params | FAST
        booster = config.booster.model_copy(update={"params": params, "stop_after": STOP_AFTER})
        yield name, config.model_copy(update={"booster": booster})


def gains(config: Config, seeds: range, families: list[str]) -> Found:
    """Return what each family brings on one log; families that have no columns there are left out."""
    study = Study.of(config, {name: FAMILIES[name] for name in families})
    old = study.columns([OLD])
    base = study.right(old, seeds)
    found = {OLD: {"pair_accuracy": float(base[0].mean(axis=0).sum() / base[1].sum()), "columns": len(old)}}
    print(f"{config.name:12} {OLD:24} {found[OLD]['pair_accuracy']:.4f} {len(old):4} columns", flush=True)
    for name in families:
        columns = study.columns([name] if name == NEW else [OLD, name])
        if columns == old:
            continue
        found[name] = one = study.gain(base, columns, seeds)
        low, high = one["ci95"]
        print(
            f"{config.name:12} {name:24} {one['pair_accuracy']:.4f} {one['columns']:4} columns "
            f"{100 * one['gain']:+.2f} % [{100 * low:+.2f}, {100 * high:+.2f}]",
            flush=True,
        )
    return found


def mean_of(found: dict[str, Found], family: str) -> dict[str, Any]:
    """Return the mean gain of a family over the logs where it has columns, each weighing one, and its interval."""
    mine = [of_log[family] for of_log in found.values() if family in of_log]
    mean = float(np.mean([one["gain"] for one in mine])) if mine else NAN
    half = 1.96 * math.sqrt(sum(one["error"] ** 2 for one in mine)) / max(len(mine), 1)
    return {"gain": mean, "ci95": [mean - half, mean + half], "logs": len(mine)}


def costs(events: int, families: list[str]) -> Found:
    """Return what each family costs beside the old defaults, and what these cost themselves."""
    log, catalog = make_log(events)
    made = {name: FAMILIES[name](catalog, GRADES) for name in families}
    base = cost_of(made[OLD], log, catalog)
    found = {OLD: {"gib": base.gib, "us": base.us}}
    for name, family in made.items():
        if name == OLD or not (family.counters or family.columns):
            continue
        cost = cost_of(family if name == NEW else joined(made[OLD], family), log, catalog)
        found[name] = {"gib": cost.gib - base.gib, "us": cost.us - base.us}
    return found


@click.command()
@click.option("--data", "names", multiple=True, help="one log alone: an example or a shape")
@click.option("--family", "chosen", multiple=True, type=click.Choice(list(FAMILIES)), help="one family alone")
@click.option("--seeds", default=3, show_default=True, help="of the boosters")
@click.option("--events", default=1_000_000, show_default=True, help="of the log that the cost is measured on")
def main(names: tuple[str, ...], chosen: tuple[str, ...], seeds: int, events: int) -> None:
    """Print the gain of each family on each log, the means and the costs, and one line of JSON."""
    families = [OLD, *(name for name in FAMILIES if name != OLD and (not chosen or name in chosen))]
    cost = costs(events, families)
    found: dict[str, Found] = {}
    for name, config in logs(names):
        try:
            found[name] = gains(config, range(seeds), families)
        except PairliftError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    print(f"{'mean gain':40}{'[95 %]':>18}{'logs':>6}{'GiB':>8}{'µs':>7}")
    result = {}
    for family in families[1:]:
        mean = mean_of(found, family)
        result[family] = (
            mean | cost.get(family, {}) | {"by_log": {n: of[family] for n, of in found.items() if family in of}}
        )
        low, high = (100 * bound for bound in mean["ci95"])
        gib, us = result[family].get("gib", NAN), result[family].get("us", NAN)
        print(f"{family:30}{100 * mean['gain']:+8.2f} % [{low:+.2f}, {high:+.2f}]{mean['logs']:6}{gib:8.2f}{us:7.0f}")
    old = cost[OLD] | {"by_log": {name: of_log[OLD] for name, of_log in found.items()}}
    print(json.dumps({"events": events, "seeds": seeds, OLD: old, "families": result}))


if __name__ == "__main__":
    main()
