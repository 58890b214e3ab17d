"""ONNX Runtime, imported in this one place: without telemetry, and with a clear error where it is missing.

From version 1.29 on ONNX Runtime looks up a vendor's event server and writes a device id into the user's cache, when it
is imported and when it runs. A value that the user has given ORT_DISABLE_TELEMETRY is kept.
"""

from __future__ import annotations

import os

from bge_onnx.errors import InstallationError

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    import onnxruntime as ort
except ModuleNotFoundError as error:
    if error.name != "onnxruntime":
        raise
    raise InstallationError(
        "onnxruntime: expected the package, found none.\n"
        "    Install one of its builds: pip install 'bge-onnx[cpu]', or 'bge-onnx[cuda]' for NVIDIA GPUs."
    ) from None

__all__ = ["ort"]
