"""Scores between vectors, in numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from bge_onnx.bundle.records import Similarity
from bge_onnx.errors import InputError
from bge_onnx.vectors.embeddings import Embeddings, Vectors

UNIT_ERROR = 1e-5
"""Vectors that are so close to length 1 were normalised already."""

EQUAL = (1.0, 1.0, 1.0)
"""Weights of dense, sparse and colbert."""

Scores = float | Sequence[float] | NDArray[np.floating[Any]]

COLBERT_SCORES = 1 << 24
"""Token scores that one query's ColBERT comparison holds at a time: 64 MB."""

COLBERT_NUMBERS = 1 << 24
"""Numbers in the ColBERT rows that are copied together for one product: 64 MB."""


def similarity(queries: Embeddings | Vectors, passages: Embeddings | Vectors, *, by: Similarity = "cosine") -> Vectors:
    """Scores (Q, P) float32 of queries (Q, D) with passages (P, D); more is more alike.

    by  cosine, dot (inner products), or the negative of a distance, euclidean or manhattan

    Raises InputError: arrays that are not two-dimensional, or of different widths; another name.
    """
    left, right = _dense(queries), _dense(passages)
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise InputError(
            f"similarity: expected arrays (Q, D) and (P, D) of one width D, found {left.shape} and {right.shape}"
        )
    if by not in get_args(Similarity):
        raise InputError(f"similarity: expected by out of {', '.join(get_args(Similarity))}, found {by!r:.40}")
    if by == "cosine":
        return _unit(left) @ _unit(right).T
    if by == "dot":
        return left @ right.T
    order = 2 if by == "euclidean" else 1
    distances = [np.linalg.norm(right - row, ord=order, axis=1) for row in left]
    return -np.array(distances, dtype=np.float32).reshape(len(left), len(right))


