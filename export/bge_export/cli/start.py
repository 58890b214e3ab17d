"""The entry point of `bge-export`."""

from __future__ import annotations

from typing import NoReturn

from bge_onnx.cli.start import run


def main() -> NoReturn:
    """Run the command."""
    run("bge_export.cli.main")
