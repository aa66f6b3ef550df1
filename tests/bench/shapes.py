"""Logs of five shapes (tests/shapes.py): the default features beside the old ones, what a training costs, and more.

Gains are of the test, without plugins, on logs of seeds that no default was chosen by (the study `defaults` has
others): `--worlds` logs of each shape, `--seeds` boosters each. The mean gain is over these five shapes, of which each
weighs one, and its interval about further logs of them. Stages are the commands that a user types, each in a process
of its own, on the first log of each shape; shown order and popularity, which `train` prints, are of that one.
`letor` compares with LightGBM's lambdarank (peers/letor_peer.py): its example is read from `--letor`, a copy of
`examples/lambdarank` of its repository, and left out, with a word, where that is missing. Work folders are kept below
.pairlift/bench, so a second run resumes what it can.

defaults_gain_low       lower end of the mean gain in PairAccuracy, ties as one half: new defaults over old ones
init_fields_right       share of columns that `pairlift init --from` takes for what they are (peers/init_fields.py)
candidate_features_us   µs that 10 numeric candidate columns add to a Rank of 500 (peers/candidate_cost.py)
"""

import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

# OpenMP reads it once, when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
HERE = Path(__file__).parent
# With -P, this file's own folder is not on the path: in front, its `features` would hide the package.
sys.path[:0] = [str(HERE / "peers"), str(HERE.parent)]
sys.path.append(str(HERE))

import click  # noqa: E402
import numpy as np  # noqa: E402
from candidate_cost import candidate_cost  # noqa: E402
from demo import pairlift, timed  # noqa: E402
from init_fields import init_fields  # noqa: E402
from init_fields import table as fields_table  # noqa: E402
from init_logs import StrangeLog, held_back_logs, made_logs, public_logs, schema_logs, shaped_logs  # noqa: E402
from letor_peer import beside_lambdarank, files_of  # noqa: E402
from letor_peer import table as letor_table  # noqa: E402
from old_defaults import gain_over_old  # noqa: E402
from scipy.stats import t as student  # noqa: E402
from shapes import SHAPES  # noqa: E402

from ranker.config import load_config  # noqa: E402
from ranker.demo import last_user  # noqa: E402
from ranker.metrics.interval import finite  # noqa: E402

ROOT = HERE.parents[1]
WORK = ROOT / ".pairlift" / "bench" / "shapes"
#: of the first log of each shape; the defaults were chosen on others
FIRST_SEED = 101


