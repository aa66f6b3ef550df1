"""Vectors in files: those that the plugin serves with, of the users that are meant, with what they are of."""

import json
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served import batch, pairlift, recording, user_id
from world import bundle_of

from features.baselines import ALS
from features.errors import PairliftError
from features.schema import DAY, Requests
from ranker.export.asked import ids_of
from ranker.export.vectors import ITEMS, USERS, Wanted, write_vectors


@pytest.fixture(scope="module")
def late(parts):
    """The world's bundle, whose ALS sees events a day late."""
    trained = parts.plugins["als"]
    plugin = ALS(**trained.settings.model_dump() | {"lag": "1d"})
    plugin.best_grade = trained.best_grade
    plugin._take(trained.item_vectors)
    return bundle_of(parts._replace(plugins={"als": plugin}))


def read(path):
    """(ids, float32[n, d] vectors, the metadata)."""
    table = pq.read_table(path)
    said = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    return table[0].to_pylist(), np.array(table["vector"].to_pylist(), np.float32), said


def test_a_users_vector_times_an_items_is_what_is_served(late, world, tmp_path, monkeypatch):
    monkeypatch.setattr("ranker.export.vectors.CHUNK", 7)
    as_of = late.state.end - DAY
    users, items = write_vectors(late, tmp_path / "out", Wanted(as_of=as_of, surface="search"))
    ids, user_vectors, said = read(tmp_path / "out" / USERS)
    item_ids, item_vectors, said_of_items = read(tmp_path / "out" / ITEMS)
    some = np.unique(world.log.user[world.log.ts < as_of])
    assert (users.rows, users.without) == (len(ids), len(some) - len(ids))
    assert len(ids) > 30
    assert said == {
        "pairlift.bundle": "world", "pairlift.plugin": "als", "pairlift.class": "features.baselines:ALS",
        "pairlift.as_of": said["pairlift.as_of"], "pairlift.lag": "1d",
        "pairlift.context": '{"surface": "search", "attributes": {}}',
    }  # fmt: skip
    assert "pairlift.as_of" not in said_of_items
    assert pq.read_schema(tmp_path / "out" / USERS).field("vector").type == pa.list_(pa.float32(), 8)
    known = ~np.isnan(late.plugins["als"].item_vectors[:, 0])
    assert item_ids == world.catalog.item_ids[known].tolist()
    assert (items.rows, items.without) == (known.sum(), (~known).sum())
    asked = some.astype(np.int32)
    item = np.flatnonzero(known).astype(np.int32)
    requests = Requests(
        user=asked, as_of=np.full(len(asked), as_of), surface=np.full(len(asked), 1, np.int16),
        offsets=np.arange(len(asked) + 1) * len(item), item=np.tile(item, len(asked)),
    )  # fmt: skip
    dot = late.plugins["als"].values(requests, late.state.histories).reshape(len(asked), len(item))
    having = ~np.isnan(dot[:, 0])
    assert ids == world.catalog.user_ids[asked[having]].tolist()
    np.testing.assert_allclose(user_vectors @ item_vectors.T, dot[having], rtol=1e-4, atol=1e-5)


def test_users_of_a_file_in_its_order_and_those_that_nobody_knows(late, world, tmp_path):
    wanted = [user_id(world, 7), 5, user_id(world, 2), user_id(world, 7)]
    duckdb.sql(f"COPY (SELECT unnest({wanted}) AS user_id, 'x' AS why) TO '{tmp_path}/ids.csv'")
    (users,) = write_vectors(late, tmp_path / "out", Wanted(sides=(USERS,), ids=tmp_path / "ids.csv"))
    ids, vectors, _ = read(users.path)
    assert (ids, users.rows, users.without) == ([user_id(world, 7), user_id(world, 2)], 2, 1)
    (all_users,) = write_vectors(late, tmp_path / "all", Wanted(sides=(USERS,)))
    all_ids, all_vectors, _ = read(all_users.path)
    np.testing.assert_allclose(vectors, all_vectors[[all_ids.index(one) for one in ids]], rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "out" / ITEMS).exists()


def test_a_side_that_is_not_wanted_stays_where_it_is_of_the_same_bundle(late, tmp_path):
    out = tmp_path / "out"
    write_vectors(late, out, Wanted())
    before = {name: (out / name).read_bytes() for name in (USERS, ITEMS)}
    (users,) = write_vectors(late, out, Wanted(sides=(USERS,), as_of=late.state.end - DAY))
    assert sorted(path.name for path in out.iterdir()) == [ITEMS, USERS]
    assert (out / ITEMS).read_bytes() == before[ITEMS]
    assert users.path.read_bytes() != before[USERS]
    others = [(replace(late, version="next"), "items.parquet would stay, but bundle is world, here it is next")]
    others.append((replace(late, plugins={"mine": late.plugins["als"]}, config=late.config.model_copy(
        update={"plugins": {"mine": late.config.plugins["als"]}})), "but plugin is als, here it is mine"))  # fmt: skip
    for other, said in others:
        with pytest.raises(PairliftError, match=said):
            write_vectors(other, out, Wanted(sides=(USERS,)))
    assert (out / ITEMS).read_bytes() == before[ITEMS]
    write_vectors(others[0][0], out, Wanted())  # both sides
    (out / ITEMS).write_bytes(b"PAR1 and no more")
    with pytest.raises(PairliftError, match=r"items.parquet would stay, but bundle is unknown, here it is world"):
        write_vectors(late, out, Wanted(sides=(USERS,)))


