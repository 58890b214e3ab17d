"""Parity: a bundle's vectors against float32 PyTorch, on texts of every kind and length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bge_export import checkpoint_tokenizer, reference
from bge_export.checkpoint import Recipe
from bge_export.weights import Rounding, Weights
from bge_onnx import Embedder
from bge_onnx.bundle import HeadParity, Measure, Parity
from bge_onnx.embeddings import Wanted

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
    1024,
    2048,
    8192,
)
"""Around the multiples where kernels have tails, up to the model's limit."""

SHORT_TOKENS = 512
PREFIXES = 3
"""Texts of a decoder whose first half is given as a prefix too."""

MULTIPLICATIONS = 10**13
"""That a check may cost, times two: some minutes on two cores."""

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
    "<s> special tokens </s> inside <mask> a <pad> text <unk> of XLM-R",
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\path\\file.txt SELECT * FROM t WHERE x>=1;",
    "supercalifragilisticexpialidocious" * 4,
    "one two three four five six seven eight nine ten " * 80,
    "检索" * 400,
)


@dataclass(frozen=True, slots=True)
class Expected:
    """What PyTorch gives: token ids per text, the vectors of those and of random ids of each length."""

    token_ids: list[NDArray[np.int64]]
    texts: tuple[str, ...]  # those of the first token_ids; the others are random
    heads: reference.Heads
    rounded: bool = False  # PyTorch's weights, as the target's


def expect(checkpoint: Path, recipe: Recipe, *, rounding: Rounding | None = None, progress: bool = False) -> Expected:
    """Run the reference, on rounded weights where the target rounds them: what is compared is the graph.

    What the rounding itself costs, `bge-export evaluate` tells. PyTorch's memory is free again afterwards.
    """
    tokenizer = checkpoint_tokenizer.load(checkpoint)
    of_texts = reference.tokenize(tokenizer, recipe, TEXTS)
    first, last = checkpoint_tokenizer.ends(tokenizer)
    rng = np.random.default_rng(0)
    of_lengths = []
    for length in (length for length in LENGTHS if length <= recipe.max_tokens):
        ids = rng.integers(0, len(tokenizer), length)
        ids[-1], ids[0] = last, first
        of_lengths.append(ids)
    token_ids = [np.array(ids, dtype=np.int64) for ids in (*of_texts, *of_lengths)]
    affordable = _affordable(checkpoint, token_ids)
    token_ids = [token_ids[place] for place in affordable]
    texts = tuple(TEXTS[place] for place in affordable if place < len(of_texts))
    heads = reference.embed(checkpoint, recipe, token_ids, rounding=rounding, progress=progress)
    return Expected(token_ids, texts, heads, rounded=rounding is not None)


def _affordable(checkpoint: Path, token_ids: Sequence[NDArray[np.int64]]) -> list[int]:
    """The places of the texts to compare: all, or of a model with billions of parameters the shortest."""
    shapes = Weights.open(checkpoint, prefix="").shapes
    budget = MULTIPLICATIONS // sum(math.prod(shape) for name, shape in shapes.items() if "layer" in name)
    order = sorted(range(len(token_ids)), key=lambda place: len(token_ids[place]))
    tokens = np.cumsum([len(token_ids[place]) for place in order])
    return sorted(order[: max(1, int((tokens <= budget).sum()))])


def compare(
    embedder: Embedder, expected: Expected, *, limit: float, measure: Measure = "difference", progress: bool = False
) -> Parity:
    """Compare a bundle, by every head, with what PyTorch gave."""
    ours = embedder.tokenizer.encode(expected.texts)
    mismatches = sum(not np.array_equal(a, b) for a, b in zip(ours, expected.token_ids, strict=False))
    heads = tuple(embedder.bundle.outputs)
    found = embedder.embed_token_ids(expected.token_ids, heads=heads, progress=progress or None)
    wanted = expected.heads
    tokens = [len(ids) for ids in expected.token_ids]
    dense_errors = vector_errors if measure == "difference" else cosine_errors
    errors = {"dense": dense_errors(found.dense, wanted.dense)}
    for places, vectors in _other_ways(embedder, expected.token_ids):
        errors["dense"][places] = np.maximum(errors["dense"][places], dense_errors(vectors, wanted.dense[places]))
    if wanted.sparse is not None:
        pairs = zip(found.sparse, wanted.sparse, strict=True)
        errors["sparse"] = np.array([sparse_error(ours, theirs) for ours, theirs in pairs])
    if wanted.colbert is not None:
        rows = zip(found.colbert, wanted.colbert, strict=True)
        errors["colbert"] = np.array([vector_errors(ours, theirs).max(initial=0) for ours, theirs in rows])
    return Parity(
        texts=len(expected.token_ids),
        heads={head: worst(of_texts, tokens, limit=limit, measure=measure) for head, of_texts in errors.items()},
        tokenizer_mismatches=mismatches,
        reference=f"transformers {version('transformers')}, torch {version('torch')}, float32"
        + (", weights rounded as the bundle's" if expected.rounded else ""),
    )


def _other_ways(
    embedder: Embedder, token_ids: Sequence[NDArray[np.int64]]
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Dense vectors that come another way through the graph, with their places: alone, and behind a prefix."""
    short = [index for index, ids in enumerate(token_ids) if len(ids) <= SHORT_TOKENS]
    if len(embedder.bundle.outputs) > 1:  # dense alone takes a shorter way through the last layer
        yield short, embedder.embed_token_ids([token_ids[index] for index in short]).dense
    if embedder.bundle.causal:
        for index in sorted(short, key=lambda index: len(token_ids[index]))[-PREFIXES:]:
            ids = token_ids[index]
            prefix = embedder.prefix_of("", ids[: len(ids) // 2])
            yield [index], prefix.embed_whole([ids], Wanted()).dense


def cosine_errors(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float64]:
    """1 - cosine of each of N vectors (N, D)."""
    left, right = (vectors.astype(np.float64) for vectors in (found, wanted))
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    errors: NDArray[np.float64] = 1 - np.einsum("nd,nd->n", left, right) / lengths
    return errors


def vector_errors(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float64]:
    """The largest absolute difference of each of N vectors (N, D), as if those wanted had length 1."""
    lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
    errors: NDArray[np.float64] = (np.abs(found - wanted) / lengths).max(axis=1)
    return errors


def sparse_error(found: Mapping[int, float], wanted: Mapping[int, float]) -> float:
    """The largest absolute difference of two sparse vectors' weights; a token that one has not weighs 0 there."""
    return max((abs(found.get(token, 0) - wanted.get(token, 0)) for token in {*found, *wanted}), default=0.0)


def worst(
    errors: NDArray[np.float64], tokens: Sequence[int], *, limit: float, measure: Measure = "difference"
) -> HeadParity:
    """The largest of N texts' errors, with its place and length; NaN counts as infinite."""
    errors = np.where(np.isnan(errors), np.inf, errors)
    text = int(errors.argmax())
    return HeadParity(max_error=float(errors[text]), measure=measure, limit=limit, text=text, tokens=tokens[text])
