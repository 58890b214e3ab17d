"""What a bundle is compared with: PyTorch's vectors of texts of every kind and length."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import transformers
from numpy.typing import NDArray

from bge_export.checkpoint.pytorch import tokenize
from bge_export.checkpoint.recipe import Recipe
from bge_export.checkpoint.tokenizer import load_tokenizer, prepend_lower_case, text_ends
from bge_export.checkpoint.weights import Weights
from bge_export.lowering.limits import Limits
from bge_export.lowering.lower import Lowering
from bge_export.lowering.targets import Target
from bge_export.proof import reference
from bge_export.proof.compare import Expected, errors_of
from bge_onnx import Embeddings
from bge_onnx.bundle.graph_names import SECOND
from bge_onnx.bundle.heads import HEADS, SCORE
from bge_onnx.bundle.prompts import BEHIND, BETWEEN
from bge_onnx.errors import ProviderError
from bge_onnx.run.onnx_runtime import ort

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

MULTIPLICATIONS = 10**13
"""A check may cost twice this many: some minutes on two cores."""

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


def require_provider(target: Target) -> None:
    """Raise ProviderError: ONNX Runtime here cannot run what is to be compared."""
    offered = ort.get_available_providers()
    if target.provider not in offered:
        raise ProviderError(
            f"check: expected {target.provider}, found {', '.join(offered)} in onnxruntime {ort.__version__}.\n"
            "    Export on a machine that has it, or add --no-check and run `bge-export check` there."
        )


def expect(checkpoint: Path, recipe: Recipe, lowering: Lowering, *, progress: bool = False) -> Expected:
    """Run the reference. It rounds where the target rounds, so that only the graph is compared.

    `bge-export evaluate` tells what the rounding itself costs. A target whose layers are float16 or bfloat16 may err
    twice as much as PyTorch does in that precision on these texts. PyTorch's memory is free again afterwards.
    """
    tokenizer = load_tokenizer(checkpoint)
    given, of_texts = (
        pairs_of(tokenizer, recipe) if recipe.heads == (SCORE,) else (TEXTS, tokenize(tokenizer, recipe, TEXTS))
    )
    typed = any(max(ids) >= SECOND for ids in of_texts)
    first, last = text_ends(tokenizer)
    rng = np.random.default_rng(0)
    of_lengths = []
    for length in (length for length in LENGTHS if length <= recipe.max_tokens):
        ids = rng.integers(0, len(tokenizer), length)
        ids[-1], ids[0] = last, first
        if typed:
            ids[length // 2 :] += SECOND
        of_lengths.append(ids)
    token_ids = [np.array(ids, dtype=np.int64) for ids in (*of_texts, *of_lengths)]
    affordable = _affordable(checkpoint, token_ids)
    token_ids = [token_ids[place] for place in affordable]
    texts = tuple(given[place] for place in affordable if place < len(of_texts))
    in_float = dataclasses.replace(lowering, precision="float32")
    heads = reference.embed(checkpoint, recipe, token_ids, lowering=in_float, progress=progress)
    limits = None
    if lowering.precision != "float32":
        limits = limits_of(reference.embed(checkpoint, recipe, token_ids, lowering=lowering, progress=progress), heads)
    weights = ", rounded as the bundle is" if lowering.weights else ""
    name = f"transformers {version('transformers')}, torch {version('torch')}, float32{weights}"
    return Expected(token_ids, texts, heads, name, limits)


def pairs_of(
    tokenizer: transformers.PreTrainedTokenizerBase, recipe: Recipe
) -> tuple[list[tuple[str, str]], list[list[int]]]:
    """Pairs of texts of every kind, and their token ids as transformers joins them; types as `SECOND` says.

    Pairs whose query would be cut are left out. FlagEmbedding cuts a query before joining it, and transformers cannot.
    """
    if recipe.lower_cased:
        tokenizer = copy.deepcopy(tokenizer)
        prepend_lower_case(tokenizer.backend_tokenizer)
    if BEHIND in recipe.prompts:
        return prompted_pairs_of(tokenizer, recipe)
    pairs, found = [], []
    for place, query in enumerate(TEXTS):
        if len(tokenizer(query, add_special_tokens=False)["input_ids"]) > recipe.max_tokens * 3 // 4:
            continue
        for step in (1, 5, 11):
            passage = TEXTS[(place + step) % len(TEXTS)]
            # a list, as an empty passage beside a single query counts as none
            joined = tokenizer([query], [passage], truncation="only_second", max_length=recipe.max_tokens)
            (ids,) = joined["input_ids"]
            (types,) = joined.get("token_type_ids") or [[0] * len(ids)]
            pairs.append((query, passage))
            found.append([token + kind * SECOND for token, kind in zip(ids, types, strict=True)])
    return pairs, found


def prompted_pairs_of(
    tokenizer: transformers.PreTrainedTokenizerBase, recipe: Recipe
) -> tuple[list[tuple[str, str]], list[list[int]]]:
    """As `pairs_of`, of a language model that reads a prompt behind the pair; see `PairTokens.prompted`."""

    def ids_of(text: str) -> list[int]:
        ids: list[int] = tokenizer([text], add_special_tokens=False)["input_ids"][0]
        return ids

    prompts = recipe.prompts
    between = ids_of(prompts[BETWEEN])
    behind = between + ids_of(prompts[BEHIND])
    begin, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    pairs, found = [], []
    for place, query in enumerate(TEXTS):
        for step in (1, 5, 11):
            passage = TEXTS[(place + step) % len(TEXTS)]
            first = ids_of(prompts["query"] + query)[: recipe.max_tokens * 3 // 4]
            first = first if begin == pad else [begin, *first]
            second = between + ids_of(prompts["passage"] + passage)[: recipe.max_tokens]
            pairs.append((query, passage))
            found.append(first + second[: recipe.max_tokens + len(behind) - len(first)] + behind)
    return pairs, found


def limits_of(own: Embeddings, wanted: Embeddings) -> Limits:
    """Twice the largest error of PyTorch's own vectors in a precision, plus 1e-4."""
    largest = {True: 0.0, False: 0.0}  # of vectors, of weights
    for head, vectors in wanted.by_head.items():
        errors = errors_of(HEADS[head].gives, own.by_head[head], vectors, "difference")
        largest[HEADS[head].is_vectors] = max(largest[HEADS[head].is_vectors], float(errors.max()))
    return Limits(vectors=2 * largest[True] + 1e-4, sparse=2 * largest[False] + 1e-4)


def _affordable(checkpoint: Path, token_ids: Sequence[NDArray[np.int64]]) -> list[int]:
    """The places of the texts to compare: all, or of a model with billions of parameters the shortest."""
    shapes = Weights.open(checkpoint, prefix="").shapes
    budget = MULTIPLICATIONS // sum(math.prod(shape) for name, shape in shapes.items() if "layer" in name)
    order = sorted(range(len(token_ids)), key=lambda place: len(token_ids[place]))
    tokens = np.cumsum([len(token_ids[place]) for place in order])
    return sorted(order[: max(1, int((tokens <= budget).sum()))])
