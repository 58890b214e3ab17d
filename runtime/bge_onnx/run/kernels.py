"""The libraries of custom operators that a bundle needs."""

from __future__ import annotations

from pathlib import Path

from bge_kernels import NAME, library
from bge_onnx.bundle.bundle import Bundle
from bge_onnx.errors import OperatorsError


def libraries(bundle: Bundle) -> list[Path]:
    """Those to register with a session. Raises OperatorsError: one is not installed, or another version of it."""
    if not bundle.kernels:
        return []
    built = library()
    if built and bundle.kernels == (NAME,):
        return [built]
    found = NAME if built else "an installation without any"
    raise OperatorsError(
        f"{bundle.folder}: expected the operators {', '.join(bundle.kernels)} that it runs with, found {found}.\n"
        "    Build them with a C++ compiler and ONNX Runtime's headers, or export again with --kernels none:\n"
        "    BGE_KERNELS=1 pip install --force-reinstall --no-deps --no-cache-dir --no-binary bge-onnx bge-onnx"
    )
