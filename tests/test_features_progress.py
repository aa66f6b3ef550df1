"""Long work shows life: a bar on a terminal, lines in a log."""

import io
import logging
import sys

import pytest
from structure import PACKAGES, imports, modules

from features import progress as module
from features.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress_bar(range(3), desc="work")) == [0, 1, 2]
    assert "\rwork: 100%|" in sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert not caplog.messages


def test_a_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    caplog.set_level(logging.INFO)
    with progress_bar(total=10, desc="work", unit=" fits", leave=True) as bar:
        bar.set_description("more work", refresh=False)
        for k in range(10):
            now[0] += 8
            bar.set_postfix_str(f"number {k}", refresh=False)
            bar.update()
    assert caplog.messages == [
        "more work: 40 %, 4 of 10, 00:32 so far, 00:48 left, 8.00s/ fits, number 3",
        "more work: 80 %, 8 of 10, 01:04 so far, 00:16 left, 8.00s/ fits, number 7",
    ]
    assert not sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_no_bar_is_drawn_elsewhere() -> None:
    users = {name for package in PACKAGES for name, path in modules(package).items() if "tqdm.tqdm" in imports(path)}
    assert users == {"features.progress"}
