"""Labels of pairs against slow definitions: had the user met the item, or its author, and how old is the item?"""

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from features.pairing.pairs import make_pairs
from features.schema import DAY
from ranker.config import load_config
from ranker.training.prepare import Prepared, prepare
from ranker.uplift.slices import events_before, labels

TOML = """
name = "known"
[events]
source = "events.parquet"
ts = "make_timestamp(ts)"
surface = "surface"
[items]
source = "items.parquet"
[items.columns]
author = "author"
tags = "tags"
[[grades]]
name = "no"
when = "NOT yes"
[[grades]]
name = "yes"
when = "yes"
[events.feedback]
yes = "yes"
[pairing]
window = "1h"
[uplift]
familiar = ["author", "tags"]
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """40 days of 12 users and 60 items, most of which come late; equal times among them."""
    folder = tmp_path_factory.mktemp("slices")
    rng = np.random.default_rng(0)
    n = 3000
    day = np.sort(rng.integers(0, 40, n))
    item = (rng.random(n) * (8 + 1.3 * day)).astype(int)
    events = {"user_id": rng.integers(0, 12, n), "item_id": item, "ts": day * DAY + rng.integers(0, 40, n) * 60_000_000}
    yes, surface = rng.random(n) < 0.4, np.where(rng.random(n) < 0.5, "feed", "search")
    con = duckdb.connect()
    columns = {**events, "yes": yes, "surface": surface}
    shown = pa.table(columns)  # noqa: F841  (DuckDB reads it by its name)
    con.execute(f"COPY (SELECT * FROM shown) TO '{folder}/events.parquet'")
    con.execute(
        f"COPY (SELECT range AS item_id, CASE WHEN range % 7 THEN 'a' || range % 5 END AS author, "
        f"['t' || range % 3, 't' || range % 4] AS tags FROM range(60)) TO '{folder}/items.parquet'"
    )
    (folder / "pairlift.toml").write_text(TOML)
    return prepare(load_config(folder / "pairlift.toml"))


def test_labels_are_what_the_log_says(prepared: Prepared) -> None:
    groups = prepared.slices()["test"]
    pairs = make_pairs(groups, prepared.weights)
    found, log, r = labels(prepared, groups, pairs), prepared.log, groups.requests
    author = prepared.catalog.item_attribute("author").codes
    tags = prepared.catalog.item_attribute("tags")
    of_item = [set(tags.codes[tags.offsets[i] : tags.offsets[i + 1]].tolist()) for i in range(60)]
    owner = r.row_request()

    def met(row: int, kind: str) -> bool:
        item, before = int(r.item[row]), log.ts < r.as_of[owner[row]]
        mine = log.item[before & (log.user == r.user[owner[row]])].tolist()
        if kind == "familiarity":
            return item in mine
        if kind == "familiarity_author":
            return author[item] >= 0 and any(author[i] == author[item] for i in mine)
        return any(of_item[i] & of_item[item] for i in mine)

    names = {
        (False, False): "neither met",
        (True, False): "winner met",
        (False, True): "loser met",
        (True, True): "both met",
    }
    sample = np.random.default_rng(1).permutation(len(pairs))[:400].tolist()
    for kind in ("familiarity", "familiarity_author", "familiarity_tags"):
        for k in sample:
            assert found[kind][k] == names[met(pairs.winner[k], kind), met(pairs.loser[k], kind)]
        assert len(np.unique(found[kind])) > 1 or kind == "familiarity_tags"
    bounds = {"0: not seen before": (-np.inf, 0), "1: under 1 day": (0, 1), "2: 1-7 days": (1, 7)}
    bounds |= {"3: 7-30 days": (7, 30), "4: 30 days and more": (30, np.inf)}
    for k in sample:
        row = pairs.winner[k]
        age = (r.as_of[owner[row]] - log.ts[log.item == r.item[row]].min()) / DAY
        low, high = bounds[found["winner_age"][k]]
        assert low <= age < high or (age == 0 and high == 0)
    assert len(np.unique(found["winner_age"])) >= 3


def test_events_before_an_as_of_do_not_count_those_of_its_instant(prepared: Prepared) -> None:
    groups = prepared.slices()["test"]
    r, log = groups.requests, prepared.log
    owner = r.row_request()
    want = [np.sum((log.item == i) & (log.ts < r.as_of[g])) for i, g in zip(r.item, owner, strict=True)]
    np.testing.assert_array_equal(events_before(prepared, groups, ("item",)), want)