def _unit(vectors: Vectors) -> Vectors:
    """Vectors of length 1, those that have it already bit for bit; rows of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    lengths = np.where(np.abs(lengths - 1) < UNIT_ERROR, 1, np.maximum(lengths, 1e-12)).astype(np.float32)
    unit: Vectors = vectors / lengths
    return unit


def top_k(scores: Vectors, k: int) -> NDArray[np.int64]:
    """Columns (Q, min(k, P)) of the largest scores of each row, best first; equal scores in column order.

    Raises InputError: no array of numbers (Q, P).
    """
    scores = _numbers("top_k", scores)
    if scores.ndim != 2:
        raise InputError(f"top_k: expected scores (Q, P), found the shape {scores.shape}")
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def lexical_score(query: Mapping[Any, float], passage: Mapping[Any, float]) -> float:
    """Lexical match of two sparse vectors: the sum, over the tokens they share, of the products of their weights.

    Raises InputError: no mappings of token id to weight, or ids as numbers in one and as strings in the other.
    """
    kinds = [_key_types(name, weights) for name, weights in (("query", query), ("passage", passage))]
    if kinds[0] and kinds[1] and kinds[0] != kinds[1]:
        raise InputError(
            f"lexical_score: expected token ids of one type, found {' and '.join(map(str, kinds[0]))} in the query, "
            f"{' and '.join(map(str, kinds[1]))} in the passage.\n"
            "    Take both from `Embedder` (numbers) or both from `bge_onnx.flag` (strings)."
        )
    return float(sum(weight * passage[token] for token, weight in query.items() if token in passage))


def _key_types(name: str, weights: Mapping[Any, float]) -> set[str]:
    if not isinstance(weights, Mapping) or not all(
        isinstance(weight, int | float | np.number) for weight in weights.values()
    ):
        raise InputError(
            f"lexical_score: expected a mapping of token id to weight as {name}, found {weights!r:.60}.\n"
            "    For many at once, multiply the matrices of `SparseVectors.to_csr`."
        )
    return {"str" if isinstance(token, str) else "int" for token in weights}


def colbert_score(query: Vectors, passage: Vectors) -> float:
    """Late interaction of one pair, rows (Tq, C) and (Tp, C): for each query row the best passage row, averaged.

    Khattab and Zaharia, ColBERT (arXiv 2004.12832), divided by the query's rows as in BGE-M3 (arXiv 2402.03216).
    Raises InputError: arrays that are no rows, of different widths, or without any row.
    """
    return float(colbert_scores(query, [passage])[0])


def colbert_scores(query: Vectors, passages: Sequence[Vectors], *, floors: Vectors | None = None) -> Vectors:
    """Late interaction (P,) float32 of one query's rows (Tq, C) with many passages' rows (Tp, C) each.

    The passages' rows are multiplied in groups, without padding. At most 64 MB of rows are copied, or converted to
    float32, at a time; a product is no larger.
    floors  (P,) the least value of each passage's token scores: 0 where FlagEmbedding's batch pads the passage
    Raises InputError: like `colbert_score`; the passage's index is named.
    """
    query = _rows("query", query).astype(np.float32, copy=False)
    passages = [_rows(f"passages[{index}]", passage, query.shape[1]) for index, passage in enumerate(passages)]
    scores = np.empty(len(passages), dtype=np.float32)
    budget_rows = max(1, min(COLBERT_SCORES // len(query), COLBERT_NUMBERS // max(1, query.shape[1])))
    for start, stop in row_chunks([len(passage) for passage in passages], budget_rows):
        best = _best(query, passages[start:stop], budget_rows)
        if floors is not None:
            best = np.maximum(best, floors[start:stop])
        scores[start:stop] = best.mean(axis=0)
    return scores


def _best(query: Vectors, passages: Sequence[Vectors], budget_rows: int) -> Vectors:
    """The largest product (Tq, P) of each of the query's rows with a passage's; one passage may exceed the budget."""
    if len(passages) == 1:
        (rows,) = passages
        parts = [rows[first : first + budget_rows] for first in range(0, len(rows), budget_rows)]
        best = [(query @ part.astype(np.float32, copy=False).T).max(axis=1) for part in parts]
        of_one: Vectors = np.max(best, axis=0)[:, None]
        return of_one
    starts = np.cumsum([0, *(len(rows) for rows in passages[:-1])])
    products: Vectors = query @ np.concatenate(passages, dtype=np.float32).T
    return np.maximum.reduceat(products, starts, axis=1)


def hybrid(dense: Scores, sparse: Scores, colbert: Scores, weights: Sequence[float] = EQUAL) -> Any:
    """The weighted mean of the three heads' scores, numbers or arrays of one shape; float32.

    weights  of dense, sparse and colbert
    Raises InputError: no numbers, shapes that differ, weights that are no three numbers or have the sum 0.
    """
    of_dense, of_sparse, of_colbert = check_weights(weights)
    scores = [_numbers("hybrid", score) for score in (dense, sparse, colbert)]
    if len({score.shape for score in scores}) > 1:
        raise InputError(f"hybrid: expected scores of one shape, found {', '.join(str(one.shape) for one in scores)}")
    mixed = scores[2] * of_colbert + scores[1] * of_sparse + scores[0] * of_dense
    return (mixed / (of_dense + of_sparse + of_colbert)).astype(np.float32)


def check_weights(weights: Sequence[float]) -> tuple[float, float, float]:
    """The weights of dense, sparse and colbert. Raises InputError: no three finite numbers, or with the sum 0."""
    numbers = [
        float(weight)
        for weight in (
            weights if isinstance(weights, Sequence | np.ndarray) and not isinstance(weights, str | bytes) else ()
        )
        if isinstance(weight, int | float | np.number) and math.isfinite(weight)
    ]
    if len(numbers) != 3 or len(weights) != 3 or abs(sum(numbers)) < 1e-9:
        raise InputError(
            f"weights: expected three numbers, of dense, sparse and colbert, with a sum other than 0; found {weights!r}"
        )
    return numbers[0], numbers[1], numbers[2]


def _dense(vectors: Embeddings | Vectors) -> Vectors:
    return vectors.dense if isinstance(vectors, Embeddings) else _numbers("similarity", vectors)


def _numbers(name: str, given: Any) -> Vectors:
    try:
        return np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError):
        raise InputError(f"{name}: expected an array of numbers, found {given!r:.60}") from None


def _rows(name: str, rows: Any, width: int | None = None) -> Vectors:
    """ColBERT rows as an array, one of numbers as it is. Raises InputError: they are none, or of another width."""
    try:
        numbers = isinstance(rows, np.ndarray) and rows.dtype.kind in "fiu"
        found = rows if numbers else np.asarray(rows, dtype=np.float32)
    except (TypeError, ValueError):
        found = np.empty(0, dtype=np.float32)
    if found.ndim != 2 or not len(found) or (width is not None and found.shape[1] != width):
        what = found.shape if isinstance(rows, np.ndarray) else f"{rows!r:.40}"
        raise InputError(f"colbert: expected one or more rows (T, C) of one width C as {name}, found {what}")
    return found


def row_chunks(lengths: Sequence[int], budget_rows: int) -> list[tuple[int, int]]:
    """Ranges of passages that together have at most `budget_rows` rows, or are one."""
    chunks, start, rows = [], 0, 0
    for index, length in enumerate(lengths):
        if index > start and rows + length > budget_rows:
            chunks.append((start, index))
            start, rows = index, 0
        rows += length
    if lengths:
        chunks.append((start, len(lengths)))
    return chunks
