"""Which weights a checkpoint has."""

from __future__ import annotations

from pathlib import Path

from bge_export.checkpoint import heads
from bge_export.checkpoint.modules import Dense, read_modules, weight_file
from bge_export.checkpoint.weights import sha256_of, weight_files


def checkpoint_sha256(folder: Path) -> str:
    """SHA-256 of all weights, with the heads' and modules'."""
    head_files = [folder / name for name in heads.FILES.values() if (folder / name).is_file()]
    dense = [step for step in read_modules(folder).steps if isinstance(step, Dense)]
    return sha256_of([*weight_files(folder), *head_files, *(weight_file(folder, step.path) for step in dense)])
