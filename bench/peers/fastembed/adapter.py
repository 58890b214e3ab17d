"""fastembed with our portable export as a custom model: length order as given, padded batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

NAME = "bench/portable"


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
    return lambda texts: np.stack(list(model.embed(list(texts))))
