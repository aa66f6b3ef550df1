"""What a report keeps of each user, so that two reports can be compared user by user."""

import numpy as np
import pyarrow as pa

from ranker.columns import Columns
from ranker.training.arms import Arms, of_kind
from ranker.uplift.measured import Judged, Measured

#: file beside `uplift.json`
USERS = "users.parquet"


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
