"""A log of lists whose items have a price, a badge and a match of each request, and what one request showed."""

from pathlib import Path
from typing import Any, NamedTuple

import duckdb
from world import write_world

TABLES = """
request_id = "request"
[events.columns]
shop = "shop"
[events.context]
device = "device"
[events.candidate]
price = "price"
badge = "badge"
match = "match"
"""
#: hashes stand for chance: the same values at every run, with NULLs
SHOWN = """
SELECT *, ['phone', 'tv', NULL][request % 3 + 1] AS device, 'shop-' || (request % 2) AS shop,
    CASE WHEN hash(request, item_id) % 11 > 0 THEN (hash(item_id, request) % 40) / 8 + 0.1 END AS price,
    CASE hash(item_id, request, 1) % 3 WHEN 0 THEN 'new' WHEN 1 THEN 'sale' END AS badge,
    CASE WHEN hash(request, item_id, 2) % 7 > 0 THEN (hash(item_id, request, 3) % 1000)::FLOAT / 1000 END AS match
"""
#: the features of the list, and counters of what was paid
FURTHER = """
[features]
list = ["candidate_price_rank", "candidate_price_less_median"]
[[counters]]
key = ["item"]
event = "play"
stats = ["count", "mean"]
[[counters]]
key = ["item"]
event = "candidate_price_of_like"
stats = ["mean", "count"]
[[counters]]
key = ["user"]
event = "candidate_price"
spans = ["w7d", "h3d"]
stats = ["mean"]
"""
NAMES = ("price", "badge", "match")


def write_priced(folder: Path, further: str = FURTHER) -> Path:
    """Write the log and its TOML; return the TOML."""
    path = write_world(folder, request=TABLES, rows=SHOWN, request_ids=True)
    path.write_text(path.read_text() + further)
    return path


class Shown(NamedTuple):
    """One request of the log."""

    user: int
    as_of: int  # µs UTC
    items: list[int]  # all that it showed, graded or not
    attributes: dict[str, str]
    columns: dict[str, list[Any]]  # of `NAMES`, None unknown


def shown_by(folder: Path, request: int) -> Shown:
    """Return what a request of the log asked and showed."""
    rows = duckdb.sql(
        f"SELECT user_id, item_id, ts, device, {', '.join(NAMES)} FROM '{folder}/log.parquet' "
        f"WHERE request = {request} ORDER BY ts"
    ).fetchall()
    user, items, ts, device, *columns = map(list, zip(*rows, strict=True))
    said = {"device": device[0]} if device[0] else {}
    return Shown(user[0], min(ts), items, said, dict(zip(NAMES, columns, strict=True)))
