"""The log of a small experiment of three arms, for the page that is made of it."""

from pathlib import Path

import duckdb

#: users of a week before and two in it; each of a third of them is in an arm whose clicks are more likely by 0, 5, 20 %
_SQL = """
COPY (
    WITH users AS (SELECT u, u % 3 AS a, exp(3 * ((hash(u) % 1000) / 1000.0)) AS rate FROM range(1500) t(u)),
    rows AS (SELECT u, a, k, hash(u * 1000 + k) AS h FROM users, LATERAL (SELECT unnest(range(2 + rate::INT)) AS k))
    SELECT u AS user_id, TIMESTAMP '2026-01-01' + INTERVAL 1 MINUTE * (h % 30240) AS ts,
        CASE WHEN h % 30240 >= 10080 THEN ['control', 'b', 'c'][a + 1] END AS arm,
        (((h // 30240) % 1000) < 300 * CASE WHEN h % 30240 < 10080 THEN 1 ELSE [1, 1.05, 1.2][a + 1] END)::INT AS click
    FROM rows
) TO '{path}'
"""


def experiment_log(path: Path) -> str:
    """Write the log as Parquet; return its path."""
    duckdb.sql(_SQL.format(path=path))
    return str(path)
