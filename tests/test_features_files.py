"""What is written appears whole or not at all, and is synced in the order that a power cut needs."""

import errno
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from features.files import check_folder, made_folder, written, written_folder


class Disk:
    """Notes each sync and rename that succeeds, as (what, name); the one of number `fails` does not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[str, str]] = []
        self.fails, self._count = -1, 0
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda handle: self._do("sync", _name(handle), lambda: fsync(handle)))
        for name in ("rename", "replace"):
            real = getattr(Path, name)
            monkeypatch.setattr(Path, name, self._renaming(real))

    def _renaming(self, real: Callable[[Path, Any], Path]) -> Any:
        return lambda path, target: self._do("rename to", Path(target).name, lambda: real(path, target))

    def _do(self, what: str, name: str, real: Callable[[], Any]) -> Any:
        self._count += 1
        if self._count == self.fails:
            raise OSError(errno.EIO, "Input/output error")
        found = real()
        self.done.append((what, name))
        return found


def _name(handle: int) -> str:
    return Path(os.readlink(f"/proc/self/fd/{handle}")).name


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def put(path: Path, text: str) -> None:
    with written(path) as partial:
        partial.write_text(text)


def put_folder(path: Path, text: str) -> None:
    with written_folder(path) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "one").write_text(text)
        (partial / "two").write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_file_is_synced_before_it_takes_its_name_and_the_folder_after(disk: Disk, tmp_path: Path) -> None:
    put(tmp_path / "a.txt", "old")
    assert disk.done == [("sync", f".a.txt.{os.getpid()}.partial"), ("rename to", "a.txt"), ("sync", tmp_path.name)]
    put(tmp_path / "a.txt", "new")
    assert content(tmp_path) == {"a.txt": "new"}


def test_a_folder_is_synced_with_all_in_it_before_it_takes_its_name(disk: Disk, tmp_path: Path) -> None:
    put_folder(tmp_path / "b", "old")
    synced = [("sync", name) for name in ("two", "one", "deep", f".b.{os.getpid()}.partial")]
    assert disk.done == [*synced, ("rename to", "b"), ("sync", tmp_path.name)]
    disk.done.clear()
    put_folder(tmp_path / "b", "new")
    assert disk.done == [*synced, ("rename to", ".b.old"), ("rename to", "b"), ("sync", tmp_path.name)]
    assert content(tmp_path) == {"b/deep/one": "new", "b/two": "new"}


@pytest.mark.parametrize("step", [1, 2, 3])
def test_where_a_step_fails_the_file_is_the_old_one_or_the_new_one(disk: Disk, tmp_path: Path, step: int) -> None:
    put(tmp_path / "a.txt", "old")
    disk.fails = 3 + step
    with pytest.raises(OSError, match="Input/output error") as caught:
        put(tmp_path / "a.txt", "new")
    # The last step syncs the folder: the new file has its name, and only whether that lasts is not known.
    assert content(tmp_path) == {"a.txt": "new" if step == 3 else "old"}
    assert step == 2 or caught.value.filename  # a rename has names of its own, outside this test


@pytest.mark.parametrize("step", range(1, 8))
def test_where_a_step_fails_the_folder_is_the_old_one_or_the_new_one(disk: Disk, tmp_path: Path, step: int) -> None:
    put_folder(tmp_path / "b", "old")
    disk.fails = 6 + step
    with pytest.raises(OSError, match="Input/output error"):
        put_folder(tmp_path / "b", "new")
    text = "new" if step == 7 else "old"
    assert content(tmp_path) == {"b/deep/one": text, "b/two": text}
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def half_a_file(path: Path) -> None:
    with written(path) as partial:
        partial.write_text("half")
        partial.with_name(f"{partial.name}.wal").write_text("as DuckDB leaves it")
        raise ZeroDivisionError


def half_a_folder(path: Path) -> None:
    with written_folder(path) as partial:
        (partial / "half").write_text("half")
        raise ZeroDivisionError


def test_what_raises_while_it_writes_leaves_nothing(tmp_path: Path) -> None:
    put(tmp_path / "a.txt", "old")
    put_folder(tmp_path / "b", "old")
    with pytest.raises(ZeroDivisionError):
        half_a_file(tmp_path / "a.txt")
    with pytest.raises(ZeroDivisionError):
        half_a_folder(tmp_path / "b")
    assert content(tmp_path) == {"a.txt": "old", "b/deep/one": "old", "b/two": "old"}
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "b"}


def test_a_folder_comes_back_where_its_successor_fails(tmp_path: Path) -> None:
    put_folder(tmp_path / "b", "old")
    (tmp_path / "b").rename(tmp_path / ".b.old")  # as a kill between the two renames leaves it
    with pytest.raises(ZeroDivisionError):
        half_a_folder(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert content(tmp_path) == {"b/deep/one": "old", "b/two": "old"}


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_what_a_killed_run_left_does_not_stand_in_the_way(tmp_path: Path) -> None:
    for process in (os.getpid(), dead_process()):
        (tmp_path / f".a.txt.{process}.partial").write_text("half")
        (tmp_path / f".b.{process}.partial").mkdir()
        (tmp_path / f".b.{process}.partial" / "half").touch()
    put(tmp_path / "a.txt", "new")
    put_folder(tmp_path / "b", "new")
    assert content(tmp_path) == {"a.txt": "new", "b/deep/one": "new", "b/two": "new"}
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "b"}


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / f".a.txt.{os.getppid()}.partial"
    theirs.write_text("half")
    put(tmp_path / "a.txt", "mine")
    assert theirs.read_text() == "half"
    assert (tmp_path / "a.txt").read_text() == "mine"


@pytest.mark.parametrize("write", [put, put_folder])
def test_a_link_stays_and_what_it_names_is_replaced(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    for text in ("new", "newer"):
        write(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert set(content(tmp_path).values()) == {text}
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link"}


def test_what_cannot_be_written_is_refused_by_the_name_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, problem in {"folder": "is a folder", "pipe": "not a regular file", "no/a": "there is no folder"}.items():
        with pytest.raises(OSError, match=problem) as caught:
            put(tmp_path / name, "new")
        assert caught.value.filename == str(tmp_path / name)
    assert not (tmp_path / "no").exists()
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_file_in_the_place_of_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("mine")
    with pytest.raises(NotADirectoryError):
        put_folder(tmp_path / "b", "new")
    assert content(tmp_path) == {"b": "mine"}


@pytest.mark.parametrize("make", [made_folder, check_folder, lambda path: put_folder(path, "new")])
def test_a_file_in_the_way_of_a_folder_is_named(make: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "b").write_text("mine")
    for path, problem in {tmp_path / "b": "^is not a folder", tmp_path / "b" / "c": f"{tmp_path}/b is not"}.items():
        with pytest.raises(NotADirectoryError) as caught:
            make(path)
        assert re.search(problem, caught.value.strerror)
        assert caught.value.filename == str(path)
    assert content(tmp_path) == {"b": "mine"}


def test_a_folder_is_checked_before_it_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path)
    with pytest.raises(PermissionError, match=f"{tmp_path} cannot be written into"):
        check_folder(tmp_path / "a" / "b")


def test_a_folder_that_is_made_has_a_durable_name(disk: Disk, tmp_path: Path) -> None:
    made_folder(tmp_path / "a" / "b")
    assert disk.done == [("sync", tmp_path.name), ("sync", "a")]
    made_folder(tmp_path / "a" / "b")  # whose maker may have been killed before it was
    assert disk.done[2:] == [("sync", "a")]
    disk.fails = 4
    with pytest.raises(OSError, match="Input/output error"):
        made_folder(tmp_path / "a" / "b")
