"""Which share of the tokens of training batches is padding, on the examples' logs.

The epochs are planned as `neural.train` plans them, with the defaults. Of the phases and data sets the largest counts.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from neural_pretrain import ITEMS, some_lengths
from neural_world import fit_data

from features.errors import PairliftError
from features.plugin import FitData
from neural.batches import Batches, TargetMask
from neural.data import TowerData
from neural.settings import TowerSettings
from ranker.config import load_config
from ranker.examples import example_text
from ranker.training.prepared import prepare

EXAMPLES = ("movielens", "kuairand")
EPOCHS = 3


def padded_share(batches: Batches, mask: TargetMask, budget: int) -> float:
    """Return padded tokens over all tokens of some epochs; the user's token counts."""
    rng, all_tokens, events = np.random.default_rng(0), 0, 0
    length = batches.windows.stop - batches.windows.start
    for _ in range(EPOCHS):
        for chosen in batches.plan(mask, budget, rng):
            all_tokens += len(chosen) * (max(int(length[chosen].max()), 1) + 1)
            events += int((length[chosen] + 1).sum())
    return 1 - events / all_tokens


def shares(data: FitData) -> dict[str, float]:
    """Return the padded share of each phase."""
    settings = TowerSettings()
    inputs = TowerData.build(data, settings)
    masks = {"pretrain": inputs.pretrain, "finetune": inputs.finetune}
    return {name: padded_share(inputs.batches, mask, settings.batch_tokens) for name, mask in masks.items()}


def example(name: str, work: Path) -> FitData | None:
    """Return what a fit sees of an example; None, with a word, where its files are missing."""
    if name == "kuairand" and "PAIRLIFT_DATA" not in os.environ:
        print(f"{name} is left out: it needs PAIRLIFT_DATA", file=sys.stderr)
        return None
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairlift.toml").write_text(example_text(name))
    try:
        return prepare(load_config(folder / "pairlift.toml")).fit_data(0)
    except PairliftError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
        return None


def padding(work: Path) -> dict[str, Any]:
    """Return the figure, and the share of each phase of each log."""
    logs = {"generated": fit_data(some_lengths(1_000), ITEMS)}
    logs |= {name: data for name in EXAMPLES if (data := example(name, work)) is not None}
    found = {name: shares(data) for name, data in logs.items()}
    for name, share in found.items():
        print(f"  {name:10} " + ", ".join(f"{phase} {value:.3f}" for phase, value in share.items()), flush=True)
    return {"batch_padding": max(value for share in found.values() for value in share.values()), "shares": found}
