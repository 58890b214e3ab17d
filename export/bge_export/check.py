"""Parity: a bundle's vectors against float32 PyTorch, on texts of every kind and length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bge_export import checkpoint_tokenizer, reference
from bge_export.checkpoint import Recipe
from bge_onnx import Embedder
from bge_onnx.bundle import HeadParity, Parity

LENGTHS = (
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    15,
    16,
    17,
    31,
    32,
    33,
    63,
    64,
    65,
    100,
    127,
    128,
    129,
    200,
    255,
    256,
    257,
    384,
    511,
    512,
)
"""Around the multiples where kernels have tails, up to the model's limit."""

TEXTS = (
    "",
    " \t\n ",
    "a",
    "What is BM25?",
    "BM25 is a bag-of-words retrieval function that ranks documents by the query terms appearing in each of them.",
    "The Quick BROWN Fox Jumps Over the lazy dog, 3.14159 times: naïve café, Ångström, ﬁne.",
    "为这个句子生成表示以用于检索相关文章：什么是向量检索？BGE 模型由智源研究院发布。",
    "混合 English 和中文 with NUMBERS 12345 ！？。，",
    "吾輩は猫である。名前はまだ無い。",
    "임베딩 모델은 문장을 벡터로 바꾼다. Модель превращает текст в вектор. النموذج يحول النص إلى متجه",
    "😀👩‍👩‍👧‍👦 emoji \u200b zero width \ufeff and \x00 control \x7f characters",
    "[CLS] special tokens [SEP] inside [MASK] a [PAD] text [UNK]",
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\path\\file.txt SELECT * FROM t WHERE x>=1;",
    "supercalifragilisticexpialidocious" * 4,
    "one two three four five six seven eight nine ten " * 80,
    "检索" * 400,
)


@dataclass(frozen=True, slots=True)
class Expected:
    """What PyTorch gives: token ids per text, the vectors (N, D) of those and of random ids of each length."""

    token_ids: list[NDArray[np.int64]]
    texts: int  # the first so many of token_ids are of TEXTS
    dense: NDArray[np.float32]


def expect(checkpoint: Path, recipe: Recipe) -> Expected:
    """Run the reference. PyTorch's memory is free again afterwards."""
    tokenizer = checkpoint_tokenizer.load(checkpoint)
    of_texts = reference.tokenize(tokenizer, recipe, TEXTS)
    special = {"first": tokenizer.cls_token_id, "last": tokenizer.sep_token_id}
    rng = np.random.default_rng(0)
    of_lengths = []
    for length in (length for length in LENGTHS if length <= recipe.max_tokens):
        ids = rng.integers(0, len(tokenizer), length)
        ids[-1], ids[0] = special["last"], special["first"]
        of_lengths.append(ids)
    token_ids = [np.array(ids, dtype=np.int64) for ids in (*of_texts, *of_lengths)]
    return Expected(token_ids, len(of_texts), reference.embed(checkpoint, recipe, token_ids))


def compare(embedder: Embedder, expected: Expected, *, limit: float) -> Parity:
    """Compare a bundle with what PyTorch gave."""
    ours = embedder.tokenizer.encode(TEXTS)
    mismatches = sum(not np.array_equal(a, b) for a, b in zip(ours, expected.token_ids[: expected.texts], strict=True))
    dense = embedder.embed_token_ids(expected.token_ids).dense
    head = worst(dense, expected.dense, [len(ids) for ids in expected.token_ids], limit=limit)
    return Parity(
        texts=len(expected.token_ids),
        heads={"dense": head},
        tokenizer_mismatches=mismatches,
        reference=f"transformers {version('transformers')}, torch {version('torch')}, float32",
    )


def worst(
    found: NDArray[np.float32], wanted: NDArray[np.float32], tokens: Sequence[int], *, limit: float
) -> HeadParity:
    """The largest absolute difference of vectors (N, D), as if those wanted had length 1; NaN counts as infinite."""
    lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
    errors = (np.abs(found - wanted) / lengths).max(axis=1)
    errors = np.where(np.isnan(errors), np.inf, errors)
    text = int(errors.argmax())
    return HeadParity(max_error=float(errors[text]), limit=limit, text=text, tokens=tokens[text])
