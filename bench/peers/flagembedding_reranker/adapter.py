"""FlagEmbedding's reranker in float32. Of the texts the first is the query, the others are passages.

Its environment has transformers 4. With transformers 5, FlagEmbedding 1.4.2 cannot join pairs by token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from FlagEmbedding import FlagReranker


def load(variant: str, folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:  # noqa: ARG001
    torch.set_num_threads(threads)
    reranker = FlagReranker(str(folder), use_fp16=False, devices="cpu", batch_size=32)
    return lambda texts: np.array(reranker.compute_score([(texts[0], text) for text in texts[1:]]))
