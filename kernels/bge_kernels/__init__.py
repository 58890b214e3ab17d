"""Optional custom operators for ONNX Runtime on CPUs, which encoders of `cpu-int8` run faster with.

The library is built with `BGE_KERNELS=1 pip install .`; a plain install has none, and everything works without it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOMAIN = "bge_kernels"
"""Of the operators."""

VERSION = 2
"""Of what the operators mean: a bundle that was exported for another one does not run."""

NAME = f"{DOMAIN} {VERSION}"
"""What a bundle that needs the operators calls them."""


def library() -> Path | None:
    """The library that ONNX Runtime loads; None where it was not built, or for another version."""
    found = importlib.util.find_spec(f"bge_kernels.library{VERSION}")
    path = Path(found.origin) if found and found.origin else None
    return path if path and path.is_file() else None  # an editable installation remembers one that is gone
