"""The verbs on a small log: what a user sees, and what a mistake gets."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from priced import write_priced
from served import ROOT, pairlift, recording, serving, user_id
from world import write_world

from features import progress
from features.errors import PairliftError
from features.log.dataset import import_log
from ranker.bundle import load_bundle
from ranker.candidates import cooccurrence
from ranker.cli.ask import rank, recommend
from ranker.cli.main import cli
from ranker.cli.record import Refused
from ranker.cli.serve import serve
from ranker.client import Client
from ranker.code_hash import hash_source
from ranker.config import load_config
from ranker.export.onnx import run_onnx
from ranker.training.arms import Arms
from ranker.training.plugins import plugin_stage
from ranker.training.prepared import prepare
from ranker.training.wanted import asked_in_slices


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, lines = tmp_path_factory.mktemp("cli"), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "EVERY", 0)
        patch.setattr(progress.log, "info", lambda text, *values: lines.append(text % values))
        code, said = pairlift("train", write_world(folder), "--out", folder / "bundle")
    assert code == 0, said
    assert "test PairAccuracy" in said
    assert "ndcg@10    of lists" in said
    for bar in ("liked part", "proposals", "wanted part", "lists"):  # no long silence
        assert any(line.startswith(f"{bar}: ") for line in lines), bar
    assert "\r" not in said
    return folder / "bundle"


def test_validate_tells_rows_grades_pairs_and_what_is_odd(tmp_path: Path) -> None:
    toml, tagged = write_world(tmp_path), "(SELECT DISTINCT item_id, [item_id, 7] AS tags FROM 'log.parquet')"
    toml.write_text(f'{toml.read_text()}[items]\nsource = "{tagged}"\ncolumns = {{tags = "tags"}}\n')
    code, said = pairlift("validate", toml)
    assert code == 0, said
    assert "[items.columns] tags is a list of whole numbers: each is a category of its own; if they are" in said
    for part in ("9,600 events, 60 users", "(no grade)", "like > skip", "pairs of weight 2", "test ", "NULL"):
        assert part in said, part


def test_validate_tells_the_shares_of_arms(tmp_path: Path) -> None:
    toml = write_world(tmp_path)
    by_arm = '[[counters]]\nkey = ["item"]\nevent = "impression"\nstats = ["count"]\nby_arm = true\n'
    for arm, parts in {
        "CASE user_id % 4 WHEN 0 THEN 'new' WHEN 1 THEN 'old' END": (
            "events per arm", f"  {'new':20} {'2,400':>12}   25.0 %", f"  {'(no arm)':20} {'4,800':>12}   50.0 %",
        ),
        "NULL": ("[events] arm is NULL in every event: [[counters]] by_arm count as others do",),
    }.items():  # fmt: skip
        text = f'[events]\narm = "{arm}"\n'
        changed = tmp_path / "arms.toml"
        changed.write_text(toml.read_text().replace("[events]\n", text) + by_arm)
        code, said = pairlift("validate", changed)
        assert code == 0, said
        for part in parts:
            assert part in said, said


def test_validate_does_not_take_counted_values_of_candidates_for_feedback(tmp_path: Path) -> None:
    code, said = pairlift("validate", write_priced(tmp_path))
    assert code == 0, said
    assert "feedback 'play' is unknown (NULL)" in said
    assert "feedback 'candidate_" not in said


def test_validate_imports_once_and_refuses_what_uplift_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    monkeypatch.setattr(
        "ranker.training.importing.import_log", lambda mapping, to: made.append(to) or import_log(mapping, to)
    )
    config = write_world(tmp_path)
    hidden = "read_parquet(concat('{data}/lo', 'g.parquet'))"  # whose files are not known, so that it is read anew
    text = config.read_text().replace('source = "log.parquet"', f'source = "{hidden}"')
    config.write_text(text)
    code, said = pairlift("validate", config)
    assert (code, len(made)) == (0, 1), said
    config.write_text(text.replace("[uplift]", '[uplift]\nfamiliar = ["genre"]'))
    code, said = pairlift("validate", config)
    assert code == 2
    assert "[uplift] familiar: 'genre' is not a text or a list of [items.columns]" in said


def test_validate_reads_the_slices_of_uplift(tmp_path: Path) -> None:
    config = write_world(tmp_path)
    config.write_text(config.read_text() + "\n[uplift.slices]\nmine = 'context.no_such_thing'\n")
    code, said = pairlift("validate", config)
    assert code == 2
    assert "[uplift.slices] mine: " in said
    assert "events per grade" in said  # what was found before


def test_validate_tells_what_lists_are_learned_from_and_warns_of_little(tmp_path: Path) -> None:
    code, said = pairlift("validate", write_world(tmp_path))
    assert code == 0, said
    assert "wanted later (listen or like) of items new to them" in said
    prepared = prepare(load_config(tmp_path / "pairlift.toml"))
    train, validation = map(len, asked_in_slices(prepared))
    assert re.search(rf"learned from +{train} requests of the booster's period \(at most 5,000\)$", said, re.MULTILINE)
    assert re.search(rf"stopped by +{validation} requests .*WARNING: of fewer than 200", said)
    assert re.search(r"measured by +\d+ users of the test; WARNING", said)


def test_validate_prints_what_it_found_before_what_stops_a_training(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["validate", str(write_world(tmp_path, where="play >= 0.9"))])
    assert done.exit_code == 2
    assert "events per grade" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("Error: cannot be trained on: ")
    assert "events per grade" not in done.stderr


def test_no_group_vanishes_whatever_its_request_id(tmp_path: Path) -> None:
    """The ids are hashes, as UUIDs in no order of time; t0 and t3 cut off both ends, and each boundary some request."""
    config = write_world(tmp_path, request='request_id = "md5(request::VARCHAR)"', request_ids=True)
    quantiles = {"t0": 0.1, "t1": 0.45, "t2": 0.7, "t3": 0.9}
    config.write_text(config.read_text() + "[split]\n" + "".join(f"{k} = {q}\n" for k, q in quantiles.items()))
    code, said = pairlift("validate", config)
    assert code == 0, said
    rows = duckdb.sql(f"SELECT ts, request, play IS NOT NULL FROM '{tmp_path}/log.parquet' ORDER BY ts").fetchall()
    bounds = [rows[int(q * len(rows))][0] for q in quantiles.values()]
    for k, period in enumerate(("towers", "booster", "test")):
        inside = [request for ts, request, graded in rows if graded and bounds[k] <= ts < bounds[k + 1]]
        assert re.search(rf"^{period} .*: {len(set(inside)):,} groups, {len(inside):,} imp", said, re.MULTILINE), said
    for name, bound in zip(quantiles, bounds, strict=True):
        before, after = ({r for ts, r, graded in rows if graded and (ts < bound) == side} for side in (True, False))
        line = next(line for line in said.splitlines() if line.startswith(f"  {name} "))
        assert f": cuts {len(before & after):,} requests and 0 sittings" in line, said
        beyond = {"t0": before, "t3": after}.get(name)
        if beyond is not None:
            n = sum(graded and (ts < bound) == (name == "t0") for ts, _, graded in rows)
            assert f"; {len(beyond):,} groups of {n:,} impressions lie" in line, said


def test_reaching_the_most_trees_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = write_world(tmp_path)
    config.write_text(config.read_text().replace("trees = 60", "trees = 12"))
    code, said = pairlift("train", config, "--out", tmp_path / "bundle")
    assert code == 0, said
    assert "WARNING: the liked part had not stopped getting better when [booster] trees = 12 ended it" in said
    assert "wanted part: 3 of 3 forests had not stopped" in caplog.text
    assert re.search(r"^at_cap +True$", pairlift("bundle", "show", tmp_path / "bundle")[1], re.MULTILINE)


def test_little_memory_makes_more_blocks_and_the_same_table(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, last = [], []
    blocks = cooccurrence._blocks
    monkeypatch.setattr(cooccurrence, "_blocks", lambda *of: made.append(len(list(blocks(*of)))) or blocks(*of))
    for memory in ("2", "0.000001"):
        code, said = pairlift("train", trained.parent / "pairlift.toml", "--out", tmp_path / memory, "--memory", memory)
        assert code == 0, said
        last.append(made[-1])  # of the bundle's table: there are others, as of the cut
        for name in ("neighbour.npy", "score.npy"):
            wanted = (trained / "cooccurrence" / name).read_bytes()
            assert (tmp_path / memory / "cooccurrence" / name).read_bytes() == wanted
    assert last[0] < last[1] == 80  # of one item each


def test_uplift_prints_and_writes(tmp_path: Path) -> None:
    code, said = pairlift("uplift", write_world(tmp_path), "--plugin", "noise", "--out", tmp_path / "report")
    assert code == 0
    assert "not shown to be useful" in said
    written = json.loads((tmp_path / "report" / "uplift.json").read_text())
    for key in [
        "metric",
        "pairs",
        "users",
        "effective_users",
        "without",
        "with",
        "relative_uplift",
        "ci95",
        "pair_accuracy_catboost",
        "tie_share",
        "macro",
    ]:
        assert key in written, key
    for key in [
        "fits",
        "seeds",
        "seed_sd",
        "fit_sd",
        "controls",
        "missingness",
        "trees",
        "shuffled",
        "ndcg@10",
        "random",
        "popularity",
        "column_alone",
        "slices",
    ]:
        assert key in written, key


def test_a_bundle_is_shown_verified_and_the_one_that_was_measured(trained: Path) -> None:
    code, said = pairlift("bundle", "show", trained)
    assert code == 0
    for figure in ("pair_accuracy", "ndcg@10", "map", "mrr", "auc", "pair_accuracy_catboost"):
        assert re.search(rf"^{figure}( of shown)? +0\.\d+$", said, re.MULTILINE)
    assert re.search(r"^recall@10 +of lists: 0\.\d+; the most popular items 0\.\d+: [+-]0", said, re.MULTILINE)
    assert "als__dot" in said
    assert "source__popular" in said
    parts = json.loads((trained / "importance.json").read_text())
    assert parts["liked"]["columns"]["als__dot"]["direction"] > 0
    assert list(parts) == ["liked", "wanted"]
    assert pairlift("bundle", "verify", trained)[0] == 0
    loaded = load_bundle(trained)
    prepared = prepare(load_config(trained.parent / "pairlift.toml"))
    arms = Arms.of(prepared)
    plugin = plugin_stage(prepared, "als", 0)
    columns = arms.plugin_columns("als", plugin)
    arm = arms.fit("als", columns, 0)
    rows = np.concatenate([arms.base.values["test"], columns.values["test"]], axis=1)
    np.testing.assert_array_equal(loaded.score(rows), arm.scores)


def test_a_bundles_forest_is_written_as_onnx(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = pairlift("bundle", "onnx", trained, "--out", tmp_path / "forest.onnx")
    assert code == 0, said
    loaded = load_bundle(trained)
    rows = np.random.default_rng(0).uniform(0, 3, (50, len(loaded.columns))).astype(np.float32)
    content = (tmp_path / "forest.onnx").read_bytes()
    np.testing.assert_allclose(run_onnx(content, rows), loaded.score(rows), rtol=1e-12)
    figures = {p.key: p.value for p in onnx.load_from_string(content).metadata_props}
    assert (json.loads(figures["columns"]), figures["bundle"]) == (list(loaded.columns), loaded.version)
    assert figures["part"] == "liked"
    code, said = pairlift("bundle", "onnx", trained, "--part", "wanted", "--out", tmp_path / "wanted.onnx")
    assert code == 0, said
    rows = np.random.default_rng(0).uniform(0, 3, (50, len(loaded.wanted_columns))).astype(np.float32)
    rows[::3, loaded.wanted_columns.index("source__popular")] = np.nan
    content = (tmp_path / "wanted.onnx").read_bytes()
    np.testing.assert_allclose(run_onnx(content, rows), loaded.score_wanted(rows), rtol=1e-12)
    figures = {p.key: p.value for p in onnx.load_from_string(content).metadata_props}
    assert (json.loads(figures["columns"]), figures["part"]) == (list(loaded.wanted_columns), "wanted")
    code, said = pairlift("bundle", "onnx", trained, "--out", tmp_path / "none" / "forest.onnx")
    assert (code, "there is no folder" in said) == (2, True)
    monkeypatch.setattr("ranker.export.onnx.run_onnx", lambda _, rows: np.full(len(rows), np.nan))
    code, said = pairlift("bundle", "onnx", trained, "--out", tmp_path / "wrong.onnx")
    assert (code, "gives other scores than LightGBM" in said) == (2, True), said


@pytest.mark.parametrize("name", ["booster.txt", "snapshot/histories/ts.npy", "pairlift.toml", "manifest.json"])
def test_a_changed_byte_is_refused(trained: Path, name: str) -> None:
    path = trained / name
    content = path.read_bytes()
    at = content.rindex(b'"snapshot_time"') + 20 if name == "manifest.json" else len(content) // 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    try:
        code, said = pairlift("bundle", "verify", trained)
        assert code == 2
        assert "damaged" in said
        assert name in said
        with pytest.raises(PairliftError):
            load_bundle(trained)
    finally:
        path.write_bytes(content)


def test_a_failed_training_leaves_the_old_bundle_alone(trained: Path) -> None:
    before = sorted(p.name for p in trained.parent.iterdir())
    config = trained.parent / "broken.toml"
    config.write_text(
        (trained.parent / "pairlift.toml").read_text().replace("trees = 60", "trees = 60\nparams.num_leaves = -4")
    )
    code, said = pairlift("train", config, "--out", trained)
    assert (code, "num_leaves" in said) == (2, True)
    config.unlink()
    assert sorted(p.name for p in trained.parent.iterdir()) == before
    assert pairlift("bundle", "verify", trained)[0] == 0


def test_init_writes_once(tmp_path: Path) -> None:
    assert pairlift("init", tmp_path / "a")[0] == 0
    code, said = pairlift("init", tmp_path / "a")
    assert (code, "is there already" in said) == (2, True)
    code, said = pairlift("init", tmp_path / "b", "--example", "movilens")
    assert (code, "did you mean 'movielens'" in said) == (2, True)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('window = "30m"', 'windw = "30m"', "pairing.windw: unknown key (did you mean 'window'?)"),
        ('window = "30m"', "window = 30", "a duration such as"),
        ("[booster]", "[boster]", "boster: unknown key (did you mean 'booster'?)"),
        ('root = "."', 'root = "nowhere"', "No files found"),
        ('when = "play < 0.3"', 'when = "plays < 0.3"', "plays"),
        ('plugins = ["als"]', 'plugins = ["asl"]', "did you mean 'als'"),
        ("factors = 16", "factors = 0", "[plugins.als]: factors"),
        ("factors = 16", "factros = 16", "[plugins.als]: factros: unknown key (did you mean 'factors'?)"),
        ("features.baselines:ALS", "features.baselines:SLA", "has no attribute 'SLA'"),
        ("fits = 2", "draws = 400", "uplift: draws: intervals are computed"),
        ("trees = 60", "params = {seed = 1}", "Pairlift sets this: see [uplift] seeds"),
        ("trees = 60", "params = {deterministic = false}", "Pairlift sets this: it is the same in every fit"),
        ("trees = 60", "params = {num_leafs = 3}", "did you mean 'num_leaves'"),
        ('name = "like"', 'name = "sampled"', "reserved name"),
        ("[booster]", "[split]\nt1 = 0.999999\n[booster]", "t0 <= t1 < t2 < t3"),
        ("[booster]", "[split]\nt1 = 1999-01-01\n[booster]", "t0 <= t1 < t2 < t3"),
        ("[booster]", '[time]\nzone = "Mars"\n[booster]', "is not a time zone"),
        (
            "[booster]",
            "[[counters]]\nkey = ['usr']\nevent = 'like'\nstats = ['count']\n[booster]",
            "did you mean 'user'",
        ),
        ("[grades]]", "[grades", "is not a TOML file"),
        ("[booster]", "[sources]\nnearest = false\n[booster]", ""),
        ("[booster]", '[time]\nzone = "Europe"\n[booster]', "is not a time zone"),
        ('window = "30m"', 'window = "999999999999d"', "at most 100 years"),
        ("seeds = [0, 1, 2]", "seeds = [-1]", "a number of at least 0 was expected, found -1"),
        ("seeds = [0, 1, 2]", "seeds = [1, 1]", "distinct seeds"),
        ("trees = 60", "trees = true", "an integer was expected, found true"),
        ('name = "world"', 'name = "world"\npath = "x"', "path: unknown key"),
        ('root = "."', 'root = "$NO_SUCH_VARIABLE/x"', "NO_SUCH_VARIABLE is not set"),
        ('root = "."', 'work = "log.parquet"', "a file is in its way"),
        ("features.baselines:ALS", ".baselines:ALS", "module:Class"),
        ("trees = 60", "params = {num_leavs = 3}", "did you mean 'num_leaves'"),
        ("[booster]", "[booster.monotone]\nals__dto = 1\n[booster]", "did you mean 'als__dot'"),
        ("[booster]", "[booster.monotone]\nals__dot = 1\nnoise__noise = -1\n[booster]", ""),
        ("trees = 60", "params = {monotone_constraints = [1]}", "name the columns instead"),
        ("play >= 0.9", "play >= 99", ""),
    ],
)
def test_a_mistake_is_a_sentence_and_status_2(tmp_path: Path, old: str, new: str, says: str) -> None:
    config = write_world(tmp_path)
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    code, said = pairlift("train", config, "--out", tmp_path / "bundle")
    if says:
        assert code == 2, said
        assert says in said
        assert "Traceback" not in said
        assert not (tmp_path / "bundle").exists()
    else:
        assert code == 0  # a grade that nothing reaches is no mistake, nor is a constraint on another arm's column


def test_unknown_plugins_and_missing_files_are_told(tmp_path: Path) -> None:
    config = write_world(tmp_path)
    code, said = pairlift("uplift", config, "--plugin", "nois", "--out", tmp_path / "none")
    assert (code, "did you mean 'noise'" in said) == (2, True)
    assert not (tmp_path / "none").exists()
    for verb in ("uplift", "lists", "study"):
        words = {"uplift": ["--plugin", "noise"], "study": ["--study", "history"]}.get(verb, [])
        code, said = pairlift(verb, config, *words, "--out", config / "none")
        assert (code, f"{config} is not a folder; name another place" in said) == (2, True), said
    code, said = pairlift("validate", tmp_path / "no.toml")
    assert (code, "pairlift init" in said) == (2, True)
    code, said = pairlift("bundle", "show", tmp_path)
    assert (code, "is not a bundle" in said) == (2, True)


def test_a_bundle_never_takes_the_place_of_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_world(tmp_path)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    monkeypatch.chdir(tmp_path)
    for out in (tmp_path, ".", "..", "precious", "log.parquet", "log.parquet/b"):
        code, said = pairlift("train", config, "--out", out)
        assert code == 2, (out, said)
    assert (tmp_path / "precious" / "file").exists()
    assert not (tmp_path / "work").exists()  # refused before any work


def test_every_flipped_byte_of_a_manifest_is_refused(trained: Path) -> None:
    path = trained / "manifest.json"
    content = path.read_bytes()
    try:
        for at in range(0, len(content), 97):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            with pytest.raises(PairliftError):
                load_bundle(trained)
        path.write_bytes(content)
        (trained / "stray").touch()
        with pytest.raises(PairliftError, match="stray: not in the manifest"):
            load_bundle(trained)
    finally:
        (trained / "stray").unlink(missing_ok=True)
        path.write_bytes(content)


def test_validate_tells_how_many_rows_repeat_an_event_id_also_when_the_import_is_reused(tmp_path):
    path = write_world(tmp_path)
    rows = pq.read_table(tmp_path / "log.parquet")
    rows = rows.append_column("event_id", pa.array(range(len(rows))))
    pq.write_table(pa.concat_tables([rows, rows.slice(5, 20)]), tmp_path / "log.parquet")
    for _ in range(2):
        done = CliRunner().invoke(cli, ["validate", str(path)])
        assert done.exit_code == 0, done.output
        assert "9,600 events, 60 users" in done.output
        assert "20 rows repeated the event_id of another and were dropped, the first of each kept" in done.output


def run(command, *arguments):
    return CliRunner().invoke(command, list(arguments))


def test_the_recommend_command(server, world, client):
    result = run(recommend, "--user", str(user_id(world, 3)), "--k", "4", "--address", server.address)
    assert result.exit_code == 0, result.output
    head, *rows, foot = result.stdout.splitlines()
    assert head.split() == ["rank", "item", "score", "sources"]
    expected = client.recommend(user_id(world, 3), 4)
    assert [row.split()[1] for row in rows] == [str(item.item) for item in expected.items]
    assert "bundle world, snapshot 2023-" in foot


def test_the_commands_explain(server, world):
    result = run(
        recommend,
        "--user",
        str(user_id(world, 3)),
        "--explain",
        "--surface",
        "feed",
        "--address",
        server.address,
    )
    assert {"liked", "wanted"} <= set(result.stdout.splitlines()[0].split())
    assert "source popular:" in result.stdout
    assert "filter seen:" in result.stdout
    assert "took sources" in result.stdout
    assert "item__" in result.stdout or "als__dot" in result.stdout


def test_a_bundle_whose_sources_are_all_off_is_trained_and_says_why_its_lists_are_empty(tmp_path: Path) -> None:
    config = write_world(tmp_path)
    off = "\n".join(f"{name} = false" for name in ("popular", "cooccurrence", "nearest"))
    config.write_text(f"{config.read_text()}[sources]\n{off}\n")
    code, said = pairlift("train", config, "--out", tmp_path / "bundle")
    assert code == 0, said
    with serving(load_bundle(tmp_path / "bundle"), clock="snapshot") as one:
        code, said = pairlift("recommend", "--user", 1, "--address", one.address)
        assert "no items\nthe sources proposed nothing: none is turned on in [sources]" in said
        assert code == 0


def test_a_short_list_is_printed_with_its_reason(server, world):
    every = ",".join(map(str, world.catalog.item_ids.tolist()))
    arguments = ["--user", "999999", "--address", server.address]
    result = run(recommend, *arguments, "--k", "40")
    assert "\nfewer candidates than k = 40 were left: the sources proposed no more" in result.stdout
    result = run(recommend, *arguments, "--exclude", every)
    assert result.stdout.startswith("no items\nall that was proposed was removed: excluded 80\n")
    assert json.loads(run(recommend, *arguments, "--exclude", every, "--json").stdout)["reason"].endswith("80")


def test_the_rank_command_and_its_json(server, world):
    arguments = [
        "--user",
        str(user_id(world, 3)),
        "--items",
        "10, 13,999999",
        "--address",
        server.address,
        "--json",
    ]
    figures = json.loads(run(rank, *arguments, "--explain").stdout)
    assert {item["item"] for item in figures["items"]} == {10, 13, 999999}
    assert set(figures["items"][0]["features"][0]) == {"name", "value", "contribution"}
    assert all(item["liked"] == item["score"] and item["wanted"] is None for item in figures["items"])
    assert figures["as_of"] == figures["snapshot_time"]
    at = json.loads(run(rank, *arguments, "--as-of", "2023-11-20T10:00:00+02:00").stdout)
    assert at["as_of"] == "2023-11-20T08:00:00+00:00"
    assert (figures["request_id"], figures["unknown_user"], figures["unknown_items"]) == ("", False, [999999])
    result = run(rank, *arguments[2:-1], "--user", "777777", "--request-id", "r7")
    assert result.stderr == "neither in the bundle nor recorded, so ranked as new: user 777777, item 999999\n"
    assert json.loads(run(rank, *arguments, "--request-id", "r7").stdout)["request_id"] == "r7"


def test_the_commands_take_text_ids_as_they_are(text_server):
    result = run(rank, "--user", "user-0001", "--items", "item-0002,7", "--address", text_server.address)
    assert result.exit_code == 0, result.output
    assert "item-0002" in result.stdout
    assert "caller" in result.stdout


def test_the_commands_tell_what_is_wrong(server):
    result = run(recommend, "--user", "ann", "--address", server.address)
    assert isinstance(result.exception, PairliftError)
    assert str(result.exception) == "'ann' is not an id: the user ids of the served bundle are integers"
    result = run(recommend, "--user", "1", "--as-of", "noon", "--address", server.address)
    assert result.exit_code == 2
    assert "a time such as 1998-04-22" in result.output
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    result = run(recommend, "--user", "1", "--address", address)
    assert isinstance(result.exception, PairliftError)
    assert "`pairlift serve BUNDLE` starts one" in str(result.exception)


@pytest.mark.parametrize("command", [serve, recommend, rank])
def test_help_teaches(command):
    text = run(command, "--help").output
    assert "Examples:" in text
    assert all(parameter.help for parameter in command.params if parameter.param_type_name == "option")


SERVE = "import sys; from ranker.cli.serve import serve; serve(sys.argv[1:], standalone_mode=False)"


def spawn(*arguments):
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto"), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-u", "-c", SERVE, *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_serve_command_prints_its_address_answers_and_stops(bundle_folder, world, number):
    process = spawn(bundle_folder, "--port", "0", "--clock", "snapshot")
    try:
        line = process.stdout.readline()
        assert "pairlift serves bundle" in line, process.stderr.read() if process.poll() else line
        with Client(line.split()[-1], timeout=20) as client:
            assert len(client.recommend(user_id(world, 3), 5).items) == 5
            assert client.describe().bundle_version == load_bundle(bundle_folder).version
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0, err
        assert "is stopping" in out
        assert "older" not in err
        assert "h before the clock" not in err
    finally:
        process.kill()
        process.communicate()


BESIDE = """
from features.baselines import Noise

