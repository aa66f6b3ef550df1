"""What `pairlift retune` found: as JSON, and as a table with the lines for the TOML."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial, TrialState

from ranker.config import Config
from ranker.metrics.interval import Interval
from ranker.retune.space import Parameter, toml_lines

#: fits of a trial, whose mean it is judged by
SEEDS = 2
#: the attribute of the trial that has the TOML's own parameters
OWN = "own"
#: finished trials that the importance of the parameters needs
LEAST_FOR_IMPORTANCE = 10


class Measure(NamedTuple):
    """What trials are judged by."""

    name: str  # as reports show it
    key: str  # as JSON has it
    of: str  # what it is a mean over


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningResult:
    """What a search found."""

    config: Config  # the TOML
    space: list[Parameter]  # what was searched over
    trials: list[FrozenTrial]  # all, of earlier runs too
    own: FrozenTrial  # of the TOML's own parameters
    best: FrozenTrial  # by the mean of its own fits
    gain: Interval  # of the best over the own
    gain_fits: int  # by which it is measured
    importance: dict[str, float] | None  # each parameter's share; None for too few trials
    measure: Measure  # what trials are judged by
    judged: int  # how many pairs, or requests, of the validation slice they are judged by

    @property
    def better(self) -> bool:
        """Whether the best is above the TOML's own by more than the noise of users and seeds."""
        return self.gain.low > 0


def as_json(found: TuningResult) -> dict[str, Any]:
    """Return what `retune.json` holds: every trial, and what became of it."""
    return {
        "data": found.config.name,
        "slice": "the booster's validation slice",
        "measure": found.measure.name,
        found.measure.of: found.judged,
        "own": found.own.value,
        "best": found.best.value,
        "better": found.better,
        "gain": asdict(found.gain),
        "values": _values(found, found.best),
        "importance": found.importance,
        "trials": [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                found.measure.key: trial.value,
                "by_fit": list(trial.intermediate_values.values()),
                "trees": trial.user_attrs.get("trees"),
                "values": _values(found, trial) if trial.params else None,
                "seconds": trial.duration.total_seconds() if trial.duration else None,
            }
            for trial in found.trials
        ],
    }


def _values(found: TuningResult, trial: FrozenTrial) -> dict[str, Any]:
    own = OWN in trial.user_attrs
    return {p.name: p.own if own else p.rounded(trial.params[p.name]) for p in found.space}


def as_table(found: TuningResult) -> str:
    """Return what was found as text, with the lines for the TOML."""
    states = [trial.state for trial in found.trials]
    own, best = found.own, found.best
    values, mine = _values(found, best), _values(found, own)
    lines = [
        f"{found.config.name}: {states.count(TrialState.COMPLETE)} trials, {states.count(TrialState.PRUNED)} given up "
        f"after one fit; {found.judged:,} {found.measure.of} of the booster's validation slice, {SEEDS} fits each, "
        f"{found.gain_fits} for the gain",
        "",
        f"{'':24}{found.measure.name:>13}   trees",
        f"{'the TOML' + chr(39) + 's own':24}{own.value:13.4f}   {_trees(own)}",
        f"{f'the best (trial {best.number})':24}{best.value:13.4f}   {_trees(best)}",
        "",
        _verdict(found),
        "",
        f"{'parameter':24}{'own':>10}{'best':>10}{'importance':>12}",
    ]
    for p in sorted(found.space, key=lambda p: -(found.importance or {}).get(p.name, 0.0)):
        share = "-" if found.importance is None else f"{100 * found.importance[p.name]:.0f} %"
        lines.append(f"{p.name:24}{p.as_toml(mine[p.name]):>10}{p.as_toml(values[p.name]):>10}{share:>12}")
    if found.importance is None:
        lines.append(f"(importance takes {LEAST_FOR_IMPORTANCE} finished trials)")
    return "\n".join([*lines, "", f"for {found.config.path}:", "", *toml_lines(found.space, values)])


def _trees(trial: FrozenTrial) -> str:
    return ", ".join(map(str, trial.user_attrs["trees"]))


def _verdict(found: TuningResult) -> str:
    if found.best.number == found.own.number:
        return "nothing better than the TOML's own was found"
    gain = found.gain
    ends = f"{100 * gain.uplift:+.2f} %, 95 % [{100 * gain.low:+.2f} %, {100 * gain.high:+.2f} %]"
    if not found.better:
        return f"{ends}: not distinguishable from the TOML's own"
    return f"{ends}: better than the TOML's own (as the best of {len(found.trials)} it is flattered: expect less)"
