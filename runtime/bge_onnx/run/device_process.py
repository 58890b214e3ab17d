"""The process of one of several devices: python -P -m bge_onnx.run.device_process DEVICE MEMORY_BYTES."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from typing import Any

from bge_onnx.bundle.bundle import Bundle
from bge_onnx.errors import BgeError, ProviderError, first_line
from bge_onnx.run.session import Session


def serve(device: str, memory_bytes: str) -> None:
    """A bundle and batches in, outputs or errors out, as pickles, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent; when it ends, so does this process
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print, those in C too, must not come between
    bundle: Bundle = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own process wrote it; as it was opened there
    session = Session(bundle, 1, devices=(int(device),), device_memory=int(memory_bytes) or None)
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
        pickle.dump(answer, output, protocol=pickle.HIGHEST_PROTOCOL)
        output.flush()


if __name__ == "__main__":
    serve(*sys.argv[1:])
