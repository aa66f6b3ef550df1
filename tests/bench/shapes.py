"""Logs of five shapes (tests/shapes.py): the default features beside the old ones, what a training costs, and more.

Gains are of the test, without plugins, on logs of seeds that no default was chosen by (the study `defaults` has
others): `--worlds` logs of each shape, `--seeds` boosters each. The mean gain is over these five shapes, of which each
weighs one, and its interval about further logs of them. Stages are the commands that a user types, each in a process
of its own, on the first log of each shape; shown order and popularity, which `train` prints, are of that one.
`letor` compares with LightGBM's lambdarank (peers/letor_peer.py): its example is read from `--letor`, a copy of
`examples/lambdarank` of its repository, and left out, with a word, where that is missing. Work folders are kept below
.pairlift/bench, so a second run resumes what it can.

defaults_gain_low       lower end of the mean gain in PairAccuracy, ties as one half, new defaults over old ones, as a share
init_fields_right       share of columns that `pairlift init --from` takes for what they are (peers/init_fields.py)
candidate_features_us   µs that 10 numeric candidate columns add to a Rank of 500 (peers/candidate_cost.py)
"""

import json
import math
import os
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
from demo import pairlift, serve_and_ask, timed  # noqa: E402
from letor_peer import beside_lambdarank, files_of  # noqa: E402
from letor_peer import table as letor_table  # noqa: E402
from old_defaults import gain_over_old  # noqa: E402
from scipy.stats import t as student  # noqa: E402
from shapes import SHAPES  # noqa: E402

from ranker.config import load_config  # noqa: E402

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
    """Return seconds and peak MiB of what a user types, and what `train` measured beside ours."""
    folder = WORK / f"stages-{name}"
    toml, bundle = str(SHAPES[name](folder, size, FIRST_SEED)), folder / "bundle"
    found = {"validate (import)": pairlift("validate", toml), "train": pairlift("train", toml, "--out", str(bundle))}
    log = load_config(Path(toml)).work / "import" / "log.duckdb"
    found["serve, recommend, stop"] = timed(sys.executable, "-P", str(HERE / "demo.py"), "--serve", str(bundle), last_user(log))
    measured = json.loads((bundle / "manifest.json").read_text())["measured"]
    return {"stages": found, "measured": measured}
