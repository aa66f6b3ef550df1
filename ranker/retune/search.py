"""Search for better parameters of a part of the ranker, by Optuna's TPE (Akiba et al., KDD 2019).

Each part is measured by what it is for, on the booster's validation slice, which also stops each fit: see
`ranker.retune.bench`. The test is never read.
"""

import json
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from features.errors import PairliftError
from features.files import written
from features.progress import progress_bar
from features.schema import F64
from ranker.config import Config
from ranker.hashes import hash_value
from ranker.metrics.interval import finite, relative_uplift
from ranker.retune.bench import Bench
from ranker.retune.liked import LikedBench
from ranker.retune.report import LEAST_FOR_IMPORTANCE, OWN, SEEDS, TuningResult, as_json
from ranker.retune.space import TABLES, Parameter, with_values
from ranker.retune.wanted import WantedBench
from ranker.training.prepared import prepare

logger = logging.getLogger(__name__)

#: fits by which the best is compared with the TOML's own in the end: two seeds say little about their spread
CONFIRMED = 5
#: after so many trials, one whose first fit is below the median of the first fits is given up
STARTUP = 8
#: trials of an earlier search that a search on other rows begins with
TAKEN_OVER = 3
JOURNAL = "study.journal"


def retune(
    config: Config, minutes: float, trials: int | None, part: Literal["liked", "wanted"] = "liked"
) -> TuningResult:
    """Search for so many minutes, or trials; go on with the trials of an earlier search on the same rows.

    Ctrl-C ends it; what is finished counts. part: of the ranker, whose parameters are searched. All trials are written
    to `retune.json` of the work folder, those of the wanted part to `retune-wanted.json`.
    """
    kind = LikedBench if part == "liked" else WantedBench
    search = Search.of(kind.of(prepare(config)), config.work / "retune")
    fits = CONFIRMED
    try:
        search.run(minutes, trials)
    except KeyboardInterrupt:
        logger.warning("stopped: the trials that are finished are kept, and compared by their own fits alone")
        fits = SEEDS
    result = search.result(fits)
    with written(config.work / f"retune{'' if part == 'liked' else f'-{part}'}.json") as partial:
        partial.write_text(json.dumps(finite(as_json(result)), indent=1, allow_nan=False))
    return result


