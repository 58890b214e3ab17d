"""Checkpoints of the true architecture with seeded random weights: for tests and speed, not for meaning."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from bge_export.config import parse_config
from bge_export.models import MODELS
from bge_export.weights import Array, Shape

SHARD_BYTES = 256 << 20
BERT_SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}


def write(folder: Path, config: dict[str, Any], *, seed: int, lower_case: bool) -> None:
    """Write config.json, a tokenizer and sharded weights into `folder`, which must exist.

    Linear weights and embeddings are normal with PyTorch's standard deviation for BERT, 0.02; LayerNorm scales lie
    around 1; biases are normal too, so that a graph that forgets one is found out.
    """
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    model = MODELS[config["model_type"]]
    shapes = model.weight_shapes(parse_config(model.Config, config, folder / "config.json"))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(_shards(shapes)):
        file = f"model-{number:05d}.safetensors"
        save_file({name: _random(name, shapes[name], seed) for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    bert_tokenizer(config["vocab_size"], lower_case=lower_case).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower_case, "model_max_length": 512}
    settings |= {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def bert_tokenizer(vocab_size: int, *, lower_case: bool) -> Tokenizer:
    """A WordPiece tokenizer with BERT's special ids: ASCII letters, digits, punctuation and common Chinese characters
    stand for themselves; two- and three-letter pieces fill up the vocabulary.
    """
    vocab = {f"[unused{number}]": number for number in range(104) if number not in BERT_SPECIAL.values()} | BERT_SPECIAL
    for piece in _pieces():
        if len(vocab) == vocab_size:
            break
        vocab.setdefault(piece, len(vocab))
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    tokenizer.add_special_tokens(list(BERT_SPECIAL))
    return tokenizer


def _pieces() -> Iterator[str]:
    letters = string.ascii_lowercase
    yield from string.punctuation + string.digits + letters
    yield from (f"##{letter}" for letter in letters + string.digits)
    yield from (chr(code) for code in range(0x4E00, 0x4E00 + 8000))
    pairs = [first + second for first in letters for second in letters]
    yield from pairs
    yield from (f"##{pair}" for pair in pairs)
    triples = (pair + letter for pair in pairs for letter in letters)
    yield from (piece for triple in triples for piece in (triple, f"##{triple}"))


def _shards(shapes: dict[str, Shape]) -> Iterator[list[str]]:
    names: list[str] = []
    size_bytes = 0
    for name, shape in shapes.items():
        names.append(name)
        size_bytes += 4 * int(np.prod(shape))
        if size_bytes >= SHARD_BYTES:
            yield names
            names, size_bytes = [], 0
    if names:
        yield names


def _random(name: str, shape: Shape, seed: int) -> Array:
    """Values that depend on seed, name and shape alone, so that any order of writing gives the same checkpoint."""
    words = np.frombuffer(name.encode(), dtype=np.uint8).tolist()
    values = np.random.default_rng([seed, *words]).standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    return 1 + 5 * values if name.endswith("LayerNorm.weight") else values
