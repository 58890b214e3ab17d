"""Checkpoints of the true architecture with seeded random weights: for tests and speed, not for meaning."""

from __future__ import annotations

import json
import math
import shutil
import string
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bge_export.checkpoint.config import parse_config
from bge_export.checkpoint.heads import FILES, LINEARS
from bge_export.checkpoint.modules import weight_shapes
from bge_export.checkpoint.recipe import modules_of
from bge_export.checkpoint.weights import Shape
from bge_export.models.families import MODELS
from bge_onnx.errors import CheckpointError

SHARD_BYTES = 256 << 20
CHUNK_ROWS = 8192
BERT_SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}


def write(
    folder: Path,
    config: dict[str, Any],
    *,
    seed: int,
    lower_case: bool,
    heads: Sequence[str] = ("dense",),
    sentencepiece_model: Path | None = None,
) -> None:
    """Write config.json, a tokenizer, sharded weights and the heads' files into `folder`, which must exist.

    sentencepiece_model  Mistral's own tokenizer.model, instead of an untrained tokenizer

    Raises CheckpointError: the disk has no room for them.

    Linear weights and embeddings are normal with PyTorch's standard deviation for BERT, 0.02; LayerNorm scales lie
    around 1; biases are normal too, so that a graph that forgets one is found out. Heads are in float16, as BAAI's are.
    """
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    family = MODELS[config["model_type"]]
    shapes = family.weight_shapes(parse_config(family.Config, config, folder / "config.json"))
    if of_head := weight_shapes(modules_of(folder).steps):
        # as transformers saves a task's model: all but the head's own weights have the model's prefix
        shapes = {
            name if name.startswith("classifier") else f"{family.prefix}{name}": shape
            for name, shape in (shapes | of_head).items()
        }
    dtype = torch.bfloat16 if config.get("dtype") == "bfloat16" else torch.float32
    _require_room(folder, sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize)
    weight_map: dict[str, str] = {}
    with ThreadPoolExecutor() as pool:
        for number, names in enumerate(_shards(shapes)):
            file = f"model-{number:05d}.safetensors"
            tensors = pool.map(lambda name: _random(name, shapes[name], seed, config, dtype), names)
            save_file(dict(zip(names, tensors, strict=True)), folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    for head in heads:
        if head in FILES:
            _write_head(folder / FILES[head], config, head, seed)
    if sentencepiece_model:
        write_llama_tokenizer(folder, sentencepiece_model, family.tokenizer.last)
    else:
        write_tokenizer(folder, config, lower_case=lower_case)


def _require_room(folder: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise CheckpointError(
            f"{folder}: expected {size_bytes / 1e9:.1f} GB free for random weights, found {free / 1e9:.1f}.\n"
            "    Free some, or set TMPDIR to a folder on another disk."
        )


def _write_head(path: Path, config: dict[str, Any], head: str, seed: int) -> None:
    width = config["hidden_size"]
    rows = LINEARS[head].width or width
    shapes = {"weight": (rows, width), "bias": (rows,)}
    state = {name: _random(f"{head}.{name}", shape, seed, config, torch.float16) for name, shape in shapes.items()}
    torch.save(state, path)


def write_tokenizer(folder: Path, config: dict[str, Any], *, lower_case: bool) -> None:
    """Write tokenizer.json and tokenizer_config.json of the model's kind, with a vocabulary of the model's size."""
    family = MODELS[config["model_type"]]
    kind = family.tokenizer
    settings: dict[str, Any] = dict(kind.settings)
    if kind.pieces == "wordpiece":
        tokenizer = bert_tokenizer(config["vocab_size"], lower_case=lower_case)
        settings = {"tokenizer_class": settings.pop("tokenizer_class"), "do_lower_case": lower_case, **settings}
    else:
        tokenizer = unigram_tokenizer(config["vocab_size"], kind.first, kind.last)
        if family.causal:
            settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", **settings}
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_llama_tokenizer(folder: Path, sentencepiece_model: Path, more: Sequence[str]) -> None:
    """Write tokenizer.json of a Llama-type SentencePiece model with `more` special tokens, as bge-en-icl's is.

    transformers 4 made such files: a space in front of every text (`legacy`, `add_prefix_space`), which decoding takes
    away again. transformers 5 leaves it out where it reads the SentencePiece model itself.
    """
    specials = ["<unk>", "<s>", "</s>", *more]
    settings: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    settings |= {"pad_token": "<unk>", "additional_special_tokens": list(more)}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    copied = Path(shutil.copyfile(sentencepiece_model, folder / "tokenizer.model"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder).backend_tokenizer
    copied.unlink()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


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


def unigram_tokenizer(vocab_size: int, first: Sequence[str], last: Sequence[str]) -> Tokenizer:
    """A unigram tokenizer with XLM-R's pipeline and special tokens at both ends of its vocabulary. Its pieces are
    `bert_tokenizer`'s, with the mark of a word's beginning where they have no ##; shorter ones are likelier.
    """
    pieces: dict[str, float] = dict.fromkeys(first, 0.0) | {"▁": -4.0}
    room = vocab_size - len(last)
    for piece in _pieces():
        for spelled in (piece.removeprefix("##"), "▁" + piece):
            if not spelled.startswith("▁##") and len(pieces) < room:
                pieces.setdefault(spelled, -5.0 - len(spelled) - len(pieces) / vocab_size)
    filler = (f"▁unused{number}" for number in range(vocab_size))
    while len(pieces) < room:
        pieces.setdefault(next(filler), -100.0)
    pieces |= dict.fromkeys(last, 0.0)
    tokenizer = Tokenizer(models.Unigram(list(pieces.items()), unk_id=first.index("<unk>")))
    tokenizer.normalizer = normalizers.NFKC()
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    begin, end = ("<s>", "</s>") if "<s>" in first else ("<bos>", "<eos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} {end} $B {end}",
        special_tokens=[(begin, first.index(begin)), (end, first.index(end))],
    )
    tokenizer.add_special_tokens([*first, *last])
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


def _random(name: str, shape: Shape, seed: int, config: Mapping[str, Any], dtype: torch.dtype) -> torch.Tensor:
    """Values that depend on seed, name and shape alone, so that any order of writing gives the same checkpoint."""
    words = np.frombuffer(name.encode(), dtype=np.uint8).tolist()
    rng = np.random.default_rng([seed, *words])
    tensor = torch.empty(shape, dtype=dtype)
    for start in range(0, shape[0], CHUNK_ROWS):  # a word table may be larger than memory in float32
        rows = tensor[start : start + CHUNK_ROWS]
        values = rng.standard_normal(tuple(rows.shape), dtype=np.float32) * np.float32(0.02)
        if name.endswith(("LayerNorm.weight", "layernorm.weight", "norm.weight")):
            values *= 5
            values += np.float32(MODELS[config["model_type"]].neutral_norm)
        rows.copy_(torch.from_numpy(values))
    return tensor
