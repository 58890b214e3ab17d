"""Our bundles; `variant` is the bundle's folder name, with "heads" behind for all three heads.

"rerank" behind it scores a reranker's pairs: the first text is the query, the others are passages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

HEADS = ("dense", "sparse", "colbert")


def load(variant: str, folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:
    from bge_onnx import Embedder, Reranker

    target, _, heads = variant.partition(" ")
    if heads == "rerank":
        reranker = Reranker.open(folder / target, threads=threads)
        return lambda texts: reranker.score([(texts[0], text) for text in texts[1:]], max_tokens=512, progress=False)
    bge = Embedder.open(folder / target, threads=threads)
    wanted = HEADS if heads else HEADS[:1]
    return lambda texts: bge.embed(texts, heads=wanted, progress=False).dense
