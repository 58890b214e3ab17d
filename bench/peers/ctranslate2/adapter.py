"""CTranslate2: `variant` float32 or int8; length-sorted batches, whose padding it removes itself; CLS outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

BATCH_TOKENS = 4096
END_TOKENS = {"xlm-roberta": 8192}


def prepare(checkpoint: Path, folder: Path) -> None:
    """Convert the checkpoint; weights are rounded when they are loaded."""
    import shutil

    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(checkpoint)).convert(str(folder / "model"), force=True)
    for name in ("tokenizer.json", "config.json"):
        shutil.copyfile(checkpoint / name, folder / name)


def load(variant: str, folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:
    import json

    import ctranslate2
    from tokenizers import Tokenizer

    encoder = ctranslate2.Encoder(str(folder / "model"), device="cpu", compute_type=variant, intra_threads=threads)
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(END_TOKENS.get(kind, 512))
    tokenizer.no_padding()

    def embed(texts: Sequence[str]) -> np.ndarray:
        ids = [row.ids for row in tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        vectors: list[np.ndarray] = [np.empty(0)] * len(ids)
        while order:
            size = max(1, BATCH_TOKENS // len(ids[order[0]]))
            rows, order = order[:size], order[size:]
            states = np.array(encoder.forward_batch([ids[row] for row in rows]).last_hidden_state)
            for line, row in enumerate(rows):
                vectors[row] = states[line, 0]
        dense = np.stack(vectors)
        return dense / np.linalg.norm(dense, axis=1, keepdims=True)

    return embed
