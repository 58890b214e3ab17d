"""Processes that embed a workload when told: one for each system, see `worker.py`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")


class Worker:
    """A system's process.

    command    the beginning of its command, see `worker.py`
    workloads  a JSON file
    vectors    where it is to leave those of the workload "mix"
    """

    def __init__(self, command: Sequence[str], workloads: Path, vectors: Path) -> None:
        self.vectors = vectors
        self.process = subprocess.Popen(
            [*command, str(workloads), str(vectors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker died: {self.process.args}")
        found: dict[str, Any] = json.loads(line)
        return found

    def run(self, workload: str) -> dict[str, Any]:
        """Seconds of each call, and the process's peak memory."""
        assert self.process.stdin
        self.process.stdin.write(workload + "\n")
        self.process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
