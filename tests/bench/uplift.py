"""The uplift of the towers beside that of other networks, ALS and noise, on both example data sets; and against each.

Each plugin is fitted `--fits` times and each fit meets `--seeds` booster seeds; the comparisons have the same users and
seeds for both. `today` are the towers as they were on 26 November 2026: the bar that new defaults are held to. Work
folders are kept below .pairlift/bench, so a second run resumes. KuaiRand needs PAIRLIFT_DATA; it is left out, with a
word, where that folder has none.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

PARTS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PARTS))

import click  # noqa: E402
from examples import WORK, with_towers, write_config  # noqa: E402

from features.errors import PairliftError  # noqa: E402
from ranker.config import Config  # noqa: E402
from ranker.examples import example_names, example_text  # noqa: E402
from ranker.metrics.interval import relative_uplift  # noqa: E402
from ranker.training.arms import Arms  # noqa: E402
from ranker.training.plugins import plugin_stage  # noqa: E402
from ranker.training.prepared import prepare  # noqa: E402
from ranker.uplift.measured import Judged, Measured  # noqa: E402
from ranker.uplift.report import uplift_report  # noqa: E402
from ranker.uplift.table import as_table  # noqa: E402

PLUGINS = ("two_tower", "today", "sasrec", "als", "noise")
#: of towers: ranking is what is compared, so there is no head that retrieves
RANKING = "retrieval_epochs = 0\n"
#: those that an example has not
ADDED = f"""
[plugins.today]
class = "neural.two_tower:TwoTower"
preset = "today"
{RANKING}
[plugins.sasrec]
class = "neural.sasrec:SASRec"
"""
LEFT_OUT = ("slices", "importance", "data", "plugin", "columns")


def against(config: Config, one: str, other: str) -> dict[str, Any]:
    """Return how much more right the arm with plugin `one` is than the arm with `other`; all fits are resumed."""
    arms = Arms.of(prepare(config))
    judged = Judged.of(arms.groups["test"], arms.pairs("test"))
    right = []
    for name in (other, one):
        fits = []
        for k, seed in enumerate(config.uplift.fit_seeds):
            plugin = plugin_stage(arms.prepared, name, seed)
            columns = arms.plugin_columns(name, plugin)
            fits.append([arms.fit(f"{name}-fit{k}", columns, s) for s in config.uplift.seeds])
        right.append(Measured.of(fits, judged).right)
    return relative_uplift(*right).reported()


@click.command()
@click.option("--fits", default=5, show_default=True, help="of each plugin")
@click.option("--seeds", default=10, show_default=True, help="of the boosters")
@click.option("--data", "only", multiple=True, type=click.Choice(example_names()), help="one data set alone")
def main(fits: int, seeds: int, only: tuple[str, ...]) -> None:
    """Print one table for each data set and plugin, then the JSON."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    found: dict[str, Any] = {}
    for data in only or reversed(example_names()):
        config = write_config(WORK / data, with_towers(example_text(data), RANKING), fits, seeds, ADDED)
        try:
            prepare(config)
        except PairliftError as error:
            print(f"{data} is left out: {error}", file=sys.stderr)
            continue
        found[data] = {}
        for plugin in PLUGINS:
            report = uplift_report(config, plugin)
            print(as_table(report), end="\n\n", flush=True)
            found[data][plugin] = {key: value for key, value in report.items() if key not in LEFT_OUT}
        for other in PLUGINS[1:-1]:
            found[data][f"two_tower against {other}"] = result = against(config, "two_tower", other)
            low, high = (100 * bound for bound in result["ci95"])
            gain = 100 * result["relative_uplift"]
            print(f"{data}: two_tower against {other} {gain:+.2f} % [{low:+.2f} %, {high:+.2f} %]\n", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
