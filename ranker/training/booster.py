"""Fit a LightGBM ranker on weighted pairs, stopped early by the PairAccuracy of the validation slice."""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import lightgbm as lgb
import numpy as np

from features.errors import PairliftError, did_you_mean, nearest
from features.pairing.slice import Slice
from features.progress import progress_bar
from features.schema import F32, F64
from ranker.forest.text import change_leaves
from ranker.metrics.pair_accuracy import pair_accuracy
from ranker.settings import BoosterSettings, ListSettings
from ranker.training.objective import PairLogit

logger = logging.getLogger(__name__)

#: Slow enough to converge smoothly, with row and column sampling so that a seed means something.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 0.03,
    "num_leaves": 15,
    "min_data_in_leaf": 50,
    "min_sum_hessian_in_leaf": 1.0,
    "lambda_l2": 5.0,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "cat_smooth": 20.0,
    "max_bin": 255,
}
#: of the TOML, where the parameters of the part stand that orders Rank, and of the one that orders Recommend
LIKED_TABLE, WANTED_TABLE = "booster.params", "lists.params"
#: what every fit has
FIXED: dict[str, Any] = {"metric": "none", "verbosity": -1, "deterministic": True, "force_row_wise": True}
#: LightGBM issue 5994 and what its pull request 7397 found: where bagging or a share of the columns is on, a leaf's
#: totals are of other rows than the leaf's. On a million rows it ends with a failed check, on fewer in worse trees
_UNSAFE = (
    "it stays off, for with sampled rows or columns LightGBM fails by it on large logs (its issue 5994): leave it out"
)
#: parameters that Pairlift sets, and what to do about each
_OURS = dict.fromkeys([*FIXED, "force_col_wise"], "it is the same in every fit") | {
    "objective": "it is made of the weighted pairs; see [booster] margin and ndcg_at",
    "seed": "see [uplift] seeds",
    "early_stopping_round": "see [booster] stop_after",
    "num_iterations": "see [booster] trees",
    **dict.fromkeys(
        ("use_quantized_grad", "num_grad_quant_bins", "quant_train_renew_leaf", "stochastic_rounding"), _UNSAFE
    ),
}
#: parameters of LightGBM's objectives, metrics and files: no effect here
_IDLE = (
    "alpha auc_mu_weights boost_from_average categorical_feature data early_stopping_min_delta eval_at fair_c "
    "first_metric_only group_column header ignore_column input_model is_provide_training_metric is_unbalance "
    "label_column label_gain lambdarank_norm lambdarank_position_bias_regularization lambdarank_truncation_level "
    "metric_freq multi_error_top_k num_class objective_seed output_model output_result poisson_max_delta_step "
    "reg_sqrt save_binary scale_pos_weight sigmoid snapshot_freq task tweedie_variance_power two_round valid "
    "weight_column"
)
#: rounds whose PairAccuracy is averaged to stop by: on a slice of some thousand pairs one round's noise is larger than
#: what 50 more trees bring. No round before so many can be the best: a mean of fewer is noisier, and would win by that
SMOOTH = 25
#: a slice of fewer rows has smaller leaves, unless the TOML says how large
FULL_SIZE = 5_000


