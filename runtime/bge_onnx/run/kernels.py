"""The libraries of custom operators that a bundle needs."""

from __future__ import annotations

import ctypes
from pathlib import Path

from bge_kernels import NAME, library, why_missing
from bge_onnx.bundle.bundle import Bundle
from bge_onnx.errors import OperatorsError, first_line
from bge_onnx.run.onnx_runtime import ort


def libraries(bundle: Bundle) -> list[Path]:
    """Those to register with a session. Raises OperatorsError: one is not installed, or another version of it."""
    if not bundle.kernels:
        return []
    built = library()
    if built and bundle.kernels == (NAME,):
        return [built]
    found = NAME if built else f"none: {why_missing()}"
    raise OperatorsError(
        f"{bundle.folder}: expected the operators {', '.join(bundle.kernels)} that it runs with, found {found}.\n"
        "    pip install --upgrade bge-onnx brings them. If that does not help, export again."
    )


def register(options: ort.SessionOptions, path: Path) -> None:
    """Let sessions with these options run a library's operators.

    Raises OperatorsError: it is damaged, is another platform's, or needs a newer ONNX Runtime; or BGE_KERNELS_ISA names
    an instruction set that this CPU does not have.
    """
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime's exceptions have no common class but Exception
        raise OperatorsError(
            f"{path}: expected a library of operators that ONNX Runtime {ort.__version__} loads, found: "
            f"{first_line(error)}\n"
            "    pip install --force-reinstall --no-deps bge-onnx brings a sound one. BGE_KERNELS_ISA should be empty."
        ) from error


def instruction_set() -> str:
    """What the operators run with here, as "avx512_vnni"; or that there are none."""
    path = library()
    if path is None:
        return "not installed"
    try:
        name = ctypes.CDLL(str(path)).BgeKernelsInstructionSet
    except (OSError, AttributeError):
        return "cannot be loaded"
    name.restype = ctypes.c_char_p
    return f"on {name().decode()}"
