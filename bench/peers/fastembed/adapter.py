"""fastembed with our portable export as a custom model: padded batches, which the caller sorts by length.

With the variant "rerank" the first text is a query, and the others are the passages that its reranker scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

NAME = "bench/portable"
BATCH_TEXTS = 32


def load(variant: str, folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:
    if variant == "rerank":
        return reranker(folder / "portable", threads)
    import json

    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    bundle = folder / "portable"
    width = json.loads((bundle / "config.json").read_text())["hidden_size"]
    TextEmbedding.add_custom_model(
        model=NAME,
        pooling=PoolingType.DISABLED,  # the graph's own
        normalization=False,
        sources=ModelSource(hf=NAME),
        dim=width,
        model_file="onnx/model.onnx",
        additional_files=["onnx/model.onnx_data"],
    )
    model = TextEmbedding(NAME, specific_model_path=str(bundle), threads=threads, providers=["CPUExecutionProvider"])

    def embed(texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        found = np.stack(list(model.embed([texts[row] for row in order], batch_size=BATCH_TEXTS)))
        dense = np.empty_like(found)
        dense[order] = found
        return dense

    return embed


def reranker(bundle: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    files = ["onnx/model.onnx_data"]
    TextCrossEncoder.add_custom_model(model=NAME, sources=ModelSource(hf=NAME), additional_files=files)
    providers = ["CPUExecutionProvider"]
    model = TextCrossEncoder(NAME, specific_model_path=str(bundle), threads=threads, providers=providers)

    def score(texts: Sequence[str]) -> np.ndarray:
        query, *passages = texts
        order = sorted(range(len(passages)), key=lambda row: -len(passages[row]))
        found = list(model.rerank(query, [passages[row] for row in order], batch_size=BATCH_TEXTS))
        scores = np.empty(len(passages), dtype=np.float32)
        scores[order] = found
        return scores

    return score
