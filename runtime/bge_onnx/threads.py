"""How many threads this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from bge_onnx.errors import InputError

CGROUP = Path("/sys/fs/cgroup")


def available_threads(cgroup: Path = CGROUP) -> int:
    """The CPU cores this process may keep busy: the scheduler's affinity, cut by the container's CPU quota.

    ONNX Runtime by itself counts the cores of the host, which halves the speed of a container that may use two of 64
    (microsoft/onnxruntime issue 29510).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = _quota_cores(cgroup)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def resolve_threads(threads: int | None) -> int:
    """`threads` if given (at least 1), else all that are available."""
    if threads is None:
        return available_threads()
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise InputError(f"threads: expected a whole number of at least 1, or None for all; found {threads!r}")
    return threads


def _quota_cores(cgroup: Path) -> float | None:
    """CPU quota in cores of cgroup v2 (`cpu.max`) or v1 (`cpu.cfs_*_us`); None where there is no limit."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None
