"""sentence-transformers' ONNX backend (optimum-onnx): `variant` O3, optimised float32, or qint8, dynamic int8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

BATCH_TEXTS = 32


def prepare(checkpoint: Path, folder: Path) -> None:
    """Export, optimise and quantise as sentence-transformers' documentation says; written where `load` looks."""
    from sentence_transformers import (
        SentenceTransformer,
        export_dynamic_quantized_onnx_model,
        export_optimized_onnx_model,
    )

    model = SentenceTransformer(str(checkpoint), backend="onnx", device="cpu")
    model.save_pretrained(str(folder))
    model = SentenceTransformer(str(folder), backend="onnx", device="cpu")
    export_optimized_onnx_model(model, "O3", str(folder))
    export_dynamic_quantized_onnx_model(model, best_quantisation(), str(folder), file_suffix="qint8")


def best_quantisation() -> str:
    """The preset for this CPU."""
    flags = Path("/proc/cpuinfo").read_text()
    return "avx512_vnni" if "avx512_vnni" in flags else "avx2"


def load(variant: str, folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:
    import onnxruntime as ort
    from sentence_transformers import CrossEncoder, SentenceTransformer

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if variant == "rerank":
        import torch

        given = {"session_options": options, "provider": "CPUExecutionProvider"}
        reranker = CrossEncoder(
            str(folder),
            backend="onnx",
            device="cpu",
            max_length=512,
            activation_fn=torch.nn.Identity(),
            model_kwargs=given,
        )
        return lambda texts: reranker.predict([(texts[0], text) for text in texts[1:]], show_progress_bar=False)
    arguments = {"file_name": f"model_{variant}.onnx", "session_options": options, "provider": "CPUExecutionProvider"}
    model = SentenceTransformer(str(folder), backend="onnx", device="cpu", model_kwargs=arguments)
    return lambda texts: model.encode(list(texts), batch_size=BATCH_TEXTS, show_progress_bar=False)
