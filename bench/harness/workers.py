"""Processes that embed a workload when told: one for each system, see `worker.py`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class WorkerError(Exception):
    """A system's process ended; the text has the last lines of what it said."""


class Worker:
    """A system's process, which starts at once; `ready` waits until it has opened its model.

    command    the beginning of its command, see `worker.py`
    workloads  a JSON file
    vectors    where it is to leave those of the workload "mix"; what it says on stderr goes beside them
    """

    def __init__(self, command: Sequence[str], workloads: Path, vectors: Path) -> None:
        self.vectors, self.log = vectors, vectors.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--serve", str(workloads), str(vectors)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def ready(self) -> None:
        """Wait until workloads can be run. Raises WorkerError: the process ended."""
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print, too
                found: dict[str, Any] = json.loads(line)
                return found
        raise WorkerError(self.log.read_text()[-500:] or f"ended with {self.process.wait()}, said nothing")

    def run(self, workload: str) -> dict[str, Any]:
        """Seconds of each call of a workload, and the process's memory; of "idle", its memory after a rest.

        Raises WorkerError: the process ended.
        """
        assert self.process.stdin
        try:
            self.process.stdin.write(workload + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise WorkerError(self.log.read_text()[-500:] or f"ended: {error}") from error
        return self._read()

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
