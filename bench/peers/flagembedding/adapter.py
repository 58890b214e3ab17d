"""FlagEmbedding's bge-m3 in float32: length-sorted, padded batches, all heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np


def load(variant: str, folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:  # noqa: ARG001
    import torch
    from FlagEmbedding import BGEM3FlagModel

    torch.set_num_threads(threads)
    heads = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
    model = BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu", batch_size=32, passage_max_length=8192, **heads)
    return lambda texts: model.encode(list(texts))["dense_vecs"]