@dataclass(frozen=True, slots=True)
class Search:
    """The trials on one bench, kept in a folder between runs: `of`, `run`, `result`."""

    bench: Bench
    space: list[Parameter]  # what is searched over
    study: optuna.Study  # the trials
    folder: Path  # of the study's journal, and by trial, float64[fits, users] of `Bench.fit`

    @classmethod
    def of(cls, bench: Bench, folder: Path, tables: Collection[str] = TABLES) -> "Search":
        """Open the search on these rows below `folder`; a new one begins with the TOML's own parameters.

        tables: of the TOML, whose parameters are searched.
        """
        space = [p for p in bench.space() if p.table in tables]
        key = bench.key if tables == TABLES else hash_value([bench.key, sorted(tables)])
        own_folder = folder / key[:16]
        own_folder.mkdir(parents=True, exist_ok=True)
        study = _study(own_folder, key)
        if _own(study.get_trials()) is None and not study.get_trials(states=(TrialState.WAITING,)):
            study.enqueue_trial({p.name: p.own for p in space}, user_attrs={OWN: True})
        return cls(bench, space, study, own_folder)

    def begin_with_earlier(self) -> None:
        """Have a new search try the best of the latest one beside it next, which was on other rows."""
        if len(self.study.get_trials()) > 1:
            return
        beside = [path for path in self.folder.parent.glob(f"*/{JOURNAL}") if path.parent != self.folder]
        for path in sorted(beside, key=lambda path: path.stat().st_mtime, reverse=True):
            if best := self._best_of(path):
                for params in best:
                    self.study.enqueue_trial(params)
                return

    def _best_of(self, journal: Path) -> list[dict[str, Any]]:
        """Return the parameters of the best few trials of another search; none where it was over another space."""
        storage, found = JournalStorage(JournalFileBackend(str(journal))), list[FrozenTrial]()
        for name in optuna.get_all_study_names(storage):
            found += optuna.load_study(study_name=name, storage=storage).get_trials(states=(TrialState.COMPLETE,))
        known = {p.name: p for p in self.space}
        same = [
            t for t in found if t.params.keys() == known.keys() and all(known[k].has(v) for k, v in t.params.items())
        ]
        return [t.params for t in sorted(same, key=lambda t: -(t.value or 0.0))[:TAKEN_OVER]]

    def run(self, minutes: float, trials: int | None) -> None:
        """Run trials until the time is up, or so many are done."""
        started, done = time.monotonic(), 0
        whole = round(60 * minutes)
        with progress_bar(total=whole, desc="retuning", unit="s") as bar:

            def show() -> None:
                bar.n = min(round(time.monotonic() - started), whole)
                kept = [t.value for t in self.study.get_trials(deepcopy=False) if t.value is not None]
                bar.set_postfix_str(f"{len(self.study.trials)} trials" + (f", best {max(kept):.4f}" if kept else ""))

            while (trials is None or done < trials) and time.monotonic() - started < 60 * minutes:
                self._run_trial(self.study.ask({p.name: p.distribution for p in self.space}), show)
                done += 1

    def _run_trial(self, trial: Trial, show: Callable[[], None]) -> None:
        """Run one trial: a fit for each seed; given up after the first where that is among the worse half."""
        study, bench, own = self.study, self.bench, OWN in trial.user_attrs
        config = self._config_of(trial)
        rights, trees = [], []
        try:
            for step, seed in enumerate(bench.seeds):
                right, n = bench.fit(config, seed)
                rights.append(right)
                trees.append(n)
                trial.report(float(right.sum()) / bench.total, step)
                show()
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
        np.save(self._right_of(trial), np.stack(rights))
        study.tell(trial, float(np.sum(rights)) / bench.total / len(rights))
        self._drop_rights()

    def _config_of(self, trial: Trial | FrozenTrial) -> Config:
        config = self.bench.config
        if OWN in trial.user_attrs:
            return config
        return with_values(config, self.space, {p.name: p.rounded(trial.params[p.name]) for p in self.space})

    def _right_of(self, trial: Trial | FrozenTrial) -> Path:
        return self.folder / f"right{trial.number}.npy"

    def _drop_rights(self) -> None:
        """Delete what fits were worth by user, but of the TOML's own and the best trial: no other is read again."""
        kept = [t for t in (_own(self.study.get_trials()), self.study.best_trial) if t is not None]
        for path in set(self.folder.glob("right*.npy")) - {self._right_of(trial) for trial in kept}:
            path.unlink()

    def result(self, fits: int) -> TuningResult:
        """Return what was found, the gain measured by so many fits of the best and of the TOML's own."""
        study, trials = self.study, self.study.get_trials()
        own = _own(trials)
        if own is None:
            raise PairliftError("retune: stopped before the TOML's own parameters were measured; give it more minutes")
        best = study.best_trial
        gain = relative_uplift(*(self._confirmed(trial, fits) for trial in (own, best)))
        importance = None
        if sum(t.state == TrialState.COMPLETE for t in trials) >= LEAST_FOR_IMPORTANCE:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            importance = optuna.importance.get_param_importances(study, evaluator=evaluator)
        return TuningResult(
            config=self.bench.config,
            space=self.space,
            trials=trials,
            own=own,
            best=best,
            gain=gain,
            gain_fits=fits,
            importance=importance,
            measure=self.bench.measure,
            judged=self.bench.judged,
        )

    def _confirmed(self, trial: FrozenTrial, fits: int) -> F64:
        """Return float64[1, fits, users] of `Bench.fit`: of the trial's own fits, and of further seeds'."""
        path = self._right_of(trial)
        rights, first = list(np.load(path)), self.bench.seeds[0]
        for seed in range(first + len(rights), first + fits):
            rights.append(self.bench.fit(self._config_of(trial), seed)[0])
            np.save(path, np.stack(rights))
        return np.stack(rights[:fits])[None]


def _study(folder: Path, key: str) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    study = optuna.create_study(storage=storage, study_name=key, direction="maximize", load_if_exists=True)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # of a run that was killed
        study.tell(trial.number, state=TrialState.FAIL)
    # The seed differs in a run that goes on, or its random trials would be those of the first.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials), n_startup_trials=STARTUP, multivariate=False)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP)
    return study


def _own(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """Return the finished trial of the TOML's own parameters."""
    return next((t for t in trials if OWN in t.user_attrs and t.state == TrialState.COMPLETE), None)
