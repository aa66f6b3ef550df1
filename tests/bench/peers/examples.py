"""A TOML in a work folder, with what a benchmark adds."""

from pathlib import Path

from ranker.config import Config, load_config

#: kept between runs, so that a second one resumes
WORK = Path(__file__).parents[3] / ".pairlift" / "bench"


def write_config(folder: Path, text: str, fits: int, seeds: int, plugins: str) -> Config:
    """Write a TOML with so many fits and booster seeds, and further tables of plugins, and read it."""
    folder.mkdir(parents=True, exist_ok=True)
    head, _, own = text.partition("[uplift]\n")
    crossed = f"[uplift]\nfits = {fits}\nseeds = {list(range(seeds))}\n"
    (folder / "pairlift.toml").write_text(f"{head}{crossed}{own}{plugins}")
    return load_config(folder / "pairlift.toml")
