"""Kernels that several processes compiled keep apart: what one cached is not linked to what another did."""

import os
import re
import subprocess
import sys
from pathlib import Path

MADE = """
from {source} import njit

def made(k):
    @njit
    def inner(x, n):  # it calls itself, so that it is not inlined
        if n < 1:
            return x
        return inner(x, n - 1) + inner(x, n - 2) % 7 + k
    return inner
"""
USED = """
from {source} import njit
from made import made

inner = made({k})

@njit(cache=True)
def use(x, n):
    return inner(x, n) + inner(x + 1, n)
"""


def said(folder: Path, code: str) -> list[int]:
    """Run a line in a process of its own, as any of a server's is; return the numbers that it prints."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[1])])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60)
    return [int(number) for number in done.stdout.split()]


def together(folder: Path, source: str) -> tuple[list[int], list[int]]:
    """Return what two kernels give where each is compiled by a process of its own, and in one that loads both."""
    folder.mkdir()
    (folder / "made.py").write_text(MADE.format(source=source))
    for k in (1, 2):
        (folder / f"one{k}.py").write_text(USED.format(source=source, k=k))
    alone = [said(folder, f"import one{k}; print(one{k}.use(5, 9))")[0] for k in (1, 2)]
    return alone, said(folder, "import one1, one2; print(one1.use(5, 9), one2.use(5, 9))")


def test_code_of_two_processes_is_not_taken_for_each_other(tmp_path: Path) -> None:
    alone, both = together(tmp_path / "ours", "features.kernels")
    assert both == alone
    assert alone[0] != alone[1]


def test_numbas_own_numbers_are_the_reason(tmp_path: Path) -> None:
    alone, both = together(tmp_path / "numba", "numba")
    assert both != alone, "numba keeps them apart by itself now: features.kernels has no more use"


def test_every_kernel_has_such_a_number() -> None:
    root, own = Path(__file__).parents[1], re.compile(r"^\s*(from numba import|import numba\b)", re.MULTILINE)
    found = [p for package in ("features", "neural", "ranker") for p in (root / package).rglob("*.py")]
    assert [p.relative_to(root).as_posix() for p in found if own.search(p.read_text())] == ["features/kernels.py"]
