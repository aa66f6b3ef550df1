"""What a booster's columns do: gain, splits, and SHAP values (Lundberg et al., Nature Machine Intelligence 2020)."""

from collections.abc import Collection
from typing import Any

import lightgbm as lgb
import numpy as np

from features.schema import F32, F64

#: rows that SHAP values are made for: their cost is linear in rows, trees and leaves
SAMPLE = 2000


def explain(booster: lgb.Booster, rows: F32, categorical: Collection[str]) -> dict[str, Any]:
    """Return what `importance.json` holds of a part, largest mean |SHAP| first. rows: float32[n, c], some are drawn.

    Of each column: gain, its share of the training loss's fall; splits, how many compare it; mean_abs_shap, by how
    much it moves a raw score; direction, the correlation of its value with its SHAP value over the rows that have
    one: near 1, a higher value raises the score, near -1 it lowers it, near 0 neither (None: a category, a column
    that is not used, or one value).
    """
    drawn = np.random.default_rng(0).permutation(len(rows))[:SAMPLE]
    sample = rows[np.sort(drawn)]
    shap = np.asarray(booster.predict(sample, pred_contrib=True))[:, :-1]  # the last is the expected score
    size = np.abs(shap).mean(axis=0)
    gain, splits = (booster.feature_importance(kind) for kind in ("gain", "split"))
    share = gain / max(gain.sum(), 1e-12)
    names = booster.feature_name()
    columns = {
        names[k]: {
            "gain": float(share[k]),
            "splits": int(splits[k]),
            "mean_abs_shap": float(size[k]),
            "direction": None if names[k] in categorical else _direction(sample[:, k], shap[:, k]),
        }
        for k in np.argsort(-size, kind="stable").tolist()
    }
    return {"rows": len(sample), "columns": columns}


def _direction(value: F32, shap: F64) -> float | None:
    """Return Pearson's correlation over the rows where the value is known, None where there is none."""
    known = np.isfinite(value)
    x, y = value[known].astype(np.float64), shap[known]
    if len(x) < 2 or not np.ptp(x) or not np.ptp(y):
        return None
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))


def importance_tables(importance: dict[str, Any]) -> list[str]:
    """Return a table of each part of an `importance.json`, also of one of before there were two parts."""
    parts = {"liked": importance} if "columns" in importance else importance
    return [line for name, part in parts.items() for line in importance_lines(part, f"{name}: column")]


def importance_lines(importance: dict[str, Any], head: str = "column") -> list[str]:
    """Return the columns as a table: share of the gain, splits, mean |SHAP|, direction."""
    lines = [f"  {head:48}{'gain':>8}{'splits':>8}{'|SHAP|':>9}{'direction':>11}"]
    for name, own in importance["columns"].items():
        direction = "-" if own["direction"] is None else f"{own['direction']:+.2f}"
        lines.append(
            f"  {name:48}{100 * own['gain']:6.1f} %{own['splits']:8}{own['mean_abs_shap']:9.4f}{direction:>11}"
        )
    return lines
