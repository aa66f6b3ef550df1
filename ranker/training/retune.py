"""Search for better parameters of the booster and its pairs, by Optuna's TPE (Akiba et al., KDD 2019).

The measure is PairAccuracy on the booster's validation slice, which also stops each fit; the test is never read.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from tqdm import tqdm

from features.errors import PairliftError
from features.files import written
from features.schema import F64
from ranker.config import Config
from ranker.hashes import hash_value
from ranker.metrics.interval import Interval, finite, relative_uplift
from ranker.metrics.lists import right_by_user
from ranker.training.arms import Arms
from ranker.training.booster import Slice, fit_booster
from ranker.training.prepare import Prepared, plugin_stage, prepare
from ranker.training.space import Knob, make_space, told, toml_lines, with_values
from ranker.training.stages import code_hash

logger = logging.getLogger(__name__)

#: fits of a trial, whose mean it is judged by
SEEDS = 2
#: fits by which the best is compared with the TOML's own in the end: two seeds say nothing of the seeds' luck
CONFIRMED = 5
#: after so many trials, one whose first fit is below the median of the first fits is given up
STARTUP = 8
#: the attribute of the trial that has the TOML's own parameters
OWN = "own"
#: finished trials that the importance of the parameters needs
LEAST_FOR_IMPORTANCE = 10


@dataclass(frozen=True, slots=True)
class Bench:
    """What every trial is measured on. user: int64[n] of the validation rows, in [0, n_users)."""

    arms: Arms
    names: list[str]
    train: Slice
    held: Slice
    user: Any
    n_users: int
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, prepared: Prepared) -> "Bench":
        """Make the rows of the served plugins' ranker."""
        first = prepared.config.uplift.seeds[0]
        plugins = {name: plugin_stage(prepared, name, first) for name in prepared.config.ranker.plugins}
        arms = Arms.of(prepared)
        names, columns = arms.served_columns(plugins)
        train, held = (arms.slice(part, columns, first) for part in ("train", "validation"))
        requests = arms.groups["validation"].requests
        users, user = np.unique(requests.user[requests.row_request()], return_inverse=True)
        return cls(arms, names, train, held, user, len(users), tuple(range(first, first + SEEDS)))

    @property
    def key(self) -> str:
        """A hash of rows, pairs, the TOML's own parameters and the code: another one is another study."""
        prepared = self.arms.prepared
        rows = [sha256(s.matrix.tobytes()).hexdigest() for s in (self.train, self.held)]
        return hash_value([prepared.key, rows, prepared.config.booster.model_dump(), self.seeds, code_hash("ranker")])

    def space(self) -> list[Knob]:
        """Return the knobs."""
        prepared, requests = self.arms.prepared, self.arms.groups["train"].requests
        size, span = int(np.diff(requests.offsets).max()), int(np.ptp(requests.as_of))
        rows, categorical = len(self.train.matrix), bool(prepared.spec.categorical)
        return make_space(prepared.config, rows, categorical, size * (size - 1) // 2, span)

    def fit(self, config: Config, seed: int) -> tuple[F64, int]:
        """Fit; return float64[n_users] weight of the right validation pairs (a tie is half), and the trees."""
        prepared = replace(self.arms.prepared, config=config)
        arms = replace(self.arms, prepared=prepared)
        train = replace(self.train, pairs=arms.pairs("train", seed))
        columns = [*prepared.spec.columns, *self.names]
        booster = fit_booster(columns, list(prepared.spec.categorical), train, self.held, config.booster, seed)
        score = np.asarray(booster.predict(self.held.matrix, raw_score=True))
        right, tied, _ = right_by_user(score, self.held.pairs, self.user, self.n_users)
        return right + tied / 2, int(booster.num_trees())


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found. importance: each parameter's share, None for too few trials."""

    config: Config
    knobs: list[Knob]
    trials: list[FrozenTrial]
    own: FrozenTrial
    best: FrozenTrial
    gain: Interval
    gain_fits: int
    importance: dict[str, float] | None
    pairs: int

    @property
    def better(self) -> bool:
        """Whether the best is above the TOML's own by more than the noise of users and seeds."""
        return self.gain.low > 0


def retune(config: Config, minutes: float, trials: int | None) -> Found:
    """Search for so many minutes, or trials; go on with the trials of an earlier search on the same rows.

    Ctrl-C ends it; what is finished counts. All trials are written to `retune.json` of the work folder.
    """
    bench = Bench.of(prepare(config))
    knobs, key = bench.space(), bench.key
    folder = config.work / "retune" / key[:16]
    folder.mkdir(parents=True, exist_ok=True)
    study = _study(folder, key)
    if _own(study.get_trials()) is None and not study.get_trials(states=(TrialState.WAITING,)):
        study.enqueue_trial({knob.name: knob.own for knob in knobs}, user_attrs={OWN: True})
    fits = CONFIRMED
    try:
        _search(study, bench, knobs, folder, minutes, trials)
    except KeyboardInterrupt:
        logger.warning("stopped: the trials that are finished are kept, and compared by their own fits alone")
        fits = SEEDS
    found = _found(study, bench, knobs, folder, fits)
    with written(config.work / "retune.json") as partial:
        partial.write_text(json.dumps(finite(as_json(found)), indent=1, allow_nan=False))
    return found


def _study(folder: Path, key: str) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.create_study(storage=storage, study_name=key, direction="maximize", load_if_exists=True)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # of a run that was killed
        study.tell(trial.number, state=TrialState.FAIL)
    # The seed differs in a run that goes on, or its random trials would be those of the first.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials), n_startup_trials=STARTUP, multivariate=False)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP)
    return study


def _search(
    study: optuna.Study, bench: Bench, knobs: list[Knob], folder: Path, minutes: float, trials: int | None
) -> None:
    started, done = time.monotonic(), 0
    whole = round(60 * minutes)
    with tqdm(total=whole, desc="retuning", unit="s") as bar:

        def tell() -> None:
            bar.n = min(round(time.monotonic() - started), whole)
            kept = [t.value for t in study.get_trials(deepcopy=False) if t.value is not None]
            bar.set_postfix_str(f"{len(study.trials)} trials" + (f", best {max(kept):.4f}" if kept else ""))

        while (trials is None or done < trials) and time.monotonic() - started < 60 * minutes:
            _run(study, study.ask({k.name: k.distribution for k in knobs}), bench, knobs, folder, tell)
            done += 1


def _run(
    study: optuna.Study, trial: Trial, bench: Bench, knobs: list[Knob], folder: Path, tell: Callable[[], None]
) -> None:
    """Run one trial: a fit for each seed; given up after the first where that is among the worse half."""
    own = OWN in trial.user_attrs
    config = _config_of(bench, knobs, trial)
    total, rights, trees = float(bench.held.pairs.weight.sum(dtype=np.float64)), [], []
    try:
        for step, seed in enumerate(bench.seeds):
            right, n = bench.fit(config, seed)
            rights.append(right)
            trees.append(n)
            trial.report(float(right.sum()) / total, step)
            tell()
            if not own and step + 1 < len(bench.seeds) and trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                return
    except (PairliftError, KeyboardInterrupt) as error:
        study.tell(trial, state=TrialState.FAIL)
        if own or isinstance(error, KeyboardInterrupt):
            raise
        logger.warning("trial %d: %s", trial.number, error)
        return
    trial.set_user_attr("trees", trees)
    np.save(folder / f"right{trial.number}.npy", np.stack(rights))
    study.tell(trial, float(np.sum(rights)) / total / len(rights))
    kept = [t.number for t in (_own(study.get_trials()), study.best_trial) if t is not None]
    for path in folder.glob("right*.npy"):  # of no other trial are they asked for again
        if path.name not in [f"right{number}.npy" for number in kept]:
            path.unlink()


def _config_of(bench: Bench, knobs: list[Knob], trial: Trial | FrozenTrial) -> Config:
    config = bench.arms.prepared.config
    if OWN in trial.user_attrs:
        return config
    return with_values(config, knobs, {k.name: k.rounded(trial.params[k.name]) for k in knobs})


def _confirmed(bench: Bench, knobs: list[Knob], folder: Path, trial: FrozenTrial, fits: int) -> F64:
    """Return float64[1, fits, users] weight of the right pairs: of the trial's own fits, and of further seeds'."""
    path = folder / f"right{trial.number}.npy"
    rights, first = list(np.load(path)), bench.seeds[0]
    for seed in range(first + len(rights), first + fits):
        rights.append(bench.fit(_config_of(bench, knobs, trial), seed)[0])
        np.save(path, np.stack(rights))
    return np.stack(rights[:fits])[None]


def _own(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """Return the finished trial of the TOML's own parameters."""
    return next((t for t in trials if OWN in t.user_attrs and t.state == TrialState.COMPLETE), None)


def _found(study: optuna.Study, bench: Bench, knobs: list[Knob], folder: Path, fits: int) -> Found:
    trials = study.get_trials()
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    own = _own(trials)
    if own is None:
        raise PairliftError("retune: stopped before the TOML's own parameters were measured; give it more minutes")
    best = study.best_trial
    gain = relative_uplift(*(_confirmed(bench, knobs, folder, trial, fits) for trial in (own, best)))
    importance = None
    if len(done) >= LEAST_FOR_IMPORTANCE:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        importance = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return Found(bench.arms.prepared.config, knobs, trials, own, best, gain, fits, importance, len(bench.held.pairs))


def as_json(found: Found) -> dict[str, Any]:
    """Return what `retune.json` holds: every trial, and what became of it."""
    return {
        "data": found.config.name,
        "slice": "the booster's validation slice",
        "pairs": found.pairs,
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
                "pair_accuracy": trial.value,
                "by_fit": list(trial.intermediate_values.values()),
                "trees": trial.user_attrs.get("trees"),
                "values": _values(found, trial) if trial.params else None,
                "seconds": trial.duration.total_seconds() if trial.duration else None,
            }
            for trial in found.trials
        ],
    }


