"""Scores of pairs of texts, by BGE-M3's three heads and their mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from bge_onnx.errors import InputError
from bge_onnx.text.tokenizer import string_fault
from bge_onnx.vectors.embeddings import Embeddings, Vectors
from bge_onnx.vectors.scores import EQUAL, check_weights, colbert_scores, hybrid, row_chunks
from bge_onnx.vectors.sparse import SparseVectors

SCORED = ("dense", "sparse", "colbert")
"""The heads of BGE-M3, which are scored together."""

SCORE_PAIRS = 256
"""Pairs that are scored at a time."""

SCORED_NUMBERS = 1 << 26
"""Most numbers in the ColBERT rows of pairs that are scored together, 256 MB; one pair alone may have more."""


def score_pairs(
    queries: Embeddings,
    passages: Embeddings,
    pairs: Sequence[tuple[int, int]],
    weights: Sequence[float] = EQUAL,
    *,
    floors: Sequence[float] | None = None,
) -> dict[str, Vectors]:
    """Scores (N,) float32 of pairs of a query's and a passage's index, by every head and by their weighted means.

    The five modes of FlagEmbedding's `compute_score`, in its order: "colbert", "sparse", "dense", "sparse+dense",
    "colbert+sparse+dense". Where dense and sparse weigh nothing together, "sparse+dense" is no number, as there.
    floors  of each passage, below which its ColBERT token scores do not fall
    """
    of_dense, of_sparse, _ = check_weights(weights)
    left, right = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    dense = np.einsum("nd,nd->n", queries.dense[left], passages.dense[right])
    lexical = np.array([_lexical(queries.sparse, passages.sparse, *pair) for pair in pairs], dtype=np.float32)
    colbert = np.empty(len(pairs), dtype=np.float32)
    for query in np.unique(left):
        lines = np.flatnonzero(left == query)
        rows, lowest = [passages.colbert[passage] for passage in right[lines]], None
        if floors is not None:
            lowest = np.array([floors[passage] for passage in right[lines]], dtype=np.float32)
        colbert[lines] = colbert_scores(queries.colbert[query], rows, floors=lowest)
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.divide(of_sparse * lexical + of_dense * dense, of_sparse + of_dense)
    return {
        "colbert": colbert,
        "sparse": lexical,
        "dense": dense,
        "sparse+dense": both.astype(np.float32),
        "colbert+sparse+dense": hybrid(dense, lexical, colbert, weights),
    }


def score_texts(
    pairs: Sequence[tuple[str, str]],
    embed_queries: Callable[[list[str]], Embeddings],
    embed_passages: Callable[[list[str]], Embeddings],
    weights: Sequence[float],
) -> dict[str, Vectors]:
    """`score_pairs` of texts, each distinct one embedded once."""
    queries, query_of = distinct([query for query, _ in pairs])
    passages, passage_of = distinct([passage for _, passage in pairs])
    places = list(zip(query_of, passage_of, strict=True))
    return score_pairs(embed_queries(queries), embed_passages(passages), places, weights)


def check_pairs(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs as a list. Raises InputError: no list, or the first that is not a query and a passage."""
    unordered = isinstance(pairs, str | bytes | Mapping | set | frozenset) or hasattr(pairs, "columns")
    if unordered or not isinstance(pairs, Iterable):
        raise InputError(f"pairs: expected a list of pairs (query, passage), found {type(pairs).__name__}")
    pairs = list(pairs)
    for index, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"pairs[{index}]: expected a query and a passage, found {pair!r:.60}")
        if fault := string_fault(pair[0]) or string_fault(pair[1]):
            raise InputError(f"pairs[{index}]: expected a query and a passage, found {fault}")
    return pairs


def chunks_of_pairs(
    pairs: Sequence[tuple[str, str]], *, max_tokens: int, width: int
) -> list[Sequence[tuple[str, str]]]:
    """Pairs to score together: at most SCORE_PAIRS, and no more ColBERT rows of `width` than SCORED_NUMBERS allows.

    A text has about as many tokens as bytes at most, and never more than `max_tokens`. No pairs are one empty chunk.
    """
    rows = [sum(min(len(text.encode()) + 2, max_tokens) for text in pair) for pair in pairs]
    budget_rows = SCORED_NUMBERS // max(1, width)
    chunks = [
        pairs[first : min(first + SCORE_PAIRS, stop)]
        for start, stop in row_chunks(rows, budget_rows)
        for first in range(start, stop, SCORE_PAIRS)
    ]
    return chunks or [pairs]


def distinct(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Each text once, in order, and for every one of `texts` its place among those."""
    places: dict[str, int] = {}
    indices = [places.setdefault(text, len(places)) for text in texts]
    return list(places), indices


def _lexical(queries: SparseVectors, passages: SparseVectors, query: int, passage: int) -> np.float32:
    """`lexical_score` of two texts, without dicts."""
    (left, of_left), (right, of_right) = queries.indices_values(query), passages.indices_values(passage)
    _, at_left, at_right = np.intersect1d(left, right, assume_unique=True, return_indices=True)
    return np.float32(of_left[at_left] @ of_right[at_right])
