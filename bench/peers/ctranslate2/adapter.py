"""CTranslate2: `variant` float32 or int8; length-sorted batches, whose padding it removes itself; CLS outside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

BATCH_TOKENS = 1024
END_TOKENS = {"xlm-roberta": 8192}


def prepare(checkpoint: Path, folder: Path) -> None:
    """Convert the checkpoint; weights are rounded when they are loaded."""
    import shutil

    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(checkpoint)).convert(str(folder / "model"), force=True)
    for name in ("tokenizer.json", "config.json"):
        shutil.copyfile(checkpoint / name, folder / name)


def load(variant: str, folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:
    """One batch with all threads in it; several batches with a worker a thread, as its documentation advises."""
    import json

    import ctranslate2
    from tokenizers import Tokenizer

    @functools.cache
    def encoder(workers: int) -> Any:
        options = {"compute_type": variant, "inter_threads": workers, "intra_threads": threads // workers}
        return ctranslate2.Encoder(str(folder / "model"), device="cpu", **options)

    kind = json.loads((folder / "config.json").read_text())["model_type"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(END_TOKENS.get(kind, 512))
    tokenizer.no_padding()
    pool = ThreadPoolExecutor(threads)

    def embed(texts: Sequence[str]) -> np.ndarray:
        ids = [row.ids for row in tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        vectors: list[np.ndarray] = [np.empty(0)] * len(ids)
        batches = []
        while order:
            size = max(1, BATCH_TOKENS // len(ids[order[0]]))
            batches.append(order[:size])
            order = order[size:]
        model = encoder(threads if len(batches) > 1 else 1)

        def run(rows: Sequence[int]) -> None:
            states = np.array(model.forward_batch([ids[row] for row in rows]).last_hidden_state)
            for line, row in enumerate(rows):
                vectors[row] = states[line, 0]

        if len(batches) > 1:
            list(pool.map(run, batches))
        else:
            run(batches[0])
        dense = np.stack(vectors)
        return dense / np.linalg.norm(dense, axis=1, keepdims=True)

    return embed
