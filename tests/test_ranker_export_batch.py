"""Lists of many users in a file: those that the server answers, user by user."""

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served import batch, pairlift, recording
from world import with_config

from features.errors import PairliftError
from features.schema import DAY
from ranker.bundle import Bundle
from ranker.export.batch import Wanted, write_lists
from ranker.lists.answers import without_deadlines
from ranker.pipeline import Pipeline
from ranker.request import BITS, Request
from ranker.settings import ExplorationSettings, SurfaceSettings


def ids_file(folder: Path, ids: list[object]) -> Path:
    pq.write_table(pa.table({"user_id": ids}), folder / "users.parquet")
    return folder / "users.parquet"


def test_each_list_is_what_the_server_answers(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ranker.export.batch.CHUNK", 7)  # the last chunk is a part of one
    as_of, out = bundle.state.end - 3 * DAY, tmp_path / "lists.parquet"
    found = write_lists(bundle, out, Wanted(as_of=as_of, surface="search", k=6))
    table = pq.read_table(out)
    catalog, log = bundle.state.catalog, bundle.state.histories
    begin, stop = log.before(np.arange(catalog.n_users, dtype=np.int32), np.full(catalog.n_users, as_of))
    users = np.flatnonzero(begin < stop)
    assert (found.users, found.rows, found.unknown, found.degraded) == (len(users), len(table), 0, {})
    pipeline, rows = Pipeline(replace(bundle, config=without_deadlines(bundle.config))), iter(table.to_pylist())
    for user in users.tolist():
        answer = pipeline.recommend(
            Request(user, as_of, state=bundle.state, surface=catalog.surfaces.index("search")), 6
        )
        for rank, (item, score, mask) in enumerate(zip(answer.item, answer.score, answer.sources, strict=True), 1):
            names = [name for name, bit in zip(answer.source_names, BITS, strict=False) if mask & bit]
            assert next(rows) == {
                "user_id": int(catalog.user_ids[user]), "rank": rank, "item_id": int(catalog.item_ids[item]),
                "score": score, "sources": names,
            }  # fmt: skip
    assert next(rows, None) is None
    pipeline.close()
    said = {key.decode(): value.decode() for key, value in table.schema.metadata.items() if key.startswith(b"pairlift")}
    assert said["pairlift.bundle"] == bundle.version
    assert (said["pairlift.surface"], said["pairlift.k"], said["pairlift.context"]) == ("search", "6", "{}")


def test_the_users_of_a_file_are_in_its_order_and_may_be_new(bundle: Bundle, tmp_path: Path) -> None:
    first, second = bundle.state.catalog.user_ids[[5, 2]].tolist()
    file = ids_file(tmp_path, [first, 77_777, second, first, None])
    found = write_lists(bundle, tmp_path / "lists.parquet", Wanted(users=file, k=3))
    rows = pq.read_table(tmp_path / "lists.parquet").to_pydict()
    assert list(dict.fromkeys(rows["user_id"])) == [first, 77_777, second]
    assert (found.users, found.rows, found.unknown) == (3, 9, 1)
    assert {tuple(s) for s, u in zip(rows["sources"], rows["user_id"], strict=True) if u == 77_777} == {("popular",)}


def test_a_surface_says_how_many_where_nobody_does(bundle: Bundle, tmp_path: Path) -> None:
    told = with_config(bundle, surfaces={"feed": SurfaceSettings(k=2)})
    file = ids_file(tmp_path, bundle.state.catalog.user_ids[:1].tolist())
    for surface, k, rows in (("feed", None, 2), ("feed", 4, 4), ("", None, 10)):
        assert write_lists(told, tmp_path / "x.parquet", Wanted(users=file, surface=surface, k=k)).rows == rows


def test_recorded_events_are_known(bundle: Bundle, bundle_folder: Path, tmp_path: Path) -> None:
    """Of the same log and time as a server's, the lists are its lists."""
    ids, end = bundle.state.catalog.user_ids[:8].tolist(), bundle.state.end
    items, as_of = bundle.state.catalog.item_ids[8:16].tolist(), end + DAY
    with recording(bundle, tmp_path / "log") as (_, client):
        list(client.record([batch(list(range(8)), ids, items, [end] * 8, play=[1.0] * 8)]))
    with recording(bundle, tmp_path / "log") as (_, client):  # which has counted their demand too
        want = {user: [of.item for of in client.recommend(user, 4, as_of=as_of).items] for user in ids}
    file = ids_file(tmp_path, ids)
    write_lists(bundle, tmp_path / "lists.parquet", Wanted(users=file, k=4, as_of=as_of), tmp_path / "log")
    rows = pq.read_table(tmp_path / "lists.parquet").to_pylist()
    assert {user: [row["item_id"] for row in rows if row["user_id"] == user] for user in ids} == want


def test_the_command_says_what_it_wrote_and_what_is_wrong(bundle_folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    out, file = tmp_path / "lists.parquet", ids_file(tmp_path, [1, 2])
    code, said = pairlift("batch", bundle_folder, "--users", file, "--surface", "feed", "--k", 2, "--out", out)
    assert code == 0, said
    assert f"wrote {out}: 4 rows of 2 users, 2 of them not known" in said
    before = out.read_bytes()
    texts = tmp_path / "texts.csv"
    texts.write_text("user_id\nanna\n")
    for options, problem in (
        (
            ["--users", file, "--surface", "fed"],
            "--surface fed: the bundle knows no such surface (did you mean 'feed'?)",
        ),
        (["--users", file, "--k", 51], r"--k 51: at most 50 ([serve] max_k of the bundle) was expected"),
        (["--users", texts], f"--users {texts}: integer ids were expected, as the bundle has them"),
        (["--users", tmp_path / "nobody.csv"], f"--users {tmp_path}/nobody.csv: "),
        (["--users", file, "--context", "device=tv"], "--context device: the bundle has no such name"),
    ):
        code, said = pairlift("batch", bundle_folder, *options, "--out", out)
        assert code == 2
        assert problem in said.replace("\n", " ")
    assert out.read_bytes() == before
    code, said = pairlift("batch", bundle_folder, "--users", "all", "--out", tmp_path / "no" / "lists.parquet")
    assert code == 2
    assert "there is no folder" in said
    code, said = pairlift("batch", bundle_folder, "--users", "all", "--out", tmp_path / "lists.csv")
    assert code == 2
    assert "a name that ends in .parquet was expected, for that is what is written" in " ".join(said.split())
    assert not (tmp_path / "lists.csv").exists()


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        ("", "ids were expected, found none; write an id into each line, below `user_id`"),
        ("user_id\n", "ids were expected, found none"),
        ("user_id,age\n", "ids were expected, found none"),
        ([3, 2**64 - 1], "up to 9223372036854775807 were expected, as logs have them; found 18446744073709551615"),
    ],
)
def test_a_file_of_no_ids_or_of_too_large_ones_is_a_sentence(
    bundle_folder: Path, tmp_path: Path, ids: str | list[int], problem: str
) -> None:
    file = tmp_path / ("ids.csv" if isinstance(ids, str) else "ids.parquet")
    if isinstance(ids, str):
        file.write_text(ids)
    else:
        pq.write_table(pa.table({"user_id": pa.array(ids, pa.uint64())}), file)
    code, said = pairlift("batch", bundle_folder, "--users", file, "--out", tmp_path / "x.parquet")
    assert code == 2, said
    assert problem in " ".join(said.split())
    assert list(tmp_path.iterdir()) == [file]


