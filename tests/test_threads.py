"""How many threads are taken."""

from __future__ import annotations

import os

import pytest

from bge_onnx import InputError
from bge_onnx.threads import available_threads, resolve_threads


@pytest.fixture
def sixteen_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


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
    assert available_threads(tmp_path) == expected


def test_affinity_counts(monkeypatch, tmp_path):
    """A process that is pinned to one core takes one thread."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert available_threads(tmp_path) == 1


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_senseless_threads_are_refused(threads):
    """Anything but a whole number of at least 1 is an error that names what was found."""
    with pytest.raises(InputError, match=f"threads: expected a whole number of at least 1.*found {threads!r}"):
        resolve_threads(threads)
