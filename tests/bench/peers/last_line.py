"""A part of a benchmark in a process of its own."""

import subprocess


def last_line(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Run a command, show its lines (no blank ones) as they come, and return the last one, which is not shown.

    Leave where the command fails.
    """
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.strip():
                continue
            if last:
                print(last, flush=True)
            last = line.rstrip()
    if process.returncode:
        print(last, flush=True)
        raise SystemExit(process.returncode)
    return last
