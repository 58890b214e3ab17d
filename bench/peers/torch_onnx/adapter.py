"""The graph of torch.onnx.export on ONNX Runtime, length-sorted and padded, as Optimum's users run it.

`variant`: float32, int8 (quantize_dynamic), or heads (bge-m3's three outputs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

BATCH_TEXTS = 32
FILES = {"float32": "torch_export.onnx", "int8": "torch_export_int8.onnx", "heads": "export/torch_export.onnx"}


def load(variant: str, folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:
    import onnxruntime as ort
    from tokenizers import Tokenizer

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(folder / FILES[variant]), options, providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    heads = variant == "heads"
    tokenizer.enable_truncation(8192 if heads else 512)
    tokenizer.enable_padding(**({"pad_id": 1, "pad_token": "<pad>"} if heads else {"pad_id": 0, "pad_token": "[PAD]"}))

    def embed(texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        dense = np.empty((len(texts), session.get_outputs()[0].shape[-1]), dtype=np.float32)
        for start in range(0, len(order), BATCH_TEXTS):
            rows = order[start : start + BATCH_TEXTS]
            batch = tokenizer.encode_batch([texts[row] for row in rows])
            ids = np.array([text.ids for text in batch], dtype=np.int64)
            mask = np.array([text.attention_mask for text in batch], dtype=np.int64)
            feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            found = session.run(None, {name: feeds[name] for name in names})[0]
            dense[rows] = found if heads else found[:, 0]
        return dense / np.linalg.norm(dense, axis=1, keepdims=True)

    return embed