def fit_booster(
    columns: list[str],
    categorical: list[str],
    train: Slice,
    validation: Slice,
    settings: BoosterSettings,
    seed: int,
    *,
    start: lgb.Booster | None = None,
    judge: Callable[[F64], float] | None = None,
    table: str = LIKED_TABLE,
    progress: str = "",
) -> lgb.Booster:
    """Return the booster of the best validation round (`num_trees()` tells which).

    Best is the round up to which the last SMOOTH rounds have the highest mean PairAccuracy on the slice; where there
    are not so many rounds, the last one. The same seed, rows and parameters give the same booster. judge: gives, in
    place of PairAccuracy, what float64[n] scores of the slice are worth, the more the better. table: of the TOML that
    the parameters are from. progress: the name of a bar on stderr, that counts the rounds; empty for none.

    start: a booster of the same columns whose trees are kept, and boosted on (a warm start); it comes back as it was
    where no further tree is better on the validation slice. NaN is a missing value. Raises PairliftError for an
    infinite one, for a parameter that is ours to set, or one that LightGBM refuses.
    """
    for name, rows in (("training", train.matrix), ("validation", validation.matrix)):
        refuse_infinite(name, rows, columns)
    objective = PairLogit.of(train.pairs, train.group, train.grade, settings.margin, settings.ndcg_at)
    params = parameters(settings, len(train.matrix)) | FIXED | {"seed": seed, "objective": objective}
    params |= _monotone(settings, columns)

    stop = _Stop(settings.stop_after)

    def accuracy(score: F64, _: lgb.Dataset) -> tuple[str, float, bool]:
        return "worth", pair_accuracy(score, validation.pairs).value if judge is None else judge(score), True

    label = np.zeros(len(train.matrix), np.float32)
    data = lgb.Dataset(
        train.matrix, label, init_score=train.start, feature_name=columns, categorical_feature=categorical
    )
    none = np.zeros(len(validation.matrix), np.float32)
    stopped_by = lgb.Dataset(validation.matrix, none, init_score=validation.start, reference=data)
    try:
        with progress_bar(total=settings.trees, desc=progress, unit="tree", leave=False, disable=not progress) as bar:
            booster = lgb.train(
                params,
                data,
                num_boost_round=settings.trees,
                valid_sets=[stopped_by],
                feval=accuracy,
                callbacks=[stop, lambda _: bar.update()],
                init_model=start,
            )
    except lgb.basic.LightGBMError as error:
        hint = "" if settings.params else f"; are {len(train.matrix)} impressions of the booster's period enough?"
        raise PairliftError(f"[{table}]: LightGBM says: {error}{hint}") from error
    # Only the trees up to the best round are kept, so that whoever reads the model predicts the same.
    best = lgb.Booster(model_str=booster.model_to_string(num_iteration=stop.best))
    return best if start is None else _better(start, best, validation)


def at_cap(settings: BoosterSettings, trees: int) -> bool:
    """Return whether a fit whose best round is `trees` ended by `[booster] trees`: more of them might be better.

    trees: without those of an earlier bundle.
    """
    return trees + settings.stop_after > settings.trees


def cap_reached(settings: BoosterSettings, what: str) -> str:
    """Return what to say of fits that are `at_cap`."""
    return (
        f"{what} had not stopped getting better when [booster] trees = {settings.trees} ended it: more trees, or a "
        "higher learning_rate, may be better"
    )


def mean_of(boosters: list[lgb.Booster]) -> lgb.Booster:
    """Return one booster whose raw score is the mean of the others' (of the same columns), up to rounding.

    Its trees are theirs, with what every leaf gives divided by how many boosters there are.
    """
    share = change_leaves(_joined(boosters).model_to_string(), lambda value: value / len(boosters))
    return lgb.Booster(model_str=share)


def added(booster: lgb.Booster, other: lgb.Booster, weight: float) -> lgb.Booster:
    """Return one booster whose raw score is that of `booster` + weight · that of `other`, up to rounding.

    other: its columns are the first ones of `booster`.
    """
    scaled = lgb.Booster(model_str=change_leaves(other.model_to_string(), lambda value: value * weight))
    return lgb.Booster(model_str=_joined([booster, scaled]).model_to_string())


def _joined(boosters: list[lgb.Booster]) -> lgb.Booster:
    """Return a booster of all trees, with the columns of the first."""
    whole, *rest = (lgb.Booster(model_str=booster.model_to_string()) for booster in boosters)
    for booster in rest:
        lgb.basic._safe_call(lgb.basic._LIB.LGBM_BoosterMerge(whole._handle, booster._handle))
    return whole


def _better(start: lgb.Booster, best: lgb.Booster, validation: Slice) -> lgb.Booster:
    """Return what a warm start brought, or what it started from where that is as good."""
    old, new = (
        pair_accuracy(np.asarray(b.predict(validation.matrix, raw_score=True)), validation.pairs).value
        for b in (start, best)
    )
    if old >= new:
        logger.info("warm start: no further tree is better on the validation slice; the old trees stay alone")
        return start
    return best


@dataclass(eq=False)  # LightGBM keeps callbacks in a set
class _Stop:
    """A callback of `lgb.train` that ends the training `after` rounds behind the best one."""

    after: int  # rounds
    best: int = 0  # trees of the best round
    _mean: float = -np.inf  # PairAccuracy of the SMOOTH rounds up to the best
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=SMOOTH))  # PairAccuracy of the last rounds

    def __call__(self, env: Any) -> None:
        """Take the PairAccuracy of a round."""
        self._recent.append(env.evaluation_result_list[0][2])
        rounds = env.iteration + 1
        full = len(self._recent) == SMOOTH
        mean = sum(self._recent) / SMOOTH if full else -np.inf
        if not full or mean > self._mean:
            self.best, self._mean = rounds, mean
        elif rounds - self.best >= self.after:
            raise lgb.callback.EarlyStopException(self.best - 1, env.evaluation_result_list)