def test_recorded_events_count_and_so_do_users_who_came_with_them(bundle, world, tmp_path):
    end, items = bundle.state.end, world.catalog.item_ids[[3, 4, 5]]
    old, new = user_id(world, 1), 3
    with recording(bundle, tmp_path / "log") as (_, client):
        list(client.record([batch([1, 2, 3], [old, new, new], items, [end, end, end + 1], play=[1.0] * 3)]))
        (live,) = write_vectors(bundle, tmp_path / "live", Wanted(sides=(USERS,)), tmp_path / "log")
    ids, vectors, _ = read(live.path)
    (before,) = write_vectors(bundle, tmp_path / "before", Wanted(sides=(USERS,)))
    old_ids, old_vectors, _ = read(before.path)
    assert set(ids) - set(old_ids) == {new}
    moved = [one for one, v in zip(old_ids, old_vectors, strict=True) if not np.array_equal(vectors[ids.index(one)], v)]
    assert moved == [old]
    (as_of,) = write_vectors(bundle, tmp_path / "as_of", Wanted(sides=(USERS,), as_of=end), tmp_path / "log")
    np.testing.assert_array_equal(read(as_of.path)[1], old_vectors)


def test_text_ids_stay_text(text_bundle, tmp_path):
    write_vectors(text_bundle, tmp_path / "out", Wanted())
    ids, _, said = read(tmp_path / "out" / USERS)
    assert ids[0].startswith("user-")
    assert said["pairlift.lag"] == "none"
    (nobody,) = write_vectors(text_bundle, tmp_path / "nobody", Wanted(sides=(USERS,), as_of=0))
    assert nobody.rows == 0
    assert pq.read_schema(nobody.path).field("user_id").type == pa.string()  # as on a day with users
    duckdb.sql(f"COPY (SELECT 7 AS user_id) TO '{tmp_path}/ids.parquet'")
    with pytest.raises(PairliftError, match="text ids were expected, as the bundle has them; found int32"):
        write_vectors(text_bundle, tmp_path / "out", Wanted(ids=tmp_path / "ids.parquet"))
    assert read(tmp_path / "out" / USERS)[0] == ids  # what was there before
    (tmp_path / "bare.csv").write_text("\n".join(ids[:3]) + "\n")  # without a header
    assert ids_of("--ids", tmp_path / "bare.csv", text_bundle.state.catalog.user_ids) == ids[:3]


def test_what_cannot_be_written_is_a_sentence(bundle, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    duckdb.sql(f"COPY (SELECT 1 AS a, 2 AS b) TO '{tmp_path}/two.csv'")
    without = replace(bundle, plugins={})
    for said, given, wanted, out in [
        ("holds mine.txt", bundle, Wanted(), "other"),
        ("it is a file", bundle, Wanted(), "two.csv"),
        ("--plugin asl: no served plugin of that name.*: als.*did you mean", bundle, Wanted(plugin="asl"), "x"),
        ("no served plugin has vectors of users and items; the bundle has: none that does", without, Wanted(), "x"),
        ("--surface fed: .*did you mean 'feed'", bundle, Wanted(surface="fed"), "x"),
        ("--context device: the bundle has no such name", bundle, Wanted(context={"device": "x"}), "x"),
        ("one column, or one named user_id, was expected, found a, b", bundle, Wanted(ids=tmp_path / "two.csv"), "x"),
        ("--ids .*nothing.csv", bundle, Wanted(ids=tmp_path / "nothing.csv"), "x"),
    ]:  # fmt: skip
        with pytest.raises(PairliftError, match=said):
            write_vectors(given, tmp_path / out, wanted)
    with pytest.raises(PairliftError, match="the folder of `pairlift serve --log` was expected"):
        write_vectors(bundle, tmp_path / "x", Wanted(), tmp_path / "other")
    assert not (tmp_path / "x").exists()
    assert (tmp_path / "other" / "mine.txt").read_text() == "mine"


def test_the_command(bundle_folder, tmp_path):
    code, said = pairlift("vectors", bundle_folder, "--out", tmp_path / "out", "--as-of", "2023-12-01")
    assert code == 0, said
    assert f"wrote {tmp_path / 'out' / USERS}: 40 vectors; 0 have none" in said
    context = json.loads(read(tmp_path / "out" / USERS)[2]["pairlift.context"])
    assert context == {"surface": "", "attributes": {}}
    code, said = pairlift("vectors", bundle_folder, "--out", tmp_path / "y", "--only", "items", "--ids", bundle_folder)
    assert code == 2
