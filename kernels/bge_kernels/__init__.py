"""Custom operators for ONNX Runtime on CPUs, which encoders of `cpu-int8` run faster with.

Wheels hold the library for their platform; an installation from the sources builds it. Everything works without it.
"""

from __future__ import annotations

from pathlib import Path

DOMAIN = "bge_kernels"
"""Of the operators."""

VERSION = 2
"""Of what the operators mean: a bundle that was exported for another one does not run."""

NAME = f"{DOMAIN} {VERSION}"
"""What a bundle that needs the operators calls them."""

HERE = Path(__file__).parent
SUFFIXES = (".so", ".dylib", ".dll")


def library() -> Path | None:
    """The library that ONNX Runtime loads; None where there is none, or one of another version."""
    return next((path for suffix in SUFFIXES if (path := HERE / f"library{VERSION}{suffix}").is_file()), None)


def why_missing() -> str:
    """Why this installation has no library, in a line."""
    try:
        return (HERE / "missing.txt").read_text(encoding="utf-8").strip()
    except OSError:
        return "this installation was made without them"
