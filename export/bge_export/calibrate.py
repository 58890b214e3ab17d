"""Calibration: what a float32 model's linear layers are given on some texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tqdm import tqdm

from bge_export import checkpoint_tokenizer, reference
from bge_export.checkpoint import Recipe
from bge_export.gptq import Hessians
from bge_onnx.batches import plan_batches
from bge_onnx.errors import InputError

RANDOM = "random"
"""In the place of a file: token ids drawn evenly from the vocabulary."""

LEAST_TEXTS = 64
RANDOM_TEXTS = 256
RANDOM_TOKENS = 64
BATCH_TOKENS = 4096
MOST_TOKENS = 512
"""Longer texts are cut: a layer's inputs are what counts, and attention's cost is not."""


def describe(source: str | Path) -> str:
    """What a bundle's manifest says of its calibration: the same words for the same texts."""
    if str(source) == RANDOM:
        return f"{RANDOM_TEXTS} texts of random token ids"
    return f"texts with sha256 {hashlib.sha256(Path(source).read_bytes()).hexdigest()}"


def hessians(folder: Path, recipe: Recipe, source: str | Path, *, progress: bool = False) -> Hessians:
    """Of every encoder layer's linear modules, by name, X'X of their inputs X on the texts of `source`.

    source  a file with a text a line, or "random"
    Raises InputError: a file with too few texts, or not UTF-8.
    """
    tokenizer = checkpoint_tokenizer.load(folder)
    token_ids = _random(tokenizer, recipe) if str(source) == RANDOM else _read(Path(source), tokenizer, recipe)
    model: Any = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    sums: dict[str, torch.Tensor] = {}
    kept = torch.empty(0, dtype=torch.bool)

    def watch(name: str) -> Any:
        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])[kept]
            found = rows.T @ rows
            sums[name] = sums[name] + found if name in sums else found

        return add

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.endswith((".key", ".value")):  # these share query's input
            module.register_forward_pre_hook(watch(name))
    batches = plan_batches(token_ids, budget_tokens=BATCH_TOKENS, layout="padded", pad_id=tokenizer.pad_token_id)
    with torch.inference_mode():
        for batch in tqdm(batches, desc="calibration", unit="batch", disable=not progress):
            mask = torch.from_numpy(batch.attention_mask)
            kept = mask.reshape(-1).bool()
            model(input_ids=torch.from_numpy(batch.input_ids), attention_mask=mask)
    found = {name: matrix.numpy() for name, matrix in sums.items()}
    for name in list(found):
        if name.endswith(".query"):
            stem = name.removesuffix("query")
            found |= {f"{stem}key": found[name], f"{stem}value": found[name]}
    return found


def _read(path: Path, tokenizer: transformers.PreTrainedTokenizerBase, recipe: Recipe) -> list[NDArray[np.int64]]:
    try:
        texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, a text a line, found {error}.") from None
    if len(texts) < LEAST_TEXTS:
        raise InputError(
            f"{path}: expected at least {LEAST_TEXTS} texts, one a line, found {len(texts)}.\n"
            "    Some hundred sentences and passages like those to embed are enough; --calibrate random needs none."
        )
    ids = reference.tokenize(tokenizer, recipe, texts)
    return [np.array(row[:MOST_TOKENS], dtype=np.int64) for row in ids]


def _random(tokenizer: transformers.PreTrainedTokenizerBase, recipe: Recipe) -> Sequence[NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    length = min(RANDOM_TOKENS, recipe.max_tokens)
    ids = rng.integers(0, len(tokenizer), (RANDOM_TEXTS, length))
    ids[:, 0], ids[:, -1] = checkpoint_tokenizer.ends(tokenizer)
    return list(ids)
