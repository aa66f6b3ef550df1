"""What a process may have of the machine: cores and memory, by cgroups of both versions."""

import os
from pathlib import Path

import pytest

from features.machine import cores, memory_free

GIB = 2**30
#: a container's own cgroup at the top of the mount, which is not at the path that the host knows it by
POD = {"proc/self/cgroup": "0::/kubepods/pod1/box\n", "sys/fs/cgroup/memory.max": f"{4 * GIB}\n"}
POD |= {"sys/fs/cgroup/memory.current": f"{3 * GIB}\n", "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {GIB}\n"}
#: version 2 with the whole tree in sight: the limit stands above
SLICE = {"proc/self/cgroup": "0::/a.slice/b.scope\n", "sys/fs/cgroup/a.slice/memory.max": f"{3 * GIB}\n"}
SLICE |= {"sys/fs/cgroup/a.slice/memory.current": f"{GIB}\n", "sys/fs/cgroup/a.slice/b.scope/memory.max": "max\n"}
SLICE |= {"sys/fs/cgroup/a.slice/b.scope/memory.current": f"{GIB}\n"}
OLD, AT = "9:cpu,cpuacct:/\n4:memory:/docker/box\n0::/\n", "sys/fs/cgroup/memory/docker/box/memory."
V1 = {"proc/self/cgroup": OLD, f"{AT}limit_in_bytes": f"{2 * GIB}\n", f"{AT}usage_in_bytes": f"{2 * GIB}\n"}
V1 |= {f"{AT}stat": f"inactive_file 7\ntotal_inactive_file {GIB // 2}\n"}
V1 |= {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}
V1 |= {"sys/fs/cgroup/memory/memory.usage_in_bytes": f"{9 * GIB}\n"}


@pytest.mark.parametrize(
    ("files", "free"),
    [({}, 8 * GIB), (POD, 2 * GIB), (SLICE, 2 * GIB), (V1, GIB // 2)],
    ids=["none", "pod", "v2", "v1"],
)
def test_memory_is_what_the_machine_and_the_cgroups_leave(files: dict[str, str], free: int, tmp_path: Path) -> None:
    meminfo = {"proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemAvailable:   {8 * 2**20} kB\nHugePages_Total:    0\n"}
    for name, text in (meminfo | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_free(tmp_path) == free
    assert 0 < memory_free() < 2**50


BOUND = len(os.sched_getaffinity(0))
#: as Kubernetes limits a container that has its own cgroup at the top, and a slice that limits what is below
QUOTA = {"proc/self/cgroup": "0::/kubepods/pod1/box\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}
ABOVE = {"proc/self/cgroup": "0::/a.slice/b.scope\n", "sys/fs/cgroup/a.slice/cpu.max": "20000 100000\n"}
ABOVE |= {"sys/fs/cgroup/a.slice/b.scope/cpu.max": "max 100000\n"}
WIDE = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{BOUND + 3}00000 100000\n"}
CFS = {"proc/self/cgroup": OLD, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}
CFS |= {"sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}
DOCKER = {"proc/self/cgroup": "9:cpu,cpuacct:/docker/box\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n"}
DOCKER |= {"sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}
#: a sandbox that fills what it does not keep with zeros
ZEROS = {"proc/self/cgroup": OLD, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "0\n"}
ZEROS |= {"sys/fs/cgroup/cpu/cpu.cfs_period_us": "0\n"}


@pytest.mark.parametrize(
    ("files", "most"),
    [({}, BOUND), (QUOTA, 1), (ABOVE, 1), (WIDE, BOUND), (CFS, BOUND), (ZEROS, BOUND), (DOCKER, 1)],
    ids=["none", "pod", "v2", "wide", "v1 unlimited", "v1 zeros", "v1"],
)
def test_cores_are_those_that_are_bound_and_no_more_than_the_cgroups_quota(
    files: dict[str, str], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores(tmp_path) == most
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True, exist_ok=True)
    (tmp_path / "proc/self").mkdir(parents=True, exist_ok=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("350000 100000\n")
    assert cores(tmp_path) == 3
    assert 1 <= cores() <= 8