def test_the_file_of_users_is_not_written_over(bundle_folder: Path, tmp_path: Path) -> None:
    file = ids_file(tmp_path, [1, 2])
    before = file.read_bytes()
    (tmp_path / "link.parquet").symlink_to(file)
    (tmp_path / "hard.parquet").hardlink_to(file)
    (tmp_path / "sub").mkdir()
    for out in (file, tmp_path / "sub" / ".." / file.name, tmp_path / "link.parquet", tmp_path / "hard.parquet"):
        code, said = pairlift("batch", bundle_folder, "--users", file, "--out", out)
        assert (code, f"is the file of --users, {file}, and would replace it" in " ".join(said.split())) == (2, True)
    assert file.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_end_leaves_what_was_there(
    bundle_folder: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, handler = tmp_path / "lists.parquet", signal.getsignal(number)
    out.write_text("old")
    monkeypatch.setattr(Pipeline, "recommend", lambda *_: signal.raise_signal(number))
    code, said = pairlift("batch", bundle_folder, "--users", "all", "--out", out)
    assert (code, f"stopped by {number.name}: {out} is as it was before" in " ".join(said.split())) == (
        128 + number,
        True,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["lists.parquet"]
    assert out.read_text() == "old"
    assert signal.getsignal(number) == handler


def test_no_order_is_drawn_and_that_is_said(
    bundle: Bundle, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, exploring = tmp_path / "lists.parquet", with_config(bundle, exploration=ExplorationSettings(share=1))
    write_lists(bundle, out, Wanted(k=5))
    best = pq.read_table(out)
    assert best.schema.metadata[b"pairlift.order"] == b"best"
    for of, says in ((exploring, True), (bundle, False)):
        monkeypatch.setattr("ranker.bundle.load_bundle", lambda _, of=of: of)
        code, said = pairlift("batch", bundle_folder, "--users", "all", "--k", 5, "--out", out)
        assert (code, "[exploration] of the bundle draws none here" in said) == (0, says), said
        assert pq.read_table(out).equals(best)


def test_lists_that_fail_on_the_way_leave_the_old_file(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "lists.parquet"
    out.write_text("old")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Pipeline, "recommend", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_lists(bundle, out, Wanted())
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["lists.parquet"]


def test_a_k_above_the_limit_is_refused_before_any_work(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(PairliftError, match="--k 999: at most 50"):
        write_lists(bundle, tmp_path / "x.parquet", Wanted(k=999))
    assert not list(tmp_path.iterdir())
