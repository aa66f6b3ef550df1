"""Small logs of five shapes on disk, each as a stranger would have it: files, column names and a TOML of its own.

`SHAPES[name](folder, size, seed)` writes about `size` events and returns the TOML:

- `search`: lists with the price, distance and match score of each impression; clicks and bookings (Parquet);
- `news`: articles that are new every day, lists of what is fresh, clicks (JSON);
- `positives`: purchases alone, text ids, nothing shown beside them (Parquet);
- `stars`: explicit ratings in bursts (CSV);
- `sessions`: text ids, several surfaces and kinds of feedback, NULLs everywhere (CSV).

`tests/shapeworld.py` has the tastes behind them.
"""

from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import shapeworld
from shapeworld import Tables

#: events of a log for tests, and of one for the benchmark `shapes`
SMALL, LARGE = 6_000, 150_000

#: of every shape: machines that run tests are slow
SLOW = """
[sources]
popular = {deadline = "20s"}
cooccurrence = {deadline = "20s"}
nearest = {deadline = "20s"}
[serve]
plugin_deadline = "20s"
"""

SEARCH = """
name = "search"
[events]
source = "searches.parquet"
user_id = "visitor"
item_id = "hotel"
ts = "searched_at"
request_id = "search_id"
position = "rank_shown"
[events.feedback]
click = "clicked"
book = "booked"
[events.context]
device = "device"
town = "town"
nights = "nights"
[items]
source = "hotels.parquet"
item_id = "hotel"
[items.columns]
town = "town"
style = "style"
guest_score = "guest_score"
[[grades]]
name = "passed"
when = "NOT click"
[[grades]]
name = "clicked"
when = "click"
[[grades]]
name = "booked"
when = "book"
"""
#: what was shown of a candidate: `search` has it unless it is told otherwise
CANDIDATE = """
[events.candidate]
price = "price_eur"
km = "km_from_point"
match = "match_score"
badge = "badge"
"""
LISTED = """
[features]
list = ["candidate_price_rank", "candidate_price_less_median"]
"""

NEWS = """
name = "news"
[events]
source = "impressions.json"
user_id = "reader"
item_id = "article"
ts = "shown_at::TIMESTAMP"
request_id = "page_view"
position = "slot"
[events.feedback]
click = "clicked"
[items]
source = "articles.json"
item_id = "article"
[items.columns]
section = "section"
words = "words"
[[grades]]
name = "skipped"
when = "click = 0"
[[grades]]
name = "clicked"
when = "click = 1"
"""

POSITIVES = """
name = "positives"
[events]
source = "purchases.parquet"
user_id = "customer"
item_id = "sku"
ts = "bought_at"
[events.feedback]
pieces = "pieces"
[items]
source = "products.parquet"
item_id = "sku"
[items.columns]
aisle = "aisle"
euros = "cents / 100"
[[grades]]
name = "bought"
when = "true"
[pairing]
negatives = 4
"""

STARS = """
name = "stars"
[events]
source = "ratings.csv"
user_id = "member"
item_id = "film"
ts = "to_timestamp(rated_at)"
[events.feedback]
stars = "stars"
[items]
source = "films.csv"
item_id = "film"
[items.columns]
genres = "string_split(genres, '|')"
year = "year"
[users]
source = "members.csv"
user_id = "member"
[users.columns]
age = "age"
[[grades]]
name = "poor"
when = "stars < 3"
[[grades]]
name = "fair"
when = "stars >= 3"
[[grades]]
name = "good"
when = "stars >= 4"
"""

SESSIONS = """
name = "sessions"
[events]
source = "read_csv('{data}/plays.csv', nullstr='NULL')"
user_id = "viewer"
item_id = "video"
ts = "epoch_ms(seen)"
surface = '"where"'
request_id = "visit"
position = "slot"
[events.feedback]
watched = "watch_ms > 10000"
seconds = "watch_ms / 1000"
liked = "liked"
hidden = "hidden"
[events.context]
screen = "screen"
[items]
source = "read_csv('{data}/videos.csv', nullstr='NULL')"
item_id = "video"
[items.columns]
channel = "channel"
topic = "topic"
seconds = "seconds"
[[grades]]
name = "skip"
when = "NOT watched"
[[grades]]
name = "watch"
when = "watched"
[[grades]]
name = "like"
when = "liked AND watched IS NOT FALSE"
"""


def search(folder: Path, size: int, seed: int, *, candidate: bool = True, listed: bool = False, more: str = "") -> Path:
    """candidate: the TOML maps price, distance, match and badge. listed: it asks for features of the list. more: tables
    of the TOML."""
    toml = SEARCH + CANDIDATE * candidate + LISTED * listed + more
    return _written(folder, toml, shapeworld.search(size, seed), "parquet")


def news(folder: Path, size: int, seed: int, *, more: str = "") -> Path:
    return _written(folder, NEWS + more, shapeworld.news(size, seed), "json")


def positives(folder: Path, size: int, seed: int, *, more: str = "") -> Path:
    return _written(folder, POSITIVES + more, shapeworld.positives(size, seed), "parquet")


def stars(folder: Path, size: int, seed: int, *, more: str = "") -> Path:
    return _written(folder, STARS + more, shapeworld.stars(size, seed), "csv")


def sessions(folder: Path, size: int, seed: int, *, more: str = "") -> Path:
    return _written(folder, SESSIONS + more, shapeworld.sessions(size, seed), "csv")


SHAPES: dict[str, Callable[..., Path]] = {
    "search": search,
    "news": news,
    "positives": positives,
    "stars": stars,
    "sessions": sessions,
}

FORMATS = {"parquet": "FORMAT parquet", "json": "FORMAT json", "csv": "FORMAT csv, HEADER, NULLSTR 'NULL'"}


def _written(folder: Path, toml: str, tables: Tables, kind: str) -> Path:
    """Write tables as files of a kind and the TOML to a folder, which is made; return the TOML."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in tables.items():
        rows = pa.table(columns)  # noqa: F841  (DuckDB reads it by its name)
        duckdb.sql(f"COPY (SELECT * FROM rows) TO '{folder}/{name}.{kind}' ({FORMATS[kind]})")
    (folder / "pairlift.toml").write_text(toml + SLOW)
    return folder / "pairlift.toml"