class Mine(Noise):
    def values(self, requests, histories):
        return 1 * super().values(requests, histories)
"""


def test_a_plugin_beside_the_toml_is_trained_and_served_and_a_change_of_its_code_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forget() -> None:
        monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(source.parent)])
        monkeypatch.delitem(sys.modules, "beside_the_toml", raising=False)
        hash_source.cache_clear()

    config, source, bundle = write_world(tmp_path), tmp_path / "beside_the_toml.py", tmp_path / "bundle"
    text = config.read_text().replace('plugins = ["als"]', 'plugins = ["mine"]')
    config.write_text(text + '[plugins.mine]\nclass = "beside_the_toml:Mine"\n')
    source.write_text(BESIDE)
    code, said = pairlift("train", config, "--out", bundle)
    assert code == 0, said
    assert sys.path[-1] == str(tmp_path)
    assert not list(bundle.rglob("*.py"))
    forget()
    code, said = pairlift("bundle", "verify", bundle)
    assert code == 2
    assert "No module named 'beside_the_toml'" in said
    assert "--plugins DIR" in said
    for change, warns in (("", False), ("# a comment\n", False), ("OTHER = 2\n", True)):
        forget()
        source.write_text(BESIDE + change)
        caplog.clear()
        assert pairlift("bundle", "verify", bundle, "--plugins", tmp_path)[0] == 0
        assert ("[plugins.mine]: the code of 'beside_the_toml:Mine' is not what" in caplog.text) == warns
    forget()
    code, said = pairlift("config", "beside_the_toml:Mine", "--plugins", tmp_path)
    assert code == 0, said
    process = spawn(bundle, "--port", "0", "--clock", "snapshot", "--plugins", tmp_path)
    try:
        line = process.stdout.readline()
        assert "pairlift serves bundle" in line
        with Client(line.split()[-1], timeout=20) as client:
            assert client.rank(1, [2, 3]).degraded == ()
    finally:
        process.kill()
        assert "its columns may mean something else" in process.communicate()[1]


def test_a_plugin_whose_module_raises_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "raises_when_imported.py").write_text("1 / 0")
    code, said = pairlift("config", "raises_when_imported:Mine", "--plugins", tmp_path)
    assert code == 2
    assert "'raises_when_imported:Mine': its module raised ZeroDivisionError: division by zero" in said


def test_the_serve_command_refuses_a_taken_port_before_it_loads_the_bundle(bundle_folder, server):
    port = server.address.rpartition(":")[2]
    process = spawn(bundle_folder, "--port", port)
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "cannot be listened on" in err
    assert "h before the clock" not in err


def test_the_serve_command_warns_of_an_old_snapshot(bundle_folder):
    process = spawn(bundle_folder, "--port", "0")
    assert "pairlift serves bundle" in process.stdout.readline()
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert "h before the clock" in err


def test_the_serve_command_refuses_a_damaged_bundle(bundle_folder, tmp_path):
    shutil.copytree(bundle_folder, tmp_path / "bad")
    with (tmp_path / "bad" / "booster.txt").open("a") as file:
        file.write(" ")
    result = run(serve, str(tmp_path / "bad"), "--port", "0")
    assert isinstance(result.exception, PairliftError)
    assert "booster.txt: changed" in str(result.exception)


def test_refusals_are_counted_by_reason() -> None:
    refused = Refused()
    reasons = (
        "ts 2024-01-01T00:00:00Z is older than 7 days",
        "grade 'a' is unknown",
        "ts 1999-12-31 is older than 7 days",
    )
    told = [refused.add(row, reason) for row, reason in enumerate(reasons)]
    assert told == [f"refused (1): row 0: {reasons[0]}", f"refused (2): row 1: {reasons[1]}", ""]
    assert refused.brief() == "refused (1) 2, refused (2) 1"
    assert refused.lines()[0] == f"  2, the first of them row 0: {reasons[0]}"
    assert refused.total == 3
    for letter in "bcdefghijkl":
        refused.add(9, f"grade '{letter}' is unknown")
    assert refused.brief().endswith("refused (10) 1, others 3")
    assert refused.lines()[-1] == "  and for 3 other reasons"


def test_the_commands_record_a_file_and_take_a_snapshot(bundle, tmp_path, monkeypatch, caplog):
    end = bundle.state.end
    table = pa.table(
        {
            "event_id": ["a", "b", "c"],
            "user_id": [1000, 1007, 1014],
            "item_id": [10, 13, 16],
            "ts": pa.array([end, end + 1, -7]).cast(pa.timestamp("us")),
            "play": [0.2, None, 1.0],
            "surface": ["feed", None, "feed"],
        }
    )
    pq.write_table(table, tmp_path / "today.parquet")
    run = CliRunner()
    monkeypatch.setattr(progress, "EVERY", 0)
    caplog.set_level("INFO")
    with recording(bundle, tmp_path / "log") as (server, _client):
        done = run.invoke(cli, ["record", str(tmp_path / "today.parquet"), "--address", server.address, "--batch", "2"])
        assert "2 events recorded, 0 were recorded before, 1 refused" in done.output
        assert "1, the first of them row 2: ts: µs since 1970 were expected, found -7" in done.output
        assert re.search(r"recording: 100 %, 3 of 3, .* events/s, refused \(1\) 1$", caplog.text, re.MULTILINE)
        assert done.exit_code == 2
        done = run.invoke(cli, ["record", str(tmp_path / "today.parquet"), "--address", server.address])
        assert "0 events recorded, 2 were recorded before, 1 refused" in done.output
        done = run.invoke(cli, ["snapshot", "--address", server.address])
        assert done.exit_code == 0, done.output
        assert Path(done.output.strip().split("\n")[-1]).is_dir()
        pq.write_table(table.drop_columns(["event_id"]), tmp_path / "nameless.parquet")
        done = run.invoke(cli, ["record", str(tmp_path / "nameless.parquet"), "--address", server.address])
        assert done.exit_code == 2
        assert "the column 'event_id' was expected, found user_id" in done.output