def _values(found: Found, trial: FrozenTrial) -> dict[str, Any]:
    own = OWN in trial.user_attrs
    return {knob.name: knob.own if own else knob.rounded(trial.params[knob.name]) for knob in found.knobs}


def as_table(found: Found) -> str:
    """Return what was found as text, with the lines for the TOML."""
    states = [trial.state for trial in found.trials]
    own, best = found.own, found.best
    values, mine = _values(found, best), _values(found, own)
    lines = [
        f"{found.config.name}: {states.count(TrialState.COMPLETE)} trials, {states.count(TrialState.PRUNED)} given up "
        f"after one fit; {found.pairs:,} pairs of the booster's validation slice, {SEEDS} fits each, "
        f"{found.gain_fits} for the gain",
        "",
        f"{'':24}{'PairAccuracy':>13}   trees",
        f"{'the TOML' + chr(39) + 's own':24}{own.value:13.4f}   {_trees(own)}",
        f"{f'the best (trial {best.number})':24}{best.value:13.4f}   {_trees(best)}",
        "",
        _verdict(found),
        "",
        f"{'parameter':24}{'own':>10}{'best':>10}{'importance':>12}",
    ]
    order = sorted(found.knobs, key=lambda k: -(found.importance or {}).get(k.name, 0.0))
    for knob in order:
        share = "-" if found.importance is None else f"{100 * found.importance[knob.name]:.0f} %"
        lines.append(f"{knob.name:24}{told(knob, mine[knob.name]):>10}{told(knob, values[knob.name]):>10}{share:>12}")
    if found.importance is None:
        lines.append(f"(importance takes {LEAST_FOR_IMPORTANCE} finished trials)")
    return "\n".join([*lines, "", f"for {found.config.path}:", "", *toml_lines(found.knobs, values)])


def _trees(trial: FrozenTrial) -> str:
    return ", ".join(map(str, trial.user_attrs["trees"]))


def _verdict(found: Found) -> str:
    if found.best.number == found.own.number:
        return "nothing better than the TOML's own was found"
    gain = found.gain
    ends = f"{100 * gain.uplift:+.2f} %, 95 % [{100 * gain.low:+.2f} %, {100 * gain.high:+.2f} %]"
    if not found.better:
        return f"{ends}: not distinguishable from the TOML's own"
    return f"{ends}: better than the TOML's own (as the best of {len(found.trials)} it is flattered: expect less)"
