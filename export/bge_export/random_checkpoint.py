"""Checkpoints of the true architecture with seeded random weights: for tests and speed, not for meaning."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bge_export.config import parse_config
from bge_export.heads import FILES
from bge_export.models import MODELS
from bge_export.weights import Array, Shape

SHARD_BYTES = 256 << 20
BERT_SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}


def write(
    folder: Path, config: dict[str, Any], *, seed: int, lower_case: bool, heads: Sequence[str] = ("dense",)
) -> None:
    """Write config.json, a tokenizer, sharded weights and the heads' files into `folder`, which must exist.

    Linear weights and embeddings are normal with PyTorch's standard deviation for BERT, 0.02; LayerNorm scales lie
    around 1; biases are normal too, so that a graph that forgets one is found out. Heads are in float16, as BAAI's are.
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
    for head in heads:
        if head in FILES:
            _write_head(folder / FILES[head], config["hidden_size"], head, seed)
    write_tokenizer(folder, config, lower_case=lower_case)


def _write_head(path: Path, width: int, head: str, seed: int) -> None:
    rows = 1 if head == "sparse" else width
    state = {"weight": _random(f"{head}.weight", (rows, width), seed), "bias": _random(f"{head}.bias", (rows,), seed)}
    torch.save({name: torch.from_numpy(values).half() for name, values in state.items()}, path)


def write_tokenizer(folder: Path, config: dict[str, Any], *, lower_case: bool) -> None:
    """Write tokenizer.json and tokenizer_config.json of the model's kind, with a vocabulary of the model's size."""
    settings: dict[str, Any]
    if config["model_type"] == "bert":
        tokenizer = bert_tokenizer(config["vocab_size"], lower_case=lower_case)
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower_case}
        settings |= {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    else:
        tokenizer = xlm_roberta_tokenizer(config["vocab_size"])
        settings = {"tokenizer_class": "XLMRobertaTokenizer"}
        settings |= {f"{kind}_token": f"<{kind}>" for kind in ("pad", "unk", "mask")}
        settings |= {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    tokenizer.save(str(folder / "tokenizer.json"))
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


def xlm_roberta_tokenizer(vocab_size: int) -> Tokenizer:
    """A unigram tokenizer with XLM-R's special ids and pipeline. Its pieces are those of `bert_tokenizer`, with the
    mark of a word's beginning where they have no ##; shorter ones are likelier.
    """
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces: dict[str, float] = dict.fromkeys(special, 0.0) | {"▁": -4.0}
    for piece in _pieces():
        for spelled in (piece.removeprefix("##"), "▁" + piece):
            if not spelled.startswith("▁##") and len(pieces) < vocab_size - 1:
                pieces.setdefault(spelled, -5.0 - len(spelled) - len(pieces) / vocab_size)
    filler = (f"▁unused{number}" for number in range(vocab_size))
    while len(pieces) < vocab_size - 1:
        pieces.setdefault(next(filler), -100.0)
    pieces["<mask>"] = 0.0
    tokenizer = Tokenizer(models.Unigram(list(pieces.items()), unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([*special, "<mask>"])
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
