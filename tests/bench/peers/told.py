"""A part of a benchmark in a process of its own."""

import subprocess


def told(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Run a command, show its lines as they come, and return the last one, which is not shown; leave where it fails."""
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if last:
                print(last, flush=True)
            last = line.rstrip() or last
    if process.returncode:
        print(last, flush=True)
        raise SystemExit(process.returncode)
    return last
