"""The files of a portable bundle that sentence-transformers, Optimum, fastembed and transformers.js read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from bge_export.checkpoint.config import read_json
from bge_export.checkpoint.files import model_folder
from bge_export.checkpoint.modules import POOLING_FLAGS, POOLING_MODES, Dense, weight_file
from bge_export.checkpoint.recipe import Recipe
from bge_onnx.bundle.heads import SCORE

TYPES = "sentence_transformers.models"
"""Module names that every version of sentence-transformers reads."""

LENGTHS = ("max_length", "model_max_length")
"""Keys of tokenizer_config.json that cut texts: fastembed takes the smaller, others the second."""


def write_portable_files(folder: Path, checkpoint: Path, recipe: Recipe) -> None:
    """Write all but the graph and the tokenizer, which must be in `folder` already."""
    config = read_json(model_folder(checkpoint) / "config.json")
    config["transformers.js_config"] = {"use_external_data_format": {"model.onnx": True}}
    write_json(folder / "config.json", config)
    if recipe.heads == (SCORE,):  # sentence-transformers' CrossEncoder reads config.json and the tokenizer alone
        one_length(folder / "tokenizer_config.json", recipe.max_tokens)
        return
    _write_modules(folder, checkpoint, recipe)
    width = config["hidden_size"]
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": width, **pooling_record(recipe.pooling)})
    length = {"max_seq_length": recipe.max_tokens, "do_lower_case": recipe.lower_cased}
    write_json(folder / "sentence_bert_config.json", length)
    write_json(folder / "config_sentence_transformers.json", _settings(checkpoint, recipe))
    one_length(folder / "tokenizer_config.json", recipe.max_tokens)


def pooling_record(pooling: str) -> dict[str, Any]:
    """Modes with + between as a Pooling module's file has them: a flag each where these tell the order too."""
    modes = pooling.split("+")
    flagged = [mode for mode in POOLING_FLAGS.values() if mode in modes]
    if modes == flagged:
        return {flag: mode in modes for flag, mode in POOLING_FLAGS.items()}
    theirs = {ours: name for name, ours in POOLING_MODES.items()}
    return {"pooling_mode": [theirs.get(mode, mode) for mode in modes]}  # type: ignore[call-overload]


def one_length(path: Path, max_tokens: int) -> None:
    """Give every key of tokenizer_config.json that cuts texts the same length."""
    record = read_json(path)
    write_json(path, record | {key: max_tokens for key in LENGTHS if key in record or key == "model_max_length"})


def write_json(path: Path, value: Any) -> None:
    """Write JSON, and the folder that it is to lie in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_modules(folder: Path, checkpoint: Path, recipe: Recipe) -> None:
    kinds, paths = ["Transformer", "Pooling"], ["", "1_Pooling"]
    for step in recipe.steps:
        kind = type(step).__name__
        paths.append(f"{len(kinds)}_{kind}")
        kinds.append(kind)
        if isinstance(step, Dense):
            target = folder / paths[-1]
            target.mkdir()
            for source in (checkpoint / step.path / "config.json", weight_file(checkpoint, step.path)):
                shutil.copyfile(source, target / source.name)
    if recipe.normalize:
        paths.append(f"{len(kinds)}_Normalize")
        kinds.append("Normalize")
    rows = [
        {"idx": index, "name": str(index), "path": path, "type": f"{TYPES}.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write_json(folder / "modules.json", rows)


def _settings(checkpoint: Path, recipe: Recipe) -> dict[str, Any]:
    """Prompts under the names that `encode_query` and `encode_document` look for, the others as they were."""
    path = checkpoint / "config_sentence_transformers.json"
    stored = read_json(path) if path.is_file() else {}
    before = stored.get("prompts") or {}
    prompts = {**before, "query": recipe.prompts["query"], "document": recipe.prompts["passage"]}
    settings = {
        "prompts": {name: prompt for name, prompt in prompts.items() if prompt or name in before},
        "default_prompt_name": stored.get("default_prompt_name"),
        "similarity_fn_name": recipe.similarity,
    }
    return settings if recipe.truncate_dim is None else {**settings, "truncate_dim": recipe.truncate_dim}
