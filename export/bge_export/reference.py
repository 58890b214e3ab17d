"""The oracle: the same vectors from PyTorch and transformers, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tqdm import tqdm

from bge_export.checkpoint import Recipe
from bge_onnx.batches import plan_batches

Vectors = NDArray[np.float32]

transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its load report tells that BGE does not use the pooler
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def tokenize(tokenizer: transformers.PreTrainedTokenizerBase, recipe: Recipe, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, cut to the recipe's maximum with the end token kept."""
    if recipe.lower_cased:
        texts = [text.lower() for text in texts]
    ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=recipe.max_tokens)["input_ids"]
    return ids


def embed(
    folder: Path,
    recipe: Recipe,
    token_ids: Sequence[NDArray[np.int64]],
    *,
    budget_tokens: int = 1,
    progress: bool = False,
) -> Vectors:
    """Dense vectors (N, D) float32 of texts that are token ids.

    budget_tokens  1 runs every text alone, without padding: the plainest reference. More pads, and is faster.
    """
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    batches = plan_batches(token_ids, budget_tokens=budget_tokens, layout="padded", pad_id=0)
    dense = np.empty((len(token_ids), model.config.hidden_size), dtype=np.float32)
    with torch.inference_mode(), tqdm(total=len(token_ids), desc="PyTorch", unit="text", disable=not progress) as bar:
        for batch in batches:
            ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            vectors = _pool(hidden, mask, recipe)
            dense[batch.rows] = torch.nn.functional.normalize(vectors, dim=-1) if recipe.normalize else vectors
            bar.update(len(batch.rows))
    return dense


def _pool(hidden: torch.Tensor, mask: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    if recipe.pooling == "cls":
        return hidden[:, 0]
    if recipe.pooling == "last":
        return hidden[torch.arange(len(hidden)), mask.sum(dim=1) - 1]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
