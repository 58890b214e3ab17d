"""fastembed with our portable export as a custom model: padded batches, which the caller sorts by length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

NAME = "bench/portable"
BATCH_TEXTS = 32


def load(variant: str, folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:  # noqa: ARG001
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
