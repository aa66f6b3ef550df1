"""What this process may have of the machine: cores and memory, by what it is bound to and what its cgroups allow."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

KIB = 1024
#: of each version of cgroups, where the folders of a controller are mounted
_MOUNTED = {1: "sys/fs/cgroup/{}", 2: "sys/fs/cgroup"}
#: of each version the files with the limit of memory and with what is in use, and what `memory.stat` calls the files in
#: the cache that were not read of late
_MEMORY = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
ROOT = Path("/")


def cores(root: Path = ROOT) -> int:
    """Return how many cores this process may use: those that it is bound to, and no more than its cgroups' quotas.

    Of a quota such as 2.5 cores it is 2, for what runs on a part of one is stopped now and then; at least 1. root:
    where /proc and /sys are.
    """
    return max(int(min([len(os.sched_getaffinity(0)), *_quotas(root)])), 1)


def memory_free(root: Path = ROOT) -> int:
    """Return how many bytes this process may yet take: of the machine's memory, and of what its cgroups are limited to.

    Of a cgroup, what it has in use less the files in its cache that were not read of late, which the kernel drops first
    (the working set, by which Kubernetes ends a container), is taken from its limit. root: where /proc and /sys are.
    """
    memory = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
    return min([KIB * int(memory["MemAvailable"].split()[0]), *_free_in_cgroups(root)])


def _quotas(root: Path) -> Iterator[float]:
    """Yield how many cores' time each cgroup of this process may take, where it has a quota."""
    for version, folder in _cgroups(root, "cpu"):
        if version == 2:
            quota, period = (*" ".join(_lines(folder / "cpu.max")).split(), "max", "max")[:2]
        else:
            quota, period = ((*_lines(folder / f"cpu.cfs_{name}_us"), "-1")[0] for name in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal() and int(period):  # else no quota, or a sandbox that says nothing
            yield int(quota) / int(period)


def _free_in_cgroups(root: Path) -> Iterator[int]:
    """Yield what each cgroup of this process leaves of its limit."""
    for version, folder in _cgroups(root, "memory"):
        limit, used, cached = _MEMORY[version]
        of, spent = _lines(folder / limit), _lines(folder / used)
        if of and spent and of[0] != "max":
            stat = dict(line.split() for line in _lines(folder / "memory.stat"))
            yield int(of[0]) - int(spent[0]) + int(stat.get(cached, 0))


def _cgroups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Yield the version and the folder of each cgroup that this process is in, at any depth; of version 2 and of 1."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        version, place = 1 if controllers else 2, PurePosixPath(path.lstrip("/"))
        # A container that does not see the host's tree has its own cgroup at the top, and nothing at the path.
        for part in (place, *place.parents):
            yield version, root / _MOUNTED[version].format(controller) / part


def _lines(path: Path) -> list[str]:
    """Return the lines of a file; none where it is not there, or not to be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
