"""sentence-transformers on PyTorch: length-sorted, padded batches. `variant`: float32, bfloat16, or int8 (dynamic)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

BATCH_TEXTS = 32  # sentence-transformers' default


def load(variant: str, folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer

    torch.set_num_threads(threads)
    if variant == "rerank":
        reranker = CrossEncoder(str(folder), device="cpu", max_length=512, activation_fn=torch.nn.Identity())
        return lambda texts: reranker.predict([(texts[0], text) for text in texts[1:]], show_progress_bar=False)
    if variant == "bfloat16" and not {"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text().split()):
        raise SystemExit("this CPU has no instructions for bfloat16")
    dtype = torch.bfloat16 if variant == "bfloat16" else torch.float32
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"torch_dtype": dtype})
    if variant == "int8":
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    def embed(texts: Sequence[str]) -> np.ndarray:
        found = model.encode(list(texts), batch_size=BATCH_TEXTS, show_progress_bar=False, convert_to_tensor=True)
        return found.float().numpy()

    return embed
