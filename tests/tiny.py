"""Tiny checkpoints for tests, and ways to store or damage their files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from bge_export.checkpoint.recipe import Options
from bge_export.export import export
from bge_export.models import random_checkpoint
from bge_export.request import Request
from bge_onnx import Bundle
from bge_onnx.bundle.manifest import sealed
from bge_onnx.text.tokenizer import Tokenizer

CONFIG = {
    "model_type": "bert",
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
}

M3_CONFIG = {
    "model_type": "xlm-roberta",
    "vocab_size": 900,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 1002,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "hidden_act": "gelu",
}


def write_m3_checkpoint(folder: Path) -> Path:
    """Write a two-layer XLM-R of width 32 with both heads' files into `folder`; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    random_checkpoint.write(folder, M3_CONFIG, seed=0, lower_case=False, heads=("dense", "sparse", "colbert"))
    return folder


def write_m3_bundle(
    checkpoint: Path, out: Path, *, target: str = "cpu-fp32", heads: tuple[str, ...] | None = None
) -> Bundle:
    """Export it to `out`."""
    options = Options(pooling="cls", heads=heads)
    return export(Request(model="tiny-m3", target=target, checkpoint=checkpoint, options=options), out)


def write_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    lower_case: bool = True,
    modules: Sequence[str] = (),
    pooling_config: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write a two-layer BERT of width 32 with seeded weights and a tokenizer into `folder`; returns `folder`.

    modules         class names for sentence-transformers' modules.json; none leaves that file out
    pooling_config  the content of 1_Pooling/config.json; None leaves that file out
    changes         keys of config.json that differ from CONFIG
    """
    folder.mkdir(parents=True, exist_ok=True)
    random_checkpoint.write(folder, CONFIG | changes, seed=seed, lower_case=lower_case)
    if modules:
        write_modules(folder, *modules)
    if pooling_config is not None:
        write_json(folder / "1_Pooling/config.json", pooling_config)
    return folder


def write_modules(folder: Path, *modules: str) -> None:
    """Write modules.json as sentence-transformers up to 4 does, or with full type names where `modules` has dots."""
    types = [module if "." in module else f"sentence_transformers.models.{module}" for module in modules]
    paths = ["", *(f"{index}_{kind.rsplit('.', 1)[-1]}" for index, kind in enumerate(types[1:], 1))]
    write_json(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": kind}
            for index, (kind, path) in enumerate(zip(types, paths, strict=True))
        ],
    )


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, making the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def edit_json(path: Path, *, remove: Sequence[str] = (), **changes: Any) -> None:
    """Set and remove keys of a JSON file that is there."""
    record = json.loads(path.read_text(encoding="utf-8")) | changes
    write_json(path, {key: value for key, value in record.items() if key not in remove})


def edit_manifest(folder: Path, *, remove: Sequence[str] = (), **changes: Any) -> None:
    """Set and remove keys of a bundle's manifest, and give it the hash that it should have then."""
    edit_json(folder / "bundle.json", remove=remove, **changes)
    seal(folder)


def seal(folder: Path) -> None:
    """Give a manifest the hash that its other keys should have."""
    path = folder / "bundle.json"
    write_json(path, sealed(json.loads(path.read_text(encoding="utf-8"))))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint that `write_checkpoint` wrote."""
    return load_file(folder / "model-00000.safetensors")


def remove_weights(folder: Path) -> None:
    """Delete every weight file and index."""
    for path in [*folder.glob("*.safetensors*"), *folder.glob("pytorch_model*")]:
        path.unlink()


def store_weights(folder: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Put `tensors` in the place of all weights, as one model.safetensors; returns that file."""
    remove_weights(folder)
    save_file(dict(tensors), folder / "model.safetensors")
    return folder / "model.safetensors"


def store_pickle(folder: Path, value: Any, *, zipped: bool = True) -> Path:
    """Put `value` in the place of all weights, as pytorch_model.bin, in the form before PyTorch 1.6 if not `zipped`."""
    remove_weights(folder)
    torch.save(value, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    return folder / "pytorch_model.bin"


def truncated(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids that the tokenizers library's own truncation gives."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.enable_truncation(tokenizer.max_tokens)
    ids: list[int] = backend.encode(text).ids
    return ids


def summed(width, added=1):
    """The inputs whose products are summed in 16 bits, (sums, 2 * added): neighbours, and the same two places in the
    next quad where two are added.
    """
    starts = [start + first for start in range(0, width, 4 * added) for first in (0, 2)]
    return np.array([[start + 4 * quad + place for quad in range(added) for place in (0, 1)] for start in starts])


def sums_of_one_sign(integers, added=1):
    """What the (N, K) integers of one sign have together in each such sum, the larger of both signs: (N, sums)."""
    groups = integers[:, summed(integers.shape[1], added)].astype(int)
    return np.maximum(np.maximum(groups, 0).sum(axis=2), np.maximum(-groups, 0).sum(axis=2))
