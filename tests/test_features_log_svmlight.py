"""The parser of LETOR lines, against scikit-learn's reader and its own definition."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_svmlight_file

from features.errors import PairliftError
from features.log.svmlight import Lines, read_lines

WRITTEN = """\
# LETOR 4.0
2 qid:10 1:0.5 3:-2e-3 # docid = GX1 inc = 1

0 qid:10 # nothing of it is known
1.0  qid:a:b\t7:+.25\t9:nan 12:1E+2#c\r
0 3:5
"""


def read(path: Path, size: int = 1 << 20) -> list[Lines]:
    return list(read_lines(path, size))


@pytest.mark.parametrize("size", [1, 7, 50, 10_000])
def test_lines_are_what_they_say_whatever_the_blocks(tmp_path: Path, size: int) -> None:
    """Also without a newline at the end."""
    for text in (WRITTEN, WRITTEN.rstrip("\n")):
        (tmp_path / "f").write_text(text)
        blocks = read(tmp_path / "f", size)
        assert [q for b in blocks for q in b.qid] == ["10", "10", "a:b", ""]
        assert [c for b in blocks for c in b.comment] == ["docid = GX1 inc = 1", "nothing of it is known", "c", None]
        assert np.concatenate([b.label for b in blocks]).tolist() == [2, 0, 1, 0]
        dense = np.concatenate([b.dense(np.array([1, 3, 7, 9, 12])) for b in blocks])
        want = [[0.5, -2e-3, 0, 0, 0], [0] * 5, [0, 0, 0.25, np.nan, 100], [0, 5, 0, 0, 0]]
        np.testing.assert_array_equal(dense, np.array(want, np.float32))


numbers = st.floats(-(2.0**100), 2.0**100, width=32) | st.integers(-100, 100) | st.just(0.1)
rows = st.lists(st.tuples(st.integers(0, 4), st.dictionaries(st.integers(1, 20), numbers, max_size=6)), min_size=1)


@given(rows, st.sampled_from(["{!r}", "{:.6f}", "{:.9e}", "{:g}"]))
@settings(max_examples=60, deadline=None)
def test_numbers_are_those_of_scikit_learn(tmp_path_factory: pytest.TempPathFactory, rows: list, form: str) -> None:
    path = tmp_path_factory.mktemp("svm") / "f"
    lines = [
        f"{label} qid:{k} {' '.join(f'{i}:{form.format(float(v))}' for i, v in sorted(of.items()))}\n"
        for k, (label, of) in enumerate(rows)
    ]
    path.write_text("".join(lines))
    want, label, qid = load_svmlight_file(str(path), n_features=20, zero_based=False, query_id=True)
    (found,) = read(path)
    assert found.label.tolist() == label.tolist()
    assert found.qid == [str(q) for q in qid.tolist()]
    # One rounding in float64, then the one to float32: a unit in the last place at the most.
    np.testing.assert_allclose(found.dense(np.arange(1, 21)), want.toarray().astype(np.float32), rtol=2e-7, atol=1e-37)


@pytest.mark.parametrize(
    ("line", "place", "expected"),
    [
        ("good 1:2", 1, "a label"),
        ("-1 1:2", 1, "a label"),
        ("0.5 1:2", 1, "a label"),
        ("1x 1:2", 1, "a label"),
        ("99999999999 1:2", 1, "a label"),
        ("1 1:2 x:3", 7, "a feature"),
        ("1 1:2 -3:3", 7, "a feature"),
        ("1 1:2 2.5:3", 7, "a feature"),
        ("1 1:", 3, "a feature"),
        ("1 1:1e", 3, "a feature"),
        ("1 1:1e999", 3, "a feature"),
        ("1 1:inf", 3, "a feature"),
        ("1 1:2z", 3, "a feature"),
        ("1 1:2 qid:7", 7, "a feature"),
        ("1 7", 3, "a feature"),
    ],
)
@pytest.mark.parametrize("size", [10, 10_000])
def test_the_first_bad_line_is_named(tmp_path: Path, line: str, place: int, expected: str, size: int) -> None:
    (tmp_path / "f").write_text(f"# of two\n\n1 qid:1 1:2\n{line}\n1 oh:no\n")
    with pytest.raises(PairliftError, match=rf"f, line 4: at character {place}, {expected}.* was expected; found") as e:
        read(tmp_path / "f", size)
    assert f"'{line}'" in str(e.value)


def test_no_lines_are_no_blocks_with_rows(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("\n# nothing\n\n")
    assert sum(len(b.label) for b in read(tmp_path / "f")) == 0
    (tmp_path / "f").write_text("")
    assert read(tmp_path / "f") == []
