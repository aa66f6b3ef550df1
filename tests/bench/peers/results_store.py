"""Results of a long benchmark, kept as they come, so that a run that was stopped goes on."""

import json
from pathlib import Path
from typing import Any

#: part, then the arguments of what runs it
Task = tuple[str, tuple[Any, ...]]


class Store:
    """Results by task, one a line of a file, written as they come."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.found = path, dict[Task, dict[str, Any]]()
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                (part, arguments), result = json.loads(line)
            except ValueError:  # a line that was cut short when the run was stopped
                continue
            self.found[part, tuple(arguments)] = result

    def add(self, task: Task, result: dict[str, Any]) -> None:
        """Append one."""
        self.found[task] = result
        with self.path.open("a") as file:
            file.write(json.dumps([task, result]) + "\n")
