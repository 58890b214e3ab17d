"""OpenVINO on the graph of torch.onnx.export: `variant` float32, or int8, NNCF's static quantisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

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
    import openvino
    from tokenizers import Tokenizer

    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(folder / f"{variant}.xml", "CPU", hints)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(512)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")

    def embed(texts: Sequence[str]) -> np.ndarray:
        request = model.create_infer_request()  # one for each caller's thread
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        vectors: list[np.ndarray] = [np.empty(0)] * len(texts)
        for start in range(0, len(order), BATCH_TEXTS):
            rows = order[start : start + BATCH_TEXTS]
            batch = tokenizer.encode_batch([texts[row] for row in rows])
            ids = np.array([text.ids for text in batch], dtype=np.int64)
            mask = np.array([text.attention_mask for text in batch], dtype=np.int64)
            feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            states = request.infer(feeds)[0]
            for line, row in enumerate(rows):
                vectors[row] = states[line, 0].copy()
        dense = np.stack(vectors)
        return dense / np.linalg.norm(dense, axis=1, keepdims=True)

    return embed