def gains(size: int, worlds: int, seeds: int) -> dict[str, list[dict[str, Any]]]:
    """Return `gain_over_old` of each log of each shape."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, write in SHAPES.items():
        found[name] = []
        for seed in range(FIRST_SEED, FIRST_SEED + worlds):
            one = gain_over_old(load_config(write(WORK / f"{name}-{seed}", size, seed)), list(range(seeds)))
            low, high = (100 * bound for bound in one["ci95"])
            print(
                f"{name:10} seed {seed}: old {one['without']:.4f}, new {one['with']:.4f}, "
                f"{100 * one['relative_uplift']:+.2f} % [{low:+.2f}, {high:+.2f}]",
                flush=True,
            )
            found[name].append(one)
    return found


def mean_gain(by_shape: dict[str, list[float]]) -> tuple[float, float, float]:
    """Return the mean of the shapes' means, and the ends of its interval of 95 % about further logs of each shape.

    Student's t, with the variance between logs of one shape pooled: the shapes are these, and no sample of others.
    """
    means = [float(np.mean(of)) for of in by_shape.values()]
    free = sum(len(of) - 1 for of in by_shape.values())
    pooled = sum(float(np.var(of)) * len(of) for of in by_shape.values()) / free
    error = math.sqrt(sum(pooled / len(of) for of in by_shape.values())) / len(by_shape)
    half = float(student.ppf(0.975, free)) * error
    mean = float(np.mean(means))
    return mean, mean - half, mean + half


def stages(name: str, size: int) -> dict[str, Any]:
    """Return seconds and peak GiB of what a user types, in a new folder, and what `train` measured on the test."""
    folder = WORK / f"stages-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    toml, bundle = str(SHAPES[name](folder, size, FIRST_SEED)), str(folder / "bundle")
    took = {"validate (import)": pairlift("validate", toml), "train": pairlift("train", toml, "--out", bundle)}
    user = last_user(folder / "work" / "import" / "log.duckdb")
    took["serve, recommend, stop"] = timed(sys.executable, "-P", str(HERE / "demo.py"), "--serve", bundle, user)
    measured = json.loads((folder / "bundle" / "manifest.json").read_text())["measured"]
    shown = measured.get("shown_order")  # of the pairs of which both places are known
    return {
        "stages": {
            s: {"seconds": of["seconds"], "peak_gib": round(of["peak_mib"] / 1024, 3)} for s, of in took.items()
        },
        "pairs_kind": measured["pairs_kind"],
        "pair_accuracy": {
            "ours": measured["pair_accuracy"],
            "popularity": measured["popularity"],
            "shown_order": shown and shown["pair_accuracy"]["shown_order"],
            "ours_where_places_are_known": shown and shown["pair_accuracy"]["ours"],
        },
        "debiased": shown and shown["debiased"],
        "lists": measured["lists"],
    }


def staged(size: int) -> dict[str, Any]:
    """Return `stages` of each shape, and print them with the simple orders that `train` measured."""
    found = {}
    for name in SHAPES:
        found[name] = one = stages(name, size)
        took = ", ".join(f"{s} {r['seconds']:.0f} s {r['peak_gib']:.2f} GiB" for s, r in one["stages"].items())
        simple = ", ".join(f"{k} {v:.4f}" for k, v in one["pair_accuracy"].items() if v is not None)
        print(f"{name:10} {size:,} events: {took}; PairAccuracy: {simple}", flush=True)
    return found


def letor(example: Path, seeds: int) -> dict[str, Any]:
    """Return our ranker beside lambdarank on each LETOR set."""
    if not example.is_dir():
        print(f"LightGBM's example is left out: {example} is no folder", file=sys.stderr)
    found = {}
    for name, files in files_of(WORK / "letor", example).items():
        found[name] = beside_lambdarank(files, WORK / "letor" / name, seeds)
        print(letor_table(name, found[name]), flush=True)
    return found


def init_logs(folder: Path) -> list[StrangeLog]:
    """Return all logs whose columns `init --from` guesses."""
    folder.mkdir(parents=True, exist_ok=True)
    data = Path(os.environ.get("PAIRLIFT_DATA", ROOT.parent / "shared" / "data"))
    return [*public_logs(folder, data), *made_logs(folder), *schema_logs(folder), *shaped_logs(folder)]


@click.command()
@click.option("--size", default=80_000, show_default=True, help="events of a log whose gains are measured")
@click.option("--worlds", default=4, show_default=True, help="logs of each shape")
@click.option("--seeds", default=2, show_default=True, help="of the boosters")
@click.option(
    "--staged", "staged_size", default=50_000, show_default=True, help="events of a log whose stages are timed"
)
@click.option(
    "--letor", "example", type=click.Path(path_type=Path), default=WORK / "lambdarank", help="LightGBM's example"
)
def main(size: int, worlds: int, seeds: int, staged_size: int, example: Path) -> None:
    """Print each part as it comes, then the JSON."""
    WORK.mkdir(parents=True, exist_ok=True)
    cost = candidate_cost()
    print(f"10 candidate columns add {cost['candidate_features_us']:.0f} µs to a Rank of 500", flush=True)
    guessed = init_fields(init_logs(WORK / "init"))
    print(fields_table(guessed), flush=True)
    held_back = init_fields(held_back_logs(WORK / "init"))
    print(f"{held_back['init_fields_right']:.3f} of the columns of logs that no rule has seen", flush=True)
    gained = gains(size, worlds, seeds)
    mean, low, high = mean_gain({name: [one["relative_uplift"] for one in of] for name, of in gained.items()})
    print(f"mean gain of the default features: {100 * mean:+.2f} % [{100 * low:+.2f}, {100 * high:+.2f}]", flush=True)
    result = {
        "defaults_gain_low": low,
        "init_fields_right": guessed["init_fields_right"],
        "candidate_features_us": cost["candidate_features_us"],
        "defaults": {"gain": mean, "ci95": [low, high], "size": size, "by_shape": gained},
        "shapes": staged(staged_size),
        "letor": letor(example, seeds),
        "init": guessed,
        "init_held_back": held_back,
        "candidates": cost,
    }
    print(json.dumps(finite(result)))


if __name__ == "__main__":
    main()
