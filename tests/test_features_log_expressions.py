"""What the SQL of a TOML's attributes is: lists of whole numbers are told, for they could be vectors."""

from pathlib import Path

import duckdb

from features.log.expressions import integer_lists
from features.settings import ItemsSettings

KINDS = {
    "tags": "[1, 2]",
    "unsigned": "[1, 2]::UBIGINT[]",
    "fixed": "[1, 2]::SMALLINT[2]",
    "vector": "[0.5, 2]",
    "cast": "([1, 2])::FLOAT[]",
    "texts": "['1', '2']",
    "number": "1",
    "nested": "[[1], [2]]",
}


def test_lists_of_whole_numbers_are_found_by_their_type(tmp_path: Path) -> None:
    duckdb.sql(f"COPY (SELECT 1 AS item_id) TO '{tmp_path}/items.parquet'")
    settings = ItemsSettings(source="items.parquet", columns=KINDS)
    assert integer_lists("items", settings, tmp_path) == ["tags", "unsigned", "fixed"]
