"""LETOR files from the command line to a served ranker, and what is said of those that are none."""

import re
from pathlib import Path

import duckdb
import numpy as np
import pytest
from served import pairlift, serving

from features.errors import PairliftError
from ranker.bundle import load_bundle
from ranker.client import Client
from ranker.config import load_config
from ranker.letor import import_letor
from ranker.training.prepared import prepare
from ranker.training.wanted import asked_in_slices

FEATURES = (2, 3, 5, 8, 13)


def write_letor(path: Path, seed: int, queries: int, first: int = 1) -> Path:
    """Queries of 5 to 15 documents; the label follows features 2 and 5, the rest is noise; zeros are left out."""
    rng = np.random.default_rng(seed)
    lines = []
    for q in range(first, first + queries):
        for k in range(rng.integers(5, 16)):
            x = rng.normal(0, 1, len(FEATURES)).round(3) * (rng.random(len(FEATURES)) < 0.8)
            label = int(np.clip(x[0] - x[2] + 1 + rng.normal(0, 0.5), 0, 3))
            said = " ".join(f"{f}:{v:g}" for f, v in zip(FEATURES, x.tolist(), strict=True) if v)
            lines.append(f"{label} qid:{q} {said} # doc{k}\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files, imported, with their bundle."""
    folder = tmp_path_factory.mktemp("letor")
    files = [
        write_letor(folder / name, k, n, 100 * k) for k, (name, n) in enumerate(zip("abc", (60, 20, 30), strict=True))
    ]
    code, said = pairlift("import-letor", *files, "--out", folder / "log")
    assert code == 0, said
    assert "110 queries" in said
    assert "5 features, labels 0, 1, 2, 3" in said
    toml = folder / "log" / "pairlift.toml"
    toml.write_text(toml.read_text() + "[booster]\ntrees = 200\nstop_after = 30\n")
    code, said = pairlift("train", toml, "--out", folder / "bundle")
    assert code == 0, said
    assert "lists: not measured" in said
    return folder


def test_files_are_periods_and_queries_are_requests(made: Path) -> None:
    prepared = prepare(load_config(made / "log" / "pairlift.toml"))
    slices = {"towers": prepared.groups.of("towers"), **prepared.slices()}
    assert [len(g.requests) for g in slices.values()] == [0, 60, 20, 30]
    assert prepared.counters == ()
    assert prepared.spec.columns == tuple(f"candidate_f{index}" for index in FEATURES)
    for name, groups in zip("abc", list(slices.values())[1:], strict=True):
        lines = [line.split() for line in (made / name).read_text().splitlines()]
        assert groups.grade.tolist() == [int(words[0]) for words in lines]
        values = [dict(word.split(":") for word in words[2 : words.index("#")]) for words in lines]
        want = np.array([[float(of.get(str(f), 0)) for f in FEATURES] for of in values], np.float32)
        np.testing.assert_array_equal(groups.requests.given, want)
        qids = [words[1] for words in lines]
        assert np.diff(groups.requests.offsets).tolist() == [qids.count(qid) for qid in dict.fromkeys(qids)]
    assert [len(part) for part in asked_in_slices(prepared)] != [0, 0]  # they would be asked about, were there sources


def test_what_no_feature_says_is_kept_to_look_at(made: Path) -> None:
    rows = duckdb.sql(f"SELECT query, qid, document, comment FROM '{made}/log/events.parquet'").fetchall()
    assert rows[0] == (1, "0", "1:1", "doc0")
    assert rows[-1][:2] == (110, "229")
    assert len({row[2] for row in rows}) == len(rows)


def test_the_ranker_knows_what_the_labels_follow(made: Path) -> None:
    """Ranked over the wire, documents that no training has seen: by features 2 and 5, whatever the query."""
    bundle = load_bundle(made / "bundle")
    with serving(bundle, clock="snapshot") as server, Client(server.address, timeout=20) as client:
        assert not client.recommend(None, 5).items
        x = np.random.default_rng(9).normal(0, 1, (40, len(FEATURES))).round(3)
        columns = {f"f{index}": x[:, k].tolist() for k, index in enumerate(FEATURES)}
        answer = client.rank(None, [f"new{k}" for k in range(40)], columns=columns)
    scores = np.empty(40)
    scores[[item.index for item in answer.items]] = [item.score for item in answer.items]
    assert np.corrcoef(scores, x[:, 0] - x[:, 2])[0, 1] > 0.8
    own = bundle.booster.predict(x.astype(np.float32), raw_score=True)
    np.testing.assert_allclose(scores, own, atol=1e-6)


def test_validate_says_that_there_are_no_lists_and_what_is_about_lists_refuses(made: Path) -> None:
    code, said = pairlift("validate", made / "log" / "pairlift.toml")
    assert code == 0, said
    assert re.search(r"^towers +\[2000-01-01T00:00:00Z, 2000-01-01T00:00:00Z\): 0 groups", said, re.MULTILINE)
    assert "[sources] are all switched off" in said
    for words in (("lists", "--out", made / "lists"), ("retune", "--part", "wanted")):
        code, said = pairlift(words[0], made / "log" / "pairlift.toml", *words[1:])
        assert (code, "switch one on" in said) == (2, True)


def test_a_plugin_needs_the_period_that_is_empty(made: Path, tmp_path: Path) -> None:
    text = (made / "log" / "pairlift.toml").read_text()
    (tmp_path / "events.parquet").write_bytes((made / "log" / "events.parquet").read_bytes())
    als = '[plugins.als]\nclass = "features.baselines:ALS"\n'
    for more, words in (
        ('[ranker]\nplugins = ["als"]\n' + als, ("train", "--out")),
        (als, ("uplift", "--plugin", "als", "--out")),
    ):
        (tmp_path / "pairlift.toml").write_text(text + more)
        code, said = pairlift(words[0], tmp_path / "pairlift.toml", *words[1:], tmp_path / "out")
        assert code == 2
        assert "[split]: the towers period has no graded impressions; move t1" in said


def test_one_file_and_two(tmp_path: Path) -> None:
    """The last fifth of a single file is the test; of two the second; without a third the last queries stop."""
    one, two = write_letor(tmp_path / "one", 1, 50), write_letor(tmp_path / "two", 2, 20)
    for name, files, want in (("1", [one], [32, 8, 10]), ("2", [one, two], [40, 10, 20])):
        import_letor(files, tmp_path / name)
        slices = prepare(load_config(tmp_path / name / "pairlift.toml")).slices()
        found = [len(g.requests) for g in slices.values()]
        assert sum(found) == sum(want)
        assert found[2] == want[2]
        assert abs(found[1] - want[1]) <= 2  # by documents, at a border of queries


def test_sizes_of_queries_in_a_file_beside(tmp_path: Path) -> None:
    file = write_letor(tmp_path / "f", 3, 40)
    lines = file.read_text().splitlines()
    sizes = [sum(f"qid:{q} " in line for line in lines) for q in range(1, 41)]
    import_letor([file], tmp_path / "with")
    file.write_text(re.sub(r" qid:\d+", "", file.read_text()))
    with pytest.raises(PairliftError, match=r"has no 'qid:': .* f.query beside it"):
        import_letor([file], tmp_path / "without")
    (tmp_path / "f.query").write_text("".join(f"{size}\n" for size in sizes))
    import_letor([file], tmp_path / "without")
    same = [duckdb.sql(f"SELECT * FROM '{tmp_path}/{name}/events.parquet'").fetchall() for name in ("with", "without")]
    assert same[0] == same[1]
    (tmp_path / "f.query").write_text("3\n4\n")
    with pytest.raises(PairliftError, match=r"f.query: sizes of queries were expected, together the \d+ lines of f"):
        import_letor([file], tmp_path / "wrong")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no documents"),
        ("1 qid:1 1:2\n0 1:3\n", "some lines have a 'qid:' and some have none"),
        ("1 qid:1 1:2\n0 qid:2 1:3\n0 qid:1 1:3\n", "the lines of qid 1 are apart"),
        ("1 qid:1 1:2\n1 qid:2 1:3\n", r"2 to 64 different labels were expected, found 1: \[1\]"),
        ("1 qid:1\n0 qid:1\n", "1 to 5,000 features were expected, found 0"),
        ("1 qid:1 " + " ".join(f"{k}:1" for k in range(5001)) + "\n0 qid:1\n", "found 5,001: each becomes a column"),
    ],
)
def test_a_file_that_is_none_is_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(PairliftError, match=said):
        import_letor([tmp_path / "f"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_kept(made: Path) -> None:
    code, said = pairlift("import-letor", made / "a", "--out", made / "log")
    assert (code, "is there already" in said) == (2, True)
    code, said = pairlift("import-letor", *[made / "a"] * 4, "--out", made / "other")
    assert (code, "one to three files were expected" in said) == (2, True)
    code, said = pairlift("import-letor", made / "none", "--out", made / "other")
    assert (code, "does not exist" in said) == (2, True)
