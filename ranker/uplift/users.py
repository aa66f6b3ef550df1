"""What a report keeps of each user, so that two reports can be compared user by user."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import PairliftError
from ranker.columns import Columns
from ranker.training.arms import Arms, of_kind
from ranker.uplift.measured import Judged, Measured

#: file beside `uplift.json`
USERS = "users.parquet"
#: relative difference of an uplift and of the one that its users give
NEAR = 1e-6


def read_users(path: Path, report: Mapping[str, Any]) -> pa.Table:
    """Read what `users_table` gave; PairliftError where it is no such table, or not of this report."""
    try:
        found = pq.read_table(path, columns=["user", "total", "without", "with"])
    except (pa.ArrowException, OSError) as error:
        raise PairliftError(f"{path}: the users of the report beside it were expected ({error}); {_REMEDY}") from error
    uplift = report["relative_uplift"]
    without, with_ = (np.asarray(found[name].to_numpy(), np.float64).sum() for name in ("without", "with"))
    own = found.num_rows == report["users"] and len(set(found["user"].to_pylist())) == found.num_rows
    if uplift is not None and not (own and np.isclose(with_, (1 + uplift) * without, rtol=NEAR, atol=0)):
        raise PairliftError(f"{path} is not of the report beside it: it has other users, or another uplift; {_REMEDY}")
    return found


_REMEDY = "measure again, or take it away: reports without it compare as if they were independent"


def users_table(arms: Arms, name: str, fits: list[Columns]) -> pa.Table:
    """Return `user`, and the weight of its pairs (`total`) and of those that are right `without` and `with` the plugin.

    float64, the means over fits and seeds, ties one half, of the pairs of the main uplift. The boosters are found.
    """
    judged = Judged.of(arms.groups["test"], of_kind(arms.pairs("test"), arms.kind))
    seeds = arms.prepared.config.uplift.seeds
    without = Measured.of([[arms.fit("without", Columns(), seed) for seed in seeds]], judged)
    fitted = [[arms.fit(f"{name}-fit{k}", of, seed) for seed in seeds] for k, of in enumerate(fits)]
    with_ = Measured.of(fitted, judged)
    requests = judged.groups.requests
    user = np.unique(requests.user[requests.row_request()][judged.pairs.winner])
    ids = pa.array(np.asarray(arms.prepared.catalog.user_ids)[user].tolist())
    means = {"without": without.right.mean(axis=(0, 1)), "with": with_.right.mean(axis=(0, 1))}
    return pa.table({"user": ids, "total": without.total, **means})
