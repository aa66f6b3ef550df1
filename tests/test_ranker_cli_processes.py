"""How a server's process ends: by whichever way a signal comes to it."""

import os
import signal
import subprocess
import sys

import pytest
from structure import ROOT

ELSEWHERE = """
import signal, sys, threading, time
from types import SimpleNamespace
from ranker.cli.processes import until_told

def tell():
    time.sleep(0.3)  # the main thread waits by then
    signal.pthread_kill(threading.get_ident(), int(sys.argv[1]))
    time.sleep(60)

server = SimpleNamespace(start=lambda: None, drain=lambda: None, stop=lambda: None)
thread = threading.Thread(target=tell, daemon=True)
until_told(lambda: server, 0.0, lambda _: thread.start())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_does_not_wake_the_main_thread_stops_the_server(number):
    """As one does that comes in the instant before the main thread begins to wait."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
    words, env = [sys.executable, "-u", "-c", ELSEWHERE, str(int(number))], {**os.environ, "PYTHONPATH": path}
    ended = subprocess.run(words, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "is stopping" in ended.stdout
