"""Features of the source item in a daily retraining: old trees meet the table that they learned on."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ranker_matching import written

from features.schema import I32, lookup
from ranker.bundle import Bundle, load_bundle
from ranker.candidates.cooccurrence import Cooccurrence
from ranker.config import load_config
from ranker.matching.matching import Matches
from ranker.offpolicy.target import Target
from ranker.train import train
from ranker.training.arms import Arms
from ranker.training.earlier_bundle import StartFrom, load_start
from ranker.training.prepared import Prepared, prepare

IDS = st.sets(st.integers(0, 12), min_size=1).map(sorted)


def near_by_id(table: Cooccurrence, ids: list[int]) -> dict[int, list[tuple[int, float]]]:
    """Return the neighbours of each item, nearest first."""
    rows = zip(ids, table.neighbour.tolist(), table.score.tolist(), strict=True)
    return {own: [(ids[k], s) for k, s in zip(near, score, strict=True) if k >= 0] for own, near, score in rows}


@settings(max_examples=100, deadline=None)
@given(IDS, IDS, st.integers(0, 99))
def test_a_table_in_another_catalogue_has_the_same_items_beside_each_other(
    was: list[int], now: list[int], seed: int
) -> None:
    rng, width = np.random.default_rng(seed), 3
    near = np.full((len(was), width), -1, np.int32)
    for row in near:
        own = rng.permutation(len(was))[: rng.integers(width + 1)]
        row[: len(own)] = own
    score = np.where(near >= 0, rng.random(near.shape), 0).astype(np.float32)
    table, ids = Cooccurrence(near, score), (np.array(was), np.array(now))
    moved = table.recoded(lookup(*ids), lookup(*reversed(ids)))
    before, after = near_by_id(table, was), near_by_id(moved, now)
    assert after == {own: [one for one in before.get(own, []) if one[0] in now] for own in now}
    assert (moved.neighbour.dtype, moved.score.dtype) == (np.int32, np.float32)
    assert (np.diff((moved.neighbour < 0).astype(int), axis=1) >= 0).all()  # -1 stands behind
    assert (moved.score[moved.neighbour < 0] == 0).all()


def of_toml(folder: Path, t1: float, where: str) -> Prepared:
    """Return the world's log with the items of a condition, split at t1."""
    folder.mkdir()
    toml = written(folder)
    text = toml.read_text()
    for file in ("log.parquet", "items.parquet"):
        text = text.replace(f'"{file}"', f"\"(SELECT * FROM '{file}' WHERE {where})\"")
    toml.write_text(text + f"[split]\nt1 = {t1}\nt2 = 0.8\n")
    return prepare(load_config(toml))


@pytest.fixture(scope="module")
def yesterday(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Without item 3, which comes before most others."""
    prepared = of_toml(tmp_path_factory.mktemp("kept") / "yesterday", 0.3, "item_id <> 3")
    train(prepared.config, prepared.config.folder / "bundle")
    return load_bundle(prepared.config.folder / "bundle")


@pytest.fixture(scope="module")
def today(yesterday: Bundle) -> Prepared:
    return of_toml(yesterday.folder.parent.parent / "today", 0.6, "item_id <> 70")


def same(was: Bundle, now: Matches, item_ids: I32) -> None:
    """Check that a table has the old one's neighbours, but for item 70, which today's log lacks."""
    assert isinstance(was.spec.matching, Matches)
    assert was.spec.matching.taken is not None
    assert now.taken is not None
    old = near_by_id(was.spec.matching.taken, was.state.catalog.item_ids.tolist())
    del old[70]
    assert near_by_id(now.taken, item_ids.tolist()) == {
        3: [], **{own: [one for one in near if one[0] != 70] for own, near in old.items()}
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["warm-start", "refit"])
def test_old_trees_meet_the_table_that_they_learned_on(
    yesterday: Bundle, today: Prepared, mode: str, tmp_path: Path
) -> None:
    start = StartFrom(mode, yesterday.folder, 0.9)  # type: ignore[arg-type]
    kept = load_start(start, today).rows_of(today)
    assert isinstance(kept.spec.matching, Matches)
    same(yesterday, kept.spec.matching, today.catalog.item_ids)
    # Not the table of today, and no fit of the one is taken for one of the other.
    at = today.spec.columns.index("source_item_cooccurrence")
    old, new = (Arms.of(of).rows("test", Arms.of(of).served_columns({})) for of in (kept, today))
    assert (old[:, at] != new[:, at]).mean() > 0.2
    np.testing.assert_array_equal(np.delete(old, at, 1), np.delete(new, at, 1))
    assert kept.key != today.key
    if mode == "refit":
        return
    train(today.config, tmp_path / "bundle", start=start)
    served = load_bundle(tmp_path / "bundle").spec.matching
    assert isinstance(served, Matches)
    same(yesterday, served, today.catalog.item_ids)


def test_a_bundle_on_another_log_has_its_own_table(yesterday: Bundle, today: Prepared) -> None:
    """So one whose trees went on is judged as it serves, and a log may lack what was counted."""
    target = Target.of(yesterday.folder, today, today.split.t3, 1 << 30)
    matching = target.bundle.spec.matching
    assert isinstance(matching, Matches)
    same(yesterday, matching, today.catalog.item_ids)
