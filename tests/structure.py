"""The structure of the packages as it is: which part imports which, and which modules a call enters.

A part is what a reader meets in a package's folder: a module at its root, or a wing (a folder) as a whole.
"""

import ast
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = ("features", "neural", "ranker")


def modules(package: str) -> dict[str, Path]:
    """Return the file of each module of a package by its dotted name; a wing's `__init__` has the wing's name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports anywhere, of modules or of what stands in them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(module: str) -> str:
    """Return the part that a module belongs to: `features.state.read` to `features.state`."""
    return ".".join(module.split(".")[:2])


def module_graph(package: str) -> dict[str, set[str]]:
    """Return the modules of the same package that each module imports."""
    known = modules(package)
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        asked = imports(path)
        hits = {other for other in known for a in asked if a == other or a.rpartition(".")[0] == other}
        graph[name] = {h for h in hits if h != name and "." in h}
    return graph


def part_graph(package: str) -> dict[str, set[str]]:
    """Return the parts of a package that each part imports."""
    graph: dict[str, set[str]] = {}
    for module, asked in module_graph(package).items():
        if "." in module:
            part = part_of(module)
            graph.setdefault(part, set()).update({part_of(a) for a in asked} - {part})
    return graph


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of nodes that reach each other."""
    reach: dict[str, set[str]] = {}
    for node in graph:
        seen: set[str] = set()
        todo = [node]
        while todo:
            for other in graph.get(todo.pop(), set()) - seen:
                seen.add(other)
                todo.append(other)
        reach[node] = seen
    found = {
        tuple(sorted({node} | {o for o in reach[node] if node in reach[o]})) for node in graph if node in reach[node]
    }
    return [list(group) for group in sorted(found)]


class Entered:
    """What a call enters: each step from a function of ours to one of another module, once, in the order of the run.

    Of Python code (compiled kernels call each other unseen), in the caller's thread and in threads begun meanwhile.
    """

    def __init__(self) -> None:
        self.steps: dict[tuple[CodeType | None, CodeType], str] = {}
        self._lock = threading.Lock()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Take down a call, as `sys.setprofile` tells of it."""
        if event != "call" or frame.f_code.co_name == "<module>" or not _ours(frame):
            return
        caller = frame.f_back
        while caller is not None and not _ours(caller):
            caller = caller.f_back
        name = frame.f_globals["__name__"]
        if caller is None or caller.f_globals["__name__"] != name:
            with self._lock:
                self.steps.setdefault((caller.f_code if caller else None, frame.f_code), name)

    def text(self, title: str) -> str:
        """Return the modules in the order of their first entry, each with the number of steps into it."""
        times = Counter(self.steps.values())
        back = len(self.steps) - len(times)
        listed = "  ".join(f"{name} {n}" for name, n in times.items())
        return f"{title}: {len(times)} modules, {len(self.steps)} steps, {back} of them back\n  {listed}"


def _ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in PACKAGES


def entered(call: Callable[[], Any]) -> Entered:
    """Run a call and return what it entered."""
    found = Entered()
    threading.setprofile(found)
    sys.setprofile(found)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return found
