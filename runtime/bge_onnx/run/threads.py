"""How many threads this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from bge_onnx.errors import InputError

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
OMP_THREADS = "OMP_NUM_THREADS"
OMP_DIGITS = 9
"""Further digits are not read: the number is larger than any count of cores already."""

MOST_THREADS = 256
"""More threads than this, and than four a core, are a mistake: ONNX Runtime would start each of them."""


def available_threads(cgroup: Path = CGROUP, own: Path = OWN_CGROUPS) -> int:
    """The CPU cores this process may keep busy: the scheduler's affinity, cut by the container's CPU quota, and by
    OMP_NUM_THREADS, with which schedulers of tasks (Ray, joblib, Slurm) share out a machine.

    ONNX Runtime by itself counts the cores of the host, which halves the speed of a container that may use two of 64
    (microsoft/onnxruntime issue 29510).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = _quota_cores(cgroup, own)
    cores = max(1, cores if quota is None else min(cores, math.ceil(quota)))
    wish = os.environ.get(OMP_THREADS, "").split(",")[0].strip()[:OMP_DIGITS]
    return min(cores, int(wish)) if wish.isdecimal() and int(wish) else cores


def resolve_threads(threads: int | None) -> int:
    """`threads` if given, else all that are available. Raises InputError: no whole number from 1 on, or too many."""
    if threads is None:
        return available_threads()
    most = max(MOST_THREADS, 4 * (os.cpu_count() or 1))
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= most:
        raise InputError(
            f"threads: expected a whole number of at least 1, at most {most} here, or None for all; found {threads!r}"
        )
    return threads


def _quota_cores(cgroup: Path, own: Path) -> float | None:
    """The least CPU quota, in cores, of this process's cgroup and those that it lies in; None where there is none.

    A container's own cgroup is the root of what it sees; a service's or a job's lies deeper, and each may have a quota.
    """
    quotas = []
    for mount, path in _cgroups(cgroup, own):
        inside = [part for part in path.split("/") if part not in ("", "..")]
        folders = [mount.joinpath(*inside[:depth]) for depth in range(len(inside) + 1)]
        quotas += [quota for folder in folders if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def _cgroups(cgroup: Path, own: Path) -> list[tuple[Path, str]]:
    """Where cgroups with CPU quotas are mounted, and this process's path in each: v2's, and v1's of the controller."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(errors="surrogateescape").splitlines()]
    except OSError:
        lines = []
    found = [(cgroup, "/"), (cgroup / "cpu", "/"), (cgroup / "cpu,cpuacct", "/")]
    for fields in lines:
        if len(fields) == 3 and fields[1] == "":
            found.append((cgroup, fields[2]))
        elif len(fields) == 3 and "cpu" in fields[1].split(","):
            found += [(cgroup / "cpu", fields[2]), (cgroup / "cpu,cpuacct", fields[2])]
    return found


def _quota(folder: Path) -> float | None:
    """CPU quota in cores of one cgroup, v2 (`cpu.max`) or v1 (`cpu.cfs_*_us`); None where there is no limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
