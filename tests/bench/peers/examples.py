"""A TOML in a work folder, with what a benchmark adds."""

import re
from pathlib import Path

from ranker.config import Config, load_config
from ranker.examples import example_text

#: kept between runs, so that a second one resumes
WORK = Path(__file__).parents[3] / ".pairlift" / "bench"
#: the towers' table in the TOMLs of data sets: one of them has fewer teachers than the default
TOWERS = re.compile(r"(\[plugins\.two_tower\]\nclass = .*\n)(teachers = .*\n)?")


def with_towers(text: str, options: str) -> str:
    """Return a TOML with these options of the towers in place of its own."""
    text, found = TOWERS.subn(lambda match: match[1] + options, text)
    assert found == 1, "one table of the towers was expected"
    return text


def written(folder: Path, text: str) -> Config:
    """Write a TOML into a work folder, and read it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairlift.toml").write_text(text)
    return load_config(folder / "pairlift.toml")


def example(data: str) -> Config:
    """Return a data set's TOML as it is; all benchmarks of it share the work folder, and so what is trained there."""
    return written(WORK / f"lists-{data}", example_text(data))


def write_config(folder: Path, text: str, fits: int, seeds: int, plugins: str) -> Config:
    """Write a TOML with so many fits and booster seeds, and further tables of plugins, and read it."""
    head, _, own = text.partition("[uplift]\n")
    crossed = f"[uplift]\nfits = {fits}\nseeds = {list(range(seeds))}\n"
    return written(folder, f"{head}{crossed}{own}{plugins}")
