"""Run the benchmarks: `make bench` all of them, `make bench WHAT=NAME` one, `make bench WHAT='NAME --option …'`.

A benchmark is a file beside this one. It checks that what it compares agrees, prints a table, and as its last line
one JSON object, which this writes to `tests/bench/results/<name>.json` with the machine, the date and the command. What
a part alone gives (`--only …`) is not kept, for it lacks the others' figures.
"""

import datetime
import json
import os
import platform
import shlex
import sys
from pathlib import Path

from peers.last_line import last_line

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HELPERS = {"run", "figures"}


def machine() -> str:
    """Return the processor's name and how many of its cores there are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def run(name: str, options: list[str]) -> None:
    """Run one benchmark, show what it prints, and keep its last line; leave where it fails."""
    # -P: a benchmark's own folder must not hide a package of the same name (`features`).
    command = [sys.executable, "-P", str(HERE / f"{name}.py"), *options]
    # The code beside this file, wherever the environment has its own from: a worktree measures itself.
    places = os.pathsep.join(map(str, (ROOT, ROOT / "proto", HERE.parent)))
    last = last_line(command, {**os.environ, "PYTHONPATH": places})
    print(last)
    if any(option.startswith("--only") for option in options):
        return
    what = shlex.quote(" ".join([name, *options]))
    result = {
        "command": f"make bench WHAT={what}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "result": json.loads(last),
    }
    (HERE / "results" / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def main() -> int:
    """Run what the command line names, or everything."""
    known = sorted(p.stem for p in HERE.glob("*.py") if p.stem not in HELPERS)
    wanted = sys.argv[1:2] or known
    for name in wanted:
        if name not in known:
            print(f"there is no benchmark '{name}' (known: {', '.join(known)})", file=sys.stderr)
            return 2
        print(f"== {name}", flush=True)
        run(name, sys.argv[2:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
