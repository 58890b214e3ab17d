"""Our bundles; `variant` is the bundle's folder name, with "heads" behind for all three heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

HEADS = ("dense", "sparse", "colbert")


def load(variant: str, folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:
    from bge_onnx import Embedder

    target, _, heads = variant.partition(" ")
    bge = Embedder.open(folder / target, threads=threads)
    wanted = HEADS if heads else HEADS[:1]
    return lambda texts: bge.embed(texts, heads=wanted, progress=False).dense
