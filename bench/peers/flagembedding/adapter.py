"""FlagEmbedding's bge-m3 in float32: length-sorted, padded batches; `variant` dense, or heads for all three.

It runs its first batch twice, to see whether that fits into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np


def load(variant: str, folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:
    import torch
    from FlagEmbedding import BGEM3FlagModel

    torch.set_num_threads(threads)
    all_heads = variant == "heads"
    heads = {"return_dense": True, "return_sparse": all_heads, "return_colbert_vecs": all_heads}
    model = BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu", batch_size=32, passage_max_length=8192, **heads)
    return lambda texts: model.encode(list(texts))["dense_vecs"]
