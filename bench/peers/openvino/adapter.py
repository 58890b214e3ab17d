"""OpenVINO on the graph of torch.onnx.export: `variant` float32, or int8, NNCF's static quantisation."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH_TEXTS = 32
CALIBRATION_TEXTS, CALIBRATION_TOKENS = 128, 64


def prepare(checkpoint: Path, folder: Path) -> None:
    """Convert without rounding weights to half, and quantise for random token ids."""
    import shutil

    import nncf
    import openvino

    model = openvino.convert_model(checkpoint / "torch_export.onnx")
    openvino.save_model(model, folder / "float32.xml", compress_to_fp16=False)
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 20000, (CALIBRATION_TEXTS, 1, CALIBRATION_TOKENS))
    feeds = [{"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": row * 0} for row in ids]
    quantised = nncf.quantize(model, nncf.Dataset(feeds), model_type=nncf.ModelType.TRANSFORMER)
    openvino.save_model(quantised, folder / "int8.xml", compress_to_fp16=False)
    shutil.copyfile(checkpoint / "tokenizer.json", folder / "tokenizer.json")


def load(variant: str, folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:
    """One batch at the latency hint, a request a thread; several batches at once at the throughput hint."""
    import openvino
    from tokenizers import Tokenizer

    core, local = openvino.Core(), threading.local()
    precision = {"INFERENCE_PRECISION_HINT": "f32"} if variant == "float32" else {}

    @functools.cache
    def compiled(hint: str) -> Any:
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": hint, **precision}
        return core.compile_model(folder / f"{variant}.xml", "CPU", options)

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(512)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")

    def embed(texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        vectors: list[np.ndarray] = [np.empty(0)] * len(texts)

        def keep(states: np.ndarray, rows: Sequence[int]) -> None:
            for line, row in enumerate(rows):
                vectors[row] = states[line, 0].copy()

        batches = [order[start : start + BATCH_TEXTS] for start in range(0, len(order), BATCH_TEXTS)]
        if len(batches) > 1:
            queue = openvino.AsyncInferQueue(compiled("THROUGHPUT"))
            queue.set_callback(lambda request, rows: keep(request.get_output_tensor(0).data, rows))
            for rows in batches:
                queue.start_async(feeds_of([texts[row] for row in rows], tokenizer), rows)
            queue.wait_all()
        else:
            if not hasattr(local, "request"):
                local.request = compiled("LATENCY").create_infer_request()
            keep(local.request.infer(feeds_of([texts[row] for row in order], tokenizer))[0], order)
        dense = np.stack(vectors)
        return dense / np.linalg.norm(dense, axis=1, keepdims=True)

    return embed


def feeds_of(texts: Sequence[str], tokenizer: Any) -> dict[str, np.ndarray]:
    batch = tokenizer.encode_batch(list(texts))
    ids = np.array([text.ids for text in batch], dtype=np.int64)
    mask = np.array([text.attention_mask for text in batch], dtype=np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
