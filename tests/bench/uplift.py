"""The uplift of the tower beside that of ALS and of noise, on both example data sets; and tower against ALS.

The comparison draws the same users and seeds for both. Work folders are kept below .pairlift/bench, so a second run
resumes. KuaiRand needs PAIRLIFT_DATA; it is left out, with a word, where that folder has none.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from features.errors import PairliftError
from ranker.arms import Arms
from ranker.config import load_config
from ranker.examples import example_names, example_text
from ranker.interval import relative_uplift
from ranker.metrics import right_by_user
from ranker.prepare import plugin_stage, prepare
from ranker.uplift import as_table, uplift_report

ROOT = Path(__file__).parents[2]
PLUGINS = ("two_tower", "als", "noise")
KEPT = (
    "pairs", "users", "effective_users", "without", "with", "relative_uplift", "ci95", "ci95_users_only",
    "minimum_detectable_uplift", "useful", "ties_half", "tie_share", "macro", "seeds", "seed_sd", "trees", "shuffled",
    "ndcg@10", "map", "mrr", "auc_by_user", "random", "popularity", "column_alone",
)  # fmt: skip


def against(config: Any, one: str, other: str) -> dict[str, Any]:
    """Return how much more right the arm with plugin `one` is than the arm with `other`; all fits are resumed."""
    prepared = prepare(config)
    arms = Arms.of(prepared)
    groups, pairs = arms.groups["test"], arms.pairs("test")
    user = groups.requests.user[groups.requests.row_request()].astype(np.int64)
    right = []
    for name in (other, one):
        plugin = plugin_stage(prepared, name, config.uplift.seeds[0])
        columns = arms.plugin_columns(name, plugin)
        names = [f"{name}__{column}" for column in plugin.columns]
        fits = [arms.fit(name, names, columns, seed) for seed in config.uplift.seeds]
        right.append(np.stack([right_by_user(f.scores, pairs, user, prepared.catalog.n_users)[0] for f in fits]))
    return relative_uplift(right[0], right[1], config.uplift.draws).told()


def main() -> None:
    """Print one table for each data set and plugin, then the JSON."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    found: dict[str, Any] = {}
    for data in reversed(example_names()):
        folder = ROOT / ".pairlift" / "bench" / data
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pairlift.toml").write_text(example_text(data))
        config = load_config(folder / "pairlift.toml")
        try:
            prepare(config)
        except PairliftError as error:
            print(f"{data} is left out: {error}", file=sys.stderr)
            continue
        found[data] = {}
        for plugin in PLUGINS:
            report = uplift_report(config, plugin)
            print(as_table(report), end="\n\n", flush=True)
            found[data][plugin] = {key: report[key] for key in KEPT}
        found[data]["two_tower against als"] = told = against(config, "two_tower", "als")
        low, high = (100 * bound for bound in told["ci95"])
        print(f"{data}: two_tower against als {100 * told['relative_uplift']:+.2f} % [{low:+.2f} %, {high:+.2f} %]\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
