"""Several GPUs behind one Embedder: a process each, as one process runs one batch at a time."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import re
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_onnx.bundle.bundle import Bundle
from bge_onnx.errors import ProviderError, first_line
from bge_onnx.run.batches import Batch
from bge_onnx.run.cuda import Outputs

SHOW_KERNELS = """
import sys
from bge_onnx import Embedder
from bge_onnx.model import open_model
model = open_model(sys.argv[1])
for texts in (["what is BM25?"], ["aa bb cc " * 60] * 32, ["aa bb cc " * 680]):
    if isinstance(model, Embedder):
        model.embed(texts, progress=False)
    else:
        model.score([("", text) for text in texts], progress=False)
"""
KERNEL_LINE = re.compile(r"Node=(\S+) .*SdpaKernel=([A-Z_]+)")
KERNELS_SECONDS = 600


class DeviceProcess:
    """A bundle's session on one device, in a process that ends with this object."""

    def __init__(self, bundle: Bundle, device: int, memory_bytes: int | None) -> None:
        self.device = device
        # -P: a file of the working directory is never taken for one of our modules
        command = [sys.executable, "-P", "-m", "bge_onnx.run.device_process", str(device), str(memory_bytes or 0)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - ours
        weakref.finalize(self, _end, self._process)
        assert self._process.stdin
        with contextlib.suppress(OSError):  # it has ended: the first batch tells
            pickle.dump(bundle, self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()

    def run(self, batch: Batch, names: Sequence[str]) -> list[tuple[Batch, Outputs]]:
        """The batch, or its halves, with the outputs `names`.

        Raises BgeError: what the session raises. ProviderError: the process ended, or its pipe is out of step.
        """
        try:
            assert self._process.stdin
            assert self._process.stdout
            pickle.dump((batch, tuple(names)), self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
            answer: Any = pickle.load(self._process.stdout)  # noqa: S301 - our own process wrote it
        except BaseException as error:  # an interrupted answer would be taken for the next one
            self._process.kill()
            status = self._process.wait()
            if not isinstance(error, Exception):
                raise
            raise ProviderError(
                f"device {self.device}: expected its process to run, found that it ended with {status} "
                f"({first_line(error)}).\n    Open the bundle again, on that device alone to see what is wrong."
            ) from error
        if isinstance(answer, Exception):
            raise answer
        found: list[tuple[Batch, Outputs]] = answer
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Devices:
    """The processes of several devices; those that are idle wait in line."""

    processes: tuple[DeviceProcess, ...]
    idle: queue.SimpleQueue[DeviceProcess]
    taking_all: threading.Lock

    @classmethod
    def start(cls, bundle: Bundle, devices: Sequence[int], memory_bytes: int | None) -> Devices:
        """A process for each device; their sessions load with the first batch, and must be this bundle's."""
        processes = tuple(DeviceProcess(bundle, device, memory_bytes) for device in devices)
        idle = queue.SimpleQueue[DeviceProcess]()
        for process in processes:
            idle.put(process)
        return cls(processes, idle, threading.Lock())

    def run(self, batch: Batch, names: Sequence[str]) -> list[tuple[Batch, Outputs]]:
        """As `DeviceProcess.run`, on the first device that is idle."""
        process = self.idle.get()
        try:
            return process.run(batch, names)
        finally:
            self.idle.put(process)

    def each(self, batches: Sequence[Batch], names: Sequence[str]) -> None:
        """Run the batches on every device, all at the same time."""

        def run_all(process: DeviceProcess) -> None:
            for batch in batches:
                process.run(batch, names)

        taken: list[DeviceProcess] = []
        try:
            with self.taking_all:  # two callers that each hold some would wait for each other
                while len(taken) < len(self.processes):
                    taken.append(self.idle.get())
            with ThreadPoolExecutor(len(taken)) as pool:
                list(pool.map(run_all, taken))
        finally:  # Ctrl-C while it waits, too
            for process in taken:
                self.idle.put(process)


def attention_kernels(folder: Path) -> dict[str, int]:
    """The attention kernels that ONNX Runtime takes on the first GPU, and for how many nodes each.

    A process of its own embeds a short text, a batch and one of 2000 tokens. Raises ProviderError: it cannot.
    """
    command = [sys.executable, "-P", "-c", SHOW_KERNELS, str(folder)]
    environment = {**os.environ, "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO": "1"}
    try:
        done = subprocess.run(  # noqa: S603 - ours
            command, env=environment, capture_output=True, text=True, check=False, timeout=KERNELS_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ProviderError(f"{folder}: expected to run within {KERNELS_SECONDS} s, found that it did not.") from error
    if done.returncode:
        raise ProviderError(f"{folder}: expected to run, found {done.stderr.strip()[-500:]}")
    return kernels_of(done.stdout + done.stderr)


def kernels_of(said: str) -> dict[str, int]:
    """How many nodes took each kernel, by what ONNX Runtime prints of every run:
    https://github.com/microsoft/onnxruntime/blob/d61311542f326fa8db0180d91b9fadb2e5baf180/onnxruntime/contrib_ops/cuda/bert/attention_kernel_options.cc
    """
    found = {(kernel, node) for node, kernel in KERNEL_LINE.findall(said)}
    return dict(Counter(kernel for kernel, _ in sorted(found)))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close a process's input, at which it ends, and wait for that."""
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            stream and stream.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
