"""Several GPUs behind one Embedder: a process each, as one process runs one batch at a time."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bge_onnx.batches import Batch
from bge_onnx.bundle import Bundle
from bge_onnx.cuda import CUDA
from bge_onnx.errors import BgeError, InputError, ProviderError, first_line

Outputs = Mapping[str, NDArray[Any]]


SHOW_KERNELS = """
import sys
from bge_onnx import Embedder
bge = Embedder.open(sys.argv[1], devices=[int(sys.argv[2])])
for texts in (["what is BM25?"], ["aa bb cc " * 60] * 32, ["aa bb cc " * 2700]):
    bge.embed(texts, progress=False)
"""


class DeviceProcess:
    """A bundle's session on one device, in a process that ends with this object."""

    def __init__(self, folder: Path, device: int, memory_bytes: int | None) -> None:
        self.device = device
        command = [sys.executable, "-m", "bge_onnx.devices", str(folder), str(device), str(memory_bytes or 0)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - ours
        weakref.finalize(self, _end, self._process)

    def run(self, batch: Batch, names: Sequence[str]) -> list[tuple[Batch, Outputs]]:
        """The batch, or its halves, with the outputs `names`.

        Raises BgeError: what the session raises. ProviderError: the process ended.
        """
        try:
            assert self._process.stdin
            assert self._process.stdout
            pickle.dump((batch, tuple(names)), self._process.stdin)
            self._process.stdin.flush()
            answer: Any = pickle.load(self._process.stdout)  # noqa: S301 - our own process wrote it
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise ProviderError(
                f"device {self.device}: expected its process to run, found that it ended with {self._process.wait()}.\n"
                "    Open the bundle again; `bge info` on that device alone says what is wrong."
            ) from error
        if isinstance(answer, Exception):
            raise answer
        found: list[tuple[Batch, Outputs]] = answer
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Devices:
    """The processes of several devices; those that are idle wait in line."""

    idle: queue.SimpleQueue[DeviceProcess]

    @classmethod
    def start(cls, folder: Path, devices: Sequence[int], memory_bytes: int | None) -> Devices:
        """A process for each device; their sessions load with the first batch."""
        idle = queue.SimpleQueue[DeviceProcess]()
        for device in devices:
            idle.put(DeviceProcess(folder, device, memory_bytes))
        return cls(idle)

    def run(self, batch: Batch, names: Sequence[str]) -> list[tuple[Batch, Outputs]]:
        """As `DeviceProcess.run`, on the first device that is idle."""
        process = self.idle.get()
        try:
            return process.run(batch, names)
        finally:
            self.idle.put(process)


def attention_kernels(folder: Path, device: int = 0) -> list[str]:
    """The attention kernels that ONNX Runtime says it takes for a short text, a batch and a long text, on a GPU."""
    command = [sys.executable, "-c", SHOW_KERNELS, str(folder), str(device)]
    environment = {**os.environ, "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "SdpaKernel" in line]
    return sorted(set(lines)) or [f"nothing was said, exit status {done.returncode}: {done.stderr[-300:].strip()}"]


def devices_of(bundle: Bundle, devices: Sequence[int] | None, memory_bytes: int | None) -> tuple[int, ...]:
    """The devices that are asked for, or the first.

    Raises InputError: devices or their memory for a bundle that runs on the CPU; no number, one twice, no memory.
    """
    if bundle.provider != CUDA and (devices is not None or memory_bytes is not None):
        raise InputError(
            f"devices: expected a bundle for GPUs, found {bundle.name} ({bundle.target}).\n"
            "    Leave devices and device_memory out, or export for cuda-fp16."
        )
    numbers = [0] if devices is None else list(devices)
    if (
        not numbers
        or not all(isinstance(number, int) and number >= 0 for number in numbers)
        or len(set(numbers)) < len(numbers)
    ):
        raise InputError(f"devices: expected distinct numbers from 0 on, as nvidia-smi lists them, found {devices!r}")
    if memory_bytes is not None and memory_bytes < 1:
        raise InputError(f"device_memory: expected bytes, at least 1, found {memory_bytes}")
    return tuple(numbers)


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


def _serve(folder: str, device: str, memory_bytes: str) -> None:
    """The process: batches in, outputs or errors out, until the input ends."""
    from bge_onnx.session import Session  # noqa: PLC0415 - it imports this module

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, whose end ends this one
    output, sys.stdout = sys.stdout.buffer, sys.stderr  # what libraries print must not come between
    session = Session(Bundle.open(folder), 1, devices=(int(device),), device_memory=int(memory_bytes) or None)
    while True:
        try:
            batch, names = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own process wrote it
        except EOFError:
            return
        try:
            answer: Any = [(part, dict(outputs)) for part, outputs in session.run([batch], names)]
        except BgeError as error:
            answer = error
        except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no common class but Exception
            answer = ProviderError(f"device {device}: expected the batch to run, found {first_line(error)}")
        pickle.dump(answer, output)
        output.flush()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
