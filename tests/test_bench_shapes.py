"""The generated logs of five shapes, and how the benchmark `shapes` sums up what it measured on them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import duckdb
import numpy as np
import pytest
import shapeworld
from shapes import SHAPES
from shapeworld import LOOKED

BENCH = Path(__file__).parent / "bench"
LOGS = {
    "search": "searches.parquet",
    "news": "impressions.json",
    "positives": "purchases.parquet",
    "stars": "ratings.csv",
    "sessions": "plays.csv",
}


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_shapes", BENCH / "shapes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module


@pytest.mark.parametrize("name", SHAPES)
def test_a_seed_gives_the_same_log_of_about_the_size(tmp_path: Path, name: str) -> None:
    files = []
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        SHAPES[name](tmp_path / folder, 5000, seed)
        files.append((tmp_path / folder / LOGS[name]).read_bytes())
    assert files[0] == files[1] != files[2]
    rows = duckdb.sql(f"SELECT count(*) FROM '{tmp_path}/a/{LOGS[name]}'").fetchall()[0][0]
    assert 4000 < rows < 6000


def test_a_place_further_down_is_looked_at_less() -> None:
    place = np.repeat(np.arange(10), 20_000)
    share = np.bincount(place, shapeworld.looked(np.random.default_rng(0), place)) / 20_000
    np.testing.assert_allclose(share, (1 + np.arange(10)) ** -LOOKED, atol=0.02)


def test_clicks_follow_the_taste_and_the_price_of_the_list() -> None:
    log = shapeworld.search(40_000, 5)["searches"]
    price = np.array([np.nan if v is None else v for v in log["price_eur"]], float)
    row = np.unique(log["search_id"], return_inverse=True)[1]
    median = np.array([np.nanmedian(price[row == k]) for k in range(200)])
    few = row < 200
    cheap = price[few] < median[row[few]]
    assert log["clicked"][few][cheap].mean() > 1.5 * log["clicked"][few][~cheap].mean()


def test_the_mean_gain_weighs_each_shape_once_and_knows_the_spread_of_its_logs(bench: ModuleType) -> None:
    mean, low, high = bench.mean_gain({"a": [0.01, 0.03], "b": [0.10, 0.10, 0.10, 0.10]})
    assert mean == pytest.approx(0.06)
    assert low < mean < high
    same = bench.mean_gain({"a": [0.02, 0.02], "b": [0.10, 0.10]})
    assert same == pytest.approx((0.06, 0.06, 0.06))  # shapes that differ are no spread
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        logs = {k: (k / 100 + rng.normal(0, 0.01, 3)).tolist() for k in range(5)}
        mean, low, high = bench.mean_gain(logs)
        held += low < 0.02 < high
    assert 0.92 < held / 400 < 0.98
