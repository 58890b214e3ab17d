"""How many threads are taken."""

from __future__ import annotations

import os

import pytest

from bge_onnx import InputError
from bge_onnx.run.threads import available_threads, resolve_threads


@pytest.fixture
def sixteen_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu.max": "garbage"}, 16),
    ],
)
def test_quota_cuts_the_affinity(sixteen_cores, tmp_path, files, expected):
    """A container's CPU quota (cgroup v1 or v2) limits the threads; no quota leaves the scheduler's affinity."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_threads(tmp_path, tmp_path / "none") == expected


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, 16),
        ("0::/user/service\n", {"user/cpu.max": "300000 100000", "user/service/cpu.max": "max 100000"}, 3),
        ("0::/user/service\n", {"user/cpu.max": "max 100000", "user/service/cpu.max": "200000 100000"}, 2),
        ("0::/user/service\n", {"user/cpu.max": "200000 100000", "user/service/cpu.max": "400000 100000"}, 2),
        ("0::/../../job\n", {"job/cpu.max": "100000 100000"}, 1),
        (
            "4:memory:/m\n3:cpu,cpuacct:/job/step\n",
            {"cpu/job/cpu.cfs_quota_us": "500000", "cpu/job/cpu.cfs_period_us": "100000"},
            5,
        ),
        ("garbage\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/\udcff\n", {"\udcff/cpu.max": "200000 100000"}, 2),
    ],
)
def test_the_least_quota_on_the_way_up_counts(sixteen_cores, tmp_path, own, files, expected):
    """A service or a job lies in nested cgroups, of which each may have a quota."""
    (tmp_path / "own").write_text(own, errors="surrogateescape")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_threads(tmp_path, tmp_path / "own") == expected


@pytest.mark.parametrize(
    ("wish", "expected"), [("3", 3), ("64", 16), ("4,2", 4), ("0", 16), ("", 16), ("many", 16), ("9" * 5000, 16)]
)
def test_omp_num_threads_is_the_default(sixteen_cores, monkeypatch, tmp_path, wish, expected):
    """What shares out a machine sets OMP_NUM_THREADS: it is the most that is taken unless threads= says otherwise."""
    monkeypatch.setenv("OMP_NUM_THREADS", wish)
    assert available_threads(tmp_path, tmp_path / "none") == expected
    assert resolve_threads(5) == 5


def test_affinity_counts(monkeypatch, tmp_path):
    """A process that is pinned to one core takes one thread."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert available_threads(tmp_path, tmp_path / "none") == 1


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 100_000])
def test_senseless_threads_are_refused(threads):
    """Anything but a whole number of at least 1, and not far more than there are cores, is an error that names it."""
    with pytest.raises(InputError, match=f"threads: expected a whole number of at least 1.*found {threads!r}"):
        resolve_threads(threads)
