"""`pairlift study`, all that vary a plugin, on both example data sets and on a generated log of known truth.

Each study's table, data and chart are kept in results/studies/DATA as they end, and a fit that ended is not run again:
what was ended goes on. The towers are one network each, without teachers, so that more of them fit into a night; the
study `plugins` has them with teachers too. KuaiRand needs PAIRLIFT_DATA; it is left out, with a word, where that folder
has none. The JSON has the arms of every study that was ever run here: the relative uplift, its interval, and the gain
over the first arm.
"""

import json
import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

# Read once, when the libraries are loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
PARTS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PARTS))

import click  # noqa: E402
from examples import WORK, with_towers, write_config  # noqa: E402

import ranker.studies  # noqa: E402
from features.errors import PairliftError  # noqa: E402
from ranker.config import Config  # noqa: E402
from ranker.examples import example_names, example_text  # noqa: E402
from ranker.studies.table import interval  # noqa: E402
from ranker.studies.variants import BESIDE, PLUGINS, STUDIES  # noqa: E402
from ranker.studies.world import make_world  # noqa: E402
from ranker.studies.write import write_study  # noqa: E402
from ranker.training.prepared import prepare  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "studies"
WORLD = "world"
#: those that vary a plugin: `unified` is of surfaces, which not every data set has
NAMES = (*STUDIES, PLUGINS, BESIDE)
#: of the towers that are varied; lists are not measured, so there is no head that retrieves
SINGLE = "teachers = 0\nretrieval_epochs = 0\n"
#: what no TOML has, and what the generated log's has alone
TAUGHT = """
[plugins.taught]
class = "neural.two_tower:TwoTower"
retrieval_epochs = 0
[plugins.today]
class = "neural.two_tower:TwoTower"
preset = "today"
retrieval_epochs = 0
"""
OTHERS = """[plugins.cross_encoder]
class = "neural.cross_encoder:CrossEncoder"
[plugins.sasrec]
class = "neural.sasrec:SASRec"
[plugins.item2vec]
class = "neural.item2vec:Item2Vec"
[plugins.limaml]
class = "neural.limaml:LiMAML"
[plugins.semantic_ids]
class = "neural.semantic_ids:SemanticIds"
"""


def configured(data: str, fits: int, seeds: int, scale: float) -> tuple[Config, Path | None]:
    """Return the TOML of a data set and, of the generated log, its truth."""
    folder = WORK / "studies" / (f"{data}-{scale:g}" if data == WORLD else data)
    truth = folder / "truth.parquet" if data == WORLD else None
    if truth is not None and not truth.exists():
        make_world(folder, scale, 0)
    text = (files(ranker.studies) / "world.toml").read_text() if data == WORLD else example_text(data)
    plugins = TAUGHT + ("" if data == WORLD else OTHERS)
    return write_config(folder, with_towers(text, SINGLE), fits, seeds, plugins), truth


def summary(folder: Path) -> dict[str, Any]:
    """Return what each study of a data set says of its arms and its slope."""
    found = {}
    for path in (folder / f"{name}.json" for name in sorted(NAMES)):
        if not path.exists():
            continue
        report = json.loads(path.read_text())
        kept = ("arm", "relative_uplift", "ci95", "over_first")
        found[path.stem] = {
            "fits": len(report["fit_seeds"]),
            "date": report["date"],
            "slope": report["slope"],
            "arms": [{key: arm[key] for key in kept} for arm in report["arms"]],
        }
    return found


def overview(found: dict[str, Any]) -> str:
    """Return Markdown: a table for each study, a column for each data set. found: by data set, of `summary`."""
    lines = [
        "# What each part of the networks brings",
        "",
        "Relative uplift in PairAccuracy of the final ranker over the counters alone, with its 95 % interval over "
        "users, fits and seeds: of a study's first arm, and behind it the gain of the others over that arm, paired by "
        "user. The folders have each study with its seeds, command, minutes and losses. `make bench WHAT=studies`.",
    ]
    for name in (name for name in NAMES if any(name in studies for studies in found.values())):
        of = {data: studies[name] for data, studies in found.items() if name in studies}
        lines += ["", f"## {name}", "", f"| arm | {' | '.join(of)} |", f"| --- |{' --- |' * len(of)}"]
        arms = dict.fromkeys(arm["arm"] for study in of.values() for arm in study["arms"])
        lines += [f"| {arm} | {' | '.join(_cell(study, arm) for study in of.values())} |" for arm in arms]
        slopes = [interval(study["slope"]) if study["slope"] else "" for study in of.values()]
        lines += [f"| for each factor of 10 | {' | '.join(slopes)} |"] if any(slopes) else []
        fits = ", ".join(f"{study['fits']} of {data}" for data, study in of.items())
        lines += ["", f"Fits of each arm: {fits}."]
    return "\n".join(lines) + "\n"


def _cell(study: dict[str, Any], name: str) -> str:
    """Return an arm's gain over the first, of the first its uplift; "" where the study has no such arm."""
    arms = {arm["arm"]: arm for arm in study["arms"]}
    return interval(arms[name]["over_first"] or arms[name]) if name in arms else ""


@click.command()
@click.option("--data", "only", multiple=True, type=click.Choice([*example_names(), WORLD]), help="One of them alone.")
@click.option("--study", "wanted", multiple=True, type=click.Choice(NAMES), help="One study alone.")
@click.option("--fits", default=3, show_default=True, help="Of each arm.")
@click.option("--seeds", default=4, show_default=True, help="Of the boosters.")
@click.option("--scale", default=1.0, show_default=True, help="Of the generated log, as `pairlift world` has it.")
def main(only: tuple[str, ...], wanted: tuple[str, ...], fits: int, seeds: int, scale: float) -> None:
    """Run the studies, print their tables, then the JSON."""
    for data in only or (*example_names(), WORLD):
        try:
            config, truth = configured(data, fits, seeds, scale)
            prepare(config)
        except PairliftError as error:
            print(f"{data} is left out: {error}", file=sys.stderr)
            continue
        for name in wanted or NAMES:
            typed = f"studies --data {data} --study {name} --fits {fits} --seeds {seeds}"
            typed += f" --scale {scale:g}" if data == WORLD else ""
            write_study(config, name, "two_tower", truth, RESULTS / data, f"make bench WHAT='{typed}'")
            print((RESULTS / data / f"{name}.md").read_text(), flush=True)
    found = {folder.name: summary(folder) for folder in sorted(RESULTS.glob("*")) if folder.is_dir()}
    (RESULTS / "README.md").write_text(overview(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