def refuse_infinite(name: str, rows: F32, columns: list[str]) -> None:
    """Raise where a column of float32[n, c] rows is infinite: it would be the largest number, or the lowest, unasked.

    name: of the rows, for the error.
    """
    found = np.isinf(rows)
    for k in np.flatnonzero(found.any(axis=0)):
        at = np.flatnonzero(found[:, k])
        raise PairliftError(
            f"column '{columns[k]}' is infinite in {len(at):,} of {len(rows):,} {name} rows (first: row {at[0]}); a "
            "finite number, or NaN for what is missing, was expected: mend its SQL, for example with "
            "CASE WHEN isfinite(x) THEN x END, or the plugin that gives it"
        )


def parameters(settings: BoosterSettings, rows: int) -> dict[str, Any]:
    """Return the parameters of a fit on so many rows by LightGBM's first names: ours, and over them the TOML's."""
    defaults = DEFAULTS
    if rows < FULL_SIZE:
        defaults = DEFAULTS | {"min_data_in_leaf": max(2, rows // 100), "min_sum_hessian_in_leaf": 1e-3}
    given = check_params(settings)
    if "goss" in (given.get("boosting"), given.get("data_sample_strategy")):  # which takes the place of bagging
        defaults = {name: value for name, value in defaults.items() if not name.startswith("bagging")}
    return defaults | given


def _monotone(settings: BoosterSettings, columns: list[str]) -> dict[str, Any]:
    """Return LightGBM's list of constraints by position; a column that this arm lacks is none of its own."""
    signs = [settings.monotone.get(column, 0) for column in columns]
    return {"monotone_constraints": signs} if any(signs) else {}


@cache
def _meanings() -> dict[str, str]:
    """Return LightGBM's first name of every name of a parameter."""
    aliases: dict[str, list[str]] = lgb.basic._ConfigAliases._get_all_param_aliases()
    return {name: known for known, names in aliases.items() for name in (known, *names)}


def check_params(settings: BoosterSettings | ListSettings, table: str = LIKED_TABLE) -> dict[str, Any]:
    """Return the params of a table by LightGBM's first names, for with two names of one thing LightGBM drops one.

    Raises PairliftError for a name that LightGBM does not know, that is ours to set, or that stands there twice.
    """
    meaning, found = _meanings(), dict[str, Any]()
    for name, value in settings.params.items():
        place = f"[{table}] {name}"
        if name not in meaning:
            near = nearest(name, meaning)
            hint = f" (did you mean '{meaning[near]}'?)" if near else "; its documentation lists them"
            raise PairliftError(f"{place}: LightGBM has no such parameter{hint}")
        if meaning[name] in _OURS:
            raise PairliftError(f"{place}: Pairlift sets this: {_OURS[meaning[name]]}")
        if meaning[name] in _IDLE.split():
            raise PairliftError(f"{place}: it has no effect here, for objective, metric and data are Pairlift's own")
        if meaning[name] == "monotone_constraints" and isinstance(settings, ListSettings):
            raise PairliftError(f"{place}: only the part that orders Rank can be constrained: [booster.monotone]")
        if meaning[name] == "linear_tree" and value and isinstance(settings, ListSettings):
            # a list has hundreds of candidates, and the compiled scorer takes no linear trees
            raise PairliftError(f"{place}: only the part that orders Rank can have linear trees: [booster.params]")
        if meaning[name] == "monotone_constraints":
            raise PairliftError(f'{place}: name the columns instead: [booster.monotone] "column" = 1 (or -1)')
        if meaning[name] in found:
            raise PairliftError(f"{place}: another name of {meaning[name]}, which stands there too; keep one")
        found[meaning[name]] = value
    return found


def check_monotone(settings: BoosterSettings, columns: list[str], categorical: list[str]) -> None:
    """Refuse in `[booster.monotone]` what is none of the columns that a booster may have, or a category."""
    for name in settings.monotone:
        if name not in columns:
            raise PairliftError(f"[booster.monotone] '{name}': there is no such column{did_you_mean(name, columns)}")
        if name in categorical:
            raise PairliftError(f"[booster.monotone] '{name}': it is a category, which has no order to keep")
