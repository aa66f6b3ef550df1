"""Tuned parameters for a training, by `[booster] retune_minutes`: a search of each part whenever its rows are others.

The search is that of `pairlift retune`, and its trials are kept beside those. It begins with the TOML's own parameters,
then with the best of earlier searches: what was good for yesterday's rows is tried first on today's. What is not better
by more than noise is not used. [pairing] is not searched, for plugins learn from these pairs too.

retuned(arms, plugins, memory)      the arms, with the parameters that training is to use
    LikedBench.over, WantedBench.over        what trials are measured on: the very rows that are trained on
    _found                                   the search                            (resumed)
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from features.files import written
from features.plugin import FeaturePlugin
from features.schema import GIB
from ranker.config import Config
from ranker.metrics.interval import finite
from ranker.retune.bench import Bench
from ranker.retune.liked import LikedBench
from ranker.retune.report import OWN
from ranker.retune.search import CONFIRMED, Search
from ranker.retune.space import TABLES, Parameter, with_values
from ranker.retune.wanted import WantedBench
from ranker.training.arms import Arms
from ranker.training.stages import run_stage
from ranker.training.wanted import Rows, rows_of

logger = logging.getLogger(__name__)

FOUND = "found.json"
#: tables of the TOML whose parameters are searched: all but [pairing]
TREES = tuple(table for table in TABLES if table != "pairing")


@dataclass(frozen=True, slots=True)
class Retuned:
    """What a training uses, and what was searched for it."""

    arms: Arms  # with the parameters in their configuration
    found: dict[str, Any]  # by part: whether something is better, the gain, the values that are used
    rows: Rows | None = None  # of the wanted part, where its search made them


def retuned(arms: Arms, plugins: Mapping[str, FeaturePlugin], memory: int = 2 * GIB, *, liked: bool = True) -> Retuned:
    """Return the arms with tuned parameters; as they are where `[booster] retune_minutes` is 0.

    memory: as for `rows_of`. liked: False where the liked part goes on from earlier trees,
    whose parameters stay.
    """
    config, found = arms.prepared.config, dict[str, Any]()
    if not config.booster.retune_minutes:
        return Retuned(arms, found)
    benches: dict[str, Bench] = {}
    rows = rows_of(arms.prepared, plugins, memory) if config.sources.on else None
    if liked:
        benches["liked"] = LikedBench.over(arms, arms.served_columns(dict(plugins)))
    if rows is not None and not rows.empty:
        benches["wanted"] = WantedBench.over(arms.prepared, rows)
    for part, bench in benches.items():
        found[part] = of = _found(bench, part, config)
        logger.info("%s part: %s", part, _said(of))
        config = _with(config, bench.space(), of["values"])
    return Retuned(replace(arms, prepared=replace(arms.prepared, config=config)), found, rows)


def _said(found: Mapping[str, Any]) -> str:
    gain = found["gain"]
    ends = f"gain {100 * gain['uplift']:+.2f} % [{100 * gain['low']:+.2f} %, {100 * gain['high']:+.2f} %]"
    if found["values"]:
        return f"re-tuned, {ends}"
    return f"the TOML's own parameters, for the best of {found['trials']} trials is not better by more than noise"


def _with(config: Config, space: list[Parameter], values: Mapping[str, Any]) -> Config:
    """Return the configuration with values of a part's parameters; with none as it is."""
    if not values:
        return config
    return with_values(config, [p for p in space if p.name in values], dict(values))


def _found(bench: Bench, part: str, config: Config) -> dict[str, Any]:
    """Search, or reuse what was found on the same rows."""
    minutes, folder = config.booster.retune_minutes, config.work / "retune"

    def make(out: Path) -> None:
        search = Search.of(bench, folder, TREES)
        search.begin_with_earlier()
        search.run(minutes, None)
        result = search.result(CONFIRMED)
        values = {}
        if result.better and OWN not in result.best.user_attrs:
            values = {p.name: p.rounded(result.best.params[p.name]) for p in result.space}
        report = {"gain": asdict(result.gain), "trials": len(result.trials), "values": values}
        with written(out / FOUND) as partial:
            partial.write_text(json.dumps(finite(report), indent=1, allow_nan=False))

    stage = run_stage(config.work / "retuned", part, [bench.key, minutes], make)
    return dict(json.loads((stage / FOUND).read_text()))
