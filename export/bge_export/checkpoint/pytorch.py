"""A checkpoint as transformers loads and tokenises it, which is what bundles are compared with."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from bge_export.checkpoint.files import model_folder, transformers_faults
from bge_export.checkpoint.recipe import Recipe
from bge_export.checkpoint.tokenizer import prepend_lower_case

transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its load report tells that BGE does not use the pooler
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def tokenize(tokenizer: transformers.PreTrainedTokenizerBase, recipe: Recipe, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, cut to the recipe's maximum with the end token kept."""
    if recipe.lower_cased:
        tokenizer = copy.deepcopy(tokenizer)
        prepend_lower_case(tokenizer.backend_tokenizer)
    ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=recipe.max_tokens)["input_ids"]
    return ids


def encoder(folder: Path, dtype: torch.dtype) -> Any:
    """A checkpoint's encoder as transformers loads it. Raises CheckpointError: it cannot."""
    folder = model_folder(folder)
    with transformers_faults(folder):
        model: Any = transformers.MODEL_MAPPING[type(transformers.AutoConfig.from_pretrained(folder))]
        settings: dict[str, Any] = {"chunk_size_feed_forward": 0}  # chunks are for training
        if "add_pooling_layer" in inspect.signature(model).parameters:
            settings["add_pooling_layer"] = False
        return transformers.AutoModel.from_pretrained(folder, dtype=dtype, **settings).eval()
